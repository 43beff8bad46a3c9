"""Pods with a network of their own, by nodenet's plugins in a warm helper and by the reference plugins as executables."""

import subprocess
import sys
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).parents[3]


@pytest.mark.parametrize("plugins", ["nodenet", "reference"])
def test_a_pod_has_a_network_and_gives_it_back(plugins: str) -> None:
    module = "tests.integration.pods.network_scenario"
    command = ["unshare", "--net", sys.executable, "-m", module, plugins]
    done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["all well"]), done.stderr

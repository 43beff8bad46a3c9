"""The processes that a monitor forks for its work: what they answer, and what is told when they do not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("workers") / "said"
    command = [sys.executable, "-m", "tests.integration.pods.worker_scenario", str(output)]
    done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


def test_a_worker_that_is_kept_does_the_next_work(said: Any) -> None:
    assert said["plain"] == [0, "", ""]
    assert said["same worker"]


def test_another_worker_does_what_one_that_was_killed_cannot(said: Any) -> None:
    assert said["status after a worker was killed while it waited"] == [3, "", ""]


def test_execs_do_not_wait_for_each_other_and_use_a_worker_that_is_free(said: Any) -> None:
    second, first, third = said["execs"]
    assert (first, third) == (0, second)


def test_work_that_fails_is_told_with_its_reason(said: Any) -> None:
    assert said["raise"] == [1, "LookupError: there is no such thing", ""]
    assert said["die"] == [-1, "its process was killed by signal 9", ""]


def test_work_that_hangs_is_ended_and_told(said: Any) -> None:
    assert said["hang"] == [-1, "it did not end in time, and was killed", ""]
    assert 1 <= said["seconds"] < 5


def test_what_a_worker_has_made_comes_to_the_monitor(said: Any) -> None:
    assert said["adopted"] == 7


def test_a_worker_holds_no_descriptors_but_its_own(said: Any) -> None:
    """stdin, stdout and stderr, its socket, the three of the call, and the one that lists them."""
    assert said["descriptors"] == 8


def test_a_monitor_imports_nothing_for_its_work(said: Any) -> None:
    """What is played before the spawner forks is what monitors do."""
    assert said["imported"] == []


def test_the_rehearsal_goes_as_it_should_and_leaves_nothing_open(said: Any) -> None:
    assert said["troubles"] == []
    assert said["left open"] == 0

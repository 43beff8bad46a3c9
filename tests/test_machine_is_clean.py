"""The last test of a run: nothing that the tests made is left on the machine."""

import os
import time
from pathlib import Path

from tests.machine import snapshot


def test_the_machine_is_as_clean_after_the_run_as_before() -> None:
    before = set(Path(os.environ["STRATA_MACHINE_BEFORE"]).read_text().splitlines())
    deadline = time.monotonic() + 10
    left = snapshot() - before
    while left and time.monotonic() < deadline:  # the kernel takes namespaces and interfaces away asynchronously
        time.sleep(0.2)
        left = snapshot() - before
    assert not left, "left behind:\n" + "\n".join(sorted(left))

"""What scripts/test --vm runs: lowrt's integration tests on a machine of today, and the tests of tests/vm/inside.

usage: python -m tests.vm.lane [pytest arguments]. With paths among the arguments only those are run.
"""

import os
import subprocess
import sys
import time

from tests.vm import checkout
from tests.vm.machine import Machine, MachineFailure

# What takes long inside and is the same on every machine: what is read of a configuration before anything is made.
_ELSEWHERE = ["tests/integration/lowrt/test_fuzz.py"]
# Name and paths of each part. One pytest a part: its start costs two seconds, and a part can be timed.
PARTS = (
    ("lowrt's own tests", ["tests/integration/linux", "tests/integration/lowrt", *(f"--ignore={path}" for path in _ELSEWHERE)]),
    ("what only a booted machine shows", ["tests/vm/inside"]),
)
# Software emulation: what takes a second outside may take half a minute.
_PYTEST = [str(checkout.PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=600", "--durations=5"]
_PART_SECONDS = 5400
_BEFORE = "/run/strata-machine-before"
_NOTHING_COLLECTED = 5  # pytest's exit status


def main(arguments: list[str]) -> int:
    paths = [word for word in arguments if os.path.exists(word.partition("::")[0])]
    options = [word for word in arguments if word not in paths]
    results: dict[str, int] = {}
    try:
        with Machine() as machine:
            print(f"vm: booted in {machine.booted_seconds:.0f} s", flush=True)
            machine.run(["sh", "-c", f"{checkout.PYTHON} -m tests.machine >{_BEFORE}"])
            for name, selected in [("the given tests", paths)] if paths else PARTS:
                results[name] = _part(machine, name, [*options, *selected])
            # With pytest's -k a part may have nothing to run; all of them may not.
            if any(status != _NOTHING_COLLECTED for status in results.values()):
                results = {name: status for name, status in results.items() if status != _NOTHING_COLLECTED}
            results["clean"] = _part(machine, "the machine is clean", ["tests/test_machine_is_clean.py"])
    except (MachineFailure, subprocess.CalledProcessError) as failure:
        print(f"vm: {failure}", flush=True)
        return 1
    failed = [name for name, status in results.items() if status]
    if failed:
        print(f"vm: failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def _part(machine: Machine, name: str, arguments: list[str]) -> int:
    """Runs one pytest; its exit status."""
    start = time.monotonic()
    print(f"\n== vm: {name}", flush=True)
    status = machine.run([*_PYTEST, *arguments], seconds=_PART_SECONDS, environment={"STRATA_MACHINE_BEFORE": _BEFORE})
    print(f"-- vm: {name}: {time.monotonic() - start:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

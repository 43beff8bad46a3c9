"""python -m tests.vm [COMMAND...]: boots a machine, runs the command in the checkout, ends the machine, exits as it did."""

import sys

from tests.vm.machine import Machine, MachineFailure


def main(argv: list[str]) -> int:
    try:
        with Machine() as machine:
            print(f"vm: booted in {machine.booted_seconds:.0f} s", file=sys.stderr, flush=True)
            status = machine.run(argv or ["uname", "-a"], seconds=3600)
    except MachineFailure as failure:
        print(f"vm: {failure}", file=sys.stderr)
        return 1
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Runs inside the machine: takes commands from one serial port, one JSON object a line, and answers with their status.

{"argv": [...], "cwd": PATH, "environment": {...}} → {"status": N}. What a command prints goes to the second port as it is.
The first line that is sent says how the machine is: {"system": "running"} (or what `systemctl is-system-running` calls it).
"""

import json
import os
import subprocess

PORTS = "/dev/virtio-ports/strata."


def main() -> None:
    control = os.open(PORTS + "control", os.O_RDWR | os.O_CLOEXEC)
    output = os.open(PORTS + "output", os.O_WRONLY | os.O_CLOEXEC)
    waited = subprocess.run(["systemctl", "is-system-running", "--wait"], stdout=subprocess.PIPE, text=True, check=False)
    answer(control, {"system": waited.stdout.strip()})
    for line in lines(control):
        command = json.loads(line)
        try:
            status = subprocess.run(
                command["argv"], cwd=command["cwd"], env=command["environment"], stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, check=False,
            ).returncode  # fmt: skip
        except OSError as error:
            os.write(output, f"{command['argv'][0]}: {error.strerror}\n".encode())
            status = 127
        answer(control, {"status": status})


def lines(port: int):  # type: ignore[no-untyped-def]
    waiting = b""
    while chunk := os.read(port, 65536):
        *complete, waiting = (waiting + chunk).split(b"\n")
        yield from complete


def answer(port: int, message: dict) -> None:  # type: ignore[type-arg]
    os.write(port, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()

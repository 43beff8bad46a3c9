"""A running machine: QEMU as a child process, and two serial ports to the agent inside."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.vm import checkout, image

BOOT_SECONDS = 180
ENVIRONMENT = {
    "HOME": "/root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "STRATA_VM": "1",
}
_KERNEL_LINE = "root=/dev/vda rw console=ttyS0 loglevel=4 audit=0 mitigations=off random.trust_cpu=on systemd.show_status=0"


# lowrt's snapshot, as scripts/setup takes it: it serves where it was taken.
SNAPSHOT = ["/usr/bin/python3", "lowrt/boot/snapshot.py"]


class MachineFailure(Exception):
    """The machine did not boot, died, or did not answer before its deadline. Says what its console said last."""


class Machine:
    """Boots when it is entered, ends when it is left, however that happens.

    with Machine() as machine: status = machine.run(["systemctl", "status"])
    """

    def __init__(self, *, cores: int = 2, memory_mib: int = 3072) -> None:
        self._cores, self._memory_mib = cores, memory_mib
        self._stack = contextlib.ExitStack()
        self.booted_seconds = 0.0

    def __enter__(self) -> "Machine":
        built = image.ensure()
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strata-vm-")))
            disk = folder / "checkout"
            (folder / "scratch").mkdir()
            checkout.pack(disk, folder / "scratch")
            self._console = folder / "console"
            self._control, far_control = socket.socketpair()
            self._output, far_output = socket.socketpair()
            for end in (self._control, far_control, self._output, far_output):
                stack.callback(end.close)
            start = time.monotonic()
            self._qemu = subprocess.Popen(
                # It dies with this process, also when that is killed.
                ["setpriv", "--pdeathsig", "KILL", *self._command(built, disk, far_control.fileno(), far_output.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(far_control.fileno(), far_output.fileno()),
                env={**os.environ, "TMPDIR": str(folder)},  # the throw-away copies of the disks
            )  # fmt: skip
            stack.callback(self._end)
            far_control.close()
            far_output.close()
            state = self._message(lambda _: None, time.monotonic() + BOOT_SECONDS)["system"]
            self.booted_seconds = time.monotonic() - start
            if state != "running":
                self.run(["systemctl", "--failed", "--no-pager"])
                raise MachineFailure(f"the machine has booted, but is {state} (above: what failed)")
            if self.run(SNAPSHOT):
                raise MachineFailure("the machine has booted, but no snapshot of lowrt could be taken (above: why)")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def run(
        self,
        argv: list[str],
        *,
        seconds: float = 600.0,
        environment: dict[str, str] | None = None,
        show: Callable[[bytes], None] | None = None,
    ) -> int:
        """Runs a command in the checkout and returns its exit status (negative: a signal). Raises MachineFailure.

        What it prints is handed to `show` as it comes (default: this process's stdout).
        """
        given = {"argv": argv, "cwd": str(checkout.INSIDE), "environment": {**ENVIRONMENT, **(environment or {})}}
        self._control.sendall(json.dumps(given).encode() + b"\n")
        status: int = self._message(show or _print, time.monotonic() + seconds)["status"]
        return status

    def _command(self, built: image.Image, disk: Path, control: int, output: int) -> list[str]:
        drives = [f"if=virtio,format=raw,snapshot=on,cache=unsafe,file={file}" for file in (built.disk, disk)]
        ports = [
            word
            for name, descriptor in (("control", control), ("output", output))
            for word in (
                "-chardev", f"socket,id={name},fd={descriptor}", "-device", f"virtserialport,chardev={name},name=strata.{name}"
            )
        ]  # fmt: skip
        return [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", str(self._cores),
            "-m", str(self._memory_mib), "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
            "-kernel", str(built.kernel), "-initrd", str(built.initrd), "-append", _KERNEL_LINE,
            "-serial", f"file:{self._console}", *(word for drive in drives for word in ("-drive", drive)),
            "-device", "virtio-serial", *ports, "-device", "virtio-rng-pci",
        ]  # fmt: skip

    def _message(self, show: Callable[[bytes], None], deadline: float) -> dict[str, Any]:
        """Waits for the agent's next line, showing what comes out of the other port meanwhile, and all that came before it."""
        line = b""
        while not line.endswith(b"\n"):
            for ready in self._readable(deadline):
                data = ready.recv(65536)
                if not data:
                    raise self._failure(f"the machine has ended (status {self._qemu.wait()})")
                if ready is self._output:
                    show(data)
                else:
                    line += data
        while select.select([self._output], [], [], 0)[0]:
            show(self._output.recv(65536))
        message: dict[str, Any] = json.loads(line)
        return message

    def _readable(self, deadline: float) -> Iterator[socket.socket]:
        left = deadline - time.monotonic()
        ready = select.select([self._output, self._control], [], [], max(left, 0))[0]
        if not ready:
            raise self._failure("the machine has not answered before its deadline")
        yield from ready

    def _failure(self, what: str) -> MachineFailure:
        console = self._console.read_text(errors="replace") if self._console.exists() else ""
        return MachineFailure("\n".join([f"{what}; its console said last:", *console.splitlines()[-25:]]))

    def _end(self) -> None:
        self._qemu.kill()
        self._qemu.wait()


def _print(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

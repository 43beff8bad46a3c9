"""A container runtime on a booted machine: lowrt, or the peer that STRATA_TEST_RUNTIME names, to see what it does with a test."""

import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lowrt.conftest import LOWRT, Runtime

CGROUPS = Path("/sys/fs/cgroup")
# For commands that leave a process behind: it would hold the pipe that the caller reads to its end.
SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}


class BootedRuntime(Runtime):
    """A runtime with its bundle on a pure v2 machine. `flags` go before every command."""

    flags: tuple[str, ...] = ()
    program = os.environ.get("STRATA_TEST_RUNTIME", str(LOWRT))

    def call(self, *argv: str | Path, check: bool = False, **options: Any) -> "subprocess.CompletedProcess[str]":
        given = {"stdin": subprocess.DEVNULL, "timeout": 60, "capture_output": True, **options}
        done = subprocess.run([self.program, "--root", self.root, *self.flags, *argv], text=True, **given)
        assert not check or done.returncode == 0, f"{argv}: {done.returncode} {done.stdout} {done.stderr}"
        return done

    def start(self, *program: str) -> int:
        """A new container that runs in the background; its PID. What went wrong is in a file: a pipe would stay open."""
        self.config["process"]["args"] = list(program)
        self.write()
        with open(self.root.parent / "errors", "w+") as errors:
            silent = {**SILENT, "stderr": errors}
            done = self.call("run", "--detach", "--bundle", self.bundle, self.id, **silent)
            errors.seek(0)
            assert done.returncode == 0, errors.read()
        return int(self.state()["pid"])

    def folder(self) -> Path:
        """The cgroup of the container's first process, as the kernel tells it."""
        line = Path(f"/proc/{self.state()['pid']}/cgroup").read_text().strip()
        return CGROUPS / line.removeprefix("0::").lstrip("/")

    def value(self, name: str) -> str:
        """One control file of the container's group."""
        return (self.folder() / name).read_text().strip()

    def inside(self, *program: str) -> str:
        """What a program printed that was executed in the container; it must succeed."""
        return self.call("exec", self.id, *program, check=True).stdout


class SystemdRuntime(BootedRuntime):
    """The same with --systemd-cgroup: the container is a scope in machine.slice."""

    flags = ("--systemd-cgroup",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        name = uuid.uuid4().hex[:8]
        self.unit = f"strata-{name}.scope"
        self.config["linux"]["cgroupsPath"] = f"machine.slice:strata:{name}"

    def show(self, name: str) -> str:
        """A property of the container's unit."""
        return systemctl("show", "--property", name, "--value", self.unit).strip()


def systemctl(*argv: str) -> str:
    return subprocess.run(["systemctl", *argv], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter; pytest's are root's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def runtime(open_folder: Path) -> Iterator[BootedRuntime]:
    made = BootedRuntime(open_folder)
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def systemd_runtime(open_folder: Path) -> Iterator[SystemdRuntime]:
    made = SystemdRuntime(open_folder)
    try:
        yield made
    finally:
        made.clean()
        systemctl("stop", "machine.slice")  # it stays when the last of its units goes

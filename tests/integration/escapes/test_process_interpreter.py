"""CVE-2019-5736, for an interpreter: what becomes a container's program was the host's python3 a moment before.

A container's root can have that very program executed once more, with a loader from the image (`#!/proc/self/exe`), take hold of
its file by /proc/self/exe, and overwrite it as soon as it is not running. What is attacked here is a copy, mounted over the
interpreter's file in a mount namespace of the test's own.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from strata.linux import mounts, syscalls
from tests.conftest import wait_for
from tests.integration.escapes.conftest import give_capabilities, install
from tests.integration.lowrt.conftest import LOWRT, Runtime
from tests.integration.lowrt.warm import CHECKOUT
from tests.processes import comm, descendants

INTERPRETER = os.path.realpath("/usr/bin/python3")
MARK = b"a copy to attack"
FREESTANDING = ("-nostdlib", "-static-pie", "-fPIE", "-ffreestanding")
WARM = (sys.executable, "-m", "tests.integration.lowrt.warm")  # in process, as highrt's monitors do it


class Lane:
    """A mount namespace in which the interpreter's file is a copy, so that a successful attack hurts nobody."""

    def __init__(self, folder: Path) -> None:
        self.copy = folder / "python3"
        shutil.copy(INTERPRETER, self.copy)
        with self.copy.open("ab") as file:
            file.write(MARK)
        self.content = self.copy.read_bytes()

    def call(self, *argv: str | Path) -> None:
        """Runs a command in it, which must succeed."""
        bind = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", bind, "sh", self.copy, INTERPRETER, *argv]
        null = subprocess.DEVNULL
        with tempfile.TemporaryFile("w+") as said:  # a pipe would be held open by a container that runs on
            done = subprocess.run(command, stdin=null, stdout=null, stderr=said, text=True, timeout=30, check=False, cwd=CHECKOUT)
            said.seek(0)
            assert (done.returncode, said.read()) == (0, "")


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    return Lane(tmp_path)


@pytest.fixture
def runtime(runtime: Runtime, compiled: Callable[..., Path]) -> Runtime:
    """The image of the attack: a loader for the host's interpreter, and programs that make the kernel run it."""
    install(runtime, compiled("loader", *FREESTANDING), "lib64/ld-linux-x86-64.so.2")
    install(runtime, compiled("overwrite"))
    (runtime.bundle / "rootfs/script").write_text("#!/proc/self/exe\n")
    (runtime.bundle / "rootfs/script").chmod(0o755)
    (runtime.bundle / "rootfs/link").symlink_to("/proc/self/exe")
    return runtime


every_entry = pytest.mark.parametrize("entry", ["/script", "/link", "/proc/self/exe"])


def result(runtime: Runtime) -> str:
    """What the attack has come to."""
    path = runtime.bundle / "rootfs/result"
    wait_for(path.exists, what="the attack's end")
    return path.read_text()


@every_entry
@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("command", [(LOWRT,), WARM], ids=["command", "warm"])
def test_the_first_process_of_a_container_cannot_overwrite_the_interpreter(
    runtime: Runtime, lane: Lane, command: tuple[str | Path, ...], privileged: bool, entry: str
) -> None:
    """By run. Privileged, it also tries to make the mount writable that it has got hold of."""
    if privileged:
        give_capabilities(runtime.config["process"])
    runtime.config["process"]["args"] = [entry]
    runtime.write()
    lane.call(*command, "--root", runtime.root, "run", "--detach", "--bundle", runtime.bundle, runtime.id)
    assert result(runtime) == "Read-only file system"
    assert lane.copy.read_bytes() == lane.content


@pytest.mark.parametrize("command", [(LOWRT,), WARM], ids=["command", "warm"])
def test_a_created_container_cannot_overwrite_the_interpreter(
    runtime: Runtime, lane: Lane, command: tuple[str | Path, ...]
) -> None:
    """The same with create and start: two commands, and the process was made by the first."""
    runtime.config["process"]["args"] = ["/script"]
    runtime.write()
    lane.call(*command, "--root", runtime.root, "create", "--bundle", runtime.bundle, runtime.id)
    lane.call(*command, "--root", runtime.root, "start", runtime.id)
    assert result(runtime) == "Read-only file system"
    assert lane.copy.read_bytes() == lane.content


@every_entry
@pytest.mark.parametrize("command", [(LOWRT,), WARM], ids=["command", "warm"])
def test_an_entering_process_cannot_overwrite_the_interpreter(
    runtime: Runtime, lane: Lane, command: tuple[str | Path, ...], entry: str
) -> None:
    """As it was in 2019: somebody executes a harmless program in the container, and that program is a link to the runtime."""
    runtime.start("sleep", "100")
    lane.call(*command, "--root", runtime.root, "exec", "--detach", runtime.id, entry)
    assert result(runtime) == "Read-only file system"
    assert lane.copy.read_bytes() == lane.content


def test_a_container_in_the_hosts_pid_namespace_cannot_overwrite_the_interpreter(runtime: Runtime, lane: Lane) -> None:
    """With all capabilities, and all of lowrt's own processes in sight."""
    give_capabilities(runtime.config["process"])
    linux = runtime.config["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "pid"]
    runtime.config["process"]["args"] = ["/script"]
    runtime.write()
    lane.call(LOWRT, "--root", runtime.root, "run", "--detach", "--bundle", runtime.bundle, runtime.id)
    assert result(runtime) == "Read-only file system"
    assert lane.copy.read_bytes() == lane.content


@every_entry
def test_the_attack_works_on_a_runtime_that_runs_from_the_file_itself(runtime: Runtime, lane: Lane, entry: str) -> None:
    """The proof that the attack is one: a runtime that forks, changes its root and executes the program."""
    naive = (
        "import os, sys\nif os.fork() == 0: os.chroot(sys.argv[1]); os.chdir('/'); os.execv(sys.argv[2], sys.argv[2:])\n"
        "os._exit(0)"
    )
    rootfs = runtime.bundle / "rootfs"
    (rootfs / "proc").mkdir()
    lane.call("sh", "-c", 'mount -t proc proc "$1/proc"; shift; exec "$@"', "sh", rootfs,
              INTERPRETER, "-c", naive, rootfs, entry)  # fmt: skip
    assert result(runtime) == "overwritten"
    assert lane.copy.read_bytes() != lane.content


# --- by root of the host, which sees all of lowrt's processes


def is_read_only(pid: int) -> bool:
    """Whether a process's program is safe from whoever opens its /proc/PID/exe, whatever is tried."""
    held = os.open(f"/proc/{pid}/exe", os.O_PATH)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            syscalls.mount_setattr(held, recursive=False, set_=0, clear=mounts.ATTRIBUTE_RDONLY)
        with pytest.raises(OSError, match=r"Text file busy|Read-only"):
            os.open(f"/proc/self/fd/{held}", os.O_WRONLY)
        return is_view(held)
    finally:
        os.close(held)


def is_view(held: int) -> bool:
    return bool(os.fstatvfs(held).f_flag & os.ST_RDONLY)


def test_a_mount_of_the_interpreter_that_can_be_written_is_noticed() -> None:
    """What `is_view` says of this very process, which has none."""
    held = os.open("/proc/self/exe", os.O_PATH)
    assert not is_view(held)
    os.close(held)


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on by itself, and is ended with the test."""
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=null, stdout=null)
    try:
        yield process
    finally:
        for pid in (*descendants(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def test_no_process_of_lowrt_in_a_container_has_a_writable_file(runtime: Runtime) -> None:
    """The run that waits, the first process before its program, the exec that waits, and the helpers of exec."""
    runtime.config["process"]["args"] = ["sleep", "100"]
    runtime.write()
    lowrt = (LOWRT, "--root", runtime.root)
    with running(*lowrt, "run", "--bundle", runtime.bundle, runtime.id) as waiting:
        wait_for(lambda: runtime.call("exec", runtime.id, "true").returncode == 0, what="the container")
        assert is_read_only(waiting.pid)
        slow = ("strace", "-f", "-o", "/dev/null", "--inject=setns:delay_enter=1000000", "--inject=setsid:delay_enter=1000000")
        with running(*slow, *lowrt, "exec", runtime.id, "true") as entering:
            looked_at = set()
            while entering.poll() is None:
                for pid in set(descendants(entering.pid)) - looked_at:
                    with suppress(FileNotFoundError):
                        before = comm(pid)
                        held = os.open(f"/proc/{pid}/exe", os.O_PATH)
                        read_only = is_view(held)
                        os.close(held)
                        if before == comm(pid) == "lowrt":
                            assert read_only
                            looked_at.add(pid)
            assert entering.returncode == 0
            assert len(looked_at) >= 3, "the command, its helper, and the process in the container"
        runtime.call("kill", runtime.id, "KILL", check=True)
        waiting.wait(10)
    null = subprocess.DEVNULL
    runtime.call("create", "--bundle", runtime.bundle, runtime.id, check=True, stdout=null, stderr=null, capture_output=False)
    assert is_read_only(runtime.state()["pid"])


@pytest.mark.parametrize("by", ["a copy", "a link to the launcher", "a link to the folder", "another link's link"])
def test_lowrt_runs_from_a_view_wherever_it_lies(runtime: Runtime, tmp_path: Path, by: str) -> None:
    """A copy of the tree, and links to the launcher: what matters is the interpreter's file, not lowrt's."""
    tree = tmp_path / "tree"
    if by == "a copy":
        for folder in ("lowrt", "strata/linux"):
            shutil.copytree(CHECKOUT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "snapshot"))
        shutil.copy(CHECKOUT / "strata/__init__.py", tree / "strata")
    elif by == "a link to the folder":
        tree.symlink_to(CHECKOUT)
    command = tree / "lowrt/launcher"
    if "launcher" in by or "another" in by:
        command = tmp_path / "lowrt"
        command.symlink_to(LOWRT)
    if "another" in by:
        command = tmp_path / "other"
        command.symlink_to("lowrt")
    runtime.config["process"]["args"] = ["sleep", "100"]
    runtime.write()
    with running(command, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id) as waiting:
        wait_for(lambda: runtime.call("exec", runtime.id, "true").returncode == 0, what="the container")
        assert is_read_only(waiting.pid)

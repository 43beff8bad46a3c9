"""CVE-2016-9962: what a container's processes can do to one that enters the container, before that one is a program of theirs."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from strata.linux import capabilities, namespaces
from tests.conftest import wait_for
from tests.integration.escapes.conftest import SUBORDINATE_ID, give_capabilities
from tests.integration.lowrt.conftest import LOWRT, Runtime


class Look(NamedTuple):
    """A line of `programs/watch.c`: what the watcher got of a process."""

    pid: int
    name: str
    program: str
    what: str


class Watcher:
    """A container whose first process looks at all others (`programs/watch.c`)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._rootfs = runtime.bundle / "rootfs"
        runtime.start("watch", "/done", "/seen")
        wait_for(lambda: (self._rootfs / "seen").exists(), what="the watcher")

    def enter(self) -> None:
        """exec into the container, as fast as it goes: here the watcher may get hold of the process."""
        done = self._runtime.call("exec", self._runtime.id, "true")
        assert done.returncode == 0, done.stderr

    def enter_until_seen(self) -> None:
        """The same again and again, until the watcher has met some of the processes on their way."""
        for attempt in range(200):
            if attempt >= 10 and self.has_looked():
                return
            self.enter()
        pytest.fail("the watcher has met no process on its way")

    def enter_slowly(self) -> None:
        """exec with pauses before the steps at which the process changes, long enough to be looked at in each state."""
        slow = [f"--inject={call}:delay_enter=60000" for call in ("setsid", "setresuid", "capset", "execve")]
        command = [LOWRT, "--root", self._runtime.root, "exec", self._runtime.id, "true"]
        subprocess.run(["strace", "-f", "-o", "/dev/null", *slow, *command], check=True, timeout=60, stdin=subprocess.DEVNULL)

    def looks(self) -> list[Look]:
        """What it has seen of processes that were still lowrt's."""
        found = []
        for line in (self._rootfs / "seen").read_text(errors="replace").splitlines():
            pid, name, program, what = line.split(" ", 3)
            if name != "true" and "busybox" not in program:
                found.append(Look(int(pid), name, program, what))
        return found

    def has_looked(self) -> bool:
        """Whether it has met such processes at all."""
        return len({look.pid for look in self.looks()}) >= 3

    def got(self) -> set[str]:
        """The same without what anybody may know of a process: that it is there."""
        return {look.what for look in self.looks()} - {"there"}


@pytest.fixture
def watcher(runtime: Runtime, attacker: Callable[..., None]) -> Callable[[], Watcher]:
    attacker("watch")
    return lambda: Watcher(runtime)


NAIVE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
pid, held, flags = int(sys.argv[1]), os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY), int(sys.argv[3])
if libc.setns(os.pidfd_open(pid), flags):
    sys.exit("setns")
libc.setresuid(0, 0, 0)
libc.prctl(4, 1)  # PR_SET_DUMPABLE
if os.fork() == 0:
    print("inside", flush=True)
    os.read(0, 1)
    os._exit(0)
os.wait()
"""


@contextmanager
def naive_exec(pid: int, held: Path) -> Iterator[None]:
    """A process enters a container's namespaces as lowrt must not: it does not hide, and has a folder of the host open."""
    flags = namespaces.NEWPID | namespaces.NEWNS | namespaces.NEWUSER
    command = [sys.executable, "-c", NAIVE, str(pid), str(held), str(flags)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as entering:
        assert entering.stdout
        assert entering.stdout.readline() == b"inside\n"
        yield


def join(runtime: Runtime, pid: int, *kinds: str) -> None:
    """Lets a container's first process join these namespaces of another's."""
    entries = runtime.config["linux"]["namespaces"]
    for kind in kinds:
        entries[:] = [entry for entry in entries if entry["type"] != kind]
        entries.append({"type": kind, "path": namespaces.path_of(pid, kind)})
    if "user" in kinds:
        for name in ("uidMappings", "gidMappings"):
            runtime.config["linux"].pop(name)


def test_root_of_a_user_namespace_gets_nothing_of_a_process_that_enters(
    runtime: Runtime, watcher: Callable[[], Watcher], give_user_namespace: Callable[[Runtime], None], tmp_path: Path
) -> None:
    """In its user namespace the container's root may trace whatever is there. A process that had joined it with a descriptor of
    the host still open was an open door (CVE-2016-9962, fixed by making the process undumpable before it joins, and by the
    kernel, which since 4.10 asks in whose user namespace the memory was made). The naive process shows that the watcher works.
    """
    give_user_namespace(runtime)
    give_capabilities(runtime.config["process"])
    watching = watcher()
    watching.enter_slowly()
    watching.enter_until_seen()
    assert watching.got() == set()
    tmp_path.chmod(0o755)
    with naive_exec(runtime.state()["pid"], tmp_path):
        wait_for(lambda: "seized 000001ffffffffff" in watching.got(), what="the watcher to take hold of it")
        assert any(tmp_path.name in what and "opened" in what for what in watching.got())


def test_a_first_process_that_waits_for_its_start_is_hidden(
    runtime: Runtime, give_user_namespace: Callable[[Runtime], None]
) -> None:
    """The files in /proc of a process that may not be looked into are the host's root's, whoever it is itself (proc(5))."""
    give_user_namespace(runtime)
    runtime.config["process"]["args"] = ["sleep", "100"]
    runtime.write()
    null = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    runtime.call("create", "--bundle", runtime.bundle, runtime.id, check=True, **null)
    environment = Path(f"/proc/{runtime.state()['pid']}/environ")
    assert environment.stat().st_uid == 0
    runtime.call("start", runtime.id, check=True)
    assert environment.stat().st_uid == SUBORDINATE_ID, "the proof that it would be seen"


def test_root_without_privileges_gets_nothing_of_a_process_that_enters(runtime: Runtime, watcher: Callable[[], Watcher]) -> None:
    """The user is the same, root's on the host, only that the process is undumpable and has more capabilities protects it."""
    watching = watcher()
    watching.enter_slowly()
    watching.enter_until_seen()
    assert watching.got() == set()


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_one_that_may_trace_gets_nothing_of_a_process_that_enters_but_what_it_has_itself(
    runtime: Runtime, watcher: Callable[[], Watcher], no_new_privileges: bool
) -> None:
    """A container that was given CAP_SYS_PTRACE on the host (docker run --cap-add SYS_PTRACE) may trace all that it sees,
    hidden or not: whoever entered with all capabilities handed them over. So what it sees has neither more of them than the
    container, nor a descriptor, a root or a program's file that would be worth anything.
    """
    runtime.config["process"]["noNewPrivileges"] = no_new_privileges
    give_capabilities(runtime.config["process"], "CAP_SYS_PTRACE")
    own = capabilities.mask(runtime.config["process"]["capabilities"]["permitted"])
    watching = watcher()
    watching.enter_slowly()
    for attempt in range(200):
        watching.enter()
        if attempt >= 20 and any(what.startswith("seized") for what in watching.got()):
            break
    seized = {int(what.split()[1], 16) for what in watching.got() if what.startswith("seized")}
    assert seized
    assert seized <= {own}
    assert {"root own", "root foreign", "exe held", "exe writable"} & watching.got() == {"root own", "exe held"}
    for number, target in [what.split(" ", 2)[1:] for what in watching.got() if what.startswith("descriptor")]:
        if target.startswith("socket:"):
            assert target.endswith(os.strerror(errno.ENXIO)), "it can be opened"
        else:
            assert number in ("0", "1", "2") or target.startswith("/bin/busybox"), "it is neither the caller's nor the program's"


@pytest.mark.parametrize(
    ("first", "joined"),
    [("in a user namespace", ("user", "pid")), ("on the host", ("pid",)), ("on the host, the other not", ("pid",))],
)
def test_a_container_gets_nothing_of_another_that_comes_to_its_pid_namespace(
    runtime: Runtime, make_runtime: Callable[[str], Runtime], watcher: Callable[[], Watcher],
    give_user_namespace: Callable[[Runtime], None], first: str, joined: tuple[str, ...],
) -> None:  # fmt: skip
    """Containers of a pod may share a PID namespace. While the first process of a new one still has the host's root, another
    could walk through its /proc/PID/root, or take it over with all its capabilities: as root of the user namespace that both are
    in; or as root of the host without any capability, because the owner of a user namespace has all capabilities over it.
    """
    other = make_runtime("other")
    if first == "in a user namespace":
        give_user_namespace(runtime)
        give_capabilities(runtime.config["process"])
    if first != "on the host":
        give_user_namespace(other)
    watching = watcher()
    join(other, runtime.state()["pid"], *joined)
    if first == "on the host, the other not":  # it may not mount the proc of a PID namespace that is not its own
        other.config["mounts"] = [mount for mount in other.config["mounts"] if mount["type"] != "proc"]
    for attempt in range(200):
        done = other.run("true")
        assert (done.returncode, done.stderr) == (0, "")
        if attempt >= 10 and watching.has_looked():
            break
    assert watching.has_looked()
    assert watching.got() == set()

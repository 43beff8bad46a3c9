"""Seccomp in containers: actions, arguments, architectures, and calls that an agent decides about."""

import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for

# Makes one system call, number and arguments as given, and prints what came of it: 0 or the errno's number.
PROGRAM = """
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static long call32(long number, long a, long b) {
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(0) : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}
int main(int count, char **given) {
	long values[7] = {0};
	int legacy = !strcmp(given[1], "int80"), i;
	for (i = 1 + legacy; i < count && i - legacy <= 7; i++) values[i - legacy - 1] = strtoul(given[i], 0, 0);
	long result = legacy ? call32(values[0], values[1], values[2])
		: syscall(values[0], values[1], values[2], values[3], values[4], values[5], values[6]);
	int code = legacy ? (result < 0 && result > -4096 ? -result : 0) : (result == -1 ? errno : 0);
	printf("%d\\n", code);
	return 0;
}
"""
GETPID, PERSONALITY, GETPRIORITY, MKDIR, GETCPU = 39, 135, 140, 83, 309
NO_SPACE = {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSPC}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("call") / "call"
    subprocess.run(["gcc", "-static", "-O1", "-x", "c", "-", "-o", made], input=PROGRAM, text=True, check=True)
    return made


@pytest.fixture
def call(runtime: Any, program: Path) -> Callable[..., int]:
    """Makes a system call in a container, and returns its errno."""
    (runtime.bundle / "rootfs/bin/call").write_bytes(program.read_bytes())
    (runtime.bundle / "rootfs/bin/call").chmod(0o755)

    def make(*words: object) -> int:
        done = runtime.run("call", *map(str, words))
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return make


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **fields: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **fields}


# --- actions


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_a_refused_call_returns_the_errno_that_the_profile_says(
    runtime: Any, call: Callable[..., int], no_new_privileges: bool
) -> None:
    runtime.config["process"]["noNewPrivileges"] = no_new_privileges
    runtime.config["linux"]["seccomp"] = profile(
        {"names": ["getpid"], **NO_SPACE}, {"names": ["getpriority", "nosuchcall"], "action": "SCMP_ACT_ERRNO"}
    )
    assert call(GETPID) == errno.ENOSPC
    assert call(GETPRIORITY, 0, 0) == errno.EPERM
    assert call(GETCPU, 0, 0, 0) == 0


@pytest.mark.parametrize(
    ("action", "status"),
    [("SCMP_ACT_KILL", 159), ("SCMP_ACT_KILL_THREAD", 159), ("SCMP_ACT_KILL_PROCESS", 159), ("SCMP_ACT_TRAP", 159),
     ("SCMP_ACT_LOG", 0), ("SCMP_ACT_ALLOW", 0)],
)  # fmt: skip
def test_actions_that_end_the_process_or_let_it_go_on(runtime: Any, call: Callable[..., int], action: str, status: int) -> None:
    runtime.config["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    runtime.config["linux"]["seccomp"] = profile({"names": ["getpriority"], "action": action})
    assert runtime.run("call", str(GETPRIORITY)).returncode == status


def test_a_traced_call_without_a_tracer_is_none(runtime: Any, call: Callable[..., int]) -> None:
    runtime.config["linux"]["seccomp"] = profile({"names": ["getpriority"], "action": "SCMP_ACT_TRACE", "errnoRet": 7})
    assert call(GETPRIORITY) == errno.ENOSYS


def test_a_profile_without_action_and_rules_is_none(runtime: Any) -> None:
    runtime.config["linux"]["seccomp"] = {"architectures": ["SCMP_ARCH_X86_64"]}
    assert "Seccomp:\t0" in runtime.shell("cat /proc/self/status")


@pytest.mark.parametrize("flags", [None, [], ["SECCOMP_FILTER_FLAG_LOG"], ["SECCOMP_FILTER_FLAG_TSYNC"],
                                   ["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG"]])  # fmt: skip
def test_flags_are_taken_and_speculation_is_not_slowed_down_unless_asked(runtime: Any, flags: list[str] | None) -> None:
    runtime.config["linux"]["seccomp"] = profile({"names": ["getpriority"], **NO_SPACE})
    if flags is not None:
        runtime.config["linux"]["seccomp"]["flags"] = flags
    status = runtime.shell("cat /proc/self/status")
    assert "Seccomp:\t2\nSeccomp_filters:\t1\n" in status
    assert runtime.config["linux"]["seccomp"].get("flags") == flags


def test_calls_that_lowrt_itself_makes_may_be_unknown_to_the_profile(runtime: Any) -> None:
    """Kernel calls of the last years, which an old profile does not name, are not needed once a filter is on."""
    runtime.config["process"]["noNewPrivileges"] = False
    names = ["close_range", "fsopen", "fsconfig", "fspick", "openat2", "open_tree", "move_mount", "mount_setattr"]
    runtime.config["linux"]["seccomp"] = profile({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    assert runtime.run("true").returncode == 0


# --- arguments


def when(index: int, comparison: str, value: int, value_two: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{comparison}", "value": value, "valueTwo": value_two}


@pytest.mark.parametrize(
    ("arguments", "refused", "allowed"),
    [
        ([when(0, "EQ", 7)], [(7,)], [(6,), (8,)]),
        ([when(0, "NE", 7)], [(6,), (8,)], [(7,)]),
        ([when(0, "LT", 7)], [(6,)], [(7,)]),
        ([when(0, "LE", 7)], [(7,)], [(8,)]),
        ([when(0, "GT", 7)], [(8,), (1 << 40,)], [(7,)]),
        ([when(0, "GE", 7)], [(7,)], [(6,)]),
        ([when(0, "MASKED_EQ", 0xF0, 0x30)], [(0x35,)], [(0x45,)]),
        ([when(0, "EQ", 1), when(1, "EQ", 2)], [(1, 2)], [(1, 3), (0, 2)]),
        ([when(1, "EQ", 1), when(1, "EQ", 3)], [(9, 1), (9, 3)], [(9, 2)]),
    ],
    ids=["eq", "ne", "lt", "le", "gt", "ge", "masked", "all of several", "one of several on the same argument"],
)
def test_rules_on_arguments(
    runtime: Any, call: Callable[..., int], arguments: list[Any], refused: list[Any], allowed: list[Any]
) -> None:
    runtime.config["linux"]["seccomp"] = profile({"names": ["getcpu"], "args": arguments, **NO_SPACE})
    for words in refused:
        assert call(GETCPU, *words) == errno.ENOSPC, words
    for words in allowed:
        assert call(GETCPU, *words) in (0, errno.EFAULT), words


# --- architectures, and calls that are not known


def test_a_32_bit_call_is_filtered_where_its_architecture_is_named_and_fatal_where_not(
    runtime: Any, call: Callable[..., int]
) -> None:
    getpriority32 = 96
    runtime.config["linux"]["seccomp"] = profile(
        {"names": ["getpriority"], **NO_SPACE}, architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    )
    assert call(GETPRIORITY) == errno.ENOSPC
    assert call("int80", getpriority32) == errno.ENOSPC
    runtime.config["linux"]["seccomp"]["architectures"] = ["SCMP_ARCH_X86_64"]
    runtime.config["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    assert runtime.run("call", "int80", str(getpriority32)).returncode == 159


def allowed_calls() -> dict[str, Any]:
    """A list of allowed calls that ends with openat2 (437), as a profile of 2020 might."""
    names = (
        "read write open openat close fstat newfstatat mmap mprotect munmap brk access execve exit_group arch_prctl futex "
        "set_tid_address set_robust_list rseq prlimit64 getrandom readlink readlinkat prctl capset setgroups setresgid "
        "setresuid chdir getcwd stat uname fcntl rt_sigaction rt_sigprocmask ioctl openat2"
    )
    return {"names": names.split(), "action": "SCMP_ACT_ALLOW"}


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_calls_newer_than_the_profile_do_not_exist(runtime: Any, call: Callable[..., int], no_new_privileges: bool) -> None:
    """So that a C library goes back to what an older kernel had; known ones are refused as the profile says."""
    runtime.config["process"]["noNewPrivileges"] = no_new_privileges
    both = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    runtime.config["linux"]["seccomp"] = profile(allowed_calls(), default="SCMP_ACT_ERRNO", architectures=both)
    faccessat2, newest, mkdir32 = 439, 499, 39
    assert call(MKDIR, 0) == errno.EPERM
    assert call(faccessat2) == errno.ENOSYS
    assert call(newest) == errno.ENOSYS
    assert call("int80", mkdir32) == errno.EPERM
    assert call("int80", faccessat2) == errno.ENOSYS
    runtime.config["linux"]["seccomp"]["defaultErrnoRet"] = errno.ENXIO
    assert call(MKDIR, 0) == errno.ENXIO
    assert call(newest) == errno.ENOSYS


# --- profiles that cannot be honoured


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defaultAction": "SCMP_ACT_X"}, "not a valid action"),
        ({"architectures": ["SCMP_ARCH_PDP11"]}, "not a valid arch"),
        ({"architectures": ["SCMP_ARCH_S390X"]}, "byte order"),
        ({"flags": ["X"]}, "seccomp flag X is not known"),
        ({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}, "no SCMP_ACT_NOTIFY"),
        ({"defaultErrnoRet": 1}, "returns no errno"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1}]}, "returns no errno"),
        ({"syscalls": [{"names": [""], "action": "SCMP_ACT_KILL"}]}, "empty string"),
        ({"syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}, "cannot be used for the write syscall"),
        ({"syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}, "listenerPath is not set"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "cannot be used as default action"),
        ({"listenerPath": "/nosuch/sock", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]},
         "failed to connect with seccomp agent"),
        ({"listenerPath": "@nosuch", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]},
         "failed to connect with seccomp agent"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [when(9, "EQ", 1)]}]}, "6 arguments"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [when(0, "X", 1)]}]}, "not a valid operator"),
    ],
)  # fmt: skip
def test_profiles_that_cannot_be_honoured_are_refused(runtime: Any, change: dict[str, Any], message: str) -> None:
    runtime.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", **change}
    done = runtime.run("true")
    assert done.returncode == 1
    assert message in done.stderr
    assert runtime.call("list", "-q").stdout == ""


# --- compiled programs that are kept


def kept_program(runtime: Any) -> Path:
    (found,) = (runtime.root / ".seccomp").iterdir()
    assert isinstance(found, Path)
    return found


def test_a_kept_program_is_used_again_and_only_if_whole(runtime: Any, call: Callable[..., int]) -> None:
    runtime.config["linux"]["seccomp"] = profile({"names": ["getpriority"], **NO_SPACE})
    assert call(GETPRIORITY) == errno.ENOSPC
    kept = kept_program(runtime)
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    whole = kept.read_bytes()
    harmless = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    for content in (b"", whole[:40], whole[:32], whole[:32] + harmless, whole + harmless, bytes(32) + harmless):
        kept.write_bytes(content)
        assert call(GETPRIORITY) == errno.ENOSPC
        assert kept.read_bytes() == whole


def test_a_kept_program_that_somebody_else_could_write_is_not_used(
    runtime: Any, call: Callable[..., int], tmp_path: Path
) -> None:
    runtime.config["linux"]["seccomp"] = profile({"names": ["getpriority"], **NO_SPACE})
    call(GETPRIORITY)
    kept = kept_program(runtime)
    name, whole = kept.name, kept.read_bytes()
    # The program of another profile under this one's name, with a right checksum.
    runtime.config["linux"]["seccomp"] = profile({"names": ["getcpu"], **NO_SPACE})
    call(GETPRIORITY)
    (other,) = (one for one in kept.parent.iterdir() if one.name != name)
    runtime.config["linux"]["seccomp"] = profile({"names": ["getpriority"], **NO_SPACE})
    kept.write_bytes(other.read_bytes())
    assert call(GETPRIORITY) == errno.ENOSPC, "the checksum does not cover what it was compiled from"
    for mode, owner in ((0o666, 0), (0o600, 1000)):
        kept.chmod(mode)
        os.chown(kept, owner, owner)
        before = kept.stat().st_ino
        assert call(GETPRIORITY) == errno.ENOSPC
        assert kept.stat().st_ino != before, "it was used, and not made anew"
    kept.parent.chmod(0o777)
    kept.write_bytes(b"")
    assert call(GETPRIORITY) == errno.ENOSPC
    assert kept.read_bytes() == b"", "it was kept where anybody could change it"
    kept.parent.chmod(0o700)
    (tmp_path / "elsewhere").write_bytes(whole)
    kept.unlink()
    kept.symlink_to(tmp_path / "elsewhere")
    assert call(GETPRIORITY) == errno.ENOSPC
    assert not kept.is_symlink()


# --- calls that an agent decides about

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1


class Agent:
    """Takes listeners, and answers each call with an errno (0: done, nothing happens) or lets it go on (None); once it is silent
    it answers no call of those that it takes then."""

    silent = False

    def __init__(self, path: Path, answer: int | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.calls: list[int] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._listeners: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            text, (listener,), _, _ = socket.recv_fds(connection, 65536, 1)
            connection.close()
            self._listeners.append(listener)
            self.messages.append(json.loads(text))
            if not self.silent:
                threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: int) -> None:
        while True:
            notification = bytearray(80)
            try:
                fcntl.ioctl(listener, _RECEIVE, notification)
                identity, _, _, number = struct.unpack_from("QIIi", notification)
                self.calls.append(number)
                flags = _CONTINUE if self._answer is None else 0
                fcntl.ioctl(listener, _SEND, bytearray(struct.pack("QqiI", identity, 0, -(self._answer or 0), flags)))
            except OSError as error:
                if error.errno != errno.ENOENT:  # that call was given up meanwhile
                    return

    def forget(self) -> None:
        """Closes what it was given."""
        for listener in self._listeners:
            os.close(listener)
        self._listeners.clear()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.forget()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[[int | None], Agent]]:
    made: list[Agent] = []

    def make(answer: int | None) -> Agent:
        made.append(Agent(tmp_path / "agent.sock", answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def notifying(runtime: Any, *names: str, **fields: Any) -> None:
    path = str(runtime.root.parent / "agent.sock")
    runtime.config["linux"]["seccomp"] = profile(
        {"names": list(names), "action": "SCMP_ACT_NOTIFY"},
        listenerPath=path,
        listenerMetadata="to whom it may concern",
        **fields,
    )


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_an_agent_decides_about_a_containers_calls(
    runtime: Any, agent: Callable[..., Agent], call: Callable[..., int], no_new_privileges: bool
) -> None:
    decider = agent(errno.ENOMEDIUM)
    runtime.config["process"]["noNewPrivileges"] = no_new_privileges
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    runtime.config["annotations"] = {"org.example": "yes"}
    notifying(runtime, "getpriority")
    assert call(GETPRIORITY) == errno.ENOMEDIUM
    assert decider.calls == [GETPRIORITY]
    (message,) = decider.messages
    state = message.pop("state")
    assert message.pop("pid") == state.pop("pid") > 0
    assert message == {"ociVersion": "1.3.0", "fds": ["seccompFd"], "metadata": "to whom it may concern"}
    assert state == {
        "ociVersion": "1.3.0", "id": runtime.id, "status": "creating", "bundle": str(runtime.bundle),
        "annotations": {"org.example": "yes"},
    }  # fmt: skip


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_an_agent_decides_about_the_calls_of_an_exec(
    runtime: Any, agent: Callable[..., Agent], call: Callable[..., int], no_new_privileges: bool
) -> None:
    runtime.config["process"]["noNewPrivileges"] = no_new_privileges
    decider = agent(errno.ENOMEDIUM)
    notifying(runtime, "getpriority")
    pid = runtime.start("sleep", "100")
    assert runtime.call("exec", runtime.id, "call", str(GETPRIORITY)).stdout == f"{errno.ENOMEDIUM}\n"
    of_container, of_exec = decider.messages
    assert of_container["pid"] == of_exec["state"]["pid"] == pid
    assert of_exec["state"]["status"] == "running"
    assert of_exec["pid"] != pid
    # Neither leaves its messenger behind.
    assert runtime.call("exec", runtime.id, "sh", "-c", "ps | grep -c '[l]owrt'").stdout == "0\n"


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_calls_that_lowrt_makes_under_the_filter_may_be_decided_too(
    runtime: Any, agent: Callable[..., Agent], no_new_privileges: bool
) -> None:
    runtime.config["process"]["noNewPrivileges"] = no_new_privileges
    decider = agent(None)
    # sendmsg is what a listener is passed on with.
    notifying(runtime, "execve", "openat", "open", "read", "close", "fcntl", "sendmsg", "sendto", "wait4", "setresuid", "stat")
    assert runtime.run("echo", "it runs").stdout == "it runs\n"
    assert 59 in decider.calls  # execve


def test_an_exec_whose_agent_goes_before_it_has_answered_fails(runtime: Any, agent: Callable[..., Agent]) -> None:
    decider = agent(None)
    notifying(runtime, "execve")
    runtime.start("sleep", "100")
    decider.silent = True
    command = [runtime.launcher, "--root", runtime.root, "exec", runtime.id, "true"]
    waiting = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(decider.messages) == 2, what="the listener of the exec")
    decider.forget()
    _, error = waiting.communicate(timeout=20)
    assert waiting.returncode == 255
    assert "exec /bin/true: function not implemented" in error


@pytest.mark.parametrize("own_pids", [True, False])
def test_an_exec_that_waits_for_its_agent_ends_with_the_container(
    runtime: Any, agent: Callable[..., Agent], own_pids: bool
) -> None:
    """Also where it does not share a PID namespace with the first process, and dies with that."""
    if not own_pids:
        runtime.config["linux"]["namespaces"] = [e for e in runtime.config["linux"]["namespaces"] if e["type"] != "pid"]
    decider = agent(None)
    notifying(runtime, "execve")
    runtime.start("sleep", "100")
    decider.silent = True
    command = [runtime.launcher, "--root", runtime.root, "exec", runtime.id, "true"]
    waiting = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(decider.messages) == 2, what="the listener of the exec")
    runtime.call("delete", "--force", runtime.id, check=True, timeout=20)
    assert waiting.wait(timeout=10) == 128 + signal.SIGKILL


def test_without_its_agent_a_decided_call_does_not_exist(
    runtime: Any, agent: Callable[..., Agent], call: Callable[..., int]
) -> None:
    decider = agent(errno.ENOMEDIUM)
    notifying(runtime, "getpriority", flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])
    script = f"while ! test -e /go; do sleep 0.05; done; call {GETPRIORITY} >/said"
    runtime.start("sh", "-c", script)
    wait_for(lambda: decider.messages, what="the listener")
    decider.forget()
    (runtime.bundle / "rootfs/go").touch()
    wait_for(lambda: runtime.state()["status"] == "stopped", what="the container's end")
    assert (runtime.bundle / "rootfs/said").read_text() == f"{errno.ENOSYS}\n"


def test_a_container_whose_agent_is_gone_at_its_start_does_not_run(runtime: Any, agent: Callable[..., Agent]) -> None:
    decider = agent(None)
    notifying(runtime, "mkdir")
    runtime.config["process"]["args"] = ["touch", "/ran"]
    runtime.write()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    runtime.call("create", "--bundle", runtime.bundle, runtime.id, check=True, **quiet)
    decider.close()
    decider.close = lambda: None  # type: ignore[method-assign]
    done = runtime.call("start", runtime.id)
    assert done.returncode == 1
    assert "failed to connect with seccomp agent" in done.stderr
    wait_for(lambda: runtime.state()["status"] == "stopped", what="the container's end")
    assert not (runtime.bundle / "rootfs/ran").exists()


def test_a_start_hook_gets_no_listener(runtime: Any, agent: Callable[..., Agent]) -> None:
    agent(None)
    notifying(runtime, "mkdir")
    count = {"path": "/bin/sh", "args": ["sh", "-c", "ls /proc/self/fd >/seen"], "env": ["PATH=/bin"]}
    runtime.config["hooks"] = {"startContainer": [count]}
    assert runtime.run("true").returncode == 0
    assert (runtime.bundle / "rootfs/seen").read_text().split() == ["0", "1", "2", "3"]

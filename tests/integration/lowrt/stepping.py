"""Runs a command, and at one system call of one of its processes kills it or lets the call fail (ptrace(2), x86_64).

    listed = stepping.run([LOWRT, "create", …], folder)                   # every call that was seen, in order
    failed = stepping.run([LOWRT, "create", …], folder, at=17, error=errno.EIO)   # the 17th of them fails
    killed = stepping.run([LOWRT, "create", …], folder, at=17)            # the command is killed as it enters the 17th

A number names the same step in every run, as long as the command does the same. strace can inject too, but counts each kind
of call by itself and in all processes alike: it does not reach every step.
"""

import ctypes
import os
import pickle
import signal
import struct
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CALLS = {
    0: "read", 1: "write", 3: "close", 5: "fstat", 8: "lseek", 16: "ioctl", 33: "dup2", 41: "socket", 42: "connect", 44: "sendto",
    45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 49: "bind", 50: "listen", 53: "socketpair", 54: "setsockopt", 56: "clone",
    57: "fork", 58: "vfork", 59: "execve", 61: "wait4", 62: "kill", 72: "fcntl", 73: "flock", 74: "fsync", 80: "chdir",
    81: "fchdir", 82: "rename", 83: "mkdir", 84: "rmdir", 87: "unlink", 88: "symlink", 89: "readlink", 90: "chmod", 91: "fchmod",
    92: "chown", 93: "fchown", 95: "umask", 112: "setsid", 116: "setgroups", 117: "setresuid", 119: "setresgid", 126: "capset",
    133: "mknod", 155: "pivot_root", 157: "prctl", 160: "setrlimit", 161: "chroot", 165: "mount", 166: "umount2",
    170: "sethostname", 171: "setdomainname", 217: "getdents64", 231: "exit_group", 250: "keyctl", 257: "openat", 258: "mkdirat",
    259: "mknodat", 260: "fchownat", 262: "newfstatat", 263: "unlinkat", 264: "renameat", 266: "symlinkat", 267: "readlinkat",
    268: "fchmodat", 269: "faccessat", 272: "unshare", 288: "accept4", 292: "dup3", 293: "pipe2", 302: "prlimit64",
    308: "setns", 316: "renameat2", 317: "seccomp", 321: "bpf", 322: "execveat", 332: "statx", 424: "pidfd_send_signal",
    428: "open_tree", 429: "move_mount", 430: "fsopen", 431: "fsconfig", 432: "fsmount", 434: "pidfd_open", 435: "clone3",
    436: "close_range", 437: "openat2", 439: "faccessat2", 442: "mount_setattr",
}  # fmt: skip
CHANGING = frozenset(CALLS.values()) - {
    "read", "close", "fstat", "lseek", "ioctl", "dup2", "socket", "recvfrom", "recvmsg", "socketpair", "setsockopt", "fcntl",
    "umask", "readlink", "getdents64", "newfstatat", "readlinkat", "faccessat", "statx", "dup3", "pipe2", "pidfd_open",
    "faccessat2",
}  # fmt: skip
"""The calls that change something somebody else can see. Between two of them nothing happens that a kill could cut in two."""

_PATH_ARGUMENT = {
    "openat": 1, "mkdir": 0, "rmdir": 0, "unlink": 0, "rename": 0, "mount": 1, "umount2": 0, "openat2": 1, "mkdirat": 1,
    "mknodat": 1, "symlinkat": 2, "execve": 0, "newfstatat": 1, "readlink": 0, "chdir": 0, "unlinkat": 1, "open_tree": 1,
    "readlinkat": 1,
}  # fmt: skip

_PEEKUSER, _POKEUSER, _CONT, _DETACH, _SYSCALL = 3, 6, 7, 17, 24
_SETOPTIONS, _SEIZE, _INTERRUPT, _LISTEN, _GET_SYSCALL_INFO = 0x4200, 0x4206, 0x4207, 0x4208, 0x420E
_SYSGOOD, _TRACE_CHILDREN, _TRACE_EXEC = 1, 2 | 4 | 8, 16
_EVENT_STOP = 128
_ORIG_RAX, _RAX = 15 * 8, 10 * 8
_WALL = 0x40000000
_PR_SET_NAME = 15
_STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass
class Outcome:
    """What became of the command. calls: those that were counted, with the path that they are about; hit: the chosen one."""

    returncode: int
    stdout: str = ""
    stderr: str = ""
    calls: list[str] = field(default_factory=list)
    hit: str = ""


def run(
    argv: Sequence[str | Path],
    folder: Path,
    *,
    at: int = 0,
    error: int = 0,
    role: int = 0,
    since: str = "",
    counted: Collection[str] = CHANGING,
    environ: Mapping[str, str] | None = None,
    seconds: int = 30,
) -> Outcome:
    """Runs the command to its end.

    at: the number of the call, from 1 (0: none). error: the errno it fails with; 0 kills the command instead. role: whose calls
    are counted: 0 the command's, 1 its first child's, 2 the second's. since: counts from the first call on that is about a path
    with this text in it (else from when lowrt has woken). folder: for the command's output.
    """
    read, write = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        try:
            signal.alarm(seconds)
            os.close(read)
            outcome = _Tracer(at, error, role, since, frozenset(counted)).trace([str(word) for word in argv], folder, environ)
            os.write(write, pickle.dumps(outcome))
        except BaseException:  # pytest shows it beside the failed assertion below
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(tracer, 0)
    assert answer, f"{argv}: not ended after {seconds} s (call {at} of {role})"
    outcome = pickle.loads(answer)
    assert isinstance(outcome, Outcome)
    outcome.stdout, outcome.stderr = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    return outcome


class _Tracer:
    def __init__(self, at: int, error: int, role: int, since: str, counted: frozenset[str]) -> None:
        self._at, self._error, self._role, self._counted = at, error, role, counted
        self._roles: dict[int, int] = {}
        self._failing: set[int] = set()
        self._awake, self._since = role > 0, since
        self._outcome = Outcome(-1)

    def trace(self, argv: list[str], folder: Path, environ: Mapping[str, str] | None) -> Outcome:
        go_read, go_write = os.pipe()
        command = os.fork()
        if command == 0:
            try:
                os.close(go_write)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for number, name in ((1, "stdout"), (2, "stderr")):
                    os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                os.read(go_read, 1)
                os.execve(argv[0], argv, os.environ if environ is None else environ)
            finally:
                os._exit(127)
        self._roles[command] = 0
        _ptrace(_SEIZE, command, 0, _SYSGOOD | _TRACE_EXEC | (_TRACE_CHILDREN if self._role else 0))
        _ptrace(_INTERRUPT, command)
        os.waitpid(command, _WALL)
        self._go_on(command)
        os.write(go_write, b"g")
        while True:
            pid, status = os.waitpid(-1, _WALL)
            if os.WIFSTOPPED(status):
                self._stopped(pid, status >> 8 & 0xFF, status >> 16)
            elif pid == command:
                self._outcome.returncode = os.waitstatus_to_exitcode(status)
                return self._outcome

    def _stopped(self, pid: int, number: int, event: int) -> None:
        if pid not in self._roles:
            self._take(pid)
        elif number == signal.SIGTRAP | 0x80:
            self._at_call(pid)
            self._go_on(pid)
        elif event == _EVENT_STOP:
            if number in _STOPPING:
                _ptrace(_LISTEN, pid)
            else:
                self._go_on(pid)
        else:
            self._go_on(pid, 0 if event else number)

    def _take(self, pid: int) -> None:
        """A new process: it gets the next role, or is let go."""
        launchers = "launcher" in os.readlink(f"/proc/{pid}/exe")
        role = max(self._roles.values()) + 1
        if launchers or role > self._role:
            _ptrace(_DETACH, pid)
            return
        self._roles[pid] = role
        if role == self._role:
            _ptrace(_SETOPTIONS, pid, 0, _SYSGOOD | _TRACE_EXEC)
        self._go_on(pid)

    def _go_on(self, pid: int, number: int = 0) -> None:
        watched = self._roles[pid] == self._role and (not self._outcome.hit or pid in self._failing)
        _ptrace(_SYSCALL if watched else _CONT, pid, 0, number)

    def _at_call(self, pid: int) -> None:
        info = ctypes.create_string_buffer(88)
        _ptrace(_GET_SYSCALL_INFO, pid, 88, ctypes.addressof(info))
        entering, number = info.raw[0] == 1, struct.unpack_from("Q", info.raw, 24)[0]
        if pid in self._failing:
            self._failing.remove(pid)
            _ptrace(_POKEUSER, pid, _RAX, -self._error)
            return
        name = CALLS.get(number, "")
        arguments = struct.unpack_from("6Q", info.raw, 32)
        if name == "prctl" and arguments[0] == _PR_SET_NAME:
            # Before lowrt wakes up there is its launcher, whose steps are none of the container's. This is the last of them.
            self._awake = True
            return
        if not entering or not self._awake or name not in self._counted:
            return
        path = _path(pid, name, arguments)
        if self._since not in path:
            return
        self._since = ""
        self._outcome.calls.append(f"{name} {path}".strip())
        if len(self._outcome.calls) != self._at:
            return
        self._outcome.hit = self._outcome.calls[-1]
        if self._error:
            _ptrace(_POKEUSER, pid, _ORIG_RAX, -1)
            self._failing.add(pid)
        else:
            os.kill(next(pid for pid, role in self._roles.items() if role == 0), signal.SIGKILL)


def _path(pid: int, name: str, arguments: tuple[int, ...]) -> str:
    if name not in _PATH_ARGUMENT:
        return ""
    address = arguments[_PATH_ARGUMENT[name]]
    data = b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        while address and b"\0" not in data and len(data) < 4096:
            memory.seek(address + len(data))
            data += memory.read(64 - (address + len(data)) % 64)  # never across the end of a page that is mapped
    return data.partition(b"\0")[0].decode(errors="replace")


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    """ptrace(2); a process that has died meanwhile is told of by the next wait."""
    if _libc.ptrace(request, pid, address & 2**64 - 1, data & 2**64 - 1) < 0 and ctypes.get_errno() != 3:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}: {os.strerror(ctypes.get_errno())}")

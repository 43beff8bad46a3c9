"""Seccomp filters (seccomp(2)) from the OCI runtime spec's form: checking a profile, keeping compiled programs, loading them.

`libseccomp` compiles. That takes milliseconds, so programs are kept in a folder by a hash of all that they were made from.
"""

import os

from strata.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Profile = dict[str, Any]

# SECCOMP_RET_* of the kernel, by the names of config-linux, Seccomp.
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000, "SCMP_ACT_KILL_THREAD": 0x00000000, "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000, "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000, "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_NOTIFY": 0x7FC00000, "SCMP_ACT_ALLOW": 0x7FFF0000,
}  # fmt: skip
OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
# TSYNC says nothing to a process that has one thread, and the kernel refuses it beside a listener.
FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 0, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
         "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32}  # fmt: skip
# By the spec's names, what libseccomp calls them.
ARCHITECTURES = {
    f"SCMP_ARCH_{name.upper()}": name
    for name in ("x86", "x86_64", "x32", "arm", "aarch64", "mips", "mips64", "mips64n32", "mipsel", "mipsel64", "mipsel64n32",
                 "ppc", "ppc64", "ppc64le", "riscv64", "s390", "s390x", "parisc", "parisc64", "loongarch64", "m68k", "sh",
                 "sheb")
}  # fmt: skip
ARGUMENTS = 6
_NEW_LISTENER, _SPEC_ALLOW, _WAIT_KILLABLE = 8, 4, 32
_EPERM = 1
_SET_MODE_FILTER = 1
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_INSTRUCTION_BYTES = 8
_DIGEST_BYTES = 32
# Part of every hash: programs that an older version of this code compiled are not used.
_FORMAT = 2
_LIBRARY_FOLDERS = (f"/usr/lib/{os.uname().machine}-linux-gnu", f"/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/lib64",
                    "/usr/lib", "/lib", "/usr/local/lib")  # fmt: skip


class Filter:
    """A compiled program, ready to load."""

    def __init__(self, program: bytes, flags: int) -> None:
        self.flags = flags
        self.program = program
        # struct sock_fprog: the count of instructions, and where they are
        self._descriptor = (len(program) // _INSTRUCTION_BYTES).to_bytes(8, "little") + syscalls.address_of(program).to_bytes(
            8, "little"
        )

    def load(self) -> int:
        """Puts the filter on this thread; the listener's descriptor where it notifies, else -1.

        Needs CAP_SYS_ADMIN or no_new_privs.
        """
        result = syscalls.seccomp(_SET_MODE_FILTER, self.flags, self._descriptor)
        return result if notifies(self.flags) else -1


def notifies(flags: int) -> bool:
    """Whether some calls are decided by whoever holds the listener of a filter with these flags."""
    return bool(flags & _NEW_LISTENER)


def check(profile: "Profile") -> None:
    """Raises ValueError for a profile that makes no sense. It must have the spec's types."""
    default = profile.get("defaultAction", "")
    action_value(default, profile.get("defaultErrnoRet"))
    if default == "SCMP_ACT_NOTIFY":
        raise ValueError("SCMP_ACT_NOTIFY cannot be used as default action")
    for name in profile.get("architectures") or ():
        if name not in ARCHITECTURES:
            raise ValueError(f"string {name} is not a valid arch for seccomp")
    for rule in profile.get("syscalls") or ():
        _check_rule(rule)
    flags = _flags(profile)
    if flags & _WAIT_KILLABLE and not flags & _NEW_LISTENER:
        raise ValueError("seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: there is no SCMP_ACT_NOTIFY for it to wait for")
    if flags & _NEW_LISTENER and not profile.get("listenerPath"):
        raise ValueError("seccomp listenerPath is not set, and SCMP_ACT_NOTIFY needs it")


def _check_rule(rule: "Profile") -> None:
    action = rule.get("action", "")
    action_value(action, rule.get("errnoRet"))
    names = rule.get("names") or ()
    if "" in names:
        raise ValueError("empty string is not a valid syscall")
    if action == "SCMP_ACT_NOTIFY" and "write" in names:
        # The descriptor of the listener is announced by a write, see lowrt.
        raise ValueError("SCMP_ACT_NOTIFY cannot be used for the write syscall")
    for argument in rule.get("args") or ():
        if argument.get("op") not in OPERATORS:
            raise ValueError(f"string {argument.get('op', '')} is not a valid operator for seccomp")
        if not 0 <= argument.get("index", 0) < ARGUMENTS:
            raise ValueError(f"seccomp rule for {', '.join(names)}: system calls have {ARGUMENTS} arguments, from 0 on")


def supported_flags() -> list[str]:
    """Those that this kernel takes: it looks at the flags before it misses the program."""
    efault = 14
    found = []
    for name, flag in FLAGS.items():
        # To wait killably there must be something to wait for; beside a listener the kernel would not look at TSYNC.
        listener = _NEW_LISTENER if flag == _WAIT_KILLABLE else 0
        try:
            syscalls.seccomp(_SET_MODE_FILTER, flag | listener, None)
        except OSError as error:
            if error.errno == efault:
                found.append(name)
    return found


def is_empty(profile: "Profile") -> bool:
    """Whether a profile asks for nothing: no action and no rules."""
    return not profile.get("defaultAction") and not profile.get("syscalls")


def checked_flags(profile: "Profile") -> int:
    """What seccomp(2) is told beside the program (`Filter`). Raises ValueError for a senseless profile."""
    check(profile)
    return _flags(profile)


def compile_program(profile: "Profile", cache_folder: str | None = None) -> bytes:
    """The program of a profile (config-linux, Seccomp) that was checked. Raises ValueError for one that the kernel would not
    take, OSError without libseccomp.

    cache_folder: where compiled programs are kept; it is made, for this user only.
    """
    key = _key(profile) if cache_folder else b""
    if not key or not cache_folder:
        return _compile(profile)
    program = _kept(cache_folder, key)
    if program is None:
        program = _compile(profile)
        _keep(cache_folder, key, program)
    return program


def action_value(name: str, errno_return: int | None) -> int:
    """The kernel's SECCOMP_RET_* of an action. Raises ValueError for one that is unknown, or has no such thing as an errno."""
    action = ACTIONS.get(name)
    if action is None:
        raise ValueError(f"string {name} is not a valid action for seccomp")
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        code = _EPERM if errno_return is None else errno_return
        if not 0 <= code <= 0xFFFF:
            raise ValueError(f"seccomp action {name}: errno {code} must be from 0 to 65535")
        return action | code
    if errno_return is not None:
        raise ValueError(f"seccomp action {name} returns no errno, and errnoRet is {errno_return}")
    return action


def _flags(profile: "Profile") -> int:
    """What seccomp(2) is told beside the program."""
    flags = 0
    names = profile.get("flags")
    if names is None:
        flags = _SPEC_ALLOW  # as runc: who asks for nothing is not slowed down
    for name in names or ():
        if name not in FLAGS:
            raise ValueError(f"seccomp flag {name} is not known to lowrt")
        flags |= FLAGS[name]
    if any(rule.get("action") == "SCMP_ACT_NOTIFY" for rule in profile.get("syscalls") or ()):
        flags |= _NEW_LISTENER
    return flags


def _compile(profile: "Profile") -> bytes:
    from strata.linux import libseccomp

    program = libseccomp.compile_profile(profile)
    if len(program) > _MAX_INSTRUCTIONS * _INSTRUCTION_BYTES:
        raise ValueError(f"seccomp: the filter would have more than the {_MAX_INSTRUCTIONS} instructions that the kernel takes")
    return program


# --- what is kept


def _key(profile: "Profile") -> bytes:
    """A hash of what a program depends on; empty where the library is not found, so that its version is not known."""
    import _sha256  # type: ignore[import-not-found]  # hashlib costs milliseconds to import

    library = _library()
    if not library:
        return b""
    parts = (_FORMAT, library, os.uname()[2:], profile.get("defaultAction"), profile.get("defaultErrnoRet"),
             profile.get("architectures"), profile.get("syscalls"))  # fmt: skip
    digest: bytes = _sha256.sha256(repr(parts).encode()).digest()
    return digest


def _library() -> "tuple[object, ...]":
    """Which file libseccomp.so.2 is: it stands for the version, which only loading it (6 ms) would tell."""
    for folder in _LIBRARY_FOLDERS:
        try:
            status = os.stat(f"{folder}/libseccomp.so.2")
        except OSError:
            continue
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def _kept(folder: str, key: bytes) -> bytes | None:
    """A program from the folder, if it is there, is ours alone, and is whole."""
    import _sha256

    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not _is_ours(directory):
            return None
        file = os.open(key.hex(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            if not _is_ours(file):
                return None
            content = os.read(file, _DIGEST_BYTES + (_MAX_INSTRUCTIONS + 1) * _INSTRUCTION_BYTES)
        finally:
            os.close(file)
    except OSError:
        return None
    finally:
        os.close(directory)
    program = content[_DIGEST_BYTES:]
    whole = _sha256.sha256(key + program).digest() == content[:_DIGEST_BYTES]
    return program if whole and program and len(program) % _INSTRUCTION_BYTES == 0 else None


def _keep(folder: str, key: bytes, program: bytes) -> None:
    """Puts a program into the folder, whole. What fails costs only time, the next time."""
    import _sha256

    temporary = f"{key.hex()}.{os.getpid()}"
    directory = -1
    try:
        os.makedirs(os.path.dirname(folder), mode=0o711, exist_ok=True)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not _is_ours(directory):
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            os.write(file, _sha256.sha256(key + program).digest() + program)
        finally:
            os.close(file)
        os.rename(temporary, key.hex(), src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        pass
    finally:
        if directory >= 0:
            os.close(directory)


def _is_ours(descriptor: int) -> bool:
    """Whether nobody else may have written it."""
    status = os.fstat(descriptor)
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022

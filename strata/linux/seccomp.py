"""Seccomp filters from the OCI runtime spec's form, compiled by libseccomp (through ctypes) to BPF, and loading them.

Compiling takes milliseconds, so programs are kept in a folder by a hash of what they were made from.
"""

import ctypes
import os

from strata.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000, "SCMP_ACT_KILL_THREAD": 0x00000000, "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000, "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": 0x7FFF0000,
}  # fmt: skip
OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}
_ATTRIBUTE_NNP, _ATTRIBUTE_OPTIMIZE = 3, 8
_EPERM, _NATIVE = 1, 0
_SET_MODE_FILTER = 1
_UNKNOWN_SYSCALL = -1


class _Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class Filter:
    """A compiled program, ready to load."""

    def __init__(self, program: bytes, flags: int) -> None:
        self._program = ctypes.create_string_buffer(program, len(program))
        length = len(program) // 8
        self._descriptor = ctypes.create_string_buffer(
            length.to_bytes(8, "little") + ctypes.addressof(self._program).to_bytes(8, "little")
        )
        self._flags = flags

    def load(self) -> None:
        """Puts the filter on this thread. Needs CAP_SYS_ADMIN or no_new_privs."""
        syscalls.seccomp(_SET_MODE_FILTER, self._flags, self._descriptor)


def compile_filter(profile: "dict[str, Any]", cache_folder: str | None = None) -> Filter:
    """The filter of a profile (config-linux, Seccomp). Raises ValueError for a senseless one, OSError without libseccomp."""
    flags = 0
    for name in profile.get("flags") or ():
        if name not in FLAGS:
            raise ValueError(f"seccomp flag {name!r} is not supported")
        flags |= FLAGS[name]
    cached = f"{cache_folder}/{_hash(profile)}" if cache_folder else None
    if cached and os.path.exists(cached):
        with open(cached, "rb") as file:
            return Filter(file.read(), flags)
    program = _compile(profile)
    if cached and cache_folder:
        os.makedirs(cache_folder, mode=0o700, exist_ok=True)
        temporary = f"{cached}.{os.getpid()}"
        with open(temporary, "wb") as out:
            out.write(program)
        os.rename(temporary, cached)
    return Filter(program, flags)


def _hash(profile: "dict[str, Any]") -> str:
    import _sha256  # type: ignore[import-not-found]  # hashlib costs milliseconds to import

    version = "libseccomp.so.2"
    digest: str = _sha256.sha256(f"{version}{profile!r}{os.uname().machine}".encode()).hexdigest()
    return digest


def _compile(profile: "dict[str, Any]") -> bytes:
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    default = _action(profile.get("defaultAction", ""), profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise ValueError(f"seccomp default action {profile.get('defaultAction')!r} is refused by libseccomp")
    try:
        # lowrt decides about no_new_privs itself.
        library.seccomp_attr_set(context, _ATTRIBUTE_NNP, ctypes.c_uint32(0))
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, ctypes.c_uint32(2))
        for name in profile.get("architectures") or ():
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if token == 0:
                raise ValueError(f"unknown seccomp architecture {name!r}")
            code = library.seccomp_arch_add(context, ctypes.c_uint32(token & 0xFFFFFFFF))
            if code not in (0, -17):  # EEXIST: the native one is there from the start
                raise ValueError(f"seccomp architecture {name!r}: {os.strerror(-code)}")
        for rule in profile.get("syscalls") or ():
            _add_rule(library, context, rule, default)
        descriptor = syscalls.memfd_create("seccomp")
        try:
            code = library.seccomp_export_bpf(context, descriptor)
            if code:
                raise OSError(-code, f"libseccomp cannot export the filter: {os.strerror(-code)}")
            return os.pread(descriptor, 1 << 20, 0)
        finally:
            os.close(descriptor)
    finally:
        library.seccomp_release(context)


def _add_rule(library: "ctypes.CDLL", context: "ctypes.c_void_p", rule: "dict[str, Any]", default: int) -> None:
    action = _action(rule.get("action", ""), rule.get("errnoRet"))
    if action == default:
        return
    names = rule.get("names") or ()
    arguments = rule.get("args") or []
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN_SYSCALL:
            continue  # profiles name calls that this architecture or kernel never had
        indexes = [argument["index"] for argument in arguments]
        # Rules on one argument twice cannot be one rule of libseccomp: they are alternatives, as runc has them.
        sets = [[argument] for argument in arguments] if len(set(indexes)) != len(indexes) else [arguments]
        for one in sets:
            packed = (_Argument * len(one))()
            for place, argument in enumerate(one):
                operator = OPERATORS.get(argument.get("op", ""))
                if operator is None or not 0 <= argument["index"] < 6:
                    raise ValueError(f"seccomp rule for {name}: bad argument {argument}")
                packed[place] = _Argument(argument["index"], operator, argument["value"], argument.get("valueTwo", 0))
            code = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(one), packed)
            if code not in (0, -17):
                raise ValueError(f"seccomp rule for {name}: {os.strerror(-code)}")


def _action(name: str, errno_return: int | None) -> int:
    action = ACTIONS.get(name)
    if action is None:
        raise ValueError(f"seccomp action {name!r} is not supported")
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return action | (_EPERM if errno_return is None else errno_return) & 0xFFFF
    return action

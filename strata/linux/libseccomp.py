"""Compiling a seccomp profile to BPF with libseccomp, through ctypes. Imported only where no compiled program is kept.

libseccomp knows each architecture's system call numbers and the kernel's ways with 32-bit calls, which is more than a filter
of our own could keep true. What it cannot do is put before its program: calls newer than any that the profile names do not get
the profile's default (EPERM mostly), but ENOSYS, as on a kernel that does not know them. C libraries try new calls and go back
to old ones on ENOSYS only, so without that a profile of last year breaks programs of this year. runc does the same.
"""

import ctypes
import os
from _struct import pack

from strata.linux import seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ATTRIBUTE_NNP, _ATTRIBUTE_OPTIMIZE = 3, 8
_OPTIMIZE_FROM_CALLS = 32  # libseccomp 2.5 builds a broken tree out of no rules, and a short list is quick enough
_UNKNOWN_SYSCALL = -1
_EEXIST, _EDOM = 17, 33
_X32_TOKEN, _X86_64_TOKEN, _X32_BIT = 0x4000003E, 0xC000003E, 0x40000000
_S390_TOKENS = (0x00000016, 0x80000016)


class _Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def compile_profile(profile: "dict[str, Any]") -> bytes:
    """The program of a checked profile. Raises ValueError for what libseccomp cannot do, OSError without libseccomp."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    default = seccomp.action_value(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if not context:
        raise ValueError(f"seccomp default action {profile['defaultAction']} is refused by libseccomp")
    try:
        # lowrt decides about no_new_privs itself.
        library.seccomp_attr_set(context, _ATTRIBUTE_NNP, ctypes.c_uint32(0))
        rules = profile.get("syscalls") or ()
        if sum(len(rule.get("names") or ()) for rule in rules) > _OPTIMIZE_FROM_CALLS:
            library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, ctypes.c_uint32(2))
        tokens = _add_architectures(library, context, profile.get("architectures") or ())
        for rule in rules:
            _add_rule(library, context, rule, default)
        return _unknown_calls(library, profile, tokens) + _export(library, context)
    finally:
        library.seccomp_release(context)


def version() -> str:
    """The library's version. Raises OSError where it is missing."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return ".".join(map(str, library.seccomp_version().contents))


def _add_architectures(library: "ctypes.CDLL", context: "ctypes.c_void_p", names: "list[str] | tuple[()]") -> list[int]:
    """Adds them, and returns libseccomp's tokens of all that the filter has: the machine's own is always there."""
    tokens = {library.seccomp_arch_native() & 0xFFFFFFFF}
    for name in names:
        token = library.seccomp_arch_resolve_name(seccomp.ARCHITECTURES[name].encode()) & 0xFFFFFFFF
        if token == 0:
            raise ValueError(f"seccomp architecture {name} is not known to this machine's libseccomp")
        code = -library.seccomp_arch_add(context, ctypes.c_uint32(token))
        if code == _EDOM:
            raise ValueError(f"seccomp architecture {name} has another byte order than this machine")
        if code not in (0, _EEXIST):
            raise ValueError(f"error adding architecture {name} to the seccomp filter: {os.strerror(code)}")
        tokens.add(token)
    return sorted(tokens)


def _add_rule(library: "ctypes.CDLL", context: "ctypes.c_void_p", rule: "dict[str, Any]", default: int) -> None:
    action = seccomp.action_value(rule["action"], rule.get("errnoRet"))
    if action == default:
        return  # libseccomp refuses what changes nothing
    arguments = rule.get("args") or []
    indexes = [argument.get("index", 0) for argument in arguments]
    # Rules on one argument twice cannot be one rule of libseccomp: they are alternatives, as runc has them.
    sets = [[argument] for argument in arguments] if len(set(indexes)) != len(indexes) else [arguments]
    packed = [(_Argument * len(one))(*map(_argument, one)) for one in sets]
    for name in rule.get("names") or ():
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN_SYSCALL:
            continue  # profiles name calls that this architecture or kernel never had
        for one in packed:
            code = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(one), one)
            if code:
                raise ValueError(f"error adding seccomp filter rule for syscall {name}: {os.strerror(-code)}")


def _argument(given: "dict[str, Any]") -> _Argument:
    operator = seccomp.OPERATORS[given["op"]]
    return _Argument(given.get("index", 0), operator, given.get("value", 0), given.get("valueTwo", 0))


def _export(library: "ctypes.CDLL", context: "ctypes.c_void_p") -> bytes:
    descriptor = syscalls.memfd_create("seccomp")
    try:
        code = library.seccomp_export_bpf(context, descriptor)
        if code:
            raise OSError(-code, f"libseccomp cannot export the filter: {os.strerror(-code)}")
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        os.close(descriptor)


# --- calls that the profile's author cannot have known

_LOAD, _JUMP, _RETURN = 0x20, 0x05, 0x06  # BPF_LD|W|ABS, BPF_JMP|JA, BPF_RET|K
_IF_EQUAL, _IF_GREATER, _IF_BITS = 0x15, 0x25, 0x45  # BPF_JMP|JEQ|K, JGT, JSET
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4  # struct seccomp_data
_ENOSYS = 0x00050000 | 38


def _unknown_calls(library: "ctypes.CDLL", profile: "dict[str, Any]", tokens: list[int]) -> bytes:
    """The instructions that answer ENOSYS to calls above the highest number that the profile names; else they fall through."""
    default = seccomp.action_value(profile["defaultAction"], profile.get("defaultErrnoRet"))
    if profile["defaultAction"] in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE") or default == _ENOSYS:
        return b""  # nothing is refused, or it is as it should be; and a tracer may know calls that we do not
    names = {name.encode() for rule in profile.get("syscalls") or () for name in rule.get("names") or ()}
    sections: dict[int, list[bytes]] = {}  # by the kernel's number of the architecture
    for token in tokens:
        highest = max((library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), name) for name in names), default=0)
        if highest > 0:  # those that an architecture does not have are negative
            kernels = _X86_64_TOKEN if token == _X32_TOKEN else token
            sections.setdefault(kernels, []).append(_section(token, highest))
    body = b""
    for token, parts in sections.items():
        section = _instruction(_LOAD, _NUMBER_OFFSET) + b"".join(parts) + _instruction(_JUMP, len(body) // 8)
        body = _instruction(_IF_EQUAL, token, 0, len(section) // 8) + section + body
    return _instruction(_LOAD, _ARCHITECTURE_OFFSET) + body if body else b""


def _section(token: int, highest: int) -> bytes:
    """With the call's number loaded: ENOSYS above `highest`, for the calls of one architecture."""
    refuse = _instruction(_IF_GREATER, highest, 0, 1) + _instruction(_RETURN, _ENOSYS)
    if token == _X32_TOKEN:
        return _instruction(_IF_BITS, _X32_BIT, 0, 2) + refuse
    if token == _X86_64_TOKEN:
        return _instruction(_IF_BITS, _X32_BIT, 2, 0) + refuse
    if token in _S390_TOKENS:
        # A number too large for the instruction arrives as 0, setup(2), which nothing has called for decades.
        return _instruction(_IF_EQUAL, 0, 0, 1) + _instruction(_RETURN, _ENOSYS) + refuse
    return refuse


def _instruction(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter."""
    return pack("HBBI", code, if_true, if_false, constant)

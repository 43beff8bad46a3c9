"""Compiling a seccomp profile to BPF with libseccomp, through ctypes. Imported only where no compiled program is kept.

libseccomp knows each architecture's system call numbers and the kernel's ways with 32-bit calls, which is more than a filter
of our own could keep true.
"""

import ctypes
import os

from strata.linux import seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ATTRIBUTE_NNP, _ATTRIBUTE_OPTIMIZE = 3, 8
_UNKNOWN_SYSCALL = -1


class _Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def compile_profile(profile: "dict[str, Any]") -> bytes:
    """The program. Raises ValueError for a senseless profile, OSError without libseccomp."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    default = seccomp.action_value(profile.get("defaultAction", ""), profile.get("defaultErrnoRet"))
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
    action = seccomp.action_value(rule.get("action", ""), rule.get("errnoRet"))
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
                operator = seccomp.OPERATORS.get(argument.get("op", ""))
                if operator is None or not 0 <= argument["index"] < 6:
                    raise ValueError(f"seccomp rule for {name}: bad argument {argument}")
                packed[place] = _Argument(argument["index"], operator, argument["value"], argument.get("valueTwo", 0))
            code = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(one), packed)
            if code not in (0, -17):
                raise ValueError(f"seccomp rule for {name}: {os.strerror(-code)}")

"""Seccomp filters from the OCI runtime spec's form, compiled to BPF (`libseccomp`), and loading them.

Compiling takes milliseconds, so programs are kept in a folder by a hash of what they were made from.
"""

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
_EPERM = 1
_SET_MODE_FILTER = 1


class Filter:
    """A compiled program, ready to load."""

    def __init__(self, program: bytes, flags: int) -> None:
        self._program = program
        # struct sock_fprog: the count of instructions, and where they are
        self._descriptor = (len(program) // 8).to_bytes(8, "little") + syscalls.address_of(program).to_bytes(8, "little")
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
    from strata.linux import libseccomp

    program = libseccomp.compile_profile(profile)
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


def action_value(name: str, errno_return: int | None) -> int:
    """The kernel's SECCOMP_RET_* of an action. Raises ValueError for an unknown one."""
    action = ACTIONS.get(name)
    if action is None:
        raise ValueError(f"seccomp action {name!r} is not supported")
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return action | (_EPERM if errno_return is None else errno_return) & 0xFFFF
    return action

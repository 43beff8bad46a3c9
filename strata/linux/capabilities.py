"""Capabilities by name (capabilities(7)) and the sets of the calling thread."""

from strata.linux import syscalls

NAMES = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO",
    "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
    "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
]  # fmt: skip
NUMBERS = {f"CAP_{name}": number for number, name in enumerate(NAMES)}

_PR_CAPBSET_DROP, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT = 24, 8, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR = 2, 4


def mask(names: list[str] | None) -> int:
    """The bits of capabilities by name. Raises ValueError for a name that does not exist."""
    bits = 0
    for name in names or ():
        if name not in NUMBERS:
            raise ValueError(f"unknown capability {name!r}")
        bits |= 1 << NUMBERS[name]
    return bits


def last() -> int:
    """The number of the last capability that the running kernel has."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="utf-8") as file:
        return int(file.read())


def held() -> int:
    """The bits of this process's effective set: what it can give to another."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


def drop_bounding(keep: int, last_number: int) -> None:
    """Takes everything but `keep` out of the bounding set."""
    for number in range(last_number + 1):
        if not keep >> number & 1:
            syscalls.prctl(_PR_CAPBSET_DROP, number)


def keep_through_setuid(on: bool) -> None:
    """Whether the permitted set survives the change from root to another user."""
    syscalls.prctl(_PR_SET_KEEPCAPS, int(on))


def set_sets(effective: int, permitted: int, inheritable: int) -> None:
    syscalls.capset(effective, permitted, inheritable)


def set_ambient(bits: int) -> None:
    """Makes the ambient set these capabilities; each must be permitted and inheritable."""
    syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR)
    for number in range(64):
        if bits >> number & 1:
            syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)

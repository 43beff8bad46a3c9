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
SYS_ADMIN = 1 << NUMBERS["CAP_SYS_ADMIN"]

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
    """The bits of this thread's permitted set: what it can give to another."""
    return syscalls.capget()[1]


def keep_through_setuid(on: bool) -> None:
    """Whether the permitted set survives the change from root to another user."""
    syscalls.prctl(_PR_SET_KEEPCAPS, int(on))


class Sets:
    """What a thread shall have of each set, by the OCI runtime specification's names of the sets (config.md, Linux Process).

    Names that the kernel does not know are left out, and (`leave_out`) what the thread has not got itself.
    """

    def __init__(self, given: "dict[str, list[str]]") -> None:
        self._last = last()
        known = (1 << self._last + 1) - 1
        self._bounding, self._effective, self._permitted, self._inheritable, self._ambient = (
            known & mask([name for name in given.get(kind) or () if name in NUMBERS])
            for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
        )

    def leave_out(self) -> None:
        """Leaves out what the thread has not got: before it changes anything."""
        _, held, _ = syscalls.capget()
        self._effective &= held
        self._permitted &= held
        self._inheritable &= held
        self._ambient &= self._permitted & self._inheritable

    def bound(self) -> None:
        """Takes everything else out of the bounding set: while the thread still may (CAP_SETPCAP)."""
        for number in range(self._last + 1):
            if not self._bounding >> number & 1:
                syscalls.prctl(_PR_CAPBSET_DROP, number)

    def take(self, spared: int = 0) -> None:
        """Sets the others: after the change of user, which changes them too. spared: bits of what is kept all the same.

        Raises OSError.
        """
        syscalls.capset(self._effective | spared, self._permitted | spared, self._inheritable)
        syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR)
        for number in range(self._last + 1):
            if self._ambient >> number & 1:
                syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)


def ignored(given: "dict[str, list[str]]", held_bits: int) -> list[str]:
    """What `Sets` leaves out, sorted: names that are unknown, or not among the ones held."""
    names = {name for names in given.values() for name in names}
    return sorted(name for name in names if name not in NUMBERS or not held_bits >> NUMBERS[name] & 1)


def not_ambient(given: "dict[str, list[str]]") -> list[str]:
    """Those that cannot be ambient, because they are not both permitted and inheritable."""
    both = set(given.get("permitted") or ()) & set(given.get("inheritable") or ())
    return [name for name in given.get("ambient") or () if name in NUMBERS and name not in both]

"""What a list of device rules means, and how cgroup v1 is told of it (`ebpf` tells v2).

The meaning is that of v1's devices controller, on v2 too: a group allows nothing but its exceptions or, after a rule for all
devices that allows, everything but its exceptions. A later rule changes what earlier ones said of exactly the same devices.

https://docs.kernel.org/admin-guide/cgroup-v1/devices.html
"""

import os

from strata.linux import namespaces
from strata.linux.cgroups.common import DENIED, read, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Rule = dict[str, Any]
    Device = tuple[str, int, int]

_ACCESS = {"r": 2, "w": 4, "m": 1}
"""In the order in which the kernel writes them; the numbers are those that an eBPF program is asked with."""
_ALL = 7
_ANY = -1


class Rules:
    """allows: what goes for a device without an exception. exceptions: (type, major, minor) → kinds of access; -1 is any."""

    def __init__(self, *, allows: bool = False) -> None:
        self.allows = allows
        self.exceptions: dict[Device, int] = {}

    @classmethod
    def of(cls, rules: "list[Rule]") -> "Rules":
        """What a list in a configuration means; without any rule nothing is allowed. Raises OSError for one that cannot be."""
        found = cls()
        for rule in rules:
            found.add(rule)
        return found

    @classmethod
    def parse(cls, listing: str) -> "Rules":
        """What a group's devices.list says. Where it allows everything by default, the kernel does not list the exceptions."""
        found = cls()
        for line in listing.splitlines():
            kind, numbers, access = line.split()
            if kind == "a":
                return cls(allows=True)
            major, minor = (_ANY if number == "*" else int(number) for number in numbers.split(":"))
            found.exceptions[kind, major, minor] = _mask(access)
        return found

    def add(self, rule: "Rule") -> None:
        """Takes one more rule of a configuration (config-linux, Allowed Device list)."""
        kind, allow = rule.get("type") or "a", bool(rule.get("allow"))
        if kind == "a":
            self.allows, self.exceptions = allow, {}
            return
        major, minor = (_ANY if rule.get(name) is None else int(rule[name]) for name in ("major", "minor"))
        device, access = (kind, max(major, _ANY), max(minor, _ANY)), _mask(rule.get("access") or "rwm")
        if allow != self.allows:
            self.exceptions[device] = self.exceptions.get(device, 0) | access
            return
        for wider in ((kind, _ANY, device[2]), (kind, device[1], _ANY), (kind, _ANY, _ANY)):
            if wider != device and self.exceptions.get(wider, 0) & access:
                # The kernel would ignore it, and leave a device open (or closed) that the configuration wants otherwise.
                raise OSError(22, f"the device rule {_line(device, access)!r} would make a hole in the rule "
                                  f"{_line(wider, self.exceptions[wider])!r}, which is not supported")  # fmt: skip
        left = self.exceptions.pop(device, 0) & ~access
        if left:
            self.exceptions[device] = left

    def changes(self, target: "Rules") -> "list[tuple[bool, str]]":
        """The fewest lines, (allow, line), that make these rules the others: what is allowed by both stays so all the time."""
        lines = []
        old = self.exceptions
        if self.allows or target.allows:
            lines.append((target.allows, "a"))
            old = {}
        for device in sorted(old, key=_order):
            if dropped := old[device] & ~target.exceptions.get(device, 0):
                lines.append((target.allows, _line(device, dropped)))
        for device in target.exceptions:  # in the order in which they are listed (config-linux, Allowed Device list)
            if gained := target.exceptions[device] & ~old.get(device, 0):
                lines.append((not target.allows, _line(device, gained)))
        return lines

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and (self.allows, self.exceptions) == (other.allows, other.exceptions)

    __hash__ = None  # type: ignore[assignment]


def set_v1(folder: str, rules: "list[Rule]") -> None:
    """Makes the rules those of the group in a v1 folder, without a moment in which less is allowed than before and after."""
    target = Rules.of(rules)
    try:
        _change_v1(folder, target)
    except OSError as error:
        if error.errno not in DENIED or not may_make_no_devices():
            raise


def may_make_no_devices() -> bool:
    """Whether this is a user's process, or in a user namespace: the kernel keeps devices from its containers anyway."""
    return os.geteuid() != 0 or not namespaces.in_first_user_namespace()


def _change_v1(folder: str, target: Rules) -> None:
    current = Rules.parse(read(f"{folder}/devices.list"))
    opened: dict[bool, int] = {}
    try:
        for allow, line in current.changes(target):
            path = f"{folder}/devices.{'allow' if allow else 'deny'}"
            try:
                if allow not in opened:
                    opened[allow] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                os.write(opened[allow], line.encode())
            except OSError as error:
                raise refusal(path, line, error) from None
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    now = Rules.parse(read(f"{folder}/devices.list"))
    if now.allows != target.allows or (not now.allows and now != target):
        raise OSError(22, f"{folder}/devices.list is not what the device rules ask for")


def _mask(access: str) -> int:
    mask = 0
    for letter in access:
        mask |= _ACCESS.get(letter, 0)
    return mask


def letters(mask: int) -> str:
    """Kinds of access as the kernel and systemd write them."""
    return "".join(letter for letter, bit in _ACCESS.items() if mask & bit)


def _line(device: "Device", mask: int) -> str:
    kind, major, minor = device
    return f"{kind} {'*' if major == _ANY else major}:{'*' if minor == _ANY else minor} {letters(mask)}"


def _order(device: "Device") -> "tuple[int, int, str]":
    return device[1], device[2], device[0]

"""A container's limits as properties of a systemd unit, so that systemd, which writes what it knows at every reload, writes them.

Only what systemd knows is in them: the rest is written into the group's files alone. A property is (name, variant).

systemd.resource-control(5), and org.freedesktop.systemd1(5) for the types. runc sets the same ones (its docs/systemd.md).
"""

from strata.linux.cgroups import convert, gvariant
from strata.linux.cgroups.devices import Rules, letters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from strata.linux.cgroups.common import Resources
    from strata.linux.cgroups.dbus import Variant

    Property = tuple[str, Variant]

_INFINITY = 2**64 - 1
_ANNOTATION = "org.systemd.property."
_DEFAULT_PERIOD_US = 100_000
_PERCENT_US = 10_000  # a hundredth of a second: systemd keeps a quota as a percentage
_BYTES = {"memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin", "memory.max": "MemoryMax",
          "memory.swap.max": "MemorySwapMax"}  # fmt: skip
# The first version that knows it.
_PERIOD_SINCE, _CPUSET_SINCE, _IDLE_SINCE, _OOM_POLICY_SINCE = 242, 244, 252, 253


def of_annotations(annotations: "dict[str, str]") -> "list[Property]":
    """What a container's annotations org.systemd.property.NAME set, in GVariant's text format. Raises ValueError."""
    found = []
    for key, text in annotations.items():
        if not key.startswith(_ANNOTATION):
            continue
        name = key.removeprefix(_ANNOTATION)
        if len(name) < 3 or not (name.isascii() and name.isalpha()):
            what = "too short" if len(name) < 3 else "contains non-alphabetic character"
            raise ValueError(f"annotation {key} name incorrect: {what}")
        try:
            value = gvariant.parse(text)
            if name.endswith("Sec") and name[-4:-3].islower():
                # People know TimeoutStopSec from unit files; on D-Bus it is in microseconds.
                name, value = f"{name[:-3]}USec", _microseconds(value)
        except ValueError as error:
            raise ValueError(f"annotation {key}={text} value parse error: {error}") from None
        found.append((name, value))
    return found


def _microseconds(value: "Variant") -> "Variant":
    signature, number = value
    if signature not in "ynqiuxtd":
        raise ValueError("not a number")
    return "t", int(number * 1_000_000)


def of_resources_v2(resources: "Resources", version: int) -> "list[Property]":
    """version: systemd's. Raises OSError for limits that do not go together."""
    found = _of_devices(resources, blocks=False)
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    limit, swap, reservation = (memory.get(key) or 0 for key in ("limit", "swap", "reservation"))
    if limit:
        found.append(("MemoryMax", ("t", _unsigned(limit))))
    if reservation:
        found.append(("MemoryLow", ("t", _unsigned(reservation))))
    alone = convert.swap_alone(swap, limit)
    if alone or swap > 0:
        found.append(("MemorySwapMax", ("t", _unsigned(alone))))
    if cpu.get("idle") == 1 and version >= _IDLE_SINCE:
        found.append(("CPUWeight", ("t", 0)))  # systemd's word for it
    elif shares := cpu.get("shares"):
        found.append(("CPUWeight", ("t", convert.cpu_weight(shares))))
    found += _of_quota(cpu, version) + _of_tasks(resources) + _of_cpuset(cpu.get("cpus"), cpu.get("mems"), version)
    if weight := (resources.get("blockIO") or {}).get("weight"):
        found.append(("IOWeight", ("t", convert.io_weight(weight))))
    return found + _of_unified(resources.get("unified") or {}, version)


def of_resources_v1(resources: "Resources", version: int) -> "list[Property]":
    """As for v2."""
    found = _of_devices(resources, blocks=True)
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    for name, value in (
        ("MemoryLimit", memory.get("limit")), ("CPUShares", cpu.get("shares")),
        ("BlockIOWeight", (resources.get("blockIO") or {}).get("weight")),
    ):  # fmt: skip
        if value:
            found.append((name, ("t", _unsigned(value))))
    return found + _of_quota(cpu, version) + _of_tasks(resources) + _of_cpuset(cpu.get("cpus"), cpu.get("mems"), version)


def of_oom_group(resources: "Resources", version: int) -> "list[Property]":
    """memory.oom.group, which systemd takes at a unit's start alone."""
    policy = {"0": "continue", "1": "kill"}.get((resources.get("unified") or {}).get("memory.oom.group", "").strip())
    return [("OOMPolicy", ("s", policy))] if policy and version >= _OOM_POLICY_SINCE else []


def rounded_quota(quota: int, period: int) -> int:
    """The quota that systemd makes of one: a whole percentage of a CPU, rounded up. The group's own file is to say the same."""
    if quota <= 0:
        return quota
    period = period or _DEFAULT_PERIOD_US
    per_second = quota * 1_000_000 // period
    return quota if per_second % _PERCENT_US == 0 else _round_up(per_second) * period // 1_000_000


def _round_up(per_second: int) -> int:
    return -(-per_second // _PERCENT_US) * _PERCENT_US


def _unsigned(value: int) -> int:
    """-1 is "without limit", the largest number there is."""
    return value & _INFINITY


def _of_tasks(resources: "Resources") -> "list[Property]":
    limit = (resources.get("pids") or {}).get("limit")
    if limit is None:
        return []
    tasks = convert.tasks(limit)
    return [("TasksMax", ("t", _INFINITY if tasks == "max" else int(tasks)))]


def _of_quota(cpu: "dict[str, Any]", version: int) -> "list[Property]":
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    found: list[Property] = []
    if period and version >= _PERIOD_SINCE:
        found.append(("CPUQuotaPeriodUSec", ("t", period)))
    if quota or period:
        per_second = _round_up(quota * 1_000_000 // (period or _DEFAULT_PERIOD_US)) if quota > 0 else _INFINITY
        found.append(("CPUQuotaPerSecUSec", ("t", per_second)))
    return found


def _of_cpuset(cpus: str | None, mems: str | None, version: int) -> "list[Property]":
    if version < _CPUSET_SINCE:
        return []
    pairs = (("AllowedCPUs", cpus), ("AllowedMemoryNodes", mems))
    return [(name, ("ay", bits(text))) for name, text in pairs if text]


def bits(text: str) -> bytes:
    """A list like 0-2,5 as a set of bits, the lowest numbers first. Raises OSError."""
    mask = 0
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            if not first and not dash:
                continue
            low, high = int(first), int(last if dash else first)
            if not 0 <= low <= high < 2**16:
                raise ValueError
            mask |= (1 << high + 1) - (1 << low)
        if not mask:
            raise ValueError
    except ValueError:
        raise OSError(22, f"{text!r} is no list of numbers like 0-2,5") from None
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _of_devices(resources: "Resources", *, blocks: bool) -> "list[Property]":
    """blocks: whether systemd's own idea of devices takes the place of the group's (v1). Where it only adds to it (v2), it may
    say nothing about what it has no word for."""
    if "devices" not in resources:
        return []
    rules = Rules.of(resources["devices"])
    entries = []
    for (kind, major, minor), access in sorted(rules.exceptions.items()):
        prefix = "block" if kind == "b" else "char"
        if major < 0 and minor >= 0:
            continue  # systemd has no word for it; in the group's own rules it is
        place = f"/dev/{prefix}/{major}:{minor}" if minor >= 0 else f"{prefix}-{major if major >= 0 else '*'}"
        entries.append((place, letters(access)))
    if rules.allows and (not entries or not blocks):
        return [("DeviceAllow", ("a(ss)", [])), ("DevicePolicy", ("s", "auto"))]
    if rules.allows:
        entries = []  # systemd cannot deny single ones: it denies all, until the group's own rules are written
    # The empty list first: the others are added to what a unit has.
    return [("DeviceAllow", ("a(ss)", [])), ("DevicePolicy", ("s", "strict")), ("DeviceAllow", ("a(ss)", entries))]


def _of_unified(unified: "dict[str, str]", version: int) -> "list[Property]":
    """Files of the group that systemd has a property for."""
    found: list[Property] = []
    idle = unified.get("cpu.idle", "").strip() == "1" and version >= _IDLE_SINCE
    for key, text in unified.items():
        value = text.strip()
        try:
            if key in _BYTES:
                found.append((_BYTES[key], ("t", _number(value))))
            elif key == "pids.max":
                found.append(("TasksMax", ("t", _number(value) or 1)))
            elif key == "cpu.max":
                quota, _, period = value.partition(" ")
                cpu = {"quota": 0 if quota == "max" else int(quota), "period": int(period or _DEFAULT_PERIOD_US)}
                found += _of_quota(cpu, version)
            elif key == "cpu.idle" and idle:
                found.append(("CPUWeight", ("t", 0)))
            elif key == "cpu.weight" and not idle:
                found.append(("CPUWeight", ("t", int(value))))
            elif key in ("cpuset.cpus", "cpuset.mems"):
                cpus, mems = (value, None) if key == "cpuset.cpus" else (None, value)
                found += _of_cpuset(cpus, mems, version)
        except ValueError:
            raise OSError(22, f'unified resource "{key}" value conversion error: {text!r} is no number') from None
    return found


def _number(text: str) -> int:
    return _INFINITY if text == "max" else int(text)

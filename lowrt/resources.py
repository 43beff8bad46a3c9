"""Resources of the OCI runtime spec (config-linux, Control groups): checked, made of update's flags, and merged by an update."""

import os

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason
from strata.linux import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Resources = dict[str, Any]

_PLACES = {
    "blkio-weight": ("blockIO", "weight"), "cpu-period": ("cpu", "period"), "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"), "cpu-share": ("cpu", "shares"), "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"), "cpu-idle": ("cpu", "idle"), "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"), "memory": ("memory", "limit"), "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"), "kernel-memory": ("memory", "kernel"), "kernel-memory-tcp": ("memory", "kernelTCP"),
    "pids-limit": ("pids", "limit"),
}  # fmt: skip
_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}
_DEVICE_LISTS = ("weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice",
                 "throttleWriteIOPSDevice")  # fmt: skip


def check(found: "Resources") -> None:
    """Raises RuntimeFailure for resources (in the spec's shape) that cannot be meant."""
    for index, rule in enumerate(found.get("devices") or ()):
        if not rule.get("access"):
            raise RuntimeFailure(f"device access at {index} field cannot be empty")
        if (rule.get("type") or "a") not in ("a", "b", "c"):
            raise RuntimeFailure(f"invalid cgroup device type {rule['type']!r}")
    for index, limited in enumerate(found.get("hugepageLimits") or ()):
        size = limited.get("pageSize", "")
        if not size or "/" in size or "limit" not in limited:
            raise RuntimeFailure(f"linux.resources.hugepageLimits[{index}]: needs a pageSize (like 2MB) and a limit")
    block = found.get("blockIO") or {}
    for name in _DEVICE_LISTS:
        for device in block.get(name) or ():
            for number in ("major", "minor") if name == "weightDevice" else ("major", "minor", "rate"):
                device.setdefault(number, 0)
    for index, priority in enumerate((found.get("network") or {}).get("priorities") or ()):
        if not priority.get("name") or "priority" not in priority:
            raise RuntimeFailure(f"linux.resources.network.priorities[{index}]: needs a name and a priority")
    if found.get("unified") and cgroups.mode() != "v2":
        raise RuntimeFailure("invalid configuration: cannot use unified on cgroup v1")


def warnings(resources: "Resources") -> list[str]:
    """What will be ignored, as runc ignores it."""
    memory = resources.get("memory") or {}
    ignored = any(memory.get(name) is not None for name in ("kernel", "kernelTCP"))
    return ["Kernel memory settings are ignored and will be removed"] if ignored else []


def from_flags(values: "dict[str, Any]", stdin: int) -> "Resources":
    """The resources that --resources names (`-` is standard input), or that the single flags of update give."""
    for flag, what in (("l3-cache-schema", "CAT: l3 cache"), ("mem-bw-schema", "MBA: memory bandwidth")):
        if values.get(flag):
            raise RuntimeFailure(f"Intel RDT/{what} schema is not enabled")
    if path := values.get("resources"):
        return _checked(_read(path, stdin))
    resources: Resources = {}
    for flag, (group, name) in _PLACES.items():
        given = values.get(flag)
        if given is None or (given == "" and flag != "pids-limit") or (flag == "blkio-weight" and given == "0"):
            continue
        if name in ("cpus", "mems"):
            value = given
        elif group == "memory":
            value = _size(flag, given)
        else:
            value = _number(flag, given)
        resources.setdefault(group, {})[name] = value
    return _checked(resources)


def _checked(given: "Any") -> "Resources":
    from lowrt import config

    config.check_resources(given)
    checked: Resources = given
    return checked


def _read(path: str, stdin: int) -> "Any":
    try:
        descriptor = stdin if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = b""
            while chunk := os.read(descriptor, 65536):
                text += chunk
        finally:
            if descriptor != stdin:
                os.close(descriptor)
        return documents.loads(text.decode())
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"read the resources from {path}: {reason(error)}") from None


def _number(flag: str, text: str) -> int:
    negative = text.startswith("-") and flag not in ("cpu-burst", "cpu-period", "cpu-rt-period", "cpu-share", "blkio-weight")
    if not (text[1:] if negative else text).isdecimal():
        raise RuntimeFailure(f'invalid value for {flag}: parsing "{text}": invalid syntax')
    return int(text)


def _size(flag: str, text: str) -> int:
    """Bytes, or with a unit: 50m, 1.5G, 64MiB; -1 is without limit."""
    if text == "-1":
        return -1
    number = text.rstrip("bBiIkKmMgGtTpP")
    unit = text[len(number) :].lower()
    whole, dot, fraction = (number.removesuffix(" ") if unit else number).partition(".")
    if not (whole + fraction).isdecimal():
        raise RuntimeFailure(f"invalid value for {flag}: invalid size: '{text}'")
    if unit not in ("", "b") and (unit[0] not in _UNITS or unit[1:] not in ("", "b", "ib")):
        raise RuntimeFailure(f"invalid value for {flag}: invalid suffix: '{unit}'")
    factor = _UNITS.get(unit[:1], 1)
    value = int(float(f"{whole or 0}.{fraction}") * factor) if dot else int(whole) * factor
    if value >= 2**63:
        raise RuntimeFailure(f"invalid value for {flag}: invalid size: '{text}'")
    return value


# --- update


def merge(old: "Resources", new: "Resources") -> "tuple[Resources, Resources]":
    """An update of what a container has: (all that it then has, what must be set now for that).

    Some limits can only be set together: memory with swap, a quota with its period. The one that is not given is the old one.
    """
    whole = {name: dict(value) if isinstance(value, dict) else value for name, value in old.items()}
    now = {name: dict(value) if isinstance(value, dict) else value for name, value in new.items() if name != "devices"}
    for name, value in now.items():
        if name == "blockIO":
            whole[name] = _merge_block(whole.get(name) or {}, value)
        elif isinstance(value, dict):
            whole[name] = {**(whole.get(name) or {}), **value}
        else:
            whole[name] = value
    memory = now.get("memory") or {}
    if memory.get("limit") == -1 and "swap" not in memory:
        whole["memory"]["swap"] = memory["swap"] = 0  # unlimited both
    if memory.get("limit") or memory.get("swap"):
        for name in ("limit", "swap"):
            if whole["memory"].get(name) is not None:
                memory[name] = whole["memory"][name]
    cpu = now.get("cpu") or {}
    if cpu.get("quota") or cpu.get("period"):
        for name in ("quota", "period"):
            if whole["cpu"].get(name):
                cpu[name] = whole["cpu"][name]
    if cpu.get("idle") == 1 and not cpu.get("shares"):
        whole["cpu"].pop("shares", None)  # an idle group has none
    return whole, now


def _merge_block(old: "Resources", new: "Resources") -> "Resources":
    """A device that is in a list already has its values replaced."""
    found = {**old, **new}
    for name in _DEVICE_LISTS:
        devices = {(one["major"], one["minor"]): one for one in (*(old.get(name) or ()), *(new.get(name) or ()))}
        if devices:
            found[name] = list(devices.values())
    return found

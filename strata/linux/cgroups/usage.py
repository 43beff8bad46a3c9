"""What a group used, in all detail, as `runc events` shows it: callers read this shape (its types.Stats), v1's words on v2 too.

Times in nanoseconds, sizes in bytes. As there, most numbers that are 0 are left out.
"""

import os

from strata.linux.cgroups.common import keyed, processes, read, read_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

_TICK_NS = 10**9 // 100  # USER_HZ, the same on every machine
_UNLIMITED = 2**64 - 1
_CPUSET = ("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab",
           "memory_pressure", "sched_load_balance", "sched_relax_domain_level")  # fmt: skip


def of_v1(paths: "dict[str, str]") -> "Json":
    """paths: controller → folder."""
    cpu: Json = {}
    if folder := paths.get("cpuacct"):
        cpu["usage"] = _cpu_usage_v1(folder)
    if folder := paths.get("cpu"):
        details = keyed(read(f"{folder}/cpu.stat", ""))
        _throttling(cpu, details, details.get("throttled_time", 0))
    return _stats(
        cpu=cpu,
        cpuset=_cpuset_v1(paths.get("cpuset", "")),
        memory=_memory_v1(paths["memory"]) if "memory" in paths else {},
        pids=_pids(paths["pids"]) if "pids" in paths else {},
        blkio=_blkio_v1(paths.get("blkio", "")),
        hugetlb=_hugetlb_v1(paths["hugetlb"]) if "hugetlb" in paths else _hugetlb_v2(paths.get("", "")),
    )


def of_v2(folder: str) -> "Json":
    details = keyed(read(f"{folder}/cpu.stat", ""))
    usage = {"kernel": details.get("system_usec", 0) * 1000, "user": details.get("user_usec", 0) * 1000}
    cpu: Json = {"usage": {**_given(total=details.get("usage_usec", 0) * 1000), **usage}}
    _throttling(cpu, details, details.get("throttled_usec", 0) * 1000)
    memory, block = _memory_v2(folder), _blkio_v2(folder)
    for part, name in ((cpu, "cpu"), (memory, "memory"), (block, "io")):
        if pressure := _pressure(f"{folder}/{name}.pressure"):
            part["psi"] = pressure
    if os.path.exists(f"{folder}/pids.current"):
        pids = _pids(folder)
    else:
        pids = _given(current=len(processes(folder)))
    return _stats(cpu=cpu, cpuset=dict.fromkeys(_CPUSET, 0), memory=memory, pids=pids, blkio=block, hugetlb=_hugetlb_v2(folder))


def _stats(**parts: "Json") -> "Json":
    order = ("cpu", "cpuset", "memory", "pids", "blkio", "hugetlb")
    return {**{name: parts[name] for name in order}, "intel_rdt": {}, "network_interfaces": None}


def _given(**numbers: "Any") -> "Json":
    """Those that are not 0."""
    return {name: value for name, value in numbers.items() if value}


# --- cpu


def _cpu_usage_v1(folder: str) -> "Json":
    ticks = keyed(read(f"{folder}/cpuacct.stat", ""))
    lines = [line.split() for line in read(f"{folder}/cpuacct.usage_all", "").splitlines()[1:]]
    return {
        **_given(
            total=read_number(f"{folder}/cpuacct.usage", 0),
            percpu=[int(word) for word in read(f"{folder}/cpuacct.usage_percpu", "").split()],
            percpu_kernel=[int(fields[2]) for fields in lines],
            percpu_user=[int(fields[1]) for fields in lines],
        ),
        "kernel": ticks.get("system", 0) * _TICK_NS,
        "user": ticks.get("user", 0) * _TICK_NS,
    }


def _throttling(cpu: "Json", details: dict[str, int], time_ns: int) -> None:
    found = _given(periods=details.get("nr_periods", 0), throttledPeriods=details.get("nr_throttled", 0), throttledTime=time_ns)
    if found:
        cpu["throttling"] = found


def _cpuset_v1(folder: str) -> "Json":
    found: Json = {}
    for name in ("cpus", "mems"):
        if numbers := expand(read(f"{folder}/cpuset.{name}", "").strip()):
            found[name] = numbers
    found |= {name: int(read(f"{folder}/cpuset.{name}", "0") or 0) for name in _CPUSET}
    # In runc's order: cpus, cpu_exclusive, mems, and the rest.
    ordered = ("cpus", "cpu_exclusive", "mems", *_CPUSET[1:])
    return {name: found[name] for name in ordered if name in found}


def expand(text: str) -> list[int]:
    """The numbers of a list like 0-2,5."""
    found: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _pressure(path: str) -> "Json | None":
    """A PSI file (accounting/psi.rst); None where there is none, or it is switched off."""
    try:
        text = read(path, "")
    except OSError:  # EOPNOTSUPP
        return None
    found: Json = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        data = {name: float(values.get(name, 0)) for name in ("avg10", "avg60", "avg300")}
        found[kind] = {**data, "total": int(values.get("total", 0))}
    none = {"avg10": 0, "avg60": 0, "avg300": 0, "total": 0}
    return {"some": found.get("some", none), "full": found.get("full", none)} if found else None


# --- memory


def _memory_v1(folder: str) -> "Json":
    raw = keyed(read(f"{folder}/memory.stat", ""))
    found = _given(cache=raw.get("cache", 0))
    for name, part in (("usage", ""), ("swap", "memsw."), ("kernel", "kmem."), ("kernelTCP", "kmem.tcp.")):
        files = ("limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes", "failcnt")
        limit, used, most, failures = (read_number(f"{folder}/memory.{part}{file}", 0) for file in files)
        if entry := _memory_entry(limit, used, most, failures):
            found[name] = entry
    return {**found, **_given(raw=raw)}


def _memory_v2(folder: str) -> "Json":
    raw = keyed(read(f"{folder}/memory.stat", ""))
    found = _given(cache=raw.get("file", 0))
    if os.path.exists(f"{folder}/memory.current"):
        limit, used, most = (read_number(f"{folder}/memory.{name}", 0) for name in ("max", "current", "peak"))
        if usage := _memory_entry(limit, used, most, 0):
            found["usage"] = usage
        # v1 counts memory and swap together: so the sums; of the peaks there is none.
        swap_limit, swap = (read_number(f"{folder}/memory.swap.{name}", 0) for name in ("max", "current"))
        together = swap_limit if swap_limit == _UNLIMITED else swap_limit + limit
        if entry := _memory_entry(min(together, _UNLIMITED), swap + used, 0, 0):
            found["swap"] = entry
    return {**found, **_given(raw=raw)}


def _memory_entry(limit: int, used: int, most: int, failures: int) -> "Json":
    if not (limit or used or most or failures):
        return {}
    return {"limit": limit, **_given(usage=used, max=most), "failcnt": failures}


# --- the rest


def _pids(folder: str) -> "Json":
    limit = read_number(f"{folder}/pids.max", 0)
    return _given(current=read_number(f"{folder}/pids.current", 0), limit=0 if limit == _UNLIMITED else limit)


_BLKIO = (
    ("ioServiceBytesRecursive", "io_service_bytes"), ("ioServicedRecursive", "io_serviced"), ("ioQueueRecursive", "io_queued"),
    ("ioServiceTimeRecursive", "io_service_time"), ("ioWaitTimeRecursive", "io_wait_time"), ("ioMergedRecursive", "io_merged"),
    ("ioTimeRecursive", "time"), ("sectorsRecursive", "sectors"),
)  # fmt: skip


def _blkio_v1(folder: str) -> "Json":
    """Of whoever counts: the BFQ scheduler, CFQ (before Linux 5.0), else the throttling layer."""
    for form in ("bfq.{}_recursive", "{}_recursive", "throttle.{}_recursive", "throttle.{}"):
        tables = {key: _blkio_table(f"{folder}/blkio.{form.format(name)}") for key, name in _BLKIO}
        if tables["ioServicedRecursive"]:
            return _given(**tables)
    return {}


def _blkio_table(path: str) -> "list[Json]":
    found = []
    for line in read(path, "").splitlines():
        fields = line.replace(":", " ").split()
        if len(fields) < 3:
            continue  # the total
        kind = fields[2] if len(fields) == 4 else ""
        found.append(_given(major=int(fields[0]), minor=int(fields[1]), op=kind, value=int(fields[-1])))
    return found


def _blkio_v2(folder: str) -> "Json":
    sizes: list[Json] = []
    counts: list[Json] = []
    places = {"rbytes": (sizes, "Read"), "wbytes": (sizes, "Write"), "rios": (counts, "Read"), "wios": (counts, "Write")}
    for line in read(f"{folder}/io.stat", "").splitlines():
        device, *pairs = line.split()
        major, colon, minor = device.partition(":")
        for pair in pairs if colon else ():
            key, _, value = pair.partition("=")
            if key in places:
                table, kind = places[key]
                table.append(_given(major=int(major), minor=int(minor), op=kind, value=int(value)))
    return _given(ioServiceBytesRecursive=sizes, ioServicedRecursive=counts)


def page_sizes() -> list[str]:
    """The huge pages' sizes that the kernel knows, as the names of its files have them: 2MB, 1GB."""
    try:
        names = sorted(os.listdir("/sys/kernel/mm/hugepages"))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        size = int(name.removeprefix("hugepages-").removesuffix("kB"))
        for unit in ("KB", "MB", "GB"):
            if size < 1024 or unit == "GB":
                found.append(f"{size}{unit}")
                break
            size //= 1024
    return found


def _hugetlb_v1(folder: str) -> "Json":
    found = {}
    for size in page_sizes():
        prefix = f"{folder}/hugetlb.{size}"
        if os.path.exists(f"{prefix}.rsvd.usage_in_bytes"):
            prefix += ".rsvd"
        files = ("usage_in_bytes", "max_usage_in_bytes", "failcnt")
        used, most, failures = (read_number(f"{prefix}.{file}", 0) for file in files)
        found[size] = {**_given(usage=used, max=most), "failcnt": failures}
    return found


def _hugetlb_v2(folder: str) -> "Json":
    found = {}
    for size in page_sizes():
        prefix = f"{folder}/hugetlb.{size}"
        current = f"{prefix}.rsvd.current" if os.path.exists(f"{prefix}.rsvd.current") else f"{prefix}.current"
        if os.path.exists(current):
            failures = keyed(read(f"{prefix}.events", "")).get("max", 0)
            found[size] = {**_given(usage=read_number(current)), "failcnt": failures}
    return found

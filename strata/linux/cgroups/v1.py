"""cgroup v1, also beside a v2 tree (hybrid): one hierarchy a controller, the same path in each.

https://docs.kernel.org/admin-guide/cgroup-v1/
"""

import os

from strata.linux.cgroups.common import Cgroup, Stats, keyed, read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from strata.linux.cgroups.common import Resources

_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "net_cls", "net_prio",
                "perf_event", "rdma", "systemd", "unified")  # fmt: skip
_hierarchies: dict[str, dict[str, str]] = {}


def hierarchies(root: str) -> dict[str, str]:
    """Controller → the mount of its hierarchy; co-mounted ones (cpu,cpuacct) share theirs. `unified` is the v2 tree."""
    found = _hierarchies.get(root)
    if found is None:
        found = {}
        for name in _CONTROLLERS:
            folder = os.path.realpath(f"{root}/{name}")
            if os.path.exists(f"{folder}/cgroup.procs"):
                found[name] = folder
        _hierarchies[root] = found
    return found


class CgroupV1(Cgroup):
    def __init__(self, root: str, path: str) -> None:
        self.path = path
        self._hierarchies = hierarchies(root)

    def folders(self) -> list[str]:
        return list(dict.fromkeys(f"{folder}{self.path}" for folder in self._hierarchies.values()))

    def folder(self, controller: str) -> str | None:
        """The group's folder in a controller's hierarchy; None where that is not mounted."""
        hierarchy = self._hierarchies.get(controller)
        return f"{hierarchy}{self.path}" if hierarchy else None

    def create(self) -> None:
        for folder in self.folders():
            try:
                os.mkdir(folder)
            except FileExistsError:
                pass
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
        cpuset = self._hierarchies.get("cpuset")
        if cpuset:
            self._inherit_cpuset(cpuset)

    def _inherit_cpuset(self, hierarchy: str) -> None:
        """A new cpuset is empty and takes no process: each level starts with what its parent has."""
        folder = hierarchy
        for part in self.path.strip("/").split("/"):
            parent, folder = folder, f"{folder}/{part}"
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not read(f"{folder}/{name}").strip():
                    write(f"{folder}/{name}", read(f"{parent}/{name}").strip())

    def apply(self, resources: "Resources") -> None:
        self._apply_memory(resources.get("memory") or {})
        self._apply_cpu(resources.get("cpu") or {})
        limit = (resources.get("pids") or {}).get("limit")
        if limit:
            self._set("pids", "pids.max", limit if limit > 0 else "max")
        for rule in resources.get("devices") or ():
            self._set("devices", "devices.allow" if rule.get("allow") else "devices.deny", _device_rule(rule))
        block = resources.get("blockIO") or {}
        if block.get("weight"):
            folder = self.folder("blkio") or ""
            name = "blkio.weight" if os.path.exists(f"{folder}/blkio.weight") else "blkio.bfq.weight"
            self._set("blkio", name, block["weight"])
        for key, file in (("throttleReadBpsDevice", "read_bps"), ("throttleWriteBpsDevice", "write_bps"),
                          ("throttleReadIOPSDevice", "read_iops"), ("throttleWriteIOPSDevice", "write_iops")):  # fmt: skip
            for limited in block.get(key) or ():
                value = f"{limited['major']}:{limited['minor']} {limited['rate']}"
                self._set("blkio", f"blkio.throttle.{file}_device", value)
        for limited in resources.get("hugepageLimits") or ():
            self._set("hugetlb", f"hugetlb.{limited['pageSize']}.limit_in_bytes", limited["limit"])
        network = resources.get("network") or {}
        if network.get("classID"):
            self._set("net_cls", "net_cls.classid", network["classID"])
        for priority in network.get("priorities") or ():
            self._set("net_prio", "net_prio.ifpriomap", f"{priority['name']} {priority['priority']}")

    def _apply_memory(self, memory: "dict[str, Any]") -> None:
        limit, swap = memory.get("limit"), memory.get("swap")
        folder = self.folder("memory")
        writes: list[tuple[str, object]] = []
        if limit:
            writes.append(("memory.limit_in_bytes", limit))
        if swap and folder and os.path.exists(f"{folder}/memory.memsw.limit_in_bytes"):
            writes.append(("memory.memsw.limit_in_bytes", swap))
            # The limit may not pass the limit with swap, so when it grows that one goes first.
            now = int(read(f"{folder}/memory.memsw.limit_in_bytes", "0").strip() or 0)
            if limit and (swap == -1 or 0 < now < swap):
                writes.reverse()
        for name, value in writes:
            self._set("memory", name, value)
        for key, name in (("reservation", "memory.soft_limit_in_bytes"), ("kernelTCP", "memory.kmem.tcp.limit_in_bytes")):
            if memory.get(key):
                self._set("memory", name, memory[key])
        swappiness = memory.get("swappiness")
        if swappiness is not None and 0 <= swappiness <= 100:
            self._set("memory", "memory.swappiness", swappiness)
        if memory.get("disableOOMKiller"):
            self._set("memory", "memory.oom_control", 1)

    def _apply_cpu(self, cpu: "dict[str, Any]") -> None:
        names = (
            ("cpus", "cpuset", "cpuset.cpus"), ("mems", "cpuset", "cpuset.mems"), ("shares", "cpu", "cpu.shares"),
            ("period", "cpu", "cpu.cfs_period_us"), ("quota", "cpu", "cpu.cfs_quota_us"), ("burst", "cpu", "cpu.cfs_burst_us"),
            ("realtimePeriod", "cpu", "cpu.rt_period_us"), ("realtimeRuntime", "cpu", "cpu.rt_runtime_us"),
        )  # fmt: skip
        for key, controller, name in names:
            if cpu.get(key):
                self._set(controller, name, cpu[key])
        if cpu.get("idle") is not None:
            self._set("cpu", "cpu.idle", cpu["idle"])

    def _set(self, controller: str, name: str, value: object) -> None:
        folder = self.folder(controller)
        if folder is None:
            raise OSError(2, f"the {controller} controller is not mounted, so {name} cannot be set", self.path)
        write(f"{folder}/{name}", str(value))

    def freeze(self) -> None:
        self._freezer("FROZEN")

    def thaw(self) -> None:
        self._freezer("THAWED")

    def _freezer(self, state: str) -> None:
        folder = self.folder("freezer")
        if folder is None:
            raise OSError(2, "the freezer controller is not mounted", self.path)
        if not os.path.isdir(folder):
            return
        import time

        deadline = time.monotonic() + 2.0
        while True:
            write(f"{folder}/freezer.state", state)
            if read(f"{folder}/freezer.state").strip() == state:
                return
            if time.monotonic() > deadline:
                raise OSError(16, f"the group does not become {state}", folder)
            time.sleep(0.001)

    def frozen(self) -> bool:
        folder = self.folder("freezer")
        return bool(folder) and read(f"{folder}/freezer.state", "").strip() in ("FROZEN", "FREEZING")

    def stats(self) -> Stats:
        found = Stats()
        found.cpu_usage_ns = int(read(f"{self.folder('cpuacct')}/cpuacct.usage", "0") or 0)
        memory = self.folder("memory")
        found.memory_usage_bytes = int(read(f"{memory}/memory.usage_in_bytes", "0") or 0)
        details = keyed(read(f"{memory}/memory.stat", ""))
        found.memory_working_set_bytes = max(found.memory_usage_bytes - details.get("total_inactive_file", 0), 0)
        found.memory_rss_bytes = details.get("total_rss", 0)
        found.pids = int(read(f"{self.folder('pids')}/pids.current", "0") or 0)
        found.oom_kills = self.oom_kill_count()
        return found

    def oom_kill_count(self) -> int:
        return keyed(read(f"{self.folder('memory')}/memory.oom_control", "")).get("oom_kill", 0)


def _device_rule(rule: "dict[str, Any]") -> str:
    kind = rule.get("type") or "a"
    numbers = [rule.get(name) for name in ("major", "minor")]
    major, minor = ("*" if number is None or number < 0 else number for number in numbers)
    return f"{kind} {major}:{minor} {rule.get('access') or 'rwm'}"

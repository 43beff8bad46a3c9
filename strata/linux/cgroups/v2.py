"""cgroup v2: one tree, controllers switched on for children at every level above.

https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import os

from strata.linux.cgroups import devices
from strata.linux.cgroups.common import Cgroup, Stats, keyed, read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from strata.linux.cgroups.common import Resources


class CgroupV2(Cgroup):
    def __init__(self, root: str, path: str) -> None:
        self.path = path
        self._root = root
        self._folder = f"{root}{path}"

    def folders(self) -> list[str]:
        return [self._folder]

    def create(self) -> None:
        folder = self._root
        available = read(f"{folder}/cgroup.controllers", "").split()
        for part in self.path.strip("/").split("/"):
            self._enable(folder, available)
            folder = f"{folder}/{part}"
            try:
                os.mkdir(folder)
            except FileExistsError:
                pass
            available = read(f"{folder}/cgroup.controllers", "").split()

    takes_clones = True

    def open_for_clone(self) -> int:
        return os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @staticmethod
    def _enable(folder: str, available: list[str]) -> None:
        """Gives a level's controllers to its children; one that cannot be given (EBUSY, a domain's rule) is left out."""
        missing = [name for name in available if name not in read(f"{folder}/cgroup.subtree_control", "").split()]
        if not missing:
            return
        try:
            write(f"{folder}/cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
        except OSError:
            for name in missing:
                try:
                    write(f"{folder}/cgroup.subtree_control", f"+{name}")
                except OSError:
                    continue

    def apply(self, resources: "Resources") -> None:
        self._apply_memory(resources.get("memory") or {})
        self._apply_cpu(resources.get("cpu") or {})
        limit = (resources.get("pids") or {}).get("limit")
        if limit:
            self._set("pids.max", limit if limit > 0 else "max")
        weight = (resources.get("blockIO") or {}).get("weight")
        if weight:
            self._set("io.weight", f"default {1 + (weight - 10) * 9999 // 990}")
        for key, name in (("throttleReadBpsDevice", "rbps"), ("throttleWriteBpsDevice", "wbps"),
                          ("throttleReadIOPSDevice", "riops"), ("throttleWriteIOPSDevice", "wiops")):  # fmt: skip
            for limited in (resources.get("blockIO") or {}).get(key) or ():
                self._set("io.max", f"{limited['major']}:{limited['minor']} {name}={limited['rate']}")
        for limited in resources.get("hugepageLimits") or ():
            self._set(f"hugetlb.{limited['pageSize']}.max", limited["limit"])
        for name, value in (resources.get("unified") or {}).items():
            if "/" in name:
                raise OSError(22, "a unified key names a file of the group", name)
            self._set(name, value)
        rules = resources.get("devices")
        if rules:
            devices.attach(self._folder, rules)

    def _apply_memory(self, memory: "dict[str, Any]") -> None:
        limit, swap, reservation = memory.get("limit"), memory.get("swap"), memory.get("reservation")
        if swap:
            # v1 counts memory and swap together, v2 apart.
            if swap > 0 and not limit:
                raise OSError(22, "a swap limit needs a memory limit", self.path)
            value = "max" if swap < 0 else swap - max(limit or 0, 0)
            if os.path.exists(f"{self._folder}/memory.swap.max"):
                self._set("memory.swap.max", value)
        if limit:
            self._set("memory.max", limit if limit > 0 else "max")
        if reservation:
            self._set("memory.low", reservation if reservation > 0 else "max")

    def _apply_cpu(self, cpu: "dict[str, Any]") -> None:
        shares = cpu.get("shares")
        if shares:
            # From v1's 2…262144 to v2's 1…10000, as systemd and runc map it.
            self._set("cpu.weight", 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142)
        quota, period = cpu.get("quota"), cpu.get("period")
        if quota or period:
            self._set("cpu.max", f"{quota if quota and quota > 0 else 'max'} {period or 100000}")
        for key, name in (("burst", "cpu.max.burst"), ("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")):
            if cpu.get(key):
                self._set(name, cpu[key])
        if cpu.get("idle") is not None:
            self._set("cpu.idle", cpu["idle"])

    def _set(self, name: str, value: object) -> None:
        write(f"{self._folder}/{name}", str(value))

    def freeze(self) -> None:
        self._freezer(1)

    def thaw(self) -> None:
        self._freezer(0)

    def _freezer(self, wanted: int) -> None:
        if not os.path.isdir(self._folder):
            return
        import time

        self._set("cgroup.freeze", wanted)
        deadline = time.monotonic() + 2.0
        while keyed(read(f"{self._folder}/cgroup.events", "")).get("frozen", wanted) != wanted:
            if time.monotonic() > deadline:
                raise OSError(16, f"the group does not become {'frozen' if wanted else 'thawed'}", self._folder)
            time.sleep(0.001)

    def frozen(self) -> bool:
        return read(f"{self._folder}/cgroup.freeze", "0").strip() == "1"

    def kill(self) -> None:
        try:
            self._set("cgroup.kill", 1)
        except FileNotFoundError:  # before Linux 5.14, or the group is gone
            super().kill()

    def stats(self) -> Stats:
        found = Stats()
        found.cpu_usage_ns = keyed(read(f"{self._folder}/cpu.stat", "")).get("usage_usec", 0) * 1000
        found.memory_usage_bytes = int(read(f"{self._folder}/memory.current", "0") or 0)
        details = keyed(read(f"{self._folder}/memory.stat", ""))
        found.memory_working_set_bytes = max(found.memory_usage_bytes - details.get("inactive_file", 0), 0)
        found.memory_rss_bytes = details.get("anon", 0)
        found.pids = int(read(f"{self._folder}/pids.current", "0") or 0)
        found.oom_kills = self.oom_kill_count()
        return found

    def oom_kill_count(self) -> int:
        return keyed(read(f"{self._folder}/memory.events", "")).get("oom_kill", 0)

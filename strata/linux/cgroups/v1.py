"""cgroup v1, also beside a v2 tree (hybrid): a hierarchy a controller, or for a few together.

https://docs.kernel.org/admin-guide/cgroup-v1/
"""

import os

from strata.linux.cgroups import convert, devices
from strata.linux.cgroups.common import DENIED, Cgroup, Stats, keyed, make_folders, rdma_line, read, read_number, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from strata.linux.cgroups.common import Resources
    from strata.linux.cgroups.v2 import CgroupV2
    from strata.linux.cgroups.watch import Watch

_ENOENT, _EBUSY, _EINVAL = 2, 16, 22
UNIFIED = ""
"""The name of the v2 tree among the hierarchies."""
_FREEZE_TRIES = 1000


def hierarchies(root: str) -> dict[str, str]:
    """Controller → the folder where its hierarchy is mounted. `systemd` is the named one without a controller."""
    found = {}
    for entry in os.scandir(root):
        # Links (cpu → cpu,cpuacct) only say it again. A folder in which nothing is mounted has no such file.
        if entry.is_dir(follow_symlinks=False) and os.path.exists(f"{entry.path}/cgroup.procs"):
            if entry.name == "unified":
                found[UNIFIED] = entry.path
                continue
            for controller in entry.name.split(","):
                found[controller] = entry.path
    return found


class CgroupV1(Cgroup):
    def create(self, resources: "Resources | None" = None, *, lenient: bool = False) -> None:
        cpu = (resources or {}).get("cpu") or {}
        for folder in self.folders():
            try:
                self.made += make_folders(folder)
            except OSError as error:
                self._leave_out(folder, error, lenient=lenient)
        if folder := self.paths.get("cpuset", ""):
            _fill_cpuset(folder, "cpuset.cpus", cpu.get("cpus"))
            _fill_cpuset(folder, "cpuset.mems", cpu.get("mems"))

    joins_itself = True

    @property
    def takes_clones(self) -> bool:  # type: ignore[override]
        return UNIFIED in self.paths

    def create_for_clone(self, resources: "Resources | None" = None, *, lenient: bool = False) -> int:
        """The part in the v2 tree: there a process can be moved only in the way that waits (`join_opened`)."""
        folder = self.paths[UNIFIED]
        try:
            self.made += make_folders(folder)
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._leave_out(folder, error, lenient=lenient)
            return -1

    def open_to_join(self, below: "dict[str, str] | None" = None, *, lenient: bool = False) -> "list[int]":
        opened: list[int] = []
        try:
            for folder in self._below(below):
                if self._is_in_tree(folder):
                    continue
                try:
                    opened.append(os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC))
                except OSError as error:
                    self._leave_out(folder, error, lenient=lenient)
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened

    def open_for_exec(self, below: "dict[str, str] | None") -> int:
        for folder in self._below(below):
            if self._is_in_tree(folder):
                try:
                    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except OSError:
                    break  # who adds the process otherwise is told why
        return -1

    def _is_in_tree(self, folder: str) -> bool:
        """Whether it is the group's folder in the v2 tree, or one below."""
        own = self.paths.get(UNIFIED)
        return own is not None and f"{folder}/".startswith(f"{own}/")

    def _leave_out(self, folder: str, error: OSError, *, lenient: bool) -> None:
        """A hierarchy where this user may do nothing; raises the error where the group shall be in that."""
        if error.errno not in DENIED or not (lenient or self.does_without(folder)):
            raise error
        self.paths = {name: path for name, path in self.paths.items() if path != folder}

    def apply(self, resources: "Resources") -> None:
        if resources.get("unified"):
            raise OSError(_EINVAL, "invalid configuration: cannot use unified on cgroup v1")
        cpu = resources.get("cpu") or {}
        for key in ("cpus", "mems"):
            if cpu.get(key):
                self._set("cpuset", f"cpuset.{key}", cpu[key])
        rules = resources.get("devices")
        if rules is not None and ("devices" in self.paths or not devices.may_make_no_devices()):
            devices.set_v1(self._folder("devices", "devices.list"), rules)
        self._apply_memory(resources.get("memory") or {})
        self._apply_cpu(cpu)
        if (limit := (resources.get("pids") or {}).get("limit")) is not None:
            self._set("pids", "pids.max", convert.tasks(limit))
        self._apply_block(resources.get("blockIO") or {})
        if pages := resources.get("hugepageLimits"):
            self._apply_pages(pages)
        network = resources.get("network") or {}
        if network.get("classID"):
            self._set("net_cls", "net_cls.classid", network["classID"])
        for priority in network.get("priorities") or ():
            self._set("net_prio", "net_prio.ifpriomap", f"{priority['name']} {priority['priority']}")
        if rdma := resources.get("rdma"):
            if "rdma" not in self.paths and (tree := self._unified("rdma")):
                tree.apply_rdma(rdma)
                return
            for device, limits in rdma.items():
                self._set("rdma", "rdma.max", rdma_line(device, limits))

    def _apply_memory(self, memory: "dict[str, Any]") -> None:
        limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
        if memory.get("useHierarchy"):
            self._set("memory", "memory.use_hierarchy", 1)  # since Linux 5.11 it is always so
        if limit or swap:
            folder = self._folder("memory", "memory.limit_in_bytes")
            if limit == -1 and swap == 0 and os.path.exists(f"{folder}/memory.memsw.limit_in_bytes"):
                swap = -1
            # The limit may never pass the one with swap: which goes first depends on where they are now.
            if limit and swap and (swap == -1 or read_number(f"{folder}/memory.limit_in_bytes") < swap):
                self._set("memory", "memory.memsw.limit_in_bytes", swap)
                swap = 0
            if limit:
                self._set_memory_limit(folder, limit)
            if swap:
                self._set("memory", "memory.memsw.limit_in_bytes", swap)
        if memory.get("reservation"):
            self._set("memory", "memory.soft_limit_in_bytes", memory["reservation"])
        if memory.get("disableOOMKiller"):
            self._set("memory", "memory.oom_control", 1)
        swappiness = memory.get("swappiness")
        if swappiness is not None and swappiness not in (-1, 2**64 - 1):  # both mean "not set"
            if not 0 <= swappiness <= 100:
                raise OSError(_EINVAL, f"invalid memory swappiness value: {swappiness} (valid range is 0-100)")
            self._set("memory", "memory.swappiness", swappiness)

    def _set_memory_limit(self, folder: str, limit: int) -> None:
        try:
            self._set("memory", "memory.limit_in_bytes", limit)
        except OSError as error:
            if error.errno != _EBUSY:
                raise
            usage, peak = (read_number(f"{folder}/memory.{name}_in_bytes") for name in ("usage", "max_usage"))
            raise OSError(_EBUSY, f"unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})") from None

    def _apply_cpu(self, cpu: "dict[str, Any]") -> None:
        if (idle := cpu.get("idle")) is not None:
            self._set("cpu", "cpu.idle", idle)
        shares = cpu.get("shares")
        if shares and idle != 1:  # an idle group takes none
            self._set("cpu", "cpu.shares", shares)
            if (now := read_number(f"{self.paths['cpu']}/cpu.shares")) != shares:
                word = "maximum" if shares > now else "minimum"
                raise OSError(_EINVAL, f"the {word} allowed cpu-shares is {now}")
        quota = cpu.get("quota") or 0
        # A period or burst may be refused only because of the quota that still goes: then once more after the new one.
        later = []
        for key, name in (("period", "cpu.cfs_period_us"), ("burst", "cpu.cfs_burst_us")):
            value = cpu.get(key)
            if not value and (key == "period" or value is None):
                continue
            try:
                self._set("cpu", name, value)
            except OSError as error:
                if key == "burst" and error.errno == _ENOENT:
                    continue  # before Linux 5.14
                if error.errno != _EINVAL or not quota:
                    raise
                later.append((name, value))
        if quota:
            self._set("cpu", "cpu.cfs_quota_us", quota)
        for name, value in later:
            self._set("cpu", name, value)
        self._apply_realtime(cpu.get("realtimePeriod") or 0, cpu.get("realtimeRuntime") or 0)

    def _apply_realtime(self, period: int, runtime: int) -> None:
        refused = False
        if period:
            try:
                self._set("cpu", "cpu.rt_period_us", period)
            except OSError as error:
                if error.errno != _EINVAL or not runtime:
                    raise
                refused = True  # because of the runtime that still goes
        if runtime:
            self._set("cpu", "cpu.rt_runtime_us", runtime)
        if refused:
            self._set("cpu", "cpu.rt_period_us", period)

    def _apply_block(self, block: "dict[str, Any]") -> None:
        weights = block.get("weightDevice") or ()
        if block.get("weight") or weights:
            # Two schedulers know weights: CFQ (gone since Linux 5.0) and BFQ.
            folder = self._folder("blkio", "blkio.weight")
            name = "blkio.weight" if os.path.exists(f"{folder}/blkio.weight") else "blkio.bfq.weight"
            if block.get("weight"):
                self._set("blkio", name, block["weight"])
            for device in weights:
                numbers = f"{device['major']}:{device['minor']}"
                if device.get("weight"):
                    self._set("blkio", f"{name}_device", f"{numbers} {device['weight']}")
                if device.get("leafWeight"):
                    self._set("blkio", "blkio.leaf_weight_device", f"{numbers} {device['leafWeight']}")
        if block.get("leafWeight"):
            self._set("blkio", "blkio.leaf_weight", block["leafWeight"])
        for key, name in (("throttleReadBpsDevice", "read_bps"), ("throttleWriteBpsDevice", "write_bps"),
                          ("throttleReadIOPSDevice", "read_iops"), ("throttleWriteIOPSDevice", "write_iops")):  # fmt: skip
            for device in block.get(key) or ():
                value = f"{device['major']}:{device['minor']} {device['rate']}"
                self._set("blkio", f"blkio.throttle.{name}_device", value)

    def _apply_pages(self, pages: "list[dict[str, Any]]") -> None:
        if "hugetlb" not in self.paths and (tree := self._unified("hugetlb")):
            tree.apply_pages(pages)
            return
        for limited in pages:
            name = f"hugetlb.{limited['pageSize']}"
            self._set("hugetlb", f"{name}.limit_in_bytes", limited["limit"])
            if os.path.exists(f"{self.paths['hugetlb']}/{name}.rsvd.limit_in_bytes"):
                self._set("hugetlb", f"{name}.rsvd.limit_in_bytes", limited["limit"])

    def _unified(self, controller: str) -> "CgroupV2 | None":
        """The group in the v2 tree, where that is the one with the controller."""
        from strata.linux.cgroups.v2 import CgroupV2

        folder = self.paths.get(UNIFIED)
        if folder is None:
            return None
        tree = CgroupV2(folder)
        return tree if tree.enable(controller) else None

    def _folder(self, controller: str, name: str) -> str:
        folder = self.paths.get(controller)
        if folder is None:
            raise OSError(
                _ENOENT, f"cannot set {controller} limit: container could not join or create cgroup "
                         f"(there is none to write {name} in: is the controller mounted?)"
            )  # fmt: skip
        return folder

    def _set(self, controller: str, name: str, value: object) -> None:
        write(f"{self._folder(controller, name)}/{name}", str(value))

    def freeze(self) -> None:
        folder = self.paths.get("freezer")
        if folder is None:
            raise OSError(_ENOENT, "cannot toggle freezer: cgroups not configured for container")
        import time

        # While processes keep coming (by fork, or exec into the container) the kernel can stay in FREEZING for ever. The
        # documented way out is to ask again; to thaw for a moment now and then has proved to help.
        path = f"{folder}/freezer.state"
        try:
            for attempt in range(1, _FREEZE_TRIES):
                if attempt % 50 == 0:
                    write(path, "THAWED")
                    time.sleep(0.01)
                write(path, "FROZEN")
                if attempt % 25 == 0:
                    time.sleep(0.00001)
                state = read(path).strip()
                if state == "FROZEN":
                    return
            raise OSError(_EBUSY, "unable to freeze")
        except OSError:
            try:
                write(path, "THAWED")  # half frozen is the worst of all
            except OSError:
                pass
            raise

    def thaw(self) -> None:
        folder = self.paths.get("freezer")
        if folder is None:
            raise OSError(_ENOENT, "cannot toggle freezer: cgroups not configured for container")
        write(f"{folder}/freezer.state", "THAWED")

    def frozen(self) -> bool:
        folder = self.paths.get("freezer")
        if folder is None:
            return False
        state = read(f"{folder}/freezer.state", "").strip()
        return state in ("FROZEN", "FREEZING") and read(f"{folder}/freezer.self_freezing", "1").strip() == "1"

    def kill(self) -> None:
        if tree := self.paths.get(UNIFIED):
            try:
                write(f"{tree}/cgroup.kill", "1")  # all at once; the rest is for those that are in v1's groups alone
            except OSError:
                pass  # before Linux 5.14, or the group is gone
        super().kill()

    def stats(self) -> Stats:
        found = Stats()
        memory = self.paths.get("memory", "")
        found.cpu_usage_ns = read_number(f"{self.paths.get('cpuacct', '')}/cpuacct.usage", 0)
        found.memory_usage_bytes = read_number(f"{memory}/memory.usage_in_bytes", 0)
        details = keyed(read(f"{memory}/memory.stat", ""))
        found.memory_working_set_bytes = max(found.memory_usage_bytes - details.get("total_inactive_file", 0), 0)
        found.memory_rss_bytes = details.get("total_rss", 0)
        found.pids = read_number(f"{self.paths.get('pids', '')}/pids.current", 0)
        found.oom_kills = self.oom_kill_count()
        return found

    def usage(self) -> "dict[str, Any]":
        from strata.linux.cgroups import usage

        return usage.of_v1(self.paths)

    def oom_kill_count(self) -> int:
        return keyed(read(f"{self.paths.get('memory', '')}/memory.oom_control", "")).get("oom_kill", 0)

    def watch(self) -> "Watch":
        from strata.linux.cgroups import watch

        return watch.WatchV1(self._folder("memory", "memory.oom_control"))


def _fill_cpuset(folder: str, name: str, asked: str | None = None) -> str:
    """A new cpuset is empty and takes no process: it gets what is asked for, else what its parent has; returns what it has.

    Never the parent's first: that may be refused because of a sibling that has some for itself alone.
    """
    if asked:
        _fill_cpuset(os.path.dirname(folder), name)
        write(f"{folder}/{name}", asked)
        return asked
    text = read(f"{folder}/{name}").strip()
    if not text:
        text = _fill_cpuset(os.path.dirname(folder), name)
        write(f"{folder}/{name}", text)
    return text

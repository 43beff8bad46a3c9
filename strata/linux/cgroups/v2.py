"""cgroup v2: one tree, controllers switched on for children at every level above.

https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import os

from strata.linux.cgroups import convert
from strata.linux.cgroups.common import DENIED, Cgroup, Stats, join, keyed, make_folders, rdma_line, read, read_number, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from strata.linux.cgroups.common import Resources
    from strata.linux.cgroups.watch import Watch

_EPERM, _ENOENT, _EACCES, _EBUSY, _EINVAL, _EOPNOTSUPP = 1, 2, 13, 16, 22, 95
_DOMAIN_RESOURCES = ("memory", "blockIO", "cpu", "hugepageLimits")
"""Resources whose controllers want whole processes in a group; the others' can do with threads."""
_PARTS = ("memory", "cpu", "pids", "blockIO", "hugepageLimits", "rdma")
_FREEZE_SECONDS = 10.0


class CgroupV2(Cgroup):
    def __init__(self, folder: str) -> None:
        """folder: the group's; "" where there is none (a user without rights)."""
        super().__init__({"": folder} if folder else {})

    @property
    def _folder(self) -> str:
        folder = self.paths.get("")
        if folder is None:
            raise OSError(_ENOENT, "cgroups not configured for container")
        return folder

    def create(self, resources: "Resources | None" = None, *, lenient: bool = False) -> None:
        if lenient and not self.paths:
            return
        folder = self._folder
        try:
            self.made += make_folders(folder)
        except OSError as error:
            if not lenient or error.errno not in DENIED:
                raise
            if any((resources or {}).get(name) for name in _PARTS):
                raise OSError(
                    error.errno, "rootless needs no limits + no cgrouppath when no permission is granted for cgroups: "
                                 f"mkdir {folder}: {os.strerror(error.errno or 0).lower()}"
                ) from None  # fmt: skip
            self.paths = {}
            return
        for level in reversed(self._levels_above()):
            self._enable_all(level)
        self._check_type(folder, resources or {})

    @property
    def takes_clones(self) -> bool:  # type: ignore[override]
        return bool(self.paths)

    def create_for_clone(self, resources: "Resources | None" = None, *, lenient: bool = False) -> int:
        self.create(resources, lenient=lenient)
        return os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if self.paths else -1

    def open_for_exec(self, below: "dict[str, str] | None") -> int:
        try:
            return os.open(self._below(below)[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if self.paths else -1
        except OSError:
            return -1  # `follow` says why, or finds another way

    def follow(self, pid: int, leader: int, below: "dict[str, str] | None" = None) -> None:
        try:
            self.add(pid, below)
        except OSError:
            # The container has made groups below its own and moved into one, so there is none for processes here any more; or
            # it has moved elsewhere, and this one is gone.
            if below:
                raise
            path = read(f"/proc/{leader}/cgroup", "").strip().rpartition("0::")[2]
            if not path:
                raise
            join(f"{self._levels_above()[-1]}{path}", pid)

    def _levels_above(self) -> list[str]:
        """The folders of the tree above the group, inner ones first."""
        levels, folder = [], os.path.dirname(self._folder)
        while os.path.exists(f"{folder}/cgroup.controllers"):
            levels.append(folder)
            folder = os.path.dirname(folder)
        return levels

    @staticmethod
    def _enable_all(folder: str) -> None:
        """Gives a level's controllers to its children; one that cannot be given (EBUSY, a domain's rule) is left out."""
        given = read(f"{folder}/cgroup.subtree_control", "").split()
        missing = [name for name in read(f"{folder}/cgroup.controllers", "").split() if name not in given]
        if not missing:
            return
        try:
            write(f"{folder}/cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
        except OSError:
            for name in missing:
                try:
                    write(f"{folder}/cgroup.subtree_control", f"+{name}")
                except OSError:
                    continue  # where a limit needs it, the missing file is what is reported

    def enable(self, controller: str) -> bool:
        """Gives the group one controller, beside v1's hierarchies; whether it has it now."""
        levels = self._levels_above()
        if controller not in read(f"{levels[-1]}/cgroup.controllers", "").split():
            return False
        for level in reversed(levels):
            if controller not in read(f"{level}/cgroup.subtree_control", "").split():
                write(f"{level}/cgroup.subtree_control", f"+{controller}")
        return True

    def _check_type(self, folder: str, resources: "Resources") -> None:
        """Below a group of threads no process can be in a plain group: it must be threaded itself, without domain controllers."""
        kind = read(f"{folder}/cgroup.type", "").strip()
        wanted = any(resources.get(name) for name in _DOMAIN_RESOURCES)
        if kind == "domain invalid":
            if wanted:
                raise OSError(
                    _EOPNOTSUPP, f'cannot enter cgroupv2 "{folder}" with domain controllers -- it is in an invalid state'
                )
            for level in (*reversed(self._levels_above()), folder):
                if read(f"{level}/cgroup.type", "").strip() == "domain invalid":
                    write(f"{level}/cgroup.type", "threaded")
        elif kind in ("domain threaded", "threaded") and wanted:
            raise OSError(_EOPNOTSUPP, f'cannot enter cgroupv2 "{folder}" with domain controllers -- it is in {kind} mode')

    def delegate(self, uid: int) -> None:
        folder = self._folder
        names = read("/sys/kernel/cgroup/delegate", "cgroup.procs\ncgroup.subtree_control\ncgroup.threads").split()
        os.chown(folder, uid, -1)
        for name in names:
            try:
                os.chown(f"{folder}/{name}", uid, -1)
            except FileNotFoundError:
                continue

    def apply(self, resources: "Resources") -> None:
        if (limit := (resources.get("pids") or {}).get("limit")) is not None:
            self._set("pids.max", convert.tasks(limit))
        self._apply_memory(resources.get("memory") or {})
        self._apply_io(resources.get("blockIO") or {})
        self._apply_cpu(resources.get("cpu") or {})
        rules = resources.get("devices")
        if rules is not None and self.paths:
            from strata.linux.cgroups import ebpf

            ebpf.attach(self._folder, rules)
        self.apply_pages(resources.get("hugepageLimits") or [])
        self.apply_rdma(resources.get("rdma") or {})
        network = resources.get("network") or {}
        if network.get("classID") or network.get("priorities"):
            raise OSError(_EOPNOTSUPP, "network class and priorities: not supported on cgroup v2")
        unified = resources.get("unified") or {}
        for name, value in unified.items():
            if name != "cpu.weight" or unified.get("cpu.idle", "").strip() != "1":
                self._apply_unified(name, value)

    def _apply_memory(self, memory: "dict[str, Any]") -> None:
        if memory.get("disableOOMKiller"):
            raise OSError(_EOPNOTSUPP, "memory.disableOOMKiller: not supported on cgroup v2")
        swappiness = memory.get("swappiness")
        if swappiness is not None and swappiness not in (-1, 2**64 - 1):
            raise OSError(_EOPNOTSUPP, "memory.swappiness: not supported on cgroup v2")
        limit, swap, reservation = (memory.get(key) or 0 for key in ("limit", "swap", "reservation"))
        if not (limit or swap or reservation):
            return
        if memory.get("checkBeforeUpdate"):
            self.check_memory(limit, swap)
        alone = convert.swap_alone(swap, limit)
        if alone or swap > 0:
            text = "max" if alone == -1 else str(alone)
            try:
                self._set("memory.swap.max", text)
            except FileNotFoundError:
                if text not in ("max", "0"):  # without swap these two are what there is
                    raise
        if limit:
            self._set("memory.max", "max" if limit == -1 else limit)
        if reservation:
            self._set("memory.low", "max" if reservation == -1 else reservation)

    def check_memory(self, limit: int, swap: int) -> None:
        """Raises OSError for limits below what is used now: the kernel would kill (memory.checkBeforeUpdate)."""
        usage = read_number(f"{self._folder}/memory.current", 0)
        if 0 < swap <= usage:
            raise OSError(_EINVAL, f"rejecting memory+swap limit {swap} <= usage {usage}")
        if 0 < limit <= usage:
            raise OSError(_EINVAL, f"rejecting memory limit {limit} <= usage {usage}")

    def _apply_cpu(self, cpu: "dict[str, Any]") -> None:
        for key in ("realtimePeriod", "realtimeRuntime"):
            if cpu.get(key):
                raise OSError(_EOPNOTSUPP, f"cpu.{key}: not supported on cgroup v2")
        if (idle := cpu.get("idle")) is not None:
            self._set("cpu.idle", idle)
        weight = convert.cpu_weight(cpu.get("shares") or 0)
        if weight and idle != 1:  # an idle group takes none
            self._set("cpu.weight", weight)
        quota, period, burst = cpu.get("quota") or 0, cpu.get("period") or 0, cpu.get("burst")
        if burst is not None:
            try:
                self._set("cpu.max.burst", burst)
                burst = None
            except OSError as error:
                if error.errno != _EINVAL or not quota:
                    raise
                # It may be refused only because of the quota that still goes.
        if quota or period:
            # The one that is not given stays as it is; the kernel takes a quota alone.
            maximum = str(quota) if quota > 0 else "max"
            if not quota:
                maximum = read(f"{self._folder}/cpu.max").split()[0]
            self._set("cpu.max", f"{maximum} {period}" if period else maximum)
        if burst is not None:
            self._set("cpu.max.burst", burst)
        for key in ("cpus", "mems"):
            if cpu.get(key):
                self._set(f"cpuset.{key}", cpu[key])

    def _apply_io(self, block: "dict[str, Any]") -> None:
        devices = block.get("weightDevice") or ()
        if block.get("leafWeight") or any(device.get("leafWeight") for device in devices):
            raise OSError(_EOPNOTSUPP, "blockIO.leafWeight: not supported on cgroup v2")
        weight = block.get("weight")
        if weight or devices:
            bfq = os.path.exists(f"{self._folder}/io.bfq.weight")
            name = "io.bfq.weight" if bfq else "io.weight"
            if weight:
                self._set(name, weight if bfq else convert.io_weight(weight))
            for device in devices:
                if not (value := device.get("weight")):
                    continue
                self._set(name, f"{device['major']}:{device['minor']} {value if bfq else convert.io_weight(value)}")
        for key, word in (("throttleReadBpsDevice", "rbps"), ("throttleWriteBpsDevice", "wbps"),
                          ("throttleReadIOPSDevice", "riops"), ("throttleWriteIOPSDevice", "wiops")):  # fmt: skip
            for device in block.get(key) or ():
                # v1 lifts a limit by 0, v2 by a word.
                self._set("io.max", f"{device['major']}:{device['minor']} {word}={device['rate'] or 'max'}")

    def apply_pages(self, pages: "list[dict[str, Any]]") -> None:
        for limited in pages:
            name = f"hugetlb.{limited['pageSize']}"
            self._set(f"{name}.max", limited["limit"])
            if os.path.exists(f"{self._folder}/{name}.rsvd.max"):
                self._set(f"{name}.rsvd.max", limited["limit"])

    def apply_rdma(self, rdma: "dict[str, dict[str, Any]]") -> None:
        for device, limits in rdma.items():
            self._set("rdma.max", rdma_line(device, limits))

    def _apply_unified(self, name: str, value: str) -> None:
        """One file of the group as it is given, line by line."""
        controller, dot, _ = name.partition(".")
        if "/" in name:
            raise OSError(_EINVAL, f'unified resource "{name}" must be a file name (no slashes)')
        if not dot:
            raise OSError(_EINVAL, f'unified resource "{name}" must be in the form CONTROLLER.PARAMETER')
        try:
            for line in value.splitlines() or [""]:
                self._set(name, line)
        except OSError as error:
            known = ("cgroup", *read(f"{self._folder}/cgroup.controllers", "").split())
            if error.errno in (_EPERM, _ENOENT, _EACCES) and controller not in known:
                text = f'unified resource "{name}" can\'t be set: controller "{controller}" not available'
                raise OSError(_ENOENT, text) from None
            raise OSError(error.errno, f'unable to set unified resource "{name}": {error.strerror}') from None

    def _set(self, name: str, value: object) -> None:
        write(f"{self._folder}/{name}", str(value))

    def freeze(self) -> None:
        if not self.paths:
            raise OSError(_ENOENT, "cannot toggle freezer: cgroups not configured for container")
        import select
        import time

        self._set("cgroup.freeze", 1)
        deadline = time.monotonic() + _FREEZE_SECONDS
        events = os.open(f"{self._folder}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while not keyed(os.pread(events, 4096, 0).decode()).get("frozen", 1):
                left = deadline - time.monotonic()
                if left <= 0:
                    self.thaw()
                    raise OSError(_EBUSY, f"timeout of {_FREEZE_SECONDS:.0f}s reached waiting for the cgroup to freeze")
                poll.poll(left * 1000)
        finally:
            os.close(events)

    def thaw(self) -> None:
        self._set("cgroup.freeze", 0)

    def frozen(self) -> bool:
        return bool(self.paths) and read(f"{self._folder}/cgroup.freeze", "0").strip() == "1"

    def kill(self) -> None:
        if not self.paths:
            return
        try:
            self._set("cgroup.kill", 1)
        except FileNotFoundError:  # before Linux 5.14, or the group is gone
            super().kill()

    def stats(self) -> Stats:
        found, folder = Stats(), self.paths.get("", "")
        found.cpu_usage_ns = keyed(read(f"{folder}/cpu.stat", "")).get("usage_usec", 0) * 1000
        found.memory_usage_bytes = read_number(f"{folder}/memory.current", 0)
        details = keyed(read(f"{folder}/memory.stat", ""))
        found.memory_working_set_bytes = max(found.memory_usage_bytes - details.get("inactive_file", 0), 0)
        found.memory_rss_bytes = details.get("anon", 0)
        found.pids = read_number(f"{folder}/pids.current", 0)
        found.oom_kills = self.oom_kill_count()
        return found

    def usage(self) -> "dict[str, Any]":
        from strata.linux.cgroups import usage

        return usage.of_v2(self._folder)

    def oom_kill_count(self) -> int:
        return keyed(read(f"{self.paths.get('', '')}/memory.events", "")).get("oom_kill", 0)

    def watch(self) -> "Watch":
        from strata.linux.cgroups import watch

        return watch.WatchV2(self._folder)

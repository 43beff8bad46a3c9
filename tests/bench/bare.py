"""The system calls of a pod's life and nothing else, one after the other, by one process that knows what comes: what is left of
the time when a container manager takes none. `scripts/bench cri` runs it in the namespace of the daemons that it measures.

usage: python -m tests.bench.bare FOLDER LOWER ROUNDS. Prints {step: [seconds, …]} as JSON. LOWER: the image's layer.
"""

import ipaddress
import json
import os
import shutil
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

from strata.linux import cgroups, mounts, namespaces, syscalls
from strata.linux.rtnetlink import UP, Link, Netlink

_BRIDGE = "benchb0"
_KINDS = ("network", "ipc", "uts")
_QUIET = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_MASKED = ("kcore", "keys", "latency_stats", "timer_list", "sched_debug", "acpi", "scsi")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


class Pod:
    def __init__(self, folder: Path, lower: Path, number: int) -> None:
        self._folder, self._lower, self._number = folder / str(number), lower, number
        self._group = cgroups.open_cgroup(f"/strata-bench/bare-{number}")
        self._pinned = {kind: str(self._folder / kind) for kind in _KINDS}

    def run(self) -> None:
        """Namespaces, /dev/shm, the network, the cgroup."""
        (self._folder / "shm").mkdir(parents=True)
        namespaces.pin_new(self._pinned, hostname="bare")
        mounts.mount("shm", str(self._folder / "shm"), "tmpfs", _QUIET, "size=64m")
        with Netlink() as host, open(self._pinned["network"], "rb") as namespace:
            host.add_veth(f"bare{self._number}", "eth0", namespace.fileno(), master=_link(host, _BRIDGE).index)
            self._configure(namespace.fileno())
        self._group.create()

    def _configure(self, namespace: int) -> None:
        # Not in a thread: one that has just ended may hold the interpreter's lock, which the clone in `start` would copy.
        with open("/proc/self/ns/net", "rb") as own:
            syscalls.setns(namespace, namespaces.NEWNET)
            try:
                pod = Netlink()
            finally:
                syscalls.setns(own.fileno(), namespaces.NEWNET)
        with pod:
            index = _link(pod, "eth0").index
            pod.set_flags(index, UP)
            pod.add_address(index, ipaddress.ip_interface(f"10.68.{self._number // 250}.{self._number % 250 + 2}/16"))
            pod.replace_route(ipaddress.ip_network("0.0.0.0/0"), index, ipaddress.ip_address("10.68.0.1"))

    def create(self) -> None:
        """The root."""
        for name in ("upper", "work", "root"):
            (self._folder / name).mkdir()
        data = f"lowerdir={self._lower},upperdir={self._folder}/upper,workdir={self._folder}/work"
        mounts.mount("overlay", str(self._folder / "root"), "overlay", 0, data)

    def start(self) -> None:
        """The first process, until its program runs."""
        read, write = os.pipe2(os.O_CLOEXEC)
        joined = self._group.open_to_join() if self._group.joins_itself else []
        flags = namespaces.NEWPID | namespaces.NEWNS | namespaces.NEWCGROUP
        self._pid, pidfd = syscalls.clone3(flags, cgroup=self._group.create_for_clone())
        if self._pid == 0:
            try:
                cgroups.join_opened(joined)
                self._become()
            finally:
                os._exit(1)
        os.close(write)
        os.read(read, 1)
        for descriptor in (read, pidfd, *joined):
            os.close(descriptor)

    def _become(self) -> None:
        for kind in _KINDS:
            with open(self._pinned[kind], "rb") as namespace:
                syscalls.setns(namespace.fileno(), namespaces.KINDS[kind][0])
        root = str(self._folder / "root")
        mounts.mount("", "/", "", mounts.SLAVE | mounts.REC)
        mounts.mount(root, root, "", mounts.BIND | mounts.REC)
        for name in ("proc", "sys", "dev"):
            os.makedirs(f"{root}/{name}", exist_ok=True)
        mounts.mount("proc", f"{root}/proc", "proc", _QUIET)
        mounts.mount("sysfs", f"{root}/sys", "sysfs", _QUIET | mounts.RDONLY)
        mounts.mount("tmpfs", f"{root}/dev", "tmpfs", mounts.NOSUID, "mode=755,size=64k")
        for name in ("pts", "mqueue", "shm"):
            os.mkdir(f"{root}/dev/{name}")
        mounts.mount("devpts", f"{root}/dev/pts", "devpts", mounts.NOSUID | mounts.NOEXEC, "newinstance,ptmxmode=0666")
        mounts.mount("mqueue", f"{root}/dev/mqueue", "mqueue", _QUIET)
        mounts.mount(str(self._folder / "shm"), f"{root}/dev/shm", "", mounts.BIND)
        for name in _DEVICES:
            status = os.stat(f"/dev/{name}")
            os.mknod(f"{root}/dev/{name}", status.st_mode, status.st_rdev)
        os.chdir(root)
        syscalls.pivot_root(".", ".")
        mounts.umount(".", mounts.DETACH)
        for name in _READ_ONLY:
            mounts.mount(f"/proc/{name}", f"/proc/{name}", "", mounts.BIND | mounts.REC)
            mounts.mount("", f"/proc/{name}", "", mounts.BIND | mounts.REMOUNT | mounts.RDONLY | _QUIET)
        for name in _MASKED:
            if os.path.isdir(f"/proc/{name}"):
                mounts.mount("tmpfs", f"/proc/{name}", "tmpfs", mounts.RDONLY)
            elif os.path.exists(f"/proc/{name}"):
                mounts.mount("/dev/null", f"/proc/{name}", "", mounts.BIND)
        os.execve("/bin/sleep", ["sleep", "1000"], {})

    def end(self) -> None:
        """All of it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        with Netlink() as host:
            host.remove_link(f"bare{self._number}")
        for name in ("root", "shm"):
            mounts.umount(str(self._folder / name), mounts.DETACH)
        for target in self._pinned.values():
            namespaces.unpin(target)
        self._group.remove()
        shutil.rmtree(self._folder)


def _link(socket: Netlink, name: str) -> Link:
    link = socket.link(name)
    assert link
    return link


def main(folder: Path, lower: Path, rounds: int) -> None:
    samples: dict[str, list[float]] = defaultdict(list)
    with Netlink() as host:
        host.add_bridge(_BRIDGE)
        try:
            for number in range(rounds):
                pod = Pod(folder, lower, number)
                steps = {
                    "RunPodSandbox": pod.run, "CreateContainer": pod.create, "StartContainer": pod.start,
                    "Stop and remove": pod.end,
                }  # fmt: skip
                for step, call in steps.items():
                    start = time.perf_counter()
                    call()
                    samples[step].append(time.perf_counter() - start)
        finally:
            host.remove_link(_BRIDGE)
    print(json.dumps(samples))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

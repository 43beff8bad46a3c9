"""Being told of processes that the kernel killed for want of memory, by a descriptor that poll(2) can wait on."""

import os

from strata.linux import syscalls
from strata.linux.cgroups.common import keyed, read, write

_EVENT = 16  # struct inotify_event, without a name


class Watch:
    """`descriptor` becomes readable when something may have happened; `read` then tells what."""

    descriptor = -1

    def read(self) -> "tuple[bool, bool]":
        """(whether processes were killed since the last look, whether the group is empty or gone for good)."""
        raise NotImplementedError

    def close(self) -> None:
        os.close(self.descriptor)


class WatchV1(Watch):
    """By an eventfd that the memory controller knows (cgroup-v1/memory.rst, OOM Control)."""

    def __init__(self, folder: str) -> None:
        self._control = f"{folder}/cgroup.event_control"
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            file = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write(self._control, f"{self.descriptor} {file}")
            finally:
                os.close(file)
        except BaseException:
            os.close(self.descriptor)
            raise

    def read(self) -> "tuple[bool, bool]":
        try:
            happened = os.eventfd_read(self.descriptor) > 0
        except BlockingIOError:
            happened = False
        # The end of the group is told by the same event.
        gone = not os.path.exists(self._control)
        return happened and not gone, gone


class WatchV2(Watch):
    """By inotify on the two files that the kernel reports changes of (cgroup-v2.rst, memory.events and cgroup.events)."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._kills = self._count()
        self.descriptor = syscalls.inotify_init()
        try:
            for name in ("memory.events", "cgroup.events"):
                syscalls.inotify_add_watch(self.descriptor, f"{folder}/{name}", syscalls.IN_MODIFY)
        except BaseException:
            os.close(self.descriptor)
            raise

    def _count(self) -> int:
        return keyed(read(f"{self._folder}/memory.events", "")).get("oom_kill", 0)

    def read(self) -> "tuple[bool, bool]":
        try:
            while len(os.read(self.descriptor, 64 * _EVENT)) == 64 * _EVENT:
                continue
        except BlockingIOError:
            pass
        before, self._kills = self._kills, self._count()
        populated = keyed(read(f"{self._folder}/cgroup.events", "")).get("populated", 0)
        return self._kills > before, not populated

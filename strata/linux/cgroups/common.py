"""What v1 and v2 have in common: the interface, and the ways of reading, killing and removing."""

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Resources = dict[str, Any]


_SIGKILL = 9  # the signal module costs 6 ms of a cold start


class Stats:
    """What a cgroup used. Times in nanoseconds, sizes in bytes; working set: usage less the inactive file cache."""

    __slots__ = ("cpu_usage_ns", "memory_rss_bytes", "memory_usage_bytes", "memory_working_set_bytes", "oom_kills", "pids")

    def __init__(self) -> None:
        self.cpu_usage_ns = self.memory_usage_bytes = self.memory_working_set_bytes = 0
        self.memory_rss_bytes = self.pids = self.oom_kills = 0


class Cgroup:
    """A group, in all hierarchies that the machine has. Every failure is an OSError that names the file."""

    path: str

    def folders(self) -> "list[str]":
        """The group's folder in each hierarchy."""
        raise NotImplementedError

    def create(self) -> None:
        """Makes the group and its parents; what is there already stays."""
        raise NotImplementedError

    takes_clones = False
    """Whether a process can be cloned right into the group."""

    def open_for_clone(self) -> int:
        """A descriptor of the group, for `syscalls.clone3`. Only where it takes clones."""
        raise NotImplementedError

    def exists(self) -> bool:
        return any(os.path.isdir(folder) for folder in self.folders())

    def add(self, pid: int) -> None:
        """Moves a process into the group."""
        for folder in self.folders():
            write(f"{folder}/cgroup.procs", str(pid))

    def apply(self, resources: "Resources") -> None:
        """Sets the limits that are given. Raises OSError for one that the kernel refuses or lacks."""
        raise NotImplementedError

    def pids(self, *, recursive: bool = False) -> list[int]:
        """The processes in the group, with those of its children if recursive; none when it does not exist."""
        found: set[int] = set()
        for folder in self.folders():
            for inside in descendants(folder) if recursive else (folder,):
                found.update(int(line) for line in read(f"{inside}/cgroup.procs", "").split())
        return sorted(found)

    def freeze(self) -> None:
        raise NotImplementedError

    def thaw(self) -> None:
        raise NotImplementedError

    def frozen(self) -> bool:
        raise NotImplementedError

    def kill(self) -> None:
        """Sends SIGKILL to all processes in the group and below it, also to those that fork meanwhile."""
        try:
            self.freeze()
        except OSError:  # no freezer: what is forked in between is found in the next round
            pass
        for _ in range(50):
            found = self.pids(recursive=True)
            for pid in found:
                try:
                    os.kill(pid, _SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                self.thaw()
            except OSError:
                pass
            if not found:
                return
            time.sleep(0.002)

    def destroy(self) -> None:
        """Kills what is in the group and below it, and removes it all."""
        if not self._remove_empty():
            self.kill()
            self.remove()

    def _remove_empty(self) -> bool:
        """Removes the group where nothing is in it; whether nothing of it is left."""
        gone = True
        for folder in self.folders():
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def remove(self) -> None:
        """Removes the group with those below it. A process that is still ending is waited for, up to 2 s."""
        deadline = time.monotonic() + 2.0
        for folder in self.folders():
            for inside in sorted(descendants(folder), key=len, reverse=True):
                pause = 0.001
                while True:
                    try:
                        os.rmdir(inside)
                    except FileNotFoundError:
                        pass
                    except OSError as error:
                        if error.errno != 16 or time.monotonic() > deadline:  # EBUSY
                            raise
                        time.sleep(pause)
                        pause = min(pause * 2, 0.05)
                        continue
                    break

    def stats(self) -> Stats:
        raise NotImplementedError

    def oom_kill_count(self) -> int:
        """How many processes of the group and below it the kernel killed for want of memory."""
        raise NotImplementedError


def descendants(folder: str) -> "Iterator[str]":
    """A folder and all folders below it; nothing when it does not exist."""
    try:
        entries = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    yield folder
    for entry in entries:
        yield from descendants(entry)


def read(path: str, missing: str | None = None) -> str:
    """A file's text; `missing` where it does not exist and that is given."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        if missing is None:
            raise
        return missing
    try:
        chunks = []
        while chunk := os.read(descriptor, 65536):
            chunks.append(chunk)
    except OSError as error:
        if missing is not None and error.errno in (19, 95):  # ENODEV, EOPNOTSUPP: the group is going, or has no such thing
            return missing
        raise
    finally:
        os.close(descriptor)
    return b"".join(chunks).decode()


def write(path: str, text: str) -> None:
    """Writes a control file in one call. Raises OSError with the path and what was written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (writing {text!r})", path) from None


def keyed(text: str) -> dict[str, int]:
    """A flat keyed file (memory.stat and its likes) as numbers."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[key] = int(value)
    return found

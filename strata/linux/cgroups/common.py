"""What v1 and v2 have in common: the interface, and the ways of reading, writing, killing and removing."""

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from strata.linux.cgroups.watch import Watch

    Resources = dict[str, Any]


_SIGKILL = 9  # the signal module costs 6 ms of a cold start
_EBUSY, _EINVAL = 16, 22
DENIED = (1, 13, 30)
"""EPERM, EACCES, EROFS: what a user without rights in a hierarchy gets."""


class Stats:
    """What a cgroup used. Times in nanoseconds, sizes in bytes; working set: usage less the inactive file cache."""

    __slots__ = ("cpu_usage_ns", "memory_rss_bytes", "memory_usage_bytes", "memory_working_set_bytes", "oom_kills", "pids")

    def __init__(self) -> None:
        self.cpu_usage_ns = self.memory_usage_bytes = self.memory_working_set_bytes = 0
        self.memory_rss_bytes = self.pids = self.oom_kills = 0


class Cgroup:
    """A group, in all hierarchies that the machine has. Every failure is an OSError that names the file."""

    def __init__(self, paths: "dict[str, str]") -> None:
        """paths: controller → the group's folder in its hierarchy; that of a v2 tree has the name "", also beside v1's."""
        self.paths = paths
        self.made: list[str] = []

    def folders(self) -> "list[str]":
        """The group's folder in each hierarchy."""
        return list(dict.fromkeys(self.paths.values()))

    def remember(self) -> "dict[str, Any]":
        """What `restore` makes the same group of, as JSON has it."""
        return {"paths": self.paths}

    def create(self, resources: "Resources | None" = None, *, lenient: bool = False) -> None:
        """Makes the group and its parents; what is there already stays, and what was made is in `made`.

        resources: those of them that must be set before a process can join. lenient: leaves out (also of `paths`) the
        hierarchies where this user may make no group.
        """
        raise NotImplementedError

    takes_clones = False
    """Whether a process can be cloned right into the group, or into the part of it that has no other way in without a wait."""

    def create_for_clone(self, resources: "Resources | None" = None, *, lenient: bool = False) -> int:
        """Makes what a process can be cloned into, and opens it for `syscalls.clone3`: -1 where this user may not, or there is no
        such thing. resources, lenient: as in `create`."""
        return -1

    def prepare(self, resources: "Resources", *, lenient: bool = False) -> None:
        """Makes the group with its limits. lenient: as in `create`."""
        self.create(resources, lenient=lenient)
        self.apply(resources)

    joins_itself = False
    """Whether a process moves itself into the group, with `join_opened`."""

    def open_to_join(self, below: "dict[str, str] | None" = None, *, lenient: bool = False) -> "list[int]":
        """Opens what `join_opened` writes to, but for what a process is cloned into; the caller owns the descriptors. Only where
        one joins by itself. below: as for `add`, and raises as that. lenient: as in `create`."""
        raise NotImplementedError

    def take(self, pid: int, resources: "Resources", *, lenient: bool = False) -> None:
        """Makes the group with its limits, around a first process if that does neither join by itself nor is cloned into it."""
        self.prepare(resources, lenient=lenient)

    def does_without(self, folder: str) -> bool:
        """Whether it is the v2 tree beside v1's: it has no controllers that v1 has, and users are given v1's folders only."""
        return len(self.paths) > 1 and folder == self.paths.get("")

    def exists(self) -> bool:
        return any(os.path.isdir(folder) for folder in self.folders())

    def add(self, pid: int, below: "dict[str, str] | None" = None) -> None:
        """Moves a process into the group, or into groups below it: controller → path, "" for all hierarchies.

        Raises ValueError for a path that leaves the group, or a controller that is not there.
        """
        for folder in self._below(below):
            join(folder, pid)

    def open_for_exec(self, below: "dict[str, str] | None") -> int:
        """As `create_for_clone`, of a group that is there, or of one below it as for `add`."""
        return -1

    def follow(self, pid: int, leader: int, below: "dict[str, str] | None" = None) -> None:
        """As `add`; where nobody can be added to the group itself any more (v2), to that of its process `leader`."""
        self.add(pid, below)

    def _below(self, below: "dict[str, str] | None") -> "list[str]":
        if not below:
            return self.folders()
        paths = dict(self.paths)
        for controller, path in below.items():
            if ".." in path.split("/"):
                raise ValueError(f"bad sub cgroup path: {path}")
            names = [controller] if controller else list(paths)
            for name in names:
                if name not in paths:
                    raise ValueError(f"unknown controller {name} in SubCgroupPaths")
                paths[name] = f"{self.paths[name]}/{path.strip('/')}".rstrip("/")
        return list(dict.fromkeys(paths.values()))

    def delegate(self, uid: int) -> None:
        """Makes the group the user's, with what it may write in (config-linux, Cgroup ownership). Not on v1."""

    def apply(self, resources: "Resources") -> None:
        """Sets the limits that are given. Raises OSError for one that the kernel refuses or lacks."""
        raise NotImplementedError

    def pids(self, *, recursive: bool = False) -> list[int]:
        """The processes in the group, with those of its children if recursive; none when it does not exist."""
        found: set[int] = set()
        for folder in self.folders():
            for inside in descendants(folder) if recursive else (folder,):
                found.update(processes(inside))
        return sorted(found)

    def freeze(self) -> None:
        """Stops all processes of the group and below it, and returns when they stand still."""
        raise NotImplementedError

    def thaw(self) -> None:
        raise NotImplementedError

    def frozen(self) -> bool:
        """Whether the group itself was frozen; one that stands still with its parent was not."""
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

    def remove(self) -> None:
        """Removes the group with those below it. A process that is still ending is waited for, up to 2 s."""
        deadline = time.monotonic() + 2.0
        for folder in self.folders():
            if _is_removed(folder):
                continue
            for inside in sorted(descendants(folder), key=len, reverse=True):
                pause = 0.001
                while not _is_removed(inside):
                    if time.monotonic() > deadline:
                        os.rmdir(inside)
                        break
                    time.sleep(pause)
                    pause = min(pause * 2, 0.05)

    def destroy(self) -> None:
        """Kills what is in the group and below it, and removes it all."""
        in_use = [folder for folder in self.folders() if not _is_removed(folder)]  # as a rule there is nothing in it
        if in_use:
            self.kill()
            self.remove()

    def undo(self) -> None:
        """The same, and removes the parents that were made for it."""
        self.destroy()
        remove_folders(self.made)

    def stats(self) -> Stats:
        raise NotImplementedError

    def usage(self) -> "dict[str, Any]":
        """What the group used, in the shape in which `runc events --stats` shows it (its types.Stats)."""
        raise NotImplementedError

    def oom_kill_count(self) -> int:
        """How many processes of the group and below it the kernel killed for want of memory."""
        raise NotImplementedError

    def watch(self) -> "Watch":
        """Tells of processes that are killed for want of memory. Raises OSError where memory is not controlled."""
        raise NotImplementedError


def _is_removed(folder: str) -> bool:
    """Whether a group's folder is gone now; False while it is in use."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == _EBUSY:
            return False
        if os.path.exists(folder):  # a read-only mount says so even of what is not there
            raise
    return True


def remove_folders(made: "list[str]") -> None:
    """Takes back what `create` made, as far as nobody else uses it."""
    for folder in reversed(made):
        try:
            os.rmdir(folder)
        except OSError:
            pass


def make_folders(folder: str) -> "list[str]":
    """Makes a folder with its parents; returns those that were not there, outer ones first."""
    try:
        os.mkdir(folder)
        return [folder]
    except FileExistsError:
        return []
    except FileNotFoundError:
        if folder == os.path.dirname(folder):
            raise
    made = make_folders(os.path.dirname(folder))
    try:
        os.mkdir(folder)
    except FileExistsError:
        return made
    except BaseException:
        remove_folders(made)
        raise
    return [*made, folder]


def descendants(folder: str) -> "Iterator[str]":
    """A folder and all folders below it; nothing when it does not exist."""
    try:
        entries = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    yield folder
    for entry in entries:
        yield from descendants(entry)


def processes(folder: str) -> "list[int]":
    """The processes of one group; of a threaded one (v2), which has no list of them, those that its threads belong to."""
    try:
        return [int(line) for line in read(f"{folder}/cgroup.procs", "").split()]
    except OSError as error:
        if error.errno != 95:  # EOPNOTSUPP
            raise
    found = set()
    for thread in read(f"{folder}/cgroup.threads", "").split():
        for line in read(f"/proc/{thread}/status", "").splitlines():
            if line.startswith("Tgid:"):
                found.add(int(line[5:]))
    return sorted(found)


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
        if missing is not None and error.errno == 19:  # ENODEV: the group is going
            return missing
        error.filename = path
        raise
    finally:
        os.close(descriptor)
    return b"".join(chunks).decode()


def read_number(path: str, missing: int | None = None) -> int:
    """A file with one number; `max` is the largest that 64 bits hold, as runc reads it."""
    text = read(path, None if missing is None else str(missing)).strip()
    return 2**64 - 1 if text == "max" else int(text)


def write(path: str, text: str) -> None:
    """Writes a control file in one call. Raises OSError with the path and what was written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise refusal(path, text, error) from None


def refusal(path: str, text: str, error: OSError) -> OSError:
    """A failed write, worded as runc words it."""
    reason = os.strerror(error.errno or 0)
    return OSError(error.errno, f'failed to write "{text}": write {path}: {reason[:1].lower()}{reason[1:]}')


def join(folder: str, pid: int) -> None:
    """Moves a process into the group in a folder."""
    path = f"{folder}/cgroup.procs"
    for _ in range(5):
        try:
            write(path, str(pid))
            return
        except OSError as error:
            if error.errno != _EINVAL:
                raise
            failed = error
        time.sleep(0.03)  # a process that has only just been cloned (TASK_NEW) cannot be moved yet
    raise failed


def join_opened(descriptors: "list[int]") -> None:
    """Moves this process, which must have one thread, into what `open_to_join` has opened.

    On v1 a thread that moves itself waits for nobody; whoever moves a process waits, after some idle time, some 10 ms for all
    CPUs (percpu_down_write of cgroup_threadgroup_rwsem), and so does who forks or moves meanwhile.
    """
    for descriptor in descriptors:
        try:
            os.write(descriptor, b"0")
        except OSError as error:
            raise refusal(os.readlink(f"/proc/self/fd/{descriptor}"), "0", error) from None


def keyed(text: str) -> dict[str, int]:
    """A flat keyed file (memory.stat and its likes) as numbers."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            found[key] = int(value)
    return found


def rdma_line(device: str, limits: "dict[str, Any]") -> str:
    """A line of rdma.max."""
    parts = [device]
    for key, name in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
        if limits.get(key) is not None:
            parts.append(f"{name}={limits[key]}")
    return " ".join(parts)

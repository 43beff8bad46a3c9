"""What the runtime remembers of a container: a folder ROOT/ID with state.json, which is also the lock.

state.json is written to a new file and renamed. It is not synced: it tells of processes, and none outlives the machine. A folder
without it belongs to a create that is under way (it holds the lock), or that was killed: delete finds the cgroup, and what is in
it, by what was written into `making` before.

The lock is a flock(2) of the folder itself, and counts only while the folder is at its path: of two commands that wait for it
while a third deletes the container, neither works on what is gone, or on a container that got the same ID since.
"""

import fcntl
import os

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason, step
from strata.linux import pidfds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from strata.linux.cgroups import Cgroup

_ID_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-.")
START_SOCKET = "start.sock"
SECCOMP_CACHE = ".seccomp"  # beside the containers' folders
VERSION = 1
"""Of what state.json holds. Each has the oldest version whose reader can make sense of it: newer ones are refused."""
_NEEDED = {"ociVersion": str, "pid": int, "startTime": int, "cgroup": dict, "bundle": str, "rootfs": str, "created": str,
           "namespaces": list}  # fmt: skip


def check_id(container_id: str) -> None:
    """Raises RuntimeFailure for an ID that is no plain name."""
    if not container_id or not set(container_id) <= _ID_LETTERS or container_id in (".", "..", SECCOMP_CACHE):
        raise RuntimeFailure(f"invalid container ID format {container_id!r}: use letters, digits, and any of _+-.")


class Container:
    """A container that was made, or is being made. `values` is what state.json holds."""

    def __init__(self, root: str, container_id: str) -> None:
        check_id(container_id)
        self.id, self.folder = container_id, f"{root}/{container_id}"
        self.values: dict[str, Any] = {}
        self._lock = -1

    @classmethod
    def open(cls, root: str, container_id: str, *, locked: bool = False) -> "Container":
        """A container that is there. locked: no other command changes it until `unlock`. Raises RuntimeFailure."""
        container = cls(root, container_id)
        if locked:
            container.lock()
        else:
            container.read()
        return container

    def read(self) -> None:
        """Reads state.json. Raises NotThere, or RuntimeFailure for one that makes no sense."""
        try:
            with open(f"{self.folder}/state.json", "rb") as file:
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise NotThere(self.id) from None
        except OSError as error:
            raise RuntimeFailure(f"read the state of container {self.id}: {reason(error)}") from None
        try:
            values = documents.loads(data.decode())
            problem = _problem(values)
        except ValueError as error:
            problem = reason(error)
        if problem:
            raise RuntimeFailure(
                f"read the state of container {self.id}: {self.folder}/state.json: {problem} (delete --force removes it)"
            )
        self.values = values

    def make(self) -> None:
        """Makes the folder of a new container, locked. Raises RuntimeFailure where one of that ID exists."""
        while True:
            try:
                try:
                    os.mkdir(self.folder, 0o711)
                except FileNotFoundError:
                    os.makedirs(os.path.dirname(self.folder), mode=0o711, exist_ok=True)
                    os.mkdir(self.folder, 0o711)
            except FileExistsError:
                raise RuntimeFailure(f"container with given ID already exists: {self.id}{self._half_made()}") from None
            try:
                if self._take_lock():
                    return  # else a delete took it for the remains of a killed create, and removed it
            except BaseException:
                os.rmdir(self.folder)
                raise

    def _half_made(self) -> str:
        """In parentheses, that nobody is making a container that is not there yet: a create was killed."""
        if os.path.exists(f"{self.folder}/state.json"):
            return ""
        try:
            if not self._take_lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
                return ""
        except OSError:
            return ""
        self.unlock()
        return f" (left by a create that was killed: lowrt delete --force {self.id})"

    def lock(self, *, shared: bool = False) -> None:
        """No other command changes it until `unlock`; with shared, nobody deletes it. Its state is as it is read then.

        Raises NotThere when it is gone (or another one has its ID), RuntimeFailure when its state cannot be read.
        """
        step(f"lock container {self.id}")
        if not self._take_lock(fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            raise NotThere(self.id)
        known = self.values
        try:
            self.read()
            if known and (known["pid"], known["startTime"]) != (self.values["pid"], self.values["startTime"]):
                raise NotThere(self.id)
        except BaseException:
            self.unlock()
            raise

    def try_lock(self, *, wait: bool) -> bool:
        """Locks the folder, whatever is in it; False where somebody else has it locked and it is not to wait. Raises NotThere."""
        step(f"lock container {self.id}")
        try:
            if self._take_lock(fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)):
                return True
        except BlockingIOError:
            return False
        raise NotThere(self.id)

    def _take_lock(self, operation: int = fcntl.LOCK_EX) -> bool:
        """False when there is no such folder, or it was removed while this waited and is not there again."""
        while True:
            try:
                self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return False
            try:
                fcntl.flock(self._lock, operation)
                if os.path.samestat(os.fstat(self._lock), os.stat(self.folder)):
                    return True
            except FileNotFoundError:
                pass
            except BaseException as error:
                self.unlock()
                if isinstance(error, OSError):
                    error.filename = self.folder
                raise
            self.unlock()

    def __enter__(self) -> "Container":
        """`with Container.open(…, locked=True)`: unlocked at the end, if it is not yet."""
        return self

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def unlock(self) -> None:
        if self._lock >= 0:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a child may still have a copy of the descriptor
            os.close(self._lock)
            self._lock = -1

    def note(self, name: str, text: str) -> None:
        """Writes a small file into the folder, in one go."""
        step(f"write {self.folder}/{name}")
        self._write(f"{name}.new", text)
        os.rename(f"{self.folder}/{name}.new", f"{self.folder}/{name}")

    def noted(self, name: str) -> str:
        """What was written into a small file; "" where it was not, or cannot be read."""
        try:
            with open(f"{self.folder}/{name}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return ""

    def _write(self, name: str, text: str) -> None:
        descriptor = os.open(f"{self.folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = text.encode(errors="surrogateescape")
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)

    def prepare(self) -> None:
        """Writes down what `publish` makes the container's state."""
        step(f"write {self.folder}/state.json")
        self._write("state.json.new", documents.dumps({"version": VERSION, "oldestReader": VERSION, **self.values}))

    def publish(self) -> None:
        """From now on the container exists for other commands."""
        step("make the container known")
        os.rename(f"{self.folder}/state.json.new", f"{self.folder}/state.json")

    def remove_folder(self) -> None:
        """Only locked. What says where the container's parts are goes last, for one that is killed meanwhile."""
        step(f"remove {self.folder}")
        names = os.listdir(self.folder)
        for name in sorted(names, key=("state.json", "making").__contains__):
            path = f"{self.folder}/{name}"
            try:
                os.unlink(path)
            except IsADirectoryError:  # that of `notify`
                for inner in os.listdir(path):
                    os.unlink(f"{path}/{inner}")
                os.rmdir(path)
        os.rmdir(self.folder)
        self.unlock()

    # --- what the state says

    @property
    def pid(self) -> int:
        pid: int = self.values["pid"]
        return pid

    def cgroup(self) -> "Cgroup":
        from strata.linux import cgroups

        return cgroups.restore(self.values["cgroup"])

    def is_alive(self) -> bool:
        """Whether the container's first process runs: it is the same one (by its start time), and not a zombie."""
        return pidfds.runs_since(self.pid, self.values["startTime"])

    def status(self) -> str:
        """created, running, paused or stopped."""
        if not self.is_alive():
            return "stopped"
        if self.cgroup().frozen():
            return "paused"
        return "created" if os.path.exists(f"{self.folder}/{START_SOCKET}") else "running"

    def public(self) -> "dict[str, Any]":
        """The state as the OCI runtime spec defines it, with what runc adds."""
        status = self.status()
        return {
            "ociVersion": self.values["ociVersion"],
            "id": self.id,
            "pid": 0 if status == "stopped" else self.pid,
            "status": status,
            "bundle": self.values["bundle"],
            "rootfs": self.values["rootfs"],
            "created": self.values["created"],
            **({"annotations": self.values["annotations"]} if self.values.get("annotations") else {}),
            "owner": self.values.get("owner", ""),
        }


class NotThere(RuntimeFailure):
    """No container has that ID."""

    def __init__(self, container_id: str) -> None:
        super().__init__(f"container does not exist: {container_id}")


def _problem(values: "Any") -> str:
    """What is wrong with a state; "" if nothing."""
    if not isinstance(values, dict):
        return "must be an object"
    oldest = values.get("oldestReader", VERSION)
    if not isinstance(oldest, int) or oldest > VERSION:
        return f"written by a newer lowrt (version {values.get('version')} of it; this one reads {VERSION})"
    for name, kind in _NEEDED.items():
        if not isinstance(values.get(name), kind):
            return f"has no {name}"
    return ""


def all_ids(root: str) -> list[str]:
    """The names of all folders that may be containers, also of those that a create has not finished."""
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and entry.name != SECCOMP_CACHE)
    except FileNotFoundError:
        return []


def write_pid_file(path: str, pid: int) -> None:
    """Writes the PID in one go: whoever waits for the file never reads half of it."""
    temporary = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}.{os.getpid()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.write(descriptor, str(pid).encode())
        os.close(descriptor)
        os.rename(temporary, path)
    except OSError as error:
        raise RuntimeFailure(f"write the PID file {path}: {reason(error)}") from None

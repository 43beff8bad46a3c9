"""What the runtime remembers of a container: a folder ROOT/ID with state.json and the lock.

state.json is written to a new file, synced and renamed. A folder without it belongs to a create that was killed: delete
--force finds the cgroup and the process by what was written into `making` before they were made.
"""

import fcntl
import os

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason
from strata.linux import pidfds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from strata.linux.cgroups import Cgroup

_ID_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-.")
START_SOCKET = "start.sock"


def check_id(container_id: str) -> None:
    """Raises RuntimeFailure for an ID that is no plain name."""
    if not container_id or not set(container_id) <= _ID_LETTERS or container_id in (".", ".."):
        raise RuntimeFailure(f"invalid container ID {container_id!r}: use letters, digits, and any of _+-.")


class Container:
    """A container that was made, or is being made. `values` is what state.json holds."""

    def __init__(self, root: str, container_id: str) -> None:
        check_id(container_id)
        self.id, self.folder = container_id, f"{root}/{container_id}"
        self.values: dict[str, Any] = {}
        self._lock = -1

    @classmethod
    def open(cls, root: str, container_id: str, *, locked: bool = False) -> "Container":
        """A container that is there. locked: no other command changes it meanwhile. Raises RuntimeFailure."""
        container = cls(root, container_id)
        if locked:
            container._take_lock(create=False)
        try:
            with open(f"{container.folder}/state.json", encoding="utf-8") as file:
                container.values = documents.loads(file.read())
        except FileNotFoundError:
            container.unlock()
            raise not_there(container_id) from None
        except (OSError, ValueError) as error:
            container.unlock()
            raise RuntimeFailure(f"read the state of container {container_id}: {reason(error)}") from None
        return container

    def make(self) -> None:
        """Makes the folder of a new container, locked. Raises RuntimeFailure where one of that ID exists."""
        try:
            try:
                os.mkdir(self.folder, 0o711)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self.folder), mode=0o711, exist_ok=True)
                os.mkdir(self.folder, 0o711)
        except FileExistsError:
            raise RuntimeFailure(f"container with given ID already exists: {self.id}") from None
        self._take_lock(create=True)

    def lock(self) -> None:
        """No other command changes it until `unlock`. Raises RuntimeFailure when it is gone."""
        self._take_lock(create=False)

    def _take_lock(self, *, create: bool) -> None:
        try:
            self._lock = os.open(f"{self.folder}/lock", os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        except (FileNotFoundError, NotADirectoryError):
            raise not_there(self.id) from None
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def note(self, name: str, text: str) -> None:
        """Writes a small file into the folder, in one go."""
        self._write(f"{name}.new", text)
        os.rename(f"{self.folder}/{name}.new", f"{self.folder}/{name}")

    def _write(self, name: str, text: str) -> None:
        descriptor = os.open(f"{self.folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def prepare(self) -> None:
        """Writes down what `publish` makes the container's state."""
        self._write("state.json.new", documents.dumps(self.values))

    def publish(self) -> None:
        """From now on the container exists for other commands."""
        os.rename(f"{self.folder}/state.json.new", f"{self.folder}/state.json")

    def remove_folder(self) -> None:
        for name in os.listdir(self.folder):
            os.unlink(f"{self.folder}/{name}")
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
        try:
            return pidfds.start_time(self.pid) == self.values["startTime"] and not pidfds.is_zombie(self.pid)
        except ProcessLookupError:
            return False

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


def not_there(container_id: str) -> RuntimeFailure:
    return RuntimeFailure(f"container does not exist: {container_id}")


def all_ids(root: str) -> list[str]:
    """The IDs of all containers, those of killed creates left out."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    return [name for name in names if os.path.exists(f"{root}/{name}/state.json")]


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

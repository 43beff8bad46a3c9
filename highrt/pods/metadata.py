"""Pods and containers on disk: SQLite with WAL and synchronous=FULL, so that what a call returned survives a crash.

Names are reserved by a UNIQUE column. A pod's row is written before anything is made for it and marked `complete` when all
is there: what a killed daemon left half-made is told by the row. A file of an older schema is brought up to date in one
transaction, after a copy of it was made beside it (`pods.db.v1`).
"""

import json
from pathlib import Path

import apsw

from highrt.pods.errors import PodError
from highrt.pods.model import Container, ContainerState, ContainerUser, Owner, Pod
from strata.protocols.cri_pb2 import ContainerConfig, PodSandboxConfig

_FIRST_SCHEMA = """
CREATE TABLE pods(
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, handler TEXT NOT NULL, config BLOB NOT NULL,
    ready INTEGER NOT NULL, complete INTEGER NOT NULL, created_at INTEGER NOT NULL, netns TEXT, ips TEXT NOT NULL,
    boot_id TEXT NOT NULL
) STRICT;
CREATE TABLE containers(
    id TEXT PRIMARY KEY, pod TEXT NOT NULL REFERENCES pods(id) ON DELETE CASCADE, name TEXT NOT NULL, config BLOB NOT NULL,
    image_id TEXT NOT NULL, image_ref TEXT NOT NULL, state TEXT NOT NULL, created_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL, finished_at INTEGER NOT NULL, exit_code INTEGER NOT NULL, reason TEXT NOT NULL,
    message TEXT NOT NULL, log_path TEXT NOT NULL, pid INTEGER NOT NULL, cgroup TEXT NOT NULL, stop_signal INTEGER NOT NULL,
    UNIQUE (pod, name)
) STRICT;
"""
_CHANGES = [
    "ALTER TABLE containers ADD COLUMN user TEXT NOT NULL DEFAULT 'null'",
]
"""What makes each version's schema the next one's."""

VERSION = 1 + len(_CHANGES)
"""The schema's version. A newer one is refused: its rows may mean something else."""


class NameTaken(Exception):
    """The reservation's holder: its ID."""


class Metadata:
    """One connection, used from the event loop's thread: each call takes less than a millisecond."""

    def __init__(self, path: Path) -> None:
        """Raises PodError where the file is of a newer version."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = apsw.Connection(str(path))
        self._db.set_busy_timeout(5000)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        version = int(next(iter(self._db.execute("PRAGMA user_version")))[0])
        if version > VERSION:
            raise PodError(f"{path} was written by a newer highrt (schema {version}, this one knows {VERSION}): upgrade highrt")
        if version < VERSION:
            self._upgrade(path, version)

    def _upgrade(self, path: Path, version: int) -> None:
        """From an older schema, or from none (0), to the present one."""
        if version:
            copy = path.with_name(f"{path.name}.v{version}")
            copy.unlink(missing_ok=True)
            self._db.execute("VACUUM INTO ?", (str(copy),))
        steps = _CHANGES[version - 1 :] if version else [_FIRST_SCHEMA, *_CHANGES]
        with self._db:
            for step in steps:
                self._db.execute(step)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        self._db.close()

    # pods

    def reserve_pod(self, pod: Pod, name: str, boot_id: str) -> None:
        """Writes the row of a pod that is being made. Raises NameTaken."""
        try:
            with self._db:
                self._db.execute(
                    "INSERT INTO pods VALUES (?, ?, ?, ?, ?, 0, 0, ?, ?, ?, ?)",
                    (pod.id, name, pod.owner.value, pod.handler, pod.config.SerializeToString(), pod.created_at_ns,
                     pod.netns, json.dumps(pod.ips), boot_id),
                )  # fmt: skip
        except apsw.ConstraintError:
            raise NameTaken(self._holder("SELECT id FROM pods WHERE name = ?", (name,))) from None

    def save_pod(self, pod: Pod) -> None:
        """What may change of a pod; the pod is complete from then on."""
        with self._db:
            self._db.execute(
                "UPDATE pods SET ready = ?, complete = 1, ips = ?, netns = ?, config = ? WHERE id = ?",
                (int(pod.ready), json.dumps(pod.ips), pod.netns, pod.config.SerializeToString(), pod.id),
            )

    def renew_pod(self, pod_id: str, boot_id: str) -> None:
        """Writes down that a pod is being made anew, in this boot."""
        with self._db:
            self._db.execute("UPDATE pods SET boot_id = ? WHERE id = ?", (boot_id, pod_id))

    def remove_pod(self, pod_id: str) -> None:
        with self._db:
            self._db.execute("DELETE FROM pods WHERE id = ?", (pod_id,))

    def pods(self) -> list[tuple[Pod, bool, str]]:
        """All of them: the pod, whether it is complete, and the boot in which it was made."""
        found = []
        query = "SELECT id, owner, handler, config, ready, complete, created_at, netns, ips, boot_id FROM pods"
        for row in self._db.execute(query):
            config = PodSandboxConfig.FromString(row[3])
            pod = Pod(row[0], Owner(row[1]), config, row[2], bool(row[4]), row[6], row[7], json.loads(row[8]))
            found.append((pod, bool(row[5]), str(row[9])))
        return found

    # containers

    def add_container(self, container: Container, name: str) -> None:
        """Raises NameTaken."""
        try:
            with self._db:
                self._db.execute(
                    f"INSERT INTO containers VALUES ({', '.join('?' * 18)})",
                    (container.id, container.pod_id, name, container.config.SerializeToString(), container.image_id,
                     container.image_ref, container.state.value, container.created_at_ns, container.started_at_ns,
                     container.finished_at_ns, container.exit_code, container.reason, container.message, container.log_path,
                     container.pid, container.cgroup, container.stop_signal, _user_text(container)),
                )  # fmt: skip
        except apsw.ConstraintError:
            query = "SELECT id FROM containers WHERE pod = ? AND name = ?"
            raise NameTaken(self._holder(query, (container.pod_id, name))) from None

    def save_container(self, container: Container) -> None:
        """What may change of a container."""
        with self._db:
            self._db.execute(
                "UPDATE containers SET state = ?, started_at = ?, finished_at = ?, exit_code = ?, reason = ?, message = ?, "
                "pid = ?, config = ?, user = ? WHERE id = ?",
                (container.state.value, container.started_at_ns, container.finished_at_ns, container.exit_code,
                 container.reason, container.message, container.pid, container.config.SerializeToString(),
                 _user_text(container), container.id),
            )  # fmt: skip

    def rename_container(self, container: Container, name: str) -> None:
        """Writes down that it has another name."""
        with self._db:
            query = "UPDATE containers SET name = ?, config = ? WHERE id = ?"
            self._db.execute(query, (name, container.config.SerializeToString(), container.id))

    def remove_container(self, container_id: str) -> None:
        with self._db:
            self._db.execute("DELETE FROM containers WHERE id = ?", (container_id,))

    def containers(self) -> list[Container]:
        query = (
            "SELECT c.id, c.pod, p.owner, c.config, c.image_id, c.image_ref, c.state, c.created_at, c.started_at, c.finished_at, "
            "c.exit_code, c.reason, c.message, c.log_path, c.pid, c.cgroup, c.stop_signal, c.user "
            "FROM containers c JOIN pods p ON p.id = c.pod"
        )
        found = []
        for row in self._db.execute(query):
            config = ContainerConfig.FromString(row[3])
            state = ContainerState(row[6])
            container = Container(row[0], row[1], Owner(row[2]), config, row[4], row[5], state, *row[7:17])
            container.user = _user(row[17])
            found.append(container)
        return found

    def _holder(self, query: str, arguments: tuple[str, ...]) -> str:
        for row in self._db.execute(query, arguments):
            return str(row[0])
        return "?"


def _user_text(container: Container) -> str:
    user = container.user
    return json.dumps(user and [user.uid, user.gid, user.groups])


def _user(text: str) -> ContainerUser | None:
    found = json.loads(text)
    return ContainerUser(found[0], found[1], tuple(found[2])) if found else None

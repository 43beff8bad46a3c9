"""What the content and the snapshots mean: images, the names they have, and which snapshot stands on which.

SQLite with WAL and synchronous=FULL: what a call has returned survives a crash. Snapshot IDs are small numbers that are
never used again, because they are the folder names in overlay's option lists. One process has one connection.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw

from highrt.images.errors import InvalidConfiguration, StorageFailed
from highrt.images.model import Descriptor

VERSION = 1
_DISK_FAILS = (apsw.FullError, apsw.ReadOnlyError, apsw.IOError, apsw.CantOpenError)

_SCHEMA = """
CREATE TABLE images(
    id TEXT PRIMARY KEY, manifest_type TEXT NOT NULL, manifest_digest TEXT NOT NULL, manifest_size INTEGER NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE names(
    reference TEXT PRIMARY KEY, target TEXT NOT NULL, image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
) STRICT;
CREATE TABLE snapshots(
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL CHECK (kind IN ('layer', 'rootfs')), name TEXT NOT NULL,
    parent INTEGER REFERENCES snapshots(id), image TEXT, ready INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0, inodes INTEGER NOT NULL DEFAULT 0, UNIQUE (kind, name)
) STRICT;
CREATE TABLE build_cache(
    key TEXT PRIMARY KEY, media_type TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, diff_id TEXT NOT NULL,
    created TEXT NOT NULL, details TEXT NOT NULL DEFAULT '{}'
) STRICT;
"""


@dataclass(frozen=True)
class ImageRow:
    id: str
    manifest: Descriptor
    pinned: bool


@dataclass(frozen=True)
class NameRow:
    """target: the digest that the registry gave for the name; of an index, where it is one."""

    reference: str
    target: str
    image: str


@dataclass(frozen=True)
class SnapshotRow:
    """name: the chain ID of a layer, or the key of a writable snapshot. image: what a writable snapshot was made for."""

    id: int
    kind: str
    name: str
    parent: int | None
    image: str | None
    ready: bool
    bytes: int
    inodes: int


@dataclass(frozen=True)
class CachedStep:
    layer: Descriptor
    diff_id: str
    created: str


class Metadata:
    """The database of one image root."""

    def __init__(self, path: Path) -> None:
        """Opens or makes it. Raises InvalidConfiguration where a newer version wrote it, StorageFailed where the disk fails."""
        try:
            self._open(path)
        except _DISK_FAILS as error:
            raise StorageFailed(f"cannot open {path}: {error}") from None

    def _open(self, path: Path) -> None:
        self._db = apsw.Connection(str(path))
        self._db.set_busy_timeout(5000)
        self._db.pragma("journal_mode", "wal")
        self._db.pragma("synchronous", "full")
        self._db.pragma("foreign_keys", True)
        version = self._db.pragma("user_version")
        if version > VERSION:
            self._db.close()
            raise InvalidConfiguration(f"{path} has schema version {version}, this highrt knows {VERSION}: use a newer highrt")
        if version < VERSION:
            with self._db:
                self._db.execute(_SCHEMA)
                self._db.pragma("user_version", VERSION)

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction. Raises StorageFailed where the disk does not take it; nothing of it has happened then."""
        try:
            with self._db:
                yield
        except _DISK_FAILS as error:
            raise StorageFailed(f"cannot write to {self._db.filename}: {error}") from None

    # images and names

    def put_image(self, image_id: str, manifest: Descriptor, names: dict[str, str], *, pinned: bool | None = None) -> None:
        """Records an image and names for it (reference → target digest), taking each name from whoever had it.

        pinned None leaves it as it is (False for a new image).
        """
        with self._writing():
            self._db.execute(
                """INSERT INTO images(id, manifest_type, manifest_digest, manifest_size, pinned)
                   VALUES (?, ?, ?, ?, ?5)
                   ON CONFLICT (id) DO UPDATE SET manifest_type = excluded.manifest_type, manifest_size = excluded.manifest_size,
                   manifest_digest = excluded.manifest_digest, pinned = coalesce(?6, pinned)""",
                (image_id, manifest.media_type, manifest.digest, manifest.size, bool(pinned), pinned),
            )
            for reference, target in names.items():
                self._db.execute(
                    "INSERT OR REPLACE INTO names(reference, target, image) VALUES (?, ?, ?)", (reference, target, image_id)
                )

    def images(self) -> list[ImageRow]:
        rows = self._db.execute("SELECT id, manifest_type, manifest_digest, manifest_size, pinned FROM images ORDER BY rowid")
        return [ImageRow(row[0], Descriptor(row[1], row[2], row[3]), bool(row[4])) for row in rows]

    def names(self) -> list[NameRow]:
        return [NameRow(*row) for row in self._db.execute("SELECT reference, target, image FROM names ORDER BY reference")]

    def target(self, reference: str) -> str | None:
        """The digest that the registry gave for a name."""
        for row in self._db.execute("SELECT target FROM names WHERE reference = ?", (reference,)):
            return str(row[0])
        return None

    def remove_names(self, references: list[str]) -> None:
        with self._writing():
            for reference in references:
                self._db.execute("DELETE FROM names WHERE reference = ?", (reference,))

    def remove_image(self, image_id: str) -> None:
        """Its names go with it."""
        with self._writing():
            self._db.execute("DELETE FROM images WHERE id = ?", (image_id,))

    # snapshots

    def new_snapshot(self, kind: str, name: str, parent: int | None, image: str | None = None) -> int:
        """Reserves an ID. The row is not ready, and dropped at the next start, until `snapshot_ready`."""
        with self._writing():
            self._db.execute("DELETE FROM snapshots WHERE kind = ? AND name = ? AND ready = 0", (kind, name))
            self._db.execute("INSERT INTO snapshots(kind, name, parent, image) VALUES (?, ?, ?, ?)", (kind, name, parent, image))
        return int(self._db.last_insert_rowid())

    def snapshot_ready(self, snapshot: int, size: int = 0, inodes: int = 0, parent: int | None = None) -> None:
        """parent: what a layer turned out to stand on; None leaves it as it is."""
        with self._writing():
            self._db.execute(
                "UPDATE snapshots SET ready = 1, bytes = ?, inodes = ?, parent = coalesce(?, parent) WHERE id = ?",
                (size, inodes, parent, snapshot),
            )

    def snapshot(self, kind: str, name: str) -> SnapshotRow | None:
        """The ready snapshot of a kind and name."""
        for row in self._db.execute(f"{_SELECT} WHERE kind = ? AND name = ? AND ready = 1", (kind, name)):
            return _snapshot(row)
        return None

    def snapshots(self) -> list[SnapshotRow]:
        """All of them, the ones that are not ready too, children after parents."""
        return [_snapshot(row) for row in self._db.execute(f"{_SELECT} ORDER BY id")]

    def ancestry(self, snapshot: int) -> list[int]:
        """The snapshot and those below it, topmost first."""
        rows = self._db.execute(
            """WITH RECURSIVE chain(id, parent, depth) AS (
                   SELECT id, parent, 0 FROM snapshots WHERE id = ?
                   UNION ALL SELECT s.id, s.parent, depth + 1 FROM snapshots s JOIN chain ON s.id = chain.parent)
               SELECT id FROM chain ORDER BY depth""",
            (snapshot,),
        )
        return [row[0] for row in rows]

    def remove_snapshot(self, snapshot: int) -> None:
        with self._writing():
            self._db.execute("DELETE FROM snapshots WHERE id = ?", (snapshot,))

    # layers that builds have made

    def cached_step(self, key: str) -> CachedStep | None:
        for row in self._db.execute("SELECT media_type, digest, size, diff_id, created FROM build_cache WHERE key = ?", (key,)):
            return CachedStep(Descriptor(row[0], row[1], row[2]), row[3], row[4])
        return None

    def forget_steps(self) -> None:
        """Of builds: the next ones execute all of theirs."""
        with self._writing():
            self._db.execute("DELETE FROM build_cache")

    def cache_step(self, key: str, step: CachedStep, details: dict[str, str]) -> None:
        """details: for people who look into the database."""
        with self._writing():
            self._db.execute(
                "INSERT OR REPLACE INTO build_cache VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    step.layer.media_type,
                    step.layer.digest,
                    step.layer.size,
                    step.diff_id,
                    step.created,
                    json.dumps(details),
                ),
            )

    def forget_steps_without(self, digests: set[str]) -> None:
        """Drops the cached steps whose layer is not among these."""
        with self._writing():
            for key, digest in list(self._db.execute("SELECT key, digest FROM build_cache")):
                if digest not in digests:
                    self._db.execute("DELETE FROM build_cache WHERE key = ?", (key,))


_SELECT = "SELECT id, kind, name, parent, image, ready, bytes, inodes FROM snapshots"


def _snapshot(row: tuple[int, str, str, int | None, str | None, int, int, int]) -> SnapshotRow:
    return SnapshotRow(row[0], row[1], row[2], row[3], row[4], bool(row[5]), row[6], row[7])

"""The content store: blobs by digest, as `ROOT/blobs/sha256/HEX`.

A blob is written to `ROOT/ingest/ALGORITHM-HEX` first. Only when its size and digest are right is it synced and renamed to
its place, so whatever lies under blobs is whole. An ingest file that a cut download left is picked up again by the next
one; a wrong digest deletes it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from highrt.images.errors import DigestMismatch, ImageNotFound, InvalidImage
from highrt.images.model import Descriptor, is_digest

CHUNK = 1 << 20
MAX_DOCUMENT = 4 << 20
"""Manifests, indexes and configurations larger than this are refused, as registries do."""


class ContentStore:
    """Blobs below a folder of their own. One process writes to it."""

    def __init__(self, root: Path) -> None:
        self._blobs, self._ingest = root / "blobs", root / "ingest"

    def open(self) -> None:
        """Makes the folders."""
        for algorithm in ("sha256", "sha512"):
            (self._blobs / algorithm).mkdir(parents=True, exist_ok=True)
        self._ingest.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        if not is_digest(digest):
            raise InvalidImage(f"{digest!r} is not a sha256 or sha512 digest")
        return self._blobs.joinpath(*digest.split(":"))

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def size(self, digest: str) -> int:
        """In bytes. Raises ImageNotFound."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise ImageNotFound(f"content {digest} is not in the store") from None

    def document(self, digest: str) -> dict[str, Any]:
        """A blob that is a JSON object. Raises ImageNotFound, InvalidImage."""
        if self.size(digest) > MAX_DOCUMENT:
            raise InvalidImage(f"{digest}: larger than {MAX_DOCUMENT} bytes, which no manifest or configuration is")
        return parse_document(self.path(digest).read_bytes(), digest)

    def write(self, digest: str) -> "Ingest":
        """Begins to write a blob, or goes on with one that was cut: `offset` says how much is there already."""
        self.path(digest)
        return Ingest(self.partial(digest), digest, self.path(digest))

    def partial(self, digest: str) -> Path:
        """Where a blob is while it is written."""
        return self._ingest / digest.replace(":", "-")

    def drop_partial(self, digest: str) -> None:
        """Deletes what is there of a blob that nobody writes any more."""
        self.partial(digest).unlink(missing_ok=True)

    def add(self, data: bytes, media_type: str) -> Descriptor:
        """Stores bytes that were made here."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not self.has(digest):
            with self.write(digest) as ingest:
                ingest.restart()
                ingest.append(data)
                ingest.commit(len(data))
        return Descriptor(media_type, digest, len(data))

    def add_file(self, path: Path, digest: str) -> None:
        """Takes over a file of this file system, whose digest the caller has computed while writing it."""
        _sync(path)
        os.rename(path, self.path(digest))
        _sync(self.path(digest).parent)

    def scratch(self, name: str) -> Path:
        """The path of a file or folder beside the ingests, for content whose digest is not known yet."""
        return self._ingest / f"new-{name}"

    def drop_scratch(self) -> None:
        """Deletes what a process that was killed left of `scratch`. Cut downloads stay."""
        for path in self._ingest.glob("new-*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def all(self) -> Iterator[str]:
        """The digests of all blobs."""
        for algorithm in ("sha256", "sha512"):
            for entry in os.scandir(self._blobs / algorithm):
                yield f"{algorithm}:{entry.name}"

    def remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def drop_cut_downloads(self, older_than: float) -> None:
        """Deletes ingest files that nobody went on with since a time (seconds since the epoch)."""
        for entry in os.scandir(self._ingest):
            if entry.is_file() and entry.stat().st_mtime < older_than:
                os.unlink(entry.path)

    def usage(self) -> tuple[int, int]:
        """Bytes and inodes of all blobs and cut downloads."""
        sizes = [
            entry.stat().st_size
            for folder in (self._blobs / "sha256", self._blobs / "sha512", self._ingest)
            for entry in os.scandir(folder)
        ]
        return sum(sizes), len(sizes)


class Ingest:
    """A blob while it is written. Leaving the block keeps what is there for another try; commit moves it to its place."""

    def __init__(self, path: Path, digest: str, destination: Path) -> None:
        self.digest = digest
        self._path, self._destination = path, destination
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by the block's end)
        self._hash = hashlib.new(digest.partition(":")[0])
        self.offset = 0

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def resume(self) -> None:
        """Hashes what an earlier try wrote, so that writing can go on at `offset`. It reads: call it in a thread."""
        self.offset = 0
        self._hash = hashlib.new(self.digest.partition(":")[0])
        self._file.seek(0)
        while chunk := self._file.read(CHUNK):
            self._hash.update(chunk)
            self.offset += len(chunk)

    def restart(self) -> None:
        """Forgets what is there."""
        self._file.truncate(0)
        self._hash = hashlib.new(self.digest.partition(":")[0])
        self.offset = 0

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def matches(self, size: int) -> bool:
        """Whether what was written has this size and the digest."""
        return self.offset == size and self._found == self.digest

    @property
    def _found(self) -> str:
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def commit(self, size: int) -> None:
        """Puts the blob in its place. Raises DigestMismatch, and leaves nothing, where it is not what was asked for."""
        if not self.matches(size):
            self._path.unlink(missing_ok=True)
            what = f"{self.offset} bytes instead of {size}" if self.offset != size else f"digest {self._found}"
            raise DigestMismatch(f"content {self.digest} was refused: what came has {what}. Nothing of it was kept")
        self._file.flush()
        os.fsync(self._file.fileno())
        os.rename(self._path, self._destination)
        _sync(self._destination.parent)


def parse_document(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in some bytes. Raises InvalidImage."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidImage(f"{what} is not a JSON object")
    return value


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

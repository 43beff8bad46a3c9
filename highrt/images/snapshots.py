"""Snapshots on overlayfs: `ROOT/ID/fs` is an unpacked layer, or with `ROOT/ID/work` a container's writable layer.

A layer is unpacked once, under its chain ID. Its row in the metadata is ready only after its files are on disk, so what a
killed process left half-done is told by the row, and removed at the next start. IDs are short and never used again: an
image of 100 layers has a list of 100 relative names in its mount options, which must fit one page (mount(2)).
"""

import asyncio
import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from highrt.images.errors import ImageError, ImageInUse, StorageFailed
from highrt.images.locks import KeyedLocks
from highrt.images.metadata import Metadata, SnapshotRow
from highrt.images.model import Applied
from highrt.images.offload import Workers
from strata.linux import mounts, namespaces, syscalls
from strata.telemetry import logs
from strata.telemetry.spans import span

log = logs.get("highrt.snapshots")

_CLONE_FS = 0x200
Parent = Callable[[], Awaitable[int | None]]
Bring = Callable[[Path], Awaitable[Applied]]
_PAGE = 4096


@dataclass(frozen=True)
class Rootfs:
    """A container's root: the folders that overlayfs joins. lower: topmost first."""

    lower: tuple[Path, ...]
    upper: Path
    work: Path

    def mount(self, target: str | Path, user_namespace: str = "") -> None:
        """Mounts it in the caller's mount namespace. Raises OSError, ImageError where the list is too long for a mount.

        user_namespace: the file of one in which the files shall have the owners that they have on disk, also those that are
        made there; "" for the host's own.
        """
        self._mount(target, user_namespace, 0, f"lowerdir={self._names(*self.lower)},upperdir={self._names(self.upper)},"
                               f"workdir={self._names(self.work)}")  # fmt: skip

    def mount_read_only(self, target: str | Path, user_namespace: str = "") -> None:
        """Mounts it for reading alone, as it is now. Raises as `mount` does."""
        # overlayfs wants two layers where there is none to write to; with the writable one there are always two
        self._mount(target, user_namespace, mounts.RDONLY, f"lowerdir={self._names(self.upper, *self.lower)}")

    def _names(self, *paths: Path) -> str:
        """Relative to the snapshots' folder, names have a few characters: hundreds fit, and no path of the machine's needs
        overlay's escapes."""
        return ":".join(str(path.relative_to(self._base)) for path in paths)

    def _mount(self, target: str | Path, user_namespace: str, flags: int, layers: str) -> None:
        # A container's changes stay plain files: without redirects and metadata-only copies, an upper folder can be
        # packed as a layer, and no layer can smuggle such attributes in.
        data = f"{layers},redirect_dir=off,metacopy=off"
        if len(data) >= _PAGE:
            raise ImageError(f"the image has {len(self.lower)} layers, more than one mount can hold: rebuild it with fewer")
        if user_namespace:
            _mount_mapped(self._base, os.path.abspath(target), user_namespace, flags, data)
        else:
            _mount_from(self._base, os.path.abspath(target), flags, data)

    @property
    def _base(self) -> Path:
        return self.upper.parents[1]

    def unmount(self, target: str | Path) -> None:
        """Takes the mount away; none there is fine."""
        with contextlib.suppress(FileNotFoundError):
            try:
                mounts.umount(str(target), mounts.DETACH)
            except OSError as error:
                if error.errno != errno.EINVAL:  # not a mount point
                    raise


def _mount_from(base: Path, target: str, flags: int, data: str) -> None:
    """mount(2) with options relative to a folder: that of the process stays."""

    def run() -> None:
        syscalls.unshare(_CLONE_FS)
        os.chdir(base)
        mounts.mount("overlay", target, "overlay", flags, data)

    _in_thread(run)


def _mount_mapped(base: Path, target: str, user_namespace: str, flags: int, data: str) -> None:
    """The same over an ID-mapped mount of the folder (mount_setattr(2), MOUNT_ATTR_IDMAP).

    overlayfs takes layers only from mounts that are attached (before Linux 6.15), so this is done in a mount namespace that ends
    with its thread: nothing stays behind whenever this process is killed. What was mounted there is brought out as a copy.
    """
    made: list[int] = []

    def run() -> None:
        syscalls.unshare(_CLONE_FS | namespaces.NEWNS)
        mounts.mount("", "/", "", mounts.PRIVATE | mounts.REC)
        tree = mounts.copy_tree(syscalls.AT_FDCWD, str(base), recursive=False)
        owner = os.open(user_namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.mount_setattr(tree, recursive=False, set_=mounts.ATTRIBUTE_IDMAP, userns=owner)
            below = os.open(base, os.O_PATH | os.O_CLOEXEC)
            mounts.move(tree, below)
            os.close(below)
            os.chdir(base)
            # overlayfs makes its own files as who mounts it, and those must have an ID on disk
            root = os.stat(".")
            syscalls.setfsids(root.st_uid, root.st_gid)
            mounts.mount("overlay", target, "overlay", flags, data)
            made.append(mounts.copy_tree(syscalls.AT_FDCWD, target, recursive=False))
        finally:
            os.close(owner)
            os.close(tree)

    _in_thread(run)
    place = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        mounts.move(made[0], place)
    finally:
        os.close(place)
        os.close(made[0])


def _in_thread(run: Callable[[], None]) -> None:
    """Runs something in a thread that may have a working directory and namespaces of its own. Raises its OSError."""
    failure: list[OSError] = []

    def guarded() -> None:
        try:
            run()
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=guarded, name="mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


class Snapshots:
    """The snapshots of one image root."""

    def __init__(self, root: Path, metadata: Metadata, workers: Workers) -> None:
        self._root, self._metadata, self._workers = root, metadata, workers
        self._locks = KeyedLocks()

    def open(self) -> None:
        """Removes what killed processes left: rows that never became ready, and folders that no row names."""
        self._root.mkdir(parents=True, exist_ok=True)
        for row in reversed(self._metadata.snapshots()):
            if not row.ready:
                self._metadata.remove_snapshot(row.id)
        known = {str(row.id) for row in self._metadata.snapshots()}
        for entry in os.scandir(self._root):
            if entry.name not in known:
                log.info("removing an unfinished snapshot", snapshot=entry.name)
                remove_tree(Path(entry.path))

    def folder(self, snapshot: int) -> Path:
        return self._root / str(snapshot) / "fs"

    def layer(self, chain_id: str) -> SnapshotRow | None:
        return self._metadata.snapshot("layer", chain_id)

    async def unpack(self, chain_id: str, parent: Parent, diff_id: str, bring: Bring) -> int:
        """The snapshot of a chain of layers, unpacked where it is not there. Wanted twice at once, it is done once.

        parent: gives the snapshot of the chain below, or None; it is asked for when the layer's own files are there, so that
        layers are unpacked side by side. bring: unpacks into a folder; called where the layer is not here. Raises DigestMismatch,
        InvalidImage and what the two raise; nothing is left then.
        """
        # A layer's lock is held while those below it are waited for, never the other way around: there is no circle.
        async with self._locks.hold(chain_id):
            if found := self.layer(chain_id):
                return found.id
            snapshot = self._metadata.new_snapshot("layer", chain_id, None)
            folder = self.folder(snapshot)
            try:
                with span("unpack layer", diff_id=diff_id):
                    folder.mkdir(parents=True)
                    done = await bring(folder)
                    below = await parent()
                    lower = [self.folder(row) for row in self._metadata.ancestry(below)] if below is not None else []
                    await self._workers.finish_layer(folder, below=lower, root=not done.complete)
                self._metadata.snapshot_ready(snapshot, done.bytes, done.inodes, parent=below)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(remove_tree, self._root / str(snapshot)))
                self._forget_unfinished(snapshot)
                raise
            return snapshot

    def _forget_unfinished(self, snapshot: int) -> None:
        """Removes the row of a snapshot whose files are gone. On a full disk it may stay: one that is not ready is none to
        anybody, and goes when the same is made again, or at the next start."""
        with contextlib.suppress(StorageFailed):
            self._metadata.remove_snapshot(snapshot)

    async def prepare(self, key: str, parent: int | None, image: str | None) -> Rootfs:
        """A writable snapshot on a layer (None: on nothing); the same one for the same key."""
        async with self._locks.hold(f"rootfs {key}"):
            row = self._metadata.snapshot("rootfs", key)
            if row is not None:
                if row.parent != parent:
                    raise ImageInUse(f"snapshot {key!r} stands on another image: release it first")
                return self._rootfs(row)
            snapshot = self._metadata.new_snapshot("rootfs", key, parent, image)
            try:
                upper = self.folder(snapshot)
                upper.mkdir(parents=True)
                (upper.parent / "work").mkdir(mode=0o700)
                os.chmod(upper, 0o755)
                if parent is None:
                    (upper.parent / "empty").mkdir()
                else:
                    # The mounted root's own attributes are those of the upper folder.
                    like = os.stat(self.folder(parent))
                    os.chown(upper, like.st_uid, like.st_gid)
                    os.chmod(upper, stat.S_IMODE(like.st_mode))
                self._metadata.snapshot_ready(snapshot)
            except BaseException:
                remove_tree(self._root / str(snapshot))
                self._forget_unfinished(snapshot)
                raise
            row = self._metadata.snapshot("rootfs", key)
            assert row is not None
            return self._rootfs(row)

    def rootfs(self, key: str) -> Rootfs | None:
        row = self._metadata.snapshot("rootfs", key)
        return self._rootfs(row) if row else None

    def _rootfs(self, row: SnapshotRow) -> Rootfs:
        folder = self._root / str(row.id)
        chain = self._metadata.ancestry(row.parent) if row.parent is not None else []
        lower = tuple(self.folder(snapshot) for snapshot in chain) or (folder / "empty",)
        return Rootfs(lower, folder / "fs", folder / "work")

    async def release(self, key: str) -> None:
        """Removes a writable snapshot; none there is fine."""
        async with self._locks.hold(f"rootfs {key}"):
            if row := self._metadata.snapshot("rootfs", key):
                await self._remove(row.id)

    async def collect(self, chain_ids: set[str]) -> None:
        """Removes the layers that are neither in these chains nor below a writable snapshot."""
        rows = self._metadata.snapshots()
        parents = {row.id: row.parent for row in rows}
        needed: set[int] = set()
        for row in rows:
            if row.kind == "rootfs" or row.name in chain_ids or not row.ready:
                at: int | None = row.id
                while at is not None and at not in needed:
                    needed.add(at)
                    at = parents[at]
        unneeded = [row.id for row in reversed(rows) if row.id not in needed]
        # All rows go at once, so that nothing can begin to stand on a layer that is about to go.
        for snapshot in unneeded:
            self._metadata.remove_snapshot(snapshot)
        for snapshot in unneeded:
            await asyncio.to_thread(remove_tree, self._root / str(snapshot))

    async def _remove(self, snapshot: int) -> None:
        folder = self._root / str(snapshot)
        try:
            # The row first: a folder without one is removed at the next start, a row without its folder would be a lie.
            self._metadata.remove_snapshot(snapshot)
        except StorageFailed:
            # On a full disk the row can go only when there is room again.
            await asyncio.to_thread(remove_tree, folder)
            self._metadata.remove_snapshot(snapshot)
            return
        await asyncio.to_thread(remove_tree, folder)

    def users(self, image: str) -> list[str]:
        """The keys of the writable snapshots that were made for an image."""
        return [row.name for row in self._metadata.snapshots() if row.kind == "rootfs" and row.image == image]

    def usage(self) -> tuple[int, int]:
        """Bytes and inodes of all unpacked layers, as counted when they were unpacked."""
        rows = [row for row in self._metadata.snapshots() if row.kind == "layer"]
        return sum(row.bytes for row in rows), sum(row.inodes for row in rows)


def remove_tree(path: Path) -> None:
    """Deletes a folder, however it was left. Files with the immutable attribute stay, and are told in the log."""

    def failed(_: object, name: str, error: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(error[1], FileNotFoundError):
            log.warning("cannot remove a file of a snapshot", path=name, error=str(error[1]))

    try:
        shutil.rmtree(path, onerror=failed)
    except RecursionError:
        _flatten(str(path))
        shutil.rmtree(path, onerror=failed)


def _flatten(path: str) -> None:
    """Moves all directories below a folder up into it, so that a tree of any depth can be removed."""
    fresh = (os.path.join(path, f"{uuid.uuid4().hex}-{number}") for number in itertools.count())
    waiting = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(next(fresh))
                os.rename(entry.path, waiting[-1])


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ID of each layer with all those below it (image-spec, config.md, Layer ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest() if chain else diff_id)
    return chain

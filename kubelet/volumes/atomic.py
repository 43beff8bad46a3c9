"""Files of a volume, replaced all at once.

    VOLUME/..2026_01_02_…/a        the files
    VOLUME/..data -> ..2026_…      the one link that an update swings, by rename
    VOLUME/a -> ..data/a           what containers open

A reader that goes through `..data` sees the old files or the new ones, never a mix; programs watch `..data` to reload.
"""

import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

DATA = "..data"


@dataclass(frozen=True)
class File:
    """A file's content, its mode, and its owner (None: root)."""

    content: bytes
    mode: int = 0o644
    uid: int | None = None


def write(volume: Path, files: dict[str, File], group: int | None = None) -> bool:
    """Makes the volume hold exactly these files; False where it did already.

    files: by relative path, which must stay below the volume (ValueError). group: the pod's fsGroup, which may read all.
    """
    for path in files:
        if path.startswith(("/", "..")) or ".." in path.split("/") or not path:
            raise ValueError(f"path {path!r}: must be relative and must not contain '..'")
    volume.mkdir(parents=True, exist_ok=True)
    current = volume / DATA
    if current.is_dir() and _same(current, files, group):
        return False
    stamp = time.strftime("..%Y_%m_%d_%H_%M_%S.", time.gmtime()) + secrets.token_hex(4)
    fresh = volume / stamp
    fresh.mkdir(mode=0o755)
    os.chmod(fresh, 0o755)
    try:
        for path, file in files.items():
            _write_file(fresh, path, file, group)
        if group is not None:
            _share(fresh, group)
        old = os.readlink(current) if current.is_symlink() else None
        temporary = volume / "..data_tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(stamp)
        temporary.rename(current)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _link(volume, {path.split("/")[0] for path in files})
    if old:
        shutil.rmtree(volume / old, ignore_errors=True)
    return True


def _write_file(folder: Path, path: str, file: File, group: int | None) -> None:
    target = folder / path
    for parent in reversed(target.relative_to(folder).parents[:-1]):
        (folder / parent).mkdir(exist_ok=True)
        os.chmod(folder / parent, 0o755)
    target.write_bytes(file.content)
    if file.uid is not None:
        os.chown(target, file.uid, -1)
    if group is not None:
        os.chown(target, -1, group)
    os.chmod(target, _mode(file, group))


def _mode(file: File, group: int | None) -> int:
    """A group that shares the volume may read its files."""
    return file.mode | 0o440 if group is not None else file.mode


def _share(folder: Path, group: int) -> None:
    for where, _, _ in os.walk(folder):
        os.chown(where, -1, group)


def _same(current: Path, files: dict[str, File], group: int | None) -> bool:
    found = set()
    for where, _, names in os.walk(current):
        for name in names:
            path = Path(where, name)
            relative = str(path.relative_to(current))
            file = files.get(relative)
            if file is None or (path.stat().st_mode & 0o7777) != _mode(file, group) or path.read_bytes() != file.content:
                return False
            found.add(relative)
    return found == files.keys()


def _link(volume: Path, names: set[str]) -> None:
    for name in names:
        link, target = volume / name, f"{DATA}/{name}"
        if not (link.is_symlink() and os.readlink(link) == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    for entry in os.scandir(volume):
        if not entry.name.startswith("..") and entry.name not in names and entry.is_symlink():
            os.unlink(entry.path)

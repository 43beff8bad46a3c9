"""emptyDir and hostPath: directories that a pod gets as they are."""

import os
import stat
from pathlib import Path
from typing import Any

from kubelet.volumes.errors import VolumeError
from strata.kubeclient.quantity import to_bytes
from strata.linux import mounts


def make_empty_dir(path: Path, source: dict[str, Any], memory_limit_bytes: int, group: int | None) -> None:
    """Makes an emptyDir, on disk or (medium Memory) as a tmpfs no larger than its size limit and the pod's memory limit.

    Raises VolumeError for another medium.
    """
    if source.get("medium") not in (None, "", "Memory"):
        raise VolumeError(f"emptyDir medium {source['medium']} is not supported by this kubelet")
    path.mkdir(parents=True, exist_ok=True)
    if source.get("medium") == "Memory" and not os.path.ismount(path):
        limits = [to_bytes(source.get("sizeLimit") or 0), memory_limit_bytes]
        size = min((limit for limit in limits if limit), default=0)
        mounts.mount("tmpfs", str(path), "tmpfs", 0, f"size={size}" if size else "")
    os.chmod(path, 0o777)
    if group is not None:
        os.chown(path, -1, group)
        os.chmod(path, 0o2777)


def make_memory_dir(path: Path) -> None:
    """Makes a small tmpfs for secrets, which must not reach a disk."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(path):
        mounts.mount("tmpfs", str(path), "tmpfs", mounts.NOSUID | mounts.NODEV, "mode=0755")


_CHECKS = {
    "Directory": (stat.S_ISDIR, "a directory"),
    "File": (stat.S_ISREG, "a file"),
    "Socket": (stat.S_ISSOCK, "a socket"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
}


def check_host_path(source: dict[str, Any]) -> Path:
    """The path of a hostPath, made where its type says so. Raises VolumeError where it is not what its type says."""
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate" and not path.exists():
        path.mkdir(mode=0o755, parents=True)
    elif kind == "FileOrCreate" and not path.exists():
        path.touch(mode=0o644)
    check = _CHECKS.get(kind.removesuffix("OrCreate"))
    if check is not None:
        is_it, what = check
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise VolumeError(f"hostPath type check failed: {path} is not {what}") from error
        if not is_it(mode):
            raise VolumeError(f"hostPath type check failed: {path} is not {what}")
    elif kind:
        raise VolumeError(f"hostPath type {kind!r} is not known")
    return path

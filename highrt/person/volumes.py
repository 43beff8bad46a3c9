"""Named volumes: folders in ROOT/volumes, which outlive the containers that mount them."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from highrt.person.flags import NAME
from highrt.pods.errors import FailedPrecondition, InvalidArgument, NotFound
from highrt.pods.model import Container


class Volumes:
    """All volumes. folder: they lie in it, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Path]:
        """Sorted by name."""
        return sorted(self._folder.iterdir()) if self._folder.is_dir() else []

    def create(self, name: str) -> Path:
        """Makes one, where there is none of that name. Raises InvalidArgument."""
        path = self._path(name)
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
        return path

    def find(self, name: str) -> Path:
        """Raises NotFound, InvalidArgument."""
        path = self._path(name)
        if not path.is_dir():
            raise NotFound(f"there is no volume {name} (highrt volume ls lists them)")
        return path

    def named(self, path: str) -> str:
        """A volume's name, of its folder; of another path, that."""
        folder, _, name = path.rpartition("/")
        return name if folder == str(self._folder) else path

    def users(self, path: Path, containers: Iterable[Container]) -> list[Container]:
        """The containers that mount one, also those that do not run."""
        return [item for item in containers if any(mount.host_path == str(path) for mount in item.config.mounts)]

    def remove(self, name: str, containers: Iterable[Container]) -> None:
        """Removes one with all that is in it. Raises NotFound, FailedPrecondition where a container mounts it."""
        path = self.find(name)
        if users := self.users(path, containers):
            names = ", ".join(item.config.metadata.name for item in users)
            raise FailedPrecondition(f"volume {name} is used by {names}: remove that first (highrt rm)")
        shutil.rmtree(path)

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise InvalidArgument(f"volume {name!r}: a name has letters, digits, '_', '.', '-', the first one a letter or digit")
        return self._folder / name


def size(folder: str | Path) -> int:
    """What the files below a folder take on the disk, in bytes."""
    total, seen = 0, set()
    for path, names, files in os.walk(folder):
        for name in (*names, *files):
            try:
                status = os.lstat(os.path.join(path, name))
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total

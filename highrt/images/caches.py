"""The folders of `RUN --mount=type=cache`: what package managers and compilers keep from one build to the next.

`ROOT/NAME`, with a name made of the cache's id. They belong to no image: only `prune` removes them.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from highrt.images.locks import KeyedLocks
from highrt.images.snapshots import remove_tree


class Caches:
    """The caches of one image root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks = KeyedLocks()
        self._users: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def hold(self, identity: str, sharing: str, mode: int, uid: int, gid: int) -> AsyncIterator[tuple[Path, bool]]:
        """A cache's folder for the block, and whether it is new.

        sharing: shared (by any number of steps at once), locked (one step after the other), private (a step that finds it in use
        gets another). mode, uid, gid: of a new folder.
        """
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        if sharing == "private":
            name = next(f"{name}.{n}" for n in range(len(self._users) + 1) if f"{name}.{n}" not in self._users)
        async with contextlib.AsyncExitStack() as stack:
            if sharing == "locked":
                await stack.enter_async_context(self._locks.hold(name))
            self._users[name] = self._users.get(name, 0) + 1
            try:
                folder = self._root / name
                new = not folder.exists()
                if new:
                    self._root.mkdir(exist_ok=True, mode=0o700)
                    folder.mkdir()
                    os.chown(folder, uid, gid)
                    os.chmod(folder, mode)
                yield folder, new
            finally:
                self._users[name] -= 1
                if not self._users[name]:
                    del self._users[name]

    async def prune(self) -> int:
        """Removes those that no step uses. Returns the bytes that this freed."""
        freed = 0
        for folder in [*self._root.iterdir()] if self._root.is_dir() else []:
            if folder.name not in self._users:
                freed += await asyncio.to_thread(_size, folder)
                await asyncio.to_thread(remove_tree, folder)
        return freed

    def usage(self) -> int:
        """The bytes that all take. It walks through them: call it in a thread."""
        return _size(self._root)


def _size(folder: Path) -> int:
    return sum(os.lstat(os.path.join(path, name)).st_blocks * 512 for path, _, names in os.walk(folder) for name in names)

"""Races against lowrt while it makes a root file system: a process that exchanges names in a loop, and many tries beside it.

A try runs lowrt's own code (`lowrt.rootfs`) in a forked process with a mount namespace of its own, a hundred times as often in a
minute as a whole container could be made. What it may never do is looked for from inside, before that namespace is gone.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowrt import rootfs
from lowrt.errors import RuntimeFailure
from strata.linux import mounts, namespaces, syscalls

_RENAMEAT2 = 316 if os.uname().machine == "x86_64" else 276
_EXCHANGE = 2
_PR_SET_PDEATHSIG = 1
_MOST_SECONDS = 20  # for a try


def exchange(one: Path, other: Path) -> None:
    """Swaps what two names stand for, in one step (renameat2(2), RENAME_EXCHANGE)."""
    here = syscalls.AT_FDCWD
    syscalls.call(_RENAMEAT2, here, os.fsencode(one), here, os.fsencode(other), _EXCHANGE)


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """An attacker: exchanges two names as fast as it can, for as long as the block lasts."""
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.nice(5)
            while True:
                exchange(one, other)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Tries:
    """How tries ended: "made" (all that was asked for), "refused" (with a clean error), and what they did besides."""

    def __init__(self) -> None:
        self.made = self.refused = 0
        self.escapes: list[str] = []


Look = Callable[[set[int], bool], list[str]]
"""Gets the IDs of all mounts that were there before, and whether all was made; returns what went wrong."""


def many(count: int, make: Callable[[], object], look: Look) -> Tries:
    """Calls `make` that often, each time in a mount namespace of its own, and then `look`."""
    tries = Tries()
    for _ in range(count):
        outcome, *escapes = _one(make, look)
        tries.made += outcome == "made"
        tries.refused += outcome == "refused"
        tries.escapes += escapes
        assert outcome in ("made", "refused"), outcome
    return tries


def _one(make: Callable[[], object], look: Look) -> list[str]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.alarm(_MOST_SECONDS)
            os.close(read)
            outcome = "made"
            syscalls.unshare(namespaces.NEWNS)
            mounts.mount("", "/", "", mounts.PRIVATE | mounts.REC)
            before = {mount.id for mount in mounts.mountinfo()}
            try:
                make()
            except (RuntimeFailure, OSError):
                outcome = "refused"
            os.write(write, "\n".join([outcome, *look(before, outcome == "made")]).encode()[:4000])
        except BaseException:
            os.write(write, traceback.format_exc().replace("\n", " ").encode()[-4000:])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text.split("\n")


def lowrts_way(spec: dict[str, Any], root: Path) -> Callable[[], rootfs.Rootfs]:
    """What the container's first process does between clone and pivot_root."""

    def make() -> rootfs.Rootfs:
        making = rootfs.Rootfs(spec, str(root), [], str(root.parent))
        making.prepare()
        making.restrict()
        return making

    return make


def outside(root: Path) -> Look:
    """Finds mounts that are neither below the root nor were there before."""

    def look(before: set[int], _: bool) -> list[str]:
        new = [mount.target for mount in mounts.mountinfo() if mount.id not in before]
        return [f"mounted {target}" for target in new if target != str(root) and not target.startswith(f"{root}/")]

    return look

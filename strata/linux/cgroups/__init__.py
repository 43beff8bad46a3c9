"""Control groups, v1, v2 and hybrid behind one narrow interface.

    group = cgroups.open_cgroup("/strata/default/kubepods/pod1/c1")
    group.create(); group.apply({"memory": {"limit": 2**20 * 100}}); group.add(pid); …; group.kill(); group.remove()

A path is relative to the root of every hierarchy: on a v1 or hybrid machine (v1 controllers, and a v2 tree at
`/sys/fs/cgroup/unified`) it is made in each. Resources are those of the OCI runtime spec (config-linux, Control Groups), as
plain dicts. `v1` and `v2` hold the two worlds; no other module asks which one it is in, but by `mode`.
"""

import os

from strata.linux.cgroups.common import Cgroup, Stats
from strata.linux.cgroups.v1 import CgroupV1
from strata.linux.cgroups.v2 import CgroupV2

__all__ = ["ROOT", "Cgroup", "Stats", "mode", "open_cgroup", "own_path"]

ROOT = "/sys/fs/cgroup"
_CGROUP2_MAGIC = 0x63677270


def mode() -> str:
    """v2 where the unified tree is the root, hybrid where it stands beside v1's, else v1."""
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return "v2"
    return "hybrid" if os.path.exists(f"{ROOT}/unified/cgroup.procs") else "v1"


def open_cgroup(path: str) -> Cgroup:
    """The cgroup of that path in every hierarchy, whether it exists or not.

    Raises ValueError for a path that leaves the hierarchy or names its root.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise ValueError(f"cgroup path {path!r}: must name a group below the root")
    clean = "/" + "/".join(parts)
    return CgroupV2(ROOT, clean) if mode() == "v2" else CgroupV1(ROOT, clean)


def own_path(pid: int | str = "self") -> str:
    """The path of a process's cgroup: in the v2 tree, or in that of the memory (else the first) controller of v1.

    On v1 it is "/" where some hierarchy lacks that group: a group below it would have to make it there, and who would
    take it away again?
    """
    first = ""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    for number, controllers, path in lines:
        if mode() == "v2" and number == "0":
            return path
        if "memory" in controllers.split(","):
            first = path
        first = first or path
    return first if first in ("", "/") or all(map(os.path.isdir, open_cgroup(first).folders())) else "/"

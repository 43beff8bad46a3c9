"""Control groups, v1, v2 and hybrid behind one narrow interface.

    group = cgroups.open_cgroup("/strata/default/kubepods/pod1/c1")
    group.create(); group.apply({"memory": {"limit": 2**20 * 100}}); group.add(pid); …; group.kill(); group.remove()

A path is relative to the root of every hierarchy: on a v1 or hybrid machine (v1 controllers, and a v2 tree at
`/sys/fs/cgroup/unified`) it is made in each. Resources are those of the OCI runtime spec (config-linux, Control Groups), as
plain dicts. `v1` and `v2` hold the two worlds; no other module asks which one it is in, but by `mode`. `systemd` has groups
that a service manager makes (it is imported by who wants one).
"""

import os

from strata.linux.cgroups.common import Cgroup, Stats, join_opened, read
from strata.linux.cgroups.v1 import UNIFIED, CgroupV1, hierarchies
from strata.linux.cgroups.v2 import CgroupV2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "ROOT",
    "Cgroup",
    "Stats",
    "below_own",
    "has",
    "in_every_hierarchy",
    "join_opened",
    "mode",
    "open_cgroup",
    "own_path",
    "restore",
]

ROOT = "/sys/fs/cgroup"


def mode() -> str:
    """v2 where the unified tree is the root, hybrid where it stands beside v1's, else v1."""
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return "v2"
    return "hybrid" if os.path.exists(f"{ROOT}/unified/cgroup.procs") else "v1"


def has(controller: str) -> bool:
    """Whether the machine has a controller, in whichever hierarchy (cgroups(7))."""
    if mode() != "v2" and controller in hierarchies(ROOT):
        return True
    tree = ROOT if mode() == "v2" else f"{ROOT}/unified"
    return controller in read(f"{tree}/cgroup.controllers", "").split()


def open_cgroup(path: str) -> Cgroup:
    """The cgroup of that path in every hierarchy, whether it exists or not.

    Raises ValueError for a path that leaves the hierarchy or names its root.
    """
    clean = _clean(path)
    return CgroupV2(f"{ROOT}{clean}") if mode() == "v2" else CgroupV1(in_every_hierarchy(clean))


def in_every_hierarchy(path: str) -> dict[str, str]:
    """v1: controller → the folder of that path; "" is the v2 tree beside them."""
    return {controller: f"{folder}{path}" for controller, folder in hierarchies(ROOT).items()}


def below_own(path: str) -> Cgroup:
    """The cgroup of that relative path beside this process's own (v2, where a group with processes has no others below it),
    or below it (v1, in each hierarchy where the process is there). Raises ValueError as `open_cgroup`.
    """
    clean = _clean(path)
    if mode() == "v2":
        return CgroupV2(f"{ROOT}{os.path.dirname(own_path()).rstrip('/')}{clean}")
    own = _own_paths("self")
    paths = {}
    for controller, folder in hierarchies(ROOT).items():
        parent = own.get(controller, own.get(f"name={controller}", "/")).rstrip("/")
        if parent and not os.path.isdir(f"{folder}{parent}"):
            parent = _inside_mount(folder, parent)
        paths[controller] = f"{folder}{parent}{clean}"
    return CgroupV1(paths)


def restore(remembered: "dict[str, Any]") -> Cgroup:
    """The cgroup that `Cgroup.remember` told of."""
    paths: dict[str, str] = remembered["paths"]
    if "unit" in remembered:
        from strata.linux.cgroups import systemd

        return systemd.restore(remembered)
    return CgroupV1(paths) if set(paths) - {UNIFIED} else CgroupV2(paths.get("", ""))


def own_path(pid: int | str = "self") -> str:
    """The path of a process's cgroup: in the v2 tree, or in that of the memory (else the first) controller of v1."""
    found = _own_paths(pid)
    if mode() == "v2":
        return found.get("", "/")
    return found.get("memory") or next((path for path in found.values()), "/")


def _own_paths(pid: int | str) -> dict[str, str]:
    """Controller (or name=NAME, or "" for v2) → the path of a process's cgroup."""
    found = {}
    for line in read(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _inside_mount(folder: str, path: str) -> str:
    """A path of the host's, where a container without a cgroup namespace has only a part of the hierarchy mounted."""
    from strata.linux import mounts

    for mounted in mounts.mountinfo():
        root = mounted.root.rstrip("/")
        if mounted.target == folder and f"{path}/".startswith(f"{root}/"):
            return path.removeprefix(root)
    return ""


def _clean(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise ValueError(f"cgroup path {path!r}: must name a group below the root")
    return "/" + "/".join(parts)

"""Where the cgroups of a pod's containers lie, by the driver that the pod's cgroup_parent speaks of.

A parent whose last name ends in `.slice` is systemd's: each container is a transient scope in it, which the runtime has systemd
make (a kubelet with the systemd driver gives the slice's whole path). Any other is a folder (the cgroupfs driver).
"""

from pathlib import PurePosixPath

from strata.linux.cgroups import systemd

_PREFIX = "strata"


def by_systemd(parent: str) -> bool:
    return PurePosixPath(parent).name.endswith(".slice")


def folder(parent: str) -> str:
    """The group that a parent is, as a path in the hierarchies. Raises ValueError for a slice's name that is none."""
    return systemd.expand_slice(PurePosixPath(parent).name) if by_systemd(parent) else parent.rstrip("/")


def of_container(parent: str, identifier: str) -> str:
    """The group of a container, as a path in the hierarchies."""
    return f"{folder(parent)}/{_PREFIX}-{identifier}.scope" if by_systemd(parent) else f"{folder(parent)}/{identifier}"


def cgroups_path(parent: str, identifier: str) -> str:
    """The same as `linux.cgroupsPath` of the OCI runtime spec; runtimes want `slice:prefix:name` with --systemd-cgroup."""
    return f"{PurePosixPath(parent).name}:{_PREFIX}:{identifier}" if by_systemd(parent) else of_container(parent, identifier)

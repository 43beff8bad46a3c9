"""A pod's user namespace: which of the host's IDs its containers' IDs are (KEP-127).

The namespace is made with the pod's others, which then belong to it. Files of images keep their IDs on disk: the layers of a
container's root are ID-mapped mounts. What the daemon makes for the pod belongs to the namespace's root.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from highrt.pods.errors import InvalidArgument
from strata.protocols.cri_pb2 import IDMapping, NamespaceMode, PodSandboxConfig, UserNamespace

_IDS = 2**32 - 1


@dataclass(frozen=True)
class Mapping:
    """The IDs 0 to `size` of the namespace are the host's from `host_uid` and `host_gid` on."""

    host_uid: int
    host_gid: int
    uids: int
    gids: int

    def maps(self) -> dict[str, str]:
        """The lines for /proc/PID/uid_map and gid_map (user_namespaces(7))."""
        return {"uid_map": f"0 {self.host_uid} {self.uids}\n", "gid_map": f"0 {self.host_gid} {self.gids}\n"}

    def oci(self) -> dict[str, list[dict[str, int]]]:
        """The same as `linux.uidMappings` and `linux.gidMappings` of the OCI runtime spec."""
        return {
            "uidMappings": [{"containerID": 0, "hostID": self.host_uid, "size": self.uids}],
            "gidMappings": [{"containerID": 0, "hostID": self.host_gid, "size": self.gids}],
        }

    def give(self, path: Path) -> None:
        """Makes a file or folder that of the namespace's root."""
        os.chown(path, self.host_uid, self.host_gid)

    def let_in(self, folder: Path) -> None:
        """Lets the namespace's root pass through a folder that nobody else may enter. It can neither list nor change it."""
        os.chown(folder, 0, self.host_gid)
        os.chmod(folder, 0o710)


def of_pod(config: PodSandboxConfig) -> Mapping | None:
    """What a pod asks for; None for the host's own user namespace. Raises InvalidArgument."""
    options = config.linux.security_context.namespace_options
    if not options.HasField("userns_options"):
        return None
    asked = options.userns_options
    if asked.mode == NamespaceMode.NODE:
        if asked.uids or asked.gids:
            raise InvalidArgument("userns_options: the host's user namespace (mode NODE) has no mappings")
        return None
    if asked.mode != NamespaceMode.POD:
        raise InvalidArgument(
            f"userns_options: mode {NamespaceMode.Name(asked.mode)} is none for a user namespace: POD and NODE are"
        )
    if options.pid == NamespaceMode.NODE or options.ipc == NamespaceMode.NODE:
        raise InvalidArgument("a pod with a user namespace of its own cannot be in the host's PID or IPC namespace")
    return _mapping(asked)


def _mapping(asked: UserNamespace) -> Mapping:
    uids, gids = _only(asked.uids, "uids"), _only(asked.gids, "gids")
    return Mapping(uids.host_id, gids.host_id, uids.length, gids.length)


def _only(mappings: Iterable[IDMapping], what: str) -> IDMapping:
    found = list(mappings)
    if len(found) != 1:
        raise InvalidArgument(f"userns_options.{what}: exactly one mapping is wanted, not {len(found)}")
    if found[0].container_id != 0:
        raise InvalidArgument(
            f"userns_options.{what}: the mapping must begin with the container's ID 0, not {found[0].container_id}"
        )
    if not found[0].length:
        raise InvalidArgument(f"userns_options.{what}: the mapping has no length")
    if found[0].host_id + found[0].length > _IDS:
        raise InvalidArgument(f"userns_options.{what}: the host has IDs up to {_IDS - 1} only")
    return found[0]

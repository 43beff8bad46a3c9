"""A container's mounts and devices: the defaults, what the pod shares, and what CRI asks for."""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from highrt.pods import volumes
from highrt.pods.errors import InvalidArgument
from strata.linux import cgroups
from strata.protocols.cri_pb2 import ContainerConfig, Device, IDMapping, Mount, MountPropagation

Spec = dict[str, Any]

_PROPAGATION = {
    MountPropagation.PROPAGATION_PRIVATE: "rprivate",
    MountPropagation.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    MountPropagation.PROPAGATION_BIDIRECTIONAL: "rshared",
}
_BIND_OPTIONS = ("nodev", "noexec", "nosuid")
"""What CRI's mount_options may be: an option of more power (suid, a propagation, data of a file system) is no volume's to ask."""


def mounts(
    config: ContainerConfig, pod_folder: Path, image_volumes: Sequence[Path], *, host_ipc: bool, host_sys: bool
) -> list[Spec]:
    """All mounts, in the order in which they are made. pod_folder: holds shm, resolv.conf, hostname and hosts. image_volumes:
    see `volumes.make`. host_sys: the host's /sys is shown, because no sysfs can be mounted.

    Raises InvalidArgument for a mount that cannot be.
    """
    privileged = config.linux.security_context.privileged
    readonly = [] if privileged else ["ro"]
    found: list[Spec] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "bind" if host_sys else "sysfs", "source": "/sys" if host_sys else "sysfs",
         "options": [*(["rbind", "rslave"] if host_sys else []), "nosuid", "noexec", "nodev", *readonly]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", *readonly]},
        {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm" if host_ipc else str(pod_folder / "shm"),
         "options": ["rbind", "rprivate", "nosuid", "nodev", "noexec"]},
    ]  # fmt: skip
    readonly_root = config.linux.security_context.readonly_rootfs
    for name in ("resolv.conf", "hostname", "hosts"):
        options = ["rbind", "rprivate", "ro" if readonly_root else "rw"]
        found.append({"destination": f"/etc/{name}", "type": "bind", "source": str(pod_folder / name), "options": options})
    images = iter(image_volumes)
    asked = [_image(mount, next(images)) if volumes.is_volume(mount) else _mount(mount) for mount in config.mounts]
    replaced = {mount["destination"] for mount in asked}
    kept = [mount for mount in found if mount["destination"] not in replaced]
    # Parents before what is inside them, whatever the order in the request.
    return kept + sorted(asked, key=lambda mount: str(mount["destination"]).count("/"))


def root_propagation(found: list[Spec]) -> str:
    """The propagation that the container's root must have for its mounts' ("" for the default)."""
    options = {option for mount in found for option in mount["options"]}
    return "rshared" if "rshared" in options else "rslave" if "rslave" in options else ""


def _destination(mount: Mount) -> str:
    where = os.path.normpath(mount.container_path)
    if not mount.container_path.startswith("/") or where == "/":
        raise InvalidArgument(f"mount at {mount.container_path!r}: container_path must be absolute, and not the root")
    return where


def _image(mount: Mount, source: Path) -> Spec:
    where = _destination(mount)
    options = ["rbind", "rprivate", "ro", "nodev", *_bind_options(where, mount)]
    return {"destination": where, "type": "bind", "source": str(source), "options": options}


def _mount(mount: Mount) -> Spec:
    where = _destination(mount)
    if not mount.host_path.startswith("/"):
        raise InvalidArgument(f"mount at {where}: host_path {mount.host_path!r} must be absolute")
    source = os.path.realpath(mount.host_path)
    try:
        if not os.path.lexists(source):
            os.makedirs(source, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"mount at {where}: cannot make {mount.host_path} on the host: {error.strerror}") from None
    if mount.recursive_read_only and (not mount.readonly or mount.propagation != MountPropagation.PROPAGATION_PRIVATE):
        raise InvalidArgument(f"mount at {where}: recursive_read_only needs readonly, and no propagation")
    options = ["rbind", _PROPAGATION[mount.propagation], "ro" if mount.readonly else "rw"]
    if mount.recursive_read_only:
        options.append("rro")
    options += _bind_options(where, mount)
    found: Spec = {"destination": where, "type": "bind", "source": source, "options": options}
    if mount.uidMappings or mount.gidMappings:
        if not (mount.uidMappings and mount.gidMappings):
            raise InvalidArgument(f"mount at {where}: uidMappings and gidMappings belong together")
        found |= {"uidMappings": _mappings(mount.uidMappings), "gidMappings": _mappings(mount.gidMappings)}
    return found


def _bind_options(where: str, mount: Mount) -> list[str]:
    for option in mount.mount_options:
        if option not in _BIND_OPTIONS:
            raise InvalidArgument(f"mount at {where}: mount_options: {option!r} is none of {', '.join(_BIND_OPTIONS)}")
    return [*mount.mount_options]


def _mappings(asked: Iterable[IDMapping]) -> list[dict[str, int]]:
    return [{"containerID": each.container_id, "hostID": each.host_id, "size": each.length} for each in asked]


def devices(config: ContainerConfig) -> tuple[list[Spec], list[Spec]]:
    """The device nodes to make, and the rules of the device cgroup. Raises InvalidArgument."""
    if config.linux.security_context.privileged:
        nodes = [node for path in _device_files("/dev") for node in [_node(path, path)] if node]
        return nodes, [{"allow": True, "access": "rwm"}]
    rules: list[Spec] = [{"allow": False, "access": "rwm"}]
    nodes = []
    for device in config.devices:
        for node in _asked_nodes(device):
            nodes.append(node)
            rules.append({
                "allow": True, "type": node["type"], "major": node["major"], "minor": node["minor"],
                "access": device.permissions or "rwm",
            })  # fmt: skip
    return nodes, rules


def _asked_nodes(device: Device) -> list[Spec]:
    source = os.path.realpath(device.host_path)
    target = device.container_path or device.host_path
    if set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"device {device.host_path}: permissions {device.permissions!r} must be of r, w and m")
    if os.path.isdir(source):
        found = [_node(path, f"{target.rstrip('/')}{path[len(source) :]}") for path in _device_files(source)]
        return [node for node in found if node]
    node = _node(source, target)
    if node is None:
        raise InvalidArgument(f"device {device.host_path}: there is no such device on the host")
    return [node]


def _device_files(folder: str) -> list[str]:
    found: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts"):
                found += _device_files(entry.path)
        elif entry.name != "console" and not entry.is_symlink():
            found.append(entry.path)
    return found


def _node(path: str, target: str) -> Spec | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not kind:
        return None
    return {
        "path": target, "type": kind, "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid,
    }  # fmt: skip


def has_cgroup_namespace() -> bool:
    """On v2 containers see their own group as the root; on v1 images of init systems expect the host's paths."""
    return cgroups.mode() == "v2"

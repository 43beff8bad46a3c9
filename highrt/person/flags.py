"""From the flags of `highrt run` to what the pod manager takes: CRI's PodSandboxConfig and ContainerConfig."""

import ipaddress
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from highrt.images.model import Image
from highrt.pods import extras
from highrt.pods.errors import InvalidArgument
from highrt.pods.model import Pod
from strata.linux.rlimits import NUMBERS
from strata.protocols import cri_pb2 as cri
from strata.protocols import highrt_pb2 as api

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
NAMESPACE = "highrt"
AUTO_REMOVE = "strata.highrt/auto-remove"
NETWORK = "strata.highrt/network"
SHARED = "strata.highrt/shared"
"""Of a pod that a person made for several containers."""
FILES = "strata.highrt/files"
"""Of a container in such a pod: the name of its own folder."""

_LOG_FILE = "container.log"
_LOG_BYTES, _LOG_FILES = 20 << 20, 5
"""A log is bounded unless somebody says otherwise: disks that fill up are what people remember of those that are not."""
_NO_LIMIT = 2**64 - 1
_TMPFS_OPTION = re.compile(r"rw|ro|(no)?(exec|suid|dev|atime|diratime)|(size|nr_inodes)=\d+[kKmMgG%]?|mode=[0-7]+|[ug]id=\d+")
_CPU_PERIOD_US = 100_000
_PROPAGATION = {
    "": cri.PROPAGATION_PRIVATE,
    "private": cri.PROPAGATION_PRIVATE,
    "rprivate": cri.PROPAGATION_PRIVATE,
    "slave": cri.PROPAGATION_HOST_TO_CONTAINER,
    "rslave": cri.PROPAGATION_HOST_TO_CONTAINER,
    "shared": cri.PROPAGATION_BIDIRECTIONAL,
    "rshared": cri.PROPAGATION_BIDIRECTIONAL,
}
# CRI has no word for a network with loopback only: CONTAINER, "one for each", is what it means for this daemon.
_NETWORKS = {"host": cri.NODE, "none": cri.CONTAINER}
_PIDS = {"": cri.CONTAINER, "private": cri.CONTAINER, "pod": cri.POD, "host": cri.NODE}
_IPCS = {"": cri.POD, "private": cri.POD, "host": cri.NODE}
_PROFILES = {"unconfined": cri.SecurityProfile.Unconfined, "default": cri.SecurityProfile.RuntimeDefault}
_PROTOCOLS = {"": cri.TCP, "tcp": cri.TCP, "udp": cri.UDP, "sctp": cri.SCTP}


def is_shared(pod: Pod) -> bool:
    """Whether a person made it for several containers."""
    return SHARED in pod.config.annotations


class PersonFiles:
    """The folder of one person's container, ROOT/person/UID, with its log. `remove` deletes it."""

    def __init__(self, root: Path, uid: str) -> None:
        self.folder = root / "person" / uid

    def make(self) -> None:
        self.folder.mkdir(parents=True, mode=0o700)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def pod_config(
    request: api.CreateRequest, uid: str, files: PersonFiles, network: str, chosen: Sequence[extras.NetworkChoice] | None = None
) -> cri.PodSandboxConfig:
    """The pod of a person's container. network: bridge, host, none, or the first of those that are chosen. Raises
    InvalidArgument."""
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=request.name, uid=uid, namespace=NAMESPACE),
        hostname=(request.hostname or uid[:12]) if network != "host" else request.hostname,
        log_directory=str(files.folder),
        labels=request.labels,
        annotations={NETWORK: network, extras.ANNOTATION: replace(_extras(request), networks=chosen).text()},
    )
    if request.auto_remove:
        config.annotations[AUTO_REMOVE] = "true"
    config.dns_config.servers.extend(request.dns)
    for port in request.ports:
        if not 0 < port.container_port < 65536 or port.host_port > 65535:
            raise InvalidArgument(f"port {port.host_port}:{port.container_port}: ports are numbers from 1 to 65535")
        if port.protocol not in _PROTOCOLS:
            raise InvalidArgument(f"port protocol {port.protocol!r}: use tcp, udp or sctp")
        config.port_mappings.add(
            protocol=_PROTOCOLS[port.protocol],
            container_port=port.container_port,
            host_port=port.host_port,
            host_ip=port.host_ip,
        )
    security = config.linux.security_context
    security.privileged = request.privileged
    _namespaces(security.namespace_options, request, network)
    security.seccomp.profile_type = _seccomp(request)
    config.linux.sysctls.update(request.sysctls)
    config.linux.cgroup_parent = request.cgroup_parent
    return config


def shared_pod_config(
    request: api.CreateRequest, uid: str, files: PersonFiles, network: str, chosen: Sequence[extras.NetworkChoice] | None
) -> cri.PodSandboxConfig:
    """A pod for several containers. Raises InvalidArgument."""
    if request.pid_mode not in ("", "pod"):
        raise InvalidArgument(f"--pid {request.pid_mode}: a pod's containers have their own processes, or share the pod's")
    config = pod_config(request, uid, files, network, chosen)
    config.annotations[SHARED] = "true"
    if network != "host":
        config.hostname = request.hostname or request.name
    config.linux.security_context.privileged = True  # its containers may be: each says so of itself
    return config


def container_config(request: api.CreateRequest, image: Image, volumes: Path, network: str) -> cri.ContainerConfig:
    """The container of a person's pod. volumes: the folder of named volumes. Raises InvalidArgument."""
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=request.name),
        image=cri.ImageSpec(image=image.id, user_specified_image=request.image),
        working_dir=request.working_dir,
        labels=request.labels,
        annotations={extras.ANNOTATION: _extras(request).text()},
        log_path=_LOG_FILE,
        stdin=request.stdin,
        stdin_once=request.stdin,
        tty=request.tty,
    )
    # CRI's rule (as Kubernetes has it): a command alone takes the image's Cmd away, args alone keep its entry point. Docker's
    # --entrypoint "" takes the entry point away, and the arguments become the command.
    if request.HasField("entrypoint"):
        config.command.extend(request.entrypoint.argv or request.args or image.config.cmd)
        config.args.extend(request.args if request.entrypoint.argv else [])
    else:
        config.args.extend(request.args)
    env = dict(item.partition("=")[::2] for item in request.env)
    if request.tty:
        env.setdefault("TERM", "xterm")
    for key, value in env.items():
        if not key:
            raise InvalidArgument("environment: a variable has no name; write NAME=VALUE")
        config.envs.add(key=key, value=value.encode())
    _mounts(config, request, volumes)
    for device in request.devices:
        config.devices.add(
            host_path=device.host_path,
            container_path=device.container_path or device.host_path,
            permissions=device.permissions or "rwm",
        )
    security = config.linux.security_context
    security.privileged = request.privileged
    security.readonly_rootfs = request.read_only
    security.no_new_privs = request.no_new_privileges
    security.capabilities.add_capabilities.extend(_capability(name) for name in request.cap_add)
    security.capabilities.drop_capabilities.extend(_capability(name) for name in request.cap_drop)
    _user(security, request.user)
    _namespaces(security.namespace_options, request, network)
    security.seccomp.profile_type = _seccomp(request)
    if request.apparmor:
        security.apparmor.profile_type = _PROFILES.get(request.apparmor, cri.SecurityProfile.Localhost)
        if security.apparmor.profile_type == cri.SecurityProfile.Localhost:
            security.apparmor.localhost_ref = request.apparmor
    security.supplemental_groups.extend(request.groups)
    if request.seccomp_profile:
        security.seccomp.profile_type = cri.SecurityProfile.Localhost
        security.seccomp.localhost_ref = request.seccomp_profile
    config.linux.resources.CopyFrom(resources(request))
    return config


def resources(request: api.CreateRequest | api.UpdateRequest) -> cri.LinuxContainerResources:
    """The limits that are asked for; what is not is 0."""
    found = cri.LinuxContainerResources(
        memory_limit_in_bytes=request.memory_bytes,
        memory_swap_limit_in_bytes=request.memory_swap_bytes,
        cpu_shares=request.cpu_shares,
        cpuset_cpus=request.cpuset_cpus,
        cpuset_mems=request.cpuset_mems,
    )
    if request.cpu_millis:
        found.cpu_period = _CPU_PERIOD_US
        found.cpu_quota = max(1000, request.cpu_millis * _CPU_PERIOD_US // 1000)
    return found


def _extras(request: api.CreateRequest) -> extras.Extras:
    rlimits = {}
    for limit in request.ulimits:
        kind = f"RLIMIT_{limit.name.upper()}"
        if kind not in NUMBERS:
            raise InvalidArgument(f"--ulimit {limit.name}: there is none of that name; use one like nofile or nproc")
        soft, hard = (_NO_LIMIT if value < 0 else value for value in (limit.soft, limit.hard))
        if soft > hard:
            raise InvalidArgument(f"--ulimit {limit.name}: the soft limit {limit.soft} is above the hard one, {limit.hard}")
        rlimits[kind] = (soft, hard)
    for where, options in request.tmpfs.items():
        if not where.startswith("/") or os.path.normpath(where) == "/":
            raise InvalidArgument(f"--tmpfs {where}: the place in the container must be an absolute path other than /")
        if bad := [option for option in options.split(",") if option and not _TMPFS_OPTION.fullmatch(option)]:
            raise InvalidArgument(f"--tmpfs {where}: the option {bad[0]!r} is not known; use ro, exec, size=, mode= and the like")
    for name, address in request.hosts.items():
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidArgument(f"--add-host {name}: {address!r} is no address") from None
        if not NAME.fullmatch(name):
            raise InvalidArgument(f"--add-host {name!r}: not a host's name")
    return extras.Extras(
        pids_limit=request.pids_limit,
        memory_reservation_bytes=request.memory_reservation_bytes,
        log_bytes=request.log_bytes or _LOG_BYTES,
        log_files=request.log_files or _LOG_FILES,
        tmpfs=dict(request.tmpfs),
        rlimits=rlimits,
        hosts=dict(request.hosts),
        init=request.init,
        health=_health(request.health) if request.HasField("health") else None,
        shm_bytes=request.shm_bytes,
        stop_seconds=request.stop_seconds if request.HasField("stop_seconds") else extras.STOP_SECONDS,
        stop_signal=request.stop_signal,
    )


def _health(asked: api.HealthCheck) -> dict[str, Any]:
    """In the form of an image's configuration, as far as it says something."""
    given = {
        "Test": [*asked.test], "Interval": asked.interval_ns, "Timeout": asked.timeout_ns, "StartPeriod": asked.start_period_ns,
        "Retries": asked.retries,
    }  # fmt: skip
    return {key: value for key, value in given.items() if value}


def _namespaces(options: cri.NamespaceOption, request: api.CreateRequest, network: str) -> None:
    options.network = _NETWORKS.get(network, cri.POD)
    for name, modes in (("pid", _PIDS), ("ipc", _IPCS)):
        mode = getattr(request, f"{name}_mode")
        if mode not in modes:
            raise InvalidArgument(f"--{name} {mode}: only {', '.join(filter(None, modes))} are known")
        setattr(options, name, modes[mode])


def _seccomp(request: api.CreateRequest) -> cri.SecurityProfile.ProfileType:
    unconfined = request.seccomp_unconfined or request.privileged
    return cri.SecurityProfile.Unconfined if unconfined else cri.SecurityProfile.RuntimeDefault


def _capability(name: str) -> str:
    """CRI's form of a capability's name: NET_ADMIN."""
    return name.upper().removeprefix("CAP_")


def _user(security: cri.LinuxContainerSecurityContext, user: str) -> None:
    """`--user`: NAME, UID, UID:GID; names are looked up in the container's own /etc/passwd."""
    name, colon, group = user.partition(":")
    if colon and not (group.isdigit() and name):
        raise InvalidArgument(f"--user {user}: write NAME, UID or UID:GID (the group as a number)")
    if name.isdigit():
        security.run_as_user.value = int(name)
    else:
        security.run_as_username = name
    if group:
        security.run_as_group.value = int(group)


def _mounts(config: cri.ContainerConfig, request: api.CreateRequest, volumes: Path) -> None:
    targets = set()
    for mount in request.mounts:
        target = os.path.normpath(mount.target)
        if not mount.target.startswith("/") or target == "/":
            raise InvalidArgument(f"mount at {mount.target!r}: the place in the container must be an absolute path other than /")
        if target in targets:
            raise InvalidArgument(f"mount at {target}: it is named twice")
        targets.add(target)
        if mount.propagation not in _PROPAGATION:
            raise InvalidArgument(f"mount propagation {mount.propagation!r}: use private, rslave or rshared")
        source = mount.source
        if not source.startswith("/"):
            if not NAME.fullmatch(source):
                raise InvalidArgument(f"volume {source!r}: a name has letters, digits, '_', '.', '-'; a host path begins with /")
            path = volumes / source
            path.mkdir(parents=True, exist_ok=True, mode=0o755)
            source = str(path)
        config.mounts.add(
            container_path=target,
            host_path=source,
            readonly=mount.read_only,
            propagation=_PROPAGATION[mount.propagation],
        )

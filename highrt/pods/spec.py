"""From CRI's container configuration and the image's to the OCI runtime's config.json (runtime-spec, config.md)."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highrt import seccomp_default
from highrt.images.model import ImageConfig
from highrt.pods import identity, mounts, userns
from highrt.pods.errors import InvalidArgument
from highrt.pods.model import ContainerUser
from strata.linux import capabilities as kernel
from strata.linux import cgroups, syscalls
from strata.protocols.cri_pb2 import (
    ContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    NamespaceMode,
    PodSandboxConfig,
    SecurityProfile,
)

Spec = dict[str, Any]

SPEC_VERSION = "1.0.2"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
_MASKED_PATHS = [
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
    "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
]  # fmt: skip
_READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


@dataclass(frozen=True)
class Place:
    """Where a container's spec gets the pod's things from.

    cgroup: `linux.cgroupsPath`. namespaces: kind (as the OCI spec names it) → path, for those that the pod shares. pid_path: that
    of the PID namespace to join, "" for a new one, None for the host's. rootfs: where the root is mounted. hostname: of the pod.
    image_volumes: what each mount of an image shows, in the order of the mounts. mapping: of the pod's user namespace.
    """

    container_id: str
    pod_id: str
    pod_folder: Path
    rootfs: Path
    cgroup: str
    namespaces: dict[str, str]
    pid_path: str | None
    hostname: str
    image_volumes: Sequence[Path] = ()
    mapping: userns.Mapping | None = None


def build(pod: PodSandboxConfig, config: ContainerConfig, image: ImageConfig, place: Place) -> Spec:
    """The whole config.json. The root must be mounted: users are looked up in it. Raises InvalidArgument."""
    context = config.linux.security_context
    _check(pod, context)
    who = identity.resolve(str(place.rootfs), context, image.user)
    granted = capabilities(context)
    host_ipc = context.namespace_options.ipc == NamespaceMode.NODE
    # sysfs shows the devices of a network namespace: only who owns that may mount it
    host_sys = place.mapping is not None and "network" not in place.namespaces
    all_mounts = mounts.mounts(config, place.pod_folder, place.image_volumes, host_ipc=host_ipc, host_sys=host_sys)
    nodes, device_rules = mounts.devices(config)
    resources = oci_resources(config.linux.resources)
    resources["devices"] = device_rules
    linux: Spec = {
        "namespaces": _namespaces(place),
        "cgroupsPath": place.cgroup,
        "resources": resources,
        "devices": nodes,
    }
    if place.mapping:
        linux |= place.mapping.oci()
    if propagation := mounts.root_propagation(all_mounts):
        linux["rootfsPropagation"] = propagation
    if not context.privileged:
        # The kubelet sends both lists, empty for procMount Unmasked; a caller that sends neither gets the defaults.
        linux["maskedPaths"] = list(context.masked_paths) if _has_paths(context) else _MASKED_PATHS
        linux["readonlyPaths"] = list(context.readonly_paths) if _has_paths(context) else _READONLY_PATHS
    if filter_ := _seccomp(context, granted):
        linux["seccomp"] = filter_
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": config.tty,
            "user": {"uid": who.uid, "gid": who.gid, "additionalGids": who.groups},
            "args": arguments(config, image),
            "env": environment(config, image, place.hostname),
            "cwd": config.working_dir or image.working_dir or "/",
            "capabilities": _capability_sets(granted, who.uid, list(context.capabilities.add_ambient_capabilities)),
            "noNewPrivileges": context.no_new_privs,
            # Always written: without it the process would keep the monitor's own.
            "oomScoreAdj": oom_score_adj(config.linux.resources.oom_score_adj),
        },
        "root": {"path": str(place.rootfs), "readonly": context.readonly_rootfs},
        "mounts": all_mounts,
        "annotations": _annotations(pod, config, place),
        "linux": linux,
    }


def user_of(spec: Spec) -> ContainerUser:
    """Who the first process is, of a config.json that `build` made."""
    user = spec["process"]["user"]
    return ContainerUser(user["uid"], user["gid"], tuple(user["additionalGids"]))


def arguments(config: ContainerConfig, image: ImageConfig) -> list[str]:
    """The command line: CRI's command replaces the image's entrypoint and its cmd, CRI's args the cmd alone."""
    if config.command:
        found = [*config.command, *config.args]
    else:
        found = [*image.entrypoint, *(config.args or image.cmd)]
    if not found:
        raise InvalidArgument(f"no command: the image {config.image.image} has no entrypoint and no cmd, so give a command")
    return found


def environment(config: ContainerConfig, image: ImageConfig, hostname: str) -> list[str]:
    """The image's variables, then CRI's; a later one replaces an earlier one of the same name."""
    found: dict[str, str] = {}
    for pair in [_PATH, *image.env]:
        name, _, text = pair.partition("=")
        found[name] = text
    if hostname:
        found["HOSTNAME"] = hostname
    if config.tty:
        found["TERM"] = "xterm"
    for variable in config.envs:
        if not variable.key or "=" in variable.key:
            raise InvalidArgument(f"environment variable {variable.key!r}: a name must not be empty or contain '='")
        if b"\0" in variable.value:
            raise InvalidArgument(f"environment variable {variable.key!r}: its value has a NUL byte")
        found[variable.key] = os.fsdecode(variable.value)
    return [f"{key}={value}" for key, value in found.items()]


def capabilities(context: LinuxContainerSecurityContext) -> list[str]:
    """The capabilities of a container: the defaults (all, where it is privileged), less and more what CRI says.

    Raises InvalidArgument for an unknown name.
    """
    # All that there are to give: in a container or a restricted machine this daemon itself lacks some.
    held = kernel.held()
    every = [f"CAP_{name}" for number, name in enumerate(kernel.NAMES) if held >> number & 1]
    if context.privileged:
        return every
    asked = context.capabilities
    add, drop = [_capability(name) for name in asked.add_capabilities], [_capability(name) for name in asked.drop_capabilities]
    found = set(DEFAULT_CAPABILITIES)
    if "CAP_ALL" in drop:
        found = set()
    if "CAP_ALL" in add:
        found = set(every)
    found = (found | set(add)) - {name for name in drop if name not in add} - {"CAP_ALL"}
    return [name for name in kernel.NUMBERS if name in found]


def _capability(name: str) -> str:
    full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if full != "CAP_ALL" and full not in kernel.NUMBERS:
        raise InvalidArgument(f"capability {name!r}: there is none of that name (write it like NET_ADMIN)")
    return full


def _capability_sets(granted: list[str], uid: int, ambient: list[str]) -> Spec:
    named = [_capability(name) for name in ambient]
    effective = granted if uid == 0 else [name for name in granted if name in named]
    sets: Spec = {"bounding": granted, "permitted": effective if uid else granted, "effective": effective}
    if named:
        sets["inheritable"] = sets["ambient"] = [name for name in granted if name in named]
    return sets


def oci_resources(resources: LinuxContainerResources) -> Spec:
    """CRI's limits as the OCI spec's; 0 means "not set" in CRI, and -1 "no limit" for quota, memory and swap."""
    least = {"cpu_shares": 0, "cpu_period": 0, "cpu_quota": -1, "memory_limit_in_bytes": -1, "memory_swap_limit_in_bytes": -1}
    for name, number in least.items():
        if getattr(resources, name) < number:
            raise InvalidArgument(f"resources.{name}: {getattr(resources, name)} is less than {number}")
    for text in (resources.cpuset_cpus, resources.cpuset_mems):
        if text.strip("0123456789,-"):
            raise InvalidArgument(f"resources: {text!r} is no list of CPUs or memory nodes: write it like 0-2,5")
    cpu = {
        "shares": resources.cpu_shares, "quota": resources.cpu_quota, "period": resources.cpu_period,
        "cpus": resources.cpuset_cpus, "mems": resources.cpuset_mems,
    }  # fmt: skip
    memory = {"limit": resources.memory_limit_in_bytes, "swap": resources.memory_swap_limit_in_bytes}
    found: Spec = {}
    if kept := {key: value for key, value in cpu.items() if value}:
        found["cpu"] = kept
    if kept := {key: value for key, value in memory.items() if value}:
        found["memory"] = kept
    # A kubelet sends a limit for each size that the machine knows, also where its kernel cannot limit any.
    if resources.hugepage_limits and cgroups.has("hugetlb"):
        found["hugepageLimits"] = [{"pageSize": limit.page_size, "limit": limit.limit} for limit in resources.hugepage_limits]
    if resources.unified:
        if cgroups.mode() != "v2":
            raise InvalidArgument("resources.unified: this machine's cgroups are not v2")
        found["unified"] = dict(resources.unified)
    return found


def oom_score_adj(asked: int) -> int:
    """What may be written: without CAP_SYS_RESOURCE, nothing lower than this process's own."""
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        own = int(file.read())
    effective, _, _ = syscalls.capget()
    if effective >> kernel.NUMBERS["CAP_SYS_RESOURCE"] & 1:
        return asked
    return max(asked, own)


def _namespaces(place: Place) -> list[Spec]:
    found: list[Spec] = [{"type": "mount"}]
    if place.pid_path is not None:
        found.append({"type": "pid", "path": place.pid_path} if place.pid_path else {"type": "pid"})
    found += [{"type": kind, "path": path} for kind, path in place.namespaces.items()]
    if mounts.has_cgroup_namespace():
        found.append({"type": "cgroup"})
    return found


def _has_paths(context: LinuxContainerSecurityContext) -> bool:
    return bool(context.masked_paths or context.readonly_paths)


def _seccomp(context: LinuxContainerSecurityContext, granted: list[str]) -> Spec | None:
    asked = _asked_seccomp(context)
    if context.privileged or asked.profile_type == SecurityProfile.ProfileType.Unconfined:
        return None
    if asked.profile_type == SecurityProfile.ProfileType.RuntimeDefault:
        return seccomp_default.profile(granted)
    path = asked.localhost_ref
    if not os.path.isabs(path):
        raise InvalidArgument(f"seccomp profile {path!r}: localhost_ref must be an absolute path")
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"seccomp profile {path}: {error}") from None
    if not isinstance(found, dict) or "defaultAction" not in found:
        raise InvalidArgument(f"seccomp profile {path}: no object with a defaultAction (runtime-spec, config-linux, Seccomp)")
    return found


def _asked_seccomp(context: LinuxContainerSecurityContext) -> SecurityProfile:
    """The profile that is asked for: by `seccomp`, or by the text that was there before it, which is less than it."""
    if context.HasField("seccomp"):
        return context.seccomp
    text = context.seccomp_profile_path
    if text in ("", "unconfined"):
        return SecurityProfile(profile_type=SecurityProfile.ProfileType.Unconfined)
    if text in ("runtime/default", "docker/default"):
        return SecurityProfile(profile_type=SecurityProfile.ProfileType.RuntimeDefault)
    if not text.startswith("localhost/"):
        raise InvalidArgument(f"seccomp profile {text!r}: write runtime/default, unconfined or localhost/PATH")
    return SecurityProfile(profile_type=SecurityProfile.ProfileType.Localhost, localhost_ref=text.removeprefix("localhost/"))


def _check(pod: PodSandboxConfig, context: LinuxContainerSecurityContext) -> None:
    if context.privileged and not pod.linux.security_context.privileged:
        raise InvalidArgument("a privileged container needs a privileged pod sandbox (security_context.privileged of both)")


def _annotations(pod: PodSandboxConfig, config: ContainerConfig, place: Place) -> dict[str, str]:
    """Those that runtimes which know CRI (runsc, kata) read, by containerd's names."""
    return {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": config.metadata.name,
        "io.kubernetes.cri.image-name": config.image.image,
        "io.kubernetes.cri.sandbox-id": place.pod_id,
        "io.kubernetes.cri.sandbox-name": pod.metadata.name,
        "io.kubernetes.cri.sandbox-namespace": pod.metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.metadata.uid,
    }

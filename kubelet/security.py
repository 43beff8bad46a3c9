"""Security contexts: the pod's and the container's made one, and told to CRI.

https://kubernetes.io/docs/tasks/configure-pod-container/security-context/
"""

from typing import Any

from strata.protocols import cri_pb2 as cri

MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
SECCOMP_FOLDER = "/var/lib/kubelet/seccomp"


class NotAllowed(Exception):
    """runAsNonRoot forbids the user; its text is shown as CreateContainerConfigError."""


def effective(pod: dict[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    """The container's security context over what it inherits from the pod's."""
    of_pod = pod["spec"].get("securityContext") or {}
    shared = ("runAsUser", "runAsGroup", "runAsNonRoot", "seLinuxOptions", "seccompProfile", "appArmorProfile")
    own = {k: v for k, v in (container.get("securityContext") or {}).items() if v is not None}
    return {**{k: of_pod[k] for k in shared if of_pod.get(k) is not None}, **own}


def namespace_options(pod: dict[str, Any]) -> cri.NamespaceOption:
    spec = pod["spec"]
    pid = cri.NODE if spec.get("hostPID") else cri.POD if spec.get("shareProcessNamespace") else cri.CONTAINER
    return cri.NamespaceOption(
        network=cri.NODE if spec.get("hostNetwork") else cri.POD,
        ipc=cri.NODE if spec.get("hostIPC") else cri.POD,
        pid=pid,
    )


def seccomp(profile: dict[str, Any] | None) -> cri.SecurityProfile:
    kind = (profile or {}).get("type", "Unconfined")
    if kind == "RuntimeDefault":
        return cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
    if kind == "Localhost" and profile:
        return cri.SecurityProfile(
            profile_type=cri.SecurityProfile.Localhost, localhost_ref=f"{SECCOMP_FOLDER}/{profile['localhostProfile']}"
        )
    return cri.SecurityProfile(profile_type=cri.SecurityProfile.Unconfined)


def sandbox_context(pod: dict[str, Any]) -> cri.LinuxSandboxSecurityContext:
    of_pod = pod["spec"].get("securityContext") or {}
    context = cri.LinuxSandboxSecurityContext(
        namespace_options=namespace_options(pod),
        supplemental_groups=_groups(of_pod),
        privileged=any(
            (c.get("securityContext") or {}).get("privileged")
            for c in [*pod["spec"].get("containers", []), *pod["spec"].get("initContainers", [])]
        ),
        seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault),
    )
    if of_pod.get("runAsUser") is not None:
        context.run_as_user.value = of_pod["runAsUser"]
        if of_pod.get("runAsGroup") is not None:
            context.run_as_group.value = of_pod["runAsGroup"]
    return context


def container_context(
    pod: dict[str, Any], container: dict[str, Any], image_uid: int | None, image_user: str, target_id: str = ""
) -> cri.LinuxContainerSecurityContext:
    """What CRI is told for a container.

    target_id: the container whose PID namespace an ephemeral one joins.
    image_uid, image_user: the user that the image names, as a number or by name (then image_uid is None).
    Raises NotAllowed where runAsNonRoot is set and the container would run as root, or it cannot be told.
    """
    own = effective(pod, container)
    of_pod = pod["spec"].get("securityContext") or {}
    name, pod_name = container["name"], f'"{pod["metadata"]["name"]}_{pod["metadata"]["namespace"]}({pod["metadata"]["uid"]})"'
    user = own.get("runAsUser")
    if own.get("runAsNonRoot"):
        where = f"(pod: {pod_name}, container: {name})"
        if user == 0:
            raise NotAllowed(f"container's runAsUser breaks non-root policy {where}")
        if user is None and image_uid == 0:
            raise NotAllowed(f"container has runAsNonRoot and image will run as root {where}")
        if user is None and image_uid is None and image_user:
            raise NotAllowed(
                f"container has runAsNonRoot and image has non-numeric user ({image_user}), "
                f"cannot verify user is non-root {where}"
            )
    privileged = bool(own.get("privileged"))
    context = cri.LinuxContainerSecurityContext(
        namespace_options=namespace_options(pod),
        privileged=privileged,
        readonly_rootfs=bool(own.get("readOnlyRootFilesystem")),
        supplemental_groups=_groups(of_pod),
        no_new_privs=own.get("allowPrivilegeEscalation") is False,
        seccomp=seccomp(None if privileged else own.get("seccompProfile")),
    )
    if target_id:
        context.namespace_options.pid, context.namespace_options.target_id = cri.TARGET, target_id
    if of_pod.get("supplementalGroupsPolicy") == "Strict":
        context.supplemental_groups_policy = cri.Strict
    capabilities = own.get("capabilities") or {}
    context.capabilities.add_capabilities.extend(capabilities.get("add") or [])
    context.capabilities.drop_capabilities.extend(capabilities.get("drop") or [])
    if user is not None:
        context.run_as_user.value = user
    elif image_uid is not None:
        context.run_as_user.value = image_uid
    elif image_user:
        context.run_as_username = image_user
    if own.get("runAsGroup") is not None:
        context.run_as_group.value = own["runAsGroup"]
    if (own.get("procMount") or "Default") == "Default" and not privileged:
        context.masked_paths.extend(MASKED_PATHS)
        context.readonly_paths.extend(READONLY_PATHS)
    return context


def _groups(of_pod: dict[str, Any]) -> list[int]:
    groups = list(of_pod.get("supplementalGroups") or [])
    if of_pod.get("fsGroup") is not None and of_pod["fsGroup"] not in groups:
        groups.append(of_pod["fsGroup"])
    return groups

"""Sandboxes and containers as CRI is told of them: the pod's specification in CRI's words, and the calls that make one run."""

import asyncio
from pathlib import Path
from typing import Any

from kubelet import network, resources, security, termination
from kubelet.actions import spec_hash
from kubelet.context import Context
from kubelet.env import EnvError, environment
from kubelet.expansion import expand
from kubelet.images import ImageError
from kubelet.runtime import (
    CONTAINER_HASH,
    CONTAINER_NAME,
    DEADLINE_SECONDS,
    GRACE_PERIOD,
    POD_NAME,
    POD_NAMESPACE,
    POD_UID,
    RESTART_COUNT,
    TERMINATION_PATH,
    TERMINATION_POLICY,
    RuntimeCallError,
    RuntimeUnavailable,
)
from kubelet.volumes.errors import VolumeError
from strata.kubeclient.errors import ApiError
from strata.protocols import cri_pb2 as cri
from strata.telemetry import logs
from strata.telemetry.spans import span

log = logs.get("kubelet.containers")

_PROTOCOLS = {"TCP": cri.TCP, "UDP": cri.UDP, "SCTP": cri.SCTP}


class StartError(Exception):
    """A container was not started. reason, message: what its waiting state says."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def field_path(pod: dict[str, Any], name: str) -> str:
    """How events name a container of a pod."""
    for kind in ("initContainers", "ephemeralContainers"):
        if any(c["name"] == name for c in pod["spec"].get(kind) or []):
            return f"spec.{kind}{{{name}}}"
    return f"spec.containers{{{name}}}"


def all_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of a pod's specification, whatever their kind."""
    return [c for kind in ("containers", "initContainers", "ephemeralContainers") for c in pod["spec"].get(kind) or []]


def sandbox_config(context: Context, pod: dict[str, Any], attempt: int) -> cri.PodSandboxConfig:
    """A pod's sandbox in CRI's words."""
    meta, spec = pod["metadata"], pod["spec"]
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=meta["name"], uid=meta["uid"], namespace=meta["namespace"], attempt=attempt),
        hostname=network.sandbox_hostname(pod, context.dns),
        log_directory=str(context.log_folder(pod)),
        dns_config=network.dns_config(pod, context.dns),
        labels={**(meta.get("labels") or {}), **_labels(pod)},
        annotations=meta.get("annotations") or {},
        linux=cri.LinuxPodSandboxConfig(
            cgroup_parent=context.cgroups.parent(pod),
            security_context=security.sandbox_context(pod),
            sysctls={s["name"]: s["value"] for s in (spec.get("securityContext") or {}).get("sysctls") or []},
        ),
    )
    if not spec.get("hostNetwork"):
        for container in [*spec.get("containers", []), *(spec.get("initContainers") or [])]:
            for port in container.get("ports") or []:
                config.port_mappings.add(
                    protocol=_PROTOCOLS[port.get("protocol") or "TCP"],
                    container_port=port["containerPort"],
                    host_port=port.get("hostPort") or 0,
                    host_ip=port.get("hostIP") or "",
                )
    return config


def _labels(pod: dict[str, Any]) -> dict[str, str]:
    meta = pod["metadata"]
    return {POD_NAME: meta["name"], POD_NAMESPACE: meta["namespace"], POD_UID: meta["uid"]}


async def start(
    context: Context,
    pod: dict[str, Any],
    container: dict[str, Any],
    *,
    attempt: int,
    sandbox_id: str,
    sandbox: cri.PodSandboxConfig,
    pod_ips: tuple[str, ...],
    target_id: str = "",
) -> str:
    """Pulls the image where needed, makes a container and starts it; its ID.

    Raises StartError, RuntimeUnavailable, ApiError (the API server does not answer).
    """
    name = container["name"]

    def tell(kind: str, reason: str, message: str) -> None:
        context.tell(pod, kind, reason, message, field_path=field_path(pod, name))

    def failed(reason: str, message: str) -> StartError:
        tell("Warning", "Failed", f"Error: {message}")
        return StartError(reason, message)

    try:
        image = await context.images.ensure(pod, container, sandbox, tell)
    except ImageError as error:
        if error.reason not in ("ErrImagePull",):
            tell("Warning", "Failed", f"Error: {error.reason}")
        raise StartError(error.reason, error.message) from error
    try:
        config = await _config(context, pod, container, image, attempt, pod_ips, target_id)
    except (EnvError, VolumeError, security.NotAllowed) as error:
        raise failed("CreateContainerConfigError", str(error)) from error
    except OSError as error:
        raise failed("CreateContainerConfigError", f"failed to prepare container {name}: {error}") from error
    except ApiError as error:
        if error.code and error.code < 500:
            raise failed("CreateContainerConfigError", error.message) from error
        raise
    try:
        request = cri.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox)
        with span("create container", container=name):
            answer = await context.runtime.call("CreateContainer", request, seconds=DEADLINE_SECONDS)
    except RuntimeUnavailable:
        raise
    except RuntimeCallError as error:
        raise failed("CreateContainerError", error.message) from error
    container_id = str(answer.container_id)
    tell("Normal", "Created", f"Created container: {name}")
    try:
        with span("start container", container=name, id=container_id):
            await context.runtime.call(
                "StartContainer", cri.StartContainerRequest(container_id=container_id), seconds=DEADLINE_SECONDS
            )
    except RuntimeUnavailable:
        raise
    except RuntimeCallError as error:
        raise failed("RunContainerError", error.message) from error
    tell("Normal", "Started", f"Started container {name}")
    log.info("started container", pod=pod["metadata"]["uid"], name=name, container=container_id, attempt=attempt)
    return container_id


async def _config(
    context: Context,
    pod: dict[str, Any],
    container: dict[str, Any],
    image: Any,
    attempt: int,
    pod_ips: tuple[str, ...],
    target_id: str,
) -> cri.ContainerConfig:
    meta, name = pod["metadata"], container["name"]
    variables = await environment(pod, container, context.objects, context.facts(pod_ips), context.services())
    image_uid: int | None = image.uid.value if image.HasField("uid") else None
    if image_uid is None and not image.username:
        image_uid = 0
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name, attempt=attempt),
        image=cri.ImageSpec(image=image.id, user_specified_image=container["image"]),
        command=[expand(word, variables) for word in container.get("command") or []],
        args=[expand(word, variables) for word in container.get("args") or []],
        working_dir=container.get("workingDir") or "",
        labels={**_labels(pod), CONTAINER_NAME: name},
        annotations={
            CONTAINER_HASH: spec_hash(container),
            RESTART_COUNT: str(attempt),
            TERMINATION_PATH: container.get("terminationMessagePath") or "/dev/termination-log",
            TERMINATION_POLICY: container.get("terminationMessagePolicy") or "File",
            GRACE_PERIOD: str(grace_seconds(pod)),
        },
        log_path=f"{name}/{attempt}.log",
        stdin=bool(container.get("stdin")),
        stdin_once=bool(container.get("stdinOnce")),
        tty=bool(container.get("tty")),
        stop_signal=_signal((container.get("lifecycle") or {}).get("stopSignal")),
        linux=cri.LinuxContainerConfig(
            resources=resources.container_resources(pod, container, context.memory_bytes),
            security_context=security.container_context(pod, container, image_uid, image.username, target_id),
        ),
    )
    for key, value in variables.items():
        config.envs.add(key=key, value=value.encode("utf-8", "surrogateescape"))
    config.mounts.extend(context.volumes.container_mounts(pod, container, variables))
    folder = context.volumes.pod_folder(meta["uid"])
    _managed_hosts(context, pod, config, folder, pod_ips)
    message = termination.message_file(folder, name, attempt)
    termination.make_message_file(message)
    config.mounts.add(container_path=config.annotations[TERMINATION_PATH], host_path=str(message))
    await asyncio.to_thread((context.log_folder(pod) / name).mkdir, parents=True, exist_ok=True)
    return config


def _signal(name: str | None) -> cri.Signal:
    """A stop signal (`SIGUSR1`, `SIGRTMIN+3`) in CRI's words; the runtime's own choice where none is given (KEP-4960)."""
    if not name:
        return cri.SIGNAL_RUNTIME_DEFAULT
    found: cri.Signal = getattr(cri, "SIGNAL_" + name.replace("+", "PLUS").replace("-", "MINUS"))
    return found


def _managed_hosts(
    context: Context, pod: dict[str, Any], config: cri.ContainerConfig, folder: Path, pod_ips: tuple[str, ...]
) -> None:
    """/etc/hosts, unless the pod mounts one of its own."""
    if any(mount.container_path == "/etc/hosts" for mount in config.mounts):
        return
    path = folder / "etc-hosts"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(network.hosts_file(pod, pod_ips, context.dns))
    path.chmod(0o644)
    config.mounts.add(container_path="/etc/hosts", host_path=str(path))


def grace_seconds(pod: dict[str, Any]) -> int:
    """How long a pod's containers get to end: what its deletion says, else what its specification says."""
    given = pod["metadata"].get("deletionGracePeriodSeconds")
    if given is None:
        given = pod["spec"].get("terminationGracePeriodSeconds")
    return 30 if given is None else int(given)

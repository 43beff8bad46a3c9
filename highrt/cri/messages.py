"""The daemon's pods and containers as messages of CRI, and the filters of its lists."""

from collections.abc import Mapping

from highrt.pods import signals
from highrt.pods.features import Features
from highrt.pods.model import Container, ContainerState, Pod
from strata.protocols import cri_pb2 as cri

STATES = {
    ContainerState.CREATED: cri.CONTAINER_CREATED,
    ContainerState.RUNNING: cri.CONTAINER_RUNNING,
    ContainerState.EXITED: cri.CONTAINER_EXITED,
    ContainerState.UNKNOWN: cri.CONTAINER_UNKNOWN,
}


def handler(name: str, found: Features) -> cri.RuntimeHandler:
    features = cri.RuntimeHandlerFeatures(
        recursive_read_only_mounts=found.recursive_read_only_mounts, user_namespaces=found.user_namespaces
    )
    return cri.RuntimeHandler(name=name, features=features)


def pod_state(pod: Pod) -> cri.PodSandboxState:
    return cri.SANDBOX_READY if pod.ready else cri.SANDBOX_NOTREADY


def pod_item(pod: Pod) -> cri.PodSandbox:
    return cri.PodSandbox(
        id=pod.id,
        metadata=pod.config.metadata,
        state=pod_state(pod),
        created_at=pod.created_at_ns,
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.handler,
    )


def pod_status(pod: Pod) -> cri.PodSandboxStatus:
    status = cri.PodSandboxStatus(
        id=pod.id,
        metadata=pod.config.metadata,
        state=pod_state(pod),
        created_at=pod.created_at_ns,
        network=cri.PodSandboxNetworkStatus(
            ip=pod.ips[0] if pod.ips else "", additional_ips=[cri.PodIP(ip=ip) for ip in pod.ips[1:]]
        ),
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.handler,
    )
    status.linux.namespaces.options.CopyFrom(pod.config.linux.security_context.namespace_options)
    return status


def container_item(container: Container) -> cri.Container:
    return cri.Container(
        id=container.id,
        pod_sandbox_id=container.pod_id,
        metadata=container.config.metadata,
        image=container.config.image,
        image_ref=container.image_ref,
        image_id=container.image_id,
        state=STATES[container.state],
        created_at=container.created_at_ns,
        labels=container.config.labels,
        annotations=container.config.annotations,
    )


def container_status(container: Container) -> cri.ContainerStatus:
    config = container.config
    status = cri.ContainerStatus(
        id=container.id,
        metadata=config.metadata,
        state=STATES[container.state],
        created_at=container.created_at_ns,
        started_at=container.started_at_ns or 0,
        finished_at=container.finished_at_ns or 0,
        exit_code=container.exit_code or 0,
        image=config.image,
        image_ref=container.image_ref,
        image_id=container.image_id,
        reason=container.reason,
        message=container.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=config.mounts,
        log_path=container.log_path or "",
        stop_signal=signals.of_number(container.stop_signal),
    )
    status.resources.linux.CopyFrom(config.linux.resources)
    if user := container.user:
        linux = cri.LinuxContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=user.groups)
        status.user.linux.CopyFrom(linux)
    return status


def pod_matches(pod: Pod, wanted: cri.PodSandboxFilter) -> bool:
    return (
        pod.id.startswith(wanted.id)
        and (not wanted.HasField("state") or wanted.state.state == pod_state(pod))
        and has_labels(pod.config.labels, wanted.label_selector)
    )


def container_matches(container: Container, wanted: cri.ContainerFilter) -> bool:
    return (
        container.id.startswith(wanted.id)
        and container.pod_id.startswith(wanted.pod_sandbox_id)
        and (not wanted.HasField("state") or wanted.state.state == STATES[container.state])
        and has_labels(container.config.labels, wanted.label_selector)
    )


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())

"""A pod's status, from what the runtime has. Pure functions: what goes to the API is decided here and sent elsewhere.

https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubelet.resources import is_sidecar, qos_class
from kubelet.runtime import ContainerState, PodState
from strata.protocols import cri_pb2 as cri

CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def timestamp(seconds: float) -> str:
    """A time as the API writes it: RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Health:
    """What probes say of a container: started (startup probe), ready (readiness probe)."""

    started: bool = False
    ready: bool = False


@dataclass
class Inputs:
    """Beside the pod and the runtime's state, all that a status depends on.

    waiting: reason and message of containers that are not started, by name. health: by container ID. messages: termination
    messages by container ID. failed: reason and message of a pod that is failed whatever its containers do. deadline: the
    pod is being ended. ended: its containers are gone for good. host_ip, now (seconds since the epoch), runtime (its name).
    """

    host_ip: str = ""
    now: float = 0.0
    runtime: str = "unknown"
    waiting: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    health: Mapping[str, Health] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[str, str] | None = None
    ended: bool = False


def pod_status(pod: dict[str, Any], state: PodState, inputs: Inputs) -> dict[str, Any]:
    """The whole status of a pod, as the API has it."""
    spec, old = pod["spec"], pod.get("status") or {}
    inits = spec.get("initContainers") or []
    init_statuses = [_container_status(pod, c, state, inputs, init=True) for c in inits]
    statuses = [_container_status(pod, c, state, inputs, init=False) for c in spec.get("containers", [])]
    phase = _phase(spec, init_statuses, statuses, inputs)
    if old.get("phase") in ("Succeeded", "Failed"):
        phase = old["phase"]  # a pod that has ended never lives again
    status: dict[str, Any] = {"phase": phase, "qosClass": old.get("qosClass") or qos_class(pod)}
    if inputs.failed:
        status["reason"], status["message"] = inputs.failed
    elif old.get("reason") and phase == "Failed":
        status |= {k: old[k] for k in ("reason", "message") if old.get(k)}
    status["startTime"] = old.get("startTime") or timestamp(inputs.now)
    if inputs.host_ip:
        status |= {"hostIP": inputs.host_ip, "hostIPs": [{"ip": inputs.host_ip}]}
    if addresses := pod_ips(pod, state, inputs.host_ip):
        status |= {"podIP": addresses[0], "podIPs": [{"ip": ip} for ip in addresses]}
    elif old.get("podIP") and (inputs.ended or phase in ("Succeeded", "Failed")):
        status |= {"podIP": old["podIP"], "podIPs": old.get("podIPs") or [{"ip": old["podIP"]}]}
    if init_statuses:
        status["initContainerStatuses"] = init_statuses
    status["containerStatuses"] = statuses
    if ephemeral := spec.get("ephemeralContainers"):
        status["ephemeralContainerStatuses"] = [_container_status(pod, c, state, inputs, init=False) for c in ephemeral]
    if pod["metadata"].get("generation"):
        status["observedGeneration"] = pod["metadata"]["generation"]
    status["conditions"] = _conditions(pod, state, phase, init_statuses, statuses, inputs)
    return status


def pod_ips(pod: dict[str, Any], state: PodState, host_ip: str) -> tuple[str, ...]:
    """The addresses of a pod: its sandbox's, or the host's."""
    if pod["spec"].get("hostNetwork"):
        return (host_ip,) if host_ip else ()
    sandbox = state.ready_sandbox
    if sandbox is None or not sandbox.network.ip:
        return ()
    return (sandbox.network.ip, *(extra.ip for extra in sandbox.network.additional_ips))


def _container_status(
    pod: dict[str, Any], container: dict[str, Any], state: PodState, inputs: Inputs, *, init: bool
) -> dict[str, Any]:
    name, spec = container["name"], pod["spec"]
    history = state.of(name)
    latest = history[0] if history else None
    waiting = inputs.waiting.get(name)
    found: dict[str, Any] = {
        "name": name,
        "image": container.get("image", ""),
        "imageID": "",
        "lastState": {},
        "ready": False,
        "restartCount": 0,
        "started": False,
    }
    if latest is None:
        if waiting is None:
            has_inits = bool(spec.get("initContainers")) and not init
            waiting = ("PodInitializing" if has_inits else "ContainerCreating", "")
        old = _old_status(pod, name)
        if inputs.ended or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            found["state"] = _lost(old, waiting)
            found |= {k: old[k] for k in ("containerID", "imageID", "restartCount") if old.get(k)}
        else:
            found["state"] = {"waiting": _waiting(waiting)}
            # A sandbox that was made anew knows nothing of what ran before it.
            found |= {k: old[k] for k in ("restartCount", "lastState") if old.get(k)}
        return found
    found |= {
        "image": latest.status.image.user_specified_image or latest.status.image.image or container.get("image", ""),
        "imageID": latest.status.image_ref,
        "containerID": f"{inputs.runtime}://{latest.id}",
        "restartCount": latest.restarts,
    }
    previous = next((c for c in history[1:] if c.exited), None)
    if previous:
        found["lastState"] = {"terminated": _terminated(previous, inputs)}
    if latest.running:
        health = inputs.health.get(latest.id, Health())
        found["state"] = {"running": {"startedAt": timestamp(latest.started)}}
        found["started"] = health.started
        found["ready"] = health.ready and (not init or is_sidecar(container))
    elif latest.exited:
        terminated = _terminated(latest, inputs)
        if waiting is not None and not inputs.ended:
            found["state"], found["lastState"] = {"waiting": _waiting(waiting)}, {"terminated": terminated}
        else:
            found["state"] = {"terminated": terminated}
            found["ready"] = init and latest.status.exit_code == 0
    elif latest.status.state == cri.CONTAINER_CREATED:
        found["state"] = {"waiting": _waiting(waiting or ("ContainerCreating", ""))}
    else:
        found["state"] = {
            "terminated": {
                "exitCode": 137,
                "reason": "ContainerStatusUnknown",
                "message": "The container could not be located when the pod was terminated",
                "containerID": f"{inputs.runtime}://{latest.id}",
            }
        }
    return found


def _waiting(reason: tuple[str, str]) -> dict[str, str]:
    return {"reason": reason[0], **({"message": reason[1]} if reason[1] else {})}


def container_statuses(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The statuses of all containers of a pod, whatever their kind."""
    kinds = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
    return [container for kind in kinds for container in status.get(kind) or []]


def _old_status(pod: dict[str, Any], name: str) -> dict[str, Any]:
    old = pod.get("status") or {}
    for status in container_statuses(old):
        if status["name"] == name:
            return dict(status)
    return {}


def _lost(old: dict[str, Any], waiting: tuple[str, str]) -> dict[str, Any]:
    """The end of a container that the runtime no longer has: as the API knew it, or lost if it ran then."""
    state = old.get("state") or {}
    if "terminated" in state:
        return dict(state)
    if "running" in state:
        return {
            "terminated": {
                "exitCode": 137,
                "reason": "ContainerStatusUnknown",
                "message": "The container could not be located when the pod was deleted.  The container used to be Running",
            }
        }
    return {"waiting": state.get("waiting") or _waiting(waiting)}


def _terminated(container: ContainerState, inputs: Inputs) -> dict[str, Any]:
    status = container.status
    reason = status.reason or ("Completed" if status.exit_code == 0 else "Error")
    message = inputs.messages.get(container.id) or status.message
    return {
        "exitCode": status.exit_code,
        "reason": reason,
        **({"message": message} if message else {}),
        "startedAt": timestamp(container.started) if container.started > 0 else None,
        "finishedAt": timestamp(container.finished) if container.finished > 0 else None,
        "containerID": f"{inputs.runtime}://{container.id}",
    }


def _phase(spec: dict[str, Any], inits: list[dict[str, Any]], statuses: list[dict[str, Any]], inputs: Inputs) -> str:
    if inputs.failed:
        return "Failed"
    policy = spec.get("restartPolicy") or "Always"
    started = any("running" in s["state"] or "terminated" in s["state"] or s.get("lastState") for s in statuses)
    if not started:
        for container, status in zip(spec.get("initContainers") or [], inits, strict=True):
            terminated = status["state"].get("terminated")
            if terminated and terminated["exitCode"] != 0 and policy == "Never" and not is_sidecar(container):
                return "Failed"
    running = waiting = succeeded = failed = 0
    for status in statuses:
        state, last = status["state"], (status.get("lastState") or {}).get("terminated")
        terminated = state.get("terminated")
        if "running" in state:
            running += 1
        elif terminated:
            succeeded, failed = (succeeded + 1, failed) if terminated["exitCode"] == 0 else (succeeded, failed + 1)
        elif last:
            # It waits to be started again.
            running += 1
        else:
            waiting += 1
    if waiting:
        return "Failed" if inputs.ended else "Pending"
    if running:
        return "Running"
    if policy == "Always" and not inputs.ended:
        return "Running"
    if not failed:
        return "Succeeded"
    return "Failed" if policy == "Never" or inputs.ended else "Running"


def _conditions(
    pod: dict[str, Any],
    state: PodState,
    phase: str,
    inits: list[dict[str, Any]],
    statuses: list[dict[str, Any]],
    inputs: Inputs,
) -> list[dict[str, Any]]:
    old = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or []}
    spec = pod["spec"]
    completed = phase == "Succeeded"
    not_initialized = [
        s["name"]
        for c, s in zip(spec.get("initContainers") or [], inits, strict=True)
        if not (
            (s["started"] and "running" in s["state"]) if is_sidecar(c) else s["state"].get("terminated", {}).get("exitCode") == 0
        )
    ]
    if any("running" in s["state"] or "terminated" in s["state"] or s.get("lastState") for s in statuses):
        not_initialized = []
    unready = [
        s["name"]
        for s in [*statuses, *(s for c, s in zip(spec.get("initContainers") or [], inits, strict=True) if is_sidecar(c))]
        if not s["ready"]
    ]
    ready_reason = ("", "")
    if completed:
        ready_reason = ("PodCompleted", "")
    elif phase == "Failed":
        ready_reason = ("PodFailed", "")
    elif unready:
        ready_reason = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    gates = [
        gate["conditionType"]
        for gate in spec.get("readinessGates") or []
        if old.get(gate["conditionType"], {}).get("status") != "True"
    ]
    pod_reason = ready_reason
    if not ready_reason[0] and gates:
        missing = "; ".join(
            f'the status of pod readiness gate "{g}" is not "True", but {old.get(g, {}).get("status", "")}' for g in gates
        )
        pod_reason = ("ReadinessGatesNotReady", missing)
    initialized = ("PodCompleted", "") if completed else ("", "")
    if not_initialized and not completed:
        initialized = ("ContainersNotInitialized", f"containers with incomplete status: [{' '.join(not_initialized)}]")
    ready_sandbox = state.ready_sandbox is not None and (bool(spec.get("hostNetwork")) or bool(pod_ips(pod, state, "")))
    wanted = [
        ("PodReadyToStartContainers", ready_sandbox, ("", "")),
        ("Initialized", completed or not not_initialized, initialized),
        ("Ready", not pod_reason[0], pod_reason),
        ("ContainersReady", not ready_reason[0], ready_reason),
        ("PodScheduled", True, ("", "")),
    ]
    return [_condition(old.get(kind), kind, holds, reason, pod, inputs) for kind, holds, reason in wanted]


def _condition(
    old: dict[str, Any] | None, kind: str, holds: bool, reason: tuple[str, str], pod: dict[str, Any], inputs: Inputs
) -> dict[str, Any]:
    status = "True" if holds else "False"
    since = old.get("lastTransitionTime") if old and old.get("status") == status else None
    found = {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": since or timestamp(inputs.now)}
    if reason[0]:
        found["reason"] = reason[0]
    if reason[1]:
        found["message"] = reason[1]
    if pod["metadata"].get("generation"):
        found["observedGeneration"] = pod["metadata"]["generation"]
    return found

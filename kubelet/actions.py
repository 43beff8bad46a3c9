"""What a pod's worker does next: the difference between what the pod asks and what the runtime has. Pure.

The order is Kubernetes': a sandbox; init containers, each after the one before it (a sidecar counts once it has started);
then all others at once. https://kubernetes.io/docs/concepts/workloads/pods/init-containers/
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubelet.resources import is_sidecar
from kubelet.runtime import ContainerState, PodState
from kubelet.status import Health
from strata.protocols import cri_pb2 as cri


@dataclass
class Actions:
    """new_sandbox: make one, after all that is there is stopped. start: containers to start now, in order. kill: running
    containers to stop, with the reason for the event. done: nothing will ever run again; the pod has ended."""

    new_sandbox: bool = False
    attempt: int = 0
    start: list[dict[str, Any]] = field(default_factory=list)
    kill: list[tuple[ContainerState, str]] = field(default_factory=list)
    done: bool = False


def spec_hash(container: dict[str, Any]) -> str:
    """What must not change under a running container: its name and image."""
    text = json.dumps({"name": container["name"], "image": container.get("image", "")}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def restarts(pod: dict[str, Any], container: dict[str, Any], exit_code: int, *, init: bool) -> bool:
    """Whether an exited container is to run again."""
    policy = container.get("restartPolicy") or pod["spec"].get("restartPolicy") or "Always"
    if init and not is_sidecar(container):
        return exit_code != 0 and policy != "Never"
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def compute(
    pod: dict[str, Any], state: PodState, health: Mapping[str, Health], failing: Mapping[str, str] | None = None
) -> Actions:
    """The next actions. Ephemeral containers start, once, whenever there is a sandbox (KEP-277).

    health: probes' results by container ID. failing: containers (by ID) that a liveness or startup probe gave up, with why.
    """
    actions = _compute(pod, state, health, failing or {})
    if not (actions.new_sandbox or actions.done):
        ephemeral = pod["spec"].get("ephemeralContainers") or []
        actions.start += [c for c in ephemeral if state.latest(c["name"]) is None]
    return actions


def _compute(pod: dict[str, Any], state: PodState, health: Mapping[str, Health], failing: Mapping[str, str]) -> Actions:
    spec = pod["spec"]
    inits, mains = spec.get("initContainers") or [], spec.get("containers", [])
    sandbox = state.ready_sandbox
    ready = [s for s in state.sandboxes if s.state == cri.SANDBOX_READY]
    if sandbox is None or len(ready) > 1 or (not spec.get("hostNetwork") and not sandbox.network.ip):
        return _without_sandbox(pod, state)
    here = PodState([sandbox], [c for c in state.containers if c.sandbox_id == sandbox.id])
    actions = Actions(attempt=sandbox.metadata.attempt)
    begun = any(here.latest(c["name"]) for c in mains)
    for index, container in enumerate(inits):
        latest = here.latest(container["name"])
        if is_sidecar(container):
            if latest is None or latest.exited or latest.status.state in (cri.CONTAINER_CREATED, cri.CONTAINER_UNKNOWN):
                if _all_main_done(pod, here, mains):
                    continue
                actions.start.append(container)
            elif latest.id in failing:
                actions.kill.append((latest, failing[latest.id]))
            if not begun and not (latest and latest.running and health.get(latest.id, Health()).started):
                return actions
            continue
        if begun:
            continue
        later = any(here.latest(c["name"]) for c in inits[index + 1 :] if not is_sidecar(c))
        if latest is not None and latest.exited and latest.status.exit_code == 0:
            continue
        if later and latest is None:
            continue  # it was collected; those after it prove that it succeeded
        if latest is not None and latest.running:
            return actions
        if latest is not None and latest.exited and not restarts(pod, container, latest.status.exit_code, init=True):
            actions.done = True
            actions.kill = [(c, "") for c in here.running]
            return actions
        actions.start.append(container)
        return actions
    _mains(pod, here, mains, failing, actions)
    if not actions.start and mains and _all_main_done(pod, here, mains):
        actions.done = True
    return actions


def _mains(
    pod: dict[str, Any], here: PodState, mains: list[dict[str, Any]], failing: Mapping[str, str], actions: Actions
) -> None:
    for container in mains:
        latest = here.latest(container["name"])
        if latest is None:
            actions.start.append(container)
        elif latest.running:
            if latest.id in failing:
                actions.kill.append((latest, failing[latest.id]))
            elif latest.hash and latest.hash != spec_hash(container):
                actions.kill.append((latest, f"Container {container['name']} definition changed, will be restarted"))
        elif latest.exited:
            if restarts(pod, container, latest.status.exit_code, init=False):
                actions.start.append(container)
        else:
            actions.start.append(container)  # created and never started, or lost by the runtime


def _all_main_done(pod: dict[str, Any], here: PodState, mains: list[dict[str, Any]]) -> bool:
    for container in mains:
        latest = here.latest(container["name"])
        if latest is None or not latest.exited or restarts(pod, container, latest.status.exit_code, init=False):
            return False
    return True


def _without_sandbox(pod: dict[str, Any], state: PodState) -> Actions:
    """A new sandbox, unless the pod's containers have ended and none is to run again."""
    spec = pod["spec"]
    mains, inits = spec.get("containers", []), spec.get("initContainers") or []
    attempt = state.sandbox.metadata.attempt + 1 if state.sandbox is not None else 0
    if state.containers and _all_main_done(pod, state, mains):
        return Actions(done=True)
    if attempt and state.containers and (spec.get("restartPolicy") or "Always") == "Never":
        # What ran once is not run again because its sandbox went away.
        return Actions(done=True)
    first: list[dict[str, Any]] = []
    for container in inits:
        first.append(container)
        break
    return Actions(new_sandbox=True, attempt=attempt, start=first or list(mains))

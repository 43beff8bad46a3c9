"""A pod's status from the runtime's state, and the patch that tells it."""

from typing import Any

from kubelet.runtime import PodState
from kubelet.status import Health, Inputs, pod_status
from kubelet.statuswriter import difference
from strata.protocols import cri_pb2 as cri
from tests.unit.kubelet.test_actions import container, pod, sandbox


def status(wanted: dict[str, Any], state: PodState, **inputs: Any) -> dict[str, Any]:
    return pod_status(wanted, state, Inputs(now=1_700_000_000, host_ip="10.9.9.9", runtime="r", **inputs))


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(c for c in found["conditions"] if c["type"] == kind)


def test_a_pod_that_nothing_is_known_of_is_pending() -> None:
    found = status(pod("a"), PodState())
    assert found["phase"] == "Pending"
    assert found["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert condition(found, "Ready")["message"] == "containers with unready status: [a]"


def test_running_and_ready() -> None:
    found = status(pod("a"), PodState([sandbox()], [container("a")]), health={"a-0": Health(True, True)})
    assert found["phase"] == "Running"
    assert found["podIPs"] == [{"ip": "10.0.0.1"}]
    assert found["containerStatuses"][0]["containerID"] == "r://a-0"
    assert condition(found, "Ready")["status"] == "True"


def test_a_container_that_waits_to_run_again_shows_its_last_state() -> None:
    state = PodState([sandbox()], [container("a", cri.CONTAINER_EXITED, code=3)])
    found = status(pod("a"), state, waiting={"a": ("CrashLoopBackOff", "back-off")}, messages={"a-0": "told"})
    shown = found["containerStatuses"][0]
    assert shown["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    assert (shown["lastState"]["terminated"]["exitCode"], shown["lastState"]["terminated"]["message"]) == (3, "told")
    assert found["phase"] == "Running"


def test_phases_of_ended_pods() -> None:
    for policy, code, phase in (
        ("Never", 0, "Succeeded"),
        ("Never", 2, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("Always", 0, "Running"),
    ):
        state = PodState([sandbox()], [container("a", cri.CONTAINER_EXITED, code=code)])
        assert status(pod("a", policy=policy), state)["phase"] == phase
    state = PodState([sandbox()], [container("a", cri.CONTAINER_EXITED, code=137)])
    assert status(pod("a"), state, ended=True)["phase"] == "Failed"


def test_an_ended_pod_never_lives_again() -> None:
    wanted = {**pod("a"), "status": {"phase": "Failed", "reason": "Evicted"}}
    found = status(wanted, PodState([sandbox()], [container("a")]))
    assert (found["phase"], found["reason"]) == ("Failed", "Evicted")


def test_a_transition_time_stays_while_the_condition_does() -> None:
    first = status(pod("a"), PodState())
    later = pod_status({**pod("a"), "status": first}, PodState(), Inputs(now=1_800_000_000, host_ip="10.9.9.9"))
    assert condition(first, "Ready")["lastTransitionTime"] == condition(later, "Ready")["lastTransitionTime"]


def test_readiness_gates_hold_ready_but_not_containers_ready() -> None:
    wanted = pod("a")
    wanted["spec"]["readinessGates"] = [{"conditionType": "x/y"}]
    found = status(wanted, PodState([sandbox()], [container("a")]), health={"a-0": Health(True, True)})
    assert condition(found, "ContainersReady")["status"] == "True"
    assert condition(found, "Ready")["reason"] == "ReadinessGatesNotReady"


def test_a_patch_has_only_what_differs() -> None:
    found = status(pod("a"), PodState([sandbox()], [container("a")]))
    assert difference(found, found) == {}
    changed = {**found, "phase": "Failed", "podIPs": [{"ip": "10.0.0.2"}]}
    assert difference(found, changed) == {"phase": "Failed", "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}]}


def test_a_patch_leaves_the_conditions_of_others_alone() -> None:
    found = status(pod("a"), PodState())
    foreign = {**found, "conditions": [*found["conditions"], {"type": "x/y", "status": "True"}]}
    assert difference(foreign, found) == {}

"""What a pod's worker decides to do, from the pod and the runtime's state alone."""

from typing import Any

from kubelet.actions import compute, spec_hash
from kubelet.runtime import CONTAINER_HASH, RESTART_COUNT, ContainerState, PodState
from kubelet.status import Health
from strata.protocols import cri_pb2 as cri

SANDBOX = "s0"


def pod(*names: str, init: tuple[dict[str, Any], ...] = (), policy: str = "Always") -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {
            "restartPolicy": policy,
            "containers": [{"name": name, "image": "i"} for name in names],
            "initContainers": [{"image": "i", **c} for c in init],
        },
    }


def sandbox(ready: bool = True, attempt: int = 0, ip: str = "10.0.0.1") -> Any:
    state = cri.SANDBOX_READY if ready else cri.SANDBOX_NOTREADY
    network = cri.PodSandboxNetworkStatus(ip=ip)
    return cri.PodSandboxStatus(id=SANDBOX, metadata=cri.PodSandboxMetadata(attempt=attempt), state=state, network=network)


def container(
    name: str, state: int = cri.CONTAINER_RUNNING, *, code: int = 0, restarts: int = 0, hash: str = ""
) -> ContainerState:
    status = cri.ContainerStatus(
        id=f"{name}-{restarts}",
        metadata=cri.ContainerMetadata(name=name, attempt=restarts),
        state=state,
        exit_code=code,
        annotations={RESTART_COUNT: str(restarts), CONTAINER_HASH: hash},
    )
    return ContainerState(status, SANDBOX)


def started(actions: Any) -> list[str]:
    return [c["name"] for c in actions.start]


def test_a_pod_without_a_sandbox_gets_one_and_all_its_containers() -> None:
    actions = compute(pod("a", "b"), PodState(), {})
    assert actions.new_sandbox
    assert started(actions) == ["a", "b"]


def test_with_init_containers_only_the_first_starts() -> None:
    assert started(compute(pod("a", init=({"name": "i"}, {"name": "j"})), PodState(), {})) == ["i"]


def test_a_sandbox_without_an_address_is_made_again() -> None:
    actions = compute(pod("a"), PodState([sandbox(ip="", attempt=2)]), {})
    assert (actions.new_sandbox, actions.attempt) == (True, 3)


def test_the_next_init_container_waits_for_the_one_before() -> None:
    wanted = pod("a", init=({"name": "i"}, {"name": "j"}))
    assert started(compute(wanted, PodState([sandbox()], [container("i")]), {})) == []
    done = PodState([sandbox()], [container("i", cri.CONTAINER_EXITED)])
    assert started(compute(wanted, done, {})) == ["j"]


def test_a_failed_init_container_is_tried_again_unless_never() -> None:
    failed = PodState([sandbox()], [container("i", cri.CONTAINER_EXITED, code=1)])
    assert started(compute(pod("a", init=({"name": "i"},)), failed, {})) == ["i"]
    assert compute(pod("a", init=({"name": "i"},), policy="Never"), failed, {}).done


def test_containers_wait_until_a_sidecar_has_started() -> None:
    wanted = pod("a", init=({"name": "s", "restartPolicy": "Always"},))
    state = PodState([sandbox()], [container("s")])
    assert started(compute(wanted, state, {"s-0": Health(started=False)})) == []
    assert started(compute(wanted, state, {"s-0": Health(started=True)})) == ["a"]


def test_a_running_pod_needs_nothing() -> None:
    wanted = pod("a")
    state = PodState([sandbox()], [container("a", hash=spec_hash(wanted["spec"]["containers"][0]))])
    actions = compute(wanted, state, {})
    assert (actions.start, actions.kill, actions.done, actions.new_sandbox) == ([], [], False, False)


def test_a_changed_image_and_a_failed_probe_kill_the_container() -> None:
    changed = compute(pod("a"), PodState([sandbox()], [container("a", hash="other")]), {})
    assert [reason for _, reason in changed.kill] == ["Container a definition changed, will be restarted"]
    failing = compute(pod("a"), PodState([sandbox()], [container("a")]), {}, {"a-0": "why"})
    assert [reason for _, reason in failing.kill] == ["why"]


def test_the_restart_policy_decides_about_exited_containers() -> None:
    for policy, code, again in (
        ("Always", 0, True),
        ("OnFailure", 0, False),
        ("OnFailure", 1, True),
        ("Never", 1, False),
    ):
        state = PodState([sandbox()], [container("a", cri.CONTAINER_EXITED, code=code)])
        actions = compute(pod("a", policy=policy), state, {})
        assert (bool(actions.start), actions.done) == (again, not again), (policy, code)


def test_a_pod_that_has_ended_gets_no_new_sandbox() -> None:
    state = PodState([sandbox(ready=False)], [container("a", cri.CONTAINER_EXITED, code=1)])
    assert compute(pod("a", policy="Never"), state, {}).done
    assert compute(pod("a"), state, {}).new_sandbox


def test_a_container_that_was_made_and_never_started_is_made_again() -> None:
    state = PodState([sandbox()], [container("a", cri.CONTAINER_CREATED)])
    assert started(compute(pod("a"), state, {})) == ["a"]

"""A pod's life on a real runtime, as a user sees it through the API."""

from tests.integration.kubelet.conftest import NODE_IP, Stack, condition, state_of


def test_a_pod_runs_and_its_status_is_whole(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]})
    pod = stack.wait_ready(name)
    status = pod["status"]
    assert status["phase"] == "Running"
    assert status["podIP"].startswith("10.45.0.")
    assert status["podIPs"] == [{"ip": status["podIP"]}]
    assert status["hostIP"] == NODE_IP
    assert status["qosClass"] == "BestEffort"
    kinds = {c["type"]: c["status"] for c in status["conditions"]}
    wanted = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    assert kinds == dict.fromkeys(wanted, "True")
    container = state_of(status)
    assert container["containerID"].startswith("containerd://")
    assert container["ready"] is True
    assert container["started"] is True
    assert container["restartCount"] == 0
    assert "startedAt" in container["state"]["running"]
    reasons = {reason for reason, _ in stack.events(name)}
    assert {"Pulled", "Created", "Started"} <= reasons


def test_a_pod_that_ends_well_is_succeeded(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sh", "-c", "echo bye; echo last words > /dev/termination-log"]}, restartPolicy="Never")
    status = stack.wait_phase(name, "Succeeded")["status"]
    terminated = state_of(status)["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"], terminated["message"]) == (0, "Completed", "last words\n")
    assert condition(status, "Ready") == "False"
    assert stack.logs(name) == "bye"

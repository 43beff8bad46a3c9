"""A pod's life on a real runtime, as a user sees it through the API."""

import json
import os

from strata.protocols import cri_pb2 as cri
from tests.conftest import wait_for
from tests.integration.kubelet.conftest import NODE_IP, Stack, condition, state_of


def pod_cgroups(stack: Stack) -> list[str]:
    return [where for where, _, _ in os.walk("/sys/fs/cgroup") if stack.cgroup_root in where]


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
    assert container["containerID"].startswith(f"{stack.runtime}://")
    assert container["ready"] is True
    assert container["started"] is True
    assert container["restartCount"] == 0
    assert "startedAt" in container["state"]["running"]
    reasons = {reason for reason, _ in stack.events(name)}
    assert {"Pulled", "Created", "Started"} <= reasons


def test_a_status_that_somebody_else_has_written_over_is_written_again(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]})
    stack.wait_ready(name)
    # What the node life cycle controller does while a node is silent.
    written = stack.pod(name)
    silent = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
    written["status"]["conditions"] = [c if c["type"] != "Ready" else silent for c in written["status"]["conditions"]]
    del written["metadata"]["resourceVersion"]
    stack.kubectl("replace", "--raw", f"/api/v1/namespaces/default/pods/{name}/status", "-f", "-", input=json.dumps(written))
    pod = stack.wait(name, lambda s: condition(s, "Ready") == "True")
    ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
    assert "reason" not in ready


def test_a_pod_that_ends_well_is_succeeded(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sh", "-c", "echo bye; echo last words > /dev/termination-log"]}, restartPolicy="Never")
    status = stack.wait_phase(name, "Succeeded")["status"]
    terminated = state_of(status)["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"], terminated["message"]) == (0, "Completed", "last words\n")
    assert condition(status, "Ready") == "False"
    assert stack.logs(name) == "bye"


def test_init_containers_run_one_after_the_other_before_the_rest(stack: Stack, name: str) -> None:
    mount = [{"name": "v", "mountPath": "/v"}]
    stack.create(
        name,
        {"command": ["sh", "-c", "cat /v/f; sleep 1000"], "volumeMounts": mount},
        init=[
            {"command": ["sh", "-c", "echo one >> /v/f"], "volumeMounts": mount},
            {"command": ["sh", "-c", "echo two >> /v/f"], "volumeMounts": mount},
        ],
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    status = stack.wait_ready(name)["status"]
    assert stack.logs(name) == "one\ntwo"
    assert [s["state"]["terminated"]["reason"] for s in status["initContainerStatuses"]] == ["Completed", "Completed"]


def test_a_failed_init_container_fails_a_pod_that_is_never_restarted(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]}, init=[{"command": ["sh", "-c", "exit 4"]}], restartPolicy="Never")
    status = stack.wait_phase(name, "Failed")["status"]
    assert state_of(status, "i0")["state"]["terminated"]["exitCode"] == 4
    assert state_of(status)["state"]["waiting"]["reason"] == "PodInitializing"
    assert condition(status, "Initialized") == "False"


def test_a_sidecar_runs_beside_the_containers_and_does_not_keep_the_pod_alive(stack: Stack, name: str) -> None:
    sidecar = {"restartPolicy": "Always", "command": ["sleep", "1000"]}
    stack.create(name, {"command": ["sh", "-c", "sleep 1"]}, init=[sidecar], restartPolicy="Never")
    stack.wait(name, lambda s: "running" in state_of(s, "i0").get("state", {}), what="with its sidecar running")
    assert state_of(stack.wait_phase(name, "Succeeded")["status"])["state"]["terminated"]["exitCode"] == 0


def test_a_failing_container_is_restarted_and_backed_off(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sh", "-c", "exit 3"]})
    status = stack.wait(name, lambda s: state_of(s).get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff")[
        "status"
    ]
    container = state_of(status)
    assert container["state"]["waiting"]["message"].startswith("back-off 10s restarting failed container=c pod=")
    assert container["lastState"]["terminated"]["exitCode"] == 3
    assert container["lastState"]["terminated"]["reason"] == "Error"
    assert container["restartCount"] >= 1
    assert status["phase"] == "Running"
    assert any(r == "BackOff" and m.startswith("Back-off restarting failed container c") for r, m in stack.events(name))


def test_on_failure_restarts_until_it_succeeds(stack: Stack, name: str) -> None:
    script = "if [ -e /v/f ]; then exit 0; fi; touch /v/f; exit 1"
    volume = {"command": ["sh", "-c", script], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    stack.create(name, volume, restartPolicy="OnFailure", volumes=[{"name": "v", "emptyDir": {}}])
    assert state_of(stack.wait_phase(name, "Succeeded")["status"])["restartCount"] == 1


def test_a_command_that_does_not_exist_is_named(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["/no/such/program"]})
    wanted = ("RunContainerError", "CreateContainerError", "CrashLoopBackOff")
    status = stack.wait(name, lambda s: state_of(s).get("state", {}).get("waiting", {}).get("reason") in wanted)["status"]
    assert "/no/such/program" in str(state_of(status))
    assert any(r == "Failed" and "/no/such/program" in m for r, m in stack.events(name))


def test_a_missing_image_is_backed_off(stack: Stack, name: str) -> None:
    stack.create(name, {"image": "127.0.0.1:9/nothing:here"})

    def waiting(reason: str) -> str:
        found = stack.wait(name, lambda s: state_of(s).get("state", {}).get("waiting", {}).get("reason") == reason, what=reason)
        return str(state_of(found["status"])["state"]["waiting"]["message"])

    assert "127.0.0.1:9/nothing:here" in waiting("ErrImagePull")
    assert waiting("ImagePullBackOff").startswith('Back-off pulling image "127.0.0.1:9/nothing:here"')
    assert {"Pulling", "Failed", "BackOff"} <= {reason for reason, _ in stack.events(name)}


def test_an_image_that_must_not_be_pulled_and_one_without_a_form(stack: Stack, name: str) -> None:
    stack.create(name, {"image": "local.test/absent:1", "imagePullPolicy": "Never"}, {"image": "a b"})
    status = stack.wait(name, lambda s: state_of(s, "c1").get("state", {}).get("waiting", {}).get("message"))["status"]
    assert state_of(status)["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    assert state_of(status, "c1")["state"]["waiting"]["reason"] == "InvalidImageName"


def test_a_missing_key_is_a_config_error_until_it_is_there(stack: Stack, name: str) -> None:
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": f"{name}-map", "key": "a"}}}]
    stack.create(name, {"command": ["sh", "-c", "echo $A; sleep 1000"], "env": env})
    status = stack.wait(
        name, lambda s: state_of(s).get("state", {}).get("waiting", {}).get("reason") == "CreateContainerConfigError"
    )["status"]
    assert state_of(status)["state"]["waiting"]["message"] == f'configmap "{name}-map" not found'
    stack.kubectl("create", "configmap", f"{name}-map", "--from-literal=a=found")
    stack.wait_ready(name)
    assert stack.logs(name) == "found"


def test_too_much_memory_is_told_as_oomkilled(stack: Stack, name: str) -> None:
    hog = "x=a; while true; do x=$x$x; done"
    stack.create(name, {"command": ["sh", "-c", hog], "resources": {"limits": {"memory": "20Mi"}}}, restartPolicy="Never")
    terminated = state_of(stack.wait_phase(name, "Failed")["status"])["state"]["terminated"]
    assert (terminated["reason"], terminated["exitCode"]) == ("OOMKilled", 137)


def test_deletion_gives_the_grace_period_and_leaves_nothing(stack: Stack, name: str) -> None:
    script = "trap 'echo asked; sleep 1; echo done; exit 0' TERM; while true; do sleep 0.1; done"
    stop = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1"]}}}
    stack.create(name, {"command": ["sh", "-c", script], "lifecycle": stop}, terminationGracePeriodSeconds=20)
    uid = stack.wait_ready(name)["metadata"]["uid"]
    log = stack.pod_logs / f"default_{name}_{uid}/c/0.log"
    seen = log.open()
    stack.delete(name)
    assert [line.split(" ", 3)[3].strip() for line in seen] == ["hook", "asked", "done"]
    assert any(r == "Killing" and m == "Stopping container c" for r, m in stack.events(name))
    wait_for(lambda: not list(stack.pod_logs.glob(f"*{uid}*")), what="the logs to go")
    assert not (stack.root / "pods" / uid).exists()
    assert not any(uid in group for group in pod_cgroups(stack))


def test_forced_deletion_does_not_wait(stack: Stack, name: str) -> None:
    stack.create(
        name, {"command": ["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"]}, terminationGracePeriodSeconds=300
    )
    uid = stack.wait_ready(name)["metadata"]["uid"]
    stack.kubectl("delete", "pod", name, "--force", "--grace-period=0")
    wait_for(lambda: not (stack.root / "pods" / uid).exists(), seconds=15, what="the pod to be gone from the node")


def test_a_killed_kubelet_finds_its_pods_and_restarts_nothing(stack: Stack, name: str) -> None:
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    stack.create(name, {"command": ["sh", "-c", "i=0; while sleep 0.1; do echo $((i++)); done"], "readinessProbe": probe})
    before = stack.wait_ready(name)["status"]
    stack.restart("kubelet")
    stack.create(f"{name}-after", {"command": ["sleep", "1000"]})
    stack.wait_ready(f"{name}-after", seconds=30)
    after = stack.pod(name)["status"]
    assert state_of(after)["containerID"] == state_of(before)["containerID"]
    assert state_of(after)["restartCount"] == 0
    transitions = [next(c["lastTransitionTime"] for c in s["conditions"] if c["type"] == "Ready") for s in (before, after)]
    assert transitions[0] == transitions[1], "the pod stayed Ready"
    stack.delete(f"{name}-after")


def test_a_pod_that_was_deleted_while_no_kubelet_ran_is_taken_away(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]})
    uid = stack.wait_ready(name)["metadata"]["uid"]
    stack.kill("kubelet")
    stack.kubectl("delete", "pod", name, "--force", "--grace-period=0")
    stack.start_kubelet()
    wait_for(
        lambda: not (stack.root / "pods" / uid).exists() and not list(stack.pod_logs.glob(f"*{uid}")),
        seconds=30,
        what="the orphan to go",
    )


def test_a_deletion_that_began_while_no_kubelet_ran_is_finished(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]})
    stack.wait_ready(name)
    stack.kill("kubelet")
    stack.kubectl("delete", "pod", name, "--wait=false")
    stack.start_kubelet()
    wait_for(lambda: stack.try_kubectl("get", "pod", name).returncode != 0, seconds=20, what="the pod to go")


def test_a_pod_that_runs_too_long_is_failed(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]}, activeDeadlineSeconds=2)
    assert stack.wait_phase(name, "Failed")["status"]["reason"] == "DeadlineExceeded"


def test_what_the_node_cannot_take_is_refused(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"], "resources": {"requests": {"cpu": "1000"}}})
    assert stack.wait_phase(name, "Failed")["status"]["reason"] == "OutOfcpu"


def test_a_failing_post_start_hook_is_told(stack: Stack, name: str) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "exit 9"]}}}
    stack.create(name, {"command": ["sleep", "1000"], "lifecycle": hook})
    stack.wait(name, lambda s: state_of(s).get("restartCount", 0) >= 1 or "PostStartHookError" in str(s), what="hook error")
    wait_for(lambda: any(r == "FailedPostStartHook" for r, _ in stack.events(name)), what="the event")


def test_a_killed_runtime_and_api_server_lose_nothing(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sh", "-c", "i=0; while sleep 0.1; do echo $((i++)); done"]})
    before = stack.wait_ready(name)["status"]
    for daemon in (stack.runtime, "apiserver"):
        stack.restart(daemon)
        wait_for(lambda: stack.try_kubectl("get", "pods").returncode == 0, what="the API server to answer")
        stack.create(f"{name}-after", {"command": ["sleep", "1000"]})
        stack.wait_ready(f"{name}-after", seconds=30)
        stack.delete(f"{name}-after")
        after = stack.pod(name)["status"]
        assert state_of(after)["containerID"] == state_of(before)["containerID"]
        assert state_of(after)["restartCount"] == 0
        assert condition(after, "Ready") == "True"


def test_a_sandbox_that_is_gone_is_made_again(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]}, init=[{"command": ["true"]}])
    uid = stack.wait_ready(name)["metadata"]["uid"]
    found = stack.runtime_call("ListPodSandbox", cri.ListPodSandboxRequest())
    (sandbox,) = [s.id for s in found.items if s.metadata.uid == uid]
    stack.runtime_call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    status = stack.wait(name, lambda s: state_of(s).get("restartCount") == 1 and condition(s, "Ready") == "True", what="back")[
        "status"
    ]
    assert state_of(status)["lastState"]["terminated"]["exitCode"] in (137, 143)
    assert state_of(status, "i0")["restartCount"] == 1
    assert any(reason == "SandboxChanged" for reason, _ in stack.events(name))


def test_logs_are_rotated_and_none_is_lost_to_a_follower(stack: Stack, name: str) -> None:
    line = "x" * 1000
    stack.create(name, {"command": ["sh", "-c", f"i=0; while [ $i -lt 3000 ]; do echo $i {line}; i=$((i+1)); done; sleep 1000"]})
    uid = stack.wait_ready(name)["metadata"]["uid"]
    folder = stack.pod_logs / f"default_{name}_{uid}/c"
    wait_for(lambda: len(list(folder.iterdir())) > 1, seconds=30, what="a rotation")
    wait_for(lambda: (folder / "0.log").exists(), what="the runtime to open the log again")
    numbers = [
        int(text.split(" ")[3]) for file in sorted(folder.iterdir(), reverse=True) for text in file.read_text().splitlines()
    ]
    assert sorted(numbers) == list(range(3000))

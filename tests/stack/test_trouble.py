"""When things go wrong: daemons are killed while pods run, and pods fail in the ways that users know."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.stack.conftest import REPOSITORY, Cluster

HELLO = "127.0.0.1:5000/hello:latest"


def apply_pod(cluster: Cluster, name: str, container: dict[str, Any], **pod: Any) -> None:
    """Makes a pod of one container; `container` and `pod` are further fields of theirs."""
    spec = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": HELLO, **container}],
    }
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {**spec, **pod}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(manifest))


@pytest.fixture
def pod_name(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for the test's pod, which is deleted after the test."""
    name = "t" + "".join(c for c in request.node.name.lower() if c.isalnum())[-40:]
    yield name
    cluster.kubectl("delete", "pod", name, "--ignore-not-found", "--wait", seconds=60)


def daemon_pid(cluster: Cluster, daemon: str) -> int:
    """The PID of one of the stack's daemons, from the file that scripts/up keeps."""
    return int((cluster.node.runtime / f"{daemon}.pid").read_text().split()[0])


def children_of(parent: int, marker: str) -> list[int]:
    """PIDs of a daemon's own processes whose command line has the marker."""
    children = [pid for task in Path(f"/proc/{parent}/task").iterdir() for pid in (task / "children").read_text().split()]
    return [int(pid) for pid in children if marker in Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")]


def test_a_missing_image_is_backed_off_and_named(cluster: Cluster, pod_name: str) -> None:
    apply_pod(cluster, pod_name, {"image": "127.0.0.1:5000/nothing:here"})
    state = cluster.wait_reason(pod_name, "ErrImagePull")
    assert "nothing" in state["message"]
    assert "127.0.0.1:5000/nothing:here" in cluster.wait_reason(pod_name, "ImagePullBackOff")["message"]


def test_a_command_that_does_not_exist_is_named(cluster: Cluster, pod_name: str) -> None:
    apply_pod(cluster, pod_name, {"command": ["/no/such/program"]})
    state = cluster.wait_reason(pod_name, "RunContainerError", "StartError", "CreateContainerError")
    assert "/no/such/program" in state["message"]
    assert "no such file" in state["message"]


def test_a_failing_program_is_backed_off(cluster: Cluster, pod_name: str) -> None:
    apply_pod(cluster, pod_name, {"command": ["sh", "-c", "echo going down; exit 3"]})
    assert "back-off" in cluster.wait_reason(pod_name, "CrashLoopBackOff")["message"]
    status = cluster.get("pod", pod_name)["status"]["containerStatuses"][0]
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert status["restartCount"] >= 1
    assert cluster.kubectl("logs", pod_name, "--previous") == "going down\n"


def test_too_much_memory_is_told_as_oomkilled(cluster: Cluster, pod_name: str) -> None:
    hog = "x=a; while true; do x=$x$x; done"
    apply_pod(cluster, pod_name, {"command": ["sh", "-c", hog], "resources": {"limits": {"memory": "20Mi"}}})
    assert cluster.wait_reason(pod_name, "OOMKilled")["exitCode"] == 137


def test_a_volume_that_cannot_be_made_is_told_in_an_event(cluster: Cluster, pod_name: str) -> None:
    mounted = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    apply_pod(cluster, pod_name, mounted, volumes=[{"name": "v", "configMap": {"name": "not-there"}}])

    def told() -> bool:
        events = cluster.kubectl("get", "events", "--field-selector", f"involvedObject.name={pod_name}")
        return "FailedMount" in events and '"not-there" not found' in events

    wait_for(told, seconds=30, what="a FailedMount event")


@pytest.mark.parametrize("daemon", ["highrt", "spawner", "kubelet", "controlplane", "controllers", "nodenet"])
def test_a_killed_daemon_loses_nothing(cluster: Cluster, pod_name: str, daemon: str) -> None:
    apply_pod(cluster, pod_name, {"command": ["sh", "-c", "i=0; while sleep 0.1; do echo $((i++)); done"]})
    before = cluster.wait_pod(pod_name)["status"]
    if daemon in ("spawner", "controllers"):
        owner, marker = ("highrt", "highrt/spawner") if daemon == "spawner" else ("controlplane", "controlplane.controllers")
        (pid,) = children_of(daemon_pid(cluster, owner), marker)
    else:
        pid = daemon_pid(cluster, daemon)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="the daemon to be gone")
    written = len(log_of(cluster, pod_name))
    wait_for(lambda: len(log_of(cluster, pod_name)) > written, what="the container to run on")
    cluster.node.up()

    after = cluster.wait_pod(pod_name)["status"]
    assert after["podIP"] == before["podIP"]
    assert after["containerStatuses"][0]["containerID"] == before["containerStatuses"][0]["containerID"]
    assert after["containerStatuses"][0]["restartCount"] == 0
    lines = cluster.kubectl("logs", pod_name).split()
    assert lines == [str(n) for n in range(len(lines))], "no line of the log was lost"
    assert cluster.kubectl("exec", pod_name, "--", "echo", "still here") == "still here\n"
    # The daemon works as before: a new pod comes up.
    cluster.kubectl("run", f"{pod_name}-new", f"--image={HELLO}", "--restart=Never", "--", "sleep", "1000")
    cluster.wait_pod(f"{pod_name}-new")
    cluster.kubectl("delete", "pod", f"{pod_name}-new", "--grace-period=1", "--wait")


def log_of(cluster: Cluster, pod: str) -> bytes:
    """The log on disk, which does not need any daemon."""
    folder = next(cluster.node.state.glob(f"kubelet/**/pods/default_{pod}_*"), None) or next(
        cluster.node.state.glob(f"**/default_{pod}_*")
    )
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*/*.log")))


def test_a_killed_monitor_is_told_and_its_pod_is_made_again(cluster: Cluster, pod_name: str) -> None:
    apply_pod(cluster, pod_name, {"command": ["sleep", "100000"]})
    pod = cluster.wait_pod(pod_name)
    container = pod["status"]["containerStatuses"][0]["containerID"].rpartition("//")[2]
    inside = container_pid(cluster, container)
    os.kill(parent_of(inside), signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{inside}"), what="the container to be killed with its monitor")

    def restarted() -> bool:
        status = cluster.get("pod", pod_name)["status"]["containerStatuses"][0]
        return status["restartCount"] >= 1 and status["ready"]

    wait_for(restarted, seconds=60, what="the container to be started again")


def container_pid(cluster: Cluster, container_id: str) -> int:
    out = cluster.node.run("highrt", "--address", cluster.node.socket, "inspect", "--format", "{{.State.Pid}}", container_id)
    return int(out.stdout)


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def test_all_daemons_killed_at_once_come_back(cluster: Cluster, pod_name: str) -> None:
    apply_pod(cluster, pod_name, {"command": ["sleep", "100000"]})
    before = cluster.wait_pod(pod_name)["status"]["containerStatuses"][0]["containerID"]
    for daemon in ("kubelet", "highrt", "controlplane", "nodenet"):
        os.kill(daemon_pid(cluster, daemon), signal.SIGKILL)
    start = time.monotonic()
    cluster.node.up()
    assert time.monotonic() - start < 30
    assert cluster.wait_pod(pod_name)["status"]["containerStatuses"][0]["containerID"] == before


def test_a_request_that_makes_no_sense_gets_a_clear_answer(cluster: Cluster) -> None:
    bad: dict[str, Any] = {"metadata": {"name": "Bad_Name"}, "spec": {"containers": [{"name": "c"}]}}
    manifest = json.dumps({"apiVersion": "v1", "kind": "Pod", **bad})
    done = subprocess.run(cluster.kubectl_argv("apply", "-f", "-"), input=manifest, text=True, capture_output=True, timeout=30)
    assert done.returncode == 1
    assert 'The Pod "Bad_Name" is invalid' in done.stderr
    assert "metadata.name: Invalid value" in done.stderr
    assert "spec.containers[0].image: Required value" in done.stderr


def test_up_says_what_is_missing_before_it_changes_anything() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "bash", REPOSITORY / "scripts/up"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "It needs:" in done.stderr
    assert "root: run it with sudo" in done.stderr


@pytest.mark.parametrize("arguments", [("--netns", "a/b"), ("--link", "lan"), ("--netns", "tbad", "--join", "rm -rf")])
def test_up_refuses_arguments_that_make_no_sense(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [REPOSITORY / "scripts/up", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    subprocess.run([REPOSITORY / "scripts/down", "--netns", "tbad"], check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()

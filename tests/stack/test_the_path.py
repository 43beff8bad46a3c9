"""The path a user walks, typed as a user types it, with the real kubectl, docker-registry and programs from Debian.

The tests stand on each other, in this order: it is one story.
"""

import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.conftest import wait_for
from tests.stack.conftest import REPOSITORY, Cluster, Node
from tests.stack.terminal import Terminal

HELLO = "127.0.0.1:5000/hello"
WEB = "127.0.0.1:5000/web"

DEPLOYMENT = f"""
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: web
        image: {WEB}:1
        ports: [{{containerPort: 80, name: http}}]
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: http}}]
"""


def test_the_node_is_ready_and_the_first_pod_runs(cluster: Cluster) -> None:
    line = cluster.kubectl("get", "nodes").splitlines()[1].split()
    assert line[1] == "Ready"
    assert "v1.36" in line[4]
    pod = cluster.wait_pod("hello")
    assert pod["spec"]["containers"][0]["image"].startswith(HELLO)


def test_up_again_is_quick_and_changes_nothing(cluster: Cluster) -> None:
    before = cluster.get("pod", "hello")["metadata"]["uid"]
    start = time.monotonic()
    cluster.node.up()
    assert time.monotonic() - start < 15
    assert cluster.get("pod", "hello")["metadata"]["uid"] == before


def test_a_real_program_from_debian_is_built_pushed_and_pulled_by_tag_and_digest(cluster: Cluster) -> None:
    highrt = ("highrt", "--address", cluster.node.socket)
    for tag in ("1", "2"):
        cluster.node.run(
            REPOSITORY / "images/build", "web", "--tag", f"{WEB}:{tag}", "--address", cluster.node.socket, timeout=300
        )
    for tag in ("1", "2"):
        pushed = cluster.node.run(*highrt, "push", f"{WEB}:{tag}", timeout=120).stdout
    digest = re.findall(r"sha256:[0-9a-f]{64}", pushed)[-1]
    for tag in ("1", "2"):
        cluster.node.run(*highrt, "rmi", f"{WEB}:{tag}")
    cluster.kubectl("run", "by-tag", f"--image={WEB}:1", "--port=80")
    cluster.kubectl("run", "by-digest", f"--image={WEB}@{digest}", "--port=80")
    cluster.wait_pod("by-tag")
    status = cluster.wait_pod("by-digest")["status"]["containerStatuses"][0]
    assert status["imageID"].endswith(digest)
    events = cluster.kubectl("get", "events", "--field-selector", "involvedObject.name=by-tag")
    assert "Successfully pulled image" in events
    cluster.kubectl("delete", "pod", "by-tag", "by-digest", "--wait")


def test_run_and_logs_follow(cluster: Cluster) -> None:
    script = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.2; done"
    cluster.kubectl("run", "counter", f"--image={HELLO}:latest", "--restart=Never", "--", "sh", "-c", script)
    cluster.wait_pod("counter")
    follow = subprocess.Popen(cluster.kubectl_argv("logs", "-f", "counter"), stdout=subprocess.PIPE, text=True)
    try:
        assert follow.stdout is not None
        lines = [follow.stdout.readline().strip() for _ in range(8)]
        assert lines == [f"line {n}" for n in range(8)]
    finally:
        follow.kill()
        follow.wait()
    assert cluster.kubectl("logs", "counter", "--tail=1").startswith("line ")
    assert re.match(r"\d{4}-\d\d-\d\dT\S+Z? line 0", cluster.kubectl("logs", "counter", "--timestamps").splitlines()[0])


def test_exec_passes_output_input_and_exit_code(cluster: Cluster) -> None:
    assert cluster.kubectl("exec", "counter", "--", "echo", "hi") == "hi\n"
    assert cluster.kubectl("exec", "-i", "counter", "--", "tr", "a-z", "A-Z", input="shout\n") == "SHOUT\n"
    done = subprocess.run(
        cluster.kubectl_argv("exec", "counter", "--", "sh", "-c", "echo bad >&2; exit 7"),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )
    assert done.returncode == 7
    assert done.stderr.startswith("bad\n")


def test_exec_with_a_real_terminal_resizes_and_takes_ctrl_c_and_ctrl_d(cluster: Cluster) -> None:
    with Terminal(cluster.kubectl_argv("exec", "-it", "counter", "--", "sh"), rows=40, columns=100) as terminal:
        terminal.expect(r"[#$] ")
        terminal.send("stty size\r")
        terminal.expect(r"40 100\s")
        terminal.resize(rows=50, columns=132)
        wait_for(lambda: terminal.ask("stty size\r", r"50 132\s"), seconds=10, what="the new size to arrive")
        terminal.send("sleep 1000\r")
        terminal.expect("sleep 1000")
        processes = lambda: cluster.kubectl("exec", "counter", "--", "ps")  # noqa: E731
        wait_for(lambda: "sleep 1000" in processes(), what="sleep to run in the foreground")
        terminal.send("\x03")
        terminal.send("echo code $?\r")
        terminal.expect(r"code 130")
        terminal.send("\x04")
        assert terminal.wait() == 0  # the status of the shell's last command, the echo


def test_port_forward_reaches_a_port_of_the_pod(cluster: Cluster) -> None:
    cluster.kubectl("run", "front", f"--image={WEB}:1", "--port=80")
    cluster.wait_pod("front")
    forward = subprocess.Popen(
        cluster.kubectl_argv("port-forward", "pod/front", ":80"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert forward.stdout is not None
        line = forward.stdout.readline()
        port = re.search(r"127\.0\.0\.1:(\d+) -> 80", line)
        assert port, line
        for _ in range(3):
            page = cluster.node.run("curl", "-sS", "--max-time", "10", f"http://127.0.0.1:{port[1]}/").stdout
            assert "hello from" in page
    finally:
        forward.send_signal(signal.SIGINT)
        forward.wait(10)


def test_describe_and_the_output_formats(cluster: Cluster) -> None:
    described = cluster.kubectl("describe", "pod", "front")
    for expected in (
        "Image ID:",
        "Successfully assigned default/front",
        "Started container",
    ):
        assert expected in described
    assert re.search(r"^Status: +Running$", described, re.MULTILINE)
    assert "Ready" in cluster.kubectl("describe", "node")
    wide = cluster.kubectl("get", "pods", "-o", "wide")
    assert wide.splitlines()[0].split()[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert "kind: Pod" in cluster.kubectl("get", "pod", "front", "-o", "yaml")
    address = cluster.kubectl("get", "pod", "front", "-o", "jsonpath={.status.podIP}")
    socket.inet_aton(address)
    cluster.kubectl("delete", "pod", "front", "--wait")


def test_a_deployment_with_a_service_is_applied_scaled_and_reached_by_its_name(cluster: Cluster) -> None:
    cluster.kubectl("apply", "-f", "-", input=DEPLOYMENT)
    assert "successfully rolled out" in cluster.kubectl("rollout", "status", "deployment/web", "--timeout=90s", seconds=100)
    cluster.kubectl("scale", "deployment/web", "--replicas=2")
    wait_for(lambda: cluster.get("deployment", "web")["status"].get("replicas") == 2, seconds=60, what="2 replicas")
    assert "hello from" in cluster.kubectl("exec", "counter", "--", "timeout", "10", "wget", "-qO-", "http://web")
    full = "http://web.default.svc.cluster.local"
    pages = {cluster.kubectl("exec", "counter", "--", "timeout", "10", "wget", "-qO-", full) for _ in range(12)}
    assert len(pages) == 2, f"both pods answer: {pages}"
    cluster_ip = cluster.get("service", "web")["spec"]["clusterIP"]
    assert "hello from" in cluster.node.run("curl", "-sS", "--max-time", "10", f"http://{cluster_ip}/").stdout
    again = cluster.kubectl("apply", "-f", "-", input=DEPLOYMENT.replace("replicas: 3", "replicas: 2"))
    assert "service/web unchanged" in again


def test_rollout_restart_and_set_image_replace_the_pods(cluster: Cluster) -> None:
    def pods() -> set[str]:
        return {p["metadata"]["name"] for p in cluster.get("pods", "-l", "app=web")["items"]}

    before = pods()
    cluster.kubectl("rollout", "restart", "deployment/web")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=90s", seconds=100)
    wait_for(lambda: not pods() & before, seconds=60, what="the old pods to go")
    cluster.kubectl("set", "image", "deployment/web", f"web={WEB}:2")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=90s", seconds=100)
    images = {
        p["spec"]["containers"][0]["image"]
        for p in cluster.get("pods", "-l", "app=web")["items"]
        if "deletionTimestamp" not in p["metadata"]
    }
    assert images == {f"{WEB}:2"}
    assert "REVISION" in cluster.kubectl("rollout", "history", "deployment/web")


def test_the_spans_of_one_pod_make_one_tree_from_the_write_to_the_exec(cluster: Cluster, spans_folder: Path) -> None:
    traceparent = cluster.get("pod", "counter")["metadata"]["annotations"]["tracing.k8s.io/traceparent"]
    trace = traceparent.split("-")[1]
    spans = [
        span
        for file in spans_folder.glob("*.jsonl")
        for span in map(json.loads, file.read_text().splitlines())
        if span["traceId"] == trace
    ]
    ids = {span["spanId"] for span in spans}
    roots = [span for span in spans if span["parentSpanId"] not in ids]
    assert len(roots) == 1, [(s["service"], s["name"]) for s in roots]
    assert {s["service"] for s in spans} >= {"apiserver", "scheduler", "kubelet", "highrt", "monitor", "lowrt"}
    # lowrt start ends when the container's program has been executed.
    assert any(s["name"] == "lowrt start" for s in spans)
    drawn = subprocess.run([REPOSITORY / "scripts/spans", spans_folder, "--trace", trace], capture_output=True, text=True)
    assert "RunPodSandbox" in drawn.stdout


def test_a_second_node_joins_by_the_printed_command_and_runs_a_pod(cluster: Cluster, names: dict[str, str]) -> None:
    command = cluster.node.run("controlplane", "token", "create", "--data-dir", cluster.kubeconfig.parent).stdout.strip()
    assert command.startswith("kubelet join https://")
    second = Node(names["second"], arguments=("--link", names["link"], "--join", command))
    try:
        second.up()

        def ready() -> bool:
            return cluster.kubectl("get", "nodes").count(" Ready ") == 2

        wait_for(ready, seconds=60, what="both nodes to be Ready")
        cluster.kubectl(
            "run",
            "far",
            f"--image={HELLO}:latest",
            "--overrides",
            json.dumps({"spec": {"nodeName": names["second"]}}),
            "--",
            "sh",
            "-c",
            "echo far away; sleep 1000",
        )
        pod = cluster.wait_pod("far")
        assert pod["spec"]["nodeName"] == names["second"]
        assert cluster.kubectl("logs", "far") == "far away\n"
        assert cluster.kubectl("exec", "far", "--", "hostname") == "far\n"
        # A pod there reaches pods here, through the Service and its name.
        assert "hello from" in cluster.kubectl("exec", "far", "--", "timeout", "10", "wget", "-qO-", "http://web")
        cluster.kubectl("delete", "pod", "far", "--wait")
    finally:
        second.down()
        cluster.kubectl("delete", "node", names["second"], "--ignore-not-found")


def test_delete_takes_everything_away(cluster: Cluster) -> None:
    cluster.kubectl("delete", "deployment/web", "service/web", "pod/counter", "--wait", seconds=90)
    wait_for(lambda: not cluster.get("pods", "-l", "app=web")["items"], seconds=60, what="the pods to go")

"""Probes, and the kubelet's own HTTPS server."""

import json
import subprocess
import sys

from tests.conftest import wait_for
from tests.integration.kubelet.conftest import Stack, condition, state_of


def test_a_pod_is_ready_when_its_readiness_probe_says_so(stack: Stack, name: str) -> None:
    probe = {"httpGet": {"path": "/ready", "port": "web"}, "periodSeconds": 1}
    script = "mkdir -p /www; httpd -p 8080 -h /www; sleep 2; touch /www/ready; sleep 4; rm /www/ready; sleep 1000"
    container = {"command": ["sh", "-c", script], "readinessProbe": probe, "ports": [{"name": "web", "containerPort": 8080}]}
    stack.create(name, {**container, "readinessProbe": {**probe, "failureThreshold": 1}})
    status = stack.wait_phase(name, "Running")["status"]
    assert condition(status, "Ready") == "False"
    stack.wait_ready(name)
    stack.wait(name, lambda s: condition(s, "Ready") == "False", what="not Ready any more")
    unready = next(c for c in stack.pod(name)["status"]["conditions"] if c["type"] == "Ready")
    assert unready["reason"] == "ContainersNotReady"
    assert unready["message"] == "containers with unready status: [c]"
    assert ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404") in stack.events(name)


def test_a_failing_liveness_probe_restarts_the_container(stack: Stack, name: str) -> None:
    probe = {"exec": {"command": ["cat", "/alive"]}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1}
    stack.create(name, {"command": ["sh", "-c", "touch /alive; sleep 2; rm /alive; sleep 1000"], "livenessProbe": probe})
    stack.wait(name, lambda s: state_of(s).get("restartCount", 0) >= 1, what="restarted")
    events = stack.events(name)
    assert ("Killing", "Container c failed liveness probe, will be restarted") in events
    assert any(r == "Unhealthy" and m.startswith("Liveness probe failed: ") for r, m in events)


def test_a_startup_probe_holds_the_others_back(stack: Stack, name: str) -> None:
    startup = {"exec": {"command": ["cat", "/started"]}, "periodSeconds": 1, "failureThreshold": 30}
    live = {"exec": {"command": ["cat", "/started"]}, "periodSeconds": 1, "failureThreshold": 1}
    script = "sleep 2; touch /started; sleep 1000"
    stack.create(name, {"command": ["sh", "-c", script], "startupProbe": startup, "livenessProbe": live})
    status = stack.wait_phase(name, "Running")["status"]
    assert state_of(status)["started"] is False
    status = stack.wait_ready(name)["status"]
    assert state_of(status)["started"] is True
    assert state_of(status)["restartCount"] == 0


def test_a_tcp_probe_needs_a_listener(stack: Stack, name: str) -> None:
    probe = {"tcpSocket": {"port": 9000}, "periodSeconds": 1}
    stack.create(name, {"command": ["sh", "-c", "sleep 1; httpd -f -p 9000"], "readinessProbe": probe})
    stack.wait_ready(name)
    assert any("connect: connection refused" in m for r, m in stack.events(name) if r == "Unhealthy")


def test_the_server_asks_who_it_is(stack: Stack) -> None:
    assert stack.server("/pods", certificate=False)[0] == 401
    assert stack.server("/healthz") == (200, "ok")


def test_logs_are_served_whole_by_tail_and_previous(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; sleep 0.3; echo err >&2; exit 1"]})
    stack.wait(name, lambda s: state_of(s).get("restartCount", 0) >= 1, what="restarted")
    base = f"/containerLogs/default/{name}/c"
    code, text = stack.server(base)
    assert code == 200
    assert text.splitlines()[:5] == [f"line {n}" for n in range(1, 6)]
    assert stack.server(f"{base}?tailLines=1&stream=Stdout")[1] in ("line 5\n", "")
    assert stack.server(f"{base}?tailLines=2")[1].count("\n") == 2
    assert stack.server(f"{base}?limitBytes=4")[1] == "line"
    assert stack.server(f"{base}?previous=true")[1].startswith("line 1\n")
    stamped = stack.server(f"{base}?timestamps=true")[1].splitlines()[0]
    assert stamped.endswith(" line 1")
    assert stamped[4] == "-"
    assert stack.server(f"{base}?sinceTime=2100-01-01T00:00:00Z") == (200, "")
    assert stack.server(f"/containerLogs/default/{name}/nothing")[0] == 404
    assert stack.server(f"{base}?tailLines=x")[0] == 422


def test_following_a_log_ends_with_the_container(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"]}, restartPolicy="Never")
    stack.wait_phase(name, "Running")
    code, text = stack.server(f"/containerLogs/default/{name}/c?follow=true")
    assert (code, text.split()) == (200, ["1", "2", "3", "4", "5", "6"])


def test_pods_and_statistics_are_listed(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]})
    uid = stack.wait_ready(name)["metadata"]["uid"]
    pods = json.loads(stack.server("/pods")[1])
    assert any(p["metadata"]["uid"] == uid and p["status"]["phase"] == "Running" for p in pods["items"])

    def counted() -> bool:
        summary = json.loads(stack.server("/stats/summary")[1])
        found = [p for p in summary["pods"] if p["podRef"]["uid"] == uid]
        return bool(found) and found[0]["memory"]["workingSetBytes"] > 0

    wait_for(counted, what="the pod's memory in the summary")
    assert stack.server(f"/run/default/{name}/c?cmd=echo%20hi", method="POST")[0] in (200, 500)


def test_exec_is_spliced_to_the_runtime(stack: Stack, name: str) -> None:
    stack.create(name, {"command": ["sleep", "1000"]})
    stack.wait_ready(name)
    code, text = stack.server(f"/exec/default/{name}/c?command=true&output=1")
    assert (code, text.split(":")[0]) == (400, "Upgrade request required")
    assert exec_over_websocket(stack, f"/exec/default/{name}/c?command=cat&command=/etc/hostname&output=1") == name + "\n"


def exec_over_websocket(stack: Stack, path: str) -> str:
    """What a command writes to its standard output, by WebSocket (v4.channel.k8s.io)."""
    script = f"""
import asyncio, ssl, aiohttp
async def main():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); tls.check_hostname = False; tls.verify_mode = ssl.CERT_NONE
    tls.load_cert_chain({str(stack.folder / "client.pem")!r})
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect("https://10.44.0.1:10250{path}", ssl=tls, protocols=["v4.channel.k8s.io"]) as ws:
            out = b""
            async for message in ws:
                if message.data[:1] == b"\\x01":
                    out += message.data[1:]
            print(out.decode(), end="")
asyncio.run(asyncio.wait_for(main(), 20))
"""
    done = subprocess.run(stack.inside(sys.executable, "-c", script), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout

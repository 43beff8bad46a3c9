"""A node that joins a whole control plane by a token: certificates, and all that goes through the API server to the kubelet."""

import base64
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from kubelet.join import kubeconfig
from tests.conftest import wait_for
from tests.integration.kubelet.conftest import COMMANDS, IMAGE, JoinedStack, state_of


@pytest.fixture
def pod(joined: JoinedStack) -> Iterator[str]:
    made = f"t{uuid.uuid4().hex[:8]}"
    yield made
    joined.kubectl("delete", "pod", made, "--ignore-not-found", "--wait", "--timeout=30s")


def test_the_node_has_its_own_certificates_and_keeps_them_private(joined: JoinedStack) -> None:
    pki = joined.root / "pki"
    server = pki / "kubelet-server.pem"
    wait_for(server.exists, seconds=20, what="the serving certificate")
    for file in (pki / "kubelet-client.pem", server, joined.root / "kubeconfig"):
        assert file.stat().st_mode & 0o777 == 0o600
    subject = x509.load_pem_x509_certificate((pki / "kubelet-client.pem").read_bytes()).subject.rfc4514_string()
    assert f"CN=system:node:{joined.name}" in subject
    assert "O=system:nodes" in subject
    assert (
        x509.load_pem_x509_certificate(server.read_bytes()).issuer != x509.load_pem_x509_certificate(server.read_bytes()).subject
    )


def test_logs_exec_and_port_forward_go_through_the_api_server(joined: JoinedStack, pod: str) -> None:
    joined.create(pod, {"command": ["sh", "-c", "mkdir /www; echo page > /www/p; echo hello; httpd -f -p 80 -h /www"]})
    joined.wait_ready(pod)
    wait_for(lambda: joined.kubectl("logs", pod) == "hello\n", what="the log")
    assert joined.kubectl("exec", pod, "--", "cat", "/www/p") == "page\n"
    assert joined.kubectl("exec", "-i", pod, "--", "cat", input="given\n") == "given\n"
    failed = joined.try_kubectl("exec", pod, "--", "sh", "-c", "exit 7")
    assert failed.returncode == 7
    script = f"""
kubectl --kubeconfig {joined.folder}/kubeconfig port-forward pod/{pod} :80 >{joined.folder}/pf & pid=$!
trap 'kill $pid' EXIT
for i in $(seq 100); do
  port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) -> 80.*/\\1/p' {joined.folder}/pf | head -1)
  [ -n "$port" ] && break; sleep 0.1
done
curl -sS --max-time 10 http://127.0.0.1:$port/p
"""
    done = subprocess.run(
        joined.inside("bash", "-c", script), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=40
    )
    assert done.stdout == "page\n", done.stderr


def test_a_pod_is_run_and_attached_to(joined: JoinedStack, pod: str) -> None:
    overrides = {"spec": {"nodeName": joined.name, "terminationGracePeriodSeconds": 1}}
    done = joined.try_kubectl(
        "run", pod, "-i", "--image", IMAGE, "--restart=Never", "--image-pull-policy=IfNotPresent", "--quiet",
        "--overrides", json.dumps(overrides), "--command", "--", "sh", "-c", "read line; echo got $line", input="this\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "got this\n"


def test_an_ephemeral_container_looks_into_a_running_pod(joined: JoinedStack, pod: str) -> None:
    joined.create(pod, {"command": ["sleep", "4321"]})
    joined.wait_ready(pod)
    ps = "for f in /proc/[0-9]*/cmdline; do cat $f; echo; done"
    # What `kubectl debug --target=c` sends.
    debugger = {
        "name": "dbg",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", ps],
        "targetContainerName": "c",
    }
    changed = joined.pod(pod)
    changed["spec"]["ephemeralContainers"] = [debugger]
    path = f"/api/v1/namespaces/default/pods/{pod}/ephemeralcontainers"
    joined.kubectl("replace", "--raw", path, "-f", "-", input=json.dumps(changed))
    status = joined.wait(pod, lambda s: "terminated" in str(s.get("ephemeralContainerStatuses")), what="debugged")["status"]
    (shown,) = status["ephemeralContainerStatuses"]
    assert (shown["name"], shown["state"]["terminated"]["exitCode"]) == ("dbg", 0)
    assert "sleep4321" in joined.kubectl("logs", pod, "-c", "dbg").replace("\0", "")
    assert status["phase"] == "Running"


def test_a_service_account_token_and_the_root_ca_are_projected(joined: JoinedStack, pod: str) -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    joined.create(pod, {"command": ["sh", "-c", f"cat {folder}/token; echo; cat {folder}/ca.crt {folder}/namespace; sleep 1000"]},
                  automountServiceAccountToken=True)  # fmt: skip
    uid = joined.wait_ready(pod)["metadata"]["uid"]
    wait_for(lambda: "END CERTIFICATE" in joined.logs(pod), what="the files")
    payload = joined.logs(pod).splitlines()[0].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["kubernetes.io"]["pod"] == {"name": pod, "uid": uid}
    assert claims["sub"] == "system:serviceaccount:default:default"


def test_a_second_start_with_the_join_command_just_runs(joined: JoinedStack, pod: str) -> None:
    before = (joined.root / "pki/kubelet-client.pem").read_bytes()
    joined.create(pod, {"command": ["sleep", "1000"]})
    first = state_of(joined.wait_ready(pod)["status"])["containerID"]
    joined.restart("kubelet")
    joined.create(f"{pod}-b", {"command": ["sleep", "1000"]})
    joined.wait_ready(f"{pod}-b", seconds=30)
    assert state_of(joined.pod(pod)["status"])["containerID"] == first
    assert (joined.root / "pki/kubelet-client.pem").read_bytes() == before
    joined.delete(f"{pod}-b")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"--discovery-token-ca-cert-hash": "sha256:" + "0" * 64}, "this is another cluster"),
        ({"--token": "abcdef.0123456789abcdef"}, "has no signature for the token abcdef"),
        ({"--token": "short"}, "must have the form"),
    ],
)
def test_a_join_that_cannot_be_trusted_is_refused_and_leaves_nothing(
    joined: JoinedStack, tmp_path: Path, change: dict[str, str], text: str
) -> None:
    words = list(joined.join_command[1:])
    for flag, value in change.items():
        words[words.index(flag) + 1] = value
    argv = [COMMANDS / "kubelet", *words, "--node-name", "other", "--node-ip", "10.44.0.2", "--root-dir", tmp_path / "root"]
    done = subprocess.run(joined.inside(*argv), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 1
    assert text in done.stderr
    assert not (tmp_path / "root").exists()


def test_the_kubeconfig_names_the_certificate_by_path() -> None:
    assert "client-certificate: pki/kubelet-client.pem" in kubeconfig("https://h:6443", b"ca")

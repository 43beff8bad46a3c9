"""What a node may: see what its pods use, change what is its own; Node authorizer and NodeRestriction."""

import base64
import json
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.integration.security.conftest import Kubectl, Server


@pytest.fixture
def name() -> str:
    return f"node-{os.urandom(3).hex()}"


@pytest.fixture
def node(server: Server, name: str) -> Kubectl:
    """The kubelet of a node that has registered itself."""
    kubectl = server.user(f"system:node:{name}", "system:nodes")
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
    return kubectl


def pod(name: str, node: str, **spec: object) -> dict[str, object]:
    containers = [{"name": "c", "image": "registry.test/c"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": containers, **spec},
    }


def test_a_new_node_takes_no_pods(admin: Kubectl, node: Kubectl, name: str) -> None:
    taints = admin.get("node", name)["spec"]["taints"]
    assert [(t["key"], t["effect"]) for t in taints] == [("node.kubernetes.io/not-ready", "NoSchedule")]
    assert "not allowed to modify taints" in node.fails("taint", "node", name, "node.kubernetes.io/not-ready-")


def test_a_node_changes_itself_only(admin: Kubectl, server: Server, node: Kubectl, name: str) -> None:
    other = server.user(f"system:node:{name}-2", "system:nodes")
    other.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{name}-2"}})
    complaint = other.fails("label", "node", name, "colour=red")
    assert f'node "{name}-2" is not allowed to modify node "{name}"' in complaint
    node("label", "node", name, "colour=red", "node.kubernetes.io/instance-type=small")
    assert "forbidden" in node.fails("delete", "node", name)
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{name}-3"}}
    assert "is not allowed to modify node" in node.fails("create", "-f", "-", input=json.dumps(body))


@pytest.mark.parametrize("label", ["node-restriction.kubernetes.io/tier=secret", "kubernetes.io/role=master", "x.k8s.io/a=b"])
def test_labels_that_others_rely_on(server: Server, node: Kubectl, name: str, label: str) -> None:
    assert f"is not allowed to modify labels: {label.partition('=')[0]}" in node.fails("label", "node", name, label)
    key, _, value = label.partition("=")
    patch = {"metadata": {"labels": {key: value}}}
    answer = server.request(f"/api/v1/nodes/{name}/status", kubectl=node, method="PATCH", body=patch)
    assert (answer.code, "modify labels" in answer.body["message"]) == (403, True)


def test_secrets_of_its_own_pods_only(admin: Kubectl, node: Kubectl, name: str, namespace: str) -> None:
    for secret in ("used", "unused"):
        admin("create", "secret", "generic", secret, "-n", namespace)
    assert "forbidden" in node.fails("get", "secret", "used", "-n", namespace)
    volumes = [{"name": "v", "secret": {"secretName": "used"}}]
    admin("create", "-n", namespace, "-f", "-", input=json.dumps(pod("p", name, volumes=volumes)))
    node("get", "secret", "used", "-n", namespace)
    node("get", "secret", "-n", namespace, "--field-selector", "metadata.name=used")
    assert "forbidden" in node.fails("get", "secret", "unused", "-n", namespace)
    assert "forbidden" in node.fails("get", "secrets", "-n", namespace)
    assert "forbidden" in node.fails("get", "secrets", "-A")
    # What every pod is given is mounted from a ConfigMap, which is read for it too.
    admin("create", "configmap", "kube-root-ca.crt", "-n", namespace)
    node("get", "configmap", "kube-root-ca.crt", "-n", namespace)


def test_tokens_for_its_own_pods_only(admin: Kubectl, server: Server, node: Kubectl, name: str, namespace: str) -> None:
    admin("create", "-n", namespace, "-f", "-", input=json.dumps(pod("mine", name)))
    admin("create", "-n", namespace, "-f", "-", input=json.dumps(pod("elsewhere", "another")))
    uid = {one: admin.get("pod", one, "-n", namespace)["metadata"]["uid"] for one in ("mine", "elsewhere")}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"

    def ask(bound: dict[str, str] | None) -> tuple[int, str]:
        spec = {"boundObjectRef": {"apiVersion": "v1", **bound}} if bound else {}
        answer = server.request(path, kubectl=node, method="POST", body={"spec": spec})
        return answer.code, answer.body.get("message", "")

    assert ask({"kind": "Pod", "name": "mine", "uid": uid["mine"]}) == (201, "")
    assert "not bound to a pod" in ask(None)[1]
    assert "without a uid" in ask({"kind": "Pod", "name": "mine"})[1]
    code, message = ask({"kind": "Pod", "name": "elsewhere", "uid": uid["elsewhere"]})
    assert (code, "scheduled on a different node" in message) == (403, True)
    other = path.replace(namespace, "kube-system")
    assert server.request(other, kubectl=node, method="POST", body={"spec": {}}).code == 403


def test_a_mirror_pod_opens_no_door(admin: Kubectl, server: Server, node: Kubectl, name: str, namespace: str) -> None:
    def make(**spec: object) -> "tuple[int, str]":
        body = pod(f"mirror-{os.urandom(2).hex()}", name, **spec)
        body["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}  # type: ignore[index]
        answer = server.request(f"/api/v1/namespaces/{namespace}/pods", kubectl=node, method="POST", body=body)
        return answer.code, answer.body.get("message", "")

    assert make()[0] == 201
    code, message = make(serviceAccountName="default")
    assert (code, "reference a service account" in message) == (403, True)
    assert "reference secrets" in make(volumes=[{"name": "v", "secret": {"secretName": "x"}}])[1]
    token = {"serviceAccountToken": {"path": "token"}}
    assert "reference a service account" in make(volumes=[{"name": "v", "projected": {"sources": [token]}}])[1]
    assert "set to itself" in make(nodeName="another")[1]
    plain = server.request(f"/api/v1/namespaces/{namespace}/pods", kubectl=node, method="POST", body=pod("plain", name))
    assert "can only create mirror pods" in plain.body["message"]


def test_status_and_deletion_of_its_own_pods_only(
    admin: Kubectl, server: Server, node: Kubectl, name: str, namespace: str
) -> None:
    for one, where in (("mine", name), ("elsewhere", "another")):
        admin("create", "-n", namespace, "-f", "-", input=json.dumps(pod(one, where)))
    path = f"/api/v1/namespaces/{namespace}/pods"

    def patch(path: str, body: object) -> tuple[int, str]:
        answer = server.request(path, kubectl=node, method="PATCH", body=body)
        return answer.code, answer.body.get("message", "")

    running = {"status": {"phase": "Running"}}
    assert patch(f"{path}/mine/status", running) == (200, "")
    assert "spec.nodeName set to itself" in patch(f"{path}/elsewhere/status", running)[1]
    assert "spec.nodeName set to itself" in node.fails("delete", "pod", "elsewhere", "-n", namespace, "--wait=false")
    labels = {"metadata": {"labels": {"a": "b"}}}
    assert "cannot update labels through pod status" in patch(f"{path}/mine/status", labels)[1]
    assert "cannot patch resource" in patch(f"{path}/mine", labels)[1]
    node("delete", "pod", "mine", "-n", namespace, "--force", "--grace-period=0", "--wait=false")


def test_what_runs_on_nodes_reads_the_network(node: Kubectl) -> None:
    """nodenet has the node's identity."""
    for what in ("services", "endpointslices.discovery.k8s.io", "nodes", "namespaces", "networkpolicies.networking.k8s.io"):
        assert node("auth", "can-i", "watch", what, "-A").strip() == "yes", what
    node("get", "configmap", "strata-network", "-n", "kube-system")


class TestCertificateRequests:
    def make(self, kubectl: Kubectl, subject: dict[x509.ObjectIdentifier, str], signer: str) -> str:
        name = x509.Name([x509.NameAttribute(oid, value) for oid, value in subject.items()])
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(name)
            .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        )
        named = f"csr-{os.urandom(4).hex()}"
        spec = {
            "request": base64.b64encode(request.public_bytes(Encoding.PEM)).decode(),
            "signerName": signer,
            "usages": ["client auth"],
        }
        body = {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": named},
            "spec": spec,
        }
        kubectl("create", "-f", "-", input=json.dumps(body))
        return named

    def test_nobody_asks_to_be_a_master(self, server: Server, admin: Kubectl) -> None:
        subject = {NameOID.COMMON_NAME: "me", NameOID.ORGANIZATION_NAME: "system:masters"}
        with pytest.raises(AssertionError, match="signer with system:masters group is not allowed"):
            self.make(admin, subject, "kubernetes.io/kube-apiserver-client")

    def test_approval_needs_the_signers_consent(self, server: Server, admin: Kubectl, namespace: str) -> None:
        role = f"approver-{namespace}"
        rule = {"verbs": ["get", "list", "update"], "apiGroups": ["certificates.k8s.io"],
                "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"]}  # fmt: skip
        admin.apply(
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": role}, "rules": [rule]}
        )
        admin("create", "clusterrolebinding", role, "--clusterrole", role, "--user", role)
        made = self.make(admin, {NameOID.COMMON_NAME: "someone"}, "example.test/ours")
        approver = server.user(role)
        complaint = approver.fails("certificate", "approve", made)
        assert 'user not permitted to approve requests with signerName "example.test/ours"' in complaint
        consent = {"verbs": ["approve"], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
                   "resourceNames": ["example.test/*"]}  # fmt: skip
        admin("patch", "clusterrole", role, "--type", "merge", "-p", json.dumps({"rules": [rule, consent]}))
        approver("certificate", "approve", made)
        assert admin.get("csr", made)["status"]["conditions"][0]["type"] == "Approved"

"""What people type, with real kubectls: the commands of everyday, their outputs, and their failures."""

import json
import re
import subprocess
import urllib.request
from dataclasses import replace
from pathlib import Path

from tests.conftest import wait_for
from tests.integration.apiserver.conftest import Kubectl, Server

MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: nginx:1
        env: [{name: A, value: "1"}, {name: B, value: "2"}]
        ports: [{containerPort: 80}]
      - {name: side, image: busybox}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


def test_run_get_describe_delete(kubectl: Kubectl) -> None:
    assert kubectl("run", "p", "--image=nginx:1", "--port=80", "--labels=a=b", "--env=K=v") == "pod/p created\n"
    assert kubectl("get", "pods").splitlines()[1].split()[:4] == ["p", "0/1", "Pending", "0"]
    wide = kubectl("get", "pods", "-o", "wide").splitlines()[0]
    assert re.split(r"\s{2,}", wide.strip())[5:] == ["IP", "NODE", "NOMINATED NODE", "READINESS GATES"]
    assert kubectl("get", "pod", "p", "-o", "jsonpath={.spec.containers[0].image}") == "nginx:1"
    assert kubectl("get", "pod", "p", "-o", "name") == "pod/p\n"
    assert "kind: Pod" in kubectl("get", "pod", "p", "-o", "yaml")
    described = kubectl("describe", "pod", "p")
    assert re.search(r"^Labels: +a=b$", described, re.MULTILINE)
    assert re.search(r"^ +Port: +80/TCP$", described, re.MULTILINE)
    assert kubectl("get", "pods", "-l", "a=b,c!=d", "-A", "--no-headers").split()[:2] == [kubectl.namespace, "p"]
    assert kubectl("get", "pods", "--field-selector", "status.phase=Running") == ""
    assert kubectl("delete", "pod", "p").startswith('pod "p" deleted')
    assert kubectl.fails("get", "pod", "p") == 'Error from server (NotFound): pods "p" not found\n'


def test_create_of_many_kinds(kubectl: Kubectl) -> None:
    for argv in (
        ("deployment", "d", "--image=x", "--replicas=2"),
        ("configmap", "c", "--from-literal=a=b"),
        ("secret", "generic", "s", "--from-literal=p=q"),
        ("serviceaccount", "sa"),
        ("namespace", "other"),
        ("role", "r", "--verb=get,list", "--resource=pods"),
        ("rolebinding", "rb", "--role=r", f"--serviceaccount={kubectl.namespace}:sa"),
        ("clusterrole", "cr", "--verb=get", "--non-resource-url=/x"),
        ("clusterrolebinding", "crb", "--clusterrole=cr", "--user=u"),
        ("job", "j", "--image=x", "--", "a", "b"),
        ("service", "clusterip", "svc", "--tcp=80:8080"),
        ("service", "nodeport", "np", "--tcp=80"),
        ("quota", "q", "--hard=pods=3"),
        ("priorityclass", "pc", "--value=10"),
        ("ingress", "i", "--rule=a/b=c:80"),
    ):
        assert kubectl("create", *argv).endswith(" created\n")
    assert kubectl.get("deployment", "d")["spec"]["replicas"] == 2
    assert kubectl.get("secret", "s")["data"] == {"p": "cQ=="}
    assert kubectl.get("role", "r")["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]
    assert kubectl.get("rolebinding", "rb")["subjects"] == [
        {"kind": "ServiceAccount", "name": "sa", "namespace": kubectl.namespace}
    ]
    assert kubectl.get("job", "j")["spec"]["template"]["spec"]["containers"][0]["command"] == ["a", "b"]
    assert kubectl.get("service", "svc")["spec"]["ports"][0]["targetPort"] == 8080
    assert re.search(r"^np +NodePort +10\.\S+ +<none> +80:3\d{4}/TCP", kubectl("get", "svc"), re.MULTILINE)
    assert kubectl.fails("create", "configmap", "c").endswith('configmaps "c" already exists\n')
    assert kubectl.fails("create", "ns", "UPPER").startswith('The Namespace "UPPER" is invalid: metadata.name: Invalid value')


def test_apply_by_the_client(kubectl: Kubectl) -> None:
    assert kubectl("apply", "-f", "-", input=MANIFEST) == "deployment.apps/web created\nservice/web created\n"
    assert kubectl("apply", "-f", "-", input=MANIFEST) == "deployment.apps/web unchanged\nservice/web unchanged\n"
    kubectl("scale", "deployment/web", "--replicas=5")
    kubectl("set", "env", "deployment/web", "C=3", "-c", "main")
    changed = MANIFEST.replace("nginx:1", "nginx:2").replace(', {name: B, value: "2"}', "")
    assert kubectl("apply", "-f", "-", input=changed) == "deployment.apps/web configured\nservice/web unchanged\n"
    spec = kubectl.get("deployment", "web")["spec"]
    main, side = spec["template"]["spec"]["containers"]
    assert (spec["replicas"], main["image"], side["image"]) == (3, "nginx:2", "busybox")
    assert [variable["name"] for variable in main["env"]] == ["A", "C"]
    difference = kubectl.differs("-f", "-", input=MANIFEST)
    assert re.search(r"^-\s+image: nginx:2$", difference, re.MULTILINE)
    assert re.search(r"^\+\s+image: nginx:1$", difference, re.MULTILINE)
    assert kubectl("replace", "-f", "-", input=MANIFEST) == "deployment.apps/web replaced\nservice/web replaced\n"
    assert kubectl("delete", "-f", "-", input=MANIFEST).count("deleted") == 2


def test_apply_by_the_server(kubectl: Kubectl) -> None:
    apply = ("apply", "--server-side", "-f", "-")
    assert kubectl(*apply, input=MANIFEST) == "deployment.apps/web serverside-applied\nservice/web serverside-applied\n"
    version = kubectl.get("deployment", "web")["metadata"]["resourceVersion"]
    kubectl(*apply, input=MANIFEST)
    assert kubectl.get("deployment", "web")["metadata"]["resourceVersion"] == version
    kubectl("scale", "deployment/web", "--replicas=5")
    conflict = kubectl.fails(*apply, input=MANIFEST)
    assert "Apply failed with 1 conflict: conflict with" in conflict
    assert ".spec.replicas" in conflict
    kubectl(*apply, "--force-conflicts", input=MANIFEST)
    kubectl(*apply, input=MANIFEST.replace("      - {name: side, image: busybox}\n", ""))
    spec = kubectl.get("deployment", "web")["spec"]
    assert (spec["replicas"], [c["name"] for c in spec["template"]["spec"]["containers"]]) == (3, ["main"])


def test_a_workload_is_changed(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", input=MANIFEST)
    assert kubectl("scale", "deploy/web", "--replicas=4") == "deployment.apps/web scaled\n"
    assert "Expected replicas to be 9, was 4" in kubectl.fails("scale", "deploy/web", "--replicas=1", "--current-replicas=9")
    assert kubectl("set", "image", "deploy/web", "main=nginx:3") == "deployment.apps/web image updated\n"
    assert kubectl("rollout", "restart", "deploy/web") == "deployment.apps/web restarted\n"
    assert kubectl("rollout", "pause", "deploy/web") == "deployment.apps/web paused\n"
    assert kubectl("rollout", "resume", "deploy/web") == "deployment.apps/web resumed\n"
    assert "No rollout history found" in kubectl("rollout", "history", "deploy/web")
    assert kubectl("expose", "deploy", "web", "--name=second", "--port=80") == "service/second exposed\n"
    assert kubectl("patch", "deploy", "web", "-p", '{"spec":{"replicas":2}}') == "deployment.apps/web patched\n"
    assert kubectl("patch", "deploy", "web", "--type=merge", "-p", '{"spec":{"replicas":2}}').endswith("(no change)\n")
    kubectl("patch", "deploy", "web", "--type=json", "-p", '[{"op":"replace","path":"/spec/replicas","value":7}]')
    wrong = kubectl.fails("patch", "deploy", "web", "--type=json", "-p", '[{"op":"test","path":"/spec/replicas","value":9}]')
    assert wrong.startswith("The request is invalid")
    template = kubectl.get("deploy", "web")["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "nginx:3"
    assert "kubectl.kubernetes.io/restartedAt" in template["metadata"]["annotations"]
    assert "7 desired" in kubectl("describe", "deploy", "web")


def test_rollout_status_follows_the_status(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", input=MANIFEST)
    late = kubectl.run("rollout", "status", "deploy/web", "--timeout=1s")
    assert (late.returncode, "timed out waiting" in late.stderr) == (1, True)
    deployment = kubectl.get("deploy", "web")
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 3)
    deployment["status"] = {"observedGeneration": deployment["metadata"]["generation"], **counts}
    put_status(kubectl, deployment)
    assert kubectl("rollout", "status", "deploy/web") == 'deployment "web" successfully rolled out\n'
    assert kubectl("get", "deploy").splitlines()[1].split()[:4] == ["web", "3/3", "3", "3"]


def put_status(kubectl: Kubectl, obj: dict[str, object]) -> None:
    """A controller's write, which old kubectls have no command for."""
    url = f"{kubectl.server}/apis/apps/v1/namespaces/{kubectl.namespace}/deployments/web/status"
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(obj).encode(), headers, method="PUT")) as answer:
        assert answer.status == 200


def test_labels_annotations_and_waiting(kubectl: Kubectl) -> None:
    kubectl("run", "p", "--image=x")
    assert kubectl("label", "pod", "p", "x=y") == "pod/p labeled\n"
    assert "'x' already has a value (y), and --overwrite is false" in kubectl.fails("label", "pod", "p", "x=z")
    kubectl("label", "pod", "p", "x=z", "--overwrite")
    assert "x=z" in kubectl("get", "pods", "--show-labels")
    assert kubectl("get", "pods", "-L", "x").splitlines()[1].split()[-1] == "z"
    kubectl("label", "pod", "p", "x-")
    assert kubectl("annotate", "pod", "p", "k=v") == "pod/p annotated\n"
    assert kubectl.get("pod", "p")["metadata"]["annotations"] == {"k": "v"}
    assert "timed out waiting for the condition on pods/p" in kubectl.fails(
        "wait", "pod/p", "--for=condition=Ready", "--timeout=1s"
    )


def test_delete_waits_for_finalizers(kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "c")
    kubectl("patch", "configmap", "c", "-p", '{"metadata":{"finalizers":["example.com/hold"]}}')
    with subprocess.Popen(kubectl.argv("delete", "configmap", "c")) as delete:
        wait_for(lambda: kubectl.get("configmap", "c")["metadata"].get("deletionTimestamp"))
        assert delete.poll() is None
        kubectl("patch", "configmap", "c", "-p", '{"metadata":{"finalizers":null}}')
        assert delete.wait(20) == 0


def test_nodes(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", input='{"kind":"Node","apiVersion":"v1","metadata":{"name":"n1"}}')
    assert kubectl("cordon", "n1") == "node/n1 cordoned\n"
    assert "SchedulingDisabled" in kubectl("get", "nodes")
    kubectl("uncordon", "n1")
    assert "tainted" in kubectl("taint", "node", "n1", "a=b:NoSchedule")
    assert kubectl.get("node", "n1")["spec"]["taints"] == [{"key": "a", "value": "b", "effect": "NoSchedule"}]
    assert "untainted" in kubectl("taint", "node", "n1", "a-")
    spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "c"}]}
    kubectl("create", "-f", "-", input=json.dumps({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"}, "spec": spec}))
    assert "cannot delete" in kubectl.fails("drain", "n1")
    kubectl("delete", "pod", "p", "--grace-period=0", "--force")
    assert "drained" in kubectl("drain", "n1")
    assert "Unschedulable:      true" in kubectl("describe", "node", "n1")


def test_the_api_explains_itself(kubectl: Kubectl) -> None:
    assert re.search(r"^deployments +deploy +apps/v1 +true +Deployment$", kubectl("api-resources"), re.MULTILINE)
    assert {"v1", "apps/v1", "batch/v1"} <= set(kubectl("api-versions").split())
    explained = kubectl("explain", "deployment.spec.strategy")
    assert "rollingUpdate" in explained
    assert "DESCRIPTION:" in explained
    assert "containerPort" in kubectl("explain", "pod.spec.containers.ports")
    assert "v1.36" in kubectl("version")
    assert kubectl("auth", "can-i", "create", "pods") == "yes\n"
    assert kubectl("get", "--raw", "/readyz") == "ok"
    assert "doesn't have a resource type" in kubectl.fails("get", "nosuch")
    assert "Metrics" in kubectl.fails("top", "pods")


def test_mistakes_are_told(kubectl: Kubectl) -> None:
    typo = MANIFEST.replace("image: busybox", "imagee: busybox")
    assert 'unknown field "' in kubectl.fails("apply", "-f", "-", input=typo)
    text = MANIFEST.replace("replicas: 3", "replicas: three")
    assert kubectl.run("apply", "-f", "-", input=text).returncode == 1
    assert not kubectl.get("deployments")["items"]
    spec = {"containers": [{"name": "A_", "image": "x"}], "restartPolicy": "x"}
    pod = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "z"}, "spec": spec}
    told = kubectl.fails("create", "-f", "-", input=json.dumps(pod))
    assert told.startswith('The Pod "z" is invalid: \n* spec.containers[0].name: Invalid value: "A_"')
    assert '* spec.restartPolicy: Unsupported value: "x"' in told


def test_edit(kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "c", "--from-literal=a=before")
    good = replace(kubectl, editor="sed -i s/before/after/")
    assert good("edit", "configmap", "c") == "configmap/c edited\n"
    assert kubectl.get("configmap", "c")["data"] == {"a": "after"}
    same = replace(kubectl, editor="true").run("edit", "configmap", "c")
    assert "Edit cancelled, no changes made" in same.stdout + same.stderr


def test_deletion_has_its_policies(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", input=MANIFEST)
    kubectl("delete", "deploy", "web", "--cascade=orphan", "--wait=false")
    assert kubectl.get("deploy", "web")["metadata"]["finalizers"] == ["orphan"]
    assert "(server dry run)" in kubectl("delete", "svc", "web", "--dry-run=server")
    assert kubectl.get("svc", "web")["metadata"]["name"] == "web"
    assert kubectl("delete", "svc", "--all").startswith('service "web" deleted')


def test_nothing_is_lost_by_a_kill(program: str, server: Server, tmp_path: Path) -> None:
    """Everything acknowledged is there, and a new watch goes on."""
    kubectl = Kubectl(program, server.url, tmp_path)
    for n in range(5):
        kubectl("create", "configmap", f"c{n}", f"--from-literal=n={n}")
    server.kill()
    server.start()
    names = kubectl("get", "configmaps", "-o", "name").split()
    assert names == [f"configmap/c{n}" for n in range(5)]
    with subprocess.Popen(
        kubectl.argv("get", "configmaps", "c0", "-w", "-o", "name"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "configmap/c0\n"
        kubectl("label", "configmap", "c0", "a=b")
        assert process.stdout.readline() == "configmap/c0\n"
        process.terminate()

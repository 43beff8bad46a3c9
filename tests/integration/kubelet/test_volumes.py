"""Volumes and environment of pods, seen from inside their containers."""

import json
import os
from pathlib import Path

from strata.linux import mounts
from tests.conftest import wait_for
from tests.integration.kubelet.conftest import Stack, state_of

HOLD = "sleep 1000"


def shell(script: str, **more: object) -> dict[str, object]:
    return {"command": ["sh", "-c", script], **more}


def test_config_map_and_secret_files_are_there_and_change_with_their_objects(stack: Stack, name: str) -> None:
    stack.kubectl("create", "configmap", name, "--from-literal=a=one", "--from-literal=b=x")
    stack.kubectl("create", "secret", "generic", name, "--from-literal=password=hidden")
    volumes = [
        {"name": "m", "configMap": {"name": name, "items": [{"key": "a", "path": "deep/a", "mode": 0o400}]}},
        {"name": "s", "secret": {"secretName": name, "defaultMode": 0o440}},
    ]
    script = f"cat /m/deep/a; echo; cat /s/password; echo; stat -Lc %a /m/deep/a /s/password; {HOLD}"
    mounted = [{"name": "m", "mountPath": "/m"}, {"name": "s", "mountPath": "/s"}]
    stack.create(name, shell(script, volumeMounts=mounted), volumes=volumes)
    uid = stack.wait_ready(name)["metadata"]["uid"]
    wait_for(lambda: stack.logs(name).split() == ["one", "hidden", "400", "440"], what=f"the files: {stack.logs(name)}")
    folder = stack.root / "pods" / uid / "volumes"
    assert any(m.target == str(folder / "kubernetes.io~secret/s") and m.fstype == "tmpfs" for m in mounts.mountinfo())
    stack.kubectl("patch", "configmap", name, "-p", json.dumps({"data": {"a": "two"}}))
    # An annotation on the pod makes its worker look at once, as Kubernetes users know.
    wait_for(lambda: stack.kubectl("get", "configmap", name, "-o", "jsonpath={.data.a}") == "two", what="the change")
    file = folder / "kubernetes.io~configmap/m/deep/a"

    def fresh() -> bool:
        stack.kubectl("annotate", "pod", name, f"look={os.urandom(4).hex()}", "--overwrite")
        return file.read_text() == "two"

    wait_for(fresh, seconds=20, what="the file to change")
    stack.kubectl("delete", "configmap,secret", name)


def test_a_volume_that_cannot_be_made_is_told_in_an_event_and_healed(stack: Stack, name: str) -> None:
    mounted = [{"name": "v", "mountPath": "/v"}]
    stack.create(name, shell(HOLD, volumeMounts=mounted), volumes=[{"name": "v", "configMap": {"name": f"{name}-x"}}])
    text = f'MountVolume.SetUp failed for volume "v" : configmap "{name}-x" not found'
    wait_for(lambda: ("FailedMount", text) in stack.events(name), what="the event")
    assert state_of(stack.pod(name)["status"])["state"]["waiting"]["reason"] == "ContainerCreating"
    stack.kubectl("create", "configmap", f"{name}-x", "--from-literal=a=b")
    stack.wait_ready(name)


def test_empty_dir_in_memory_host_path_and_sub_paths(stack: Stack, name: str, tmp_path: Path) -> None:
    volumes = [
        {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "host", "hostPath": {"path": f"{tmp_path}/made", "type": "DirectoryOrCreate"}},
    ]
    mounted = [
        {"name": "mem", "mountPath": "/mem"},
        {"name": "host", "mountPath": "/host"},
        {"name": "host", "mountPath": "/sub", "subPathExpr": "$(POD)/x"},
        {"name": "host", "mountPath": "/ro", "readOnly": True},
    ]
    env = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    script = "stat -fc %T /mem; echo in > /sub/f; cat /host/*/x/f; touch /ro/f || echo refused; touch /host/kept; " + HOLD
    stack.create(name, shell(script, volumeMounts=mounted, env=env), volumes=volumes)
    stack.wait_ready(name)

    def said() -> list[str]:
        """On stdout: what touch says on stderr may come before any of it."""
        return [line for line in stack.logs(name).splitlines() if not line.startswith("touch:")]

    wait_for(lambda: said() == ["tmpfs", "in", "refused"], what="the script")
    assert (tmp_path / "made" / name / "x/f").read_text() == "in\n"
    stack.delete(name)
    assert (tmp_path / "made/kept").exists(), "what is the user's stays"


def test_a_sub_path_cannot_leave_its_volume(stack: Stack, name: str) -> None:
    mounted = [{"name": "v", "mountPath": "/v"}]
    escape = [{"name": "v", "mountPath": "/out", "subPath": "link/passwd"}]
    volumes = [{"name": "v", "emptyDir": {}}]
    link = {"command": ["busybox", "ln", "-s", "/etc", "/v/link"], "volumeMounts": mounted}
    stack.create(name, shell(HOLD, volumeMounts=escape), init=[link], volumes=volumes)
    status = stack.wait(
        name, lambda s: state_of(s).get("state", {}).get("waiting", {}).get("reason") == "CreateContainerConfigError"
    )
    assert "link/passwd" in state_of(status["status"])["state"]["waiting"]["message"]


def test_projected_and_downward_api_files(stack: Stack, name: str) -> None:
    stack.kubectl("create", "configmap", name, "--from-literal=a=mapped")
    sources = [
        {"configMap": {"name": name}},
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
        ]}},
    ]  # fmt: skip
    mounted = [{"name": "p", "mountPath": "/p"}]
    script = f"cat /p/a; echo; cat /p/labels; echo; cat /p/cpu; echo; {HOLD}"
    resources = {"limits": {"cpu": "250m", "memory": "32Mi"}}
    stack.create(
        name, shell(script, volumeMounts=mounted, resources=resources), volumes=[{"name": "p", "projected": {"sources": sources}}]
    )
    stack.wait_ready(name)
    wait_for(lambda: stack.logs(name).split() == ["mapped", f'app="{name}"', "250"], what="the files")
    stack.kubectl("delete", "configmap", name)


def test_the_environment_comes_from_all_its_sources(stack: Stack, name: str) -> None:
    stack.kubectl("create", "configmap", name, "--from-literal=FROM_MAP=m")
    stack.kubectl("create", "secret", "generic", name, "--from-literal=key=s")
    env = [
        {"name": "PLAIN", "value": "p"},
        {"name": "BUILT", "value": "$(PLAIN)-$(PRE_FROM_MAP)-$$(PLAIN)-$(UNKNOWN)"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": name, "key": "key"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": name, "key": "none", "optional": True}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory"}}},
    ]
    container = {
        "command": ["sh", "-c", "echo $0 $PLAIN $BUILT $SECRET [$ABSENT] $IP $MEMORY; sleep 1000", "$(PLAIN)"],
        "env": env,
        "envFrom": [{"prefix": "PRE_", "configMapRef": {"name": name}}],
        "resources": {"requests": {"memory": "1Mi"}},
    }
    stack.create(name, container)
    ip = stack.wait_ready(name)["status"]["podIP"]
    wait_for(
        lambda: stack.logs(name) == f"p p p-m-$(PLAIN)-$(UNKNOWN) s [] {ip} 1048576", what=f"environment: {stack.logs(name)}"
    )
    stack.kubectl("delete", "configmap,secret", name)


def test_names_and_resolver_of_a_pod(stack: Stack, name: str) -> None:
    alias = [{"ip": "10.1.2.3", "hostnames": ["one", "two"]}]
    script = f"hostname; cat /etc/hosts /etc/resolv.conf; {HOLD}"
    stack.create(name, shell(script), hostname="myhost", subdomain="sub", hostAliases=alias)
    ip = stack.wait_ready(name)["status"]["podIP"]
    wait_for(lambda: "ndots" in stack.logs(name), what="the output")
    text = stack.logs(name)
    assert text.splitlines()[0] == "myhost"
    assert f"{ip}\tmyhost.sub.default.svc.cluster.local\tmyhost" in text
    assert "10.1.2.3\tone\ttwo" in text
    assert "nameserver 10.96.0.10" in text
    assert "search default.svc.cluster.local svc.cluster.local cluster.local" in text
    assert "options ndots:5" in text


def test_users_groups_and_capabilities(stack: Stack, name: str) -> None:
    context = {"runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456, "supplementalGroups": [4567]}
    own = {"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    status = "grep -E 'CapBnd|NoNewPrivs' /proc/self/status"
    script = f"exec 2>&1; id -u; id -G; {status}; touch /x; stat -c %g:%a /v; touch /v/f && echo wrote; {HOLD}"
    mounted = [{"name": "v", "mountPath": "/v"}]
    stack.create(
        name,
        {
            "command": ["busybox", "sh", "-c", script.replace("grep", "busybox grep")],
            "securityContext": own,
            "volumeMounts": mounted,
        },
        securityContext=context,
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    stack.wait_ready(name)
    wait_for(lambda: "wrote" in stack.logs(name), what="the output")
    words = stack.logs(name).split()
    assert words[0] == "1234"
    assert set(words[1:4]) == {"2345", "3456", "4567"}
    assert "0000000000000000" in words
    assert words[words.index("NoNewPrivs:") + 1] == "1"
    assert "3456:2777" in words
    assert "Read-only file system" in stack.logs(name)


def test_a_container_that_must_not_be_root_is_refused_when_it_would_be(stack: Stack, name: str) -> None:
    stack.create(name, shell(HOLD, securityContext={"runAsNonRoot": True}))
    status = stack.wait(
        name, lambda s: state_of(s).get("state", {}).get("waiting", {}).get("reason") == "CreateContainerConfigError"
    )
    assert "container has runAsNonRoot and image will run as root" in state_of(status["status"])["state"]["waiting"]["message"]


def test_limits_reach_the_cgroup(stack: Stack, name: str) -> None:
    resources = {"limits": {"cpu": "500m", "memory": "64Mi"}}
    stack.create(name, shell(HOLD, resources=resources))
    pod = stack.wait_ready(name)
    assert pod["status"]["qosClass"] == "Guaranteed"
    uid = pod["metadata"]["uid"]
    memory = Path(f"/sys/fs/cgroup/memory{stack.cgroup_root}/kubepods/pod{uid}")
    if memory.exists():  # v1; on v2 the runtime's own tests cover the files
        assert int((memory / "memory.limit_in_bytes").read_text()) == 64 * 2**20
        (inside,) = [entry for entry in memory.iterdir() if entry.is_dir() and entry.name == container_id(pod)]
        assert int((inside / "memory.limit_in_bytes").read_text()) == 64 * 2**20
        cpu = Path(str(memory).replace("/memory/", "/cpu/", 1))
        assert (cpu / "cpu.cfs_quota_us").read_text().strip() == "50000"


def container_id(pod: dict[str, object]) -> str:
    return str(state_of(pod["status"])["containerID"]).rpartition("/")[2]  # type: ignore[arg-type]

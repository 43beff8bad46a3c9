"""A node of real parts: a runtime, the API server by its developers' door, and the kubelet, in a network namespace.

The runtime is Debian's containerd, or with STRATA_TEST_RUNTIME=highrt our own.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from kubelet import certificates
from kubelet.runtime import Runtime, RuntimeCallError
from strata.linux import cgroups, mounts
from strata.protocols import cri_pb2 as cri
from tests.conftest import wait_for

REPOSITORY = Path(__file__).parents[3]
COMMANDS = Path(sys.executable).parent
IMAGE = "local.test/busybox:1"
NODE_IP = "10.44.0.1"
Pod = dict[str, Any]


class Stack:
    """A running node. `kubectl` talks to the API as a user does; `restart` kills a daemon and starts it again."""

    def __init__(self, folder: Path, exits: ExitStack) -> None:
        self.folder, self._exits = folder, exits
        self.name = f"k{uuid.uuid4().hex[:8]}"
        self.endpoint = f"unix://{folder}/c.sock"
        self.runtime = os.environ.get("STRATA_TEST_RUNTIME", "containerd")
        self.root, self.pod_logs = folder / "kubelet", folder / "logs"
        self.cgroup_root = f"/strata-{self.name}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._argv: dict[str, tuple[Any, ...]] = {}

    # --- making it

    def start(self) -> None:
        self._network()
        self._runtime()
        self._api_server()
        self.start_kubelet()
        wait_for(self._ready, seconds=30, what="the node to be Ready")

    def inside(self, *argv: Any) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", *map(str, argv)]

    def _run(self, *argv: Any) -> None:
        subprocess.run([str(a) for a in argv], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _network(self) -> None:
        self._run("ip", "netns", "add", self.name)
        self._exits.callback(self._run, "ip", "netns", "del", self.name)
        self._run("ip", "-n", self.name, "link", "set", "lo", "up")
        self._run("ip", "-n", self.name, "addr", "add", f"{NODE_IP}/32", "dev", "lo")

    def _process(self, name: str, *argv: Any) -> "subprocess.Popen[bytes]":
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(self.inside(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY)
        self._processes[name], self._argv[name] = process, argv
        self._exits.callback(_end, process)
        return process

    def restart(self, name: str) -> None:
        """Kills a daemon and starts it again."""
        self.kill(name)
        self._process(name, *self._argv[name])

    def kill(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGKILL)
        self._processes[name].wait()

    def _runtime(self) -> None:
        conf = self.folder / "cni"
        conf.mkdir()
        ipam = {"type": "host-local", "ranges": [[{"subnet": "10.45.0.0/24"}]], "dataDir": str(self.folder / "ipam")}
        bridge = {"type": "bridge", "bridge": "kbr0", "isGateway": True, "ipMasq": False, "ipam": ipam}
        (conf / "10-test.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": [bridge]}))
        self._exits.callback(self._remove_what_is_left)
        process = self._process(
            self.runtime, *(self._containerd_argv(conf) if self.runtime == "containerd" else self._highrt_argv(conf))
        )
        self._exits.callback(self._remove_pods)

        def answers() -> bool:
            assert process.poll() is None, (self.folder / f"{self.runtime}.log").read_text()[-2000:]
            return self.runtime_call("Version", cri.VersionRequest(version="v1")) is not None

        wait_for(answers, seconds=30, what=f"{self.runtime} to answer")
        archive = self._archive()
        if self.runtime == "containerd":
            self._run("ctr", "--address", self.folder / "c.sock", "--namespace", "k8s.io", "images", "import", archive)
        else:
            self._run(COMMANDS / "highrt", "--address", self.endpoint, "load", "-i", archive)

    def _highrt_argv(self, conf: Path) -> list[Any]:
        return [
            COMMANDS / "highrt", "serve", "--root", self.folder / "croot", "--state", self.folder / "cstate",
            "--listen", self.endpoint,
            "--cni-conf-dir", conf, "--cni-bin-dir", "/usr/lib/cni", "--name", f"test-{self.name}",
        ]  # fmt: skip

    def _containerd_argv(self, conf: Path) -> list[Any]:
        config = self.folder / "containerd.toml"
        config.write_text(f'''version = 2
root = "{self.folder}/croot"
state = "{self.folder}/cstate"
[grpc]
address = "{self.folder}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{conf}"
bin_dir = "/usr/lib/cni"
''')
        return ["containerd", "--config", config]

    def _archive(self) -> Path:
        root, layout, archive = self.folder / "image/bin", self.folder / "layout", self.folder / "image.tar"
        root.mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "busybox")
        applets = (
            "sh",
            "sleep",
            "true",
            "cat",
            "ls",
            "id",
            "stat",
            "env",
            "httpd",
            "touch",
            "nc",
            "wget",
            "hostname",
            "mkdir",
            "rm",
        )
        for applet in applets:
            (root / applet).symlink_to("busybox")
        self._run("umoci", "init", "--layout", layout)
        self._run("umoci", "new", "--image", f"{layout}:1")
        self._run("umoci", "insert", "--image", f"{layout}:1", root, "/bin")
        self._run("umoci", "config", "--image", f"{layout}:1", "--config.cmd", "/bin/sleep", "--config.cmd", "100000")
        self._run(
            "skopeo", "copy", "-q", "--insecure-policy", "--additional-tag", IMAGE, f"oci:{layout}:1", f"docker-archive:{archive}"
        )
        return archive

    def _api_server(self) -> None:
        data = self.folder / "api"
        self._process(
            "apiserver",
            sys.executable,
            "-m",
            "controlplane.apiserver",
            "--listen",
            "127.0.0.1:8001",
            "--data-dir",
            data,
            "--insecure",
        )
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:8001"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
        (self.folder / "kubeconfig").write_text(json.dumps(config))
        wait_for(lambda: self.try_kubectl("get", "namespaces").returncode == 0, seconds=30, what="the API server to answer")
        for namespace in ("default", "kube-node-lease"):
            self.try_kubectl("create", "namespace", namespace)
        self._certificates()

    def _certificates(self) -> None:
        """A CA, and the certificate of an API server in it."""
        key, now = certificates.new_key(), datetime.now(UTC)
        ca = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])

        def sign(subject: x509.Name, public: Any, *, authority: bool) -> bytes:
            builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca).public_key(public)
            builder = builder.serial_number(x509.random_serial_number())
            builder = builder.not_valid_before(now - timedelta(minutes=1)).not_valid_after(now + timedelta(hours=1))
            builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        (self.folder / "ca.crt").write_bytes(sign(ca, key.public_key(), authority=True))
        own = certificates.new_key()
        subject = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, "tester"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters")]
        )
        (self.folder / "client.pem").write_bytes(sign(subject, own.public_key(), authority=False) + certificates.key_pem(own))
        (self.folder / "config.yaml").write_text(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
            f"authentication: {{x509: {{clientCAFile: {self.folder}/ca.crt}}}}\nclusterDNS: [10.96.0.10]\n"
            "containerLogMaxSize: 1Mi\n"
        )

    def start_kubelet(self) -> None:
        self._process("kubelet", *self.kubelet_argv())

    def kubelet_argv(self) -> list[Any]:
        return [
            COMMANDS / "kubelet", "run", "--kubeconfig", self.folder / "kubeconfig",
            "--hostname-override", self.name, "--config", self.folder / "config.yaml", *self.flags(),
        ]  # fmt: skip

    def flags(self) -> list[Any]:
        return [
            "--root-dir", self.root, "--container-runtime-endpoint", self.endpoint, "--node-ip", NODE_IP,
            "--cgroup-root", self.cgroup_root, "--pod-log-dir", self.pod_logs,
        ]  # fmt: skip

    # --- using it

    def try_kubectl(self, *argv: str, input: str | None = None) -> "subprocess.CompletedProcess[str]":
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        command = self.inside("kubectl", "--kubeconfig", self.folder / "kubeconfig", *argv)
        return subprocess.run(command, text=True, capture_output=True, timeout=60, **given)

    def kubectl(self, *argv: str, input: str | None = None) -> str:
        done = self.try_kubectl(*argv, input=input)
        assert done.returncode == 0, f"kubectl {' '.join(argv)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _ready(self) -> bool:
        assert self._processes["kubelet"].poll() is None, (self.folder / "kubelet.log").read_text()[-3000:]
        done = self.try_kubectl("get", "node", self.name, "-o", "json")
        if done.returncode:
            return False
        conditions = json.loads(done.stdout).get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def create(self, name: str, *containers: Pod, init: list[Pod] | None = None, annotations: Any = None, **spec: Any) -> None:
        """Makes a pod on the node; a container is a dict without name and image where those do not matter."""
        made = [
            {"name": f"c{n}" if n else "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", **c}
            for n, c in enumerate(containers)
        ]
        inits = [{"name": f"i{n}", "image": IMAGE, "imagePullPolicy": "IfNotPresent", **c} for n, c in enumerate(init or [])]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations or {}},
            "spec": {
                "nodeName": self.name,
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": False,
                **spec,
                "containers": made,
                **({"initContainers": inits} if inits else {}),
            },
        }
        self.kubectl("create", "-f", "-", input=json.dumps(pod))

    def pod(self, name: str) -> Pod:
        found: Pod = json.loads(self.kubectl("get", "pod", name, "-o", "json"))
        return found

    def wait(self, name: str, condition: Callable[[Pod], Any], *, seconds: float = 20, what: str = "") -> Pod:
        """The pod, once the condition holds for its status."""
        last: Pod = {}

        def there() -> bool:
            nonlocal last
            last = self.pod(name)
            return bool(condition(last.get("status") or {}))

        try:
            wait_for(there, seconds=seconds, what=what or f"pod {name}")
        except pytest.fail.Exception:
            log = (self.folder / "kubelet.log").read_text()[-3000:]
            pytest.fail(f"pod {name} is not {what}: {json.dumps(last.get('status'), indent=1)}\n{self.events(name)}\n{log}")
        return last

    def wait_phase(self, name: str, phase: str, *, seconds: float = 20) -> Pod:
        return self.wait(name, lambda s: s.get("phase") == phase, seconds=seconds, what=phase)

    def wait_ready(self, name: str, *, seconds: float = 20) -> Pod:
        return self.wait(name, lambda s: condition(s, "Ready") == "True", seconds=seconds, what="Ready")

    def events(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of a pod's events."""
        items = json.loads(self.kubectl("get", "events", "-o", "json"))["items"]
        return [(e["reason"], e["message"]) for e in items if e["involvedObject"]["name"] == name]

    def delete(self, name: str, *argv: str) -> None:
        self.kubectl("delete", "pod", name, "--wait", "--timeout=30s", *argv)

    def logs(self, name: str, container: str = "c") -> str:
        """What the container wrote, from the disk."""
        uid = self.pod(name)["metadata"]["uid"]
        files = sorted((self.pod_logs / f"default_{name}_{uid}" / container).glob("*.log"))
        lines = [line.split(" ", 3)[3] for file in files for line in file.read_text().splitlines()]
        return "\n".join(lines)

    def server(self, path: str, *, certificate: bool = True, method: str = "GET") -> tuple[int, str]:
        """A request to the kubelet's own server; status and body."""
        argv = ["curl", "-sS", "-k", "-X", method, "--max-time", "20", "-w", "\n%{http_code}"]
        argv += ["--cert", str(self.folder / "client.pem")] if certificate else []
        done = subprocess.run(
            self.inside(*argv, f"https://{NODE_IP}:10250{path}"),
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        body, _, code = done.stdout.rpartition("\n")
        return int(code), body

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self.folder / "client.pem")
        return context

    def runtime_call(self, method: str, request: Any) -> Any:
        """A CRI call, None where it fails."""

        async def call() -> Any:
            runtime = Runtime(self.endpoint)
            try:
                return await runtime.call(method, request, seconds=60)
            except RuntimeCallError:
                return None
            finally:
                runtime.close()

        return asyncio.run(call())

    # --- taking it away

    def _remove_pods(self) -> None:
        sandboxes = self.runtime_call("ListPodSandbox", cri.ListPodSandboxRequest())
        for sandbox in sandboxes.items if sandboxes else ():
            self.runtime_call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox.id))
            self.runtime_call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox.id))

    def _remove_what_is_left(self) -> None:
        for path in (self.cgroup_root, f"/strata/test-{self.name}"):
            group = cgroups.open_cgroup(path)
            group.kill()
            group.remove()
        with suppress(OSError):  # other stacks may be in it
            for folder in cgroups.open_cgroup("/strata").folders():
                os.rmdir(folder)
        mounts.umount_below(str(self.folder))


class JoinedStack(Stack):
    """A node that joined the whole control plane by a token, as `controlplane token create` prints it."""

    def _api_server(self) -> None:
        data = self.folder / "controlplane"
        self._process(
            "controlplane", COMMANDS / "controlplane", "serve", "--data-dir", data, "--bind-address", NODE_IP,
            "--advertise-address", NODE_IP,
        )  # fmt: skip
        admin = data / "admin.kubeconfig"
        wait_for(admin.exists, seconds=30, what="admin.kubeconfig")
        (self.folder / "kubeconfig").symlink_to(admin)
        wait_for(lambda: self.try_kubectl("get", "namespace", "default").returncode == 0, seconds=30, what="the control plane")
        argv = self.inside(COMMANDS / "controlplane", "token", "create", "--data-dir", data)
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
        assert done.returncode == 0, done.stderr
        self.join_command = shlex.split(done.stdout.strip())
        wait_for(lambda: self.try_kubectl("get", "serviceaccount", "default").returncode == 0, seconds=30, what="the account")

    def kubelet_argv(self) -> list[Any]:
        return [COMMANDS / "kubelet", *self.join_command[1:], "--node-name", self.name, *self.flags()]


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def condition(status: dict[str, Any], kind: str) -> str:
    return next((str(c["status"]) for c in status.get("conditions") or [] if c["type"] == kind), "")


def state_of(status: dict[str, Any], name: str = "c") -> dict[str, Any]:
    """A container's status in a pod's."""
    for container in [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]:
        if container["name"] == name:
            return dict(container)
    return {}


def _started(kind: type[Stack]) -> Iterator[Any]:
    folder = Path(tempfile.mkdtemp(prefix="strata-kubelet-"))
    os.chmod(folder, 0o755)
    with ExitStack() as exits:
        exits.callback(shutil.rmtree, folder)
        made = kind(folder, exits)
        made.start()
        yield made


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    yield from _started(Stack)


@pytest.fixture(scope="module")
def joined() -> Iterator[JoinedStack]:
    yield from _started(JoinedStack)


@pytest.fixture
def name(stack: Stack, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for the test's pod, which is deleted after it."""
    made = "t" + re.sub(r"[^a-z0-9]", "", request.node.name.lower())[-30:] + uuid.uuid4().hex[:4]
    yield made
    stack.kubectl("delete", "pod", made, "--ignore-not-found", "--wait", "--timeout=30s")

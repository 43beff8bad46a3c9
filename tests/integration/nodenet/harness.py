"""Nodes and pods for network tests: real network namespaces, real sockets, nothing that leaves the machine.

A node's default route ends in a veth pair whose other end nobody has: look-ups succeed, and what goes there is counted.
"""

import contextlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from nodenet.cni.main import run as run_cni
from strata.linux import namespaces, syscalls

T = TypeVar("T")
ROOT = Path(__file__).parents[3]
CLUSTER_CIDR, SERVICE_CIDR, POD_CIDR, DNS_IP = "10.244.0.0/16", "10.96.0.0/16", "10.244.7.0/24", "10.96.0.10"


class Namespace:
    """A network namespace, and a thread that lives in it."""

    def __init__(self) -> None:
        self.name = f"strata-nn-{secrets.token_hex(4)}"
        self.path = f"/run/netns/{self.name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)
        self._sockets: list[socket.socket] = []
        self.shell("ip link set lo up")

    def _enter(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(descriptor, namespaces.NEWNET)
        os.close(descriptor)

    def inside(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Calls a function in the namespace."""
        return self._thread.submit(function, *arguments, **named).result(60)

    def shell(self, command: str) -> str:
        """The output of a command; raises with its errors where it fails."""
        done = self.inside(subprocess.run, command, shell=True, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise AssertionError(f"{command}: {done.stderr.strip() or done.stdout.strip()}")
        return str(done.stdout)

    def popen(self, *argv: str, **named: Any) -> subprocess.Popen[bytes]:
        return self.inside(subprocess.Popen, argv, **named)

    def serve_tcp(self, port: int, answer: str, host: str = "0.0.0.0") -> None:
        """A server that says `ANSWER PEER` to each connection and closes it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = self.inside(socket.create_server, (host, port), family=family, dualstack_ipv6=host == "::")
        self._sockets.append(server)

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, peer = server.accept()
                    connection.sendall(f"{answer} {peer[0]}".encode())
                    connection.close()

        threading.Thread(target=loop, daemon=True).start()

    def serve_udp(self, port: int, answer: str) -> None:
        """A server that answers each datagram with `ANSWER PEER`."""
        server = self.inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", port))
        self._sockets.append(server)

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    _, peer = server.recvfrom(2048)
                    if not peer:  # shut down
                        return
                    server.sendto(f"{answer} {peer[0]}".encode(), peer)

        threading.Thread(target=loop, daemon=True).start()

    def get_tcp(self, host: str, port: int, timeout: float = 3.0) -> str:
        """What a server says; raises OSError where there is no connection."""

        def call() -> str:
            with socket.create_connection((host, port), timeout) as connection:
                return connection.recv(2048).decode()

        return self.inside(call)

    def get_udp(self, host: str, port: int, timeout: float = 2.0, source_port: int = 0) -> str:
        def call() -> str:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
                connection.settimeout(timeout)
                connection.bind(("0.0.0.0", source_port))
                connection.connect((host, port))
                connection.send(b"hello")
                return connection.recv(2048).decode()

        return self.inside(call)

    def close(self) -> None:
        for server in self._sockets:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in accept
            server.close()
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


class Node(Namespace):
    """A node: a namespace with a default route to nowhere, in which plugins run."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        super().__init__()
        self.address = address
        self.folder = Path(tempfile.mkdtemp(prefix="strata-nn-"))
        self.shell("ip link add dead0 type veth peer name dead1; sysctl -qw net.ipv6.conf.dead0.disable_ipv6=1 "
                   f"net.ipv6.conf.dead1.disable_ipv6=1; ip addr add {address}/24 dev dead0; ip link set dead0 up; "
                   "ip link set dead1 up; ip route add default via 192.0.2.254")  # fmt: skip

    def left(self) -> int:
        """How many packets went out of the default route, asking for the gateway's address among them."""
        return int(json.loads(self.shell("ip -j -s link show dev dead0"))[0]["stats64"]["tx"]["packets"])

    def cni(self, command: str, config: dict[str, Any], container: str = "", netns: str = "", path: str = "") -> Any:
        """The decoded result of a plugin ({} for none), or (code, message)."""
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": path,
        }
        status, output = self.inside(run_cni, environ, json.dumps(config).encode())
        body = json.loads(output or b"{}")
        return (body["code"], body["msg"]) if status else body

    def bridge_config(self, **changes: Any) -> dict[str, Any]:
        ipam = {
            "type": "host-local",
            "dataDir": str(self.folder / "networks"),
            "ranges": [[{"subnet": POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": "strata0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
        return {"cniVersion": "1.1.0", "name": "strata", **bridge, **changes}

    def close(self) -> None:
        super().close()
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)


class Pod(Namespace):
    """A pod: a namespace attached by our bridge plugin."""

    def __init__(self, node: Node, **changes: Any) -> None:
        super().__init__()
        self.node, self.config = node, node.bridge_config(**changes)
        self.id = secrets.token_hex(16)
        self.result = node.cni("ADD", self.config, self.id, self.path)
        assert isinstance(self.result, dict), self.result
        self.address = self.result["ips"][0]["address"].split("/")[0]

    def close(self) -> None:
        self.node.cni("DEL", self.config, self.id, self.path)
        super().close()


class Daemon:
    """A process of the project's in a node, its log in a file; ended by SIGTERM, and killed where that is not enough."""

    def __init__(self, node: Node, name: str, *argv: str) -> None:
        self.log = node.folder / f"{name}-{secrets.token_hex(2)}.log"
        with self.log.open("wb") as log:
            self.process = node.popen(sys.executable, "-m", *argv, stdout=log, stderr=log, cwd=ROOT)

    def wait_log(self, text: str, seconds: float = 20.0) -> None:
        eventually(lambda: text in self.log.read_text(), f"{text!r} in the log", seconds, lambda: self.log.read_text()[-3000:])

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Cluster:
    """A node with a real API server behind its developers' door, and nodenet on it."""

    def __init__(self) -> None:
        self.node = Node()
        self._close: list[Callable[[], None]] = [self.node.close]
        try:
            port = 18080
            self.api = Daemon(self.node, "api", "controlplane.apiserver", "--listen", f"127.0.0.1:{port}",
                              "--data-dir", str(self.node.folder), "--insecure")  # fmt: skip
            self._close.append(self.api.close)
            self._port = port
            self.api.wait_log("serving")
            self.kubeconfig = self.node.folder / "kubeconfig"
            self.kubeconfig.write_text(
                json.dumps(
                    {
                        "apiVersion": "v1",
                        "kind": "Config",
                        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                        "users": [{"name": "u", "user": {}}],
                        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                        "current-context": "x",
                    }
                )
            )
            network = {"clusterCIDR": CLUSTER_CIDR, "serviceCIDR": SERVICE_CIDR, "clusterDomain": "cluster.local"}
            self.create("/api/v1/namespaces/kube-system/configmaps", {"metadata": {"name": "strata-network"}, "data": network})
            self.create("/api/v1/nodes", {"metadata": {"name": "n1"}, "spec": {"podCIDR": POD_CIDR, "podCIDRs": [POD_CIDR]}})
            dns = {"clusterIP": DNS_IP, "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}
            self.create("/api/v1/namespaces/kube-system/services", {"metadata": {"name": "kube-dns"}, "spec": dns})
            self.nodenet = self.start_nodenet()
        except BaseException:
            self.close()
            raise

    def start_nodenet(self, *options: str) -> Daemon:
        daemon = Daemon(self.node, "nodenet", "nodenet.cli", "serve", "--kubeconfig", str(self.kubeconfig), "--node-name", "n1",
                        "--cni-conf-dir", str(self.node.folder / "net.d"), "--state-dir", str(self.node.folder),
                        "--forward", "none", "--log-level", "debug", *options)  # fmt: skip
        self._close.append(daemon.close)
        daemon.wait_log("listening")
        return daemon

    def pod(self) -> Pod:
        pod = Pod(self.node)
        self._close.append(pod.close)
        return pod

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        def call() -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": kind})
            response = connection.getresponse()
            answer = (response.status, response.read())
            connection.close()
            return answer

        status, answer = self.node.inside(call)
        assert status < 300, (method, path, answer)
        return dict(json.loads(answer))

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self.request("POST", path, body)

    def service(self, name: str, spec: dict[str, Any]) -> None:
        self.create("/api/v1/namespaces/default/services", {"metadata": {"name": name}, "spec": spec})

    def endpoints(self, service: str, endpoints: list[dict[str, Any]], ports: list[dict[str, Any]]) -> None:
        body = {
            "metadata": {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        }
        self.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", body)

    def change_endpoints(self, service: str, endpoints: list[dict[str, Any]]) -> None:
        path = f"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{service}-1"
        self.request("PATCH", path, {"endpoints": endpoints})

    def close(self) -> None:
        while self._close:
            self._close.pop()()


def eventually(condition: Callable[[], Any], what: str, seconds: float = 10.0, explain: Callable[[], str] = lambda: "") -> None:
    """Waits until a condition holds; an OSError counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what} {explain()}")
        time.sleep(0.02)


@contextlib.contextmanager
def closing(thing: T) -> Iterator[T]:
    try:
        yield thing
    finally:
        thing.close()  # type: ignore[attr-defined]

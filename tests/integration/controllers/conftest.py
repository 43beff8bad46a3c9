"""A real API server behind the developers' door, and a client to it."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controlplane.controllers import main
from controlplane.controllers.frame import Settings
from strata.kubeclient import times
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError, Unreachable
from strata.kubeclient.informer import Informer
from strata.kubeclient.resources import LEASES, NODES, PODS


async def eventually(condition: Callable[[], Awaitable[Any]], what: str, *, seconds: float = 10.0) -> Any:
    """Awaits `condition` again and again until what it returns is true, and returns that; fails after `seconds`.

    An object that is not found yet counts as not yet true.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        result: Any = None
        with contextlib.suppress(ApiError):
            result = await condition()
        if result:
            return result
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"waited {seconds} s for {what}: last result {result!r}")
        await asyncio.sleep(0.03)


class Door:
    """The API server's process; it can be killed and started again on its data."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controlplane.apiserver", "--listen", f"127.0.0.1:{self.port}",
            "--data-dir", str(self._folder), "--insecure",
            stdin=asyncio.subprocess.DEVNULL, stdout=None, stderr=None, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        client = Client(self.url)
        try:
            await eventually(lambda: client.request("GET", "/api/v1/namespaces/kube-node-lease"), "the API server", seconds=30)
        finally:
            await client.close()

    async def kill(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(tmp_path)
    await door.start()
    yield door
    await door.kill()


@pytest.fixture
async def client(door: Door) -> AsyncIterator[Client]:
    client = Client(door.url)
    yield client
    await client.close()


@pytest.fixture
def grace_seconds() -> float:
    """How long a node may be silent; a test may have another number (parametrize)."""
    return 40.0


@pytest.fixture
async def controllers(client: Client, tmp_path: Path, grace_seconds: float) -> AsyncIterator[Settings]:
    """The scheduler and all controllers, in this process."""
    certificate, key = certificate_authority(tmp_path)
    settings = Settings(certificate, certificate, key, node_grace_seconds=grace_seconds, orphan_quarantine_seconds=1)
    serving = asyncio.create_task(main.serve(client, settings))
    yield settings
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def add_node(client: Client, name: str, *, cpu: str = "4", labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A node that says it is ready, as a kubelet would."""
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
    await client.create(NODES, {"metadata": metadata})
    resources = {"cpu": cpu, "memory": "8Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": times.now()}
    status = {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [{**ready, "lastTransitionTime": times.now()}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": name}],
    }
    return await client.patch(NODES, name, {"status": status}, subresource="status", kind="merge")


def pod_spec(cpu: str = "", **more: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": cpu}} if cpu else {}
    return {"containers": [{"name": "c", "image": "example/image", "resources": resources}], **more}


async def add_pod(
    client: Client, name: str, *, labels: dict[str, str] | None = None, cpu: str = "", **spec: Any
) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "labels": labels or {}}
    return await client.create(PODS, {"metadata": metadata, "spec": pod_spec(cpu, **spec)})


async def make_ready(client: Client, pod: dict[str, Any], address: str = "10.244.0.5") -> None:
    """The pod runs and is ready, as a kubelet would say."""
    condition = {"type": "Ready", "status": "True", "lastTransitionTime": times.now()}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
    await client.patch(PODS, pod["metadata"]["name"], {"status": status}, pod["metadata"]["namespace"], subresource="status")


def certificate_authority(folder: Path) -> tuple[Path, Path]:
    """A CA: its certificate's file and its key's."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=10))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
    certificate_file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    return certificate_file, key_file


@pytest.fixture
async def kubelet(client: Client) -> AsyncIterator[Informer]:
    """What kubelets do: pods that have a node become ready, and end when they are deleted; nodes are never silent."""
    work: set[asyncio.Task[None]] = set()
    numbers = iter(range(2, 250))
    seen: set[str] = set()
    pods = Informer(client, PODS)

    async def handle(pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        while True:
            try:
                if metadata.get("deletionTimestamp"):
                    await client.delete(PODS, metadata["name"], metadata["namespace"], grace_period_seconds=0)
                else:
                    await make_ready(client, pod, f"10.244.0.{next(numbers)}")
            except Unreachable:
                await asyncio.sleep(0.1)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                return
            else:
                return

    def look(pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        is_new = pod["spec"].get("nodeName") and metadata["uid"] not in seen
        if metadata.get("deletionTimestamp") or is_new:
            seen.add(metadata["uid"])
            task = asyncio.create_task(handle(pod))
            work.add(task)
            task.add_done_callback(work.discard)

    async def renew() -> None:
        while True:
            with contextlib.suppress(Unreachable):
                for node in (await client.list(NODES))["items"]:
                    await renew_lease(client, node["metadata"]["name"])
            await asyncio.sleep(0.5)

    pods.add_handler(look, lambda _, pod: look(pod))
    await add_node(client, "one")
    running = [asyncio.create_task(pods.run()), asyncio.create_task(renew())]
    yield pods
    for task in running:
        task.cancel()
    await asyncio.gather(*running, *work, return_exceptions=True)


async def renew_lease(client: Client, node: str) -> None:
    """The node's sign of life."""
    spec = {"holderIdentity": node, "renewTime": times.now_micro()}
    try:
        await client.patch(LEASES, node, {"spec": spec}, "kube-node-lease", kind="merge")
    except ApiError as error:
        if not error.is_not_found:
            raise
        await client.create(LEASES, {"metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": spec})

"""The Node object: registered at the start, its status kept true, and a lease that says every ten seconds that we live.

https://kubernetes.io/docs/concepts/architecture/nodes/ : the status is written when it changes, and every five minutes;
the lease in kube-node-lease every ten seconds.
"""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubelet import VERSION, machine
from kubelet.runtime import Runtime, RuntimeCallError
from kubelet.status import timestamp
from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.protocols import cri_pb2 as cri
from strata.telemetry import logs

log = logs.get("kubelet.node")

STATUS_SECONDS, REPORT_SECONDS = 10.0, 300.0
NOT_READY_SECONDS = 0.5
"""While the node is not ready its runtime is asked this often: readiness is told as soon as it is there."""
LEASE_SECONDS, LEASE_DURATION_SECONDS = 10.0, 40
LEASE_NAMESPACE = "kube-node-lease"
MAX_IMAGES = 50
EVICTION_MEMORY_BYTES = 100 * 1024 * 1024
EVICTION_DISK, EVICTION_INODES = 0.10, 0.05


class Node:
    """name, address: the node's; port: the kubelet's HTTPS port; max_pods: what it takes at most."""

    def __init__(
        self, client: Client, runtime: Runtime, name: str, address: str, root: Path, *, port: int = 10250, max_pods: int = 110
    ) -> None:
        self._client, self._runtime = client, runtime
        self.name, self.address, self._port, self._max_pods = name, address, port, max_pods
        self._root = root
        self.machine = machine.look(root)
        self.object: dict[str, Any] = {}
        self.uid = ""
        self._network_problem = "the runtime was not asked yet"
        self._runtime_problem = self._network_problem
        self._reported_at = 0.0
        self._images: list[dict[str, Any]] = []
        self._images_at = 0.0
        self.registered = asyncio.Event()

    @property
    def labels(self) -> dict[str, str]:
        """The node's labels, as the API has them; empty until it is registered."""
        return dict((self.object.get("metadata") or {}).get("labels") or {})

    def network_problem(self) -> str:
        """Why pods cannot have a network now; empty if they can."""
        return self._runtime_problem or self._network_problem

    async def run(self) -> None:
        """Keeps the Node and its lease until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_status())
            group.create_task(self._keep_lease())

    # --- status

    async def _keep_status(self) -> None:
        while True:
            try:
                await self._ask_runtime()
                if not self.registered.is_set():
                    await self._register()
                    self.registered.set()
                await self._report()
            except (ApiError, RuntimeCallError) as error:
                log.warning("the node's status was not written, again soon", error=error)
                await asyncio.sleep(1.0)
                continue
            except Exception:
                log.exception("the node's status was not written, again soon")
                await asyncio.sleep(STATUS_SECONDS)
                continue
            for _ in range(int(STATUS_SECONDS / NOT_READY_SECONDS)):
                await asyncio.sleep(NOT_READY_SECONDS)
                if self.network_problem():
                    await self._ask_runtime()
                    if not self.network_problem():
                        break

    async def _ask_runtime(self) -> None:
        try:
            if not self._runtime.version:
                await self._runtime.identify()
            conditions = await self._runtime.conditions()
        except RuntimeCallError as error:
            self._runtime_problem = f"container runtime is down: {error.message}"
            return
        self._runtime_problem = self._network_problem = ""
        ready, network = conditions.get("RuntimeReady"), conditions.get("NetworkReady")
        if ready is not None and not ready.status:
            self._runtime_problem = (
                f"container runtime not ready: RuntimeReady=false reason:{ready.reason} message:{ready.message}"
            )
        if network is not None and not network.status:
            self._network_problem = (
                f"container runtime network not ready: NetworkReady=false reason:{network.reason} message:{network.message}"
            )

    async def _register(self) -> None:
        """Creates the Node, or takes up the one that is there."""
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": self.machine.architecture,
            "beta.kubernetes.io/os": "linux",
            "beta.kubernetes.io/arch": self.machine.architecture,
        }
        node = {
            "metadata": {
                "name": self.name,
                "labels": labels,
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            },
            "spec": {},
            "status": await self._status({}),
        }
        try:
            self.object = await self._client.create(resources.NODES, node)
            log.info("registered the node", node=self.name)
        except ApiError as error:
            if not error.is_already_exists:
                raise
            self.object = await self._client.get(resources.NODES, self.name)
            known = self.object["metadata"].get("labels") or {}
            if missing := {k: v for k, v in labels.items() if known.get(k) != v}:
                self.object = await self._client.patch(resources.NODES, self.name, {"metadata": {"labels": missing}})
        self.uid = self.object["metadata"]["uid"]

    async def _report(self) -> None:
        try:
            self.object = await self._client.get(resources.NODES, self.name)
        except ApiError as error:
            if not error.is_not_found:
                raise
            self.registered.clear()  # somebody deleted the Node: it is made again
            return
        old = self.object.get("status") or {}
        status = await self._status(old)
        if _comparable(status) == _comparable(old) and time.monotonic() - self._reported_at < REPORT_SECONDS:
            return
        change = {**status, "addresses": [{"$patch": "replace"}, *status["addresses"]]}
        self.object = await self._client.patch(
            resources.NODES, self.name, {"status": change}, kind="strategic", subresource="status"
        )
        self._reported_at = time.monotonic()

    async def _status(self, old: dict[str, Any]) -> dict[str, Any]:
        m = self.machine
        capacity = {
            "cpu": str(m.cpu_milli // 1000),
            "memory": f"{m.memory_bytes // 1024}Ki",
            "ephemeral-storage": f"{m.disk_bytes // 1024}Ki",
            "pods": str(self._max_pods),
        }
        allocatable = {
            **capacity,
            "memory": f"{(m.memory_bytes - EVICTION_MEMORY_BYTES) // 1024}Ki",
            "ephemeral-storage": str(int(m.disk_bytes * (1 - EVICTION_DISK))),
        }
        return {
            "addresses": [{"type": "InternalIP", "address": self.address}, {"type": "Hostname", "address": self.name}],
            "capacity": capacity,
            "allocatable": allocatable,
            "conditions": self._conditions(old),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
            "nodeInfo": {
                "machineID": m.machine_id,
                "systemUUID": m.system_uuid,
                "bootID": m.boot_id,
                "kernelVersion": m.kernel,
                "osImage": m.os_image,
                "containerRuntimeVersion": f"{self._runtime.name}://{self._runtime.version}",
                "kubeletVersion": VERSION,
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": m.architecture,
            },
            "images": await self._image_list(),
        }

    def _conditions(self, old: dict[str, Any]) -> list[dict[str, Any]]:
        free, inodes = machine.free_fraction(self._root)
        available = machine.memory()["MemAvailable"]
        running, most = machine.processes()
        problem = "; ".join(p for p in (self._runtime_problem, self._network_problem) if p)
        known = {c["type"]: c for c in old.get("conditions") or []}
        return [
            _condition(known, "MemoryPressure", available < EVICTION_MEMORY_BYTES,
                       ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                       ("KubeletHasSufficientMemory", "kubelet has sufficient memory available")),
            _condition(known, "DiskPressure", free < EVICTION_DISK or inodes < EVICTION_INODES,
                       ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                       ("KubeletHasNoDiskPressure", "kubelet has no disk pressure")),
            _condition(known, "PIDPressure", running > most * 0.95,
                       ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                       ("KubeletHasSufficientPID", "kubelet has sufficient PID available")),
            _condition(known, "Ready", not problem,
                       ("KubeletReady", "kubelet is posting ready status"), ("KubeletNotReady", problem)),
        ]  # fmt: skip

    async def _image_list(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._images_at < 30 and self._images_at:
            return self._images
        try:
            answer = await self._runtime.call("ListImages", cri.ListImagesRequest())
        except RuntimeCallError:
            return self._images
        images = sorted(answer.images, key=lambda image: image.size, reverse=True)[:MAX_IMAGES]
        self._images = [{"names": [*i.repo_digests, *i.repo_tags][:5], "sizeBytes": i.size} for i in images]
        self._images_at = time.monotonic()
        return self._images

    # --- the lease

    async def _keep_lease(self) -> None:
        await self.registered.wait()
        lease: dict[str, Any] | None = None
        while True:
            try:
                lease = await self._renew(lease)
                pause = LEASE_SECONDS
            except ApiError as error:
                log.warning("the node's lease was not renewed, again soon", error=error.message)
                lease, pause = None, 1.0
            await asyncio.sleep(pause)

    async def _renew(self, lease: dict[str, Any] | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if lease is None:
            try:
                lease = await self._client.get(resources.LEASES, self.name, LEASE_NAMESPACE)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                owner = {"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self.uid}
                new = {
                    "metadata": {"name": self.name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
                    "spec": {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_DURATION_SECONDS, "renewTime": now},
                }
                return await self._client.create(resources.LEASES, new)
        spec = {
            **(lease.get("spec") or {}),
            "holderIdentity": self.name,
            "leaseDurationSeconds": LEASE_DURATION_SECONDS,
            "renewTime": now,
        }
        return await self._client.update(resources.LEASES, {**lease, "spec": spec})


def _condition(known: dict[str, Any], kind: str, holds: bool, if_so: tuple[str, str], if_not: tuple[str, str]) -> dict[str, Any]:
    now, status = timestamp(time.time()), "True" if holds else "False"
    old = known.get(kind) or {}
    since = old.get("lastTransitionTime") if old.get("status") == status else None
    reason, message = if_so if holds else if_not
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": since or now,
    }


def _comparable(status: dict[str, Any]) -> dict[str, Any]:
    """A status without its clock, and without what others write."""
    own = ("addresses", "capacity", "allocatable", "daemonEndpoints", "nodeInfo", "images")
    found: dict[str, Any] = {key: status.get(key) or None for key in own}
    kinds = ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    found["conditions"] = sorted(
        (c["type"], c["status"], c.get("reason"), c.get("message")) for c in status.get("conditions") or [] if c["type"] in kinds
    )
    return found

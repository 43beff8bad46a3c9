"""One kubelet process: its parts made and wired, run until it is told to end."""

import asyncio
import os
from pathlib import Path
from typing import Any

from kubelet import admission
from kubelet.config import Config
from kubelet.context import Context
from kubelet.images import Images
from kubelet.network import ClusterDns
from kubelet.node import Node
from kubelet.objects import Objects
from kubelet.pods import Pods
from kubelet.resources import PodCgroups
from kubelet.rotation import LogRotation
from kubelet.runtime import Runtime
from kubelet.server import Server
from kubelet.statuswriter import StatusWriter
from kubelet.volumes.manager import VolumeManager
from kubelet.volumes.payload import Payloads
from kubelet.volumes.tokens import Tokens
from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.kubeclient.events import EventRecorder
from strata.kubeclient.informer import Informer
from strata.telemetry import logs

log = logs.get("kubelet")


async def run(config: Config) -> None:
    """Runs the node agent until it is cancelled; its pods run on after that.

    Raises ConfigError, KubeconfigError, OSError where it cannot begin.
    """
    config = config.resolved()
    _make_folders(config.root)
    client = Client.from_kubeconfig(config.kubeconfig, user_agent="kubelet")
    runtime = Runtime(config.endpoint)
    recorder = EventRecorder(client, "kubelet", host=config.node_name)
    statuses = StatusWriter(client)
    try:
        node = Node(client, runtime, config.node_name, config.node_ip, config.root, port=config.port, max_pods=config.max_pods)
        informer = Informer(client, resources.PODS, field_selector=f"spec.nodeName={config.node_name}")
        services = Informer(client, resources.SERVICES)
        context = _context(config, client, runtime, recorder, statuses, node, services)
        pods = Pods(context, informer)
        context.admit = lambda pod: admission.refuse(pod, pods.active(), node.machine, config.max_pods)
        server = Server(config, context, pods)
        await server.start()
        log.info("kubelet started", node=config.node_name, address=config.node_ip, runtime=config.endpoint)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(informer.run())
                group.create_task(services.run())
                group.create_task(node.run())
                group.create_task(_drive(pods, services, node))
                group.create_task(LogRotation(config, runtime).run())
                group.create_task(server.keep_certificates(node))
        finally:
            await server.close()
    finally:
        await statuses.close()
        await recorder.close()
        runtime.close()
        await client.close()


async def _drive(pods: Pods, services: Informer, node: Node) -> None:
    """The pods wait for what they depend on: the runtime's name (in statuses) and Services (in environments)."""
    await node.registered.wait()
    await services.wait_synced()
    await pods.run()


def _context(
    config: Config,
    client: Client,
    runtime: Runtime,
    recorder: EventRecorder,
    statuses: StatusWriter,
    node: Node,
    services: Informer,
) -> Context:
    objects, tokens = Objects(client), Tokens(client)

    def tell(obj: dict[str, Any], type: str, reason: str, message: str, *, field_path: str = "") -> None:
        recorder.event(obj, type, reason, message, field_path=field_path)

    return Context(
        node_name=config.node_name,
        node_ip=config.node_ip,
        root=config.root,
        pod_logs=config.pod_logs,
        client=client,
        runtime=runtime,
        images=Images(runtime, objects),
        volumes=VolumeManager(config.root, Payloads(objects, tokens)),
        objects=objects,
        cgroups=PodCgroups(config.cgroup_root),
        statuses=statuses,
        tell=tell,
        services=services.list,
        network_ready=node.network_problem,
        forget_tokens=tokens.forget,
        node_labels=lambda: node.labels,
        admit=lambda pod: None,
        dns=ClusterDns(config.cluster_dns, config.cluster_domain, config.resolv_conf),
        cpu_milli=node.machine.cpu_milli,
        memory_bytes=node.machine.memory_bytes,
        ephemeral_bytes=node.machine.disk_bytes,
    )


def _make_folders(root: Path) -> None:
    for folder in (root, root / "pods", root / "pki"):
        folder.mkdir(parents=True, exist_ok=True)
    os.chmod(root, 0o750)
    os.chmod(root / "pki", 0o700)

"""The process of the scheduler and all controllers: one event loop, one informer a resource."""

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from controlplane.controllers.bootstraptokens import BootstrapSigner, TokenCleaner
from controlplane.controllers.csrapproving import CsrApprovingController
from controlplane.controllers.csrsigning import CsrSigningController
from controlplane.controllers.daemonset import DaemonSetController
from controlplane.controllers.deployment import DeploymentController
from controlplane.controllers.endpointslice import EndpointsController, EndpointSliceController
from controlplane.controllers.frame import Context, Controller, Settings
from controlplane.controllers.garbagecollector import GarbageCollector
from controlplane.controllers.job import JobController
from controlplane.controllers.namespace import NamespaceController
from controlplane.controllers.nodeipam import NodeIpamController
from controlplane.controllers.nodelifecycle import NodeLifecycleController
from controlplane.controllers.podgc import PodGarbageCollector
from controlplane.controllers.replicaset import ReplicaSetController, ReplicationControllerController
from controlplane.controllers.rootca import RootCaPublisher
from controlplane.controllers.serviceaccount import ServiceAccountController
from controlplane.controllers.tainteviction import TaintEvictionController
from controlplane.scheduler.scheduler import NAME, Scheduler
from strata.kubeclient.client import Client
from strata.kubeclient.informer import Informers
from strata.kubeclient.leaderelection import LeaderElector
from strata.telemetry import logs, spans

CONTROLLERS: tuple[type[Controller], ...] = (  # type: ignore[type-arg]
    ReplicaSetController,
    ReplicationControllerController,
    DeploymentController,
    DaemonSetController,
    JobController,
    EndpointSliceController,
    EndpointsController,
    NodeIpamController,
    NodeLifecycleController,
    TaintEvictionController,
    PodGarbageCollector,
    ServiceAccountController,
    RootCaPublisher,
    CsrApprovingController,
    CsrSigningController,
    TokenCleaner,
    BootstrapSigner,
    NamespaceController,
    GarbageCollector,
)
_log = logs.get("controllers")


async def run(
    kubeconfig_path: str | os.PathLike[str],
    *,
    root_ca_file: str | os.PathLike[str] | None = None,
    ca_cert_file: str | os.PathLike[str] | None = None,
    ca_key_file: str | os.PathLike[str] | None = None,
    pod_cidr: str = "10.244.0.0/16",
    service_cidr: str = "10.96.0.0/16",
    node_grace_seconds: float = 40.0,
    leader_elect: bool = False,
) -> None:
    """Runs the scheduler and the controllers until it is cancelled.

    root_ca_file: the CA that pods are to trust (each namespace's kube-root-ca.crt). ca_cert_file, ca_key_file: what
    certificate requests are signed with; without them none is signed. node_grace_seconds: how long a node may be silent.
    leader_elect: wait for the lease kube-system/strata-controllers; returns when it is lost.
    Raises KubeconfigError for a kubeconfig that cannot be used, ValueError for a CIDR that is none.
    """
    settings = Settings(
        root_ca=Path(root_ca_file) if root_ca_file else None,
        signing_certificate=Path(ca_cert_file) if ca_cert_file else None,
        signing_key=Path(ca_key_file) if ca_key_file else None,
        pod_cidr=pod_cidr,
        service_cidr=service_cidr,
        node_grace_seconds=node_grace_seconds,
    )
    client = Client.from_kubeconfig(kubeconfig_path, user_agent="strata-controllers")
    try:
        if leader_elect:
            identity = f"{socket.gethostname()}_{os.urandom(4).hex()}"
            await LeaderElector(client, "strata-controllers", identity).run(lambda: serve(client, settings))
        else:
            await serve(client, settings)
    finally:
        await client.close()


async def serve(client: Client, settings: Settings, *, controllers: Sequence[type[Controller]] = CONTROLLERS) -> None:  # type: ignore[type-arg]
    """Runs the scheduler and these controllers on one set of informers until it is cancelled."""
    context = Context(client, Informers(client), settings)
    scheduler = Scheduler(client, context.informers, context.recorder(NAME))
    running = [controller(context) for controller in controllers]
    try:
        await context.informers.start()
        _log.info("serving", controllers=len(running))
        async with asyncio.TaskGroup() as group:
            group.create_task(scheduler.run(), name="scheduler")
            for controller in running:
                group.create_task(controller.run(), name=controller.name)
    finally:
        await context.close()


async def until_signal(kubeconfig: str, **options: object) -> None:
    """`run` until SIGTERM or SIGINT."""
    loop, task = asyncio.get_running_loop(), asyncio.create_task(run(kubeconfig, **options))  # type: ignore[arg-type]
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def main(kubeconfig: str, *, log_format: str = "text", log_level: str = "info", **options: object) -> None:
    """The process's entry: sets up logs and spans, and runs on uvloop, whose TLS connections (one a watch) are small."""
    import uvloop

    logs.configure(level=log_level, format=log_format)
    spans.configure("scheduler")
    uvloop.run(until_signal(kubeconfig, **options))

"""The node network's daemon: one connection to the API server, and the parts that follow it."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodenet.conflist import DEFAULT_BRIDGE, ConflistWriter
from nodenet.network import CONFIGMAP, ClusterNetwork
from nodenet.proxy.proxy import Proxy
from strata.kubeclient import resources
from strata.kubeclient.backoff import Backoff
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import Informers
from strata.telemetry import logs

PARTS = ("conflist", "routes", "proxy", "dns")
_POLL_SECONDS = 1.0
_log = logs.get("nodenet")


@dataclass(frozen=True)
class Options:
    """What the command line says. An empty cluster_cidr, service_cidr or cluster_domain comes from the cluster's ConfigMap."""

    kubeconfig: Path
    node: str
    parts: tuple[str, ...] = PARTS
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    state_dir: Path = Path("/var/lib/strata/default/nodenet")
    cluster_cidr: str = ""
    service_cidr: str = ""
    cluster_domain: str = ""
    bridge: str = DEFAULT_BRIDGE
    dns_listen: list[tuple[str, int]] = field(default_factory=list)
    forward: list[str] | None = None
    resolv_conf: Path = Path("/etc/resolv.conf")


async def serve(options: Options) -> None:
    """Runs the parts until SIGTERM or SIGINT. What they made in the kernel stays: `cleanup` removes it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = Client.from_kubeconfig(options.kubeconfig, user_agent="nodenet")
    informers = Informers(client)
    work = asyncio.create_task(_run(options, client, informers))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
    finally:
        for task in (work, stopped):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        await informers.stop()
        await client.close()


async def _run(options: Options, client: Client, informers: Informers) -> None:
    network = await cluster_network(options, client)
    _log.info("the cluster's network", pods=",".join(map(str, network.cluster)), services=",".join(map(str, network.service)),
              domain=network.domain, node=options.node)  # fmt: skip
    jobs: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
    if "conflist" in options.parts:
        writer = ConflistWriter(informers, options.node, options.cni_conf_dir, options.state_dir / "networks", options.bridge)
        jobs["conflist"] = writer.run
    if "routes" in options.parts:
        from nodenet.routes import Router

        jobs["routes"] = Router(informers, network, options.node).run
    if "proxy" in options.parts:
        jobs["proxy"] = Proxy(informers, network, options.node).run
    if "dns" in options.parts:
        jobs["dns"] = _dns(options, informers, network).run
    async with asyncio.TaskGroup() as group:
        group.create_task(informers.start())
        for name, job in jobs.items():
            group.create_task(_keep(name, job))


async def _keep(name: str, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a part for ever: its fault is logged and ends neither the others nor, after a pause, itself."""
    backoff = Backoff(1.0, 60.0)
    while True:
        try:
            await job()
        except Exception:
            _log.exception("a part failed and is started again", part=name)
        await backoff.sleep()


def _dns(options: Options, informers: Informers, network: ClusterNetwork) -> Any:
    from nodenet.dns.answers import Responder
    from nodenet.dns.forward import Forwarder, upstreams
    from nodenet.dns.records import Zone
    from nodenet.dns.server import Server

    services = network.service
    servers = options.forward
    if servers is None:
        # A server inside the service range is this cluster's own DNS: to ask it would be a loop.
        servers = [server for server in upstreams(options.resolv_conf, ()) if not _inside(server, services)]
    responder = Responder(Zone(informers, network.domain), Forwarder(servers).ask if servers else None)
    return Server(informers, responder, options.dns_listen)


def _inside(server: str, networks: tuple[Any, ...]) -> bool:
    import ipaddress

    address = ipaddress.ip_address(server.partition("%")[0])
    return any(address in network for network in networks)


async def cluster_network(options: Options, client: Client) -> ClusterNetwork:
    """The cluster's network from flags and ConfigMap; waits for the ConfigMap where the flags are not enough.

    Raises NetworkError for values that cannot be used.
    """
    if options.cluster_cidr and options.service_cidr:
        return ClusterNetwork.parse(options.cluster_cidr, options.service_cidr, options.cluster_domain or "cluster.local")
    told = ""
    while True:
        try:
            configmap = await client.get(resources.CONFIGMAPS, CONFIGMAP[1], CONFIGMAP[0])
            return ClusterNetwork.from_configmap(configmap, options.cluster_cidr, options.service_cidr, options.cluster_domain)
        except ApiError as error:
            if str(error) != told:
                told = str(error)
                _log.warning("waiting for the ConfigMap of the cluster's network", configmap="/".join(CONFIGMAP), error=error)
        await asyncio.sleep(_POLL_SECONDS)

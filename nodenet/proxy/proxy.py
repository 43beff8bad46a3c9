"""Keeps the kernel's rules as the Services and EndpointSlices want them.

Handlers only note which Services changed. One task waits for such notes, gathers those of the next few milliseconds, reads the
noted Services anew and applies the difference in one transaction. The first one after a start replaces the table, also
in one transaction: connections that are there stay as they are. So does one that finds the table gone: somebody flushed it.
"""

import asyncio
import contextlib
from typing import Any

from nodenet import nft
from nodenet.network import ClusterNetwork, is_node_dns
from nodenet.proxy import ruleset
from nodenet.proxy.fragment import Fragment, build
from nodenet.proxy.model import ServicePort, service_ports
from strata.kubeclient import resources
from strata.kubeclient.backoff import Backoff
from strata.kubeclient.informer import Informers, key_of
from strata.telemetry import logs

SERVICE_LABEL = "kubernetes.io/service-name"
_GATHER_SECONDS = 0.01
_CHECK_SECONDS = 30.0
_FAMILIES = (4, 6)
_log = logs.get("nodenet.proxy")

Key = tuple[str, str]


def slice_owner(piece: dict[str, Any]) -> list[str]:
    """The index of EndpointSlices: "NAMESPACE/SERVICE"."""
    metadata = piece["metadata"]
    name = (metadata.get("labels") or {}).get(SERVICE_LABEL)
    return [f"{metadata['namespace']}/{name}"] if name else []


class Proxy:
    """The proxy of one node; `run` until cancelled. Its rules stay when it ends: `cleanup` removes them."""

    def __init__(self, informers: Informers, network: ClusterNetwork, node: str) -> None:
        self._network, self._node = network, node
        self._services = informers.of(resources.SERVICES)
        self._slices = informers.of(resources.ENDPOINTSLICES)
        if not self._slices.has_index("service"):
            self._slices.add_index("service", slice_owner)
        self._services.add_handler(self._note_service, lambda _, new: self._note_service(new), self._note_service)
        self._slices.add_handler(self._note_slice, self._note_slices, self._note_slice)
        self._noted: set[Key] = set()
        self._wake = asyncio.Event()
        self._ports: dict[Key, list[tuple[ServicePort, Fragment]]] = {}
        self._applied: dict[int, Fragment] = {}
        self.synced = asyncio.Event()

    # --- what has changed

    def _note_service(self, service: dict[str, Any]) -> None:
        self._noted.add(key_of(service))
        self._wake.set()

    def _note_slice(self, piece: dict[str, Any]) -> None:
        for owner in slice_owner(piece):
            namespace, _, name = owner.partition("/")
            self._noted.add((namespace, name))
            self._wake.set()

    def _note_slices(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        self._note_slice(old)
        self._note_slice(new)

    # --- making it so

    async def run(self) -> None:
        """Reconciles until it is cancelled; a refusal by nft is logged and tried again from scratch."""
        await asyncio.gather(self._services.wait_synced(), self._slices.wait_synced())
        self._noted |= {key_of(service) for service in self._services}
        backoff = Backoff(0.5, 30.0)
        while True:
            try:
                await self._sync()
                backoff.reset()
                self.synced.set()
            except nft.NftError as error:
                _log.error("nft refused the rules of the Services", error=error)
                self._applied.clear()
                await backoff.sleep()
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), _CHECK_SECONDS)
                await asyncio.sleep(_GATHER_SECONDS)
            except TimeoutError:
                await self._check()

    async def _sync(self) -> None:
        self._wake.clear()
        noted, self._noted = self._noted, set()
        before = {endpoint for key in noted for endpoint in _udp_endpoints(self._ports.get(key, []))}
        for namespace, name in noted:
            service = self._services.get(name, namespace)
            if service is None or is_node_dns(service):
                self._ports.pop((namespace, name), None)
                continue
            slices = self._slices.by_index("service", f"{namespace}/{name}")
            ports = service_ports(service, slices, self._node)
            self._ports[namespace, name] = [(port, build(port)) for port in ports]
        for family in _FAMILIES:
            await self._apply(family, len(noted))
        gone = before - {endpoint for key in noted for endpoint in _udp_endpoints(self._ports.get(key, []))}
        for family in _FAMILIES:
            if stale := {(address, port) for version, address, port in gone if version == family}:
                await self._forget(stale, family)

    async def _check(self) -> None:
        for family in list(self._applied):
            name = ruleset.family_name(family)
            with contextlib.suppress(nft.NftError):  # the next change tells more
                if not await asyncio.to_thread(nft.has_table, name, ruleset.TABLE):
                    _log.warning("the table of the Services was removed by somebody: made anew", family=name)
                    del self._applied[family]

    async def _apply(self, family: int, services: int) -> None:
        wanted = Fragment()
        for ports in self._ports.values():
            for port, fragment in ports:
                if port.family == family:
                    wanted.merge(fragment)
        known = self._applied.get(family)
        if known is None:
            # A family that the cluster's network does not have gets no table.
            if not any(network.version == family for network in self._network.service):
                return
            script = ruleset.create(family, self._network, wanted)
        else:
            script = ruleset.change(family, known, wanted)
        if script:
            await asyncio.to_thread(nft.apply, script)
            _log.debug("rules changed", family=family, services=services, bytes=len(script))
        self._applied[family] = wanted

    async def _forget(self, endpoints: set[tuple[str, int]], family: int) -> None:
        from nodenet.proxy import conntrack  # netlink is imported when it is needed

        try:
            count = await asyncio.to_thread(conntrack.forget_udp, endpoints, family)
        except Exception as error:
            # The rules are right all the same; only flows that are silent for 30 s to 3 min get rid of their endpoint later.
            _log.warning("cannot end UDP flows to endpoints that are gone", error=error)
            return
        _log.debug("ended UDP flows", flows=count, endpoints=len(endpoints))


def _udp_endpoints(ports: list[tuple[ServicePort, Fragment]]) -> set[tuple[int, str, int]]:
    return {
        (port.family, endpoint.address, endpoint.port)
        for port, _ in ports
        if port.protocol == "udp"
        for endpoint in (*port.endpoints, *port.local_endpoints)
    }


def cleanup() -> None:
    """Removes the tables from this network namespace. Raises NftError."""
    for family in _FAMILIES:
        nft.delete_table(ruleset.family_name(family), ruleset.TABLE)

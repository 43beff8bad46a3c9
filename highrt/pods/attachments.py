"""A pod's interfaces: made with the pod, and, of a person's, joined to networks and taken from them while it runs.

What a pod shall be attached to is on disk before it is done, so that a daemon that is killed meanwhile finishes it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from highrt.cni.errors import CniError, NotConfigured
from highrt.cni.network import INTERFACE, Attachment, Interface, Network, PortMapping
from highrt.pods import extras, netns
from highrt.pods.errors import InvalidArgument, PodError
from highrt.pods.extras import NetworkChoice
from highrt.pods.model import Pod
from highrt.pods.registry import Registry
from strata.kubeclient.quantity import to_bytes
from strata.protocols.cri_pb2 import NamespaceMode, PodSandboxConfig
from strata.protocols.cri_pb2 import Protocol as PortProtocol
from strata.telemetry import logs

log = logs.get("highrt.pods")

_LEAST_BITS = 1000
_BURST_BITS = 2**32 - 1  # as much as plugins take: the rate alone shall hold a pod back


class Attachments:
    """What pods are attached to. `attach` and `detach` are the life of pods' part of it."""

    def __init__(self, registry: Registry, network: Network) -> None:
        self._registry, self._network = registry, network

    async def attach(self, pod: Pod) -> None:
        """Makes all interfaces of a pod whose namespace is there. Raises CniError, OSError; `detach` takes back what was made."""
        pod.ips = []
        wanted = networks_of(pod)
        for choice in wanted:
            pod.ips += await self._network.add(_attached_to(pod, choice))
        if len(wanted) > 1:
            await self._choose_way_out(pod)

    async def detach(self, pod: Pod) -> None:
        """Takes all of them away. Raises CniError; then it can be tried again."""
        await self._network.delete(attachment(pod))

    async def change(self, pod: Pod, how: Callable[[Sequence[NetworkChoice]], Sequence[NetworkChoice]]) -> None:
        """Has a person's pod be on what `how` makes of its networks: at once, or, of one that is not ready, with its next start.
        Raises PodError: then all is as before, and it can be tried again."""
        async with self._registry.lock(pod.id):
            before = networks_of(pod)
            self._write(pod, how(before))
            try:
                await self._settle(pod)
            except (CniError, OSError) as error:
                self._write(pod, before)
                raise PodError(f"the networks of {pod.config.metadata.name} cannot be changed: {error}") from error

    async def finish(self, pod: Pod) -> None:
        """Brings a pod's interfaces in line with what is written down, after a daemon was killed in between."""
        async with self._registry.lock(pod.id):
            try:
                await self._settle(pod)
            except (CniError, OSError) as error:
                log.warning("a pod is not on all of its networks", sandbox=pod.id, error=str(error))

    async def _settle(self, pod: Pod) -> None:
        if not pod.ready or not pod.netns:
            return
        wanted = {choice.interface: choice for choice in networks_of(pod)}
        changed = False
        for interface in self._network.interfaces(pod.id):
            if not self._is_wanted(interface, wanted.get(interface.name)):
                await self._network.detach(replace(attachment(pod), interface=interface.name))
                changed = True
        there = {interface.name for interface in self._network.interfaces(pod.id)}
        for choice in wanted.values():
            if choice.interface not in there:
                await self._network.add(_attached_to(pod, choice))
                changed = True
        if changed:
            pod.ips = [address for each in self._network.interfaces(pod.id) for address in each.plain()]
            self._registry.metadata.save_pod(pod)
            await self._choose_way_out(pod)

    def _is_wanted(self, interface: Interface, choice: NetworkChoice | None) -> bool:
        if choice is None or interface.result is None:
            return False
        try:
            return not choice.name or interface.network == self._network.inner_name(choice.name)
        except NotConfigured:
            return True  # what is attached stays so, as long as its pod runs

    async def _choose_way_out(self, pod: Pod) -> None:
        """Of several networks that lead out, the first one is the way: each plugin has set the default route to its own."""
        found = self._network.interfaces(pod.id)
        ways = [(each.name, way) for version in (4, 6) for each in found if (way := each.way_out(version))]
        first = {":" in way: (name, way) for name, way in reversed(ways)}
        if ways:
            await netns.default_routes(pod.netns, [*first.values()])

    def _write(self, pod: Pod, chosen: Sequence[NetworkChoice]) -> None:
        asked = replace(extras.of(pod.owner, pod.config.annotations), networks=chosen)
        pod.config.annotations[extras.ANNOTATION] = asked.text()
        self._registry.metadata.save_pod(pod)


def networks_of(pod: Pod) -> Sequence[NetworkChoice]:
    """What a pod is attached to: the node's network, which has no name, or what a person has chosen. Nothing where the pod is on
    the host's network, or has loopback alone (CONTAINER; CRI leaves its meaning for pods open)."""
    if pod.config.linux.security_context.namespace_options.network != NamespaceMode.POD:
        return []
    chosen = extras.of(pod.owner, pod.config.annotations).networks
    return [NetworkChoice("")] if chosen is None else chosen


def _attached_to(pod: Pod, choice: NetworkChoice) -> Attachment:
    """Host ports lead to the first interface."""
    known = attachment(pod)
    ports = known.port_mappings if choice.interface == INTERFACE else ()
    return replace(
        known, network=choice.name, interface=choice.interface, addresses=choice.addresses, port_mappings=ports
    )  # fmt: skip


def attachment(pod: Pod) -> Attachment:
    """The pod as the network knows it."""
    meta, config = pod.config.metadata, pod.config
    names = {PortProtocol.TCP: "tcp", PortProtocol.UDP: "udp", PortProtocol.SCTP: "sctp"}
    ports = [
        PortMapping(m.host_port, m.container_port, names[m.protocol], m.host_ip) for m in config.port_mappings if m.host_port > 0
    ]
    dns = config.dns_config
    lists = {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}
    arguments = {
        "K8S_POD_NAMESPACE": meta.namespace, "K8S_POD_NAME": meta.name, "K8S_POD_UID": meta.uid,
        "K8S_POD_INFRA_CONTAINER_ID": pod.id,
    }  # fmt: skip
    there = pod.netns if pod.netns and os.path.exists(pod.netns) else ""
    dns_lists = {key: value for key, value in lists.items() if value}
    return Attachment(pod.id, there, arguments, ports, dns_lists, bandwidth(config))


def bandwidth(config: PodSandboxConfig) -> dict[str, int]:
    """The rates that a pod's annotations limit it to, as kubelets' users write them. Raises InvalidArgument."""
    found: dict[str, int] = {}
    for way in ("ingress", "egress"):
        if text := config.annotations.get(f"kubernetes.io/{way}-bandwidth"):
            try:
                rate = to_bytes(text)  # bits, here
            except ValueError as error:
                raise InvalidArgument(f"annotation kubernetes.io/{way}-bandwidth {text!r}: {error}") from None
            if rate < _LEAST_BITS:
                raise InvalidArgument(f"annotation kubernetes.io/{way}-bandwidth {text!r}: must be at least 1k (bits a second)")
            found |= {f"{way}Rate": rate, f"{way}Burst": _BURST_BITS}
    return found

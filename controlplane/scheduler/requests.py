"""What a pod asks of a node.

A pod's request is what it needs at its worst moment: its init containers run one after the other, beside those that stay
(restartPolicy Always), and before the containers.
https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers
"""

from collections.abc import Iterable, Mapping
from typing import Any

from strata.kubeclient.quantity import to_bytes, to_milli

Requests = dict[str, int]
DEFAULT_MILLI_CPU, DEFAULT_MEMORY = 100, 200 * 1024 * 1024
"""What a container that asks for nothing counts as when nodes are compared."""


def amounts(resources: Mapping[str, Any] | None) -> Requests:
    """Quantities as whole numbers: thousandths of a CPU, bytes, pieces."""
    return {name: to_milli(q) if name == "cpu" else to_bytes(q) for name, q in (resources or {}).items()}


def of_pod(spec: Mapping[str, Any], *, defaults: bool = False) -> Requests:
    """The pod's request. defaults: containers that ask for no cpu or memory count as if they asked for a little."""

    def asked(container: Mapping[str, Any]) -> Requests:
        requests = amounts((container.get("resources") or {}).get("requests"))
        if defaults:
            requests.setdefault("cpu", DEFAULT_MILLI_CPU)
            requests.setdefault("memory", DEFAULT_MEMORY)
        return requests

    staying: Requests = {}
    peak: Requests = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            staying = _sum(staying, asked(container))
            peak = _largest(peak, staying)
        else:
            peak = _largest(peak, _sum(staying, asked(container)))
    total = staying
    for container in spec.get("containers") or ():
        total = _sum(total, asked(container))
    total = _largest(total, peak)
    # Resources of the pod as a whole stand in place of its containers' (KEP-2837).
    total |= amounts((spec.get("resources") or {}).get("requests"))
    return _sum(total, amounts(spec.get("overhead")))


def host_ports(spec: Mapping[str, Any]) -> set[tuple[str, str, int]]:
    """(address, protocol, port) of the ports that the pod takes on its node; the address "0.0.0.0" is all of them."""
    return {
        (port.get("hostIP") or "0.0.0.0", port.get("protocol") or "TCP", port["hostPort"])
        for container in _containers(spec)
        for port in container.get("ports") or ()
        if port.get("hostPort")
    }


def _containers(spec: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    yield from spec.get("containers") or ()
    yield from (c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")


def _sum(a: Requests, b: Requests) -> Requests:
    return {name: a.get(name, 0) + b.get(name, 0) for name in a.keys() | b.keys()}


def _largest(a: Requests, b: Requests) -> Requests:
    return {name: max(a.get(name, 0), b.get(name, 0)) for name in a.keys() | b.keys()}

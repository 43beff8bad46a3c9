"""What a Service's pods offer: the endpoints that EndpointSlices and Endpoints are both made of."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.controllers import pods as podstate

Object = dict[str, Any]
Ports = tuple[tuple[str, str, int, str | None], ...]
"""Sorted (name, protocol, port, application protocol)."""


@dataclass(frozen=True)
class Endpoint:
    pod: Object
    address: str
    ready: bool
    serving: bool
    terminating: bool
    hostname: str | None


def of_service(service: Object, pods: Iterable[Object]) -> dict[Ports, list[Endpoint]]:
    """The endpoints of the pods that the service selects, by the ports that they offer (a named port may be another number
    in each pod). Finished pods and those without an address offer nothing."""
    found: dict[Ports, list[Endpoint]] = defaultdict(list)
    spec = service["spec"]
    for pod in pods:
        address = (pod.get("status") or {}).get("podIP")
        if not address or podstate.is_finished(pod):
            continue
        terminating, serving = bool(pod["metadata"].get("deletionTimestamp")), podstate.is_ready(pod)
        ready = bool(spec.get("publishNotReadyAddresses")) or (serving and not terminating)
        subdomain_is_ours = pod["spec"].get("subdomain") == service["metadata"]["name"]
        hostname = pod["spec"].get("hostname") if subdomain_is_ours else None
        found[ports_in(service, pod)].append(Endpoint(pod, address, ready, serving, terminating, hostname))
    return found


def ports_in(service: Object, pod: Object) -> Ports:
    """The service's ports as numbers in the pod; a named port that the pod does not have is left out."""
    ports = []
    for port in service["spec"].get("ports") or ():
        protocol = port.get("protocol") or "TCP"
        number = _target(port, protocol, pod)
        if number is not None:
            ports.append((port.get("name") or "", protocol, number, port.get("appProtocol")))
    return tuple(sorted(ports, key=str))


def _target(port: Mapping[str, Any], protocol: str, pod: Object) -> int | None:
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    if target.isdigit():
        return int(target)
    containers = [*pod["spec"]["containers"], *(c for c in pod["spec"].get("initContainers") or ()
                                                if c.get("restartPolicy") == "Always")]  # fmt: skip
    for container in containers:
        for offered in container.get("ports") or ():
            if offered.get("name") == target and (offered.get("protocol") or "TCP") == protocol:
                return int(offered["containerPort"])
    return None


def reference_to_pod(pod: Object) -> dict[str, str]:
    metadata = pod["metadata"]
    return {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}

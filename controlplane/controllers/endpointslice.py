"""EndpointSlices: where a Service's traffic goes, in pieces of at most 100 endpoints; and Endpoints, their elder.

https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controlplane.controllers import endpoints
from controlplane.controllers.endpoints import Endpoint, Ports
from controlplane.controllers.frame import Context, Controller, Key
from controlplane.controllers.owners import reference_to
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import key_of
from strata.kubeclient.resources import ENDPOINTS, ENDPOINTSLICES, NODES, PODS, SERVICES
from strata.kubeclient.selectors import parse_label_selector

Object = dict[str, Any]
_LIMIT = 100
_BEHIND_SECONDS = 5.0
_SERVICE, _MANAGED_BY, _HEADLESS = (
    "kubernetes.io/service-name", "endpointslice.kubernetes.io/managed-by", "service.kubernetes.io/headless",
)  # fmt: skip
_US = "endpointslice-controller.k8s.io"
_ZONE = "topology.kubernetes.io/zone"


class _ServiceController(Controller[Key]):
    """A controller whose work for a service depends on the pods that it selects."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.services, self.pods = self.enqueue(SERVICES), self.informer(PODS)
        self.pods.add_handler(self._pod, self._pod_changed, self._pod)

    def _pod_changed(self, old: Object, new: Object) -> None:
        if _offer(old) != _offer(new):
            self._pod(new)
            if old["metadata"].get("labels") != new["metadata"].get("labels"):
                self._pod(old)

    def _pod(self, pod: Object) -> None:
        for service in self.services.list(pod["metadata"]["namespace"]):
            selector = service["spec"].get("selector")
            if selector and parse_label_selector({"matchLabels": selector}).matches(pod["metadata"].get("labels")):
                self.queue.add(key_of(service))

    def selected(self, service: Object) -> list[Object]:
        selector = parse_label_selector({"matchLabels": service["spec"]["selector"]})
        return self.pods.list(service["metadata"]["namespace"], selector)


def _offer(pod: Object) -> tuple[Any, ...]:
    """What of a pod its services' endpoints depend on."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    ready = next((c["status"] for c in status.get("conditions") or () if c["type"] == "Ready"), None)
    fields = (metadata.get("labels"), metadata.get("deletionTimestamp"), status.get("phase"), status.get("podIP"), ready)
    return (*fields, pod["spec"].get("nodeName"))


class EndpointSliceController(_ServiceController):
    name = "endpointslice"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.nodes, self.slices = self.informer(NODES), self.informer(ENDPOINTSLICES)
        self.slices.add_index("service", _service_of)
        self.slices.add_handler(None, lambda _, new: self._slice(new), self._slice)
        # A slice that we have just made may not be in the informer yet: then there is nothing to compare with.
        self.awaited: dict[Key, dict[str, tuple[int, float]]] = {}

    def _slice(self, obj: Object) -> None:
        if service := next(iter(_service_of(obj)), None):
            namespace, _, name = service.partition("/")
            self.queue.add((namespace, name))

    async def sync(self, key: Key) -> None:
        namespace, name = key
        existing = self.slices.by_index("service", f"{namespace}/{name}")
        service = self.services.get(name, namespace)
        if service is None or service["metadata"].get("deletionTimestamp"):
            self.awaited.pop(key, None)
            for obj in existing:
                await self._delete(obj)
            return
        if not service["spec"].get("selector") or service["spec"].get("type") == "ExternalName":
            return
        if self._behind(key):
            self.queue.add_after(key, 0.02)
            return
        found = endpoints.of_service(service, self.selected(service)) or {(): []}
        left = list(existing)
        for ports, members in found.items():
            same = [obj for obj in left if _ports_of(obj) == ports]
            left = [obj for obj in left if obj not in same]
            await self._write_group(key, service, ports, members, same)
        for obj in left:
            await self._delete(obj)

    def _behind(self, key: Key) -> bool:
        """Whether the informer lacks what we wrote (for some seconds at most: another may have deleted it)."""
        awaited, now = self.awaited.get(key, {}), time.monotonic()
        for name, (version, since) in list(awaited.items()):
            known = self.slices.get(name, key[0])
            if now - since > _BEHIND_SECONDS or (known is not None and int(known["metadata"]["resourceVersion"]) >= version):
                del awaited[name]
        return bool(awaited)

    async def _write_group(
        self, key: Key, service: Object, ports: Ports, members: Sequence[Endpoint], existing: Sequence[Object]
    ) -> None:
        """Writes the endpoints with the same ports: those that have a slice stay in it, the others fill it up."""
        wanted = {(e.address, e.pod["metadata"]["uid"]): self._endpoint(e) for e in members}
        plans: list[tuple[Object | None, list[Object]]] = []
        for obj in existing:
            kept = [wanted.pop(at) for at in map(_identity, obj.get("endpoints") or ()) if at in wanted]
            plans.append((obj, kept))
        rest = list(wanted.values())
        for _, kept in plans:
            room = _LIMIT - len(kept)
            kept += rest[:room]
            rest = rest[room:]
        while rest or not plans:
            plans.append((None, rest[:_LIMIT]))
            rest = rest[_LIMIT:]
        full = any(kept for _, kept in plans)
        for index, (known, kept) in enumerate(plans):
            if not kept and (full or index) and known is not None:
                await self._delete(known)
            else:
                await self._write(key, service, known, ports, kept)

    async def _write(self, key: Key, service: Object, obj: Object | None, ports: Ports, members: list[Object]) -> None:
        labels = _labels(service, {_SERVICE: service["metadata"]["name"], _MANAGED_BY: _US})
        body = {"endpoints": members, "ports": [_port(port) for port in ports]}
        try:
            if obj is None:
                metadata = {
                    "generateName": f"{service['metadata']['name']}-",
                    "namespace": key[0],
                    "labels": labels,
                    "ownerReferences": [reference_to(service)],
                }
                written = await self.client.create(ENDPOINTSLICES, {"metadata": metadata, "addressType": "IPv4", **body})
            elif _same(obj, body) and obj["metadata"].get("labels") == labels:
                return
            else:
                written = await self.client.update(
                    ENDPOINTSLICES, {**obj, **body, "metadata": {**obj["metadata"], "labels": labels}}
                )
        except ApiError as error:
            if error.is_namespace_terminating or (error.is_not_found and obj is None):
                return
            raise
        awaited = self.awaited.setdefault(key, {})
        awaited[written["metadata"]["name"]] = (int(written["metadata"]["resourceVersion"]), time.monotonic())

    async def _delete(self, obj: Object) -> None:
        metadata = obj["metadata"]
        try:
            await self.client.delete(ENDPOINTSLICES, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:
                raise

    def _endpoint(self, endpoint: Endpoint) -> Object:
        conditions = {"ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating}
        made: Object = {"addresses": [endpoint.address], "conditions": conditions}
        if endpoint.hostname:
            made["hostname"] = endpoint.hostname
        if node_name := endpoint.pod["spec"].get("nodeName"):
            made["nodeName"] = node_name
            node = self.nodes.get(node_name)
            if node and (zone := (node["metadata"].get("labels") or {}).get(_ZONE)):
                made["zone"] = zone
        made["targetRef"] = endpoints.reference_to_pod(endpoint.pod)
        return made


class EndpointsController(_ServiceController):
    """The Endpoints object of each service, for those who still read it (`kubectl get endpoints`)."""

    name = "endpoints"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.objects = self.informer(ENDPOINTS)
        self.objects.add_handler(on_delete=lambda obj: self.queue.add(key_of(obj)))

    async def sync(self, key: Key) -> None:
        namespace, name = key
        service, current = self.services.get(name, namespace), self.objects.get(name, namespace)
        if service is None:
            if current is not None and _HEADLESS_OR_OURS & (current["metadata"].get("labels") or {}).keys():
                await self._delete(current)
            return
        if not service["spec"].get("selector") or service["metadata"].get("deletionTimestamp"):
            return
        labels = _labels(service, {"endpoints.kubernetes.io/managed-by": "endpoint-controller"})
        subsets = _subsets(endpoints.of_service(service, self.selected(service)))
        if current and (current.get("subsets") or []) == subsets and current["metadata"].get("labels") == labels:
            return
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        try:
            if current is None:
                await self.client.create(ENDPOINTS, {"metadata": metadata, "subsets": subsets})
            else:
                metadata = {**current["metadata"], "labels": labels}
                await self.client.update(ENDPOINTS, {**current, "metadata": metadata, "subsets": subsets})
        except ApiError as error:
            if not error.is_namespace_terminating and not error.is_not_found and not error.is_already_exists:
                raise

    async def _delete(self, obj: Object) -> None:
        try:
            await self.client.delete(ENDPOINTS, obj["metadata"]["name"], obj["metadata"]["namespace"], uid=obj["metadata"]["uid"])
        except ApiError as error:
            if not error.is_not_found:
                raise


_HEADLESS_OR_OURS = {_HEADLESS, "endpoints.kubernetes.io/managed-by"}


def _subsets(found: Mapping[Ports, Sequence[Endpoint]]) -> list[Object]:
    """Endpoints' form: addresses that are ready and those that are not, by ports. Pods that are about to go are left out."""
    subsets = []
    for ports, members in sorted(found.items(), key=lambda item: str(item[0])):
        subset: Object = {}
        for name, ready in (("addresses", True), ("notReadyAddresses", False)):
            listed = [_address(e) for e in members if e.ready == ready and not e.terminating]
            if listed:
                subset[name] = sorted(listed, key=lambda address: str(address["ip"]))
        if subset:
            if ports:
                subset["ports"] = [_port(port) for port in ports]
            subsets.append(subset)
    return subsets


def _address(endpoint: Endpoint) -> Object:
    made: Object = {"ip": endpoint.address, "targetRef": endpoints.reference_to_pod(endpoint.pod)}
    if endpoint.hostname:
        made["hostname"] = endpoint.hostname
    if endpoint.pod["spec"].get("nodeName"):
        made["nodeName"] = endpoint.pod["spec"]["nodeName"]
    return made


def _labels(service: Object, ours: dict[str, str]) -> dict[str, str]:
    """The service's labels with ours, and the mark of a headless service."""
    labels = {**(service["metadata"].get("labels") or {}), **ours}
    labels.pop(_HEADLESS, None)
    return {**labels, _HEADLESS: ""} if service["spec"].get("clusterIP") == "None" else labels


def _port(port: tuple[str, str, int, str | None]) -> Object:
    name, protocol, number, application = port
    return {"name": name, "protocol": protocol, "port": number, **({"appProtocol": application} if application else {})}


def _ports_of(obj: Object) -> Ports:
    ports = obj.get("ports") or ()
    listed = ((p.get("name") or "", p.get("protocol") or "TCP", p["port"], p.get("appProtocol")) for p in ports)
    return tuple(sorted(listed, key=str))


def _identity(endpoint: Object) -> tuple[str, str]:
    return endpoint["addresses"][0], (endpoint.get("targetRef") or {}).get("uid", "")


def _same(obj: Object, body: Object) -> bool:
    return bool((obj.get("endpoints") or []) == body["endpoints"])


def _service_of(obj: Object) -> Iterable[str]:
    labels = obj["metadata"].get("labels") or {}
    if labels.get(_MANAGED_BY) == _US and labels.get(_SERVICE):
        yield f"{obj['metadata']['namespace']}/{labels[_SERVICE]}"

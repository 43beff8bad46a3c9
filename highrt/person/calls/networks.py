"""The calls about networks."""

import asyncio

from highrt.cri.calls import unary
from highrt.person import chunks, documents
from highrt.person.calls.parts import Parts
from highrt.person.networks import BUILT_IN, Wish, endpoint_id
from highrt.pods.errors import InvalidArgument
from highrt.pods.model import Owner
from strata.protocols import highrt_pb2 as api


class NetworkCalls(Parts):
    """A part of PersonService."""

    @unary
    async def Networks(self, request: api.NetworksRequest) -> api.NetworksResponse:
        names = [*BUILT_IN, *(record.name for record in self._containers.networks.all())]
        return api.NetworksResponse(networks=[self._network(name) for name in sorted(names)])

    @unary
    async def InspectNetwork(self, request: api.NetworkName) -> api.Document:
        name = self._containers.networks.name_of(request.name)
        return api.Document(json=documents.text(documents.network(self._network(name))))

    @unary
    async def CreateNetwork(self, request: api.CreateNetworkRequest) -> api.Network:
        if request.driver not in ("", "bridge"):
            raise InvalidArgument(f"network driver {request.driver}: there is bridge only")
        wish = Wish(
            request.name,
            [*request.subnets],
            [*request.gateways],
            [*request.ranges],
            internal=request.internal,
            ipv6=request.ipv6,
            labels=dict(request.labels),
            options=dict(request.options),
        )
        name = (await asyncio.shield(chunks.whole(self._containers.networks.create(wish)))).name
        self._note_network("create", name)
        return self._network(name)

    @unary
    async def RemoveNetwork(self, request: api.NetworkName) -> api.RemoveNetworkResponse:
        name = await asyncio.shield(chunks.whole(self._containers.networks.remove(request.name)))
        self._note_network("destroy", name)
        return api.RemoveNetworkResponse()

    @unary
    async def ConnectNetwork(self, request: api.ConnectNetworkRequest) -> api.ConnectNetworkResponse:
        container, networks = self._containers.find(request.container), self._containers.networks
        name = networks.name_of(request.endpoint.network)
        await asyncio.shield(chunks.whole(networks.connect(self._pods.pod(container.pod_id), request.endpoint)))
        self._note_network("connect", name, container=container.id)
        return api.ConnectNetworkResponse()

    @unary
    async def DisconnectNetwork(self, request: api.ConnectNetworkRequest) -> api.ConnectNetworkResponse:
        container, networks = self._containers.find(request.container), self._containers.networks
        name = networks.name_of(request.endpoint.network)
        await asyncio.shield(chunks.whole(networks.disconnect(self._pods.pod(container.pod_id), name)))
        self._note_network("disconnect", name, container=container.id)
        return api.ConnectNetworkResponse()

    def _network(self, name: str) -> api.Network:
        networks = self._containers.networks
        found = api.Network(name=name, id=networks.identity(name), members=self._members(name))
        if name in BUILT_IN:
            found.driver, found.built_in = BUILT_IN[name], True
            return found
        record = networks.find(name)
        found.driver, found.bridge, found.created_at_ns = "bridge", record.bridge, record.created_at_ns
        found.internal = record.internal
        found.subnets.extend(record.subnets)
        found.gateways.extend(record.gateways)
        found.labels.update(record.labels)
        return found

    def _members(self, name: str) -> list[api.NetworkMember]:
        found, networks = [], self._containers.networks
        containers = {item.pod_id: item.id for item in self._pods.containers(Owner.PERSON)}
        containers |= {pod.id: pod.id for pod in self._containers.shared.all()}
        for pod, choice in networks.members(name):
            face = next((face for face in self._pods.network.interfaces(pod.id) if face.name == choice.interface), None)
            identity = containers.get(pod.id, "")
            member = api.NetworkMember(id=identity, name=pod.config.metadata.name, running=bool(face))
            if face:
                member.addresses.extend(address for version in (4, 6) for address, _ in face.addresses(version))
                member.mac, member.endpoint_id = face.mac(), endpoint_id(networks.identity(name), identity)
            found.append(member)
        return found

    def _note_network(self, action: str, name: str, **attributes: str) -> None:
        self._events.note("network", action, self._containers.networks.identity(name), name=name, type="bridge", **attributes)

"""The calls about pods of several containers."""

import asyncio
from collections.abc import Awaitable, Callable

from highrt.cri.calls import unary
from highrt.person import documents
from highrt.person.calls.containers import ContainerCalls
from highrt.person.sharedpods import status
from highrt.pods.errors import NotFound
from highrt.pods.model import Container, ContainerState, Pod
from strata.protocols import highrt_pb2 as api


class PodCalls(ContainerCalls):
    """A part of PersonService."""

    @unary
    async def CreatePod(self, request: api.CreateRequest) -> api.CreateResponse:
        pod, warnings = await self._containers.shared.create(request)
        return api.CreateResponse(id=pod.id, name=request.name, warnings=warnings)

    @unary
    async def Pods(self, request: api.PodsRequest) -> api.PodsResponse:
        return api.PodsResponse(pods=[self._pod(pod) for pod in self._containers.shared.all()])

    def _pod(self, pod: Pod) -> api.Pod:
        members = [self._message(item) for item in self._containers.shared.members(pod)]
        return api.Pod(
            id=pod.id,
            name=pod.config.metadata.name,
            status=status([item.state for item in members]),
            created_at_ns=pod.created_at_ns,
            labels=pod.config.labels,
            containers=members,
            networks=[*self._containers.networks.names_of(pod)],
        )

    @unary
    async def InspectPod(self, request: api.PodName) -> api.Document:
        pod = self._containers.shared.find(request.pod)
        document = documents.pod(pod, self._pod(pod))
        document["NetworkSettings"] = self._containers.networks.settings(pod, pod.id)
        return api.Document(json=documents.text(document))

    @unary
    async def StartPod(self, request: api.PodName) -> api.PodResponse:
        pod = self._containers.shared.find(request.pod)
        await self._containers.shared.start(pod)

        async def start(found: Container) -> None:
            if found.state is not ContainerState.RUNNING:
                async with self._containers.starting(found):
                    await self._pods.start_container(found.id)

        await self._for_all(pod, start)
        return api.PodResponse()

    @unary
    async def StopPod(self, request: api.StopPodRequest) -> api.PodResponse:
        pod = self._containers.shared.find(request.pod)
        asked = api.StopRequest()
        if request.HasField("timeout_seconds"):
            asked.timeout_seconds = request.timeout_seconds
        await self._for_all(pod, lambda found: self._containers.stop(found, self._containers.stop_seconds(found, asked)))
        await self._containers.shared.stop(pod)
        return api.PodResponse()

    @unary
    async def RemovePod(self, request: api.RemovePodRequest) -> api.PodResponse:
        pod = self._containers.shared.find(request.pod)
        if request.force:
            await self._for_all(pod, lambda found: self._containers.remove(found, force=True))
        await self._containers.shared.remove(pod)
        return api.PodResponse()

    async def _for_all(self, pod: Pod, act: Callable[[Container], Awaitable[None]]) -> None:
        """Does it for all containers of a pod at once. Raises what one of them raised, when all are done; one that went away
        meanwhile is no failure."""
        done = await asyncio.gather(*map(act, self._containers.shared.members(pod)), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException) and not isinstance(result, NotFound):
                raise result

"""The calls about containers: from create to remove, and how they are."""

import signal

from highrt.cri.calls import unary
from highrt.images.commit import commit
from highrt.person import changes, documents, processes, usage
from highrt.person.calls.parts import Parts
from highrt.person.flags import NETWORK, is_shared
from highrt.pods.errors import FailedPrecondition, InvalidArgument
from highrt.pods.model import Container, ContainerState, Owner
from strata.protocols import cri_pb2 as cri
from strata.protocols import highrt_pb2 as api

_PROTOCOL_NAMES = {cri.TCP: "tcp", cri.UDP: "udp", cri.SCTP: "sctp"}


class ContainerCalls(Parts):
    """A part of PersonService."""

    @unary
    async def Create(self, request: api.CreateRequest) -> api.CreateResponse:
        container, warnings = await self._containers.create(request)
        return api.CreateResponse(id=container.id, name=request.name, warnings=warnings)

    @unary
    async def Start(self, request: api.ContainerName) -> api.StartResponse:
        container = self._containers.find(request.container)
        if container.state is not ContainerState.RUNNING:
            async with self._containers.starting(container):
                await self._pods.start_container(container.id)
        return api.StartResponse()

    @unary
    async def Stop(self, request: api.StopRequest) -> api.StopResponse:
        container = self._containers.find(request.container)
        ran = container.state is ContainerState.RUNNING
        await self._containers.stop(container, self._containers.stop_seconds(container, request))
        if ran:
            self._events.note_container(container, "stop")
        return api.StopResponse()

    @unary
    async def Restart(self, request: api.StopRequest) -> api.StartResponse:
        container = self._containers.find(request.container)
        await self._containers.restart(container, self._containers.stop_seconds(container, request))
        self._events.note_container(container, "restart")
        return api.StartResponse()

    @unary
    async def Pause(self, request: api.ContainerName) -> api.PauseResponse:
        container = self._running(request.container)
        await self._containers.pause(container)
        self._events.note_container(container, "pause")
        return api.PauseResponse()

    @unary
    async def Unpause(self, request: api.ContainerName) -> api.PauseResponse:
        container = self._running(request.container)
        await self._containers.unpause(container)
        self._events.note_container(container, "unpause")
        return api.PauseResponse()

    @unary
    async def Rename(self, request: api.RenameRequest) -> api.RenameResponse:
        container = self._containers.find(request.container)
        before = self._containers.name(container)
        await self._containers.rename(container, request.name)
        self._events.note_container(container, "rename", oldName=before)
        return api.RenameResponse()

    @unary
    async def Update(self, request: api.UpdateRequest) -> api.UpdateResponse:
        container = self._containers.find(request.container)
        await self._containers.update(container, request)
        self._events.note_container(container, "update")
        return api.UpdateResponse()

    @unary
    async def CheckHealth(self, request: api.ContainerName) -> api.HealthResponse:
        container = self._running(request.container)
        if (check := self._containers.check_of(container)) is None:
            raise FailedPrecondition(f"container {request.container} has no health check")
        return api.HealthResponse(status=await self._containers.health.run(container, check))

    @unary
    async def Commit(self, request: api.CommitRequest) -> api.ImageName:
        container = self._containers.find(request.container)
        async with self._containers.standing_still(container, really=not request.no_pause):
            image, rootfs = self._images.resolve(container.image_id), await self._images.rootfs(container.id)
            if image is None or rootfs is None:
                raise FailedPrecondition(f"container {request.container} has no files or no image any more")
            made = await commit(
                self._images,
                image,
                rootfs.upper,
                name=request.image,
                config=documents.image_config(container),
                changes=request.changes,
                author=request.author,
                message=request.message,
                without=changes.made_for_mounts(rootfs, [mount.container_path for mount in container.config.mounts]),
            )
        self._events.note_container(container, "commit", imageID=made.id)
        return api.ImageName(image=made.id)

    @unary
    async def Kill(self, request: api.KillRequest) -> api.KillResponse:
        try:
            number = signal.Signals(request.signal)
        except ValueError as error:
            raise InvalidArgument(f"{request.signal} is no signal's number") from error
        container = self._running(request.container)
        self._events.note_container(container, "kill", signal=str(int(number)))
        await self._containers.signal(container, number)
        return api.KillResponse()

    @unary
    async def Remove(self, request: api.RemoveRequest) -> api.RemoveResponse:
        await self._containers.remove(self._containers.find(request.container), force=request.force)
        return api.RemoveResponse()

    @unary
    async def Wait(self, request: api.ContainerName) -> api.WaitResponse:
        container = self._containers.find(request.container)
        with self._containers.session(container.id):
            return api.WaitResponse(exit_code=await self._containers.exit_code(container.id))

    @unary
    async def List(self, request: api.ListRequest) -> api.ListResponse:
        containers = self._pods.containers(None if request.every_owner else Owner.PERSON)
        wanted = [
            item for item in containers
            if request.all or item.state is ContainerState.RUNNING or self._containers.restarting(item.id)
        ]  # fmt: skip
        found = [self._message(item) for item in wanted]
        for message in found if request.sizes else ():
            image = self._images.resolve(message.image_id)
            message.written_bytes = await self._written_bytes(message.id)
            message.whole_bytes = message.written_bytes + (image.size_bytes if image else 0)
        return api.ListResponse(containers=found)

    def _message(self, item: Container) -> api.Container:
        pod = self._pods.pod(item.pod_id)
        image = self._images.resolve(item.image_id) if item.image_id else None
        command = [*item.config.command, *item.config.args]
        if image and not item.config.command:
            command = [*image.config.entrypoint, *(item.config.args or image.config.cmd)]
        return api.Container(
            id=item.id,
            name=item.config.metadata.name,
            image=item.config.image.user_specified_image or item.config.image.image,
            image_id=item.image_id,
            command=command,
            state=self._state(item),
            exit_code=item.exit_code or 0,
            created_at_ns=item.created_at_ns,
            started_at_ns=item.started_at_ns or 0,
            finished_at_ns=item.finished_at_ns or 0,
            pod_id=item.pod_id,
            owner=item.owner.value,
            ports=[
                api.PortMapping(
                    host_ip=port.host_ip,
                    host_port=port.host_port,
                    container_port=port.container_port,
                    protocol=_PROTOCOL_NAMES[port.protocol],
                )
                for port in pod.config.port_mappings
            ],
            ips=pod.ips,
            labels=item.config.labels,
            pid=item.pid or 0,
            mounts=[
                text for mount in item.config.mounts for text in (self._volumes.named(mount.host_path), mount.container_path)
            ],
            networks=[*self._containers.networks.names_of(pod)],
            health=health.status if (health := self._containers.health.of(item.id)) else "",
            pod_name=pod.config.metadata.name if is_shared(pod) else "",
        )

    def _state(self, item: Container) -> str:
        if self._containers.paused(item):
            return "paused"
        return "restarting" if self._containers.restarting(item.id) else item.state.value

    @unary
    async def Inspect(self, request: api.ContainerName) -> api.Document:
        container = self._containers.find(request.container)
        pod = self._pods.pod(container.pod_id)
        name, image = self._containers.name(container), self._images.resolve(container.image_id)
        document = documents.container(container, pod, name, image, self._volumes.named)
        document["HostConfig"]["NetworkMode"] = pod.config.annotations.get(NETWORK, "")
        document["NetworkSettings"] = self._containers.networks.settings(pod, container.id)
        document["HostConfig"]["AutoRemove"] = self._containers.removes_itself(container)
        life = self._containers.life(container)
        document["HostConfig"]["RestartPolicy"] = {"Name": life.policy, "MaximumRetryCount": life.most}
        document["RestartCount"] = life.restarts
        state = self._state(container)
        document["State"] |= {"Status": state, "Paused": state == "paused", "Restarting": state == "restarting"}
        if health := self._containers.health.of(container.id):
            document["State"]["Health"] = documents.health(health)
        return api.Document(json=documents.text(document))

    @unary
    async def Top(self, request: api.ContainerName) -> api.TopResponse:
        return api.TopResponse(processes=processes.of(self._running(request.container).cgroup))

    @unary
    async def Stats(self, request: api.StatsRequest) -> api.StatsResponse:
        if request.containers:
            wanted = [self._running(name) for name in request.containers]
        else:
            wanted = [item for item in self._pods.containers() if item.state is ContainerState.RUNNING]
        return api.StatsResponse(stats=[await usage.of(self._pods, item) for item in wanted])

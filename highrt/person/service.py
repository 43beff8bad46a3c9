"""The service `strata.highrt.v1.Highrt`: what the commands of `highrt` call."""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.cri.calls import require, streaming, unary, worded
from highrt.images import archive
from highrt.images.build import build
from highrt.images.commit import commit
from highrt.images.differences import differences
from highrt.images.errors import ImageNotFound
from highrt.images.model import Auth, Image
from highrt.images.service import ImageService
from highrt.images.snapshots import chain_ids
from highrt.person import changes, documents, loglines, processes, progress, transfer, usage
from highrt.person.containers import PersonContainers
from highrt.person.flags import AUTO_REMOVE, NETWORK
from highrt.person.networks import BUILT_IN, Wish, endpoint_id
from highrt.person.peer import GrpcPeer
from highrt.person.registries import RegistryCalls, auth
from highrt.person.volumes import Volumes, size
from highrt.pods.errors import FailedPrecondition, InvalidArgument
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, ContainerState, Owner, Stdio
from highrt.streaming import pipes
from highrt.streaming.commands import AttachedContainer, ExecutedCommand
from highrt.streaming.relay import ClientGone, Running, relay
from strata.protocols import cri_pb2 as cri
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtBase

T = TypeVar("T")

_CHUNK = 256 * 1024
_PROTOCOL_NAMES = {cri.TCP: "tcp", cri.UDP: "udp", cri.SCTP: "sctp"}


class PersonService(RegistryCalls, HighrtBase):
    """about: what `system` says of the daemon (name, root, state, handlers)."""

    def __init__(self, pods: PodManager, images: ImageService, containers: PersonContainers, about: dict[str, Any]) -> None:
        self._pods = pods
        self._images = images
        self._containers = containers
        self._events = containers.events
        self._about = about
        self._volumes = Volumes(Path(about["root"]) / "volumes")

    @unary
    async def System(self, request: api.SystemRequest) -> api.SystemResponse:
        ready, message = await self._pods.network_ready()
        containers = self._pods.containers()
        return api.SystemResponse(
            version=version("strata"),
            network_ready=ready,
            network_message=message,
            images=len(self._images.list()),
            containers=len(containers),
            running=sum(item.state is ContainerState.RUNNING for item in containers),
            image_bytes=self._images.usage().bytes,
            pid=os.getpid(),
            **self._about,
        )

    @unary
    async def DiskUsage(self, request: api.SystemRequest) -> api.DiskUsageResponse:
        containers = self._pods.containers()
        used = {item.image_id for item in containers}
        images = self._images.list()
        response = api.DiskUsageResponse()
        response.kinds.add(
            kind="Images",
            total=len(images),
            active=sum(image.id in used for image in images),
            bytes=self._images.usage().bytes,
            reclaimable_bytes=sum(image.size_bytes for image in images if image.id not in used),
        )
        sizes = {item.id: await self._written_bytes(item.id) for item in containers}
        running = {item.id for item in containers if item.state is ContainerState.RUNNING}
        response.kinds.add(
            kind="Containers",
            total=len(containers),
            active=len(running),
            bytes=sum(sizes.values()),
            reclaimable_bytes=sum(found for key, found in sizes.items() if key not in running),
        )
        volumes = {path: await asyncio.to_thread(size, path) for path in self._volumes.all()}
        free = [path for path in volumes if not self._volumes.users(path, containers)]
        response.kinds.add(
            kind="Local Volumes",
            total=len(volumes),
            active=len(volumes) - len(free),
            bytes=sum(volumes.values()),
            reclaimable_bytes=sum(volumes[path] for path in free),
        )
        return response

    @streaming
    async def Events(self, request: api.EventsRequest) -> AsyncGenerator[api.Event, None]:
        filters: dict[str, list[str]] = {}
        for item in request.filters:
            filters.setdefault(item.key, []).append(item.value)
        async for event in self._events.read(request.since_ns, request.until_ns, filters):
            yield api.Event(
                type=event.kind, action=event.action, actor=event.actor, attributes=event.attributes, time_ns=event.time_ns
            )

    # volumes

    @unary
    async def Volumes(self, request: api.VolumesRequest) -> api.VolumesResponse:
        return api.VolumesResponse(volumes=[self._volume(path) for path in self._volumes.all()])

    @unary
    async def CreateVolume(self, request: api.VolumeName) -> api.Volume:
        made = self._volumes.create(request.name or uuid.uuid4().hex)
        self._events.note("volume", "create", made.name, driver="local")
        return self._volume(made)

    @unary
    async def RemoveVolume(self, request: api.VolumeName) -> api.RemoveVolumeResponse:
        await asyncio.to_thread(self._volumes.remove, request.name, self._pods.containers())
        self._events.note("volume", "destroy", request.name, driver="local")
        return api.RemoveVolumeResponse()

    def _volume(self, path: Path) -> api.Volume:
        users = [item.config.metadata.name for item in self._volumes.users(path, self._pods.containers())]
        return api.Volume(name=path.name, path=str(path), created_at_ns=path.stat().st_mtime_ns, users=users)

    # networks

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
        name = (await asyncio.shield(_whole(self._containers.networks.create(wish)))).name
        self._note_network("create", name)
        return self._network(name)

    def _note_network(self, action: str, name: str, **attributes: str) -> None:
        self._events.note("network", action, self._containers.networks.identity(name), name=name, type="bridge", **attributes)

    @unary
    async def RemoveNetwork(self, request: api.NetworkName) -> api.RemoveNetworkResponse:
        name = await asyncio.shield(_whole(self._containers.networks.remove(request.name)))
        self._note_network("destroy", name)
        return api.RemoveNetworkResponse()

    @unary
    async def ConnectNetwork(self, request: api.ConnectNetworkRequest) -> api.ConnectNetworkResponse:
        container, networks = self._containers.find(request.container), self._containers.networks
        name = networks.name_of(request.endpoint.network)
        await asyncio.shield(_whole(networks.connect(self._pods.pod(container.pod_id), request.endpoint)))
        self._note_network("connect", name, container=container.id)
        return api.ConnectNetworkResponse()

    @unary
    async def DisconnectNetwork(self, request: api.ConnectNetworkRequest) -> api.ConnectNetworkResponse:
        container, networks = self._containers.find(request.container), self._containers.networks
        name = networks.name_of(request.endpoint.network)
        await asyncio.shield(_whole(networks.disconnect(self._pods.pod(container.pod_id), name)))
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
        containers = {item.pod_id: item for item in self._pods.containers(Owner.PERSON)}
        for pod, choice in networks.members(name):
            face = next((face for face in self._pods.network.interfaces(pod.id) if face.name == choice.interface), None)
            identity = containers[pod.id].id if pod.id in containers else ""
            member = api.NetworkMember(id=identity, name=pod.config.metadata.name, running=bool(face))
            if face:
                member.addresses.extend(address for version in (4, 6) for address, _ in face.addresses(version))
                member.mac, member.endpoint_id = face.mac(), endpoint_id(networks.identity(name), identity)
            found.append(member)
        return found

    # images

    @streaming
    async def Pull(self, request: api.PullRequest) -> AsyncGenerator[api.Progress, None]:
        async def work(report: Any) -> str:
            image = await self._images.pull(
                request.image, auth=auth(request.credentials), platform=request.platform or None, progress=report
            )
            self._note_image("pull", image, request.image)
            return image.id

        async for item in progress.transfer(work):
            yield item

    def _note_image(self, action: str, image: Image, name: str = "") -> None:
        self._events.note("image", action, image.id, **{**image.config.labels, "name": name or "".join(image.tags[:1])})

    @streaming
    async def Push(self, request: api.PushRequest) -> AsyncGenerator[api.Progress, None]:
        async def work(report: Any) -> str:
            digest = await self._images.push(
                request.image, destination=request.destination or None, auth=auth(request.credentials), progress=report
            )
            self._note_image("push", self._image(request.image), request.destination or request.image)
            return digest

        async for item in progress.transfer(work):
            yield item

    @unary
    async def Login(self, request: api.LoginRequest) -> api.LoginResponse:
        await self._images.check_credentials(request.registry, auth(request.credentials) or Auth())
        return api.LoginResponse()

    @unary
    async def Images(self, request: api.ImagesRequest) -> api.ImagesResponse:
        return api.ImagesResponse(images=[_image(image) for image in self._images.list()])

    @unary
    async def InspectImage(self, request: api.ImageName) -> api.Document:
        return api.Document(json=documents.text(documents.image(self._image(request.image))))

    @unary
    async def ImageHistory(self, request: api.ImageName) -> api.History:
        image = self._image(request.image)
        steps = [
            api.HistoryStep(
                diff_id=step.diff_id, bytes=step.bytes, created=step.created, created_by=step.created_by, comment=step.comment
            )
            for step in self._images.history(image)
        ]
        return api.History(id=image.id, tags=image.tags, steps=steps, chain_ids=chain_ids(image.diff_ids))

    @unary
    async def ImageDiff(self, request: api.ImageDiffRequest) -> api.DiffResponse:
        base = self._image(request.base) if request.base else None
        found = await differences(self._images, self._image(request.image), base)
        return api.DiffResponse(changes=[api.Change(kind=kind, path=path) for kind, path in found])

    @unary
    async def MountImage(self, request: api.ImageName) -> api.MountedImage:
        image = self._image(request.image)
        return api.MountedImage(id=image.id, path=str(await self._images.mount(image)))

    @unary
    async def UnmountImage(self, request: api.ImageName) -> api.MountedImage:
        image = self._image(request.image)
        return api.MountedImage(id=image.id, path=str(await self._images.unmount(image)))

    @unary
    async def MountedImages(self, request: api.ImagesRequest) -> api.MountedImagesResponse:
        found = [(image, self._images.mounted_at(image)) for image in self._images.list()]
        return api.MountedImagesResponse(images=[api.MountedImage(id=image.id, path=str(path)) for image, path in found if path])

    @unary
    async def PruneBuilds(self, request: api.PruneBuildsRequest) -> api.PruneBuildsResponse:
        return api.PruneBuildsResponse(freed_bytes=await self._images.prune_builds())

    @unary
    async def Tag(self, request: api.TagRequest) -> api.TagResponse:
        image = self._image(request.image)
        self._images.tag(image, request.reference)
        self._note_image("tag", image, request.reference)
        return api.TagResponse()

    @unary
    async def RemoveImage(self, request: api.ImageName) -> api.RemoveImageResponse:
        image = self._image(request.image)
        await self._images.remove(request.image)
        self._note_image("untag" if self._images.resolve(image.id) else "delete", image, request.image)
        return api.RemoveImageResponse()

    @streaming
    async def Build(self, request: api.BuildRequest) -> AsyncGenerator[api.BuildEvent, None]:
        async def work(say: Any) -> str:
            image = await build(
                self._images,
                Path(request.context),
                tag=request.tags[0] if request.tags else None,
                file=Path(request.file) if request.file else None,
                build_args=dict(request.build_args),
                build_contexts={name: Path(path) for name, path in request.build_contexts.items()},
                text=request.containerfile if request.HasField("containerfile") else None,
                secrets=dict(request.secrets),
                labels=dict(request.labels),
                target=request.target or None,
                no_cache=request.no_cache,
                pull=request.pull,
                progress=say,
            )
            for tag in request.tags[1:]:
                self._images.tag(image, tag)
            self._note_image("build", image)
            return image.id

        async for event in progress.lines(work):
            yield event

    async def Load(self, stream: Any) -> None:
        with worded():
            images = await _fed(stream, lambda source: archive.load(self._images, source))
        for image in images:
            self._note_image("load", image)
        await stream.send_message(api.LoadResponse(images=[_image(image) for image in images]))

    @streaming
    async def Save(self, request: api.SaveRequest) -> AsyncGenerator[api.Chunk, None]:
        require(request.images, "save: name an image")
        async for chunk in _written(lambda target: archive.save(self._images, list(request.images), target)):
            yield chunk

    def _image(self, reference: str) -> Image:
        require(reference, "no image is named")
        image = self._images.resolve(reference)
        if image is None:
            raise ImageNotFound(f"no such image here: {reference} (highrt images lists them, highrt pull gets it)")
        return image

    # containers

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

    @streaming
    async def CopyFrom(self, request: api.PathName) -> AsyncGenerator[api.Chunk, None]:
        container = self._containers.find(request.container)
        path = os.fsdecode(request.path)

        async def pack(target: BinaryIO) -> None:
            async with self._containers.root(container) as root:
                await asyncio.to_thread(transfer.pack, root, path, target)

        async for chunk in _written(pack):
            yield chunk

    async def CopyInto(self, stream: Any) -> None:
        start = await _first(stream)
        with worded():
            container = self._containers.find(start.to.container)
            path, owner = os.fsdecode(start.to.path), None if start.archive else (0, 0)

            async def unpack(source: BinaryIO) -> None:
                async with self._containers.root(container) as root:
                    await asyncio.to_thread(transfer.unpack, root, path, source, owner=owner)

            await _fed(stream, unpack)
        await stream.send_message(api.CopyResponse())

    @unary
    async def Rename(self, request: api.RenameRequest) -> api.RenameResponse:
        container = self._containers.find(request.container)
        before = self._containers.name(container)
        await self._containers.rename(container, request.name)
        self._events.note_container(container, "rename", oldName=before)
        return api.RenameResponse()

    @unary
    async def Top(self, request: api.ContainerName) -> api.TopResponse:
        return api.TopResponse(processes=processes.of(self._running(request.container).cgroup))

    @unary
    async def Diff(self, request: api.ContainerName) -> api.DiffResponse:
        container = self._containers.find(request.container)
        rootfs = await self._images.rootfs(container.id)
        mounted = [mount.container_path for mount in container.config.mounts]
        found = await asyncio.to_thread(changes.of, rootfs, mounted) if rootfs else []
        return api.DiffResponse(changes=[api.Change(kind=kind, path=path) for kind, path in found])

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

    async def _written_bytes(self, container_id: str) -> int:
        rootfs = await self._images.rootfs(container_id)
        return await asyncio.to_thread(size, rootfs.upper) if rootfs else 0

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
        document["NetworkSettings"] = self._containers.networks.settings(pod, container)
        document["HostConfig"]["AutoRemove"] = AUTO_REMOVE in pod.config.annotations
        life = self._containers.life(pod)
        document["HostConfig"]["RestartPolicy"] = {"Name": life.policy, "MaximumRetryCount": life.most}
        document["RestartCount"] = life.restarts
        state = self._state(container)
        document["State"] |= {"Status": state, "Paused": state == "paused", "Restarting": state == "restarting"}
        if health := self._containers.health.of(container.id):
            document["State"]["Health"] = documents.health(health)
        return api.Document(json=documents.text(document))

    @unary
    async def Stats(self, request: api.StatsRequest) -> api.StatsResponse:
        if request.containers:
            wanted = [self._running(name) for name in request.containers]
        else:
            wanted = [item for item in self._pods.containers() if item.state is ContainerState.RUNNING]
        return api.StatsResponse(stats=[await usage.of(self._pods, item) for item in wanted])

    @streaming
    async def Logs(self, request: api.LogsRequest) -> AsyncGenerator[api.LogLine, None]:
        container = self._containers.find(request.container)
        if not container.log_path:
            raise FailedPrecondition(f"container {container.id} has no log")

        def runs() -> bool:
            try:
                state = self._pods.container(container.id).state
            except LookupError:
                return False
            late = 0 < request.until_ns < time.time_ns()
            return state in (ContainerState.CREATED, ContainerState.RUNNING) and not late

        tail = request.tail if request.HasField("tail") else None
        follow = runs if request.follow else None
        if request.until_ns:
            everything = loglines.read(Path(container.log_path), follow=follow, since_ns=request.since_ns)
            lines = loglines.before(everything, request.until_ns, tail)
        else:
            lines = loglines.read(Path(container.log_path), follow=follow, tail=tail, since_ns=request.since_ns)
        async for line in lines:
            yield api.LogLine(time_ns=line.time_ns, stream=line.stream, data=line.data)

    # exec and attach

    async def Exec(self, stream: Any) -> None:
        start = await _first(stream)
        with worded():
            container = self._running(start.container)
            require(start.argv, "exec: name a command")

            async def begin(stdio: Stdio) -> Running:
                session = await self._pods.exec(
                    container.id,
                    list(start.argv),
                    stdio,
                    terminal=start.tty,
                    env=dict(item.partition("=")[::2] for item in start.env),
                    cwd=start.working_dir or None,
                    user=start.user or None,
                )
                words = " ".join(start.argv)
                for action in ("exec_create", "exec_start"):
                    self._events.note_container(container, f"{action}: {words}", execID=session.id)
                return ExecutedCommand(session)

            if start.detach:
                await begin(Stdio(None, None, None))
                await stream.send_message(api.Output(started=True))
                return
            peer = GrpcPeer(stream)
            with suppress(ClientGone):
                code = await relay(peer, begin, stdin=start.stdin, stderr=not start.tty, started=peer.started)
                self._events.note_container(container, "exec_die", exitCode=str(code or 0))
                await stream.send_message(api.Output(exit_code=code or 0))

    async def Attach(self, stream: Any) -> None:
        start = await _first(stream)
        with worded():
            container = self._containers.find(start.container)
            if not start.start:
                self._running(start.container)

            async def begin(stdio: Stdio) -> Running:
                if not start.start:
                    return AttachedContainer(await self._pods.attach(container.id, stdio))
                async with self._containers.starting(container):
                    session = await self._pods.attach(container.id, stdio)
                    try:
                        await self._pods.start_container(container.id)
                    except BaseException:
                        await session.detach()
                        raise
                    return AttachedContainer(session)

            peer = GrpcPeer(stream)
            with suppress(ClientGone), self._containers.session(container.id):
                await relay(peer, begin, stdin=start.stdin, stderr=not container.config.tty, started=peer.started)
                code = await self._containers.exit_code(container.id)
                await stream.send_message(api.Output(exit_code=code))

    def _running(self, reference: str) -> Container:
        container = self._containers.find(reference)
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {reference} is not running ({container.state.value})")
        return container


_working: set["asyncio.Task[Any]"] = set()


def _whole(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Has it done to its end, whatever becomes of the call. What a thread uses must not be closed before the thread ends: a
    file's close would wait for it, and with it everybody."""
    task = asyncio.create_task(work)
    _working.add(task)
    task.add_done_callback(_working.discard)
    return task


async def _written(write: Callable[[BinaryIO], Awaitable[None]]) -> AsyncGenerator[api.Chunk, None]:
    """What is written to a file, in chunks. A client that goes breaks the file."""
    async with AsyncExitStack() as owned:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        source = await pipes.reader(reading, owned)

        async def work() -> None:
            with os.fdopen(writing, "wb") as target:
                await write(target)

        task = _whole(work())
        try:
            while data := await source.read(_CHUNK):
                yield api.Chunk(data=data)
        except BaseException:
            task.add_done_callback(asyncio.Task.exception)  # nobody hears of it
            raise
        await asyncio.shield(task)


async def _fed(stream: Any, read: Callable[[BinaryIO], Awaitable[T]]) -> T:
    """What comes of reading a file that is the data of a client's messages. A client that goes ends the file."""
    async with AsyncExitStack() as owned:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        feeding = asyncio.create_task(_feed(stream, await pipes.writer(writing, owned)))
        owned.callback(feeding.cancel)

        async def work() -> T:
            with os.fdopen(reading, "rb") as source:
                return await read(source)

        task = _whole(work())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(asyncio.Task.exception)  # nobody hears of it
            raise


async def _feed(stream: Any, pipe: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while (message := await stream.recv_message()) is not None:
            pipe.write(message.data)
            await pipe.drain()
        pipe.close()


async def _first(stream: Any) -> Any:
    message = await stream.recv_message()
    if message is None or message.WhichOneof("message") != "start":
        raise GRPCError(Status.INVALID_ARGUMENT, "the first message must be `start`")
    return message.start


def _image(image: Image) -> api.Image:
    return api.Image(
        id=image.id,
        tags=image.tags,
        digests=image.digests,
        size_bytes=image.size_bytes,
        created=image.created,
        pinned=image.pinned,
        platform=image.platform,
    )

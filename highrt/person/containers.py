"""A person's containers over the pod manager: names, making, ending, and what happens when one has ended."""

import asyncio
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from highrt.images.errors import ImageNotFound
from highrt.images.service import ImageService
from highrt.person import flags, names
from highrt.pods.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, ContainerState, Owner, Pod
from strata.protocols import highrt_pb2 as api
from strata.telemetry import logs

log = logs.get("highrt.person")

_SESSION_WAIT_SECONDS = 10
_ENDED = (ContainerState.EXITED, ContainerState.UNKNOWN)


class PersonContainers:
    """`open` takes up what the last daemon left, `close` ends the watching; containers run on."""

    def __init__(self, pods: PodManager, images: ImageService, root: Path) -> None:
        self._pods = pods
        self._images = images
        self._root = root
        self._making: set[str] = set()
        self._sessions: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        kept = {pod.config.metadata.uid for pod in self._pods.pods(Owner.PERSON)}
        folder = self._root / "person"
        for entry in folder.iterdir() if folder.exists() else ():
            if entry.name not in kept:
                flags.PersonFiles(self._root, entry.name).remove()
        self._spawn(self._watch())
        await asyncio.sleep(0)  # it listens from here on: nothing ends unseen
        for pod in self._pods.pods(Owner.PERSON):
            found = self._in(pod)
            # one that was only created has lost the client that would have started it
            if found is None or found.state is not ContainerState.RUNNING:
                self._spawn(self._settle(pod.id))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # finding

    def find(self, reference: str) -> Container:
        """A container by a person's name for it, its ID, or the ID's unique beginning. Raises NotFound."""
        if not reference:
            raise InvalidArgument("no container is named")
        for pod in self._pods.pods(Owner.PERSON):
            if pod.config.metadata.name == reference and (found := self._in(pod)):
                return found
        return self._pods.container(reference)

    def _in(self, pod: Pod) -> Container | None:
        return next((item for item in self._pods.containers(pod.owner) if item.pod_id == pod.id), None)

    # making

    async def create(self, request: api.CreateRequest) -> tuple[Container, list[str]]:
        """Makes a container that can be started; what fails half-way leaves nothing. Returns it with warnings for people."""
        name = request.name or self._free_name()
        if not flags.NAME.fullmatch(name):
            raise InvalidArgument(f"--name {name!r}: letters, digits, '_', '.', '-', the first one a letter or digit")
        if name in self._making or any(pod.config.metadata.name == name for pod in self._pods.pods(Owner.PERSON)):
            raise AlreadyExists(f"the container name {name!r} is in use: remove that one (highrt rm {name}) or take another name")
        image = self._images.resolve(request.image)
        if image is None:
            raise ImageNotFound(f"image {request.image} is not here: pull it first (highrt pull {request.image})")
        network, warnings = await self._network(request)
        request.name = name
        self._making.add(name)
        uid = uuid.uuid4().hex
        files = flags.PersonFiles(self._root, uid)
        pod: Pod | None = None
        try:
            pod_config = flags.pod_config(request, uid, files, network)
            files.make()
            config = flags.container_config(request, image, self._root / "volumes", network)
            pod = await self._pods.run_pod(pod_config, handler=request.handler, owner=Owner.PERSON)
            return await self._pods.create_container(pod.id, config, pod_config, pids_limit=request.pids_limit), warnings
        except BaseException:
            if pod is not None:
                with suppress(PodError):
                    await self._pods.remove_pod(pod.id)
            files.remove()
            raise
        finally:
            self._making.discard(name)

    def _free_name(self) -> str:
        taken = {pod.config.metadata.name for pod in self._pods.pods(Owner.PERSON)} | self._making
        while (name := names.suggest()) in taken:
            if len(taken) > 1000:
                return f"{name}-{uuid.uuid4().hex[:6]}"
        return name

    async def _network(self, request: api.CreateRequest) -> tuple[str, list[str]]:
        if request.network not in ("", "bridge", "host", "none"):
            raise InvalidArgument(f"--network {request.network}: use bridge, host or none")
        if request.network in ("host", "none"):
            if request.ports:
                raise InvalidArgument(f"-p needs a bridge network: with --network {request.network} there is no port to map")
            return request.network, []
        ready, message = await self._pods.network_ready()
        if ready:
            return "bridge", []
        if request.network == "bridge" or request.ports:
            raise FailedPrecondition(
                f"there is no CNI network for the container: {message}; put a conflist there, or use --network host or none"
            )
        return "none", [f"loopback only ({message}); --network host shares the host's network"]

    # ending

    async def remove(self, found: Container, *, force: bool) -> None:
        if found.state is ContainerState.RUNNING:
            if not force:
                raise FailedPrecondition(f"container {self.name(found)} is running: stop it first, or remove it with --force")
            await self._pods.stop_container(found.id, 0)
        if found.owner is Owner.PERSON:
            await self._remove_pod(found.pod_id)
        else:
            await self._pods.remove_container(found.id)

    async def _remove_pod(self, pod_id: str) -> None:
        pod = self._pods.pod(pod_id)
        await self._pods.remove_pod(pod_id)
        flags.PersonFiles(self._root, pod.config.metadata.uid).remove()

    async def exit_code(self, container_id: str) -> int:
        """Waits for the container's end. Raises NotFound where it is removed."""
        async with self._changed:
            while (found := self._pods.container(container_id)).state not in _ENDED:
                await self._changed.wait()
        return found.exit_code or 0

    @contextmanager
    def session(self, container_id: str) -> Iterator[None]:
        """Someone waits for this container's exit code: it is not removed by itself before he has it."""
        self._sessions[container_id] = self._sessions.get(container_id, 0) + 1
        try:
            yield
        finally:
            self._sessions[container_id] -= 1
            if not self._sessions[container_id]:
                del self._sessions[container_id]

    def name(self, found: Container) -> str:
        return found.config.metadata.name

    # what happens by itself

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        async for event in self._pods.events():
            async with self._changed:
                self._changed.notify_all()
            if event.kind == "stopped" and event.pod.owner is Owner.PERSON:
                self._spawn(self._settle(event.pod.id))

    async def _settle(self, pod_id: str) -> None:
        """After a container's end: gives its network back, and removes it where --rm said so."""
        try:
            pod = self._pods.pod(pod_id)
            found = self._in(pod)
            if found and flags.AUTO_REMOVE not in pod.config.annotations:
                if found.state in _ENDED:
                    await self._pods.stop_pod(pod_id)
                return
            for _ in range(_SESSION_WAIT_SECONDS * 50):
                if found is None or found.id not in self._sessions:
                    break
                await asyncio.sleep(0.02)
            await self._remove_pod(pod_id)
        except NotFound:
            return
        except (PodError, OSError) as error:
            log.warning("cannot clean up after a container", pod=pod_id, error=str(error))

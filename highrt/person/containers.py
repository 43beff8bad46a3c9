"""A person's containers over the pod manager: names, making, starting, ending, and what happens when one has ended."""

import asyncio
import os
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from highrt.images.errors import ImageNotFound
from highrt.images.model import Image
from highrt.images.service import ImageService
from highrt.monitor import record
from highrt.person import flags, restarts, sharedpods
from highrt.person.events import Events
from highrt.person.health import Check, HealthChecks
from highrt.person.names import NamesInUse
from highrt.person.networks import Networks
from highrt.person.sharedpods import SharedPods
from highrt.pods import extras
from highrt.pods.errors import FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, ContainerEvent, ContainerState, Owner, Pod
from strata.linux import cgroups
from strata.protocols import cri_pb2 as cri
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
        self.networks = Networks(root, pods)
        self.events = Events(pods)
        self.health = HealthChecks(pods, self.events, self._health_file)
        self._names = NamesInUse(pods)
        self.shared = SharedPods(pods, root, self.networks, self._names, self.events)
        self._sessions: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # By container ID: who is to start again, and how long the last pause before that was, in seconds.
        self._pausing: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, float] = {}
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        kept = {pod.config.metadata.uid for pod in self._pods.pods(Owner.PERSON)}
        kept |= {self._files(found).folder.name for found in self._pods.containers(Owner.PERSON)}
        folder = self._root / "person"
        for entry in folder.iterdir() if folder.exists() else ():
            if entry.name not in kept and entry.is_dir():
                flags.PersonFiles(self._root, entry.name).remove()
        self._spawn(self._watch())
        self._spawn(self.events.watch())
        await asyncio.sleep(0)  # it listens from here on: nothing ends unseen
        rebooted = self._boot_file.exists() and self._boot_file.read_text() != record.boot_id()
        await self.networks.open()
        for found in self._pods.containers(Owner.PERSON):
            life = self.life(found)
            if rebooted and life.policy == restarts.ALWAYS and life.stopped:
                life.stopped = False
                life.save(self._files(found))
            # one that was only created has lost the client that would have started it
            if found.state is not ContainerState.RUNNING:
                self._spawn(self._settle(found))
            else:
                self._begin_checks(found)
        for pod in self._pods.pods(Owner.PERSON):
            if not flags.is_shared(pod) and not self.shared.members(pod):  # the last daemon was killed while it made one
                self._spawn(self._remove_pod(pod.id))
        self._boot_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._boot_file.write_text(record.boot_id())

    @property
    def _boot_file(self) -> Path:
        """In which boot of the machine the last daemon ran."""
        return self._root / "person" / ".boot"

    async def close(self) -> None:
        await self.health.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # finding

    def find(self, reference: str) -> Container:
        """A container by a person's name for it, its ID, or the ID's unique beginning. Raises NotFound."""
        if not reference:
            raise InvalidArgument("no container is named")
        for found in self._pods.containers(Owner.PERSON):
            if found.config.metadata.name == reference:
                return found
        return self._pods.container(reference)

    # making

    async def create(self, request: api.CreateRequest) -> tuple[Container, list[str]]:
        """Makes a container that can be started; what fails half-way leaves nothing. Returns it with warnings for people."""
        sharedpods.check_sharing(request)
        request.name = request.name or self._names.free()
        image = self._images.resolve(request.image)
        if image is None:
            raise ImageNotFound(f"image {request.image} is not here: pull it first (highrt pull {request.image})")
        life = restarts.Life(*restarts.policy(request.restart))
        if life.policy != restarts.NO and request.auto_remove:
            raise InvalidArgument("--rm and --restart: a container that is removed at its end cannot start again")
        with self._names.making(request.name):
            if request.pod.startswith(sharedpods.NEW):
                async with self.shared.made_for(request) as (pod, warnings):
                    return await self._create_inside(pod, request, image, life), warnings
            if request.pod:
                sharedpods.check_member(request)
                return await self._create_inside(self.shared.find(request.pod), request, image, life), []
            return await self._create_alone(request, image, life)

    async def _create_alone(
        self, request: api.CreateRequest, image: Image, life: restarts.Life
    ) -> tuple[Container, list[str]]:  # fmt: skip
        if request.pid_mode == "pod":
            raise InvalidArgument("--pid pod needs --pod")
        network, chosen, warnings = await self.networks.wanted(request)
        uid = uuid.uuid4().hex
        files = flags.PersonFiles(self._root, uid)
        pod: Pod | None = None
        try:
            pod_config = flags.pod_config(request, uid, files, network, chosen)
            files.make()
            life.save(files)
            config = flags.container_config(request, image, self._root / "volumes", network)
            with self.networks.joining(chosen):
                pod = await self._pods.run_pod(pod_config, handler=request.handler, owner=Owner.PERSON)
            return await self._pods.create_container(pod.id, config, pod_config), warnings
        except BaseException:
            if pod is not None:
                with suppress(PodError):
                    await self._pods.remove_pod(pod.id)
            files.remove()
            raise

    async def _create_inside(self, pod: Pod, request: api.CreateRequest, image: Image, life: restarts.Life) -> Container:
        """In a pod that it shares with others. Its log lies in a folder of its own."""
        shares = pod.config.linux.security_context.namespace_options.pid == cri.POD
        target: Container | None = None
        if request.pid_mode.startswith(sharedpods.CONTAINER):
            target = self.find(request.pid_mode.removeprefix(sharedpods.CONTAINER))
            if target.pod_id != pod.id:
                raise InvalidArgument(f"--pid {request.pid_mode}: it is not in pod {pod.config.metadata.name}")
            request.pid_mode = "private"
        if request.pid_mode == "pod" and not shares:
            raise InvalidArgument(f"--pid pod: pod {pod.config.metadata.name} was made without --share-pid")
        if shares and not request.pid_mode:
            request.pid_mode = "pod"
        uid = uuid.uuid4().hex
        files = flags.PersonFiles(self._root, uid)
        config = flags.container_config(request, image, self._root / "volumes", pod.config.annotations[flags.NETWORK])
        config.annotations[flags.FILES] = uid
        if target:
            options = config.linux.security_context.namespace_options
            options.pid, options.target_id = cri.TARGET, target.id
        if request.auto_remove:
            config.annotations[flags.AUTO_REMOVE] = "true"
        try:
            files.make()
            life.save(files)
            await self._pods.renew_pod(pod.id)
            return await self._pods.create_container(pod.id, config, cri.PodSandboxConfig(log_directory=str(files.folder)))
        except BaseException:
            files.remove()
            raise

    # starting

    @asynccontextmanager
    async def starting(self, found: Container) -> AsyncIterator[None]:
        """Makes a container ready to start, also one that has ended, with all that it has written; the block starts it. Raises
        FailedPrecondition where it runs, PodError."""
        if found.owner is not Owner.PERSON:
            yield
            return
        async with self._lock(found.id):
            self._pause_no_more(found.id)
            life = self.life(found)
            life.stopped, life.restarts = False, 0
            life.save(self._files(found))
            await self._make_ready(found)
            yield

    async def restart(self, found: Container, timeout_seconds: float) -> None:
        """Stops it, if it runs, and starts it again."""
        if found.owner is not Owner.PERSON:
            raise FailedPrecondition(f"container {found.id} is a kubelet's, which starts a new one in its place")
        async with self._lock(found.id):
            self._pause_no_more(found.id)
            await self._thaw(found)
            await self._pods.stop_container(found.id, timeout_seconds)
            await self._make_ready(found)
            await self._pods.start_container(found.id)

    async def _make_ready(self, found: Container) -> None:
        pod = self._pods.pod(found.pod_id)
        if found.state is ContainerState.RUNNING:
            raise FailedPrecondition(f"container {self.name(found)} is running already")
        # the root of one that was only created is gone where its pod was stopped, and another has brought the pod back
        if not pod.ready or found.state is not ContainerState.CREATED or not os.path.ismount(self._pods.root_of(found.id)):
            await self._pods.renew_pod(pod.id)
            await self._pods.renew_container(found.id)
        self.networks.names.coming(pod)

    def restarting(self, container_id: str) -> bool:
        """Whether it has ended, and starts again after a pause."""
        return container_id in self._pausing

    # ending

    async def stop(self, found: Container, timeout_seconds: float) -> None:
        """Ends it, so that it does not start again by itself."""
        if found.owner is not Owner.PERSON:
            await self._pods.stop_container(found.id, timeout_seconds)
            return
        async with self._lock(found.id):
            self._note_stop(found)
            await self._thaw(found)
            await self._pods.stop_container(found.id, timeout_seconds)
        self._spawn(self._settle(found))  # it may have been between two runs

    async def signal(self, found: Container, number: int) -> None:
        """Sends a signal. With one that is to end it, it does not start again by itself."""
        if found.owner is Owner.PERSON and number in (signal.SIGKILL, found.stop_signal):
            self._note_stop(found)
        if number == signal.SIGKILL:
            await self._thaw(found)
        await self._pods.signal_container(found.id, number)

    def _check_removable(self, found: Container, *, force: bool) -> None:
        if found.state is ContainerState.RUNNING and not force:
            raise FailedPrecondition(f"container {self.name(found)} is running: stop it first, or remove it with --force")

    def _note_stop(self, found: Container) -> None:
        self._pause_no_more(found.id)
        life = self.life(found)
        if life.policy != restarts.NO and not life.stopped:
            life.stopped = True
            life.save(self._files(found))

    async def update(self, found: Container, request: api.UpdateRequest) -> None:
        """Changes its limits and its policy, now and for its next runs."""
        if request.restart:
            life = self.life(found)
            life.policy, life.most = restarts.policy(request.restart)
            if life.policy != restarts.NO and self.removes_itself(found):
                raise InvalidArgument("a container with --rm is removed at its end and cannot start again")
            life.save(self._files(found))
        limits = flags.resources(request)
        if limits.ByteSize() or request.pids_limit:
            await self._pods.update_resources(found.id, limits, pids_limit=request.pids_limit)

    def stop_seconds(self, found: Container, asked: api.StopRequest) -> float:
        """How long a stop waits: as is asked, or as the container was made."""
        if asked.HasField("timeout_seconds"):
            return max(0, asked.timeout_seconds)
        return extras.of(found.owner, found.config.annotations).stop_seconds

    async def pause(self, found: Container) -> None:
        """Has all its processes stand still."""
        group = cgroups.open_cgroup(found.cgroup)
        if group.frozen():
            raise FailedPrecondition(f"container {self.name(found)} is paused already")
        await asyncio.to_thread(group.freeze)

    async def unpause(self, found: Container) -> None:
        if not self.paused(found):
            raise FailedPrecondition(f"container {self.name(found)} is not paused")
        await self._thaw(found)

    @asynccontextmanager
    async def standing_still(self, found: Container, *, really: bool) -> AsyncIterator[None]:
        """Around what must see its files as they are at one moment: if it runs, its processes are paused."""
        if not really or found.state is not ContainerState.RUNNING or self.paused(found):
            yield
            return
        await self.pause(found)
        try:
            yield
        finally:
            await self._thaw(found)

    def paused(self, found: Container) -> bool:
        return found.state is ContainerState.RUNNING and cgroups.open_cgroup(found.cgroup).frozen()

    async def _thaw(self, found: Container) -> None:
        if self.paused(found):
            await asyncio.to_thread(cgroups.open_cgroup(found.cgroup).thaw)

    @asynccontextmanager
    async def root(self, found: Container) -> AsyncIterator[int]:
        """The descriptor of its root folder: as its processes see it, with their mounts, or of one that does not run just what it
        has written and its image. Raises FailedPrecondition where it has none any more."""
        async with AsyncExitStack() as stack:
            if found.state is ContainerState.RUNNING:
                yield self._running_root(found, stack)
                return
            await stack.enter_async_context(self._lock(found.id))  # it does not start meanwhile
            yield await self._root_of(found, stack)

    def _running_root(self, found: Container, stack: AsyncExitStack) -> int:
        pid = found.pid
        root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        if found.state is not ContainerState.RUNNING or found.pid != pid:  # the number may mean another process
            raise FailedPrecondition(f"container {self.name(found)} has just ended: try again")
        return root

    async def _root_of(self, found: Container, stack: AsyncExitStack) -> int:
        place = self._pods.root_of(found.id)
        if not os.path.ismount(place):  # it is where a container was made and not started
            rootfs = await self._images.rootfs(found.id)
            if rootfs is None:
                raise FailedPrecondition(f"container {self.name(found)} has no files any more")
            place = tempfile.mkdtemp(dir=self._pods.state)
            stack.callback(os.rmdir, place)
            rootfs.mount(place)
            stack.callback(rootfs.unmount, place)
        root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        return root

    async def rename(self, found: Container, name: str) -> None:
        """Gives it another name, which nobody else has."""
        if found.owner is not Owner.PERSON:
            raise FailedPrecondition(f"container {found.id} is a kubelet's, which names it")
        self._names.check(name)
        pod = self._pods.pod(found.pod_id)
        if not flags.is_shared(pod):
            self._pods.rename_pod(pod.id, name)
        self._pods.rename_container(found.id, name)
        self.networks.names.refresh(pod)

    async def remove(self, found: Container, *, force: bool) -> None:
        self._check_removable(found, force=force)
        await self._thaw(found)
        if found.owner is not Owner.PERSON:
            await self._pods.stop_container(found.id, 0)
            await self._pods.remove_container(found.id)
            return
        async with self._lock(found.id):
            self._check_removable(found, force=force)  # it may have started meanwhile
            self._note_stop(found)
            await self._pods.stop_container(found.id, 0)
            await self._remove(found)

    async def _remove(self, found: Container) -> None:
        """With its pod, if that is its own."""
        pod, files = self._pods.pod(found.pod_id), self._files(found)
        if flags.is_shared(pod):
            await self._pods.remove_container(found.id)
            self.networks.names.refresh(pod)
            files.remove()
        else:
            await self._remove_pod(pod.id)
        self._locks.pop(found.id, None)

    async def _remove_pod(self, pod_id: str) -> None:
        pod = self._pods.pod(pod_id)
        await self._pods.remove_pod(pod_id)
        self.networks.names.going(pod)
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

    def _health_file(self, found: Container) -> Path:
        return self._files(found).folder / "health"

    def _files(self, found: Container) -> flags.PersonFiles:
        uid = found.config.annotations.get(flags.FILES) or self._pods.pod(found.pod_id).config.metadata.uid
        return flags.PersonFiles(self._root, uid)

    def life(self, found: Container) -> restarts.Life:
        """Its policy, and how often it has started by itself."""
        return restarts.Life.load(self._files(found))

    def removes_itself(self, found: Container) -> bool:
        """Whether --rm was given."""
        pod = self._pods.pod(found.pod_id)
        return any(flags.AUTO_REMOVE in config.annotations for config in (found.config, pod.config))

    def _lock(self, container_id: str) -> asyncio.Lock:
        """One at a time starts a container, or settles what it has left."""
        return self._locks.setdefault(container_id, asyncio.Lock())

    # what happens by itself

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch(self) -> None:
        async for event in self._pods.events():
            async with self._changed:
                self._changed.notify_all()
            self._look_after(event)
            if event.kind == "stopped" and event.pod.owner is Owner.PERSON:
                self.networks.names.going(event.pod)
                for found in self.shared.members(event.pod):
                    if event.container_id in (found.id, event.pod.id):
                        self._spawn(self._settle(found))

    def _look_after(self, event: ContainerEvent) -> None:
        """Health checks begin with a container and end with it."""
        if event.pod.owner is not Owner.PERSON or event.container_id == event.pod.id:
            return
        if event.kind == "started":
            with suppress(NotFound):
                self._begin_checks(self._pods.container(event.container_id))
        elif event.kind in ("stopped", "deleted"):
            self.health.end(event.container_id)

    def _begin_checks(self, found: Container) -> None:
        try:
            self.health.begin(found, self.check_of(found))
        except InvalidArgument as error:
            log.warning("a health check makes no sense", container=found.id, error=str(error))

    def check_of(self, found: Container) -> Check | None:
        """Its health check: what was asked for, over the image's. Raises InvalidArgument."""
        image = self._images.resolve(found.image_id)
        given = extras.of(found.owner, found.config.annotations).health or {}
        return Check.of({**(image.config.health_check if image else {}), **given})

    async def _settle(self, found: Container) -> None:
        """After a container's end: removes it where --rm said so, starts it again after a pause, or gives its network back."""
        try:
            if self.removes_itself(found):
                await self._remove_when_heard(found)
                return
            async with self._lock(found.id):
                pod = self._pods.pod(found.pod_id)
                if found.state not in _ENDED or found.id in self._pausing:
                    return
                # One that could not be started is not tried again: it would fail in the same way.
                if found.reason != "StartError" and self.life(found).wants_again(found.exit_code):
                    self._start_after_a_pause(found, 0.0)
                elif not flags.is_shared(pod):
                    await self._pods.stop_pod(pod.id)
        except NotFound:
            return
        except (PodError, OSError) as error:
            log.warning("cannot clean up after a container", container=found.id, error=str(error))

    async def _remove_when_heard(self, found: Container) -> None:
        for _ in range(_SESSION_WAIT_SECONDS * 50):
            if found.id not in self._sessions:
                break
            await asyncio.sleep(0.02)
        await self._remove(found)

    def _start_after_a_pause(self, found: Container, before: float) -> None:
        """before: the last pause, if that was before this run."""
        ran = max(0, found.finished_at_ns - found.started_at_ns) / 1e9
        pause = restarts.pause(before or self._pauses.get(found.id, 0.0), ran)
        self._pauses[found.id] = pause
        self._pausing[found.id] = self._spawn(self._start_again(found, pause))

    async def _start_again(self, found: Container, pause: float) -> None:
        await asyncio.sleep(pause)
        async with self._lock(found.id):
            if self._pausing.pop(found.id, None) is None:
                return
            life = self.life(found)
            life.restarts += 1
            life.save(self._files(found))
            try:
                await self._make_ready(found)
                await self._pods.start_container(found.id)
            except (PodError, OSError) as error:
                log.warning("a container cannot start again", container=found.id, restarts=life.restarts, error=str(error))
                if found.state in _ENDED and found.reason != "StartError":
                    self._start_after_a_pause(found, pause)

    def _pause_no_more(self, container_id: str) -> None:
        """It does not start by itself after the pause that it is in."""
        self._pauses.pop(container_id, None)
        if task := self._pausing.pop(container_id, None):
            task.cancel()

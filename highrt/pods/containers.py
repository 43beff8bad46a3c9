"""The life of containers: made, started, stopped, removed; their limits and figures."""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from highrt.images.errors import ImageError
from highrt.images.model import Image
from highrt.images.snapshots import Rootfs
from highrt.monitor.client import MonitorError, MonitorGone
from highrt.pods import cdi, extras, groups, logpaths, lsm, sandbox, spec, usage, userns, volumes
from highrt.pods.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.metadata import NameTaken
from highrt.pods.model import (
    Container,
    ContainerState,
    ContainerStats,
    EventKind,
    Owner,
    Pod,
)
from highrt.pods.monitors import Monitors
from highrt.pods.registry import Registry, new_id
from highrt.pods.signals import stop_signal
from highrt.pods.streams import Streams
from strata.linux import cgroups, mounts
from strata.protocols.cri_pb2 import (
    ContainerConfig,
    LinuxContainerResources,
    PodSandboxConfig,
)
from strata.telemetry import logs
from strata.telemetry.spans import span

log = logs.get("highrt.pods")

_SIGKILL = 9
_START_ERROR_CODE = 128
_KILL_SECONDS = 10.0


class Images(volumes.Images, Protocol):
    """What of the image service is needed here."""

    async def rootfs(self, key: str) -> Rootfs | None: ...


class Containers:
    """The life of containers, from `create` to `remove`."""

    def __init__(
        self, registry: Registry, monitors: Monitors, images: Images, streams: Streams, cdi_folders: Sequence[Path]
    ) -> None:
        self._registry, self._monitors, self._images, self._streams = registry, monitors, images, streams
        self._cdi_folders = cdi_folders
        self._exited: dict[str, asyncio.Event] = {}

    async def create(self, pod_id: str, config: ContainerConfig, sandbox_config: PodSandboxConfig | None = None) -> Container:
        """Makes a container's root and configuration; the runtime hears of it at its start.

        sandbox_config: CRI sends the pod's along; its log directory counts. The image must be there (an ID, tag or digest).
        Raises NotFound (pod, image), InvalidArgument, AlreadyExists, FailedPrecondition, PodError.
        """
        pod = self._registry.pod(pod_id)
        if not pod.ready:
            raise FailedPrecondition(f"pod {pod.id} is not ready: it was stopped, or its monitor died")
        if not config.metadata.name:
            raise InvalidArgument("a container needs a name (metadata.name)")
        config = volumes.resolved(config, self._images)
        image = self._images.resolve(config.image.image)
        if image is None:
            raise NotFound(f"image {config.image.image!r} is not here: pull it first")
        container_id = new_id()
        container = Container(
            container_id, pod.id, pod.owner, config, image.id, image.digests[0] if image.digests else image.id,
            ContainerState.CREATED, time.time_ns(), log_path=logpaths.path(pod, sandbox_config, config),
            cgroup=groups.of_container(self._registry.cgroup_parent(pod), container_id),
            stop_signal=stop_signal(
                config.stop_signal, extras.of(pod.owner, config.annotations).stop_signal or image.config.stop_signal
            ),
        )  # fmt: skip
        name = f"{config.metadata.name}/{config.metadata.attempt}"
        async with self._registry.name(f"{pod.id}/{name}"):  # see Sandboxes.run
            try:
                self._registry.metadata.add_container(container, name)
            except NameTaken as taken:
                raise AlreadyExists(f"the container {name} of pod {pod.id} exists already, as {taken}") from None
            with span("create container", pod=pod.config.metadata.uid, container=container_id):
                try:
                    await self._make_container(pod, container, image)
                except BaseException as error:
                    await asyncio.shield(self.discard(container))
                    if isinstance(error, OSError | ImageError):
                        raise PodError(f"cannot make the container {config.metadata.name}: {error}") from error
                    raise
        self._registry.containers[container.id] = container
        self._registry.publish(EventKind.CREATED, container.id, pod)
        return container

    async def _make_container(self, pod: Pod, container: Container, image: Image) -> None:
        box = self._registry.sandbox(pod.id)
        folder = box.container(container.id)
        mounted = folder / "rootfs"
        mounted.mkdir(parents=True)
        mapping = userns.of_pod(pod.config)
        if mapping:
            mapping.let_in(folder)
        user_namespace = box.namespace("user") if mapping else ""
        rootfs = await self._images.prepare(image, container.id)
        rootfs.mount(mounted, user_namespace)
        place = spec.Place(
            container.id, pod.id, box.folder, mounted, groups.cgroups_path(self._registry.cgroup_parent(pod), container.id),
            box.namespaces(pod.config),
            self._registry.pid_path(pod, container), sandbox.hostname(pod.config),
            await volumes.make(container.config, self._images, container.id, folder, user_namespace), mapping,
        )  # fmt: skip
        built = spec.build(pod.config, container.config, image.config, place)
        context = container.config.linux.security_context
        built["process"] |= await lsm.prepare(context)
        if devices := cdi.wanted(container.config):
            cdi.apply(built, devices, self._cdi_folders, privileged=context.privileged)
        container.user = spec.user_of(built)
        extras.apply(built, extras.of(pod.owner, container.config.annotations))
        logpaths.prepare(container)
        # Last, because a folder without it is what a killed daemon left half-made.
        _write_config(folder, built)

    async def renew(self, container_id: str) -> None:
        """Makes a container that does not run one that can be started, with all that it has written. Its pod must be ready.

        After an error it stays what it was. Raises NotFound (also the image), FailedPrecondition, PodError.
        """
        container = self._registry.container(container_id)
        pod = self._registry.pod(container.pod_id)
        async with self._registry.lock(container.id):
            if container.state == ContainerState.RUNNING or not pod.ready:
                state = "running" if container.state == ContainerState.RUNNING else "in a pod that is not ready"
                raise FailedPrecondition(f"container {container.id} is {state}")
            image = self._images.resolve(container.image_id)
            if image is None:
                raise NotFound(f"image {container.image_id} of container {container.id} is not here any more")
            try:
                await self._monitors.client(pod.id).request("delete", container=container.id)
                self.unmount(container)
                await asyncio.to_thread(shutil.rmtree, self._registry.folder(container), ignore_errors=True)
                await self._make_container(pod, container, image)
            except (OSError, ImageError, MonitorError, MonitorGone) as error:
                self.unmount(container)
                raise PodError(f"cannot make the container {container.config.metadata.name} anew: {error}") from error
            self._exited.pop(container.id, None)
            container.state, container.exit_code, container.reason, container.message = ContainerState.CREATED, 0, "", ""
            container.started_at_ns = container.finished_at_ns = container.pid = 0
            self._registry.metadata.save_container(container)

    async def start(self, container_id: str) -> None:
        """Has the runtime create and start it. After an error it has exited, with code 128 and the reason StartError.

        Raises NotFound, FailedPrecondition where it is not in state created, PodError with the runtime's text.
        """
        container = self._registry.container(container_id)
        async with self._registry.lock(container.id):
            if container.state != ContainerState.CREATED:
                raise FailedPrecondition(f"container {container.id} is {container.state}, not created")
            pod = self._registry.pods[container.pod_id]
            if not pod.ready:
                raise FailedPrecondition(f"pod {pod.id} is not ready")
            named = {"pod": pod.config.metadata.uid, "container": container.id}
            with span("start container", **named), self._monitors.spawner.starting_something():
                try:
                    await self._start(pod, container)
                except (MonitorError, MonitorGone, PodError) as error:
                    text = f"{error}{self._monitors.want_of_memory(pod.id)}"
                    self.note_exit(container, _START_ERROR_CODE, "StartError", text)
                    raise PodError(f"cannot start the container {container.config.metadata.name}: {text}") from error
        log.info("container runs", pod=pod.config.metadata.uid, container=container.id, name=container.config.metadata.name)

    async def _start(self, pod: Pod, container: Container) -> None:
        client, config = self._monitors.client(pod.id), container.config
        asked = extras.of(pod.owner, config.annotations)
        try:
            log_path = logpaths.prepare(container)
        except OSError as error:
            raise PodError(f"its log {container.log_path}: {error.strerror}") from error
        created = await client.request(
            "create", container=container.id, bundle=str(self._registry.folder(container)), cgroup=container.cgroup,
            log=log_path, log_bytes=asked.log_bytes, log_files=asked.log_files,
            terminal=config.tty, stdin=config.stdin, stdin_once=config.stdin_once,
            own_pid_namespace=self._registry.pid_path(pod, container) == "",
            console_socket=self._monitors.console_path(container.id),
        )  # fmt: skip
        container.pid = int(created["pid"])
        await self._streams.send_waiting(container)
        try:
            await client.request("start", container=container.id)
        except MonitorError:
            await client.request("delete", container=container.id)
            raise

    async def stop(self, container_id: str, timeout_seconds: float) -> None:
        """Sends the stop signal, and SIGKILL after the time-out. Nothing happens where it does not run or exist.

        Raises PodError where it does not die.
        """
        try:
            container = self._registry.container(container_id)
        except NotFound:
            return
        with span("stop container", container=container.id):
            await self.end(container, timeout_seconds)

    async def end(self, container: Container, timeout_seconds: float) -> None:
        """`stop` for one that is known; 0 kills at once."""
        ended = self._exited.setdefault(container.id, asyncio.Event())
        tries = [(container.stop_signal, timeout_seconds, False)] if timeout_seconds > 0 else []
        for number, seconds, everybody in [*tries, (_SIGKILL, _KILL_SECONDS, True)]:
            if container.state != ContainerState.RUNNING:
                return
            try:
                client = self._monitors.client(container.pod_id)
                await client.request("signal", container=container.id, signal=number, all=everybody)
            except (MonitorGone, PodError):
                await asyncio.sleep(0.1)  # its death is being handled, which ends the container too
            except MonitorError as error:
                log.warning("the monitor cannot signal", container=container.id, error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await ended.wait()
        if container.state == ContainerState.RUNNING:
            raise PodError(f"container {container.id} does not die of SIGKILL within {_KILL_SECONDS:.0f} s")

    def end_sessions(self, pod_id: str) -> None:
        """The pod's monitor has ended: nobody will tell how execs and attaches end."""
        self._streams.monitor_died(pod_id)

    async def signal(self, container_id: str, number: int) -> None:
        """Sends a signal to a container's first process. Raises NotFound, FailedPrecondition, PodError."""
        container = self._registry.container(container_id)
        if container.state != ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is {container.state}, not running")
        await self._ask(container, "signal", signal=number, all=False)

    async def remove(self, container_id: str) -> None:
        """Ends it where it runs and removes it with its writable layer. Nothing happens for one that does not exist."""
        try:
            container = self._registry.container(container_id)
        except NotFound:
            return
        await self.end(container, 0.0)
        async with self._registry.lock(container.id):
            await self.discard(container)
        self._registry.forget_lock(container.id)

    async def discard(self, container: Container) -> None:
        """Takes away all that there is of a container, also of one that was half-made."""
        if self._monitors.has(container.pod_id):
            with contextlib.suppress(MonitorError, MonitorGone):
                await self._monitors.client(container.pod_id).request("delete", container=container.id)
        self._streams.drop_waiting(container.id)
        self.unmount(container)
        await self._images.release(container.id)
        await volumes.release(container.config, self._images, container.id)
        await asyncio.to_thread(shutil.rmtree, self._registry.folder(container), ignore_errors=True)
        self._registry.metadata.remove_container(container.id)
        self._exited.pop(container.id, None)
        if self._registry.containers.pop(container.id, None):
            self._publish(EventKind.DELETED, container)

    async def update_resources(self, container_id: str, resources: LinuxContainerResources, *, pids_limit: int = 0) -> None:
        """Changes limits; what is 0 or empty stays. pids_limit: of a person's, whose containers may also have ended: then the
        next run has the limits. Raises NotFound, FailedPrecondition, InvalidArgument, PodError."""
        container = self._registry.container(container_id)
        async with self._registry.lock(container.id):
            may_start = container.state in (ContainerState.CREATED, ContainerState.RUNNING)
            if not may_start and container.owner is not Owner.PERSON:
                raise FailedPrecondition(f"container {container.id} is {container.state}")
            merged = LinuxContainerResources()
            merged.CopyFrom(container.config.linux.resources)
            merged.MergeFrom(resources)
            wanted = spec.oci_resources(merged)
            if pids_limit:
                wanted["pids"] = {"limit": pids_limit}
            if container.state == ContainerState.RUNNING:
                await self._ask(container, "update", resources=wanted, folder=str(self._registry.folder(container)))
            elif may_start:
                folder = self._registry.folder(container)
                built = json.loads((folder / "config.json").read_text())
                built["linux"]["resources"] |= wanted
                _write_config(folder, built)
            container.config.linux.resources.CopyFrom(merged)
            if pids_limit:
                asked = replace(extras.of(container.owner, container.config.annotations), pids_limit=pids_limit)
                container.config.annotations[extras.ANNOTATION] = asked.text()
            self._registry.metadata.save_container(container)

    async def reopen_log(self, container_id: str) -> None:
        """After the log file was moved away. Raises NotFound, FailedPrecondition, PodError."""
        container = self._registry.container(container_id)
        if container.state != ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is {container.state}, not running")
        await self._ask(container, "reopen-log")

    async def stats(self, container_id: str) -> ContainerStats:
        """Raises NotFound."""
        container = self._registry.container(container_id)
        group = cgroups.open_cgroup(container.cgroup)
        return await asyncio.to_thread(usage.stats, container.id, group, await self._layer(container))

    async def details(self, container_id: str) -> usage.Details:
        """What a container uses, in all detail. Raises NotFound."""
        container = self._registry.container(container_id)
        group = cgroups.open_cgroup(container.cgroup)
        return await asyncio.to_thread(usage.details, container.id, group, await self._layer(container), container.pid)

    async def _layer(self, container: Container) -> str:
        """The folder of its writable layer."""
        rootfs = await self._images.rootfs(container.id)
        return str(rootfs.upper) if rootfs else ""

    def apply_exit(self, container: Container, ended: dict[str, Any]) -> None:
        """Takes over an exit record."""
        code, oom = int(ended["code"]), bool(ended["oom"])
        reason = "OOMKilled" if oom else "Completed" if code == 0 else "Error"
        container.started_at_ns = container.started_at_ns or int(ended["time"])
        self.note_exit(container, code, reason, "", int(ended["time"]))

    def note_exit(self, container: Container, code: int, reason: str, message: str, time_ns: int = 0) -> None:
        """Writes down that a container has ended, frees its mount, and tells who waits."""
        container.state, container.exit_code, container.reason, container.message = ContainerState.EXITED, code, reason, message
        container.finished_at_ns, container.pid = time_ns or time.time_ns(), 0
        self._registry.metadata.save_container(container)
        self._streams.drop_waiting(container.id)
        self.unmount(container)
        self._exited.setdefault(container.id, asyncio.Event()).set()
        self._publish(EventKind.STOPPED, container)
        log.info("container ended", container=container.id, code=code, reason=reason, text=message or None)

    def unmount(self, container: Container) -> None:
        """Takes the container's root and its image volumes away from this mount namespace."""
        folder = self._registry.folder(container)
        try:
            mounts.umount(str(folder / "rootfs"), mounts.DETACH)
        except OSError as error:
            if error.errno not in (2, 22):  # ENOENT, EINVAL: no folder, no mount
                log.warning("a root file system cannot be unmounted", container=container.id, error=str(error))
        try:
            volumes.unmount(container.config, folder)
        except OSError as error:
            log.warning("an image volume cannot be unmounted", container=container.id, error=str(error))

    async def _ask(self, container: Container, do: str, **fields: Any) -> None:
        try:
            await self._monitors.client(container.pod_id).request(do, container=container.id, **fields)
        except (MonitorError, MonitorGone) as error:
            raise PodError(f"{do} of container {container.id}: {error}") from None

    def note_start(self, container: Container, time_ns: int) -> None:
        """Writes down that a container runs, when its monitor says so: whoever asked for it may have gone."""
        if container.state == ContainerState.CREATED:
            container.state, container.started_at_ns = ContainerState.RUNNING, time_ns
            self._registry.metadata.save_container(container)
            self._publish(EventKind.STARTED, container)

    def _publish(self, kind: EventKind, container: Container) -> None:
        if pod := self._registry.pods.get(container.pod_id):
            self._registry.publish(kind, container.id, pod)


def _write_config(folder: Path, built: dict[str, Any]) -> None:
    """Whole or not at all. It need not survive the machine's end."""
    temporary = folder / ".config.json"
    temporary.write_text(json.dumps(built))
    temporary.rename(folder / "config.json")

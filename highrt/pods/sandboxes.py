"""The life of pods: run, stopped, removed; and what happens when a monitor dies."""

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping

from highrt.cni.errors import CniError
from highrt.monitor import record
from highrt.monitor.client import MonitorError, MonitorGone
from highrt.pods import extras, groups, pidspace, sandbox, userns
from highrt.pods.attachments import Attachments, bandwidth
from highrt.pods.containers import Containers
from highrt.pods.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.features import Known
from highrt.pods.metadata import NameTaken
from highrt.pods.model import (
    ContainerState,
    EventKind,
    Handler,
    Owner,
    Pod,
)
from highrt.pods.monitors import Monitors
from highrt.pods.registry import Registry, new_id
from highrt.pods.sandbox import Sandbox
from strata.linux import cgroups
from strata.protocols.cri_pb2 import (
    LinuxContainerResources,
    PodSandboxConfig,
)
from strata.telemetry import logs
from strata.telemetry.spans import span

log = logs.get("highrt.pods")

_SIGKILL = 9
_HOSTNAME_BYTES = 64


class Sandboxes:
    """The life of pods, from `run` to `remove`."""

    def __init__(
        self, registry: Registry, monitors: Monitors, attachments: Attachments, handlers: Mapping[str, Handler],
        default_handler: str, features: Known, containers: Containers,
    ) -> None:  # fmt: skip
        self._registry, self._monitors, self._attachments, self._containers = registry, monitors, attachments, containers
        self._handlers, self._default_handler, self._features = handlers, default_handler, features

    async def run(self, config: PodSandboxConfig, *, handler: str = "", owner: Owner = Owner.KUBELET) -> Pod:
        """Makes a pod: its namespaces, its network, its monitor. After an error nothing is left.

        Raises InvalidArgument, AlreadyExists (the name is that of a pod that was not removed), PodError.
        """
        chosen = self._handlers.get(handler or self._default_handler)
        if chosen is None:
            raise InvalidArgument(f"runtime handler {handler!r} is not configured: {', '.join(sorted(self._handlers))} are")
        _check(config)
        if userns.of_pod(config) and not (await self._features.of(chosen)).user_namespaces:
            raise InvalidArgument(f"runtime handler {chosen.name} has no user namespaces with ID-mapped mounts here")
        pod_id = new_id()
        box = Sandbox(self._registry.state, pod_id)
        shared = box.namespaces(config)
        pod = Pod(pod_id, owner, config, chosen.name, False, time.time_ns(), shared.get("network"))
        meta = config.metadata
        name = f"{owner}/{meta.namespace}/{meta.name}/{meta.uid}/{meta.attempt}"
        # A caller whose deadline has passed comes again while what it gave up is still being undone: it waits for that.
        async with self._registry.name(name):
            try:
                self._registry.metadata.reserve_pod(pod, name, self._registry.boot)
            except NameTaken as taken:
                raise AlreadyExists(
                    f"the pod {meta.namespace}/{meta.name} (uid {meta.uid}, attempt {meta.attempt}) exists already, as {taken}"
                ) from None
            self._registry.making.add(pod_id)
            with span("run pod", pod=meta.uid or pod_id, sandbox=pod_id), self._monitors.spawner.starting_something():
                try:
                    await self._make(pod, box, chosen)
                except BaseException as error:
                    why = self._monitors.want_of_memory(pod_id)
                    await asyncio.shield(self.undo(pod))
                    if isinstance(error, OSError | CniError | MonitorError | MonitorGone):
                        raise PodError(f"cannot make the pod {meta.namespace}/{meta.name}: {error}{why}") from error
                    raise
                finally:
                    self._registry.making.discard(pod_id)
        self._registry.publish(EventKind.STARTED, pod.id, pod)
        log.info("pod runs", pod=meta.uid, sandbox=pod_id, name=meta.name, ips=",".join(pod.ips))
        return pod

    async def _make(self, pod: Pod, box: Sandbox, handler: Handler) -> None:
        client = await self._monitors.start(pod.id, handler, self._options(pod))
        box.make(pod.config, extras.of(pod.owner, pod.config.annotations).shm_bytes)
        targets, mapping = box.namespaces(pod.config), userns.of_pod(pod.config)
        await client.request(
            "namespaces",
            targets=targets,
            sysctls=dict(pod.config.linux.sysctls),
            hostname=sandbox.hostname(pod.config) if "uts" in targets else "",
            maps=mapping.maps() if mapping else {},
        )
        if pod.netns:
            await self._attachments.attach(pod)
        # a person's pod learns its own names with those of the others on its networks
        if pod.owner is Owner.PERSON:
            box.write_hosts(pod.config, [], extras.of(pod.owner, pod.config.annotations).hosts)
        elif pod.ips:
            box.write_hosts(pod.config, pod.ips)
        if self._has_first(pod):
            parent = self._registry.cgroup_parent(pod)
            bundle = pidspace.make_bundle(box, self._registry.state, pod.config, groups.cgroups_path(parent, pod.id))
            group = groups.of_container(parent, pod.id)
            created = await client.request("create", container=pod.id, bundle=str(bundle), cgroup=group)
            if pidspace.shared(pod.config):
                pidspace.pin(box, int(created["pid"]))
            await client.request("start", container=pod.id)
        pod.ready = True
        self._registry.metadata.save_pod(pod)
        self._registry.pods[pod.id] = pod

    async def renew(self, pod_id: str) -> Pod:
        """Makes the namespaces, the network and the monitor of a pod that was stopped anew: its containers can be renewed then.
        Nothing happens where it is ready. After an error it is stopped, as before. Raises NotFound, FailedPrecondition, PodError.
        """
        pod = self._registry.pod(pod_id)
        handler = self._handlers.get(pod.handler)
        if handler is None:
            raise FailedPrecondition(f"pod {pod.id} needs the runtime handler {pod.handler!r}, which is not configured any more")
        box = self._registry.sandbox(pod.id)
        async with self._registry.lock(pod.id):
            if pod.ready:
                return pod
            await self._stop(pod)
            for container in self._registry.members(pod):  # the runtime may know a run of which nobody has seen the end
                await self._delete_from_runtime(pod, container.id, container.cgroup)
            pod.freed, pod.netns = False, box.namespaces(pod.config).get("network")
            self._registry.metadata.renew_pod(pod.id, self._registry.boot)
            self._registry.making.add(pod.id)
            with span("renew pod", sandbox=pod.id), self._monitors.spawner.starting_something():
                try:
                    await self._make(pod, box, handler)
                except BaseException as error:
                    why = self._monitors.want_of_memory(pod.id)
                    with contextlib.suppress(PodError):
                        await asyncio.shield(self._stop(pod))
                    if isinstance(error, OSError | CniError | MonitorError | MonitorGone):
                        raise PodError(f"cannot make the pod {pod.config.metadata.name} anew: {error}{why}") from error
                    raise
                finally:
                    self._registry.making.discard(pod.id)
        self._registry.publish(EventKind.STARTED, pod.id, pod)
        return pod

    async def undo(self, pod: Pod) -> None:
        """Takes away all of a pod that could not be made, or was half-made when a daemon died."""
        await self._monitors.stop(pod.id)
        try:
            await self._attachments.detach(pod)
        except CniError as error:
            log.warning("the pod's network cannot be undone", sandbox=pod.id, error=str(error))
        await asyncio.to_thread(self._registry.sandbox(pod.id).remove)
        self._registry.remove_cgroup(pod)
        self._registry.pods.pop(pod.id, None)
        self._registry.metadata.remove_pod(pod.id)

    async def update_resources(
        self, pod_id: str, overhead: LinuxContainerResources | None, resources: LinuxContainerResources | None
    ) -> None:
        """Writes down what a pod's own limits are now. The pod's cgroup is of whoever made it, who has changed it (KEP-1287).

        Raises NotFound, FailedPrecondition.
        """
        pod = self._registry.pod(pod_id)
        async with self._registry.lock(pod.id):
            if not pod.ready:
                raise FailedPrecondition(f"pod {pod.id} is not ready")
            if overhead is not None:
                pod.config.linux.overhead.CopyFrom(overhead)
            if resources is not None:
                pod.config.linux.resources.CopyFrom(resources)
            self._registry.metadata.save_pod(pod)

    async def stop(self, pod_id: str) -> None:
        """Ends a pod's containers and frees its network, namespaces and monitor; its records stay. Idempotent.

        Nothing happens for a pod that does not exist. Raises PodError where something cannot be freed; call it again then.
        """
        try:
            pod = self._registry.pod(pod_id)
        except NotFound:
            return
        async with self._registry.lock(pod.id):
            with span("stop pod", pod=pod.config.metadata.uid, sandbox=pod.id):
                await self._stop(pod)

    async def _stop(self, pod: Pod) -> None:
        if pod.freed:
            return
        was_ready, pod.ready = pod.ready, False
        self._registry.metadata.save_pod(pod)
        members = self._registry.members(pod)
        await self._monitors.stop(pod.id)
        self._containers.end_sessions(pod.id)
        if any(container.state == ContainerState.RUNNING for container in members):  # it was dead, or had to be killed
            await self._end_without_monitor(pod)
        try:
            await self._attachments.detach(pod)
        except CniError as error:
            raise PodError(f"the network of pod {pod.id} cannot be freed: {error}") from error
        for container in members:
            self._containers.unmount(container)
        try:
            await asyncio.to_thread(self._registry.sandbox(pod.id).release)
        except OSError as error:
            raise PodError(f"the namespaces of pod {pod.id} cannot be freed: {error}") from error
        self._registry.remove_cgroup(pod)
        pod.freed = True
        if was_ready:
            self._registry.publish(EventKind.STOPPED, pod.id, pod)
            log.info("pod stopped", pod=pod.config.metadata.uid, sandbox=pod.id)

    async def remove(self, pod_id: str) -> None:
        """Stops a pod and removes it with its containers. Nothing happens for a pod that does not exist."""
        try:
            pod = self._registry.pod(pod_id)
        except NotFound:
            return
        async with self._registry.lock(pod.id):
            await self._stop(pod)
            for container in self._registry.members(pod):
                await self._containers.discard(container)
            await asyncio.to_thread(self._registry.sandbox(pod.id).remove)
            self._registry.metadata.remove_pod(pod.id)
            self._registry.pods.pop(pod.id, None)
        self._registry.forget_lock(pod.id)
        self._registry.publish(EventKind.DELETED, pod.id, pod)

    async def bury(self, pod: Pod) -> None:
        """Ends a pod whose monitor has died, and reports it dead; its network stays until it is stopped."""
        log.error("the pod's monitor died: ending the pod", pod=pod.config.metadata.uid, sandbox=pod.id)
        was_ready, pod.ready = pod.ready, False
        self._registry.metadata.save_pod(pod)
        await self._end_without_monitor(pod)
        await self._monitors.stop(pod.id)
        if was_ready:
            self._registry.publish(EventKind.STOPPED, pod.id, pod)

    async def _end_without_monitor(self, pod: Pod) -> None:
        for container in self._registry.members(pod):
            await self._delete_from_runtime(pod, container.id, container.cgroup)
            if container.state == ContainerState.RUNNING:
                ended = record.read(str(self._registry.folder(container)))
                if ended and ended["boot_id"] == self._registry.boot:
                    self._containers.apply_exit(container, ended)
                else:
                    why = self._monitors.want_of_memory(pod.id)
                    self._containers.note_exit(
                        container, 128 + _SIGKILL, "Error", f"its pod's monitor died, and it was killed with it{why}"
                    )
        if self._has_first(pod):
            await self._delete_from_runtime(pod, pod.id, groups.of_container(self._registry.cgroup_parent(pod), pod.id))

    async def _delete_from_runtime(self, pod: Pod, container_id: str, cgroup: str) -> None:
        """Ends a container by its cgroup and the runtime's command, where there is no monitor to do it."""
        await asyncio.to_thread(cgroups.open_cgroup(cgroup).kill)
        handler = self._handlers.get(pod.handler)
        if handler is None:
            return
        process = await asyncio.create_subprocess_exec(
            handler.path, *handler.args, "--root", handler.root, *self._options(pod), "delete", "--force", container_id,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, trouble = await process.communicate()
        if process.returncode and b"does not exist" not in trouble:
            log.warning("the runtime cannot delete a container", container=container_id, error=trouble.decode(errors="replace"))

    def _options(self, pod: Pod) -> list[str]:
        """The runtime's options for a pod."""
        return ["--systemd-cgroup"] if groups.by_systemd(self._registry.cgroup_parent(pod)) else []

    def _has_first(self, pod: Pod) -> bool:
        """Whether a container with the pod's ID comes before all others: it holds the shared PID namespace, or the sandbox."""
        handler = self._handlers.get(pod.handler)
        return pidspace.shared(pod.config) or bool(handler and handler.sandbox)

    def lose_first(self, pod: Pod | None) -> None:
        """A pod's first process has ended, and all that it held has died with it."""
        if pod and pod.ready:
            pod.ready = False
            self._registry.metadata.save_pod(pod)
            log.error("the process that holds the pod's PID namespace, or its sandbox, has ended", sandbox=pod.id)
            self._registry.publish(EventKind.STOPPED, pod.id, pod)


def _check(config: PodSandboxConfig) -> None:
    if not config.metadata.name:
        raise InvalidArgument("a pod needs a name (metadata.name)")
    if len(os.fsencode(config.hostname)) > _HOSTNAME_BYTES:
        raise InvalidArgument(f"host name {config.hostname!r}: {_HOSTNAME_BYTES} characters at most")
    if config.log_directory and not config.log_directory.startswith("/"):
        raise InvalidArgument(f"log_directory {config.log_directory!r}: must be an absolute path")
    dns = config.dns_config
    for text in (config.hostname, config.log_directory, *dns.servers, *dns.searches, *dns.options):
        if not text.isprintable() or (" " in text and text != config.log_directory):
            raise InvalidArgument(f"{text!r}: a name here has no blanks and no control characters: it would be lines of its own")
    userns.of_pod(config)
    parent = config.linux.cgroup_parent
    if parent and ".." in parent.split("/"):
        raise InvalidArgument(f"cgroup_parent {parent!r}: must not have `..`")
    if parent and not parent.startswith("/") and not groups.by_systemd(parent):
        raise InvalidArgument(f"cgroup_parent {parent!r}: must be an absolute path like /kubepods/pod1, or a slice of systemd's")
    try:
        groups.folder(parent)
    except ValueError as error:
        raise InvalidArgument(f"cgroup_parent {parent!r}: {error}") from None
    sandbox.check_sysctls(config)
    bandwidth(config)

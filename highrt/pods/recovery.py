"""After a restart of the daemon or of the machine: finding pods again, and undoing what was left half-made."""

import asyncio
import json
import time
from typing import Any

from highrt.cni.errors import CniError
from highrt.cni.network import Attachment, Network
from highrt.monitor import record
from highrt.pods import spec
from highrt.pods.attachments import attachment
from highrt.pods.containers import Containers
from highrt.pods.model import (
    Container,
    ContainerState,
    Pod,
)
from highrt.pods.monitors import Monitors
from highrt.pods.registry import Registry
from highrt.pods.sandboxes import Sandboxes
from strata.telemetry import logs

log = logs.get("highrt.pods")

_UNKNOWN_CODE = 255
RETRY_SECONDS = 30.0


class Recovery:
    """Brings what is known in line with what there is."""

    def __init__(
        self, registry: Registry, monitors: Monitors, network: Network, containers: Containers, sandboxes: Sandboxes
    ) -> None:
        self._registry, self._monitors, self._network = registry, monitors, network
        self._containers, self._sandboxes = containers, sandboxes

    async def recover(self, pod: Pod, complete: bool, boot: str) -> None:
        members = self._registry.members(pod)
        if not complete:
            log.warning("undoing a pod that was half-made", sandbox=pod.id)
            for container in members:
                await self._containers.discard(container)
            await self._sandboxes.undo(pod)
            return
        if boot != self._registry.boot:
            await self._after_reboot(pod, members)
            return
        # A pod that is not ready may have been killed in the middle of its stop, with containers that still run.
        wanted = pod.ready or any(container.state == ContainerState.RUNNING for container in members)
        known = await self._monitors.find(pod.id) if wanted else None
        if known:
            self._learn(pod, members, known)
        elif wanted:
            await self._sandboxes.bury(pod)
        for container in members:
            if container.state == ContainerState.CREATED:
                await self._check_created(container)

    async def _check_created(self, container: Container) -> None:
        """Removes one that was half-made; of others, config.json tells what is not written down before their start."""
        file = self._registry.folder(container) / "config.json"
        if file.exists():
            container.user = spec.user_of(json.loads(file.read_text()))
        else:
            log.warning("removing a container that was half-made", container=container.id)
            await self._containers.discard(container)

    def _learn(self, pod: Pod, members: list[Container], known: dict[str, Any]) -> None:
        """Takes over what happened while this daemon was not there."""
        states = {each["container"]: each for each in known["containers"]}
        if states.get(pod.id, {}).get("exit"):
            self._sandboxes.lose_first(pod)
        for container in members:
            found = states.get(container.id)
            if container.state == ContainerState.EXITED:
                continue
            if found and found["state"] == "running" and container.state == ContainerState.CREATED:
                container.state, container.pid, container.started_at_ns = ContainerState.RUNNING, found["pid"], time.time_ns()
                self._registry.metadata.save_container(container)
            ended = (found or {}).get("exit") or record.read(str(self._registry.folder(container)))
            if ended:
                self._containers.apply_exit(container, ended)
            elif container.state == ContainerState.RUNNING and not found:
                self._containers.note_exit(container, _UNKNOWN_CODE, "Unknown", "its monitor does not know it")

    async def _after_reboot(self, pod: Pod, members: list[Container]) -> None:
        """Nothing runs any more: what did has exited, and the pod's addresses go back."""
        for container in members:
            if container.state == ContainerState.RUNNING:
                ended = record.read(str(self._registry.folder(container)))
                if ended:
                    self._containers.apply_exit(container, ended)
                else:
                    self._containers.note_exit(container, _UNKNOWN_CODE, "Unknown", "the machine was started anew")
        pod.ready, pod.netns = False, None
        try:
            await self._network.delete(attachment(pod))
        except CniError as error:
            log.warning("an address is not freed yet", sandbox=pod.id, error=str(error))
        self._registry.metadata.save_pod(pod)

    async def detach_later(self) -> None:
        """Repeats the DELs that have failed until they succeed: of pods that are not ready, of which nobody may ask again, and of
        those that are not there any more. Never returns."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            for pod_id in self._network.attached():
                await self._free(pod_id)

    async def _free(self, pod_id: str) -> None:
        """A DEL for what a pod that is not ready, or not there any more, is attached to. What fails is told in the log."""
        async with self._registry.lock(pod_id):
            pod = self._registry.pods.get(pod_id)
            if pod_id in self._registry.making or (pod and pod.ready):
                return
            try:
                await self._network.delete(attachment(pod) if pod else Attachment(pod_id, ""))
                log.info("an address that was not freed before is free", sandbox=pod_id)
            except CniError as error:
                log.warning("an address is not freed yet", sandbox=pod_id, error=str(error))
        if pod_id not in self._registry.pods:
            self._registry.forget_lock(pod_id)

    async def remove_strangers(self, late: set[str]) -> None:
        """Folders, monitors and attachments that no row names any more. late: pods that are still being recovered."""
        known = {*self._registry.pods, *late}
        for name in self._monitors.strangers(known):
            log.warning("ending a monitor of a pod that is not known", sandbox=name)
            await self._monitors.stop(name)
        for folder in (self._registry.state / "pods").iterdir():
            if folder.name not in known:
                await asyncio.to_thread(self._registry.sandbox(folder.name).remove)
        for pod_id in self._network.attached():
            if pod_id not in known:
                await self._free(pod_id)

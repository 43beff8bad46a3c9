"""The container runtime, as CRI v1 shows it: each call with a deadline, each failure as one exception.

What the kubelet needs to find its containers again after a restart travels in CRI labels and annotations, by the names that
every kubelet uses, so that crictl and monitoring read them too.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from strata.protocols import cri_pb2 as cri
from strata.protocols import grpc
from strata.protocols.cri_grpc import ImageServiceStub, RuntimeServiceStub
from strata.telemetry.rpc import trace_channel

POD_NAME, POD_NAMESPACE, POD_UID = "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid"
CONTAINER_NAME = "io.kubernetes.container.name"
CONTAINER_HASH, RESTART_COUNT = "io.kubernetes.container.hash", "io.kubernetes.container.restartCount"
TERMINATION_PATH = "io.kubernetes.container.terminationMessagePath"
TERMINATION_POLICY = "io.kubernetes.container.terminationMessagePolicy"
GRACE_PERIOD = "io.kubernetes.pod.terminationGracePeriod"

DEADLINE_SECONDS = 120.0
"""For calls that change something: a plugin of the network or a slow disk may take this long."""
READ_SECONDS = 15.0


class RuntimeCallError(Exception):
    """A CRI call failed. message: the runtime's own words; not_found: it does not know the thing."""

    def __init__(self, call: str, message: str, code: Status = Status.UNKNOWN) -> None:
        super().__init__(message)
        self.call, self.message, self.code = call, message, code

    @property
    def not_found(self) -> bool:
        return self.code is Status.NOT_FOUND

    @property
    def unimplemented(self) -> bool:
        return self.code is Status.UNIMPLEMENTED


class RuntimeUnavailable(RuntimeCallError):
    """Nobody answers on the runtime's socket, or the deadline passed."""


@dataclass
class PodState:
    """What the runtime has of one pod: sandboxes and containers, the newest first."""

    sandboxes: list[Any] = field(default_factory=list)  # cri.PodSandboxStatus
    containers: list["ContainerState"] = field(default_factory=list)

    @property
    def sandbox(self) -> Any | None:
        """The newest sandbox, ready or not."""
        return self.sandboxes[0] if self.sandboxes else None

    @property
    def ready_sandbox(self) -> Any | None:
        newest = self.sandbox
        return newest if newest is not None and newest.state == cri.SANDBOX_READY else None

    def of(self, name: str) -> list["ContainerState"]:
        """The containers of that name, the newest first."""
        return [c for c in self.containers if c.name == name]

    def latest(self, name: str) -> "ContainerState | None":
        return next((c for c in self.containers if c.name == name), None)

    @property
    def running(self) -> list["ContainerState"]:
        return [c for c in self.containers if c.running]


@dataclass
class ContainerState:
    """A container as CRI's ContainerStatus tells it, and the sandbox it belongs to."""

    status: Any  # cri.ContainerStatus
    sandbox_id: str

    @property
    def id(self) -> str:
        return str(self.status.id)

    @property
    def name(self) -> str:
        return str(self.status.metadata.name)

    @property
    def running(self) -> bool:
        return bool(self.status.state == cri.CONTAINER_RUNNING)

    @property
    def exited(self) -> bool:
        return bool(self.status.state == cri.CONTAINER_EXITED)

    @property
    def restarts(self) -> int:
        return int(self.status.annotations.get(RESTART_COUNT, "") or self.status.metadata.attempt)

    @property
    def hash(self) -> str:
        return str(self.status.annotations.get(CONTAINER_HASH, ""))

    @property
    def finished(self) -> float:
        """Seconds since the epoch."""
        return float(self.status.finished_at) / 1e9

    @property
    def started(self) -> float:
        return float(self.status.started_at) / 1e9


class Runtime:
    """A runtime behind a CRI endpoint. Close it with `close`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.name = "unknown"
        self.version = ""
        self._channel = grpc.channel(endpoint)
        trace_channel(self._channel)
        self._runtime = RuntimeServiceStub(self._channel)
        self._images = ImageServiceStub(self._channel)
        # An exited container's status never changes: it need not be asked for again.
        self._exited: dict[str, ContainerState] = {}

    def close(self) -> None:
        self._channel.close()

    async def call(self, method: str, request: Any, *, seconds: float = READ_SECONDS) -> Any:
        """A unary CRI call by its name. Raises RuntimeCallError; RuntimeUnavailable where nobody answers in time."""
        stub = getattr(self._runtime, method, None) or getattr(self._images, method)
        try:
            return await stub(request, timeout=seconds)
        except GRPCError as error:
            # A status is the runtime's own word, UNAVAILABLE too (a registry that does not answer).
            raise RuntimeCallError(method, error.message or error.status.name, error.status) from error
        except (OSError, StreamTerminatedError) as error:
            raise RuntimeUnavailable(method, f"{method} on {self.endpoint}: {error}", Status.UNAVAILABLE) from error
        except TimeoutError as error:
            raise RuntimeUnavailable(method, f"{method}: no answer within {seconds} s", Status.DEADLINE_EXCEEDED) from error

    async def identify(self) -> None:
        """Asks for the runtime's name and version."""
        answer = await self.call("Version", cri.VersionRequest(version="v1"))
        self.name, self.version = answer.runtime_name, answer.runtime_version

    async def conditions(self) -> dict[str, Any]:
        """The runtime's conditions (RuntimeReady, NetworkReady) by type."""
        answer = await self.call("Status", cri.StatusRequest())
        return {c.type: c for c in answer.status.conditions}

    async def pod_uids(self) -> dict[str, dict[str, int]]:
        """For each pod's UID the state of each of its sandboxes and containers, by ID."""
        sandboxes, containers = await asyncio.gather(
            self.call("ListPodSandbox", cri.ListPodSandboxRequest()), self.call("ListContainers", cri.ListContainersRequest())
        )
        found: dict[str, dict[str, int]] = {}
        for sandbox in sandboxes.items:
            found.setdefault(sandbox.metadata.uid, {})[sandbox.id] = sandbox.state
        for container in containers.containers:
            uid = container.labels.get(POD_UID)
            if uid:
                found.setdefault(uid, {})[container.id] = 10 + container.state
        alive = {c.id for c in containers.containers}
        for gone in self._exited.keys() - alive:
            del self._exited[gone]
        return found

    async def pod_state(self, uid: str) -> PodState:
        """All that the runtime has of a pod."""
        labels = {POD_UID: uid}
        sandboxes, containers = await asyncio.gather(
            self.call("ListPodSandbox", cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(label_selector=labels))),
            self.call("ListContainers", cri.ListContainersRequest(filter=cri.ContainerFilter(label_selector=labels))),
        )
        states = await asyncio.gather(
            *(self._sandbox_status(s.id) for s in sandboxes.items),
            *(self._container_state(c.id, c.pod_sandbox_id) for c in containers.containers),
        )
        found_sandboxes = [s for s in states[: len(sandboxes.items)] if s is not None]
        found = [c for c in states[len(sandboxes.items) :] if isinstance(c, ContainerState)]
        found_sandboxes.sort(key=lambda s: (s.metadata.attempt, s.created_at), reverse=True)
        found.sort(key=lambda c: (c.restarts, c.status.created_at), reverse=True)
        return PodState(found_sandboxes, found)

    async def _sandbox_status(self, sandbox_id: str) -> Any | None:
        try:
            answer = await self.call("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id))
        except RuntimeUnavailable:
            raise
        except RuntimeCallError as error:
            if error.not_found:
                return None
            raise
        return answer.status

    async def _container_state(self, container_id: str, sandbox_id: str) -> ContainerState | None:
        if container_id in self._exited:
            return self._exited[container_id]
        try:
            answer = await self.call("ContainerStatus", cri.ContainerStatusRequest(container_id=container_id))
        except RuntimeUnavailable:
            raise
        except RuntimeCallError as error:
            if error.not_found:
                return None
            raise
        state = ContainerState(answer.status, sandbox_id)
        if state.exited and sandbox_id:
            self._exited[container_id] = state
        return state

    async def is_running(self, container_id: str) -> bool:
        """Whether a container runs now; one that is gone does not."""
        state = await self._container_state(container_id, "")
        return state is not None and state.running

    async def stop_container(self, container_id: str, grace_seconds: int) -> None:
        """Stops a container: SIGTERM (or the image's signal), and SIGKILL after the grace period."""
        await self._ending(
            "StopContainer",
            cri.StopContainerRequest(container_id=container_id, timeout=max(grace_seconds, 0)),
            seconds=DEADLINE_SECONDS + grace_seconds,
        )

    async def remove_container(self, container_id: str) -> None:
        await self._ending("RemoveContainer", cri.RemoveContainerRequest(container_id=container_id), seconds=DEADLINE_SECONDS)

    async def stop_sandbox(self, sandbox_id: str) -> None:
        await self._ending("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox_id), seconds=DEADLINE_SECONDS)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        await self._ending("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id), seconds=DEADLINE_SECONDS)

    async def _ending(self, method: str, request: Any, *, seconds: float) -> None:
        """What is gone already needs no stopping."""
        try:
            await self.call(method, request, seconds=seconds)
        except RuntimeUnavailable:
            raise
        except RuntimeCallError as error:
            if not error.not_found:
                raise

    async def exec_sync(self, container_id: str, command: list[str], seconds: float) -> tuple[int, bytes]:
        """Runs a command in a container; its exit code and output. Raises RuntimeCallError where that fails or takes too long."""
        answer = await self.call(
            "ExecSync",
            cri.ExecSyncRequest(container_id=container_id, cmd=command, timeout=max(int(seconds), 1)),
            seconds=seconds + 2,
        )
        return int(answer.exit_code), bytes(answer.stdout + answer.stderr)

    async def events(self) -> AsyncIterator[Any]:
        """The stream of container events. Raises RuntimeCallError where the runtime has none or it ends."""
        try:
            async with self._runtime.GetContainerEvents.open() as stream:
                await stream.send_message(cri.GetEventsRequest(), end=True)
                async for event in stream:
                    yield event
        except GRPCError as error:
            raise RuntimeCallError("GetContainerEvents", error.message or error.status.name, error.status) from error
        except (OSError, StreamTerminatedError) as error:
            raise RuntimeUnavailable("GetContainerEvents", str(error), Status.UNAVAILABLE) from error

"""CRI's RuntimeService: pods, containers, and their streams, for a kubelet."""

import json
import os
import socket
import time
from collections.abc import AsyncGenerator
from importlib.metadata import version
from ipaddress import ip_network

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.cni.errors import CniError
from highrt.cri import info, messages, metrics, stats
from highrt.cri.calls import require, streaming, unary
from highrt.pods.errors import FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, ContainerState, Owner, Pod, Stdio
from highrt.streaming.commands import AttachedContainer, ExecutedCommand
from highrt.streaming.relay import Running
from highrt.streaming.server import Command, Forward, StreamingServer
from strata.protocols import cri_pb2 as cri
from strata.protocols.cri_grpc import RuntimeServiceBase
from strata.telemetry import logs

log = logs.get("highrt.cri")

_CHUNK = 100
_EVENTS = {
    "created": cri.CONTAINER_CREATED_EVENT,
    "started": cri.CONTAINER_STARTED_EVENT,
    "stopped": cri.CONTAINER_STOPPED_EVENT,
    "deleted": cri.CONTAINER_DELETED_EVENT,
}


class CriRuntime(RuntimeServiceBase):
    """pods: the daemon's core. streams: where exec, attach and port-forward are served. cgroup_driver: what kubelets are told to
    use, cgroupfs or systemd."""

    def __init__(self, pods: PodManager, streams: StreamingServer, cgroup_driver: str) -> None:
        self._pods = pods
        self._cgroup_driver = cri.SYSTEMD if cgroup_driver == "systemd" else cri.CGROUPFS
        self._streams = streams
        self._rates = stats.Rates()
        # A kubelet lists all containers every second: what they look like in a list is made once.
        self._items: dict[str, cri.Container] = {}

    # what a kubelet may see

    def _pod(self, pod_id: str) -> Pod:
        require(pod_id, "pod_sandbox_id is empty: name a pod sandbox")
        pod = self._pods.pod(pod_id)
        if pod.owner is not Owner.KUBELET:
            raise NotFound(f"pod sandbox {pod_id} does not exist")
        return pod

    def _container(self, container_id: str) -> Container:
        require(container_id, "container_id is empty: name a container")
        container = self._pods.container(container_id)
        if container.owner is not Owner.KUBELET:
            raise NotFound(f"container {container_id} does not exist")
        return container

    def _containers_of(self, pod: Pod) -> list[Container]:
        return [container for container in self._pods.containers(Owner.KUBELET) if container.pod_id == pod.id]

    # the runtime itself

    @unary
    async def Version(self, request: cri.VersionRequest) -> cri.VersionResponse:
        return cri.VersionResponse(
            version="0.1.0", runtime_name="highrt", runtime_version=version("strata"), runtime_api_version="v1"
        )

    @unary
    async def Status(self, request: cri.StatusRequest) -> cri.StatusResponse:
        ready, message = await self._pods.network_ready()
        network = cri.RuntimeCondition(type="NetworkReady", status=ready)
        if not ready:
            network.reason, network.message = "NetworkPluginNotReady", message
        handlers = await self._pods.handlers()
        default = next(iter(handlers))
        response = cri.StatusResponse(
            status=cri.RuntimeStatus(conditions=[cri.RuntimeCondition(type="RuntimeReady", status=True), network]),
            runtime_handlers=[messages.handler(name, found) for name, found in {"": handlers[default], **handlers}.items()],
            features=cri.RuntimeFeatures(supplemental_groups_policy=True, user_namespaces_host_network=True, mount_options=True),
        )
        if request.verbose:
            config = {"pid": os.getpid(), "handlers": list(handlers), "stateDir": str(self._pods.state)}
            response.info["config"] = json.dumps(config)
        return response

    @unary
    async def RuntimeConfig(self, request: cri.RuntimeConfigRequest) -> cri.RuntimeConfigResponse:
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=self._cgroup_driver))

    @unary
    async def UpdateRuntimeConfig(self, request: cri.UpdateRuntimeConfigRequest) -> cri.UpdateRuntimeConfigResponse:
        cidrs = request.runtime_config.network_config.pod_cidr
        try:
            found = [str(ip_network(cidr.strip())) for cidr in cidrs.split(",") if cidr.strip()]
        except ValueError as error:
            raise InvalidArgument(f"UpdateRuntimeConfig: pod_cidr {cidrs!r}: {error}") from None
        try:
            self._pods.network.set_pod_cidrs(found)
        except (CniError, OSError) as error:
            raise PodError(f"UpdateRuntimeConfig: {error}") from error
        return cri.UpdateRuntimeConfigResponse()

    # pods

    @unary
    async def RunPodSandbox(self, request: cri.RunPodSandboxRequest) -> cri.RunPodSandboxResponse:
        require(request.HasField("config"), "RunPodSandbox: config is missing")
        metadata = request.config.metadata
        for name in ("name", "namespace", "uid"):
            require(getattr(metadata, name), f"RunPodSandbox: config.metadata.{name} is empty")
        pod = await self._pods.run_pod(request.config, handler=request.runtime_handler, owner=Owner.KUBELET)
        return cri.RunPodSandboxResponse(pod_sandbox_id=pod.id)

    @unary
    async def StopPodSandbox(self, request: cri.StopPodSandboxRequest) -> cri.StopPodSandboxResponse:
        require(request.pod_sandbox_id, "StopPodSandbox: pod_sandbox_id is empty")
        try:
            pod = self._pod(request.pod_sandbox_id)
        except NotFound:
            return cri.StopPodSandboxResponse()
        await self._pods.stop_pod(pod.id)
        return cri.StopPodSandboxResponse()

    @unary
    async def RemovePodSandbox(self, request: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
        require(request.pod_sandbox_id, "RemovePodSandbox: pod_sandbox_id is empty")
        try:
            pod = self._pod(request.pod_sandbox_id)
        except NotFound:
            return cri.RemovePodSandboxResponse()
        await self._pods.remove_pod(pod.id)
        return cri.RemovePodSandboxResponse()

    @unary
    async def PodSandboxStatus(self, request: cri.PodSandboxStatusRequest) -> cri.PodSandboxStatusResponse:
        pod = self._pod(request.pod_sandbox_id)
        response = cri.PodSandboxStatusResponse(
            status=messages.pod_status(pod),
            containers_statuses=[messages.container_status(container) for container in self._containers_of(pod)],
            timestamp=time.time_ns(),
        )
        if request.verbose:
            namespaces, result = self._pods.pod_namespaces(pod.id), self._pods.network.result(pod.id)
            response.info.update(info.of_pod(pod, self._containers_of(pod), namespaces, result))
        return response

    @unary
    async def ListPodSandbox(self, request: cri.ListPodSandboxRequest) -> cri.ListPodSandboxResponse:
        return cri.ListPodSandboxResponse(items=self._list_pods(request.filter))

    @streaming
    async def StreamPodSandboxes(
        self, request: cri.StreamPodSandboxesRequest
    ) -> AsyncGenerator[cri.StreamPodSandboxesResponse, None]:
        items = self._list_pods(request.filter)
        for start in range(0, len(items), _CHUNK):
            yield cri.StreamPodSandboxesResponse(pod_sandboxes=items[start : start + _CHUNK])

    def _list_pods(self, wanted: cri.PodSandboxFilter) -> list[cri.PodSandbox]:
        pods = self._pods.pods(Owner.KUBELET)
        return [messages.pod_item(pod) for pod in pods if messages.pod_matches(pod, wanted)]

    @unary
    async def UpdatePodSandboxResources(
        self, request: cri.UpdatePodSandboxResourcesRequest
    ) -> cri.UpdatePodSandboxResourcesResponse:
        overhead = request.overhead if request.HasField("overhead") else None
        resources = request.resources if request.HasField("resources") else None
        await self._pods.update_pod_resources(self._pod(request.pod_sandbox_id).id, overhead, resources)
        return cri.UpdatePodSandboxResourcesResponse()

    # containers

    @unary
    async def CreateContainer(self, request: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
        pod = self._pod(request.pod_sandbox_id)
        require(request.HasField("config"), "CreateContainer: config is missing")
        require(request.config.metadata.name, "CreateContainer: config.metadata.name is empty")
        require(request.config.image.image, "CreateContainer: config.image.image is empty: name an image that is here")
        sandbox = request.sandbox_config if request.HasField("sandbox_config") else pod.config
        container = await self._pods.create_container(pod.id, request.config, sandbox)
        return cri.CreateContainerResponse(container_id=container.id)

    @unary
    async def StartContainer(self, request: cri.StartContainerRequest) -> cri.StartContainerResponse:
        await self._pods.start_container(self._container(request.container_id).id)
        return cri.StartContainerResponse()

    @unary
    async def StopContainer(self, request: cri.StopContainerRequest) -> cri.StopContainerResponse:
        require(request.container_id, "StopContainer: container_id is empty")
        try:
            container = self._container(request.container_id)
        except NotFound:
            return cri.StopContainerResponse()
        await self._pods.stop_container(container.id, max(0, request.timeout))
        return cri.StopContainerResponse()

    @unary
    async def RemoveContainer(self, request: cri.RemoveContainerRequest) -> cri.RemoveContainerResponse:
        require(request.container_id, "RemoveContainer: container_id is empty")
        try:
            container = self._container(request.container_id)
        except NotFound:
            return cri.RemoveContainerResponse()
        await self._pods.remove_container(container.id)
        return cri.RemoveContainerResponse()

    @unary
    async def ContainerStatus(self, request: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse:
        container = self._container(request.container_id)
        response = cri.ContainerStatusResponse(status=messages.container_status(container))
        if request.verbose:
            spec = self._pods.container_spec(container.id)
            response.info.update(info.of_container(container, self._pods.pod(container.pod_id), spec))
        return response

    @unary
    async def ListContainers(self, request: cri.ListContainersRequest) -> cri.ListContainersResponse:
        return cri.ListContainersResponse(containers=self._list_containers(request.filter))

    @streaming
    async def StreamContainers(self, request: cri.StreamContainersRequest) -> AsyncGenerator[cri.StreamContainersResponse, None]:
        items = self._list_containers(request.filter)
        for start in range(0, len(items), _CHUNK):
            yield cri.StreamContainersResponse(containers=items[start : start + _CHUNK])

    def _list_containers(self, wanted: cri.ContainerFilter) -> list[cri.Container]:
        containers = self._pods.containers(Owner.KUBELET)
        if len(self._items) > len(containers):  # of those that were removed
            self._items = {container.id: self._item(container) for container in containers}
        return [self._item(container) for container in containers if messages.container_matches(container, wanted)]

    def _item(self, container: Container) -> cri.Container:
        item = self._items.get(container.id)
        if item is None or item.state != messages.STATES[container.state]:  # nothing else of it changes
            item = self._items[container.id] = messages.container_item(container)
        return item

    @unary
    async def UpdateContainerResources(
        self, request: cri.UpdateContainerResourcesRequest
    ) -> cri.UpdateContainerResourcesResponse:
        container = self._container(request.container_id)
        if request.HasField("linux"):
            await self._pods.update_resources(container.id, request.linux)
        return cri.UpdateContainerResourcesResponse()

    @unary
    async def ReopenContainerLog(self, request: cri.ReopenContainerLogRequest) -> cri.ReopenContainerLogResponse:
        container = self._container(request.container_id)
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is not running: it has no open log")
        await self._pods.reopen_log(container.id)
        return cri.ReopenContainerLogResponse()

    # streams

    @unary
    async def ExecSync(self, request: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
        container = self._running(request.container_id)
        require(request.cmd, "ExecSync: cmd is empty: name a command")
        timeout = max(0, request.timeout)  # 0 is no limit
        try:
            stdout, stderr, code = await self._pods.exec_sync(container.id, list(request.cmd), timeout)
        except TimeoutError as error:
            text = f"command {list(request.cmd)} timed out: timeout {request.timeout}s exceeded, context deadline exceeded"
            raise GRPCError(Status.DEADLINE_EXCEEDED, text) from error
        return cri.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=code)

    @unary
    async def Exec(self, request: cri.ExecRequest) -> cri.ExecResponse:
        container = self._running(request.container_id)
        require(request.cmd, "Exec: cmd is empty: name a command")
        _check_streams("Exec", request)

        async def start(stdio: Stdio) -> Running:
            session = await self._pods.exec(container.id, list(request.cmd), stdio, terminal=request.tty)
            return ExecutedCommand(session)

        command = Command(start, container.id, request.stdin, request.stdout, request.stderr, request.tty)
        return cri.ExecResponse(url=self._streams.url("exec", command))

    @unary
    async def Attach(self, request: cri.AttachRequest) -> cri.AttachResponse:
        container = self._running(request.container_id)
        _check_streams("Attach", request)

        async def start(stdio: Stdio) -> Running:
            return AttachedContainer(await self._pods.attach(container.id, stdio))

        # A terminal is what the container was created with, whatever the request says.
        command = Command(start, container.id, request.stdin, request.stdout, request.stderr, container.config.tty)
        return cri.AttachResponse(url=self._streams.url("attach", command))

    @unary
    async def PortForward(self, request: cri.PortForwardRequest) -> cri.PortForwardResponse:
        pod = self._pod(request.pod_sandbox_id)
        if not pod.ready:
            raise FailedPrecondition(f"pod sandbox {pod.id} is not ready: nothing can be forwarded into it")

        async def dial(port: int) -> socket.socket:
            return await self._pods.dial(pod.id, port)

        return cri.PortForwardResponse(url=self._streams.url("portforward", Forward(dial, pod.id)))

    def _running(self, container_id: str) -> Container:
        container = self._container(container_id)
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"container {container.id} is not running ({container.state.value})")
        return container

    # statistics

    @unary
    async def ContainerStats(self, request: cri.ContainerStatsRequest) -> cri.ContainerStatsResponse:
        return cri.ContainerStatsResponse(stats=await self._container_stats(self._container(request.container_id)))

    @unary
    async def ListContainerStats(self, request: cri.ListContainerStatsRequest) -> cri.ListContainerStatsResponse:
        return cri.ListContainerStatsResponse(stats=await self._list_container_stats(request.filter))

    @streaming
    async def StreamContainerStats(
        self, request: cri.StreamContainerStatsRequest
    ) -> AsyncGenerator[cri.StreamContainerStatsResponse, None]:
        found = await self._list_container_stats(request.filter)
        for start in range(0, len(found), _CHUNK):
            yield cri.StreamContainerStatsResponse(container_stats=found[start : start + _CHUNK])

    @unary
    async def PodSandboxStats(self, request: cri.PodSandboxStatsRequest) -> cri.PodSandboxStatsResponse:
        return cri.PodSandboxStatsResponse(stats=await self._pod_stats(self._pod(request.pod_sandbox_id)))

    @unary
    async def ListPodSandboxStats(self, request: cri.ListPodSandboxStatsRequest) -> cri.ListPodSandboxStatsResponse:
        return cri.ListPodSandboxStatsResponse(stats=await self._list_pod_stats(request.filter))

    @streaming
    async def StreamPodSandboxStats(
        self, request: cri.StreamPodSandboxStatsRequest
    ) -> AsyncGenerator[cri.StreamPodSandboxStatsResponse, None]:
        found = await self._list_pod_stats(request.filter)
        for start in range(0, len(found), _CHUNK):
            yield cri.StreamPodSandboxStatsResponse(pod_sandbox_stats=found[start : start + _CHUNK])

    async def _container_stats(self, container: Container) -> cri.ContainerStats:
        return stats.container(container, await self._pods.container_stats(container.id), self._rates)

    async def _pod_stats(self, pod: Pod) -> cri.PodSandboxStats:
        containers = {container.id: container for container in self._containers_of(pod)}
        return stats.pod(pod, await self._pods.pod_stats(pod.id), containers, self._rates)

    def _forget_rates(self) -> None:
        self._rates.keep([*(pod.id for pod in self._pods.pods()), *(each.id for each in self._pods.containers())])

    async def _list_container_stats(self, wanted: cri.ContainerStatsFilter) -> list[cri.ContainerStats]:
        self._forget_rates()
        filter_ = cri.ContainerFilter(id=wanted.id, pod_sandbox_id=wanted.pod_sandbox_id, label_selector=wanted.label_selector)
        found = []
        for container in self._pods.containers(Owner.KUBELET):
            if container.state is ContainerState.RUNNING and messages.container_matches(container, filter_):
                try:
                    found.append(await self._container_stats(container))
                except NotFound:  # removed meanwhile
                    continue
        return found

    async def _list_pod_stats(self, wanted: cri.PodSandboxStatsFilter) -> list[cri.PodSandboxStats]:
        self._forget_rates()
        filter_ = cri.PodSandboxFilter(id=wanted.id, label_selector=wanted.label_selector)
        found = []
        for pod in self._pods.pods(Owner.KUBELET):
            if pod.ready and messages.pod_matches(pod, filter_):
                try:
                    found.append(await self._pod_stats(pod))
                except NotFound:  # removed meanwhile
                    continue
        return found

    # metrics: the kubelet takes them from here only where its gate PodAndContainerStatsFromCRI is on

    @unary
    async def ListMetricDescriptors(self, request: cri.ListMetricDescriptorsRequest) -> cri.ListMetricDescriptorsResponse:
        return cri.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    @unary
    async def ListPodSandboxMetrics(self, request: cri.ListPodSandboxMetricsRequest) -> cri.ListPodSandboxMetricsResponse:
        return cri.ListPodSandboxMetricsResponse(pod_metrics=[found async for found in self._pod_metrics()])

    @streaming
    async def StreamPodSandboxMetrics(
        self, request: cri.StreamPodSandboxMetricsRequest
    ) -> AsyncGenerator[cri.StreamPodSandboxMetricsResponse, None]:
        async for found in self._pod_metrics():  # a pod is a hundred lines and more
            yield cri.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=[found])

    async def _pod_metrics(self) -> AsyncGenerator[cri.PodSandboxMetrics, None]:
        for pod in self._pods.pods(Owner.KUBELET):
            if not pod.ready:
                continue
            try:
                found = metrics.pod(pod, await self._pods.pod_interfaces(pod.id))
                for container in self._containers_of(pod):
                    if container.state is ContainerState.RUNNING:
                        used = await self._pods.container_details(container.id)
                        found.container_metrics.append(metrics.container(pod, container, used))
            except NotFound:  # removed meanwhile
                continue
            yield found

    @unary
    async def CheckpointContainer(self, request: cri.CheckpointContainerRequest) -> cri.CheckpointContainerResponse:
        raise _unimplemented("CheckpointContainer", "checkpoints are not supported")

    @unary
    async def CheckpointPod(self, request: cri.CheckpointPodRequest) -> cri.CheckpointPodResponse:
        raise _unimplemented("CheckpointPod", "checkpoints are not supported")

    @unary
    async def RestorePod(self, request: cri.RestorePodRequest) -> cri.RestorePodResponse:
        raise _unimplemented("RestorePod", "checkpoints are not supported")

    # events

    @streaming
    async def GetContainerEvents(self, request: cri.GetEventsRequest) -> AsyncGenerator[cri.ContainerEventResponse, None]:
        async for event in self._pods.events():
            if event.pod.owner is Owner.KUBELET:
                yield cri.ContainerEventResponse(
                    container_id=event.container_id,
                    container_event_type=_EVENTS[event.kind],
                    created_at=event.time_ns,
                    pod_sandbox_status=messages.pod_status(event.pod),
                    containers_statuses=[messages.container_status(item) for item in self._containers_of(event.pod)],
                )


def _check_streams(call: str, request: cri.ExecRequest | cri.AttachRequest) -> None:
    require(request.stdin or request.stdout or request.stderr, f"{call}: one of stdin, stdout and stderr must be true")
    require(not (request.tty and request.stderr), f"{call}: tty and stderr cannot both be true: a terminal has one output")


def _unimplemented(call: str, advice: str) -> GRPCError:
    return GRPCError(Status.UNIMPLEMENTED, f"{call} is not implemented: {advice}")

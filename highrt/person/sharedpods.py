"""Pods that a person makes for several containers (`highrt pod`), as podman has them: they share its network, its host name, its
IPC, and where it says so its processes.

Such a pod is no single container's: it stays when its containers end, until it is stopped. Nothing runs in it for its own sake.
"""

import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from highrt.person import flags
from highrt.person.events import Events
from highrt.person.names import NamesInUse
from highrt.person.networks import Networks
from highrt.pods.errors import FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, Owner, Pod
from strata.protocols import highrt_pb2 as api

NEW = "new:"
"""`--pod new:NAME` makes the pod with its first container."""

CONTAINER = "container:"
"""`--pid container:NAME` and the like mean another's namespace."""

_OF_THE_POD = {
    "network": "--network", "endpoints": "--network", "ports": "--publish", "hostname": "--hostname", "dns": "--dns",
    "hosts": "--add-host", "sysctls": "--sysctl", "shm_bytes": "--shm-size", "cgroup_parent": "--cgroup-parent",
}  # fmt: skip
"""Fields of a request that concern the pod, and the options that they come from."""


def check_sharing(request: api.CreateRequest) -> None:
    """Raises InvalidArgument where a container asks for another's namespaces, which are shared in a pod only."""
    asked = [("--network", endpoint.network) for endpoint in request.endpoints]
    asked += [
        ("--network", request.network),
        ("--ipc", request.ipc_mode),
        *([] if request.pod else [("--pid", request.pid_mode)]),
    ]
    for option, mode in asked:
        if mode.startswith(CONTAINER):
            raise InvalidArgument(
                f"{option} {mode}: only containers of a pod share namespaces: highrt pod create NAME, and --pod NAME for both"
            )


def check_member(request: api.CreateRequest) -> None:
    """Raises InvalidArgument where a container of a pod asks for what is the pod's."""
    for field, option in {**_OF_THE_POD, "handler": "--runtime"}.items():
        if getattr(request, field):
            raise InvalidArgument(f"{option} with --pod: that is the pod's; give it to highrt pod create")
    _check_ipc(request)


def _check_ipc(request: api.CreateRequest) -> None:
    if request.ipc_mode:
        raise InvalidArgument("--ipc with --pod: a pod's containers share its IPC")


def status(states: Collection[str]) -> str:
    """A pod's, from its containers' states, in podman's words."""
    if not states or {*states} == {"created"}:
        return "Created"
    if {*states} == {"paused"}:
        return "Paused"
    runs = sum(state in ("running", "paused") for state in states)
    return "Running" if runs == len(states) else "Degraded" if runs else "Exited"


class SharedPods:
    """Finds, makes and removes them. root: the daemon's."""

    def __init__(self, pods: PodManager, root: Path, networks: Networks, names: NamesInUse, events: Events) -> None:
        self._pods, self._root, self._networks, self._names, self._events = pods, root, networks, names, events

    def all(self) -> list[Pod]:
        """The first one that was made first."""
        return sorted(filter(flags.is_shared, self._pods.pods(Owner.PERSON)), key=lambda pod: pod.created_at_ns)

    def find(self, reference: str) -> Pod:
        """By its name, its ID, or the ID's unique beginning. Raises NotFound, InvalidArgument."""
        known = self.all()
        found = [pod for pod in known if pod.config.metadata.name == reference]
        found = found or [pod for pod in known if reference and pod.id.startswith(reference)]
        if not found:
            raise NotFound(f"there is no pod {reference} (highrt pod ls lists them, highrt pod create makes one)")
        if len(found) > 1:
            raise InvalidArgument(f"pod {reference!r} is ambiguous: {len(found)} begin with it")
        return found[0]

    def members(self, pod: Pod) -> list[Container]:
        """The containers of a pod."""
        return [item for item in self._pods.containers(pod.owner) if item.pod_id == pod.id]

    async def create(self, request: api.CreateRequest) -> tuple[Pod, Sequence[str]]:
        """Makes one; returns it with warnings for people. After an error nothing is left. Raises InvalidArgument, AlreadyExists,
        NotFound (a network), FailedPrecondition, PodError."""
        request.name = request.name or self._names.free()
        with self._names.making(request.name):
            network, chosen, warnings = await self._networks.wanted(request)
            uid = uuid.uuid4().hex
            config = flags.shared_pod_config(request, uid, flags.PersonFiles(self._root, uid), network, chosen)
            with self._networks.joining(chosen):
                pod = await self._pods.run_pod(config, handler=request.handler, owner=Owner.PERSON)
        self._networks.names.coming(pod)
        self.note(pod, "create")
        return pod, warnings

    @asynccontextmanager
    async def made_for(self, request: api.CreateRequest) -> AsyncIterator[tuple[Pod, list[str]]]:
        """A pod that is made with its first container, from what concerns the pod; the block makes the container. Where that
        fails there is no pod either. Raises as `create`."""
        _check_ipc(request)
        wanted = api.CreateRequest(
            name=request.pod.removeprefix(NEW), handler=request.handler, pid_mode="pod" if request.pid_mode == "pod" else ""
        )
        if not wanted.name:
            raise InvalidArgument("--pod new: without a name: write --pod new:NAME")
        for field in _OF_THE_POD:
            wanted.MergeFrom(api.CreateRequest(**{field: getattr(request, field)}))
        pod, warnings = await self.create(wanted)
        try:
            yield pod, [*warnings]
        except BaseException:
            with suppress(PodError):
                await self._pods.remove_pod(pod.id)
            raise

    async def start(self, pod: Pod) -> None:
        """Brings it back, where it was stopped. Raises PodError."""
        await self._pods.renew_pod(pod.id)
        self._networks.names.coming(pod)
        self.note(pod, "start")

    async def stop(self, pod: Pod) -> None:
        """Gives its network and its namespaces back. Its containers have ended. Raises PodError."""
        await self._pods.stop_pod(pod.id)
        self._networks.names.going(pod)
        self.note(pod, "stop")

    async def remove(self, pod: Pod) -> None:
        """Raises FailedPrecondition where it has containers, PodError."""
        if found := self.members(pod):
            names = ", ".join(sorted(item.config.metadata.name for item in found))
            raise FailedPrecondition(f"pod {pod.config.metadata.name} has containers, {names}: remove them, or use --force")
        await self._pods.remove_pod(pod.id)
        self._networks.names.going(pod)
        self.note(pod, "remove")

    def note(self, pod: Pod, action: str) -> None:
        """Has people hear of it."""
        self._events.note("pod", action, pod.id, **{**dict(pod.config.labels), "name": pod.config.metadata.name})

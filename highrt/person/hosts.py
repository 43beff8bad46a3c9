"""The names by which a person's containers know each other: lines in their /etc/hosts, kept as the networks are.

No name server: what reads names reads that file first (nsswitch.conf(5)), it is there while the daemon is not, and nothing of
the daemon's is in the way of a request. On the node's own network containers have their own names only, as on docker's default
bridge.
"""

from collections.abc import Iterable, Sequence

from highrt.cni.network import Interface
from highrt.person.flags import is_shared
from highrt.pods.attachments import networks_of
from highrt.pods.extras import NetworkChoice
from highrt.pods.manager import PodManager
from highrt.pods.model import Container, ContainerState, Owner, Pod
from highrt.pods.sandbox import Sandbox
from strata.telemetry import logs

log = logs.get("highrt.person")

_ID_CHARACTERS = 12


class Names:
    """Whose names are known. A container's are from just before its start until its end."""

    def __init__(self, pods: PodManager) -> None:
        self._pods = pods
        self._up: set[str] = set()

    def open(self) -> None:
        """Takes up what the last daemon left."""
        running = {item.pod_id for item in self._pods.containers(Owner.PERSON) if item.state is ContainerState.RUNNING}
        pods = self._pods.pods(Owner.PERSON)
        self._up = running | {pod.id for pod in pods if pod.ready and is_shared(pod)}
        for pod in pods:
            if pod.id in self._up:
                self.refresh(pod)

    def coming(self, pod: Pod) -> None:
        """It is about to start: it knows all others, and they know it."""
        self._up.add(pod.id)
        self.refresh(pod)

    def going(self, pod: Pod) -> None:
        """Something of it has ended: the container, or the pod. Nothing happens where it has started again meanwhile, or is for
        several containers, and stays without them."""
        starts = (ContainerState.CREATED, ContainerState.RUNNING)
        members = [item for item in self._pods.containers(Owner.PERSON) if item.pod_id == pod.id]
        stays = is_shared(pod) or any(item.state in starts for item in members)
        if pod.id in self._up and not (pod.ready and stays):
            self._up.discard(pod.id)
            self.refresh(pod)

    def refresh(self, pod: Pod, left: Iterable[str] = ()) -> None:
        """After a change of a pod: for it, and for all that are on its networks. left: networks that it was on before."""
        changed = {*left, *(choice.name for choice in networks_of(pod))} - {""}
        members = self._members(pod)
        for member in members:
            if member.pod.id != pod.id and not changed & member.others.keys():
                continue
            theirs = [
                line for network in member.others for other in members if other is not member
                for line in other.others.get(network, ())
            ]  # fmt: skip
            try:
                Sandbox(self._pods.state, member.pod.id).show_names([*member.own, *theirs])
            except OSError as error:
                log.warning("a container's /etc/hosts cannot be written", sandbox=member.pod.id, error=str(error))

    def _members(self, pod: Pod) -> "list[_Member]":
        """This pod, and all that are on networks with names: those that are up, in the order in which they were made."""
        containers: dict[str, list[Container]] = {}
        for item in self._pods.containers(Owner.PERSON):
            containers.setdefault(item.pod_id, []).append(item)
        found = []
        for each in self._pods.pods(Owner.PERSON):
            inside = containers.get(each.id, [])
            if each.id not in self._up or not each.ready or not (inside or is_shared(each)):
                continue
            choices = networks_of(each)
            if each.id == pod.id or any(choice.name for choice in choices):
                found.append(_Member(each, inside, choices, self._pods.network.interfaces(each.id)))
        return found


class _Member:
    """A pod, and the lines of /etc/hosts with its names: `own` for itself, `others` for those on each of its networks."""

    def __init__(
        self, pod: Pod, containers: Sequence[Container], choices: Sequence[NetworkChoice], interfaces: Sequence[Interface]
    ) -> None:  # fmt: skip
        self.pod = pod
        self.own: list[str] = []
        self.others: dict[str, list[str]] = {}
        addresses = {interface.name: interface.plain() for interface in interfaces}
        hostname = pod.config.hostname
        known = [text for item in containers for text in (item.config.metadata.name, item.id[:_ID_CHARACTERS])]
        if is_shared(pod):
            known.insert(0, pod.config.metadata.name)
        for choice in choices:
            mine = addresses.get(choice.interface, [])
            names = [*known, *choice.aliases] if choice.name else []
            self.own += _lines(mine, [hostname, *names])
            if choice.name:
                self.others[choice.name] = _lines(mine, [*names, hostname])


def _lines(addresses: Sequence[str], names: Iterable[str]) -> list[str]:
    """One for each address, each name once in it."""
    text = " ".join(dict.fromkeys(names))
    return [f"{address}\t{text}" for address in addresses]

"""What each node has and what runs on it, as far as the scheduler has to know.

A pod counts for its node from the moment the scheduler has chosen it (`assume`), not only when the API tells so: the next pod
has its turn before that.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from controlplane.scheduler import requests as asked

Object = dict[str, Any]


@dataclass
class PodInfo:
    """A pod on a node, with what was read from its spec once."""

    pod: Object
    requests: asked.Requests
    nonzero: asked.Requests
    ports: set[tuple[str, str, int]]

    @classmethod
    def of(cls, pod: Object) -> "PodInfo":
        spec = pod["spec"]
        return cls(pod, asked.of_pod(spec), asked.of_pod(spec, defaults=True), asked.host_ports(spec))


@dataclass
class NodeInfo:
    """A node, and the sums over its pods. node is None while only its pods are known."""

    name: str
    node: Object | None = None
    pods: dict[str, PodInfo] = field(default_factory=dict)
    requested: Counter[str] = field(default_factory=Counter)
    nonzero: Counter[str] = field(default_factory=Counter)
    allocatable: asked.Requests = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        return (self.node or {}).get("metadata", {}).get("labels") or {}

    @property
    def taints(self) -> list[dict[str, str]]:
        return (self.node or {}).get("spec", {}).get("taints") or []

    def set_node(self, node: Object) -> None:
        status = node.get("status") or {}
        self.node, self.allocatable = node, asked.amounts(status.get("allocatable") or status.get("capacity"))

    def add(self, info: PodInfo) -> None:
        self.remove(info.pod["metadata"]["uid"])
        self.pods[info.pod["metadata"]["uid"]] = info
        self.requested.update(info.requests)
        self.nonzero.update(info.nonzero)

    def remove(self, uid: str) -> None:
        if info := self.pods.pop(uid, None):
            self.requested.subtract(info.requests)
            self.nonzero.subtract(info.nonzero)


class Cache:
    def __init__(self) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self._node_of: dict[str, str] = {}
        self._assumed: set[str] = set()

    def nodes(self) -> list[NodeInfo]:
        """The nodes that are there."""
        return [info for info in self._nodes.values() if info.node is not None]

    def set_node(self, node: Object) -> None:
        self._info(node["metadata"]["name"]).set_node(node)

    def remove_node(self, name: str) -> None:
        if info := self._nodes.get(name):
            info.node = None
            self._tidy(info)

    def assume(self, info: PodInfo, node: str) -> None:
        """The pod was given this node, and the API does not know yet."""
        uid = info.pod["metadata"]["uid"]
        self._assumed.add(uid)
        self._put(info, uid, node)

    def forget(self, uid: str) -> None:
        """The binding failed: an assumed pod counts no more."""
        if uid in self._assumed:
            self.remove_pod(uid)

    def is_assumed(self, uid: str) -> bool:
        return uid in self._assumed

    def set_pod(self, pod: Object) -> None:
        """A pod as the API has it: it counts while it has a node and has not ended."""
        uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self.remove_pod(uid)
        elif node:
            self._assumed.discard(uid)
            known = self._nodes[node].pods.get(uid) if self._node_of.get(uid) == node else None
            if known and known.pod["spec"] == pod["spec"]:
                known.pod = pod
            else:
                self._put(PodInfo.of(pod), uid, node)

    def remove_pod(self, uid: str) -> None:
        self._assumed.discard(uid)
        if name := self._node_of.pop(uid, None):
            self._nodes[name].remove(uid)
            self._tidy(self._nodes[name])

    def _put(self, info: PodInfo, uid: str, node: str) -> None:
        if self._node_of.get(uid, node) != node:
            self._nodes[self._node_of[uid]].remove(uid)
        self._node_of[uid] = node
        self._info(node).add(info)

    def _info(self, name: str) -> NodeInfo:
        return self._nodes.setdefault(name, NodeInfo(name))

    def _tidy(self, info: NodeInfo) -> None:
        if info.node is None and not info.pods:
            self._nodes.pop(info.name, None)

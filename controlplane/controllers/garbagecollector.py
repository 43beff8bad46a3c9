"""The garbage collector: what belongs to others goes when they go (ownerReferences).

It keeps a graph of all objects, made from the metadata of every resource that can be deleted. An
object all of whose owners are gone is deleted. An owner that is deleted in the foreground (finalizer foregroundDeletion) stays
until its dependents that block it are gone; one that is deleted with finalizer orphan has its dependents cut loose first.
https://kubernetes.io/docs/concepts/architecture/garbage-collection/
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.controllers import discovery
from controlplane.controllers.frame import Context, Controller
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import Informer
from strata.kubeclient.resources import Resource

Object = dict[str, Any]
_FOREGROUND, _ORPHAN = "foregroundDeletion", "orphan"
_DISCOVERY_SECONDS = 30.0
_IGNORED = {"events"}
"""Events name no owners, come in masses, and end by themselves."""
_NAMES_OF_POLICIES = {_FOREGROUND: "Foreground", _ORPHAN: "Orphan"}


@dataclass
class Node:
    """An object in the graph."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    owners: list[Object]
    finalizers: tuple[str, ...] = ()
    is_going: bool = False

    @classmethod
    def of(cls, resource: Resource, obj: Object) -> "Node":
        metadata = obj["metadata"]
        owners = list(metadata.get("ownerReferences") or ())
        finalizers = tuple(metadata.get("finalizers") or ())
        is_going = bool(metadata.get("deletionTimestamp"))
        return cls(resource, metadata.get("namespace") or "", metadata["name"], metadata["uid"], owners, finalizers, is_going)

    @property
    def waits_for_dependents(self) -> bool:
        return self.is_going and _FOREGROUND in self.finalizers


class GarbageCollector(Controller[str]):
    """The queue's keys are UIDs."""

    name = "garbagecollector"
    workers = 8

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.nodes: dict[str, Node] = {}
        self.dependents: dict[str, set[str]] = defaultdict(set)
        self.kinds: dict[tuple[str, str], Resource] = {}
        self.informers: dict[Resource, Informer] = {}
        self.tasks: dict[Resource, asyncio.Task[None]] = {}

    async def run(self) -> None:
        watching = asyncio.create_task(self._watch_resources())
        try:
            await super().run()
        finally:
            tasks = [watching, *self.tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the graph

    async def _watch_resources(self) -> None:
        """Follows every resource that discovery knows (by the informer that others have, if there is one), and looks for new
        ones now and then."""
        while True:
            try:
                found = await discovery.resources(self.client)
            except ApiError as error:
                self.log.debug("discovery failed", error=error)
                await asyncio.sleep(1)
                continue
            wanted = [d.resource for d in found if {"list", "watch", "delete"} <= d.verbs and d.resource.plural not in _IGNORED]
            self.kinds = {(d.resource.group, d.resource.kind): d.resource for d in found}
            for resource in wanted:
                if resource not in self.informers:
                    self._follow(resource)
            for resource in [r for r in self.tasks if r not in wanted]:
                self.tasks.pop(resource).cancel()
                del self.informers[resource]
            await asyncio.sleep(_DISCOVERY_SECONDS)

    def _follow(self, resource: Resource) -> None:
        shared = self.context.informers.known(resource)
        informer = self.informers[resource] = shared or Informer(self.client, resource, metadata_only=True)
        informer.add_handler(
            lambda obj: self._put(Node.of(resource, obj)),
            lambda _, obj: self._put(Node.of(resource, obj)),
            lambda obj: self._remove(obj["metadata"]["uid"]),
        )
        if shared is None:
            self.tasks[resource] = asyncio.create_task(informer.run(), name=f"garbage {resource.plural}")

    def _put(self, node: Node) -> None:
        old = self.nodes.get(node.uid)
        for reference in old.owners if old else ():
            self.dependents[reference["uid"]].discard(node.uid)
        self.nodes[node.uid] = node
        for reference in node.owners:
            self.dependents[reference["uid"]].add(node.uid)
        was_going = old is not None and old.is_going
        if node.owners or node.is_going:
            self.queue.add(node.uid)
        if node.is_going and not was_going:
            # Dependents see that their owner waits for them; owners that wait may have one less to wait for.
            for uid in self.dependents.get(node.uid, ()):
                self.queue.add(uid)
        for reference in (*node.owners, *(old.owners if old else ())):
            owner = self.nodes.get(reference["uid"])
            if owner and owner.is_going:
                self.queue.add(owner.uid)

    def _remove(self, uid: str) -> None:
        node = self.nodes.pop(uid, None)
        for reference in node.owners if node else ():
            owner = reference["uid"]
            self.dependents[owner].discard(uid)
            if not self.dependents[owner]:
                del self.dependents[owner]
            if owner in self.nodes and self.nodes[owner].is_going:
                self.queue.add(owner)
        for dependent in self.dependents.get(uid, ()):
            self.queue.add(dependent)

    # --- what has to go

    async def sync(self, key: str) -> None:
        node = self.nodes.get(key)
        if node is None:
            return
        if not all(informer.synced for informer in self.informers.values()):
            self.queue.add_after(key, 0.2)
            return
        if node.is_going:
            if _ORPHAN in node.finalizers:
                await self._cut_loose(node)
            elif _FOREGROUND in node.finalizers:
                await self._delete_dependents(node)
            return
        if node.owners:
            await self._judge(node)

    async def _judge(self, node: Node) -> None:
        """Deletes the object if none of its owners is left, or lets it go of those that are not."""
        solid, absent, waiting = [], [], []
        for reference in node.owners:
            owner = self.nodes.get(reference["uid"])
            if owner is None and not await self._exists(node, reference):
                absent.append(reference)
            elif owner is not None and owner.waits_for_dependents and reference.get("blockOwnerDeletion"):
                waiting.append(reference)
            else:
                solid.append(reference)
        if solid:
            if absent or waiting:
                await self._set_owners(node, solid)
            return
        # It goes in the way that somebody asked for already, or in the foreground where its own dependents are waited for.
        policy = next((_NAMES_OF_POLICIES[f] for f in node.finalizers if f in _NAMES_OF_POLICIES), "Background")
        if waiting and self.dependents.get(node.uid):
            policy = "Foreground"
        await self._delete(node, policy)

    async def _exists(self, node: Node, reference: Object) -> bool:
        """Whether the owner is there, asking the API itself: it may be newer than the graph."""
        group, _, _ = reference["apiVersion"].rpartition("/")
        resource = self.kinds.get((group, reference["kind"]))
        if resource is None:
            return True  # of a kind that nobody serves now nothing can be said
        if resource.namespaced and not node.namespace:
            return True  # a mistake in the reference, and no reason to delete anything
        try:
            found = await self.client.get(resource, reference["name"], node.namespace or None)
        except ApiError as error:
            if error.is_not_found:
                return False
            raise
        return bool(found["metadata"]["uid"] == reference["uid"])

    async def _delete_dependents(self, node: Node) -> None:
        """Deletes what an owner waits for, and lets the owner go when nothing blocks it."""
        blocking = False
        for uid in list(self.dependents.get(node.uid, ())):
            dependent = self.nodes.get(uid)
            if dependent is None:
                continue
            blocks = any(r["uid"] == node.uid and r.get("blockOwnerDeletion") for r in dependent.owners)
            blocking |= blocks
            if not dependent.is_going:
                self.queue.add(uid)
        if not blocking:
            await self._drop_finalizer(node, _FOREGROUND)

    async def _cut_loose(self, node: Node) -> None:
        for uid in list(self.dependents.get(node.uid, ())):
            if dependent := self.nodes.get(uid):
                await self._set_owners(dependent, [r for r in dependent.owners if r["uid"] != node.uid])
        await self._drop_finalizer(node, _ORPHAN)

    # --- writing

    async def _delete(self, node: Node, policy: str) -> None:
        try:
            await self.client.delete(node.resource, node.name, node.namespace or None, uid=node.uid, propagation_policy=policy)
        except ApiError as error:
            if not error.is_not_found and not error.is_conflict:
                raise
            return
        self.log.debug("deleted", object=f"{node.resource.plural}/{node.namespace}/{node.name}", uid=node.uid)

    async def _set_owners(self, node: Node, owners: Sequence[Object]) -> None:
        await self._patch(node, {"uid": node.uid, "ownerReferences": list(owners) or None})

    async def _drop_finalizer(self, node: Node, finalizer: str) -> None:
        try:
            current = await self.client.get(node.resource, node.name, node.namespace or None)
        except ApiError as error:
            if error.is_not_found:
                return
            raise
        metadata = current["metadata"]
        if metadata["uid"] != node.uid or finalizer not in (metadata.get("finalizers") or ()):
            return
        kept = [f for f in metadata["finalizers"] if f != finalizer]
        await self._patch(node, {"uid": node.uid, "resourceVersion": metadata["resourceVersion"], "finalizers": kept or None})

    async def _patch(self, node: Node, metadata: Object) -> None:
        try:
            await self.client.patch(node.resource, node.name, {"metadata": metadata}, node.namespace or None, kind="merge")
        except ApiError as error:
            if not error.is_not_found:
                raise

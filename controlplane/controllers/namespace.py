"""A namespace that is deleted takes all that is in it along.

It stays, Terminating, until nothing is left in any resource that discovery knows; then its finalizer `kubernetes` goes. Its
conditions say what it waits for.
https://kubernetes.io/docs/concepts/overview/working-with-objects/namespaces/
"""

import asyncio
from collections import Counter
from typing import Any

from controlplane.controllers import discovery
from controlplane.controllers.conditions import with_condition
from controlplane.controllers.frame import Context, Controller
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import NAMESPACES, PODS, Resource

Object = dict[str, Any]
_FINALIZER = "kubernetes"
_LOOK_AGAIN_SECONDS = 2.0


class NamespaceController(Controller[str]):
    name = "namespace"
    workers = 4

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.namespaces, self.pods = self.informer(NAMESPACES), self.informer(PODS)
        self.on_change(self.namespaces, self._changed, deletions=False)
        self.pods.add_handler(on_delete=self._pod_gone)

    def _changed(self, namespace: Object) -> None:
        if namespace["metadata"].get("deletionTimestamp"):
            self.queue.add(namespace["metadata"]["name"])

    def _pod_gone(self, pod: Object) -> None:
        if namespace := self.namespaces.get(pod["metadata"]["namespace"]):
            self._changed(namespace)

    async def sync(self, key: str) -> None:
        namespace = self.namespaces.get(key)
        if namespace is None or not namespace["metadata"].get("deletionTimestamp"):
            return
        if _FINALIZER not in (namespace["spec"].get("finalizers") or ()):
            return
        problems: dict[str, tuple[str, str]] = {}
        try:
            found = await discovery.resources(self.client)
        except ApiError as error:
            problems["NamespaceDeletionDiscoveryFailure"] = "DiscoveryFailed", f"Discovery failed: {error}"
            await self._write_conditions(namespace, problems)
            raise
        resources = [d.resource for d in found if d.resource.namespaced and {"list", "delete"} <= d.verbs]
        # Events tell of the others' end, so they go last; as core/v1 and events.k8s.io/v1 they are the same objects.
        others = [r for r in resources if r.plural != "events"]
        errors = await self._empty(key, others)
        left = await self._left(key, others)
        if not left and not errors:
            errors = await self._empty(key, [r for r in resources if r.plural == "events" and not r.group])
        if errors:
            text = "; ".join(map(str, errors))
            problems["NamespaceDeletionContentFailure"] = "ContentDeletionFailed", f"Failed to delete all resource types: {text}"
        if left:
            counts = Counter({r: len(items) for r, items in left.items()})
            listed = ", ".join(
                f"{_qualified(r)} has {n} resource instances" for r, n in sorted(counts.items(), key=lambda i: i[0].plural)
            )
            problems["NamespaceContentRemaining"] = "SomeResourcesRemain", f"Some resources are remaining: {listed}"
            finalizers = Counter(f for items in left.values() for o in items for f in o["metadata"].get("finalizers") or ())
            if finalizers:
                listed = ", ".join(f"{name} in {n} resource instances" for name, n in sorted(finalizers.items()))
                text = f"Some content in the namespace has finalizers remaining: {listed}"
                problems["NamespaceFinalizersRemaining"] = "SomeFinalizersRemain", text
        if problems:
            await self._write_conditions(namespace, problems)
            self.queue.add_after(key, _LOOK_AGAIN_SECONDS)
            return
        await self._finalize(namespace)

    async def _empty(self, namespace: str, resources: list[Resource]) -> list[ApiError]:
        """Deletes what is in the resources; pods in their grace period stay for now. Returns what failed."""

        async def empty(resource: Resource) -> ApiError | None:
            try:
                if (await self.client.list(resource, namespace, limit=1))["items"]:
                    await self.client.delete_collection(resource, namespace)
            except ApiError as error:
                return None if error.is_not_found else error
            return None

        results = await asyncio.gather(*(empty(resource) for resource in resources))
        return [error for error in results if error]

    async def _left(self, namespace: str, resources: list[Resource]) -> dict[Resource, list[Object]]:
        async def items(resource: Resource) -> list[Object]:
            return list((await self.client.list(resource, namespace))["items"])

        lists = await asyncio.gather(*(items(resource) for resource in resources))
        return {resource: listed for resource, listed in zip(resources, lists, strict=True) if listed}

    async def _finalize(self, namespace: Object) -> None:
        finalizers = [f for f in namespace["spec"].get("finalizers") or () if f != _FINALIZER]
        try:
            await self.client.update(
                NAMESPACES, {**namespace, "spec": {**namespace["spec"], "finalizers": finalizers}}, subresource="finalize"
            )
        except ApiError as error:
            if not error.is_not_found:
                raise
        self.log.info("namespace is empty", namespace=namespace["metadata"]["name"])

    async def _write_conditions(self, namespace: Object, problems: dict[str, tuple[str, str]]) -> None:
        old = (namespace.get("status") or {}).get("conditions") or []
        new = list(old)
        for type_, (reason, message) in _FINE.items():
            status = "True" if type_ in problems else "False"
            new = with_condition(new, type_, status, *problems.get(type_, (reason, message)))
        if new != old:
            changed = {**(namespace.get("status") or {}), "conditions": new}
            await self.client.update(NAMESPACES, {**namespace, "status": changed}, subresource="status")


_FINE = {
    "NamespaceDeletionDiscoveryFailure": ("ResourcesDiscovered", "All resources successfully discovered"),
    "NamespaceDeletionGroupVersionParsingFailure": ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
    "NamespaceDeletionContentFailure": ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    "NamespaceContentRemaining": ("ContentRemoved", "All content successfully removed"),
    "NamespaceFinalizersRemaining": ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
}


def _qualified(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}"

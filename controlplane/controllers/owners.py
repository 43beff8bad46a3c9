"""Owner references: whose an object is (metav1 OwnerReference)."""

from collections.abc import Iterable, Mapping
from typing import Any

from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import Informer
from strata.kubeclient.resources import Resource
from strata.kubeclient.selectors import Selector

Object = dict[str, Any]


def controller_of(obj: Mapping[str, Any]) -> dict[str, Any] | None:
    """The reference to the object's one managing controller."""
    return next((ref for ref in obj["metadata"].get("ownerReferences") or () if ref.get("controller")), None)


def is_controlled_by(obj: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    reference = controller_of(obj)
    return reference is not None and reference["uid"] == owner["metadata"]["uid"]


def reference_to(owner: Mapping[str, Any]) -> dict[str, Any]:
    """A controller's reference to the object that it acts for; that object's foreground deletion waits for the dependent."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def index_by_controller(informer: Informer) -> None:
    """Adds the index `controller`: by the managing controller's UID, and by `orphan/NAMESPACE` for those without."""
    if not informer.has_index("controller"):
        informer.add_index("controller", _controller_values)


def _controller_values(obj: Object) -> Iterable[str]:
    reference = controller_of(obj)
    yield reference["uid"] if reference else f"orphan/{obj['metadata'].get('namespace')}"


async def claim(client: Client, owner: Object, selector: Selector, resource: Resource, informer: Informer) -> list[Object]:
    """The objects of a resource that are the owner's: takes up orphans that its selector matches, and lets go of those of its
    own that it does not match any more.

    The informer has the index `controller`. Raises ApiError where the API refuses for another reason than that the object has
    changed or gone meanwhile.
    """
    metadata = owner["metadata"]
    leaving = bool(metadata.get("deletionTimestamp"))
    claimed = []
    for obj in informer.by_index("controller", metadata["uid"]):
        if selector.matches(obj["metadata"].get("labels")):
            claimed.append(obj)
        elif not leaving:
            kept = [r for r in obj["metadata"].get("ownerReferences") or () if r["uid"] != metadata["uid"]]
            await _set_owners(client, resource, obj, kept)
    if leaving:
        return claimed
    for obj in informer.by_index("controller", f"orphan/{metadata['namespace']}"):
        if obj["metadata"].get("deletionTimestamp") or not selector.matches(obj["metadata"].get("labels")):
            continue
        owners = [*(obj["metadata"].get("ownerReferences") or ()), reference_to(owner)]
        if adopted := await _set_owners(client, resource, obj, owners):
            claimed.append(adopted)
    return claimed


async def _set_owners(client: Client, resource: Resource, obj: Object, owners: list[dict[str, Any]]) -> Object | None:
    metadata = obj["metadata"]
    change = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"], "ownerReferences": owners or None}
    try:
        return await client.patch(resource, metadata["name"], {"metadata": change}, metadata["namespace"], kind="merge")
    except ApiError as error:
        if error.is_not_found or error.is_conflict:
            return None
        raise

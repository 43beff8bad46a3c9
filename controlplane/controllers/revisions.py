"""The history of a workload without ReplicaSets: its templates as ControllerRevisions, numbered."""

from collections.abc import Sequence
from typing import Any

from controlplane.controllers import templates
from controlplane.controllers.owners import claim, index_by_controller, reference_to
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.kubeclient.informer import Informer
from strata.kubeclient.resources import CONTROLLERREVISIONS
from strata.kubeclient.selectors import parse_label_selector

Object = dict[str, Any]
HASH_LABEL = "controller-revision-hash"


class History:
    """The revisions of one kind of workload."""

    def __init__(self, client: Client, revisions: Informer) -> None:
        self._client, self._revisions = client, revisions
        index_by_controller(revisions)

    async def current(self, owner: Object) -> tuple[str, list[Object]]:
        """The hash of the owner's present template, whose revision has the highest number and is made where it is not there;
        and the older revisions, the eldest first."""
        selector = parse_label_selector(owner["spec"]["selector"])
        known = await claim(self._client, owner, selector, CONTROLLERREVISIONS, self._revisions)
        known.sort(key=lambda revision: revision["revision"])
        template = owner["spec"]["template"]
        same = [revision for revision in known if templates.equal(_template(revision), template)]
        newest = max((revision["revision"] for revision in known), default=0)
        if not same:
            return await self._create(owner, newest + 1), known
        current = same[-1]
        if current["revision"] < newest:
            changed = {**current, "revision": newest + 1}
            await self._client.update(CONTROLLERREVISIONS, changed)
        return current["metadata"]["labels"][HASH_LABEL], [revision for revision in known if revision is not current]

    async def trim(self, olds: Sequence[Object], used: set[str], limit: int) -> None:
        """Deletes the eldest revisions beyond the limit that no pod has (by hash)."""
        idle = [revision for revision in olds if revision["metadata"]["labels"].get(HASH_LABEL) not in used]
        for revision in idle[: max(0, len(idle) - limit)]:
            metadata = revision["metadata"]
            try:
                await self._client.delete(CONTROLLERREVISIONS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except ApiError as error:
                if not error.is_not_found:
                    raise

    async def _create(self, owner: Object, number: int) -> str:
        template, collisions = owner["spec"]["template"], (owner.get("status") or {}).get("collisionCount") or 0
        digest = templates.template_hash(template, collisions)
        metadata, annotations = owner["metadata"], dict(owner["metadata"].get("annotations") or {})
        annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
        labels = {**((template.get("metadata") or {}).get("labels") or {}), HASH_LABEL: digest}
        revision = {
            "metadata": {
                "name": f"{metadata['name']}-{digest}",
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [reference_to(owner)],
            },
            # A strategic merge patch that brings the template back: what `kubectl rollout undo` applies.
            "data": {"spec": {"template": {**template, "$patch": "replace"}}},
            "revision": number,
        }
        try:
            await self._client.create(CONTROLLERREVISIONS, revision)
        except ApiError as error:
            if not error.is_already_exists:
                raise
            there = await self._client.get(CONTROLLERREVISIONS, f"{metadata['name']}-{digest}", metadata["namespace"])
            if not templates.equal(_template(there), template):
                raise
        return digest


def _template(revision: Object) -> Object:
    template = ((revision.get("data") or {}).get("spec") or {}).get("template") or {}
    return {key: value for key, value in template.items() if key != "$patch"}

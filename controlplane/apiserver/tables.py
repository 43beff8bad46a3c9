"""Answers in the forms that clients ask for: the object itself, a Table (what `kubectl get` shows), or its metadata alone.

The form is in the Accept header: `application/json;as=Table;v=v1;g=meta.k8s.io,application/json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.apiserver import printers
from controlplane.apiserver.cache import Entry
from controlplane.apiserver.protobuf import envelope
from controlplane.apiserver.request import StatusError
from controlplane.apiserver.resources import Object, Resource

OBJECT, TABLE, METADATA, PROTOBUF = "", "Table", "PartialObjectMetadata", "protobuf"


def form_of(accept: str) -> str | None:
    """The first form in an Accept header that can be served; None when there is none.

    Protobuf is for those who accept nothing else: JSON is what is kept.
    """
    protobuf = False
    for part in accept.split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        protobuf = protobuf or (media == envelope.MEDIA_TYPE and not any(one.startswith("as=") for one in parameters))
        if media not in ("application/json", "application/*", "*/*", "", "application/yaml"):
            continue
        given = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        kind = given.get("as", "")
        if kind == "":
            return OBJECT
        if given.get("g") == "meta.k8s.io" and given.get("v") == "v1":
            if kind == "Table":
                return TABLE
            if kind in ("PartialObjectMetadata", "PartialObjectMetadataList"):
                return METADATA
    return PROTOBUF if protobuf else None


@dataclass(frozen=True)
class Encoder:
    """Encodes entries of a resource in one form. include: what a Table's rows carry of the object (None, Metadata, Object)."""

    resource: Resource
    form: str
    include: str = "Metadata"

    @property
    def media_type(self) -> str:
        return envelope.MEDIA_TYPE if self.form == PROTOBUF else "application/json"

    def one(self, entry: Entry) -> bytes:
        """A single object; also the object of a watch event."""
        if self.form == OBJECT:
            return convert(self.resource, entry.data)
        if self.form == PROTOBUF:
            return enveloped(orjson.loads(convert(self.resource, entry.data)))
        obj = orjson.loads(entry.data)
        if self.form == TABLE:
            return orjson.dumps(self._table([obj], obj["metadata"].get("resourceVersion", ""), {}))
        return orjson.dumps(_metadata_of(obj))

    def many(self, entries: Sequence[Entry], metadata: dict[str, Any]) -> bytes:
        """A list, from the bytes that are already there."""
        if self.form == TABLE:
            objects = [orjson.loads(entry.data) for entry in entries]
            return orjson.dumps(self._table(objects, metadata.get("resourceVersion", ""), metadata))
        if self.form == METADATA:
            kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
            items = [orjson.dumps(_metadata_of(orjson.loads(entry.data))) for entry in entries]
        else:
            kind, version = f"{self.resource.kind}List", self.resource.api_version
            items = [convert(self.resource, entry.data) for entry in entries]
        head = b'{"kind":"%s","apiVersion":"%s","metadata":%s,"items":[' % (
            kind.encode(),
            version.encode(),
            orjson.dumps(metadata),
        )
        body = head + b",".join(items) + b"]}"
        return enveloped(orjson.loads(body)) if self.form == PROTOBUF else body

    def _table(self, objects: Sequence[Object], revision: str, metadata: dict[str, Any]) -> Object:
        group, plural = self.resource.group, self.resource.plural
        rows = []
        for obj in objects:
            row: dict[str, Any] = {"cells": printers.table_row(group, plural, obj)}
            if self.include == "Object":
                row["object"] = obj
            elif self.include == "Metadata":
                row["object"] = _metadata_of(obj)
            rows.append(row)
        return {
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": {"resourceVersion": revision, **metadata},
            "columnDefinitions": printers.table_columns(group, plural),
            "rows": rows,
        }


def enveloped(obj: Object) -> bytes:
    """The object in protobuf form. Raises StatusError for a kind that has none."""
    body = envelope.closed(obj)
    if body is None:
        text = "only the following media types are accepted: application/json, application/yaml"
        raise StatusError(406, "NotAcceptable", text)
    return body


def _metadata_of(obj: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def convert(resource: Resource, data: bytes) -> bytes:
    """The bytes of the storage version in the resource's own version. Only events are stored as another group's."""
    if not resource.storage:
        return data
    return orjson.dumps(to_events_v1(orjson.loads(data)))


_EVENT_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}


def to_events_v1(obj: Object) -> Object:
    """A core/v1 Event as events.k8s.io/v1 names its fields."""
    return {**{_EVENT_NAMES.get(k, k): v for k, v in obj.items()}, "apiVersion": "events.k8s.io/v1"}


_STORED_NAMES = {new: old for old, new in _EVENT_NAMES.items()}


def to_stored(resource: Resource, obj: Object) -> Object:
    """An object (or a patch of it) as it is stored: an events.k8s.io/v1 Event as core/v1 names its fields."""
    if not resource.storage or obj.get("apiVersion", resource.api_version) != resource.api_version:
        return obj
    return {**{_STORED_NAMES.get(k, k): v for k, v in obj.items()}, "apiVersion": "v1"}


def patch_to_stored(resource: Resource, patch: Any) -> Any:
    """A patch of an object as a patch of what is stored."""
    if isinstance(patch, dict):
        return to_stored(resource, patch)
    if not resource.storage or not isinstance(patch, list):
        return patch
    return [_operation_to_stored(one) if isinstance(one, dict) else one for one in patch]


def _operation_to_stored(operation: Object) -> Object:
    """An operation of a JSON patch whose paths begin with a stored name."""
    renamed = dict(operation)
    for name in ("path", "from"):
        if isinstance(operation.get(name), str):
            _, *steps = operation[name].split("/")
            renamed[name] = "/".join(["", *(_STORED_NAMES.get(step, step) if n == 0 else step for n, step in enumerate(steps))])
    return renamed

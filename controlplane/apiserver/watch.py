"""A watch: what has changed in a list since a revision, one JSON line an event.

An event is encoded once for each form that somebody watches in (`_encoded`), however many watchers it goes to. Selectors turn
changes into additions and deletions: an object that stops matching is DELETED for that watcher.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
from aiohttp import web

from controlplane.apiserver import errors
from controlplane.apiserver.bodies import add_warnings
from controlplane.apiserver.cache import Cache, Change, Entry, Expired, ResourceCache
from controlplane.apiserver.protobuf.codec import delimited
from controlplane.apiserver.resources import Object
from controlplane.apiserver.tables import PROTOBUF, Encoder, enveloped
from controlplane.apiserver.verbs import Operation, selection
from strata.kubeclient.selectors import Selector

BOOKMARK_SECONDS = 60.0
DEFAULT_TIMEOUT_SECONDS = 1800.0


async def serve(request: web.BaseRequest, operation: Operation, cache: Cache, encoder: Encoder) -> web.StreamResponse:
    """Answers a watch request until its time is up or the client goes.

    Raises StatusError (Expired) for a revision whose events are no longer kept.
    """
    query = operation.query
    prefix, labels, fields = selection(operation)
    wanted = query.get("resourceVersion") or ""
    if wanted and not wanted.isdigit():
        raise errors.bad_request(f"invalid resource version {wanted!r}: must be a number")
    initial_events = query.get("sendInitialEvents") == "true"
    from_now = not wanted or wanted == "0" or initial_events
    resources = cache.of(operation.resource)
    start = cache.revision if from_now else int(wanted)
    try:
        missed, subscription = resources.subscribe(prefix, start)
    except Expired:
        raise errors.expired(f"too old resource version: {start} ({cache.revision})") from None
    try:
        initial = from_now and query.get("sendInitialEvents") != "false"
        filter_ = _Filter(prefix, labels, fields)
        return await _send(
            request, operation, encoder, filter_, resources, cache, missed, subscription.queue, initial, initial_events
        )
    finally:
        resources.unsubscribe(subscription)


class _Filter:
    """What a change is for a watcher with selectors."""

    def __init__(self, prefix: str, labels: Selector, fields: Selector) -> None:
        self._prefix, self._labels, self._fields = prefix, labels, fields

    def matches(self, entry: Entry | None) -> bool:
        return entry is not None and entry.matches(self._prefix, self._labels, self._fields)

    def see(self, change: Change) -> Iterator[tuple[str, Entry]]:
        was, is_ = self.matches(change.old), self.matches(change.new)
        if is_ and change.new:
            yield ("MODIFIED" if was else "ADDED"), change.new
        elif was:
            # A deletion, or an object that no longer matches: its state now, as clients expect it.
            yield "DELETED", change.deleted or change.new  # type: ignore[misc]


async def _send(
    request: web.BaseRequest,
    operation: Operation,
    encoder: Encoder,
    filter_: _Filter,
    resources: ResourceCache,
    cache: Cache,
    missed: list[Change],
    changes: "asyncio.Queue[Change | None]",
    initial: bool,
    initial_end: bool,
) -> web.StreamResponse:
    query = operation.query
    media_type = encoder.media_type + (";stream=watch" if encoder.form == PROTOBUF else "")
    response = web.StreamResponse(headers={"Content-Type": media_type, "Cache-Control": "no-cache, private"})
    add_warnings(response, operation.warnings)
    first = bytearray()
    if initial:
        for entry in resources.range(selection(operation)[0]):
            if filter_.matches(entry):
                first += _encoded("ADDED", entry, encoder)
    if initial_end:
        first += _bookmark(operation, encoder, cache.revision, {"k8s.io/initial-events-end": "true"})
    for change in missed:
        for kind, entry in filter_.see(change):
            first += _encoded(kind, entry, encoder)
    response.enable_chunked_encoding()
    await response.prepare(request)
    if first:
        await response.write(bytes(first))
    loop = asyncio.get_running_loop()
    end = loop.time() + (operation.number("timeoutSeconds") or DEFAULT_TIMEOUT_SECONDS)
    bookmarks = query.get("allowWatchBookmarks") == "true"
    next_bookmark = loop.time() + BOOKMARK_SECONDS
    while (left := min(end, next_bookmark) - loop.time()) > 0 or loop.time() < end:
        try:
            async with asyncio.timeout(max(left, 0)):
                batch = [await changes.get()]
        except TimeoutError:
            if bookmarks and loop.time() < end:
                await response.write(_bookmark(operation, encoder, cache.revision, {}))
            next_bookmark = loop.time() + BOOKMARK_SECONDS
            continue
        while not changes.empty():
            batch.append(changes.get_nowait())
        out = b"".join(_encoded(k, e, encoder) for change in batch if change for k, e in filter_.see(change))
        if out:
            await response.write(out)
        if None in batch:
            # The client did not read: it finds out by a new list that it has missed something.
            status = errors.expired("the watch was too slow and was closed").status()
            await response.write(_event("ERROR", status, encoder))
            break
    await response.write_eof()
    return response


_encoded_cache: dict[tuple[str, Encoder, int, str], bytes] = {}
_ENCODED_LIMIT = 512


def _encoded(kind: str, entry: Entry, encoder: Encoder) -> bytes:
    """An event of an object, encoded once for all watchers of one form."""
    key = (kind, encoder, entry.revision, entry.key)
    line = _encoded_cache.get(key)
    if line is None:
        line = _framed(kind, encoder.one(entry), encoder)
        if len(_encoded_cache) >= _ENCODED_LIMIT:
            del _encoded_cache[next(iter(_encoded_cache))]
        _encoded_cache[key] = line
    return line


def _framed(kind: str, obj: bytes, encoder: Encoder) -> bytes:
    """An event as it is sent: a line of JSON, or in protobuf a WatchEvent behind its length."""
    if encoder.form != PROTOBUF:
        return b'{"type":"%s","object":%s}\n' % (kind.encode(), obj)
    event = delimited(1, kind.encode()) + delimited(2, delimited(1, obj))
    return len(event).to_bytes(4, "big") + event


def _event(kind: str, obj: Object, encoder: Encoder) -> bytes:
    return _framed(kind, enveloped(obj) if encoder.form == PROTOBUF else orjson.dumps(obj), encoder)


def _bookmark(operation: Operation, encoder: Encoder, revision: int, annotations: dict[str, str]) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(revision), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    obj = {"kind": operation.resource.kind, "apiVersion": operation.resource.api_version, "metadata": metadata}
    return _event("BOOKMARK", obj, encoder)

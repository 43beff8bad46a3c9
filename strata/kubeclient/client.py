"""The Kubernetes REST API, as its clients see it: verbs on resources, watches, Status errors.

https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import asyncio
import os
import random
import ssl as tls
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from strata.kubeclient.errors import ApiError, Unreachable
from strata.kubeclient.kubeconfig import Endpoint, Kubeconfig
from strata.kubeclient.resources import Resource
from strata.telemetry import spans

if TYPE_CHECKING:
    import aiohttp

Object = dict[str, Any]

PATCH_TYPES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
_REQUEST_SECONDS = 34.0
"""A little more than what an API server gives a request in the worst case (30 s for its webhooks)."""
_WATCH_SECONDS = (300, 600)
"""How long a watch is asked for: drawn anew each time, so that watches do not all end together."""
_SILENCE_SECONDS = 150.0
"""Bookmarks come about every minute: a watch that is silent for longer has lost its server."""
_METADATA = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1,application/json"
_RETRIES = 5
_LONGEST_RETRY_SECONDS = 30.0
_CONCURRENT = 32
"""Requests at one time (watches aside): a burst of work does not become a burst of connections."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """type: ADDED, MODIFIED, DELETED or BOOKMARK (whose object has only a resourceVersion)."""

    type: str
    object: Object


class Client:
    """A connection to one API server, under one identity. Made and used inside one event loop.

    base_url: `https://HOST:PORT`, or `http://…` without `ssl`. token: a bearer token. headers: sent with each request.
    Every method raises ApiError where the server refuses, and Unreachable (an ApiError with code 0) where it is not there.
    """

    def __init__(
        self,
        base_url: str,
        *,
        ssl: tls.SSLContext | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        user_agent: str = "strata",
    ) -> None:
        self._kubeconfig: Kubeconfig | None = None
        self._fixed = Endpoint(base_url.rstrip("/"), ssl, token)
        self._headers = {"Accept": "application/json", "User-Agent": user_agent, **(headers or {})}
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(_CONCURRENT)

    @classmethod
    def from_kubeconfig(cls, path: str | os.PathLike[str], *, user_agent: str = "strata") -> "Client":
        """The current context of a kubeconfig, whose files are read again when they change.

        Raises KubeconfigError for a file that cannot be used.
        """
        kubeconfig = Kubeconfig(path)
        client = cls(kubeconfig.endpoint().server, user_agent=user_agent)
        client._kubeconfig = kubeconfig
        return client

    @property
    def endpoint(self) -> Endpoint:
        return self._kubeconfig.endpoint() if self._kubeconfig else self._fixed

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- verbs

    async def get(self, resource: Resource, name: str, namespace: str | None = None, *, subresource: str = "") -> Object:
        return await self.request("GET", resource.path(namespace, name, subresource))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 0,
        continue_token: str = "",
        resource_version: str = "",
        metadata_only: bool = False,
    ) -> Object:
        """One page of a collection; all namespaces where none is given. limit 0: everything on one page.
        metadata_only: nothing of the items but their metadata (PartialObjectMetadata).

        The items have apiVersion and kind. metadata.continue is the next page's token.
        """
        params = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "limit": str(limit or ""),
            "continue": continue_token,
            "resourceVersion": resource_version,
        }
        accept = _METADATA.format("List") if metadata_only else ""
        page = await self.request("GET", resource.path(namespace), params=params, accept=accept)
        page["items"] = [resource.typed(item) for item in page.get("items") or ()]
        return page

    async def create(
        self, resource: Resource, obj: Mapping[str, Any], namespace: str | None = None, *, name: str = "", subresource: str = ""
    ) -> Object:
        """Creates an object. With a subresource (binding, token, eviction): posts to that of the object `name`, which is
        the object's own metadata.name where none is given; the object has its own apiVersion and kind then."""
        metadata = obj.get("metadata") or {}
        namespace = namespace or metadata.get("namespace")
        owner = (name or metadata.get("name", "")) if subresource else ""
        if resource.namespaced and not namespace:
            raise ValueError(f"{resource.plural}: a namespace is needed to create one")
        return await self.request("POST", resource.path(namespace, owner, subresource), body=resource.typed(dict(obj)))

    async def update(self, resource: Resource, obj: Mapping[str, Any], *, subresource: str = "") -> Object:
        """Replaces an object. Its resourceVersion, where it has one, must still be the current one (else Conflict)."""
        metadata = obj["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        return await self.request("PUT", path, body=resource.typed(dict(obj)))

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        namespace: str | None = None,
        *,
        kind: str = "strategic",
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
    ) -> Object:
        """kind: json (RFC 6902), merge (RFC 7386), strategic, or apply (needs field_manager).

        Raises ValueError for another kind.
        """
        if kind not in PATCH_TYPES:
            raise ValueError(f"patch kind {kind!r}: must be one of {', '.join(PATCH_TYPES)}")
        params = {"fieldManager": field_manager, "force": "true" if force else ""}
        path = resource.path(namespace, name, subresource)
        return await self.request("PATCH", path, body=patch, params=params, content_type=PATCH_TYPES[kind])

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        grace_period_seconds: int | None = None,
        propagation_policy: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> Object:
        """Deletes an object, or begins to. uid, resource_version: only that very one (else Conflict)."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        if propagation_policy:
            options["propagationPolicy"] = propagation_policy
        if preconditions := {k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v}:
            options["preconditions"] = preconditions
        return await self.request("DELETE", resource.path(namespace, name), body=options)

    async def delete_collection(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> Object:
        params = {"labelSelector": label_selector, "fieldSelector": field_selector}
        return await self.request("DELETE", resource.path(namespace), params=params)

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 0,
        metadata_only: bool = False,
    ) -> AsyncGenerator[WatchEvent, None]:
        """What changes after resource_version, until the server's time is up (the iterator ends: watch on from the last
        resourceVersion seen). timeout_seconds 0: five to ten minutes.

        Raises ApiError with is_gone where the version is too old: list again.
        """
        import aiohttp

        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "timeoutSeconds": str(timeout_seconds or random.randint(*_WATCH_SECONDS)),
        }
        path = resource.path(namespace)
        accept = _METADATA.format("") if metadata_only else ""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_SILENCE_SECONDS)
        try:
            async with self._open("GET", path, None, params, "application/json", timeout, accept) as response:
                if response.status >= 400:
                    raise await _refusal(response)
                pending = bytearray()
                async for chunk in response.content.iter_any():
                    pending += chunk
                    if b"\n" not in chunk:
                        continue
                    *lines, rest = pending.split(b"\n")
                    pending = bytearray(rest)
                    for line in lines:
                        if line:
                            yield _event(orjson.loads(line))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable("GET", path, error) from error

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: float = _REQUEST_SECONDS,
        accept: str = "",
    ) -> Object:
        """Any request whose answer is JSON (other text comes back as {"text": …}). params that are "" are left out.

        Where the server asks for patience (429 or 503 with Retry-After) the request is sent again, a few times.
        timeout: seconds for each try.
        """
        import aiohttp

        data = orjson.dumps(body) if body is not None else None
        limit = aiohttp.ClientTimeout(total=timeout, sock_connect=10)
        for attempt in range(_RETRIES + 1):
            try:
                async with self._slots, self._open(method, path, data, params or {}, content_type, limit, accept) as response:
                    if response.status < 400:
                        return _decoded(await response.read(), response.content_type)
                    error = await _refusal(response)
            except (aiohttp.ClientError, TimeoutError, OSError) as failure:
                raise self._unreachable(method, path, failure) from failure
            if error.code not in (429, 503) or error.retry_after is None or attempt == _RETRIES:
                raise error
            await asyncio.sleep(min(error.retry_after, _LONGEST_RETRY_SECONDS))
        raise AssertionError("unreachable: the last attempt returns or raises")

    # --- the wire

    def _open(
        self,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str],
        content_type: str,
        timeout: "aiohttp.ClientTimeout",
        accept: str,
    ) -> "aiohttp.client._RequestContextManager":
        import aiohttp

        if self._session is None or self._session.closed:
            # Watches hold a connection each, so there is no limit on their number; idle ones go after a while.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=30)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True, cookie_jar=aiohttp.DummyCookieJar())
        endpoint = self.endpoint
        headers = {**self._headers, **({"Accept": accept} if accept else {})}
        if data is not None:
            headers["Content-Type"] = content_type
        if endpoint.token:
            headers["Authorization"] = f"Bearer {endpoint.token}"
        if parent := spans.current():
            headers[spans.METADATA_KEY] = parent
        given = {name: value for name, value in params.items() if value}
        return self._session.request(
            method, endpoint.server + path, data=data, params=given, headers=headers, timeout=timeout,
            ssl=endpoint.ssl if endpoint.ssl is not None else True, allow_redirects=False,
        )  # fmt: skip

    def _unreachable(self, method: str, path: str, error: BaseException) -> Unreachable:
        return Unreachable(f"{method} {self.endpoint.server}{path}: {str(error) or type(error).__name__}")


async def _refusal(response: "aiohttp.ClientResponse") -> ApiError:
    body = await response.read()
    try:
        status = orjson.loads(body)
    except orjson.JSONDecodeError:
        status = {}
    seconds = response.headers.get("Retry-After", "")
    retry_after = float(seconds) if seconds.isdigit() else None
    if isinstance(status, dict) and status.get("kind") == "Status":
        return ApiError.from_status(status, response.status, retry_after)
    text = body.decode(errors="replace").strip() or response.reason or ""
    return ApiError(response.status, response.reason or "", text, retry_after=retry_after)


def _event(event: Object) -> WatchEvent:
    if event["type"] == "ERROR":
        raise ApiError.from_status(event["object"])
    return WatchEvent(event["type"], event["object"])


def _decoded(body: bytes, content_type: str) -> Object:
    if content_type.endswith("json"):
        answer = orjson.loads(body)
        return answer if isinstance(answer, dict) else {"items": answer}
    return {"text": body.decode(errors="replace")}

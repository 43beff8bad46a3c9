"""Who may use the kubelet's own server: certificates of the cluster's CA or tokens, and the API server's word on each request.

https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz/
"""

import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.telemetry import logs

log = logs.get("kubelet.access")

TOKEN_SECONDS, ALLOWED_SECONDS, DENIED_SECONDS = 120.0, 300.0, 30.0
_CACHE_LIMIT = 1000
_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_SUBRESOURCES = (("/stats", "stats"), ("/metrics", "metrics"), ("/logs", "log"), ("/spec", "spec"))
_FINE = (("/healthz", "healthz"), ("/pods", "pods"), ("/runningpods", "pods"))


@dataclass(frozen=True)
class User:
    """A name with its groups, as the API server knows it."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Access:
    """node: the name that requests are checked against (nodes/NAME)."""

    def __init__(self, client: Client, node: str) -> None:
        self._client, self._node = client, node
        self._tokens: dict[str, tuple[float, User | None]] = {}
        self._decisions: dict[tuple[User, str, str], tuple[float, bool, str]] = {}

    async def check(self, request: web.Request) -> None:
        """Raises HTTPUnauthorized or HTTPForbidden; HTTPServiceUnavailable where the API server cannot be asked."""
        user = _certificate_user(request) or await self._token_user(request)
        if user is None:
            raise web.HTTPUnauthorized(text="Unauthorized\n")
        verb = _VERBS.get(request.method, "get")
        reasons = []
        for subresource in subresources(request.path):
            allowed, reason = await self._allowed(user, verb, subresource)
            if allowed:
                return
            reasons.append(reason)
        where = f"resource=nodes, subresource={subresources(request.path)[0]}"
        raise web.HTTPForbidden(text=f"Forbidden (user={user.name}, verb={verb}, {where})\n")

    async def _token_user(self, request: web.Request) -> User | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None
        kept = self._tokens.get(token)
        if kept and kept[0] > time.monotonic():
            return kept[1]
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        status = (await self._ask(resources.TOKENREVIEWS, review)).get("status") or {}
        found = None
        if status.get("authenticated"):
            info = status.get("user") or {}
            extra = tuple((k, tuple(v)) for k, v in sorted((info.get("extra") or {}).items()))
            found = User(info.get("username", ""), info.get("uid", ""), tuple(info.get("groups") or ()), extra)
        _trim(self._tokens)
        self._tokens[token] = (time.monotonic() + TOKEN_SECONDS, found)
        return found

    async def _allowed(self, user: User, verb: str, subresource: str) -> tuple[bool, str]:
        key = (user, verb, subresource)
        kept = self._decisions.get(key)
        if kept and kept[0] > time.monotonic():
            return kept[1], kept[2]
        attributes = {"verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": self._node}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name,
                "uid": user.uid,
                "groups": list(user.groups),
                "extra": {k: list(v) for k, v in user.extra},
                "resourceAttributes": attributes,
            },
        }
        status = (await self._ask(resources.SUBJECTACCESSREVIEWS, review)).get("status") or {}
        allowed, reason = bool(status.get("allowed")), str(status.get("reason", ""))
        _trim(self._decisions)
        self._decisions[key] = (time.monotonic() + (ALLOWED_SECONDS if allowed else DENIED_SECONDS), allowed, reason)
        return allowed, reason

    async def _ask(self, resource: Any, review: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._client.create(resource, review)
        except ApiError as error:
            log.warning("the API server could not be asked about a request", error=error.message)
            raise web.HTTPServiceUnavailable(text=f"the API server could not be asked: {error.message}\n") from error


def subresources(path: str) -> tuple[str, ...]:
    """The subresources of nodes, any of which lets one use a path (KEP-2862 has the finer ones)."""
    for prefix, name in _SUBRESOURCES:
        if path == prefix or path.startswith(prefix + "/"):
            return (name,)
    for prefix, name in _FINE:
        if path == prefix or path.startswith(prefix + "/"):
            return (name, "proxy")
    return ("proxy",)


def _certificate_user(request: web.Request) -> User | None:
    """The subject of a client certificate; TLS has verified it against the cluster's CA."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    der = tls.getpeercert(binary_form=True) if tls else None
    if not der:
        return None
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    subject = x509.load_der_x509_certificate(der).subject
    names = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    return User(names[0], groups=(*groups, "system:authenticated")) if names else None


def _trim(cache: dict[Any, Any]) -> None:
    if len(cache) >= _CACHE_LIMIT:
        cache.clear()

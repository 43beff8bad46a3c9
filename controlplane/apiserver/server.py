"""The API server: every request passes `ApiServer._handle`, step by step.

authenticate → authorize → decode → mutate, default, validate, store (`verbs`) → encode (`tables`). Watches and lists are
answered from memory (`cache`). The streaming subresources (log, exec, attach, portforward, proxy) are handed to `connect`.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from aiohttp import web
from cryptography import x509

from controlplane.apiserver import bodies, discovery, errors, fields, patches, reviews, strategies, tables, validation, watch
from controlplane.apiserver.auth.authenticators import impersonated
from controlplane.apiserver.bodies import add_warnings
from controlplane.apiserver.cache import Cache
from controlplane.apiserver.openapi import OpenApi
from controlplane.apiserver.protobuf import envelope
from controlplane.apiserver.request import (
    ANONYMOUS,
    Admission,
    Attributes,
    Authenticator,
    Authorizer,
    StatusError,
    UserInfo,
)
from controlplane.apiserver.resources import Object, Registry, Resource
from controlplane.apiserver.schema import Schemas
from controlplane.apiserver.verbs import Operation, Page, Verbs
from controlplane.store import Store
from strata.telemetry import logs, spans

log = logs.get("apiserver")

BODY_LIMIT_BYTES = 3 * 1024 * 1024
COMPACTION_SECONDS = 300.0
SUPERUSER = UserInfo("system:admin", groups=("system:masters", "system:authenticated"))
CONNECT = ("log", "exec", "attach", "portforward", "proxy")
_JSON = {"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
_FIELD_VALIDATION = ("", "Ignore", "Strict", "Warn")
_OPTIONS = {"create": "CreateOptions", "update": "UpdateOptions", "patch": "PatchOptions"}
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ConnectHandlers(Protocol):
    """The subresources that lead through the API server to a kubelet, a pod or a service."""

    async def connect(
        self,
        request: web.BaseRequest,
        user: UserInfo,
        resource: str,
        subresource: str,
        namespace: str,
        name: str,
        path: str,
        obj: Object,
    ) -> web.StreamResponse: ...


class TokenIssuer(Protocol):
    """Answers serviceaccounts/token (authentication.k8s.io/v1 TokenRequest)."""

    async def issue(self, namespace: str, name: str, service_account: Object, request: Object) -> Object: ...


@dataclass(frozen=True)
class Target:
    """What a path names. resource is None for everything but resources; rest is what follows a proxy subresource."""

    resource: Resource | None = None
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""


class ApiServer:
    """See the module. Until `secure` was called, every request is the superuser's (for a server on loopback, in tests)."""

    def __init__(
        self,
        store: Store,
        *,
        schemas: Schemas | None = None,
        context: Callable[[Cache], strategies.Context] = strategies.Context,
    ) -> None:
        self._store = store
        self._authenticator: Authenticator | None = None
        self._authorizer: Authorizer | None = None
        self._connect: ConnectHandlers | None = None
        self._tokens: TokenIssuer | None = None
        self._documents: Mapping[str, Callable[[], Object]] = {}
        self.registry = Registry()
        self.reader = Cache(self.registry)
        schemas = schemas or Schemas.load()
        self._verbs = Verbs(store, self.reader, self.registry, schemas, (), context(self.reader))
        self._discovery = discovery.Discovery(self.registry)
        self._openapi = OpenApi(schemas, self.registry)
        self._compactor: asyncio.Task[None] | None = None
        self._reviews = reviews.Reviews(None, None, self.reader)

    def secure(
        self,
        *,
        authenticator: Authenticator,
        authorizer: Authorizer,
        admission: Sequence[Admission],
        tokens: TokenIssuer,
        connect: ConnectHandlers,
        documents: Mapping[str, Callable[[], Object]],
    ) -> None:
        """Puts the guards in place. They are made after the server, because they read its cache; call it before `start`.

        documents: further paths, each with what answers a GET.
        """
        self._authenticator, self._authorizer = authenticator, authorizer
        self._tokens, self._connect, self._documents = tokens, connect, documents
        self._verbs.admission = admission
        self._reviews = reviews.Reviews(authenticator, authorizer, self.reader)

    async def start(self) -> None:
        """Fills the cache from the store. Call it once, before the first request."""
        # Subscribed first: what is written between the two is seen twice rather than never.
        pending: list[Any] = []
        self._store.subscribe(pending.extend)
        found = await self._store.range("/")
        self.reader.load([(item.key, item.value, item.revision) for item in found.items], found.revision)
        self.reader.apply([event for event in pending if event.revision > found.revision])
        self._store.subscribe(self.reader.apply)
        self._compactor = asyncio.get_running_loop().create_task(self._compact())

    async def stop(self) -> None:
        """Ends what `start` has begun; the store stays open."""
        if self._compactor is not None:
            self._compactor.cancel()
            with suppress(asyncio.CancelledError):
                await self._compactor

    async def _compact(self) -> None:
        """Lets the store forget what is older than a while: watches that begin before it start with a new list."""
        while True:
            revision = self._store.revision
            await asyncio.sleep(COMPACTION_SECONDS)
            try:
                self.reader.compacted = revision
                await self._store.compact(revision)
            except Exception as error:  # a full disk: the next round may do better
                log.warning("could not compact the store", error=error)

    def handler(self) -> Handler:
        """The handler for aiohttp's `web.Server`."""
        return self._handle

    async def call(self, method: str, path: str, body: Object | None = None, *, user: UserInfo = SUPERUSER) -> Object:
        """A request of the server's own, through the same chain, as the superuser. Raises StatusError."""
        target = self._resolve(path.partition("?")[0])
        if target.resource is None:
            raise errors.no_such_path()
        operation = Operation(user, target.resource, target.namespace, target.name, target.subresource)
        match method:
            case "GET" if target.name:
                return self._verbs.get(operation).decode()
            case "POST":
                return (await self._verbs.create(operation, body or {})).decode()
            case "PUT":
                return (await self._verbs.update(operation, body or {}))[0].decode()
            case "PATCH":
                return (await self._verbs.patch(operation, patches.MERGE, body)).decode()
            case "DELETE":
                return (await self._verbs.delete(operation, body or {}))[0].decode()
        raise errors.method_not_allowed(target.resource, method)

    # --- the chain

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            user = await self._authenticate(request)
            target = self._resolve(request.path)
            verb = self._verb(request, target)
            self._authorize(user, verb, request, target)
            if verb == "get" and target.subresource in ("exec", "attach", "portforward"):
                # A WebSocket begins with a GET, and yet does what a POST does (KEP-4006).
                self._authorize(user, "create", request, target)
            if target.resource is None:
                return await self._serve_document(request)
            name = f"{verb} {target.resource.plural}" + (f"/{target.subresource}" if target.subresource else "")
            if verb == "watch" or target.subresource in CONNECT:
                return await self._serve(request, user, verb, target, target.resource)
            with spans.span(name, parent=self._parent_span(request, target), namespace=target.namespace, object=target.name):
                return await self._serve(request, user, verb, target, target.resource)
        except StatusError as error:
            return self._failure(error)
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception as error:
            log.exception("request failed", method=request.method, path=request.path)
            return self._failure(StatusError(500, "InternalError", f"Internal error occurred: {type(error).__name__}: {error}"))

    def _parent_span(self, request: web.BaseRequest, target: Target) -> str | None:
        """The client's span; where it has none, that in which the pod was created: a pod's spans are one tree."""
        given = request.headers.get(spans.METADATA_KEY)
        resource = target.resource
        if given or not spans.enabled() or resource is None or resource.plural != "pods" or not target.name:
            return given
        entry = self.reader.of(resource).get(resource.key(target.namespace, target.name))
        annotations = entry.decode()["metadata"].get("annotations") if entry else None
        return (annotations or {}).get(spans.ANNOTATION)

    async def _authenticate(self, request: web.BaseRequest) -> UserInfo:
        if self._authenticator is None:
            return SUPERUSER
        user = await self._authenticator.authenticate(request.headers, _peer_certificate(request)) or ANONYMOUS
        return impersonated(user, request.headers, self._authorizer)

    def _verb(self, request: web.BaseRequest, target: Target) -> str:
        """The verb that authorizers and people know a request by."""
        method = request.method
        if target.resource is None:
            return method.lower()
        if method in ("GET", "HEAD"):
            if target.name:
                return "get"
            return "watch" if request.query.get("watch") in ("true", "1") else "list"
        if method == "DELETE":
            return "delete" if target.name else "deletecollection"
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(method)
        if verb is None:
            raise errors.method_not_allowed()
        return verb

    def _authorize(self, user: UserInfo, verb: str, request: web.BaseRequest, target: Target) -> None:
        if self._authorizer is None or "system:masters" in user.groups:
            return
        resource = target.resource
        if resource is None:
            decision = self._authorizer.authorize(Attributes(user, verb, path=request.path))
            if not decision.allowed:
                raise errors.forbidden_path(user, verb, request.path)
            return
        # A list or watch of one object by its name is a request for that object.
        several = verb in ("list", "watch", "deletecollection")
        name = target.name or (_selected_name(request.query.get("fieldSelector", "")) if several else "")
        decision = self._authorizer.authorize(
            Attributes(user, verb, resource.group, resource.version, resource.plural, target.subresource, target.namespace, name)
        )
        if not decision.allowed:
            plural = f"{resource.plural}/{target.subresource}" if target.subresource else resource.plural
            raise errors.forbidden(user, verb, plural, resource.group, target.namespace, target.name, decision.reason)

    def _resolve(self, path: str) -> Target:
        """Takes a path apart: /api/v1/namespaces/NS/pods/NAME/SUBRESOURCE and its likes."""
        parts = [part for part in path.split("/") if part]
        match parts:
            case ["api", version, *rest] if rest:
                group = ""
            case ["apis", group, version, *rest] if rest:
                pass
            case _:
                return Target()
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and self.registry.find(group, version, rest[2]) and not (
            group == "" and len(rest) == 3 and rest[2] in ("finalize", "status")
        ):  # fmt: skip
            namespace, rest = rest[1], rest[2:]
        resource = self.registry.find(group, version, rest[0])
        if resource is None:
            raise errors.no_such_path()
        name = rest[1] if len(rest) > 1 else ""
        subresource = rest[2] if len(rest) > 2 else ""
        known = {*resource.subresources, *(("status",) if resource.status else ())}
        if (subresource and subresource not in known) or (len(rest) > 3 and subresource != "proxy"):
            raise errors.no_such_path()
        return Target(resource, namespace, name, subresource, "/".join(rest[3:]))

    # --- resources

    async def _serve(
        self, request: web.BaseRequest, user: UserInfo, verb: str, target: Target, resource: Resource
    ) -> web.StreamResponse:
        operation = Operation(user, resource, target.namespace, target.name, target.subresource, dict(request.query))
        if resource.storage and verb in ("create", "update", "patch"):
            operation.resource = self._stored_as(resource)
        operation.user_agent = request.headers.get("User-Agent", "")
        if (dry_run := operation.query.get("dryRun", "All")) != "All":
            problem = fields.unsupported("dryRun", dry_run, ("All",))
            raise errors.invalid(_OPTIONS.get(verb, "DeleteOptions"), "meta.k8s.io", "", [problem])
        if (mode := operation.query.get("fieldValidation", "")) not in _FIELD_VALIDATION:
            problem = fields.unsupported("fieldValidation", mode, _FIELD_VALIDATION)
            raise errors.invalid(_OPTIONS.get(verb, "DeleteOptions"), "meta.k8s.io", "", [problem])
        if target.subresource:
            return await self._serve_subresource(request, verb, target, operation)
        if verb not in resource.verbs or ((verb == "create") == bool(target.name) and verb in ("create", "update", "patch")):
            raise errors.method_not_allowed(resource, verb)
        encoder = self._encoder(request, resource)
        match verb:
            case "get":
                return self._answer(encoder.one(self._verbs.get(operation)), operation, media_type=encoder.media_type)
            case "list":
                return self._answer(self._list(encoder, self._verbs.list(operation)), operation, media_type=encoder.media_type)
            case "watch":
                if target.name:
                    operation.query["fieldSelector"] = f"metadata.name={target.name}"  # type: ignore[index]
                return await watch.serve(request, operation, self.reader, encoder)
            case "create":
                obj = await self._object(request, operation, resource)
                if resource.verbs == ("create",):
                    return self._answer(orjson.dumps(await self._reviews.answer(operation, obj)), operation, 201)
                return self._answer(
                    encoder.one(await self._verbs.create(operation, obj)), operation, 201, media_type=encoder.media_type
                )
            case "update":
                entry, created = await self._verbs.update(operation, await self._object(request, operation, resource))
                return self._answer(encoder.one(entry), operation, 201 if created else 200, media_type=encoder.media_type)
            case "patch":
                return await self._patch(request, operation, encoder)
            case "delete":
                entry, gone = await self._verbs.delete(operation, await self._delete_options(request, operation))
                if not gone:
                    return self._answer(encoder.one(entry), operation, media_type=encoder.media_type)
                uid = entry.decode()["metadata"].get("uid")
                details = errors.details(operation.name, resource.group, resource.plural, uid=uid)
                return self._answer(orjson.dumps(_success(details)), operation)
            case _:
                page = await self._verbs.delete_collection(operation, await self._delete_options(request, operation))
                return self._answer(self._list(encoder, page), operation, media_type=encoder.media_type)

    async def _serve_subresource(
        self, request: web.BaseRequest, verb: str, target: Target, operation: Operation
    ) -> web.StreamResponse:
        resource, subresource = operation.resource, target.subresource
        encoder = self._encoder(request, resource)
        if subresource in CONNECT:
            if self._connect is None:
                raise StatusError(501, "NotImplemented", "this server has no way to the nodes")
            if subresource == "proxy":
                operation = Operation(operation.user, resource, target.namespace, _proxied_name(target.name))
            obj = self._verbs.get(operation).decode()
            return await self._connect.connect(
                request, operation.user, resource.plural, subresource, target.namespace, target.name, target.rest, obj
            )
        match subresource, verb:
            case "binding", "create":
                await self._verbs.bind(operation, await self._json(request))
                return self._answer(orjson.dumps(_success({})), operation, 201)
            case "eviction", "create":
                await self._verbs.evict(operation, await self._json(request))
                return self._answer(orjson.dumps(_success({})), operation, 201)
            case "token", "create":
                if self._tokens is None:
                    raise StatusError(501, "NotImplemented", "this server issues no tokens")
                account, wish = self._verbs.get(operation).decode(), await self._json(request)
                await self._verbs.admit(operation, "CREATE", wish, None)
                issued = await self._tokens.issue(target.namespace, target.name, account, wish)
                return self._answer(orjson.dumps(issued), operation, 201)
            case "finalize", "update":
                return self._answer(
                    encoder.one(await self._verbs.finalize(operation, await self._json(request))),
                    operation,
                    media_type=encoder.media_type,
                )
            case "scale", "get":
                return self._answer(orjson.dumps(self._verbs.scale(operation)), operation)
            case "scale", "update":
                body = await self._json(request)
                return self._answer(orjson.dumps(await self._verbs.rescale(operation, lambda _: body)), operation)
            case "scale", "patch":
                kind, patch = await self._patch_body(request)
                changed = await self._verbs.rescale(
                    operation, lambda scale: patches.apply(kind, scale, patch, lambda _: ("replace", None))
                )
                return self._answer(orjson.dumps(changed), operation)
            case _, "get":
                return self._answer(encoder.one(self._verbs.get(operation)), operation, media_type=encoder.media_type)
            case _, "update":
                entry, _ = await self._verbs.update(operation, await self._object(request, operation, resource))
                return self._answer(encoder.one(entry), operation, media_type=encoder.media_type)
            case _, "patch":
                return await self._patch(request, operation, encoder)
        raise errors.method_not_allowed(resource, verb)

    async def _patch(self, request: web.BaseRequest, operation: Operation, encoder: tables.Encoder) -> web.Response:
        kind, body = await self._patch_body(request)
        body = tables.patch_to_stored(encoder.resource, body)
        if kind == patches.APPLY:
            entry, created = await self._verbs.apply(operation, body)
            return self._answer(encoder.one(entry), operation, 201 if created else 200, media_type=encoder.media_type)
        if "force" in operation.query:
            problem = fields.forbidden("force", "may not be specified for non-apply patch")
            raise errors.invalid("PatchOptions", "meta.k8s.io", "", [problem])
        return self._answer(encoder.one(await self._verbs.patch(operation, kind, body)), operation, media_type=encoder.media_type)

    async def _patch_body(self, request: web.BaseRequest) -> tuple[str, Any]:
        kind = request.content_type
        allowed = (patches.JSON, patches.MERGE, patches.STRATEGIC, patches.APPLY)
        if kind not in allowed:
            raise errors.unsupported_media_type(kind, allowed)
        body = await self._body(request)
        return kind, bodies.parse_yaml(body)[0] if kind == patches.APPLY else bodies.parse_json(body)

    def _list(self, encoder: tables.Encoder, page: Page) -> bytes:
        metadata: dict[str, Any] = {"resourceVersion": str(page.revision)}
        if page.token:
            metadata["continue"] = page.token
            if page.remaining:
                metadata["remainingItemCount"] = page.remaining
        return encoder.many(page.entries, metadata)

    # --- bodies

    def _encoder(self, request: web.BaseRequest, resource: Resource) -> tables.Encoder:
        accept = request.headers.get("Accept", "*/*")
        form = tables.form_of(accept)
        if form is None:
            text = f"only the following media types are accepted: application/json, application/yaml, {envelope.MEDIA_TYPE}"
            raise StatusError(406, "NotAcceptable", text)
        return tables.Encoder(resource, form, request.query.get("includeObject", "Metadata"))

    async def _body(self, request: web.BaseRequest) -> bytes:
        if (request.content_length or 0) > BODY_LIMIT_BYTES:
            raise StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY_LIMIT_BYTES}")
        chunks, size = [], 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > BODY_LIMIT_BYTES:
                raise StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY_LIMIT_BYTES}")
            chunks.append(chunk)
        return b"".join(chunks)

    async def _json(self, request: web.BaseRequest, operation: Operation | None = None) -> Object:
        """The object of a body, in whatever form. operation: the one whose fieldValidation is about double keys."""
        body = await self._body(request)
        kind = request.content_type
        problems: list[str] = []
        if kind == envelope.MEDIA_TYPE:
            parsed: Any = bodies.parse_protobuf(body)
        elif kind in ("application/yaml", "application/x-yaml", "text/yaml"):
            parsed, problems = bodies.parse_yaml(body)
        elif kind in ("application/json", "application/octet-stream", ""):
            parsed = bodies.parse_json(body)
            if operation and operation.query.get("fieldValidation") != "Ignore":
                problems = bodies.duplicates(body, parsed)
        else:
            raise errors.unsupported_media_type(kind, ("application/json", "application/yaml", envelope.MEDIA_TYPE))
        if not isinstance(parsed, dict):
            raise errors.bad_request("the body must be a JSON object")
        if operation:
            operation.strictly(problems)
        return parsed

    async def _object(self, request: web.BaseRequest, operation: Operation, requested: Resource) -> Object:
        """The object of a create or an update, in the form in which it is stored."""
        obj = await self._json(request, operation)
        return tables.to_stored(requested, obj)

    def _stored_as(self, resource: Resource) -> Resource:
        """The resource whose objects these are, where two groups serve the same ones."""
        return next((r for r in self.registry.resources if r.prefix == resource.prefix and not r.storage), resource)

    async def _delete_options(self, request: web.BaseRequest, operation: Operation) -> Object:
        """The DeleteOptions of the body, or of the query. A dry run may be asked for in either."""
        options: Object = {}
        if request.can_read_body and (body := await self._body(request)):
            options = bodies.parse_protobuf(body) if request.content_type == envelope.MEDIA_TYPE else bodies.parse_json(body)
            if not isinstance(options, dict):
                raise errors.bad_request("the body of a delete must be DeleteOptions")
        if (grace := operation.number("gracePeriodSeconds")) is not None:
            options["gracePeriodSeconds"] = grace
        for name in ("propagationPolicy", "dryRun"):
            if name in operation.query:
                options[name] = [operation.query[name]] if name == "dryRun" else operation.query[name]
        if problems := validation.validate_delete_options(options):
            raise errors.invalid("DeleteOptions", "meta.k8s.io", "", problems)
        if options.get("dryRun"):
            operation.query = {**operation.query, "dryRun": "All"}
        return options

    # --- answers

    def _answer(
        self, body: bytes, operation: Operation, status: int = 200, *, media_type: str = "application/json"
    ) -> web.Response:
        response = web.Response(body=body, status=status, headers={**_JSON, "Content-Type": media_type})
        add_warnings(response, operation.warnings)
        return response

    def _failure(self, error: StatusError) -> web.Response:
        headers = dict(_JSON)
        if error.code == 401:
            headers["WWW-Authenticate"] = 'Basic realm="kubernetes"'
        if retry := (error.details or {}).get("retryAfterSeconds"):
            headers["Retry-After"] = str(retry)
        return web.Response(body=orjson.dumps(error.status()), status=error.code, headers=headers)

    async def _serve_document(self, request: web.BaseRequest) -> web.StreamResponse:
        path, accept = request.path.rstrip("/") or "/", request.headers.get("Accept", "")
        if path in ("/healthz", "/livez", "/readyz", "/readyz/ping", "/livez/ping", "/healthz/ping"):
            return web.Response(text="ok")
        if path.startswith("/openapi/"):
            document = self._openapi.document(path, accept)
            if document is not None:
                return web.Response(body=document[0], headers={**_JSON, "Content-Type": document[1]})
        elif found := self._discovery.document(path, accept):
            return web.Response(body=orjson.dumps(found[0]), headers={**_JSON, "Content-Type": found[1]})
        elif path in self._documents:
            return web.Response(body=orjson.dumps(self._documents[path]()), headers=_JSON)
        elif path == "/":
            groups = [f"/apis/{g}" for g in self.registry.groups() if g]
            return web.Response(body=orjson.dumps({"paths": ["/api", "/apis", *groups, "/healthz", "/version"]}), headers=_JSON)
        raise errors.no_such_path()


def _peer_certificate(request: web.BaseRequest) -> x509.Certificate | None:
    """The client's certificate, which TLS has verified against the cluster's CA; None where it showed none."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    der = tls.getpeercert(binary_form=True) if tls else None
    return _certificate(der) if der else None


@functools.lru_cache(maxsize=1024)
def _certificate(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def _selected_name(field_selector: str) -> str:
    for part in field_selector.split(","):
        key, _, value = part.partition("=")
        if key == "metadata.name":
            return value.removeprefix("=")
    return ""


def _success(details: Object) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        **({"details": details} if details else {}),
    }


def _proxied_name(name: str) -> str:
    """The name in [https:]NAME[:PORT], as proxy URLs write it."""
    parts = name.split(":")
    return parts[1] if len(parts) == 3 else parts[0]

"""The verbs, for every resource alike: create, get, list, update, patch, delete, and the subresources of writing.

Each write reads the current object, makes the new one, and asks the store to write it if nothing has changed in between;
where the client left it open which version it meant (a patch, an update without resourceVersion), it is tried again.
"""

import base64
import json
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from controlplane.apiserver import defaults, errors, fields, fieldsets, managers, patches, strategies, validation
from controlplane.apiserver.cache import Cache, Entry, Expired, encode, with_revision
from controlplane.apiserver.request import Admission, AdmissionRequest, StatusError, UserInfo
from controlplane.apiserver.resources import Object, Registry, Resource
from controlplane.apiserver.schema import Schemas
from controlplane.store import Conflict, Store
from strata.kubeclient.selectors import Selector, parse_field_selector, parse_label_selector

_ATTEMPTS = 8
_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


@dataclass
class Operation:
    """A request for a resource, decoded as far as the verbs need it."""

    user: UserInfo
    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    user_agent: str = ""
    applies: bool = False
    """Whether this is a server-side apply, which keeps the book of owners itself."""

    @property
    def manager(self) -> str:
        """The field manager's name: what the client says, or what its program is called."""
        return self.query.get("fieldManager") or self.user_agent.partition("/")[0][:128] or "unknown"

    def number(self, name: str) -> int | None:
        """A number in the query; None where it is not given. Raises StatusError for what is no number."""
        text = self.query.get(name)
        if not text:
            return None
        if not text.removeprefix("-").isdecimal():
            raise errors.bad_request(f"{name}: Invalid value: {json.dumps(text)}: must be a whole number")
        return int(text)

    def strictly(self, problems: Sequence[str]) -> None:
        """What was dropped in decoding: refused, told or ignored, as the request's fieldValidation has it."""
        mode = self.query.get("fieldValidation") or "Warn"
        if problems and mode == "Strict":
            raise errors.undecodable(self.resource, f"strict decoding error: {', '.join(problems)}")
        if mode == "Warn":
            self.warnings += problems

    @property
    def dry_run(self) -> bool:
        return bool(self.query.get("dryRun"))


@dataclass(frozen=True)
class Page:
    """A list's answer: entries, the revision it was read at, the token of the next page, and how many are left."""

    entries: Sequence[Entry]
    revision: int
    token: str = ""
    remaining: int = 0


def now() -> str:
    """The time as metav1.Time writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Verbs:
    def __init__(
        self,
        store: Store,
        cache: Cache,
        registry: Registry,
        schemas: Schemas,
        admission: Sequence[Admission],
        context: strategies.Context,
    ) -> None:
        self._store, self._cache, self._registry, self._schemas = store, cache, registry, schemas
        self.admission, self._context = admission, context

    # --- reading

    def get(self, operation: Operation) -> Entry:
        entry = self._cache.of(operation.resource).get(operation.resource.key(operation.namespace, operation.name))
        if entry is None:
            raise errors.not_found(operation.resource, operation.name)
        return entry

    def list(self, operation: Operation) -> Page:
        """A list, or a page of one. Pages that follow show the state of the first one's revision."""
        resource = operation.resource
        prefix, labels, fields_ = selection(operation)
        limit = operation.number("limit") or 0
        revision, after = self._starting_point(operation)
        cache = self._cache.of(resource)
        if revision < self._cache.revision:
            try:
                if revision < self._cache.compacted:
                    raise Expired
                found = cache.range_at(prefix, after, revision)
            except Expired:
                raise self._too_old(operation, revision, after) from None
        elif (name := _exact_name(fields_)) and (operation.namespace or not resource.namespaced):
            entry = cache.get(resource.key(operation.namespace, name))
            found = [entry] if entry and entry.key > after else []
        else:
            found = cache.range(prefix, after)
        if labels or fields_:
            found = [entry for entry in found if labels.matches(entry.labels) and fields_.matches(entry.fields)]
        if limit and len(found) > limit:
            rest = len(found) - limit
            found = found[:limit]
            return Page(found, revision, _token(revision, found[-1].key), rest if not (labels or fields_) else 0)
        return Page(found, revision)

    def _starting_point(self, operation: Operation) -> tuple[int, str]:
        """The revision that a list is to show, and the key after which it begins."""
        query, newest = operation.query, self._cache.revision
        if token := query.get("continue"):
            try:
                given = orjson.loads(base64.urlsafe_b64decode(token))
                revision, after = int(given["revision"]), str(given["after"])
            except (ValueError, KeyError, TypeError):
                raise errors.bad_request("continue key is not valid") from None
            return (revision if revision > 0 else newest), after
        wanted, match = operation.number("resourceVersion") or 0, query.get("resourceVersionMatch", "")
        if match and match not in ("Exact", "NotOlderThan"):
            problem = fields.unsupported("resourceVersionMatch", match, ("Exact", "NotOlderThan"))
            raise errors.invalid("ListOptions", "meta.k8s.io", "", [problem])
        if match == "Exact" and not wanted:
            text = "resourceVersionMatch is forbidden unless resourceVersion is provided"
            raise errors.invalid("ListOptions", "meta.k8s.io", "", [fields.forbidden("resourceVersionMatch", text)])
        if wanted > newest:
            cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            raise StatusError(
                504,
                "Timeout",
                f"Too large resource version: {wanted}, current: {newest}",
                {"retryAfterSeconds": 1, "causes": [cause]},
            )
        return (wanted if match == "Exact" else newest), ""

    def _too_old(self, operation: Operation, revision: int, after: str) -> StatusError:
        """The answer to a list of a past that is gone; a page gets a token to go on with the present."""
        if not operation.query.get("continue"):
            return errors.expired(f"The resourceVersion for the provided list is too old: {revision} ({self._cache.compacted})")
        text = (
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
            "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
            "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
            "deleted between the time the first chunk was returned and now may show up in the list."
        )
        return StatusError(410, "Expired", text, metadata={"continue": _token(0, after)})

    # --- writing

    async def create(self, operation: Operation, obj: Object) -> Entry:
        resource = operation.resource
        self._expect_kind(obj, resource.gvk)
        metadata = obj["metadata"] = obj.get("metadata") or {}
        if metadata.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        self._fill_namespace(operation, metadata)
        base = metadata.get("generateName") or ""
        generated = bool(base) and not metadata.get("name")
        for _ in range(_ATTEMPTS if generated else 1):
            if generated:
                metadata["name"] = base[:58] + "".join(random.choices(_NAME_ALPHABET, k=5))
            try:
                return await self._create_named(operation, orjson.loads(orjson.dumps(obj)) if generated else obj)
            except StatusError as error:
                if not generated or error.reason != "AlreadyExists":
                    raise
        raise errors.already_exists(resource, metadata["name"])

    async def _create_named(self, operation: Operation, obj: Object) -> Entry:
        resource, metadata = operation.resource, obj["metadata"]
        for server_set in ("selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"):
            metadata.pop(server_set, None)
        if not operation.applies:
            metadata.pop("managedFields", None)
        if resource.status:
            obj.pop("status", None)
        self._check_schema(operation, obj, metadata.get("name", ""))
        if resource.kind == "CertificateSigningRequest" and _well_formed(obj):
            # Who asks is what approvers and signers go by: the server's word, never the client's.
            obj["spec"] = {**obj.get("spec", {}), **_requester(operation.user)}
        metadata["uid"], metadata["creationTimestamp"] = str(uuid.uuid4()), now()
        defaults.apply(resource.gvk, obj)
        self._track(operation, obj, None)
        problems = strategies.prepare(resource.group, resource.plural, obj, None, self._context) if _well_formed(obj) else []
        await self.admit(operation, "CREATE", obj, None)
        defaults.apply(resource.gvk, obj)
        if "spec" in obj:
            metadata["generation"] = 1
        problems = [*validation.validate_metadata(obj, resource), *validation.validate_create(resource.gvk, obj), *problems]
        self._refuse(operation, obj, problems)
        key = resource.key(operation.namespace, metadata["name"])
        if operation.dry_run:
            if self._cache.of(resource).get(key):
                raise errors.already_exists(resource, metadata["name"])
            return self._unwritten(key, obj)
        try:
            await self._store.txn(key, 0, encode(_stored(resource, obj)), ttl_seconds=resource.ttl_seconds)
        except Conflict:
            raise errors.already_exists(resource, metadata["name"]) from None
        return self._written(resource, key)

    async def update(self, operation: Operation, obj: Object) -> tuple[Entry, bool]:
        """Replaces the object; creates it where the API allows that (PUT of a name that is not there, for leases alone).

        Returns it, and whether it was created.
        """
        resource = operation.resource
        self._expect_kind(obj, resource.gvk)
        metadata = obj["metadata"] = obj.get("metadata") or {}
        self._fill_namespace(operation, metadata)
        if metadata.get("name", operation.name) != operation.name:
            raise errors.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({operation.name})"
            )
        metadata["name"] = operation.name
        wanted = metadata.get("resourceVersion")
        return await self._replace(operation, lambda _: obj, wanted), False

    async def patch(self, operation: Operation, kind: str, body: Any) -> Entry:
        resource = operation.resource

        def patched(current: Object) -> Object:
            result = patches.apply(kind, current, body, lambda path: self._schemas.patch_strategy(resource.gvk, path))
            self._expect_kind(result, resource.gvk)
            if (result.get("metadata") or {}).get("name") != operation.name:
                raise errors.invalid(resource.kind, resource.group, operation.name, [_NAME_IS_FIXED])
            return result

        wanted = (body.get("metadata") or {}).get("resourceVersion") if isinstance(body, dict) else None
        return await self._replace(operation, patched, wanted)

    async def apply(self, operation: Operation, body: Any) -> tuple[Entry, bool]:
        """Server-side apply: makes the object what the configuration says of it; returns it, and whether it is new.

        Raises StatusError: Conflict where another manager owns a field that would change.
        """
        resource = operation.resource
        if not operation.query.get("fieldManager"):
            problem = fields.required("fieldManager", "is required for apply patch")
            raise errors.invalid("PatchOptions", "meta.k8s.io", "", [problem])
        if not isinstance(body, dict):
            raise errors.bad_request("the applied configuration must be an object")
        self._expect_kind(body, resource.gvk)
        metadata = body["metadata"] = body.get("metadata") or {}
        self._fill_namespace(operation, metadata)
        if metadata.setdefault("name", operation.name) != operation.name:
            raise errors.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({operation.name})"
            )
        self._check_schema(operation, body, operation.name, partial=True)
        if operation.subresource == "status":
            body = {key: value for key, value in body.items() if key in ("apiVersion", "kind", "metadata", "status")}
        elif resource.status:
            body.pop("status", None)
        wanted = metadata.pop("resourceVersion", None)
        operation.applies = True
        manager = managers.Manager(operation.manager, "Apply", resource.api_version, operation.subresource)
        typed, force = self._typed(resource), operation.query.get("force") in ("true", "1")

        def applied(current: Object | None) -> Object:
            return managers.apply(typed, current, orjson.loads(orjson.dumps(body)), manager, force=force)

        for _ in range(_ATTEMPTS):
            if self._cache.of(resource).get(resource.key(operation.namespace, operation.name)):
                return await self._replace(operation, applied, wanted), False
            if operation.subresource:
                raise errors.not_found(resource, operation.name)
            if metadata.get("uid"):
                raise errors.conflict(
                    resource,
                    operation.name,
                    f"uid mismatch: the provided object specified uid {metadata['uid']}, and no existing object was found",
                )
            try:
                return await self._create_named(operation, applied(None)), True
            except StatusError as error:
                if error.reason != "AlreadyExists":
                    raise
        raise errors.conflict(resource, operation.name)

    def _typed(self, resource: Resource) -> fieldsets.Typed:
        return fieldsets.Typed(self._schemas, self._schemas.schema_of(resource.gvk))

    def _track(self, operation: Operation, new: Object, old: Object | None) -> None:
        """Writes down who owns what this write changes (see `managers`)."""
        if operation.applies:
            return
        manager = managers.Manager(operation.manager, "Update", operation.resource.api_version, operation.subresource)
        named = "fieldManager" in operation.query
        managers.track_update(self._typed(operation.resource), new, old, manager, named=named)

    async def _replace(self, operation: Operation, change: Callable[[Object], Object], wanted: str | None) -> Entry:
        """Writes what `change` makes of the current object. wanted: the only resourceVersion that may be replaced."""
        resource = operation.resource
        key = resource.key(operation.namespace, operation.name)
        cache = self._cache.of(resource)
        for _ in range(_ATTEMPTS):
            entry = cache.get(key)
            if entry is None:
                raise errors.not_found(resource, operation.name)
            if wanted and wanted != str(entry.revision):
                raise errors.conflict(resource, operation.name)
            old = entry.decode()
            new = change(entry.decode())
            version = new["metadata"].get("resourceVersion")
            if version and version != str(entry.revision):  # a JSON patch names it so
                raise errors.conflict(resource, operation.name)
            if operation.subresource != "status":
                self._check_schema(operation, new, operation.name)
            await self._prepare_update(operation, new, old)
            if operation.dry_run:
                return self._unwritten(key, new)
            if _is_finished(new):
                return await self._remove(resource, key, entry, new)
            value = encode(_stored(resource, new))
            if with_revision(value, entry.revision) == entry.data:
                return entry  # nothing changes: nothing is written, and no watcher is woken
            try:
                await self._store.txn(key, entry.revision, value, ttl_seconds=resource.ttl_seconds)
            except Conflict:
                if wanted:
                    raise errors.conflict(resource, operation.name) from None
                continue
            return self._written(resource, key)
        raise errors.conflict(resource, operation.name)

    async def _prepare_update(self, operation: Operation, new: Object, old: Object) -> None:
        resource = operation.resource
        metadata, before = new["metadata"], old["metadata"]
        if metadata.get("uid") and metadata["uid"] != before["uid"]:
            why = f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {before['uid']}"
            raise errors.conflict(resource, operation.name, why)
        for kept in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName"):
            if kept in before:
                metadata[kept] = before[kept]
            elif kept != "generateName":
                metadata.pop(kept, None)
        if operation.subresource:
            given = metadata.get("managedFields")
            changed = strategies.through_subresource(operation.subresource, new, old)
            new.clear()
            new.update(changed)
            if given is not None:
                new["metadata"]["managedFields"] = given
            if operation.subresource in strategies.SPEC_SUBRESOURCES:
                defaults.apply(resource.gvk, new)
                self._refuse(operation, new, validation.validate_create(resource.gvk, new))
                metadata = new["metadata"]
                if new["spec"] != old["spec"] and "generation" in before:
                    metadata["generation"] = before["generation"] + 1
            self._track(operation, new, old)
            await self.admit(operation, "UPDATE", new, old)
            return
        if resource.status:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        defaults.apply(resource.gvk, new)
        self._track(operation, new, old)
        problems = strategies.prepare(resource.group, resource.plural, new, old, self._context) if _well_formed(new) else []
        await self.admit(operation, "UPDATE", new, old)
        if new.get("spec") != old.get("spec") and "generation" in before:
            metadata["generation"] = before["generation"] + 1
        problems = [
            *validation.validate_metadata(new, resource),
            *validation.validate_finalizers_update(new, old),
            *validation.validate_update(resource.gvk, new, old),
            *problems,
        ]
        self._refuse(operation, new, problems)

    async def delete(self, operation: Operation, options: Mapping[str, Any]) -> tuple[Entry, bool]:
        """Deletes the object, or begins to: returns its last state, and whether it is gone.

        options: DeleteOptions. An object with finalizers, and a running pod, get a deletionTimestamp and stay until
        whoever has to do something has done it.
        """
        resource = operation.resource
        key = resource.key(operation.namespace, operation.name)
        for _ in range(_ATTEMPTS):
            entry = self.get(operation)
            obj = entry.decode()
            self._check_preconditions(operation, obj, options.get("preconditions") or {})
            await self.admit(operation, "DELETE", None, obj, options)
            updated = _marked_for_deletion(resource, obj, options)
            if operation.dry_run:
                return entry, updated is None
            try:
                if updated is None:
                    return await self._remove(resource, key, entry, obj), True
                value = encode(_stored(resource, updated))
                if with_revision(value, entry.revision) != entry.data:
                    await self._store.txn(key, entry.revision, value)
                return self._written(resource, key), False
            except Conflict:
                continue
        raise errors.conflict(resource, operation.name)

    async def delete_collection(self, operation: Operation, options: Mapping[str, Any]) -> Page:
        page = self.list(operation)
        for entry in page.entries:
            namespace, _, name = entry.key.removeprefix(operation.resource.prefix).rpartition("/")
            one = replace(operation, namespace=namespace, name=name)
            try:
                await self.delete(one, options)
            except StatusError as error:
                if error.reason != "NotFound":
                    raise
        return page

    # --- subresources

    async def bind(self, operation: Operation, binding: Object) -> None:
        """pods/binding: gives the pod its node, once (core/v1 Binding)."""
        self._expect_kind(binding, ("", "v1", "Binding"))
        target = (binding.get("target") or {}).get("name")
        if not target:
            raise errors.invalid("Binding", "", operation.name, [fields.required("target.name")])

        def assign(pod: Object) -> Object:
            if pod["spec"].get("nodeName"):
                why = f'pod {operation.name} is already assigned to node "{pod["spec"]["nodeName"]}"'
                raise errors.conflict(operation.resource, operation.name, why)
            if pod["metadata"].get("deletionTimestamp"):
                raise errors.conflict(
                    operation.resource, operation.name, f"pod {operation.name} is being deleted, cannot be assigned to a host"
                )
            uid = (binding.get("metadata") or {}).get("uid")
            if uid and uid != pod["metadata"]["uid"]:
                why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {pod['metadata']['uid']}"
                raise errors.conflict(operation.resource, operation.name, why)
            pod["spec"]["nodeName"] = target
            pod["metadata"].setdefault("annotations", {}).update((binding.get("metadata") or {}).get("annotations") or {})
            if not pod["metadata"]["annotations"]:
                del pod["metadata"]["annotations"]
            conditions = pod.setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [c for c in conditions if c["type"] != "PodScheduled"]
            conditions.append({"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now()})
            return pod

        await self._rewrite(operation, assign)

    async def evict(self, operation: Operation, eviction: Object) -> None:
        """pods/eviction: a deletion that asks the disruption budgets first (policy/v1 Eviction)."""
        options = eviction.get("deleteOptions") or {}
        if problems := validation.validate_delete_options(options):
            raise errors.invalid("Eviction", "policy", operation.name, problems)
        dry_run = operation.dry_run or bool(options.get("dryRun"))
        one = replace(operation, subresource="", query={**operation.query, **({"dryRun": "All"} if dry_run else {})})
        pod = self.get(one).decode()
        if not pod["metadata"].get("deletionTimestamp") and (pod.get("status") or {}).get("phase") == "Running":
            await self._spend_disruption(one, pod)
        await self.delete(one, options)

    async def _spend_disruption(self, operation: Operation, pod: Object) -> None:
        """Takes one of the disruptions that the pod's budget still allows. Raises StatusError when it allows none."""
        labels = pod["metadata"].get("labels") or {}
        budgets = [
            budget
            for budget in self._cache.list("policy", "poddisruptionbudgets", operation.namespace)
            if parse_label_selector((budget.get("spec") or {}).get("selector")).matches(labels)
        ]
        if len(budgets) > 1:
            text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise StatusError(500, "InternalError", text)
        if not budgets:
            return
        name = budgets[0]["metadata"]["name"]
        declared = self._registry.preferred("policy", "poddisruptionbudgets")
        if declared is None:
            return

        def spent(budget: Object) -> Object:
            status = budget.setdefault("status", {})
            if not status.get("disruptionsAllowed"):
                why = f"The disruption budget {name} does not allow evicting pods currently"
                cause = {"reason": "DisruptionBudget", "message": why}
                text = "Cannot evict pod as it would violate the pod's disruption budget."
                raise StatusError(429, "TooManyRequests", text, {"causes": [cause]})
            status["disruptionsAllowed"] -= 1
            status.setdefault("disruptedPods", {})[operation.name] = now()
            return budget

        await self._rewrite(replace(operation, resource=declared, name=name), spent)

    async def finalize(self, operation: Operation, obj: Object) -> Entry:
        """namespaces/finalize: sets spec.finalizers; the namespace goes when they and its own are empty."""

        def finalized(namespace: Object) -> Object:
            namespace["spec"]["finalizers"] = (obj.get("spec") or {}).get("finalizers") or []
            return namespace

        return await self._rewrite(operation, finalized)

    def scale(self, operation: Operation) -> Object:
        """The Scale (autoscaling/v1) of a workload."""
        obj = self.get(operation).decode()
        metadata, spec = obj["metadata"], obj.get("spec") or {}
        selector = spec.get("selector") or {}
        pairs = selector.get("matchLabels") or ({} if "matchExpressions" in selector else selector)
        kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {k: metadata[k] for k in kept if k in metadata},
            "spec": {"replicas": spec.get("replicas", 0)},
            "status": {
                "replicas": (obj.get("status") or {}).get("replicas", 0),
                "selector": ",".join(f"{k}={v}" for k, v in sorted(pairs.items())),
            },
        }

    async def rescale(self, operation: Operation, change: Callable[[Object], Object]) -> Object:
        """Writes the Scale that `change` makes of the current one."""
        scale = change(self.scale(operation))
        replicas = (scale.get("spec") or {}).get("replicas", 0)
        if not isinstance(replicas, int) or replicas < 0:
            problem = fields.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
            raise errors.invalid("Scale", "autoscaling", operation.name, [problem])
        wanted = (scale.get("metadata") or {}).get("resourceVersion")
        plain = replace(operation, subresource="")

        def resized(obj: Object) -> Object:
            obj["spec"]["replicas"] = replicas
            return obj

        await self._replace(plain, resized, wanted)
        return self.scale(operation)

    async def _rewrite(self, operation: Operation, change: Callable[[Object], Object]) -> Entry:
        """A change by the server's own rules, past defaults and validation."""
        resource, key = operation.resource, operation.resource.key(operation.namespace, operation.name)
        while True:
            entry = self.get(operation)
            new = change(entry.decode())
            if operation.dry_run:
                return self._unwritten(key, new)
            try:
                if _is_finished(new):
                    return await self._remove(resource, key, entry, new)
                await self._store.txn(key, entry.revision, encode(_stored(resource, new)))
            except Conflict:
                continue
            return self._written(resource, key)

    # --- pieces

    async def _remove(self, resource: Resource, key: str, entry: Entry, last: Object) -> Entry:
        """Takes the object out of the store, its last state being what the caller made of it."""
        revision = await self._store.txn(key, entry.revision, None)
        return Entry(key, revision, with_revision(encode(last), revision), entry.labels, entry.fields)

    def _written(self, resource: Resource, key: str) -> Entry:
        """The object after a write: the cache has seen it before the store answered."""
        entry = self._cache.of(resource).get(key)
        if entry is None:  # deleted by the next commit already
            raise errors.not_found(resource, key.rpartition("/")[2])
        return entry

    @staticmethod
    def _unwritten(key: str, obj: Object) -> Entry:
        data = orjson.dumps({k: v for k, v in obj.items() if v is not None})
        return Entry(key, 0, data, {}, {})

    def _expect_kind(self, obj: Object, gvk: tuple[str, str, str]) -> None:
        group, version, kind = gvk
        api_version = f"{group}/{version}" if group else version
        if obj.setdefault("apiVersion", api_version) != api_version:
            raise errors.bad_request(
                f"the API version in the data ({obj['apiVersion']}) does not match the expected API version ({api_version})"
            )
        if obj.setdefault("kind", kind) != kind:
            raise errors.bad_request(
                f'{obj["kind"]} in version "{version}" cannot be handled as a {kind}: Kind={kind} was expected'
            )
        if not isinstance(obj.get("metadata", {}), dict | None):
            raise errors.bad_request(
                f'{kind} in version "{version}" cannot be handled as a {kind}: json: cannot unmarshal '
                f"{type(obj['metadata']).__name__} into Go struct field {kind}.metadata of type v1.ObjectMeta"
            )

    def _fill_namespace(self, operation: Operation, metadata: dict[str, Any]) -> None:
        if not operation.resource.namespaced:
            metadata.pop("namespace", None)
        elif metadata.setdefault("namespace", operation.namespace) != operation.namespace:
            raise errors.bad_request(
                f"the namespace of the provided object does not match the namespace sent on the request "
                f"({metadata['namespace']} instead of {operation.namespace})"
            )

    def _check_schema(self, operation: Operation, obj: Object, name: str, *, partial: bool = False) -> None:
        """Types and unknown fields, which the field validation of the request refuses, warns of or drops.

        partial: the object need not be complete.
        """
        check = self._schemas.check(operation.resource.gvk, obj)
        if check.wrong_types:
            raise errors.undecodable(operation.resource, check.wrong_types[0].replace("%s", operation.resource.kind, 1))
        problems = [error for error in check.errors if not partial or error.type != "Required value"]
        if problems:
            raise errors.invalid(operation.resource.kind, operation.resource.group, name, problems)
        operation.strictly([f'unknown field "{path}"' for path in check.unknown])

    def _refuse(self, operation: Operation, obj: Object, problems: Sequence[fields.FieldError]) -> None:
        if problems:
            name = obj["metadata"].get("name", "")
            raise errors.invalid(operation.resource.kind, operation.resource.group, name, problems)

    def _check_preconditions(self, operation: Operation, obj: Object, wanted: Mapping[str, Any]) -> None:
        metadata = obj["metadata"]
        for name, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            if wanted.get(name) and wanted[name] != metadata[name]:
                why = f"Precondition failed: {label} in precondition: {wanted[name]}, {label} in object meta: {metadata[name]}"
                raise errors.conflict(operation.resource, operation.name, why)

    async def admit(
        self, operation: Operation, verb: str, obj: Object | None, old: Object | None, options: Mapping[str, Any] | None = None
    ) -> None:
        """Asks the admission plugins, which may change the object. Raises StatusError."""
        if not self.admission:
            return
        resource = operation.resource
        name = operation.name or ((obj or {}).get("metadata") or {}).get("name", "")
        request = AdmissionRequest(
            operation.user, verb, resource.group, resource.version, resource.plural, operation.subresource,
            operation.namespace, name, obj, old, options or {}, operation.dry_run,
        )  # fmt: skip
        for plugin in self.admission:
            await plugin.admit(request)


_NAME_IS_FIXED = fields.FieldError("metadata.name", "Invalid value", "field is immutable")


def selection(operation: Operation) -> tuple[str, Selector, Selector]:
    """The key prefix and the selectors of a list or watch. Raises StatusError for selectors that cannot be read."""
    resource, query = operation.resource, operation.query
    prefix = f"{resource.prefix}{operation.namespace}/" if operation.namespace else resource.prefix
    try:
        labels = parse_label_selector(query.get("labelSelector", ""))
        fields_ = parse_field_selector(query.get("fieldSelector", ""))
    except ValueError as error:
        raise errors.bad_request(str(error)) from None
    for requirement in labels.requirements:
        for problem in validation.validate_label(requirement.key, requirement.values):
            raise errors.bad_request(f"unable to parse requirement: {problem.message()}")
    known = {"metadata.name", "metadata.namespace", *resource.fields}
    for requirement in fields_.requirements:
        if requirement.key not in known:
            raise errors.bad_request(f"field label not supported: {requirement.key}")
    return prefix, labels, fields_


def _token(revision: int, after: str) -> str:
    """A continue token; revision 0 stands for the newest one."""
    return base64.urlsafe_b64encode(orjson.dumps({"revision": revision, "after": after})).decode()


def _exact_name(selector: Selector) -> str | None:
    return next((r.values[0] for r in selector.requirements if r.key == "metadata.name" and r.operator == "in"), None)


def _requester(user: UserInfo) -> dict[str, Any]:
    """The fields of a CertificateSigningRequest's spec that say who has asked."""
    extra = {key: list(values) for key, values in user.extra.items()}
    return {"username": user.name, "uid": user.uid, "groups": list(user.groups), "extra": extra}


def _well_formed(obj: Object) -> bool:
    return isinstance(obj.get("spec", {}), dict)


def _stored(resource: Resource, obj: Object) -> Object:
    """The object as it is stored: in the storage version, without what is empty."""
    metadata = {k: v for k, v in obj["metadata"].items() if v is not None and v != {} and v != []}
    return {**{k: v for k, v in obj.items() if v is not None}, "metadata": metadata}


def _is_finished(obj: Object) -> bool:
    """Whether a deletion that has begun may end: no finalizer is left, and nobody's grace period runs."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return False
    if obj["kind"] == "Namespace":
        return not (obj.get("spec") or {}).get("finalizers")
    return not metadata.get("deletionGracePeriodSeconds")


def _marked_for_deletion(resource: Resource, obj: Object, options: Mapping[str, Any]) -> Object | None:
    """The object with the marks of a deletion that has begun; None if it can go at once."""
    metadata = obj["metadata"]
    finalizers = [f for f in metadata.get("finalizers") or [] if f not in ("orphan", "foregroundDeletion")]
    policy = options.get("propagationPolicy") or ("Orphan" if options.get("orphanDependents") else None)
    if policy == "Orphan":
        finalizers.append("orphan")
    elif policy == "Foreground":
        finalizers.append("foregroundDeletion")
    elif policy is None:
        finalizers = list(metadata.get("finalizers") or [])
    grace = _grace_seconds(resource, obj, options)
    if not finalizers and not grace and not (obj["kind"] == "Namespace" and (obj.get("spec") or {}).get("finalizers")):
        return None
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    already = metadata.get("deletionTimestamp")
    if not already or grace < metadata.get("deletionGracePeriodSeconds", 0):
        moment = datetime.now(UTC).timestamp() + grace
        metadata["deletionTimestamp"] = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["deletionGracePeriodSeconds"] = grace
        if not already and "generation" in metadata:
            metadata["generation"] += 1
    if obj["kind"] == "Namespace":
        obj.setdefault("status", {})["phase"] = "Terminating"
        metadata.pop("deletionGracePeriodSeconds", None)
    return obj


def _grace_seconds(resource: Resource, obj: Object, options: Mapping[str, Any]) -> int:
    """How long a pod has to end; 0 for everything else, for pods without a node, and for pods that have ended."""
    if resource.plural != "pods":
        return 0
    grace = options.get("gracePeriodSeconds")
    seconds = obj["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else int(grace)
    if not obj["spec"].get("nodeName") or (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    return max(seconds, 0)

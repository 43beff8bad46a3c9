"""OpenAPI v2 and v3 of the served resources, from the schema table: what `kubectl explain` and `kubectl apply` read.

The paths are there for what clients look for in them: the kind that they take, and that they know `fieldValidation`.
"""

import json
from collections import defaultdict
from typing import Any

import orjson

from controlplane.apiserver import openapi_protobuf
from controlplane.apiserver.discovery import VERSION
from controlplane.apiserver.resources import Registry, Resource
from controlplane.apiserver.schema import Schemas

_INFO = {"title": "Kubernetes", "version": VERSION["gitVersion"]}
_WRITING = {"post": "create", "put": "update", "patch": "patch"}
_V2_TYPES = {  # version 2 knows no alternatives
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": "string"},
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": "string", "format": "int-or-string"},
}
_QUERY = ("dryRun", "fieldManager", "fieldValidation", "pretty")


class OpenApi:
    def __init__(self, schemas: Schemas, registry: Registry) -> None:
        self._schemas, self._registry = schemas, registry
        self._made: dict[str, bytes] = {}

    def document(self, path: str, accept: str) -> tuple[bytes, str] | None:
        """The document at /openapi/v2, /openapi/v3 or /openapi/v3/(api|apis/GROUP)/VERSION, and its content type.

        None for another path. Only v2 is there in protobuf, for clients whose Accept header asks for it.
        """
        protobuf = path == "/openapi/v2" and openapi_protobuf.MEDIA_TYPE in accept
        key = f"{path} protobuf" if protobuf else path
        if key not in self._made:
            document = self._make(path)
            if document is None:
                return None
            self._made[key] = openapi_protobuf.encode(document) if protobuf else orjson.dumps(document)
        return self._made[key], openapi_protobuf.ANSWERED_TYPE if protobuf else "application/json"

    def _make(self, path: str) -> dict[str, Any] | None:
        if path == "/openapi/v2":
            return self._v2()
        if path == "/openapi/v3":
            roots = {self._root(r).strip("/") for r in self._registry.resources}
            return {"paths": {root: {"serverRelativeURL": f"/openapi/v3/{root}"} for root in sorted(roots)}}
        root = path.removeprefix("/openapi/v3")
        found = [r for r in self._registry.resources if self._root(r) == root]
        return self._v3(found) if found else None

    @staticmethod
    def _root(resource: Resource) -> str:
        return f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"

    def _v3(self, resources: list[Resource]) -> dict[str, Any]:
        names = self._reachable([name for r in resources if (name := self._schemas.name_of(r.gvk))])
        # The schemas of the package name null as a type, which OpenAPI 3.0 does not know.
        schemas = _rewritten({name: self._schemas.definitions[name] for name in names}, "#/components/schemas/")
        paths: dict[str, Any] = {}
        for resource in resources:
            for path, item in self._paths(resource).items():
                paths[path] = item
        return {"openapi": "3.0.0", "info": _INFO, "paths": paths, "components": {"schemas": schemas}}

    def _v2(self) -> dict[str, Any]:
        definitions = {**_rewritten(dict(self._schemas.definitions), "#/definitions/"), **_V2_TYPES}
        paths: dict[str, Any] = {}
        for resource in self._registry.resources:
            paths |= self._paths(resource, v2=True)
        return {"swagger": "2.0", "info": _INFO, "paths": paths, "definitions": definitions}

    def _paths(self, resource: Resource, *, v2: bool = False) -> dict[str, Any]:
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        collection = f"{self._root(resource)}{scope}/{resource.plural}"
        gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        by_path: dict[str, Any] = defaultdict(dict)
        methods = {"create": ("post", ""), "list": ("get", ""), "get": ("get", "/{name}"), "update": ("put", "/{name}"),
                   "patch": ("patch", "/{name}"), "delete": ("delete", "/{name}")}  # fmt: skip
        string: dict[str, Any] = {"type": "string"} if v2 else {"schema": {"type": "string"}}
        for verb, (method, tail) in methods.items():
            if verb not in resource.verbs:
                continue
            parameters = [{"name": name, "in": "query", **string} for name in _QUERY]
            by_path[collection + tail][method] = {
                "operationId": f"{verb}{resource.kind}",
                "x-kubernetes-action": {"create": "post", "update": "put"}.get(verb, verb),
                "x-kubernetes-group-version-kind": gvk,
                "parameters": parameters if method in _WRITING else [],
                "responses": {"200": {"description": "OK"}},
            }
        return by_path

    def _reachable(self, names: list[str]) -> list[str]:
        """The names and all that they refer to."""
        seen: set[str] = set()
        while names:
            name = names.pop()
            if name not in seen:
                seen.add(name)
                names += _references(self._schemas.definitions[name])
        return sorted(seen)


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"].removeprefix("#/$defs/")] if isinstance(schema.get("$ref"), str) else []
        return own + [name for value in schema.values() for name in _references(value)]
    return [name for item in schema for name in _references(item)] if isinstance(schema, list) else []


def _rewritten(definitions: dict[str, Any], prefix: str) -> Any:
    """The definitions with references of another form, and one type each."""
    text = json.dumps(definitions).replace("#/$defs/", prefix)

    def one_type(obj: dict[str, Any]) -> dict[str, Any]:
        kinds = obj.get("type")
        if isinstance(kinds, list):
            obj["type"] = next(kind for kind in kinds if kind != "null")
        return obj

    return json.loads(text, object_hook=one_type)

"""The types of the built-in resources: what each field may hold, and how lists are patched.

The table is made from the JSON schemas of v1.36 that the package kubernetes-validate carries. For each kind a checker is
compiled once, at first use, into closures; one pass then finds wrong types and missing fields, and takes out the fields
that do not exist (their paths are returned: the request decides whether that is an error or a warning).
"""

import importlib.util
import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from controlplane.apiserver import fields
from controlplane.apiserver.fields import FieldError
from controlplane.apiserver.patches import Strategy

KUBERNETES_VERSION = "v1.36.0"
_PREFIX = "#/$defs/"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"

GVK = tuple[str, str, str]
Schema = Mapping[str, Any]


@dataclass
class Check:
    """What a check found: missing fields, wrong types (as decoders word them), and fields that no schema knows.

    Unknown fields are removed from the object; what is kept of them is the path.
    """

    errors: list[FieldError] = field(default_factory=list)
    wrong_types: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


Checker = Callable[[Any, str, Check], Any]
"""Checks the value at a path; returns the value to keep in its place."""


class Schemas:
    """The schema table. `definitions` are the JSON schemas by their full names."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self.definitions = definitions
        self._by_gvk: dict[GVK, str] = {}
        for name, definition in definitions.items():
            for gvk in definition.get("x-kubernetes-group-version-kind", ()):
                self._by_gvk[gvk["group"], gvk["version"], gvk["kind"]] = name
        self._checkers: dict[str, Checker] = {}

    @classmethod
    def load(cls) -> "Schemas":
        """Reads the table. Raises FileNotFoundError where kubernetes-validate is not installed."""
        spec = importlib.util.find_spec("kubernetes_validate")
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                "the package kubernetes-validate, which holds the API's schemas, is missing: run scripts/setup"
            )
        folder = Path(spec.origin).parent / f"kubernetes-json-schema/{KUBERNETES_VERSION}-local"
        return cls(orjson.loads((folder / "_definitions.json").read_bytes())["$defs"])

    def name_of(self, gvk: GVK) -> str | None:
        return self._by_gvk.get(gvk)

    def check(self, gvk: GVK, obj: dict[str, Any]) -> Check:
        """Checks the object, and takes unknown fields out of it. A kind without schema passes."""
        check = Check()
        name = self._by_gvk.get(gvk)
        if name is not None:
            self._checker(name)(obj, "", check)
        return check

    def patch_strategy(self, gvk: GVK, path: tuple[str, ...]) -> Strategy:
        """How strategic merge patches treat the field at a path of names."""
        schema = self.schema_of(gvk)
        for step in path:
            schema = self.resolve(schema)
            if "items" in schema:
                schema = self.resolve(schema["items"])
            properties = schema.get("properties", {})
            schema = properties.get(step) or schema.get("additionalProperties") or {}
        return schema.get("x-kubernetes-patch-strategy", "replace"), schema.get("x-kubernetes-patch-merge-key")

    def schema_of(self, gvk: GVK) -> Schema:
        """The schema of a kind; an empty one (anything goes) where there is none."""
        return self.definitions.get(self._by_gvk.get(gvk, ""), {})

    def resolve(self, schema: Schema) -> Schema:
        """The schema that a schema refers to."""
        while "$ref" in schema:
            schema = self.definitions[schema["$ref"].removeprefix(_PREFIX)]
        return schema

    # --- compiling

    def _checker(self, name: str) -> Checker:
        checker = self._checkers.get(name)
        if checker is None:
            # Types refer to themselves (JSONSchemaProps): the entry is there before its closure is complete.
            self._checkers[name] = lambda value, path, check: self._checkers[name](value, path, check)
            checker = self._checkers[name] = self._compile(self.definitions[name], name)
        return checker

    def _compile(self, schema: Schema, name: str = "") -> Checker:
        if name == _INT_OR_STRING:
            return _typed((int, str), "int or string")
        if name == _QUANTITY:
            return _typed((int, float, str), "quantity")
        if "$ref" in schema:
            return self._checker(schema["$ref"].removeprefix(_PREFIX))
        kinds = schema.get("type")
        kind = next((k for k in kinds if k != "null"), "") if isinstance(kinds, list) else kinds
        if "properties" in schema:
            return self._compile_object(schema)
        match kind:
            case "object":
                return self._compile_map(schema)
            case "array":
                return self._compile_list(schema)
            case "string":
                return _check_bytes if schema.get("format") == "byte" else _typed((str,), "string")
            case "boolean":
                return _typed((bool,), "bool")
            case "integer":
                return _typed((int,), schema.get("format", "int64"))
            case "number":
                return _typed((int, float), "float64")
        return lambda value, path, check: value

    def _compile_object(self, schema: Schema) -> Checker:
        checkers = {key: self._compile(property_) for key, property_ in schema["properties"].items()}
        # A list that is not there is an empty one; whether it may be empty is for validation to say.
        required = tuple(name for name in schema.get("required", ()) if not _is_list(schema["properties"].get(name, {})))

        def check_object(value: Any, path: str, check: Check) -> Any:
            if value is None:
                return None
            if not isinstance(value, dict):
                check.wrong_types.append(_wrong_type(path, value, "object"))
                return value
            prefix = f"{path}." if path else ""
            for key in list(value):
                checker = checkers.get(key)
                if checker is None:
                    check.unknown.append(prefix + key)
                    del value[key]
                elif value[key] is not None:
                    checker(value[key], prefix + key, check)
                else:
                    del value[key]
            for key in required:
                if key not in value:
                    check.errors.append(fields.required(prefix + key))
            return value

        return check_object

    def _compile_map(self, schema: Schema) -> Checker:
        inner = schema.get("additionalProperties")
        checker = self._compile(inner) if isinstance(inner, dict) else None
        zero = self._zero(inner) if isinstance(inner, dict) else None

        def check_map(value: Any, path: str, check: Check) -> Any:
            if not isinstance(value, dict):
                check.wrong_types.append(_wrong_type(path, value, "object"))
            elif checker:
                for key, item in value.items():
                    if item is None:
                        item = value[key] = copy(zero)
                    checker(item, f"{path}[{key}]", check)
            return value

        return check_map

    def _compile_list(self, schema: Schema) -> Checker:
        checker = self._compile(schema["items"]) if "items" in schema else None
        zero = self._zero(schema["items"]) if "items" in schema else None

        def check_list(value: Any, path: str, check: Check) -> Any:
            if not isinstance(value, list):
                check.wrong_types.append(_wrong_type(path, value, "array"))
            elif checker:
                for index, item in enumerate(value):
                    if item is None:
                        item = value[index] = copy(zero)
                    checker(item, f"{path}[{index}]", check)
            return value

        return check_list

    def _zero(self, schema: Schema) -> Any:
        """What null stands for among the items of a list or map: the zero value of their type."""
        schema = self.resolve(schema)
        kinds = schema.get("type") or ()
        for kind, zero in _ZEROS.items():
            if kind in kinds:
                return zero
        return ""


def _is_list(schema: Schema) -> bool:
    return "array" in (schema.get("type") or ())


@cache
def _typed(types: tuple[type, ...], name: str) -> Checker:
    """A checker for a scalar. JSON's booleans are Python's integers: they are told apart."""

    def check_scalar(value: Any, path: str, check: Check) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            check.wrong_types.append(_wrong_type(path, value, name))
        return value

    return check_scalar


def _check_bytes(value: Any, path: str, check: Check) -> Any:
    if not isinstance(value, str):
        check.wrong_types.append(_wrong_type(path, value, "[]uint8"))
    elif bad := _NOT_BASE64.search(value):
        check.wrong_types.append(f"illegal base64 data at input byte {bad.start()}")
    elif len(value.replace("\n", "")) % 4:
        check.wrong_types.append(f"illegal base64 data at input byte {len(value) - len(value) % 4}")
    return value


_ZEROS: dict[str, Any] = {"object": {}, "array": [], "boolean": False, "integer": 0, "number": 0}
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n]|=(?!=?\s*$)")
_JSON_NAMES = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}
_INDEX = re.compile(r"\[\d+\]")


def _wrong_type(path: str, value: Any, wanted: str) -> str:
    """The complaint of Kubernetes' decoder, which people and programs know."""
    return f"json: cannot unmarshal {_JSON_NAMES[type(value)]} into Go struct field %s.{_INDEX.sub('', path)} of type {wanted}"

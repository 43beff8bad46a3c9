"""Sets of an object's fields, as server-side apply owns and merges them.

A field's path is a tuple of steps in the words of metadata.managedFields (FieldsV1): `f:spec` a field or a map's key,
`k:{"name":"web"}` the item of a list with keys, `v:"x"` the item of a set. What is atomic by the schema (a scalar, most
lists) is one field. https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from controlplane.apiserver.errors import bad_request
from controlplane.apiserver.schema import Schema, Schemas

Path = tuple[str, ...]
FieldSet = frozenset[Path]

_ITEM = object()
"""The value of an item as such, whatever its own fields hold."""

_KEY_DEFAULTS = {"protocol": "TCP"}
"""What a key is where the client leaves it out: the only default among the keys of the built-in lists."""


class Typed:
    """Objects of one kind, taken apart by its schema."""

    def __init__(self, schemas: Schemas, schema: Schema) -> None:
        self._schemas, self._root = schemas, schema

    def leaves(self, obj: Mapping[str, Any]) -> dict[Path, Any]:
        """Each field with its value. Raises StatusError for list items without their keys, or of the same keys."""
        return dict(self._leaves(obj, self._root, ()))

    def merge(self, live: Any, applied: Any) -> Any:
        """The live object with the applied fields in it."""
        return self._merge(live, applied, self._root, ())

    def remove(self, obj: Any, paths: FieldSet, kept: FieldSet) -> Any:
        """The object without the fields at these paths; an item or map is only taken out when nothing of `kept` is in it."""
        return self._remove(obj, self._root, (), paths, kept)

    def _leaves(self, value: Any, schema: Schema, path: Path) -> Iterator[tuple[Path, Any]]:
        schema = self._schemas.resolve(schema)
        if isinstance(value, dict) and value and not _is_atomic(schema):
            for name, item in value.items():
                yield from self._leaves(item, _below(schema, name), (*path, f"f:{name}"))
        elif isinstance(value, list) and value and (keyed := _list_kind(schema)):
            for step, item in self._steps(value, schema, path):
                yield (*path, step), _ITEM
                if keyed == "map":
                    yield from self._leaves(item, schema["items"], (*path, step))
        else:
            yield path, value

    def _steps(self, items: list[Any], schema: Schema, path: Path) -> list[tuple[str, Any]]:
        """The items of a list that is no atom, each with the step that names it."""
        if _list_kind(schema) == "set":
            return [(f"v:{_dumps(item)}", item) for item in dict.fromkeys(items)]
        found: dict[str, Any] = {}
        for item in items:
            keys = {}
            for name in schema["x-kubernetes-list-map-keys"]:
                value = item.get(name) if isinstance(item, dict) else None
                keys[name] = _KEY_DEFAULTS.get(name) if value is None else value
            if all(value is None for value in keys.values()):
                raise bad_request(f"{shown(path)}: an item lacks its keys {', '.join(keys)}")
            step = f"k:{_dumps({name: value for name, value in keys.items() if value is not None})}"
            if step in found:
                raise bad_request(f"{shown((*path, step))}: duplicate entries for key {step[2:]}")
            found[step] = item
        return list(found.items())

    def _merge(self, live: Any, applied: Any, schema: Schema, path: Path) -> Any:
        schema = self._schemas.resolve(schema)
        if isinstance(live, dict) and isinstance(applied, dict) and not _is_atomic(schema):
            merged = dict(live)
            for name, value in applied.items():
                merged[name] = self._merge(live.get(name), value, _below(schema, name), (*path, f"f:{name}"))
            return merged
        if isinstance(live, list) and isinstance(applied, list) and (kind := _list_kind(schema)):
            own = dict(self._steps(applied, schema, path))
            there = dict(self._steps(live, schema, path))
            # The order is the client's; what it does not know stays in the live order, behind.
            steps = [*own, *(step for step in there if step not in own)]
            if kind == "set":
                return [own.get(step, there.get(step)) for step in steps]
            below = schema["items"]
            return [
                self._merge(there.get(step), own[step], below, (*path, step)) if step in own else there[step] for step in steps
            ]
        return applied

    def _remove(self, value: Any, schema: Schema, path: Path, paths: FieldSet, kept: FieldSet) -> Any:
        schema = self._schemas.resolve(schema)
        gone = _GONE
        if isinstance(value, dict) and value and not _is_atomic(schema):
            result = {}
            for name, item in value.items():
                left = self._remove(item, _below(schema, name), (*path, f"f:{name}"), paths, kept)
                if left is not gone:
                    result[name] = left
            return gone if not result and path and not _is_owned(path, kept) else result
        if isinstance(value, list) and value and _list_kind(schema):
            items = []
            for step, item in self._steps(value, schema, path):
                at = (*path, step)
                if at in paths and not _is_owned(at, kept):
                    continue
                if _list_kind(schema) == "map":
                    item = self._remove(item, schema["items"], at, paths, kept)
                if item is not gone:
                    items.append(item)
            return gone if not items and not _is_owned(path, kept) else items
        return gone if path in paths else value


_GONE: Any = object()


def _is_owned(path: Path, kept: FieldSet) -> bool:
    return any(one[: len(path)] == path for one in kept)


def _is_atomic(schema: Schema) -> bool:
    return schema.get("x-kubernetes-map-type") == "atomic" or not ("properties" in schema or "additionalProperties" in schema)


def _list_kind(schema: Schema) -> str:
    """map, set, or nothing for a list that is one field."""
    kind = schema.get("x-kubernetes-list-type", "atomic")
    return kind if kind in ("map", "set") else ""


def _below(schema: Schema, name: str) -> Schema:
    found = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
    return found if isinstance(found, dict) else {}


def _dumps(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def to_fields_v1(paths: Iterable[Path]) -> dict[str, Any]:
    """The tree that managedFields carries; `.` in it is the node itself."""
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node["."] = {}
    return {name: _without_dots(node) for name, node in tree.items()}


def _without_dots(node: dict[str, Any]) -> dict[str, Any]:
    if node.keys() == {"."}:
        return {}
    return {name: child if name == "." else _without_dots(child) for name, child in node.items()}


def from_fields_v1(tree: Mapping[str, Any], path: Path = ()) -> FieldSet:
    """The paths of a tree. Raises StatusError where it is none."""
    found: set[Path] = set()
    for step, below in tree.items():
        if not isinstance(below, dict) or not (step == "." or step[:2] in ("f:", "k:", "v:", "i:")):
            raise bad_request(f"metadata.managedFields: {step!r} is no step of a field's path")
        if step == ".":
            found.add(path)
        elif below:
            found |= from_fields_v1(below, (*path, step))
        else:
            found.add((*path, step))
    return frozenset(found)


def shown(path: Path) -> str:
    """A path as messages show it: .spec.containers[name="web"].image"""
    text = ""
    for step in path:
        kind, _, rest = step.partition(":")
        if kind == "k":
            keys = ",".join(f"{name}={_dumps(value)}" for name, value in orjson.loads(rest).items())
            text += f"[{keys}]"
        else:
            text += f"[={rest}]" if kind == "v" else f".{rest}"
    return text

"""The three patches of the API: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge patch.

A strategic merge patch knows from the schema which lists are merged, and by which key of their items:
https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md
"""

from collections.abc import Callable
from typing import Any

import jsonpatch
import orjson

from controlplane.apiserver.errors import bad_request
from controlplane.apiserver.request import StatusError
from controlplane.apiserver.resources import Object

JSON, MERGE, STRATEGIC = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)
APPLY = "application/apply-patch+yaml"

Strategy = tuple[str, str | None]
"""How a list or object is patched (merge, replace, or with retainKeys), and the key its items are merged by."""

StrategyOf = Callable[[tuple[str, ...]], Strategy]
"""The strategy of the field at a path (names of fields; list items add nothing)."""

_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"
_DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


def apply(kind: str, obj: Object, body: Any, strategy_of: StrategyOf) -> Object:
    """The patched object; obj is left alone. Raises StatusError for a patch that cannot be applied."""
    if kind == JSON:
        return _apply_json(obj, body)
    if not isinstance(body, dict):
        raise bad_request("a merge patch must be a JSON object")
    if kind == MERGE:
        merged: Object = _merge(obj, body)
        return merged
    result = _strategic(orjson.loads(orjson.dumps(obj)), body, (), strategy_of)
    if not isinstance(result, dict):
        raise bad_request("the patch removes the whole object")
    return result


def _apply_json(obj: Object, operations: Any) -> Object:
    if not isinstance(operations, list):
        raise bad_request("a JSON patch must be a list of operations")
    if len(operations) > 10_000:
        raise StatusError(413, "RequestEntityTooLarge", "the allowed maximum operations in a JSON patch is 10000")
    try:
        patched: Object = jsonpatch.apply_patch(obj, operations)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError) as error:
        text = f"the server rejected our request due to an error in our request: {error}"
        raise StatusError(422, "Invalid", text) from error
    return patched


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result


def _strategic(target: Any, patch: Any, path: tuple[str, ...], strategy_of: StrategyOf) -> Any:
    if not isinstance(patch, dict):
        return patch
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {k: v for k, v in patch.items() if k != _DIRECTIVE}
    if directive == "delete":
        return None
    if directive not in (None, "merge"):
        raise bad_request(f"unknown $patch directive {directive!r} at {'.'.join(path) or 'the top'}")
    result = dict(target) if isinstance(target, dict) else {}
    if _RETAIN in patch:
        result = {k: v for k, v in result.items() if k in patch[_RETAIN]}
    for key, value in patch.items():
        if key in (_DIRECTIVE, _RETAIN) or key.startswith(_ORDER):
            continue
        if key.startswith(_DELETE_PRIMITIVES):
            name = key.removeprefix(_DELETE_PRIMITIVES)
            result[name] = [item for item in result.get(name) or [] if item not in value]
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, list):
            below = (*path, key)
            strategy, merge_key = strategy_of(below)
            result[key] = _strategic_list(
                result.get(key) or [], value, strategy, merge_key, below, strategy_of, patch.get(f"{_ORDER}{key}")
            )
        else:
            merged = _strategic(result.get(key), value, (*path, key), strategy_of)
            if merged is None and isinstance(value, dict):
                result.pop(key, None)
            else:
                result[key] = merged
    return result


def _strategic_list(
    target: list[Any],
    patch: list[Any],
    strategy: str,
    merge_key: str | None,
    path: tuple[str, ...],
    strategy_of: StrategyOf,
    order: list[Any] | None,
) -> list[Any]:
    if "merge" not in strategy or any(isinstance(item, dict) and item.get(_DIRECTIVE) == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and item.get(_DIRECTIVE) == "replace" and len(item) == 1)]
    if merge_key is None:  # a set of primitives
        merged = [*target, *(item for item in patch if item not in target)]
        return _ordered(merged, order, lambda item: item)
    result = list(target)
    for item in patch:
        if not isinstance(item, dict) or merge_key not in item:
            raise bad_request(f"an item of {'.'.join(path)} in the patch lacks its merge key {merge_key!r}")
        at = next((i for i, old in enumerate(result) if old.get(merge_key) == item[merge_key]), None)
        if item.get(_DIRECTIVE) == "delete":
            if at is not None:
                del result[at]
        elif at is None:
            result.append(_strategic({}, item, path, strategy_of))
        else:
            result[at] = _strategic(result[at], item, path, strategy_of)
    keys = [one.get(merge_key) for one in order] if order else None
    return _ordered(result, keys, lambda item: item.get(merge_key))


def _ordered(items: list[Any], order: list[Any] | None, key: Callable[[Any], Any]) -> list[Any]:
    """The items in the client's order; those that it does not know keep their place behind their predecessor."""
    if not order:
        return items
    place = {name: n for n, name in enumerate(order)}
    ranks, last = [], -1
    for item in items:
        last = place.get(key(item), last)
        ranks.append(last)
    return [item for _, item in sorted(zip(ranks, items, strict=True), key=lambda pair: pair[0])]

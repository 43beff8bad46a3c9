"""What requests carry: JSON, YAML or protobuf, read with the complaints that clients know; and warnings in answers."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import yaml
from aiohttp import web

from controlplane.apiserver.errors import bad_request
from controlplane.apiserver.protobuf import envelope
from controlplane.apiserver.protobuf.codec import Malformed
from controlplane.apiserver.resources import Object


def parse_json(body: bytes) -> Any:
    """Raises StatusError where it is no JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error}") from None


def parse_protobuf(body: bytes) -> Object:
    """The object in Kubernetes' protobuf form. Raises StatusError where it is none."""
    try:
        return envelope.opened(body)
    except Malformed as error:
        raise bad_request(f"the body is not valid protobuf: {error}") from None


def parse_yaml(body: bytes) -> tuple[Any, list[str]]:
    """One YAML document, and what is doubled in it. Raises StatusError where it cannot be read."""
    if body.lstrip().startswith(b"{"):  # JSON is YAML, and much faster to read
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
        else:
            return parsed, duplicates(body, parsed)
    try:
        loader = _Loader(body)
        try:
            return loader.get_single_data(), loader.doubled
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        raise bad_request(f"the body is not valid YAML: {error}") from None


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: keys are texts, a date is a text, and a key that comes twice is remembered."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.doubled: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                self.doubled.append(
                    f'yaml: unmarshal errors:\n  line {key.start_mark.line + 1}: key "{key.value}" already set in map'
                )
            seen.add(key.value)
        found = super().construct_mapping(node, deep=True)
        return {key if isinstance(key, str) else json.dumps(key): value for key, value in found.items()}


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def duplicates(body: bytes, parsed: Any) -> list[str]:
    """The complaints about fields that are twice in a JSON body; `parsed` is what it was read as."""
    if len(orjson.dumps(parsed)) == len(body.strip()):
        return []  # compact as clients write it, and nothing of it was lost
    tree = json.loads(body, object_pairs_hook=_Pairs)
    return [f'duplicate field "{path}"' for path in _doubled(tree, "")]


class _Pairs(list[tuple[str, Any]]):
    """An object with all its keys."""


def _doubled(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, _Pairs):
        seen = set()
        for key, item in value:
            at = f"{path}.{key}" if path else key
            if key in seen:
                yield at
            seen.add(key)
            yield from _doubled(item, at)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _doubled(item, f"{path}[{index}]")


def add_warnings(response: web.StreamResponse, warnings: Sequence[str]) -> None:
    """Adds Warning headers (RFC 7234, code 299), which kubectl prints."""
    for warning in dict.fromkeys(warnings):
        quoted = " ".join(warning.splitlines()).replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')

"""Pod templates: whether two are the same, and the hash that names a template's ReplicaSet."""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

HASH_LABEL = "pod-template-hash"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def template_hash(template: Mapping[str, Any], collisions: int = 0) -> str:
    """A short name for the template. collisions: counted up where the name was taken by another template.

    Its letters are those that Kubernetes takes: no vowels, so that it spells nothing.
    """
    content = orjson.dumps(normalized(template), option=orjson.OPT_SORT_KEYS) + str(collisions).encode()
    number = int.from_bytes(hashlib.sha256(content).digest()[:4])
    return "".join(_ALPHABET[int(digit) % len(_ALPHABET)] for digit in str(number))


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the templates make the same pods, but for the hash in their labels."""
    return bool(normalized(one) == normalized(other))


def normalized(value: Any) -> Any:
    """Without what says nothing (null, {} and []) and without the template's hash."""
    if isinstance(value, Mapping):
        cleaned = {k: normalized(v) for k, v in value.items() if k != HASH_LABEL}
        return {k: v for k, v in cleaned.items() if v not in (None, {}, [])}
    if isinstance(value, list):
        return [normalized(item) for item in value]
    return value

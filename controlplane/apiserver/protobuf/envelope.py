"""The wrapping of an object in protobuf form: `k8s\\0`, then a runtime.Unknown with its kind and its bytes.

https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding
"""

from typing import Any

import orjson

from controlplane.apiserver.protobuf import codec
from controlplane.apiserver.protobuf.table import message_of, messages

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\0"

_TYPE_META, _RAW, _CONTENT_TYPE = 1, 2, 4
_API_VERSION, _KIND = 1, 2


def message_name(api_version: str, kind: str) -> str | None:
    """The message of a kind; those of meta/v1 (Status, DeleteOptions) may come under any group's name."""
    for name in (message_of(api_version, kind), f"meta.v1.{kind}"):
        if name in messages():
            return name
    return None


def opened(body: bytes) -> dict[str, Any]:
    """The object in an envelope. Raises codec.Malformed, also for kinds that are not served in this form."""
    if not body.startswith(MAGIC):
        raise codec.Malformed("the body does not begin with the bytes 'k8s\\0' of Kubernetes' protobuf form")
    meta: dict[int, str] = {}
    raw, content_type = b"", ""
    for number, _, value in codec.parts(memoryview(body)[len(MAGIC) :]):
        if not isinstance(value, memoryview):
            raise codec.Malformed("the envelope (runtime.Unknown) is damaged")
        if number == _TYPE_META:
            meta = {n: bytes(v).decode(errors="replace") for n, _, v in codec.parts(value) if isinstance(v, memoryview)}
        elif number == _RAW:
            raw = bytes(value)
        elif number == _CONTENT_TYPE:
            content_type = bytes(value).decode(errors="replace")
    api_version, kind = meta.get(_API_VERSION, ""), meta.get(_KIND, "")
    if content_type == "application/json":
        try:
            obj = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise codec.Malformed(f"the JSON in the envelope cannot be read: {error}") from None
    else:
        name = message_name(api_version, kind)
        if name is None:
            raise codec.Malformed(f"{api_version}, Kind={kind} has no protobuf form here: send it as application/json")
        obj = codec.decode(name, raw)
    if not isinstance(obj, dict):
        raise codec.Malformed("the envelope holds no object")
    return {"apiVersion": api_version, "kind": kind, **obj}


def closed(obj: dict[str, Any]) -> bytes | None:
    """The object in an envelope; None for a kind without protobuf form."""
    api_version, kind = obj.get("apiVersion", ""), obj.get("kind", "")
    name = message_name(api_version, kind)
    if name is None:
        return None
    meta = codec.delimited(_API_VERSION, api_version.encode()) + codec.delimited(_KIND, kind.encode())
    return MAGIC + codec.delimited(_TYPE_META, meta) + codec.delimited(_RAW, codec.encode(name, obj))

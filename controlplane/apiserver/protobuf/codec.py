"""Protobuf messages as JSON objects and back, by the table (https://protobuf.dev/programming-guides/encoding/).

Types that JSON writes as one value have their forms here: Quantity, IntOrString, Time, MicroTime, RawExtension, FieldsV1.
"""

import base64
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from controlplane.apiserver.protobuf.table import Field, messages

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAXIMUM_DEPTH = 64


class Malformed(ValueError):
    """The bytes are no message of this kind."""


# --- from the wire


def decode(message: str, data: bytes | memoryview, depth: int = 0) -> Any:
    """The JSON form of a message. Raises Malformed; fields that the table does not know are left out."""
    if depth > _MAXIMUM_DEPTH:
        raise Malformed(f"messages are nested deeper than {_MAXIMUM_DEPTH}")
    if message in _READ:
        return _READ[message](data)
    described = messages()[message]
    result: dict[str, Any] = {}
    for number, wire_type, raw in parts(data):
        field = described.fields.get(number)
        if field is None:
            continue
        match field.shape:
            case "list":
                result.setdefault(field.name, []).extend(_items(field.kind, wire_type, raw, depth))
            case "map":
                key, value = _entry(field.kind, _bytes(wire_type, raw), depth)
                result.setdefault(field.name, {})[key] = value
            case "inline":
                result.update(decode(field.kind, _bytes(wire_type, raw), depth + 1))
            case _:
                value = _value(field.kind, wire_type, raw, depth)
                if value is not None and (field.keep_zero or isinstance(value, dict) or value):
                    result[field.name] = value
    return result.get("-", []) if described.is_list else result


def parts(data: bytes | memoryview) -> Iterator[tuple[int, int, Any]]:
    """The fields of a message as they are on the wire: number, wire type, integer or bytes. Raises Malformed."""
    view, at, end = memoryview(data), 0, len(data)
    while at < end:
        tag, at = _varint(view, at)
        number, wire_type = tag >> 3, tag & 7
        value: Any
        if wire_type == _VARINT:
            value, at = _varint(view, at)
        elif wire_type == _BYTES:
            length, at = _varint(view, at)
            value, at = view[at : at + length], at + length
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
            value, at = view[at : at + size], at + size
        else:
            raise Malformed(f"field {number} has the unknown wire type {wire_type}")
        if at > end or not number:
            raise Malformed("the message ends in the midst of a field")
        yield number, wire_type, value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(view) and shift < 70:
        byte = view[at]
        result |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, at
    raise Malformed("an integer does not end")


def _bytes(wire_type: int, raw: Any) -> memoryview:
    if wire_type != _BYTES:
        raise Malformed(f"a message or text was expected, not wire type {wire_type}")
    assert isinstance(raw, memoryview)
    return raw


def _value(kind: str, wire_type: int, raw: Any, depth: int) -> Any:
    match kind:
        case "string":
            return _text(_bytes(wire_type, raw))
        case "bytes":
            return base64.b64encode(_bytes(wire_type, raw)).decode()
        case "double":
            if wire_type != _FIXED64:
                raise Malformed("a double was expected")
            return struct.unpack("<d", raw)[0]
        case "bool" | "int32" | "int64" | "uint32" | "uint64":
            if wire_type != _VARINT:
                raise Malformed(f"{kind} was expected, not wire type {wire_type}")
            return _number(kind, raw)
    return decode(kind, _bytes(wire_type, raw), depth + 1)


def _number(kind: str, raw: int) -> int | bool:
    if kind == "bool":
        return bool(raw)
    if kind == "int32":
        raw &= 0xFFFF_FFFF
        return raw - (1 << 32) if raw >> 31 else raw
    if kind == "int64":
        return raw - (1 << 64) if raw >> 63 else raw
    return raw


def _items(kind: str, wire_type: int, raw: Any, depth: int) -> list[Any]:
    if wire_type == _BYTES and kind in ("bool", "int32", "int64", "uint32", "uint64"):  # packed
        items, at = [], 0
        while at < len(raw):
            item, at = _varint(raw, at)
            items.append(_number(kind, item))
        return items
    return [_value(kind, wire_type, raw, depth)]


def _entry(kind: str, data: memoryview, depth: int) -> tuple[str, Any]:
    key: str = ""
    value: Any = "" if kind in ("string", "bytes") else None
    for number, wire_type, raw in parts(data):
        if number == 1:
            key = _text(_bytes(wire_type, raw))
        elif number == 2:
            value = _value(kind, wire_type, raw, depth)
    return key, value


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"a text is not UTF-8: {error}") from None


def _read_quantity(data: bytes | memoryview) -> str | None:
    return next((_text(raw) for number, kind, raw in parts(data) if number == 1 and kind == _BYTES), None)


def _read_int_or_string(data: bytes | memoryview) -> int | str:
    found = {number: raw for number, _, raw in parts(data)}
    if found.get(1):
        text = found.get(3, memoryview(b""))
        return _text(_bytes(_BYTES if isinstance(text, memoryview) else _VARINT, text))
    number = found.get(2, 0)
    if not isinstance(number, int):
        raise Malformed("an integer was expected in IntOrString")
    return _number("int32", number)


def _moment(data: bytes | memoryview) -> datetime | None:
    found = {number: raw for number, _, raw in parts(data)}
    if not found:
        return None
    seconds, nanos = found.get(1, 0), found.get(2, 0)
    try:
        return _EPOCH + timedelta(seconds=_number("int64", seconds), microseconds=_number("int32", nanos) // 1000)
    except (TypeError, OverflowError):
        raise Malformed("a time is out of range") from None


def _read_time(data: bytes | memoryview) -> str | None:
    moment = _moment(data)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


def _read_micro_time(data: bytes | memoryview) -> str | None:
    moment = _moment(data)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if moment else None


def _read_raw(data: bytes | memoryview) -> Any:
    from controlplane.apiserver.protobuf import envelope

    for number, wire_type, raw in parts(data):
        if number == 1:
            content = bytes(_bytes(wire_type, raw))
            if content.startswith(envelope.MAGIC):
                return envelope.opened(content)
            try:
                return orjson.loads(content) if content else None
            except orjson.JSONDecodeError as error:
                raise Malformed(f"an embedded object is not JSON: {error}") from None
    return None


_READ: dict[str, Callable[[bytes | memoryview], Any]] = {
    "Quantity": _read_quantity,
    "IntOrString": _read_int_or_string,
    "Time": _read_time,
    "MicroTime": _read_micro_time,
    "RawExtension": _read_raw,
    "FieldsV1": _read_raw,
}

# --- to the wire


def encode(message: str, obj: Any) -> bytes:
    """The bytes of a JSON object's message. Fields that the table does not know are left out.

    Raises ValueError, TypeError or KeyError for values that are not of their field's type: stored objects have been checked.
    """
    if message in _WRITE:
        return _WRITE[message](obj)
    described = messages()[message]
    if described.is_list:
        obj = {"-": obj}
    out = bytearray()
    for field in described.fields.values():
        if field.shape == "inline":
            out += delimited(field.number, encode(field.kind, obj))
        elif (value := obj.get(field.name)) is not None:
            out += _field(field, value)
    return bytes(out)


def _field(field: Field, value: Any) -> bytes:
    if field.shape == "list":
        return b"".join(_one(field.number, field.kind, item) for item in value)
    if field.shape == "map":
        entries = ((_one(1, "string", key) + _one(2, field.kind, item)) for key, item in sorted(value.items()))
        return b"".join(delimited(field.number, entry) for entry in entries)
    return _one(field.number, field.kind, value)


def _one(number: int, kind: str, value: Any) -> bytes:
    match kind:
        case "string":
            return delimited(number, value.encode())
        case "bytes":
            return delimited(number, base64.b64decode(value))
        case "double":
            return _encoded(number << 3 | _FIXED64) + struct.pack("<d", value)
        case "bool" | "int32" | "int64" | "uint32" | "uint64":
            return _encoded(number << 3) + _encoded(int(value))
    return delimited(number, encode(kind, value))


def delimited(number: int, content: bytes) -> bytes:
    """A field with content of known length: text, bytes or a message."""
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF  # negative numbers are ten bytes long
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _write_int_or_string(value: int | str) -> bytes:
    if isinstance(value, str):
        return _one(1, "int32", 1) + _one(2, "int32", 0) + _one(3, "string", value)
    return _one(1, "int32", 0) + _one(2, "int32", value) + _one(3, "string", "")


def _write_time(value: str) -> bytes:
    since = datetime.fromisoformat(value.replace("Z", "+00:00")) - _EPOCH
    return _one(1, "int64", since.days * 86400 + since.seconds) + _one(2, "int32", since.microseconds * 1000)


_WRITE: dict[str, Callable[[Any], bytes]] = {
    "Quantity": lambda value: _one(1, "string", str(value)),
    "IntOrString": _write_int_or_string,
    "Time": _write_time,
    "MicroTime": _write_time,
    "RawExtension": lambda value: delimited(1, orjson.dumps(value)),
    "FieldsV1": lambda value: delimited(1, orjson.dumps(value)),
}

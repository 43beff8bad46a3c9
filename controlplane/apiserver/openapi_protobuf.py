"""An OpenAPI v2 document in its protobuf form, which kubectl before 1.27 asks for (openapi.v2.Document of gnostic).

Only what Kubernetes' clients read is written: definitions with their types and extensions, and each path's operations with
query parameters and extensions. Field numbers: https://github.com/google/gnostic/blob/main/openapiv2/OpenAPIv2.proto
"""

from collections.abc import Mapping
from typing import Any

import orjson

from controlplane.apiserver.protobuf.codec import delimited

MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
ANSWERED_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
"""What the content is called in the answer: a media type must not contain an @."""

Json = Mapping[str, Any]

_METHODS = {"get": 2, "put": 3, "post": 4, "delete": 5, "options": 6, "head": 7, "patch": 8}
_SCHEMA_TEXTS = {"$ref": 1, "format": 2, "title": 3, "description": 4}


def encode(document: Json) -> bytes:
    """The bytes of a document (as JSON objects)."""
    info = _text(1, document["info"]["title"]) + _text(2, document["info"]["version"])
    paths = b"".join(delimited(2, _named(path, _path_item(item))) for path, item in document["paths"].items())
    definitions = b"".join(delimited(1, _named(name, _schema(one))) for name, one in document["definitions"].items())
    return _text(1, document["swagger"]) + delimited(2, info) + delimited(8, paths) + delimited(9, definitions)


def _text(number: int, value: str) -> bytes:
    return delimited(number, value.encode())


def _named(name: str, value: bytes) -> bytes:
    return _text(1, name) + delimited(2, value)


def _extensions(number: int, obj: Json) -> bytes:
    """What is called x-…; an extension's value is text in YAML, which JSON is."""
    found = ((name, value) for name, value in obj.items() if name.startswith("x-"))
    return b"".join(delimited(number, _named(name, delimited(2, orjson.dumps(value)))) for name, value in found)


def _path_item(item: Json) -> bytes:
    return b"".join(delimited(_METHODS[method], _operation(operation)) for method, operation in item.items())


def _operation(operation: Json) -> bytes:
    # ParametersItem.parameter → Parameter.non_body_parameter → NonBodyParameter.query_parameter_sub_schema
    query = (
        _text(2, one["in"]) + _text(4, one["name"]) + _text(6, one["type"])
        for one in operation["parameters"]
        if one["in"] == "query"
    )
    parameters = b"".join(delimited(8, delimited(1, delimited(2, delimited(3, one)))) for one in query)
    responses = b"".join(
        delimited(1, _named(code, delimited(1, _text(1, response["description"]))))
        for code, response in operation["responses"].items()
    )
    return _text(5, operation["operationId"]) + parameters + delimited(9, responses) + _extensions(13, operation)


def _schema(schema: Json) -> bytes:
    out = b"".join(_text(number, schema[name]) for name, number in _SCHEMA_TEXTS.items() if name in schema)
    out += b"".join(_text(19, name) for name in schema.get("required", ()))
    inner = schema.get("additionalProperties")
    if isinstance(inner, dict):
        out += delimited(21, delimited(1, _schema(inner)))
    if "type" in schema:
        out += delimited(22, _text(1, schema["type"]))
    if "items" in schema:
        out += delimited(23, delimited(1, _schema(schema["items"])))
    if "properties" in schema:
        properties = b"".join(delimited(1, _named(name, _schema(one))) for name, one in schema["properties"].items())
        out += delimited(25, properties)
    return out + _extensions(31, schema)

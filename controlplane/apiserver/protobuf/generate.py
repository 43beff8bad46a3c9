"""Makes `table.txt` anew, for another Kubernetes version.

python -m controlplane.apiserver.protobuf.generate API APIMACHINERY > controlplane/apiserver/protobuf/table.txt

API, APIMACHINERY: checkouts of github.com/kubernetes/api and github.com/kubernetes/apimachinery. Field numbers and types come
from their generated.proto, JSON names and which zeros count (pointers, fields without omitempty) from the tags in types.go.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from controlplane.apiserver.protobuf.table import SPECIAL, message_of
from controlplane.apiserver.resources import BUILT_IN

_META_KINDS = ("Status", "DeleteOptions", "WatchEvent", "List", "PartialObjectMetadata", "PartialObjectMetadataList")
_EXTRA = ("autoscaling.v1.Scale", "policy.v1.Eviction", "core.v1.Binding", "authentication.v1.TokenRequest")

_PROTO_FIELD = re.compile(r"^ {2}(optional|repeated|required|map<string, ([.\w]+)>)\s*([.\w]+)?\s+(\w+) = (\d+);", re.MULTILINE)
_PROTO_MESSAGE = re.compile(r"^message (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_GO_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_GO_FIELD = re.compile(r'^\s+(?:\w+\s+)?(\S+)\s+`json:"(\w*)([^"]*)"\s+protobuf:"\w+,(\d+)[^"]*"', re.MULTILINE)


def main() -> None:
    api, machinery = Path(sys.argv[1]), Path(sys.argv[2])
    messages: dict[str, dict[int, tuple[str, str]]] = {}
    for folder in [*api.glob("*/v*"), machinery / "pkg/apis/meta/v1"]:
        proto = folder / "generated.proto"
        if proto.exists():
            package = f"{folder.parent.name}.{folder.name}"
            go = "\n".join(file.read_text() for file in sorted(folder.glob("*.go")) if "generated" not in file.name)
            messages.update(_messages(package, proto.read_text(), go))
    wanted = [name for name in _roots() if name in messages]
    kept: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in kept or name in SPECIAL or name not in messages:
            continue
        kept.add(name)
        wanted += [
            kind.strip("!").removeprefix(">").removeprefix("[]").removeprefix("map:") for _, kind in messages[name].values()
        ]
    for name in sorted(kept):
        print(name)
        for number, (json_name, kind) in sorted(messages[name].items()):
            print(f" {number} {json_name} {kind}")


def _roots() -> Iterator[str]:
    for resource in BUILT_IN:
        yield message_of(resource.api_version, resource.kind)
        yield message_of(resource.api_version, f"{resource.kind}List")
    yield from (f"meta.v1.{kind}" for kind in _META_KINDS)
    yield from _EXTRA


def _messages(package: str, proto: str, go: str) -> Iterator[tuple[str, dict[int, tuple[str, str]]]]:
    structs = {name: {f[3]: f for f in _GO_FIELD.findall(body)} for name, body in _GO_STRUCT.findall(go)}
    for name, body in _PROTO_MESSAGE.findall(proto):
        go_fields = structs.get(name, {})
        found = {}
        for label, value_type, field_type, field, number in _PROTO_FIELD.findall(body):
            kind = _short(package, value_type or field_type)
            go_type, json_name, options, _ = go_fields.get(number, ("", field, "", ""))
            if value_type:
                kind = f"map:{kind}"
            elif label == "repeated":
                kind = f"[]{kind}"
            elif ",inline" in options or (number in go_fields and not json_name):
                kind = f">{kind}"
            elif go_type.startswith("*") or (number in go_fields and "omitempty" not in options):
                kind = f"{kind}!"
            if not go_fields and field == "items" and label == "repeated":
                json_name = "-"  # a list that has a message of its own on the wire (ExtraValue)
            found[int(number)] = (json_name or field, kind)
        yield f"{package}.{name}", found


def _short(package: str, kind: str) -> str:
    if not kind.startswith("."):
        return kind if kind in SPECIAL else f"{package}.{kind}"
    parts = kind.split(".")
    return parts[-1] if parts[-1] in SPECIAL else ".".join(parts[-3:])


if __name__ == "__main__":
    main()

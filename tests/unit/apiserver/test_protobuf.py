"""Kubernetes' protobuf form: what a real kubectl sends, and every served kind there and back.

kubectl_bodies.json holds request bodies of kubectl 1.32, recorded on the wire: `kubectl create deployment web --image=nginx
--replicas=2 --port=80`, `create secret generic s --from-literal=a=b`, `create job j --image=x -- a b`, and their likes.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.apiserver.protobuf import codec, envelope
from controlplane.apiserver.protobuf.table import SPECIAL, Field, messages
from controlplane.apiserver.resources import BUILT_IN
from controlplane.apiserver.schema import Schemas
from tests.unit.apiserver.client import Api, Json
from tests.unit.apiserver.objects import CONFIG_MAPS, DEPLOYMENTS, PODS, config_map, pod
from tests.unit.apiserver.test_apply import apply, settings

MEDIA = "application/vnd.kubernetes.protobuf"
SENT = {
    name: base64.b64decode(body) for name, body in json.loads(Path(__file__).with_name("kubectl_bodies.json").read_text()).items()
}


def unknown(kind: bytes, raw: bytes) -> bytes:
    """An envelope of version v1, whatever is in it."""
    meta = codec.delimited(1, b"v1") + codec.delimited(2, kind)
    return envelope.MAGIC + codec.delimited(1, meta) + codec.delimited(2, raw)


def spec_of(name: str) -> Any:
    return envelope.opened(SENT[name])["spec"]


def test_a_deployment_of_kubectl() -> None:
    obj = envelope.opened(SENT["deployment"])
    assert (obj["apiVersion"], obj["kind"]) == ("apps/v1", "Deployment")
    assert obj["metadata"] == {"name": "web", "labels": {"app": "web"}}
    assert obj["spec"]["replicas"] == 2
    assert obj["spec"]["selector"] == {"matchLabels": {"app": "web"}}
    (container,) = obj["spec"]["template"]["spec"]["containers"]
    assert container == {"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}], "resources": {}}


def test_other_objects_of_kubectl() -> None:
    assert envelope.opened(SENT["secret"])["data"] == {"a": base64.b64encode(b"b").decode()}
    (container,) = spec_of("job")["template"]["spec"]["containers"]
    assert (container["command"], spec_of("job")["template"]["spec"]["restartPolicy"]) == (["a", "b"], "Never")
    assert envelope.opened(SENT["role"])["rules"] == [
        {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"]}
    ]
    assert spec_of("poddisruptionbudget") == {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}}
    (path,) = spec_of("ingress")["rules"][0]["http"]["paths"]
    assert path == {"path": "/b", "pathType": "Exact", "backend": {"service": {"name": "c", "port": {"number": 80}}}}
    (port,) = spec_of("service")["ports"]
    assert port == {"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 31000}


@pytest.mark.parametrize("name", sorted(SENT))
def test_the_same_object_is_the_same_bytes_again(name: str) -> None:
    obj = envelope.opened(SENT[name])
    closed = envelope.closed(obj)
    assert closed is not None
    assert envelope.opened(closed) == obj


async def test_the_server_takes_and_gives_protobuf(api: Api) -> None:
    headers = {"Content-Type": MEDIA, "Accept": MEDIA}
    made = await api.request("POST", DEPLOYMENTS, SENT["deployment"], headers=headers)
    assert (made.code, made.headers["Content-Type"]) == (201, MEDIA)
    obj = envelope.opened(made.raw)
    assert obj["metadata"]["creationTimestamp"].endswith("Z")
    assert obj["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": "25%"}
    assert obj == (await api.get(f"{DEPLOYMENTS}/web")).body
    listed = envelope.opened((await api.request("GET", DEPLOYMENTS, headers={"Accept": MEDIA})).raw)
    assert (listed["kind"], [item["metadata"]["name"] for item in listed["items"]]) == ("DeploymentList", ["web"])
    both = await api.request("GET", DEPLOYMENTS, headers={"Accept": f"{MEDIA},application/json"})
    assert both.headers["Content-Type"] == "application/json"
    options = envelope.closed({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Orphan"})
    await api.request("DELETE", f"{DEPLOYMENTS}/web", options, headers={"Content-Type": MEDIA})
    assert (await api.get(f"{DEPLOYMENTS}/web")).body["metadata"]["finalizers"] == ["orphan"]


async def test_a_watch_in_protobuf(api: Api) -> None:
    await api.create(CONFIG_MAPS, config_map(a="1"))
    async with api.session.get(CONFIG_MAPS, params={"watch": "1"}, headers={"Accept": f"{MEDIA};stream=watch"}) as response:
        assert response.headers["Content-Type"] == f"{MEDIA};stream=watch"
        length = int.from_bytes(await response.content.readexactly(4), "big")
        event = codec.decode("meta.v1.WatchEvent", await response.content.readexactly(length))
    assert event["type"] == "ADDED"
    assert event["object"]["data"] == {"a": "1"}


async def test_managed_fields_have_a_protobuf_form(api: Api) -> None:
    made = (await apply(api, f"{CONFIG_MAPS}/settings", settings(a="1"))).body
    got = await api.request("GET", f"{CONFIG_MAPS}/settings", headers={"Accept": MEDIA})
    assert envelope.opened(got.raw) == made


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"k8s",
        b"{}",
        b"k8s\0",
        SENT["deployment"][:60],
        SENT["deployment"][:-70],
        b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        unknown(b"Nothing", b""),
        envelope.MAGIC
        + codec.delimited(1, codec.delimited(1, b"v1") + codec.delimited(2, b"Pod"))
        + codec.delimited(2, b"\x08\x01\x0a"),
        envelope.MAGIC
        + codec.delimited(1, codec.delimited(1, b"v1") + codec.delimited(2, b"Pod"))
        + codec.delimited(2, b"\x0a\x03\x0a\x01\xff"),
    ],
)
async def test_broken_bytes_are_a_bad_request(api: Api, body: bytes) -> None:
    answer = await api.request("POST", PODS, body, headers={"Content-Type": MEDIA})
    assert (answer.code, answer.reason) == (400, "BadRequest")
    assert (await api.get(PODS)).body["items"] == []


@given(st.sampled_from(sorted(SENT)), st.integers(0, 2**32), st.integers(0, 255))
def test_damage_never_ends_but_in_malformed(name: str, position: int, byte: int) -> None:
    damaged = bytearray(SENT[name])
    damaged[position % len(damaged)] = byte
    try:
        opened: object = envelope.opened(bytes(damaged))
    except codec.Malformed:
        opened = {}
    assert isinstance(opened, dict)


def test_the_table_is_whole(schemas: Schemas) -> None:
    known = messages()
    assert not {f.kind for message in known.values() for f in message.fields.values()} - SPECIAL - known.keys()
    for resource in BUILT_IN:
        assert envelope.message_name(resource.api_version, resource.kind), resource
    assert flat("core.v1.PodSpec") >= set(schemas.definitions["io.k8s.api.core.v1.PodSpec"]["properties"])
    assert flat("core.v1.Volume") >= set(schemas.definitions["io.k8s.api.core.v1.Volume"]["properties"])
    assert flat("core.v1.EphemeralContainer") == set(schemas.definitions["io.k8s.api.core.v1.EphemeralContainer"]["properties"])


def flat(message: str) -> set[str]:
    """The JSON names of a message's fields, the inline ones included."""
    fields = messages()[message].fields.values()
    return {name for f in fields for name in (flat(f.kind) if f.shape == "inline" else {f.name})}


_LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text("aZ ß€", min_size=1, max_size=4),
    "bytes": st.binary(min_size=1, max_size=5).map(lambda raw: base64.b64encode(raw).decode()),
    "bool": st.just(True),
    "int32": st.integers(-(2**31), 2**31 - 1).filter(bool),
    "int64": st.integers(-(2**63), 2**63 - 1).filter(bool),
    "double": st.floats(allow_nan=False).filter(bool),
    "Quantity": st.sampled_from(["1", "500m", "2Gi"]),
    "IntOrString": st.integers(-5, 70000) | st.text("a%9", min_size=1, max_size=3),
    "Time": st.sampled_from(["2024-02-29T12:00:01Z", "1970-01-01T00:00:01Z", "2262-01-01T00:00:00Z"]),
    "MicroTime": st.sampled_from(["2024-02-29T12:00:01.000001Z", "2030-01-01T00:00:00.999999Z"]),
    "RawExtension": st.dictionaries(st.text("ab", min_size=1, max_size=2), st.integers(0, 9), min_size=1, max_size=2),
    "FieldsV1": st.just({"f:a": {}}),
}


def _values(kind: str, depth: int) -> st.SearchStrategy[Any]:
    return _LEAVES[kind] if kind in _LEAVES else _objects(kind, depth + 1)


def _one(field: Field, depth: int) -> st.SearchStrategy[Any]:
    value = _values(field.kind, depth)
    if field.shape == "list":
        return st.lists(value, min_size=1, max_size=2)
    return (
        st.dictionaries(st.text("ab", min_size=1, max_size=2), value, min_size=1, max_size=2) if field.shape == "map" else value
    )


def _objects(message: str, depth: int = 0) -> st.SearchStrategy[Any]:
    """Objects of a message, with few of its fields so that they stay small."""
    described = messages()[message]
    if described.is_list:
        return st.lists(_LEAVES["string"], min_size=1, max_size=2)
    simple = [f for f in described.fields.values() if f.shape != "inline" and (depth < 3 or f.kind in _LEAVES)]
    if not simple:
        return st.just({})
    return st.lists(st.sampled_from(simple), max_size=4, unique_by=lambda f: f.name).flatmap(
        lambda chosen: st.fixed_dictionaries({f.name: _one(f, depth) for f in chosen})
    )


@given(st.data(), st.sampled_from([resource for resource in BUILT_IN if "list" in resource.verbs]))
def test_every_kind_goes_there_and_back(data: st.DataObject, resource: Any) -> None:
    name = envelope.message_name(resource.api_version, resource.kind)
    assert name is not None
    obj: Json = {"apiVersion": resource.api_version, "kind": resource.kind, **data.draw(_objects(name))}
    closed = envelope.closed(obj)
    assert closed is not None
    assert envelope.opened(closed) == obj


def test_zeros_that_count_are_kept() -> None:
    obj = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 0, **pod()["spec"]}}
    del obj["spec"]["containers"]  # type: ignore[attr-defined]
    closed = envelope.closed(obj)
    assert closed is not None
    assert envelope.opened(closed)["spec"]["replicas"] == 0

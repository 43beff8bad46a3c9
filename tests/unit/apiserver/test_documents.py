"""What the server says of itself: discovery in both forms, OpenAPI in three, health and version."""

from typing import Any

import pytest

from controlplane.apiserver import openapi_protobuf
from controlplane.apiserver.protobuf import codec
from controlplane.apiserver.resources import BUILT_IN
from tests.unit.apiserver.client import Api

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


async def test_groups_and_resources(api: Api) -> None:
    assert (await api.get("/api")).body["versions"] == ["v1"]
    groups = {group["name"]: group for group in (await api.get("/apis")).body["groups"]}
    assert groups.keys() == {resource.group for resource in BUILT_IN} - {""}
    for name, group in groups.items():
        assert (await api.get(f"/apis/{name}")).body["preferredVersion"] == group["preferredVersion"]
        assert group["preferredVersion"] in group["versions"]
    listed = {one["name"]: one for one in (await api.get("/api/v1")).body["resources"]}
    assert listed["pods"]["shortNames"] == ["po"]
    assert listed["pods"]["singularName"] == "pod"
    assert listed["pods/eviction"]["kind"] == "Eviction"
    assert (listed["nodes"]["namespaced"], listed["pods"]["namespaced"]) == (False, True)
    assert "watch" in listed["pods"]["verbs"]


async def test_aggregated_discovery(api: Api) -> None:
    for path in ("/api", "/apis"):
        answer = await api.request("GET", path, headers={"Accept": f"{AGGREGATED},application/json"})
        assert answer.body["kind"] == "APIGroupDiscoveryList"
        assert answer.headers["Content-Type"] == AGGREGATED
    apps = next(group for group in answer.body["items"] if group["metadata"]["name"] == "apps")
    (version,) = apps["versions"]
    deployments = next(one for one in version["resources"] if one["resource"] == "deployments")
    assert deployments["responseKind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert {one["subresource"] for one in deployments["subresources"]} == {"scale", "status"}
    plain = await api.request("GET", "/apis", headers={"Accept": "application/json"})
    assert plain.body["kind"] == "APIGroupList"


async def test_openapi_v3_by_group(api: Api) -> None:
    index = (await api.get("/openapi/v3")).body["paths"]
    assert {"api/v1", "apis/apps/v1"} <= index.keys()
    document = (await api.get("/openapi/v3/apis/apps/v1")).body
    schemas = document["components"]["schemas"]
    deployment = schemas["io.k8s.api.apps.v1.Deployment"]
    assert {"group": "apps", "version": "v1", "kind": "Deployment"} in deployment["x-kubernetes-group-version-kind"]
    assert references(document) <= schemas.keys()
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert "fieldValidation" in {parameter["name"] for parameter in patch["parameters"]}
    assert (await api.get("/openapi/v3/apis/none/v1")).code == 404


def references(value: Any) -> set[str]:
    """The schemas that a document refers to."""
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
    return own.union(*map(references, value.values()))


async def test_openapi_v2_in_both_forms(api: Api) -> None:
    document = (await api.get("/openapi/v2")).body
    assert document["swagger"] == "2.0"
    assert references(document) <= document["definitions"].keys()
    answer = await api.request("GET", "/openapi/v2", headers={"Accept": openapi_protobuf.MEDIA_TYPE})
    assert answer.headers["Content-Type"] == openapi_protobuf.ANSWERED_TYPE
    parts: dict[int, list[Any]] = {}
    for number, _, value in codec.parts(answer.raw):
        parts.setdefault(number, []).append(bytes(value))
    assert parts[1] == [b"2.0"]
    named = [{number: bytes(value) for number, _, value in codec.parts(one)} for _, _, one in codec.parts(parts[9][0])]
    assert {one[1].decode() for one in named} == document["definitions"].keys()
    quota = next(one[2] for one in named if one[1] == b"io.k8s.apimachinery.pkg.api.resource.Quantity")
    assert [(number, bytes(value)) for number, _, value in codec.parts(quota)] == [(22, b"\x0a\x06string")]


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
async def test_health(api: Api, path: str) -> None:
    answer = await api.get(path)
    assert (answer.code, answer.raw) == (200, b"ok")


async def test_version(api: Api) -> None:
    version = (await api.get("/version")).body
    assert (version["major"], version["minor"]) == ("1", "36")
    assert version["gitVersion"].startswith("v1.36.")

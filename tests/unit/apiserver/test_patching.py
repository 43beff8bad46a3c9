"""JSON, merge and strategic merge patches, through the API and by themselves."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.apiserver import patches
from controlplane.apiserver.schema import Schemas
from tests.unit.apiserver.client import Api
from tests.unit.apiserver.objects import DEPLOYMENTS, SERVICES, deployment, service

Json = dict[str, Any]
WEB = f"{DEPLOYMENTS}/web"


def containers(obj: Json) -> list[Json]:
    return list(obj["spec"]["template"]["spec"]["containers"])


def in_template(**spec: Any) -> Json:
    return {"spec": {"template": {"spec": spec}}}


async def test_a_strategic_patch_merges_lists_by_key(api: Api) -> None:
    await api.create(DEPLOYMENTS, deployment())
    patched = (await api.patch(WEB, in_template(containers=[{"name": "main", "image": "nginx:2"}]))).body
    assert [(c["name"], c["image"]) for c in containers(patched)] == [("main", "nginx:2"), ("side", "busybox")]
    assert containers(patched)[0]["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    added = (await api.patch(WEB, in_template(containers=[{"name": "third", "image": "c"}]))).body
    assert [c["name"] for c in containers(added)] == ["main", "side", "third"]


async def test_a_strategic_patch_has_directives(api: Api) -> None:
    await api.create(DEPLOYMENTS, deployment())
    gone = (await api.patch(WEB, in_template(containers=[{"name": "side", "$patch": "delete"}]))).body
    assert [c["name"] for c in containers(gone)] == ["main"]
    replaced = (await api.patch(WEB, in_template(containers=[{"$patch": "replace"}, {"name": "new", "image": "n"}]))).body
    assert [c["name"] for c in containers(replaced)] == ["new"]
    retained = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert (await api.patch(WEB, retained)).body["spec"]["strategy"] == {"type": "Recreate"}
    ordered = in_template(containers=[{"name": "b", "image": "b"}, {"name": "a", "image": "a"}])
    ordered["spec"]["template"]["spec"]["$setElementOrder/containers"] = [{"name": "a"}, {"name": "b"}, {"name": "new"}]
    assert [c["name"] for c in containers((await api.patch(WEB, ordered)).body)] == ["a", "b", "new"]


async def test_sets_of_primitives(api: Api) -> None:
    obj = deployment()
    obj["metadata"]["finalizers"] = ["a.b/one", "a.b/two"]
    await api.create(DEPLOYMENTS, obj)
    patched = (await api.patch(WEB, {"metadata": {"finalizers": ["a.b/three"]}})).body
    assert patched["metadata"]["finalizers"] == ["a.b/one", "a.b/two", "a.b/three"]
    less = (await api.patch(WEB, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a.b/two"]}})).body
    assert less["metadata"]["finalizers"] == ["a.b/one", "a.b/three"]
    await api.patch(WEB, {"metadata": {"finalizers": None}})


async def test_service_ports_merge_by_port(api: Api) -> None:
    await api.create(SERVICES, service(ports=[{"name": "a", "port": 80}, {"name": "b", "port": 81}]))
    patched = (await api.patch(f"{SERVICES}/web", {"spec": {"ports": [{"port": 81, "targetPort": 8081}]}})).body
    assert [(p["port"], p["targetPort"]) for p in patched["spec"]["ports"]] == [(80, 80), (81, 8081)]


async def test_a_merge_patch_replaces_lists(api: Api) -> None:
    await api.create(DEPLOYMENTS, deployment())
    body = in_template(containers=[{"name": "only", "image": "x"}])
    body["metadata"] = {"labels": {"a": "b"}}
    patched = (await api.patch(WEB, body, "merge-patch+json")).body
    assert [c["name"] for c in containers(patched)] == ["only"]
    without = (await api.patch(WEB, {"metadata": {"labels": None}}, "merge-patch+json")).body
    assert "labels" not in without["metadata"]


async def test_a_json_patch(api: Api) -> None:
    await api.create(DEPLOYMENTS, deployment())
    operations = [
        {"op": "test", "path": "/spec/replicas", "value": 3},
        {"op": "replace", "path": "/spec/replicas", "value": 5},
        {"op": "add", "path": "/metadata/labels", "value": {"a/b": "c"}},
        {"op": "copy", "from": "/metadata/labels/a~1b", "path": "/metadata/labels/d"},
        {"op": "remove", "path": "/metadata/labels/a~1b"},
    ]
    patched = (await api.patch(WEB, operations, "json-patch+json")).body
    assert (patched["spec"]["replicas"], patched["metadata"]["labels"]) == (5, {"d": "c"})


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ([{"op": "test", "path": "/spec/replicas", "value": 9}], 422),
        ([{"op": "remove", "path": "/spec/nothing"}], 422),
        ([{"op": "fly", "path": "/spec"}], 422),
        ([{"op": "add", "path": "/spec/replicas"}], 422),
        ({"op": "add"}, 400),
        (["text"], 422),
    ],
)
async def test_a_json_patch_that_does_not_fit(api: Api, operations: Any, code: int) -> None:
    made = await api.create(DEPLOYMENTS, deployment())
    answer = await api.patch(WEB, operations, "json-patch+json")
    assert answer.code == code, answer.body
    assert (await api.get(WEB)).body == made


async def test_a_patch_can_name_the_version_that_it_is_for(api: Api) -> None:
    made = await api.create(DEPLOYMENTS, deployment())
    version = made["metadata"]["resourceVersion"]
    body = {"metadata": {"resourceVersion": version}, "spec": {"replicas": 4}}
    assert (await api.patch(WEB, body)).code == 200
    stale = await api.patch(WEB, body)
    assert (stale.code, stale.reason) == (409, "Conflict")
    by_json = [{"op": "replace", "path": "/metadata/resourceVersion", "value": version}]
    assert (await api.patch(WEB, by_json, "json-patch+json")).code == 409


async def test_a_patch_cannot_rename(api: Api) -> None:
    await api.create(DEPLOYMENTS, deployment())
    answer = await api.patch(WEB, {"metadata": {"name": "other"}})
    assert answer.code in (400, 422)
    assert (await api.get(f"{DEPLOYMENTS}/other")).code == 404


async def test_patches_of_what_is_not_there_or_no_patch(api: Api) -> None:
    assert (await api.patch(WEB, {"spec": {}})).code == 404
    await api.create(DEPLOYMENTS, deployment())
    assert (await api.patch(WEB, {}, "json")).code == 415
    assert (await api.patch(WEB, [1], "merge-patch+json")).code == 400
    assert (await api.patch(WEB, {"spec": {"replicas": {"$patch": "burn"}}})).code == 400
    assert (await api.patch(WEB, in_template(containers=[{"image": "nameless"}]))).code == 400
    assert (await api.patch(WEB, {"spec": None})).code == 422


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=1), inner, max_size=3),
    max_leaves=8,
)
_objects = st.dictionaries(st.text("abc", min_size=1, max_size=1), _json, max_size=4)


@given(_objects, _objects)
def test_a_merge_patch_is_idempotent_and_wins(obj: Json, patch: Json) -> None:
    before = orjson.dumps(obj)
    once = patches.apply(patches.MERGE, obj, patch, lambda path: ("replace", None))
    assert patches.apply(patches.MERGE, once, patch, lambda path: ("replace", None)) == once
    assert orjson.dumps(obj) == before
    for key, value in patch.items():
        if value is None:
            assert key not in once
        elif not isinstance(value, dict):
            assert once[key] == value


_named = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("abcd"), "image": st.sampled_from("xyz")}),
    max_size=4,
    unique_by=lambda c: c["name"],
)


@given(_named, _named)
def test_a_strategic_patch_holds_each_key_once(live: list[Json], patch: list[Json]) -> None:
    strategy = ("merge", "name")
    result = patches.apply(patches.STRATEGIC, {"c": live}, {"c": patch}, lambda path: strategy)["c"]
    by_name = {item["name"]: item["image"] for item in live} | {item["name"]: item["image"] for item in patch}
    assert {item["name"]: item["image"] for item in result} == by_name
    assert len(result) == len(by_name)


def test_strategies_come_from_the_schema(schemas: Schemas) -> None:
    pod = ("", "v1", "Pod")
    assert schemas.patch_strategy(pod, ("spec", "containers")) == ("merge", "name")
    assert schemas.patch_strategy(pod, ("spec", "containers", "ports")) == ("merge", "containerPort")
    assert schemas.patch_strategy(pod, ("spec", "tolerations")) == ("replace", None)
    assert schemas.patch_strategy(pod, ("metadata", "labels", "a")) == ("replace", None)
    assert schemas.patch_strategy(("apps", "v1", "Deployment"), ("spec", "strategy"))[0] == "retainKeys"

"""Server-side apply: what it owns, merges, removes and refuses."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlplane.apiserver import fieldsets
from controlplane.apiserver.schema import Schemas
from tests.unit.apiserver.client import Answer, Api, Json
from tests.unit.apiserver.objects import CONFIG_MAPS, DEPLOYMENTS, SERVICES, deployment

WEB = f"{DEPLOYMENTS}/web"


async def apply(api: Api, path: str, obj: Json, manager: str = "me", **query: Any) -> Answer:
    headers = {"Content-Type": "application/apply-patch+yaml"}
    return await api.request("PATCH", path, json.dumps(obj).encode(), headers=headers, fieldManager=manager, **query)


def settings(**data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": data}


def owners(obj: Json) -> dict[tuple[str, str], Json]:
    return {(entry["manager"], entry["operation"]): entry["fieldsV1"] for entry in obj["metadata"]["managedFields"]}


async def test_the_first_apply_creates(api: Api) -> None:
    made = await apply(api, WEB, deployment())
    assert made.code == 201
    assert owners(made.body)["me", "Apply"]["f:spec"]["f:template"]["f:spec"]["f:containers"]['k:{"name":"side"}'] == {
        ".": {},
        "f:name": {},
        "f:image": {},
    }
    again = await apply(api, WEB, deployment())
    assert (again.code, again.body) == (200, made.body)


async def test_fields_that_are_no_longer_applied_go(api: Api) -> None:
    await apply(api, f"{CONFIG_MAPS}/settings", settings(a="1", b="2"))
    await apply(api, f"{CONFIG_MAPS}/settings", settings(c="3"), "other")
    left = await apply(api, f"{CONFIG_MAPS}/settings", settings(a="1"))
    assert left.body["data"] == {"a": "1", "c": "3"}
    obj = deployment()
    await apply(api, WEB, obj)
    del obj["spec"]["template"]["spec"]["containers"][1]
    slim = await apply(api, WEB, obj)
    assert [c["name"] for c in slim.body["spec"]["template"]["spec"]["containers"]] == ["main"]


async def test_a_field_has_one_owner_or_is_agreed_upon(api: Api) -> None:
    await apply(api, f"{CONFIG_MAPS}/settings", settings(a="1"))
    agreed = await apply(api, f"{CONFIG_MAPS}/settings", settings(a="1"), "other")
    assert agreed.code == 200
    assert owners(agreed.body)["me", "Apply"] == owners(agreed.body)["other", "Apply"] == {"f:data": {"f:a": {}}}
    conflict = await apply(api, f"{CONFIG_MAPS}/settings", settings(a="2"), "other")
    assert (conflict.code, conflict.reason) == (409, "Conflict")
    assert conflict.message == 'Apply failed with 1 conflict: conflict with "me": .data.a'
    assert conflict.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "me"', "field": ".data.a"}
    ]
    forced = await apply(api, f"{CONFIG_MAPS}/settings", settings(a="2"), "other", force="true")
    assert forced.body["data"] == {"a": "2"}
    assert list(owners(forced.body)) == [("other", "Apply")]
    # Who shares a field with nobody any longer takes it away with him.
    await apply(api, f"{CONFIG_MAPS}/settings", settings(), "other")
    assert not (await api.get(f"{CONFIG_MAPS}/settings")).body.get("data")


async def test_updates_own_what_they_change(api: Api) -> None:
    await apply(api, WEB, deployment())
    patched = await api.patch(WEB, {"spec": {"replicas": 9}}, fieldManager="scaler")
    assert owners(patched.body)["scaler", "Update"] == {"f:spec": {"f:replicas": {}}}
    assert "f:replicas" not in owners(patched.body)["me", "Apply"]["f:spec"]
    conflict = await apply(api, WEB, deployment())
    assert conflict.message == 'Apply failed with 1 conflict: conflict with "scaler" using apps/v1: .spec.replicas'
    without = deployment()
    del without["spec"]["replicas"]
    assert (await apply(api, WEB, without)).body["spec"]["replicas"] == 9


async def test_what_nobody_applied_belongs_to_the_time_before(api: Api) -> None:
    await api.create(DEPLOYMENTS, deployment())
    assert "managedFields" not in (await api.get(WEB)).body["metadata"]
    assert (await apply(api, WEB, deployment())).code == 200
    conflict = await apply(api, WEB, deployment(replicas=5))
    assert 'conflict with "before-first-apply" using apps/v1: .spec.replicas' in conflict.message


async def test_several_conflicts_are_listed(api: Api) -> None:
    await apply(api, f"{CONFIG_MAPS}/settings", settings(a="1", b="1"))
    answer = await apply(api, f"{CONFIG_MAPS}/settings", settings(a="2", b="2"), "other")
    assert answer.message == 'Apply failed with 2 conflicts: conflicts with "me":\n- .data.a\n- .data.b'


async def test_keys_with_a_default_name_the_same_item(api: Api) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}},
    }
    made = (await apply(api, f"{SERVICES}/web", service)).body
    service["spec"]["ports"][0]["protocol"] = "TCP"  # type: ignore[index]
    again = await apply(api, f"{SERVICES}/web", service)
    assert again.body["spec"]["ports"] == made["spec"]["ports"]


async def test_status_is_applied_by_its_own_door(api: Api) -> None:
    await apply(api, WEB, {**deployment(), "status": {"replicas": 7}})
    head = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}
    applied = await apply(api, f"{WEB}/status", {**head, "spec": {"replicas": 1}, "status": {"replicas": 3}}, "controller")
    assert (applied.body["spec"]["replicas"], applied.body["status"]["replicas"]) == (3, 3)
    entries = {entry["manager"]: entry.get("subresource") for entry in applied.body["metadata"]["managedFields"]}
    assert entries == {"me": None, "controller": "status"}


async def test_a_dry_run_of_an_apply(api: Api) -> None:
    assert (await apply(api, WEB, deployment(), dryRun="All")).code == 201
    assert (await api.get(WEB)).code == 404


async def test_what_cannot_be_applied(api: Api) -> None:
    path = f"{CONFIG_MAPS}/settings"
    headers = {"Content-Type": "application/apply-patch+yaml"}
    nobody = await api.request("PATCH", path, json.dumps(settings()).encode(), headers=headers)
    assert "fieldManager: Required value: is required for apply patch" in nobody.message
    forced = await api.patch(path, {}, "merge-patch+json", force="true")
    assert "force: Forbidden: may not be specified for non-apply patch" in forced.message
    assert (await apply(api, path, {**settings(), "metadata": {"name": "another"}})).code == 400
    assert (await apply(api, path, {**settings(), "kind": "Secret"})).code == 400
    assert (await apply(api, path, {**settings(), "metadata": {"managedFields": [{"manager": "x"}]}})).code == 400
    assert (await api.request("PATCH", path, b"- a\n- b\n", headers=headers, fieldManager="me")).code == 400
    twice = deployment()
    twice["spec"]["template"]["spec"]["containers"] *= 2
    assert "duplicate entries for key" in (await apply(api, WEB, twice)).message
    assert (await api.get(CONFIG_MAPS)).body["items"] == []


async def test_owners_can_be_forgotten(api: Api) -> None:
    await apply(api, f"{CONFIG_MAPS}/settings", settings(a="1"))
    cleared = await api.patch(f"{CONFIG_MAPS}/settings", {"metadata": {"managedFields": [{}]}}, "merge-patch+json")
    assert "managedFields" not in cleared.body["metadata"]


_steps = st.sampled_from(["f:a", "f:b", 'k:{"name":"x"}', 'v:"y"'])
_sets = st.frozensets(st.lists(_steps, min_size=1, max_size=4).map(tuple), max_size=8)


@given(_sets)
def test_sets_of_fields_survive_their_form(paths: frozenset[tuple[str, ...]]) -> None:
    assert fieldsets.from_fields_v1(fieldsets.to_fields_v1(paths)) == paths


_containers = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("abc")}, optional={"image": st.sampled_from("xy"), "tty": st.booleans()}),
    max_size=3,
    unique_by=lambda container: container["name"],
)
_pods = st.fixed_dictionaries({}, optional={"spec": st.fixed_dictionaries({}, optional={"containers": _containers})})


@given(_pods, _pods)
def test_merging_twice_changes_nothing_more(schemas: Schemas, live: Json, applied: Json) -> None:
    typed = fieldsets.Typed(schemas, schemas.schema_of(("", "v1", "Pod")))
    once = typed.merge(live, applied)
    assert typed.merge(once, applied) == once
    leaves = typed.leaves(once)
    empty = ({}, [])
    assert all(leaves[path] == value for path, value in typed.leaves(applied).items() if value not in empty)

"""Create, update and delete: names, versions, finalizers, grace, dry runs, and what a status write may touch."""

import asyncio
import re

import pytest

from tests.unit.apiserver.client import Api
from tests.unit.apiserver.objects import CONFIG_MAPS, DEPLOYMENTS, PODS, config_map, deployment, pod


async def test_create_gives_an_object_its_identity(api: Api) -> None:
    created = await api.create(PODS, pod())
    metadata = created["metadata"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", metadata["uid"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["creationTimestamp"])
    assert metadata["namespace"] == "default"
    assert metadata["resourceVersion"].isdigit()
    assert metadata["generation"] == 1
    assert (await api.get(f"{PODS}/web")).body == created


async def test_a_name_is_taken_once(api: Api) -> None:
    await api.create(CONFIG_MAPS, config_map())
    answer = await api.request("POST", CONFIG_MAPS, config_map())
    assert (answer.code, answer.reason) == (409, "AlreadyExists")
    assert answer.message == 'configmaps "settings" already exists'

    assert answer.body["details"] == {"name": "settings", "kind": "configmaps"}


async def test_generate_name_makes_names(api: Api) -> None:
    made = {(await api.create(CONFIG_MAPS, {"metadata": {"generateName": "a-"}}))["metadata"]["name"] for _ in range(20)}
    assert len(made) == 20
    assert all(re.fullmatch(r"a-[bcdfghjklmnpqrstvwxz2456789]{5}", name) for name in made)
    long = await api.create(CONFIG_MAPS, {"metadata": {"generateName": "x" * 100}})
    assert len(long["metadata"]["name"]) == 63


async def test_a_new_object_must_not_have_a_resource_version(api: Api) -> None:
    answer = await api.request("POST", CONFIG_MAPS, {"metadata": {"name": "a", "resourceVersion": "3"}})
    assert answer.message == "resourceVersion should not be set on objects to be created"


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({"kind": "Secret", "metadata": {"name": "a"}}, 400, "Kind"),
        ({"apiVersion": "apps/v1", "metadata": {"name": "a"}}, 400, "apps/v1"),
        ({"metadata": {"name": "a", "namespace": "other"}}, 400, "does not match the namespace"),
        ({"metadata": {}}, 422, "name or generateName is required"),
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        ({"metadata": "text"}, 400, "metadata"),
    ],
)
async def test_a_wrong_body_is_refused(api: Api, body: object, code: int, text: str) -> None:
    answer = await api.request("POST", CONFIG_MAPS, body)
    assert (answer.code, answer.body["status"]) == (code, "Failure")
    assert text in answer.message
    assert not (await api.get(CONFIG_MAPS)).body["items"]


async def test_update_needs_the_version_that_was_read(api: Api) -> None:
    first = await api.create(CONFIG_MAPS, config_map(a="1"))
    second = await api.request("PUT", f"{CONFIG_MAPS}/settings", {**first, "data": {"a": "2"}})
    assert second.code == 200
    stale = await api.request("PUT", f"{CONFIG_MAPS}/settings", {**first, "data": {"a": "3"}})
    assert (stale.code, stale.reason) == (409, "Conflict")
    assert stale.message == (
        'Operation cannot be fulfilled on configmaps "settings": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    unconditional = await api.request("PUT", f"{CONFIG_MAPS}/settings", config_map(a="4"))
    assert unconditional.body["data"] == {"a": "4"}


async def test_an_update_that_changes_nothing_writes_nothing(api: Api) -> None:
    first = await api.create(CONFIG_MAPS, config_map(a="1"))
    again = await api.request("PUT", f"{CONFIG_MAPS}/settings", first)
    assert again.body == first


async def test_update_keeps_what_the_server_gave(api: Api) -> None:
    first = await api.create(CONFIG_MAPS, config_map(a="1"))
    changed = config_map(a="2")
    changed["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z"
    second = (await api.request("PUT", f"{CONFIG_MAPS}/settings", changed)).body
    for kept in ("uid", "creationTimestamp"):
        assert second["metadata"][kept] == first["metadata"][kept]
    foreign = {**second, "metadata": {**second["metadata"], "uid": "another"}}
    answer = await api.request("PUT", f"{CONFIG_MAPS}/settings", foreign)
    assert (answer.code, answer.reason) == (409, "Conflict")
    assert "UID in precondition: another" in answer.message


async def test_generation_counts_changes_of_the_spec(api: Api) -> None:
    first = await api.create(DEPLOYMENTS, deployment())
    assert first["metadata"]["generation"] == 1
    first["metadata"]["labels"] = {"a": "b"}
    labelled = (await api.request("PUT", f"{DEPLOYMENTS}/web", first)).body
    assert labelled["metadata"]["generation"] == 1
    labelled["spec"]["replicas"] = 7
    assert (await api.request("PUT", f"{DEPLOYMENTS}/web", labelled)).body["metadata"]["generation"] == 2


async def test_status_and_spec_are_written_apart(api: Api) -> None:
    made = await api.create(DEPLOYMENTS, {**deployment(), "status": {"replicas": 9}})
    assert not made.get("status", {}).get("replicas")
    made["spec"]["replicas"] = 8
    made["status"] = {"replicas": 5, "observedGeneration": 1}
    made["metadata"]["labels"] = {"from": "status"}
    after_status = (await api.request("PUT", f"{DEPLOYMENTS}/web/status", made)).body
    assert after_status["spec"]["replicas"] == 3
    assert after_status["status"]["replicas"] == 5
    assert after_status["metadata"]["generation"] == 1
    after_status["spec"]["replicas"] = 4
    after_status["status"] = {"replicas": 1}
    after_spec = (await api.request("PUT", f"{DEPLOYMENTS}/web", after_status)).body
    assert (after_spec["spec"]["replicas"], after_spec["status"]["replicas"]) == (4, 5)


async def test_delete_answers_with_what_it_deleted(api: Api) -> None:
    made = await api.create(CONFIG_MAPS, config_map())
    answer = await api.request("DELETE", f"{CONFIG_MAPS}/settings")
    assert answer.code == 200
    assert answer.body["status"] == "Success"
    assert answer.body["details"] == {"name": "settings", "kind": "configmaps", "uid": made["metadata"]["uid"]}
    missing = await api.request("DELETE", f"{CONFIG_MAPS}/settings")
    assert (missing.code, missing.message) == (404, 'configmaps "settings" not found')


async def test_a_finalizer_holds_an_object(api: Api) -> None:
    obj = config_map()
    obj["metadata"]["finalizers"] = ["example.com/hold"]
    await api.create(CONFIG_MAPS, obj)
    deleted = (await api.request("DELETE", f"{CONFIG_MAPS}/settings")).body
    assert deleted["metadata"]["deletionTimestamp"]
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 0
    added = await api.patch(f"{CONFIG_MAPS}/settings", {"metadata": {"finalizers": ["a.b/c", "example.com/hold"]}})
    assert added.code == 422, added.body
    await api.patch(f"{CONFIG_MAPS}/settings", {"metadata": {"finalizers": None}}, "merge-patch+json")
    assert (await api.get(f"{CONFIG_MAPS}/settings")).code == 404


@pytest.mark.parametrize(
    ("query", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan"), ("Background", None)]
)
async def test_propagation_policy_becomes_a_finalizer(api: Api, query: str, finalizer: str | None) -> None:
    await api.create(CONFIG_MAPS, config_map())
    await api.request("DELETE", f"{CONFIG_MAPS}/settings", propagationPolicy=query)
    found = await api.get(f"{CONFIG_MAPS}/settings")
    assert found.body["metadata"]["finalizers"] == [finalizer] if finalizer else found.code == 404


async def test_a_running_pod_gets_its_grace(api: Api) -> None:
    await api.create(PODS, pod(nodeName="n1", terminationGracePeriodSeconds=20))
    first = (await api.request("DELETE", f"{PODS}/web")).body
    assert first["metadata"]["deletionGracePeriodSeconds"] == 20
    assert first["metadata"]["generation"] == 2
    longer = (await api.request("DELETE", f"{PODS}/web", {"gracePeriodSeconds": 60})).body
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 20
    shorter = (await api.request("DELETE", f"{PODS}/web", {"gracePeriodSeconds": 5})).body
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    assert (await api.request("DELETE", f"{PODS}/web", {"gracePeriodSeconds": 0})).code == 200
    assert (await api.get(f"{PODS}/web")).code == 404


async def test_a_pod_without_a_node_goes_at_once(api: Api) -> None:
    await api.create(PODS, pod())
    assert (await api.request("DELETE", f"{PODS}/web")).code == 200
    assert (await api.get(f"{PODS}/web")).code == 404


async def test_delete_has_preconditions(api: Api) -> None:
    made = await api.create(CONFIG_MAPS, config_map())
    answer = await api.request("DELETE", f"{CONFIG_MAPS}/settings", {"preconditions": {"uid": "other"}})
    assert (answer.code, answer.reason) == (409, "Conflict")
    assert f"UID in precondition: other, UID in object meta: {made['metadata']['uid']}" in answer.message
    fits = {"preconditions": {"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]}}
    assert (await api.request("DELETE", f"{CONFIG_MAPS}/settings", fits)).code == 200


async def test_deletecollection_takes_what_is_selected(api: Api) -> None:
    for name, label in (("a", "x"), ("b", "x"), ("c", "y")):
        await api.create(CONFIG_MAPS, {"metadata": {"name": name, "labels": {"l": label}}})
    answer = await api.request("DELETE", CONFIG_MAPS, labelSelector="l=x")
    assert [item["metadata"]["name"] for item in answer.body["items"]] == ["a", "b"]
    assert [item["metadata"]["name"] for item in (await api.get(CONFIG_MAPS)).body["items"]] == ["c"]


async def test_a_dry_run_writes_nothing(api: Api) -> None:
    made = await api.request("POST", CONFIG_MAPS, config_map(a="1"), dryRun="All")
    assert made.code == 201
    assert made.body["metadata"]["uid"]
    assert (await api.get(f"{CONFIG_MAPS}/settings")).code == 404
    kept = await api.create(CONFIG_MAPS, config_map(a="1"))
    patched = await api.patch(f"{CONFIG_MAPS}/settings", {"data": {"a": "2"}}, dryRun="All")
    assert patched.body["data"] == {"a": "2"}
    assert (await api.request("DELETE", f"{CONFIG_MAPS}/settings", dryRun="All")).code == 200
    assert (await api.get(f"{CONFIG_MAPS}/settings")).body == kept
    wrong = await api.request("POST", CONFIG_MAPS, config_map("other"), dryRun="Some")
    assert (wrong.code, wrong.reason) == (422, "Invalid")


async def test_owner_references_are_checked_and_kept(api: Api) -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": True}
    made = await api.create(CONFIG_MAPS, {"metadata": {"name": "a", "ownerReferences": [owner]}})
    assert made["metadata"]["ownerReferences"] == [owner]
    answer = await api.request("POST", CONFIG_MAPS, {"metadata": {"name": "b", "ownerReferences": [{**owner, "uid": ""}]}})
    assert (answer.code, answer.reason) == (422, "Invalid")
    assert "metadata.ownerReferences[0].uid" in answer.message
    two = [owner, {**owner, "uid": "v"}]
    answer = await api.request("POST", CONFIG_MAPS, {"metadata": {"name": "b", "ownerReferences": two}})
    assert "Only one reference can have Controller set to true" in answer.message


async def test_racing_patches_all_arrive(api: Api) -> None:
    await api.create(CONFIG_MAPS, config_map())
    answers = await asyncio.gather(*(api.patch(f"{CONFIG_MAPS}/settings", {"data": {f"k{n}": "v"}}) for n in range(6)))
    assert {answer.code for answer in answers} == {200}
    assert len((await api.get(f"{CONFIG_MAPS}/settings")).body["data"]) == 6


async def test_a_namespace_ends_when_its_finalizer_does(api: Api) -> None:
    made = await api.create("/api/v1/namespaces", {"metadata": {"name": "short"}})
    assert made["spec"]["finalizers"] == ["kubernetes"]
    assert made["metadata"]["labels"] == {"kubernetes.io/metadata.name": "short"}
    assert made["status"]["phase"] == "Active"
    deleted = (await api.request("DELETE", "/api/v1/namespaces/short")).body
    assert deleted["status"]["phase"] == "Terminating"
    assert (await api.get("/api/v1/namespaces/short")).code == 200
    deleted["spec"]["finalizers"] = []
    assert (await api.request("PUT", "/api/v1/namespaces/short/finalize", deleted)).code == 200
    assert (await api.get("/api/v1/namespaces/short")).code == 404


async def test_what_is_not_served_is_not_found(api: Api) -> None:
    for path in ("/api/v1/nosuch", "/apis/none/v1/pods", "/apis/apps/v2/deployments", f"{PODS}/web/nosuch", "/nosuch"):
        answer = await api.get(path)
        assert (answer.code, answer.message) == (404, "the server could not find the requested resource")
    assert (await api.request("PUT", PODS, pod())).code == 405
    huge = await api.request("POST", CONFIG_MAPS, config_map(a="x" * (4 << 20)))
    assert (huge.code, huge.reason) == (413, "RequestEntityTooLarge")
    strange = await api.request("POST", CONFIG_MAPS, b"x", headers={"Content-Type": "text/html"})
    assert (strange.code, strange.reason) == (415, "UnsupportedMediaType")

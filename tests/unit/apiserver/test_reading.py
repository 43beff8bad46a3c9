"""Lists, selectors, pages, tables and watches."""

import asyncio
import json
from typing import Any

import pytest

from controlplane.apiserver import cache, watch
from tests.unit.apiserver.client import Api
from tests.unit.apiserver.objects import CONFIG_MAPS, PODS, config_map, pod

Json = dict[str, Any]
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}


def names(listed: Json) -> list[str]:
    return [item["metadata"]["name"] for item in listed["items"]]


class Watch:
    """A watch, read event by event."""

    def __init__(self, api: Api, path: str, headers: dict[str, str] | None = None, **query: Any) -> None:
        params = {"watch": "true", **{key: str(value) for key, value in query.items()}}
        self._request = api.session.get(path, params=params, headers=headers or {})

    async def __aenter__(self) -> "Watch":
        self.response = await self._request.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.response.close()

    async def next(self) -> Json:
        async with asyncio.timeout(5):
            return dict(json.loads(await self.response.content.readline()))

    async def rest(self) -> list[Json]:
        async with asyncio.timeout(10):
            return [json.loads(line) for line in (await self.response.read()).splitlines()]


# --- lists


async def test_a_list_has_kind_revision_and_order(api: Api) -> None:
    for name in ("b", "a", "c"):
        await api.create(CONFIG_MAPS, config_map(name))
    listed = (await api.get(CONFIG_MAPS)).body
    assert (listed["kind"], listed["apiVersion"], names(listed)) == ("ConfigMapList", "v1", ["a", "b", "c"])
    assert int(listed["metadata"]["resourceVersion"]) >= max(int(item["metadata"]["resourceVersion"]) for item in listed["items"])


async def test_lists_of_all_namespaces(api: Api) -> None:
    await api.create("/api/v1/namespaces", {"metadata": {"name": "other"}})
    await api.create(CONFIG_MAPS, config_map("a"))
    await api.create("/api/v1/namespaces/other/configmaps", config_map("a"))
    listed = (await api.get("/api/v1/configmaps")).body
    assert [item["metadata"]["namespace"] for item in listed["items"]] == ["default", "other"]
    assert names((await api.get("/api/v1/configmaps", fieldSelector="metadata.namespace=other")).body) == ["a"]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app=web", ["web1", "web2"]),
        ("app==web,tier=front", ["web1"]),
        ("app!=web", ["db", "none"]),
        ("app in (web, db)", ["db", "web1", "web2"]),
        ("app notin (web)", ["db", "none"]),
        ("tier", ["web1"]),
        ("!tier", ["db", "none", "web2"]),
        ("app=nothing", []),
    ],
)
async def test_label_selectors(api: Api, selector: str, found: list[str]) -> None:
    for name, labels in (
        ("web1", {"app": "web", "tier": "front"}),
        ("web2", {"app": "web"}),
        ("db", {"app": "db"}),
        ("none", {}),
    ):
        await api.create(CONFIG_MAPS, {"metadata": {"name": name, "labels": labels}})
    assert names((await api.get(CONFIG_MAPS, labelSelector=selector)).body) == found


async def test_field_selectors(api: Api) -> None:
    await api.create(PODS, pod("a", nodeName="n1"))
    await api.create(PODS, pod("b"))
    assert names((await api.get(PODS, fieldSelector="spec.nodeName=n1")).body) == ["a"]
    assert names((await api.get(PODS, fieldSelector="spec.nodeName=")).body) == ["b"]
    assert names((await api.get(PODS, fieldSelector="metadata.name!=a,status.phase=Pending")).body) == ["b"]
    assert names((await api.get(PODS, fieldSelector="metadata.name=b")).body) == ["b"]
    assert names((await api.get("/api/v1/pods", fieldSelector="metadata.name=b")).body) == ["b"]
    wrong = await api.get(PODS, fieldSelector="spec.color=red")
    assert (wrong.code, wrong.message) == (400, "field label not supported: spec.color")


@pytest.mark.parametrize("selector", ["a in b", "a in (", "=", "a=b=c", "-a=b"])
async def test_a_selector_that_cannot_be_read(api: Api, selector: str) -> None:
    answer = await api.get(CONFIG_MAPS, labelSelector=selector)
    assert (answer.code, answer.reason) == (400, "BadRequest")


async def test_pages_show_one_revision(api: Api) -> None:
    for n in range(7):
        await api.create(CONFIG_MAPS, config_map(f"c{n}", n="old"))
    first = (await api.get(CONFIG_MAPS, limit=3)).body
    assert (names(first), first["metadata"]["remainingItemCount"]) == (["c0", "c1", "c2"], 4)
    await api.request("DELETE", f"{CONFIG_MAPS}/c3")
    await api.patch(f"{CONFIG_MAPS}/c4", {"data": {"n": "new"}})
    await api.create(CONFIG_MAPS, config_map("c45"))
    second = (await api.get(CONFIG_MAPS, **{"limit": 3, "continue": first["metadata"]["continue"]})).body
    assert names(second) == ["c3", "c4", "c5"]
    assert second["items"][1]["data"] == {"n": "old"}
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    third = (await api.get(CONFIG_MAPS, **{"limit": 3, "continue": second["metadata"]["continue"]})).body
    assert names(third) == ["c6"]
    assert "continue" not in third["metadata"]
    exact = await api.get(CONFIG_MAPS, resourceVersion=first["metadata"]["resourceVersion"], resourceVersionMatch="Exact")
    assert names(exact.body) == [f"c{n}" for n in range(7)]
    assert names((await api.get(CONFIG_MAPS)).body) == ["c0", "c1", "c2", "c4", "c45", "c5", "c6"]


async def test_a_page_of_a_forgotten_revision_goes_on_with_the_present(api: Api) -> None:
    for n in range(4):
        await api.create(CONFIG_MAPS, config_map(f"c{n}"))
    first = (await api.get(CONFIG_MAPS, limit=2)).body
    await api.request("DELETE", f"{CONFIG_MAPS}/c2")
    api.server.reader.compacted = api.server.reader.revision
    late = await api.get(CONFIG_MAPS, **{"limit": 2, "continue": first["metadata"]["continue"]})
    assert (late.code, late.reason) == (410, "Expired")
    rest = await api.get(CONFIG_MAPS, **{"limit": 2, "continue": late.body["metadata"]["continue"]})
    assert names(rest.body) == ["c3"]


async def test_a_page_that_cannot_be(api: Api) -> None:
    for query in ({"limit": 3, "continue": "!!!"}, {"limit": "many"}, {"resourceVersion": "new"}):
        answer = await api.get(CONFIG_MAPS, **query)
        assert (answer.code, answer.reason) == (400, "BadRequest")
    for query in ({"resourceVersionMatch": "Exact"}, {"resourceVersionMatch": "Nearly", "resourceVersion": 1}):
        assert (await api.get(CONFIG_MAPS, **query)).code == 422


async def test_a_revision_of_the_future(api: Api) -> None:
    answer = await api.get(CONFIG_MAPS, resourceVersion=10**9)
    assert (answer.code, answer.reason) == (504, "Timeout")
    assert "Too large resource version: 1000000000" in answer.message


async def test_a_table_is_what_kubectl_shows(api: Api) -> None:
    await api.create(PODS, pod(labels={"a": "b"}))
    table = (await api.request("GET", PODS, headers=TABLE)).body
    assert table["kind"] == "Table"
    shown = [column["name"] for column in table["columnDefinitions"] if not column["priority"]]
    assert shown == ["Name", "Ready", "Status", "Restarts", "Age"]
    (row,) = table["rows"]
    assert row["cells"][:4] == ["web", "0/1", "Pending", "0"]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert row["object"]["metadata"]["labels"] == {"a": "b"}
    assert "spec" not in row["object"]
    whole = (await api.request("GET", f"{PODS}/web", headers=TABLE, includeObject="Object")).body
    assert whole["rows"][0]["object"]["spec"]["containers"]
    bare = (await api.request("GET", PODS, headers=TABLE, includeObject="None")).body
    assert "object" not in bare["rows"][0]


async def test_metadata_alone(api: Api) -> None:
    await api.create(CONFIG_MAPS, config_map(a="1"))
    accept = {"Accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}
    listed = (await api.request("GET", CONFIG_MAPS, headers=accept)).body
    assert listed["kind"] == "PartialObjectMetadataList"
    assert listed["items"][0].keys() == {"kind", "apiVersion", "metadata"}


async def test_a_form_that_is_not_there(api: Api) -> None:
    answer = await api.request("GET", CONFIG_MAPS, headers={"Accept": "text/csv"})
    assert (answer.code, answer.reason) == (406, "NotAcceptable")


# --- watches


async def test_a_watch_goes_on_where_a_list_ended(api: Api) -> None:
    await api.create(CONFIG_MAPS, config_map("before"))
    listed = (await api.get(CONFIG_MAPS)).body
    await api.create(CONFIG_MAPS, config_map("missed"))
    async with Watch(api, CONFIG_MAPS, resourceVersion=listed["metadata"]["resourceVersion"]) as events:
        await api.create(CONFIG_MAPS, config_map("live", a="1"))
        await api.patch(f"{CONFIG_MAPS}/live", {"data": {"a": "2"}})
        await api.request("DELETE", f"{CONFIG_MAPS}/live")
        seen = [await events.next() for _ in range(4)]
    assert [(e["type"], e["object"]["metadata"]["name"]) for e in seen] == [
        ("ADDED", "missed"),
        ("ADDED", "live"),
        ("MODIFIED", "live"),
        ("DELETED", "live"),
    ]
    revisions = [int(e["object"]["metadata"]["resourceVersion"]) for e in seen]
    assert revisions == sorted(set(revisions))
    assert seen[3]["object"]["data"] == {"a": "2"}


async def test_a_watch_without_revision_begins_with_what_is_there(api: Api) -> None:
    await api.create(CONFIG_MAPS, config_map("a"))
    async with Watch(api, CONFIG_MAPS) as events:
        assert (await events.next())["object"]["metadata"]["name"] == "a"


async def test_selectors_turn_changes_into_additions_and_deletions(api: Api) -> None:
    made = await api.create(CONFIG_MAPS, {"metadata": {"name": "a", "labels": {"l": "x"}}})
    await api.create(CONFIG_MAPS, {"metadata": {"name": "other", "labels": {"l": "y"}}})
    async with Watch(api, CONFIG_MAPS, resourceVersion=made["metadata"]["resourceVersion"], labelSelector="l=x") as events:
        for label in ("y", "x"):
            await api.patch(f"{CONFIG_MAPS}/a", {"metadata": {"labels": {"l": label}}})
        await api.patch(f"{CONFIG_MAPS}/a", {"data": {"k": "v"}})
        await api.request("DELETE", f"{CONFIG_MAPS}/a")
        assert [(await events.next())["type"] for _ in range(4)] == ["DELETED", "ADDED", "MODIFIED", "DELETED"]


async def test_a_watch_of_one_name(api: Api) -> None:
    async with Watch(api, CONFIG_MAPS, fieldSelector="metadata.name=b") as events:
        await api.create(CONFIG_MAPS, config_map("a"))
        await api.create(CONFIG_MAPS, config_map("b"))
        assert (await events.next())["object"]["metadata"]["name"] == "b"


async def test_a_watch_ends_after_its_timeout(api: Api) -> None:
    await api.create(CONFIG_MAPS, config_map("a"))
    async with Watch(api, CONFIG_MAPS, timeoutSeconds=1) as events:
        assert [event["type"] for event in await events.rest()] == ["ADDED"]


async def test_bookmarks(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BOOKMARK_SECONDS", 0.2)
    await api.create(PODS, pod())
    async with Watch(api, CONFIG_MAPS, allowWatchBookmarks="true", timeoutSeconds=1) as events:
        first = await events.next()
    assert first["type"] == "BOOKMARK"
    assert first["object"]["kind"] == "ConfigMap"
    assert first["object"]["metadata"]["resourceVersion"] == str(api.server.reader.revision)


async def test_a_streamed_list_ends_with_a_bookmark(api: Api) -> None:
    await api.create(CONFIG_MAPS, config_map("a"))
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    async with Watch(api, CONFIG_MAPS, **query) as events:
        added, mark = await events.next(), await events.next()
    assert (added["type"], mark["type"]) == ("ADDED", "BOOKMARK")
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


@pytest.fixture
def short_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be named before `api`, whose cache it makes forgetful."""
    monkeypatch.setattr(cache, "HISTORY", 8)


@pytest.mark.usefixtures("short_history")
async def test_a_revision_that_is_too_old_is_gone(api: Api) -> None:
    first = await api.create(CONFIG_MAPS, config_map())
    for n in range(cache.HISTORY + 1):
        await api.server.call("PATCH", f"{CONFIG_MAPS}/settings", {"data": {"n": str(n)}})
    answer = await api.get(CONFIG_MAPS, watch="true", resourceVersion=first["metadata"]["resourceVersion"])
    assert (answer.code, answer.reason) == (410, "Expired")
    assert "too old resource version" in answer.message


async def test_a_watch_in_tables(api: Api) -> None:
    await api.create(PODS, pod())
    async with Watch(api, PODS, headers=TABLE) as events:
        first = await events.next()
        await api.patch(f"{PODS}/web/status", {"status": {"phase": "Running"}})
        second = await events.next()
    assert first["object"]["kind"] == "Table"
    assert first["object"]["rows"][0]["cells"][2] == "Pending"
    assert second["object"]["rows"][0]["cells"][2] == "Running"


async def test_a_watcher_that_does_not_read_is_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WATCH_BACKLOG", 5)
    resource = api.server.registry.preferred("", "configmaps")
    assert resource is not None
    changes = api.server.reader.of(resource)
    _, subscription = changes.subscribe(resource.prefix, api.server.reader.revision)
    for n in range(10):
        await api.create(CONFIG_MAPS, config_map(f"c{n}"))
    queued = [subscription.queue.get_nowait() for _ in range(subscription.queue.qsize())]
    changes.unsubscribe(subscription)
    assert len(queued) == 6
    assert queued[-1] is None

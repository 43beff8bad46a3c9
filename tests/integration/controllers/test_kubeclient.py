"""The client against a real API server."""

import asyncio
from typing import Any

import pytest

from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError, Unreachable
from strata.kubeclient.events import EventRecorder
from strata.kubeclient.informer import Informer
from strata.kubeclient.leaderelection import LeaderElector
from strata.kubeclient.resources import CONFIGMAPS, EVENTS, LEASES, NAMESPACES
from tests.integration.controllers.conftest import Door, eventually


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "data": data}


async def test_verbs_do_what_they_say(client: Client) -> None:
    made = await client.create(CONFIGMAPS, config_map("a", x="1"))
    assert made["kind"] == "ConfigMap"
    made["data"]["x"] = "2"
    await client.update(CONFIGMAPS, made)
    with pytest.raises(ApiError) as refused:
        await client.update(CONFIGMAPS, made)
    assert refused.value.is_conflict
    assert (await client.patch(CONFIGMAPS, "a", {"data": {"y": "3"}}, "default"))["data"] == {"x": "2", "y": "3"}
    assert (await client.patch(CONFIGMAPS, "a", {"data": {"y": None}}, "default", kind="merge"))["data"] == {"x": "2"}
    change = [{"op": "replace", "path": "/data/x", "value": "4"}]
    assert (await client.patch(CONFIGMAPS, "a", change, "default", kind="json"))["data"] == {"x": "4"}
    with pytest.raises(ApiError) as refused:
        await client.create(CONFIGMAPS, config_map("a"))
    assert refused.value.is_already_exists
    assert not refused.value.is_conflict
    listed = await client.list(CONFIGMAPS, "default", label_selector="app=a")
    assert [item["kind"] for item in listed["items"]] == ["ConfigMap"]
    with pytest.raises(ApiError):
        await client.delete(CONFIGMAPS, "a", "default", uid="another")
    await client.delete(CONFIGMAPS, "a", "default", uid=made["metadata"]["uid"])
    with pytest.raises(ApiError) as refused:
        await client.get(CONFIGMAPS, "a", "default")
    assert refused.value.is_not_found
    assert refused.value.status["details"]["name"] == "a"


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    client = Client("http://127.0.0.1:1")
    with pytest.raises(Unreachable):
        await client.get(NAMESPACES, "default")
    await client.close()


async def test_a_watch_tells_each_change_and_ends_in_time(client: Client) -> None:
    start = await client.list(CONFIGMAPS, "default")
    version = start["metadata"]["resourceVersion"]
    await client.create(CONFIGMAPS, config_map("a"))
    await client.patch(CONFIGMAPS, "a", {"data": {"x": "1"}}, "default")
    await client.delete(CONFIGMAPS, "a", "default")
    events = client.watch(CONFIGMAPS, "default", resource_version=version, label_selector="app=a", timeout_seconds=1)
    assert [event.type async for event in events if event.type != "BOOKMARK"] == ["ADDED", "MODIFIED", "DELETED"]


async def test_an_informer_follows_through_a_killed_server(door: Door, client: Client) -> None:
    seen: list[tuple[str, str]] = []
    informer = Informer(client, CONFIGMAPS, "default")
    informer.add_index("x", lambda obj: [(obj.get("data") or {}).get("x", "")])
    informer.add_handler(
        lambda obj: seen.append(("add", obj["metadata"]["name"])),
        lambda _, obj: seen.append(("update", obj["metadata"]["name"])),
        lambda obj: seen.append(("delete", obj["metadata"]["name"])),
    )
    await client.create(CONFIGMAPS, config_map("a", x="1"))
    running = asyncio.create_task(informer.run())
    try:
        await asyncio.wait_for(informer.wait_synced(), 5)
        assert seen == [("add", "a")]
        await client.create(CONFIGMAPS, config_map("b", x="1"))

        async def both() -> bool:
            return len(informer.by_index("x", "1")) == 2

        await eventually(both, "both in the index")
        await door.kill()
        await door.start()
        await client.patch(CONFIGMAPS, "b", {"data": {"x": "2"}}, "default")
        await client.delete(CONFIGMAPS, "a", "default")

        async def gone() -> bool:
            return informer.get("a", "default") is None and informer.get("b", "default")["data"] == {"x": "2"}  # type: ignore[index]

        await eventually(gone, "the changes after the restart", seconds=20)
        assert seen == [("add", "a"), ("add", "b"), ("update", "b"), ("delete", "a")]
        assert informer.by_index("x", "1") == []
    finally:
        running.cancel()


async def test_the_same_event_is_counted_and_many_similar_ones_are_combined(client: Client) -> None:
    about = {"kind": "Pod", "namespace": "default", "name": "p", "uid": "1"}
    recorder = EventRecorder(client, "tester", host="here")
    for _ in range(3):
        recorder.event(about, "Normal", "Same", "it is the same")
    for number in range(14):
        recorder.event(about, "Warning", "Differs", f"number {number}")
    await asyncio.wait_for(recorder.flush(), 10)
    await recorder.close()
    events = (await client.list(EVENTS, "default", field_selector="involvedObject.name=p"))["items"]
    same = [event for event in events if event["reason"] == "Same"]
    assert [event["count"] for event in same] == [3]
    assert same[0]["source"] == {"component": "tester", "host": "here"}
    combined = [event for event in events if event["message"].startswith("(combined from similar events)")]
    assert [event["count"] for event in combined] == [4]


async def test_only_one_leads_and_the_next_takes_over_when_it_ends(client: Client) -> None:
    led: list[str] = []
    release = asyncio.Event()

    async def work(name: str) -> None:
        led.append(name)
        if name == "one":
            await release.wait()

    one = LeaderElector(client, "lock", "one", lease_duration=3, renew_deadline=2, retry_period=0.1)
    two = LeaderElector(client, "lock", "two", lease_duration=3, renew_deadline=2, retry_period=0.1)
    first = asyncio.create_task(one.run(lambda: work("one")))

    async def leads() -> bool:
        return one.is_leader

    await eventually(leads, "one leads")
    second = asyncio.create_task(two.run(lambda: work("two")))
    await asyncio.sleep(0.5)
    assert led == ["one"]
    release.set()
    await asyncio.wait_for(asyncio.gather(first, second), 5)
    assert led == ["one", "two"]
    assert (await client.get(LEASES, "lock", "kube-system"))["spec"]["leaseTransitions"] >= 1

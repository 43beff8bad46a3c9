"""The scheduler against a real API server."""

import time
from typing import Any

import pytest

from strata.kubeclient.client import Client
from strata.kubeclient.resources import EVENTS, NODES, PODS
from tests.integration.controllers.conftest import add_node, add_pod, eventually

pytestmark = pytest.mark.usefixtures("controllers")


async def node_of(client: Client, name: str) -> str:
    return (await client.get(PODS, name, "default"))["spec"].get("nodeName") or ""


async def placed(client: Client, name: str) -> str:
    return str(await eventually(lambda: node_of(client, name), f"pod {name} to get a node"))


async def unschedulable(client: Client, name: str) -> str:
    """The message of the pod's condition, once it has one."""

    async def message() -> str:
        pod = await client.get(PODS, name, "default")
        found = [c for c in pod["status"].get("conditions") or () if c["type"] == "PodScheduled" and c["status"] == "False"]
        return found[0]["message"] if found and found[0]["reason"] == "Unschedulable" else ""

    return str(await eventually(message, f"pod {name} to be unschedulable"))


async def test_a_pod_gets_a_node_soon_and_an_event_says_so(client: Client) -> None:
    await add_node(client, "one")
    await add_pod(client, "first")
    await placed(client, "first")
    began = time.monotonic()
    await add_pod(client, "p")
    assert await placed(client, "p") == "one"
    assert time.monotonic() - began < 2

    async def told() -> Any:
        events = await client.list(EVENTS, "default", field_selector="involvedObject.name=p,reason=Scheduled")
        return [event["message"] for event in events["items"]]

    assert await eventually(told, "the event") == ["Successfully assigned default/p to one"]
    pod = await client.get(PODS, "p", "default")
    assert [(c["type"], c["status"]) for c in pod["status"]["conditions"]] == [("PodScheduled", "True")]


async def test_a_pod_that_fits_nowhere_waits_for_room(client: Client) -> None:
    await add_pod(client, "early")
    assert await unschedulable(client, "early") == "no nodes available to schedule pods"
    await add_node(client, "one", cpu="1")
    await placed(client, "early")
    await add_pod(client, "big", cpu="800m")
    await placed(client, "big")
    await add_pod(client, "second", cpu="800m")
    assert await unschedulable(client, "second") == "0/1 nodes are available: 1 Insufficient cpu."
    await client.delete(PODS, "big", "default", grace_period_seconds=0)
    assert await placed(client, "second") == "one"


async def test_taints_selectors_and_ports_keep_pods_away(client: Client) -> None:
    await add_node(client, "plain")
    await add_node(client, "tainted", labels={"disk": "ssd"})
    taint = {"key": "for", "value": "others", "effect": "NoSchedule"}
    await client.patch(NODES, "tainted", {"spec": {"taints": [taint]}})
    await add_pod(client, "selects", nodeSelector={"disk": "ssd"})
    assert await unschedulable(client, "selects") == (
        "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, "
        "1 node(s) had untolerated taint {for: others}."
    )
    tolerations = [{"key": "for", "operator": "Exists"}]
    await add_pod(client, "tolerates", nodeSelector={"disk": "ssd"}, tolerations=tolerations)
    assert await placed(client, "tolerates") == "tainted"
    await client.patch(NODES, "plain", {"spec": {"unschedulable": True}})
    await add_pod(client, "late")
    assert "1 node(s) were unschedulable" in await unschedulable(client, "late")
    await client.patch(NODES, "plain", {"spec": {"unschedulable": None}})
    assert await placed(client, "late") == "plain"


async def test_pods_that_keep_apart_get_nodes_apart(client: Client) -> None:
    await add_node(client, "a")
    await add_node(client, "b")
    term = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    for name in ("x1", "x2", "x3"):
        await add_pod(client, name, labels={"app": "x"}, affinity=affinity)
    assert "2 node(s)" in await unschedulable(client, "x3")
    assert {await placed(client, "x1"), await placed(client, "x2")} == {"a", "b"}

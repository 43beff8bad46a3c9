"""Namespaces, the garbage collector, nodes, and what a namespace gets by itself, against a real API server."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlplane.controllers.bootstraptokens import signature
from strata.kubeclient import times
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    LEASES,
    NAMESPACES,
    NODES,
    PODS,
    REPLICASETS,
    SECRETS,
    SERVICEACCOUNTS,
    Resource,
)
from tests.integration.controllers.conftest import add_node, add_pod, eventually, make_ready, pod_spec

pytestmark = pytest.mark.usefixtures("controllers")


async def is_gone(client: Client, resource: Resource, name: str, namespace: str | None = "default") -> bool:
    try:
        await client.get(resource, name, namespace)
    except ApiError as error:
        return error.is_not_found
    return False


async def test_a_namespace_has_its_account_and_its_end_takes_everything_along(client: Client) -> None:
    await client.create(NAMESPACES, {"metadata": {"name": "n"}})
    await eventually(lambda: client.get(SERVICEACCOUNTS, "default", "n"), "the service account")
    await client.delete(SERVICEACCOUNTS, "default", "n")
    await eventually(lambda: client.get(SERVICEACCOUNTS, "default", "n"), "the service account again")
    await client.create(CONFIGMAPS, {"metadata": {"name": "free", "namespace": "n"}})
    await client.create(CONFIGMAPS, {"metadata": {"name": "held", "namespace": "n", "finalizers": ["example.com/hold"]}})
    await client.delete(NAMESPACES, "n")

    async def conditions() -> Any:
        found = await client.get(NAMESPACES, "n")
        true = {c["type"] for c in found["status"].get("conditions") or () if c["status"] == "True"}
        return found if {"NamespaceContentRemaining", "NamespaceFinalizersRemaining"} <= true else None

    found = await eventually(conditions, "the conditions")
    assert found["status"]["phase"] == "Terminating"
    assert await is_gone(client, CONFIGMAPS, "free", "n")
    await client.patch(CONFIGMAPS, "held", {"metadata": {"finalizers": None}}, "n", kind="merge")
    await eventually(lambda: is_gone(client, NAMESPACES, "n", None), "the namespace to go")


async def test_dependents_go_with_their_owner(client: Client) -> None:
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec()},
    }
    await client.create(DEPLOYMENTS, {"metadata": {"name": "d", "namespace": "default"}, "spec": spec})

    async def pods(count: int) -> bool:
        return len((await client.list(PODS, "default"))["items"]) == count

    await eventually(lambda: pods(2), "the pods")
    await client.delete(DEPLOYMENTS, "d", "default", propagation_policy="Background")
    await eventually(lambda: pods(0), "the pods to go")
    assert (await client.list(REPLICASETS, "default"))["items"] == []


async def test_foreground_deletion_waits_and_orphans_stay(client: Client) -> None:
    owner = await client.create(CONFIGMAPS, {"metadata": {"name": "owner", "namespace": "default"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    held = {"name": "held", "namespace": "default", "finalizers": ["example.com/hold"]}
    await client.create(CONFIGMAPS, {"metadata": {**held, "ownerReferences": [{**reference, "blockOwnerDeletion": True}]}})
    await client.delete(CONFIGMAPS, "owner", "default", propagation_policy="Foreground")

    async def is_going() -> Any:
        return (await client.get(CONFIGMAPS, "held", "default"))["metadata"].get("deletionTimestamp")

    await eventually(is_going, "the dependent's deletion")
    assert not await is_gone(client, CONFIGMAPS, "owner")
    await client.patch(CONFIGMAPS, "held", {"metadata": {"finalizers": None}}, "default", kind="merge")
    await eventually(lambda: is_gone(client, CONFIGMAPS, "owner"), "the owner to go")

    owner = await client.create(CONFIGMAPS, {"metadata": {"name": "owner", "namespace": "default"}})
    reference["uid"] = owner["metadata"]["uid"]
    await client.create(CONFIGMAPS, {"metadata": {"name": "left", "namespace": "default", "ownerReferences": [reference]}})
    await client.delete(CONFIGMAPS, "owner", "default", propagation_policy="Orphan")
    await eventually(lambda: is_gone(client, CONFIGMAPS, "owner"), "the owner to go")
    assert "ownerReferences" not in (await client.get(CONFIGMAPS, "left", "default"))["metadata"]


async def test_what_names_an_owner_that_never_was_goes(client: Client) -> None:
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "11111111-2222-3333-4444-555555555555"}
    await client.create(CONFIGMAPS, {"metadata": {"name": "lost", "namespace": "default", "ownerReferences": [reference]}})
    await eventually(lambda: is_gone(client, CONFIGMAPS, "lost"), "it to go")


async def test_nodes_get_ranges_that_do_not_overlap(client: Client) -> None:
    await asyncio.gather(*(add_node(client, f"n{number}") for number in range(5)))

    async def ranges() -> Any:
        found = [node["spec"].get("podCIDR") for node in (await client.list(NODES))["items"]]
        return found if all(found) else None

    assert sorted(await eventually(ranges, "the ranges")) == [f"10.244.{number}.0/24" for number in range(5)]


def taints_of(node: dict[str, Any]) -> set[tuple[str, str]]:
    return {(taint["key"], taint["effect"]) for taint in node["spec"].get("taints") or ()}


@pytest.mark.parametrize("grace_seconds", [2.0])
async def test_a_silent_node_is_unknown_its_pods_go_and_it_can_come_back(client: Client) -> None:
    await add_node(client, "n")
    lease = {
        "metadata": {"name": "n", "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": "n", "renewTime": times.now_micro()},
    }
    await client.create(LEASES, lease)
    forever = [
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
    ]
    short = [{**toleration, "tolerationSeconds": 1} for toleration in forever]
    for name, tolerations in (("stays", forever), ("goes", short)):
        pod = await add_pod(client, name, tolerations=tolerations, nodeName="n")
        await make_ready(client, pod)

    async def unknown() -> Any:
        node = await client.get(NODES, "n")
        ready = [c for c in node["status"]["conditions"] if c["type"] == "Ready"]
        return ready[0] if ready[0]["status"] == "Unknown" else None

    found = await eventually(unknown, "the node to be unknown", seconds=15)
    assert (found["reason"], found["message"]) == ("NodeStatusUnknown", "Kubelet stopped posting node status.")

    async def unreachable() -> bool:
        key = "node.kubernetes.io/unreachable"
        return taints_of(await client.get(NODES, "n")) == {(key, "NoSchedule"), (key, "NoExecute")}

    await eventually(unreachable, "the taints")

    async def evicted() -> Any:
        return (await client.get(PODS, "goes", "default"))["metadata"].get("deletionTimestamp")

    await eventually(evicted, "the eviction")
    stays = await client.get(PODS, "stays", "default")
    assert not stays["metadata"].get("deletionTimestamp")
    assert [c["status"] for c in stays["status"]["conditions"] if c["type"] == "Ready"] == ["False"]
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "lastHeartbeatTime": times.text(times.seconds(times.now()) + 1),
    }
    await client.patch(NODES, "n", {"status": {"conditions": [ready]}}, subresource="status")

    async def clean() -> bool:
        return not taints_of(await client.get(NODES, "n"))

    await eventually(clean, "the taints to go")


async def test_bootstrap_tokens_sign_cluster_info_until_they_expire(client: Client) -> None:
    def token(name: str, seconds: float) -> dict[str, Any]:
        expiration = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        fields = {
            "token-id": name,
            "token-secret": "0123456789abcdef",
            "usage-bootstrap-signing": "true",
            "expiration": expiration,
        }
        data = {key: base64.b64encode(value.encode()).decode() for key, value in fields.items()}
        metadata = {"name": f"bootstrap-token-{name}", "namespace": "kube-system"}
        return {"metadata": metadata, "type": "bootstrap.kubernetes.io/token", "data": data}

    await client.create(
        CONFIGMAPS, {"metadata": {"name": "cluster-info", "namespace": "kube-public"}, "data": {"kubeconfig": "text"}}
    )
    await client.create(SECRETS, token("abcdef", 3600))
    await client.create(SECRETS, token("short1", 2))

    async def signatures() -> Any:
        data = (await client.get(CONFIGMAPS, "cluster-info", "kube-public"))["data"]
        return {key: value for key, value in data.items() if key.startswith("jws-kubeconfig-")}

    async def only_the_long_one() -> Any:
        return await signatures() if list(await signatures()) == ["jws-kubeconfig-abcdef"] else None

    await eventually(signatures, "the signatures")
    await eventually(lambda: is_gone(client, SECRETS, "bootstrap-token-short1", "kube-system"), "the expired token to go")
    found = await eventually(only_the_long_one, "its signature to go")
    assert found == {"jws-kubeconfig-abcdef": signature("text", "abcdef", "0123456789abcdef")}


async def test_pods_of_a_node_that_is_gone_are_removed(client: Client) -> None:
    await add_node(client, "n")
    await add_pod(client, "p", nodeName="n")
    await client.delete(NODES, "n")
    await eventually(lambda: is_gone(client, PODS, "p"), "the pod to go")

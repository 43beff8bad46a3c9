"""ReplicaSets, Deployments and their Services' endpoints, against a real API server; pods are made ready as a kubelet would."""

from typing import Any

import pytest

from strata.kubeclient.client import Client
from strata.kubeclient.informer import Informer
from strata.kubeclient.resources import DEPLOYMENTS, ENDPOINTS, ENDPOINTSLICES, PODS, REPLICASETS, SERVICES
from tests.integration.controllers.conftest import add_pod, eventually, pod_spec

pytestmark = pytest.mark.usefixtures("controllers")


def deployment(replicas: int, **more: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod_spec()}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template, **more}
    return {"metadata": {"name": "web", "namespace": "default"}, "spec": spec}


def has_rolled_out(found: dict[str, Any]) -> bool:
    """What `kubectl rollout status` waits for."""
    status, replicas = found.get("status") or {}, found["spec"]["replicas"]
    counts = [status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")]
    return bool(status.get("observedGeneration", 0) >= found["metadata"]["generation"] and counts == [replicas] * 3)


async def rolled_out(client: Client) -> dict[str, Any]:
    async def done() -> Any:
        found = await client.get(DEPLOYMENTS, "web", "default")
        progressing = [c for c in found.get("status", {}).get("conditions") or () if c["type"] == "Progressing"]
        return found if has_rolled_out(found) and progressing[0]["reason"] == "NewReplicaSetAvailable" else None

    return dict(await eventually(done, "the rollout", seconds=20))


async def test_a_deployment_rolls_out_scales_updates_and_goes_back(client: Client, kubelet: Informer) -> None:
    await client.create(DEPLOYMENTS, deployment(3))
    found = await rolled_out(client)
    assert {c["type"]: (c["status"], c["reason"]) for c in found["status"]["conditions"]} == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1"
    await client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 5}}, "default", subresource="scale", kind="merge")
    await rolled_out(client)
    most = 0
    change = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "example/image:2"}]}}}}
    await client.patch(DEPLOYMENTS, "web", change, "default")

    def count(*_: object) -> None:
        nonlocal most
        most = max(most, len(kubelet.list()))

    kubelet.add_handler(on_add=count)

    async def finished() -> bool:
        return has_rolled_out(await client.get(DEPLOYMENTS, "web", "default"))

    await eventually(finished, "the update", seconds=20)
    assert 5 < most <= 5 + 2 + 2, "surge of 25% rounded up, and the pods that are about to go"
    sets = (await client.list(REPLICASETS, "default"))["items"]
    revisions = {s["metadata"]["annotations"]["deployment.kubernetes.io/revision"]: s["spec"]["replicas"] for s in sets}
    assert revisions == {"1": 0, "2": 5}
    back = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "example/image"}]}}}}
    await client.patch(DEPLOYMENTS, "web", back, "default")
    found = await rolled_out(client)
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
    sets = (await client.list(REPLICASETS, "default"))["items"]
    assert len(sets) == 2
    assert {s["metadata"]["annotations"].get("deployment.kubernetes.io/revision-history") for s in sets} == {None, "1"}


async def test_recreate_ends_all_old_pods_before_it_makes_new_ones(client: Client, kubelet: Informer) -> None:
    await client.create(DEPLOYMENTS, deployment(2, strategy={"type": "Recreate"}))
    await rolled_out(client)
    together = False

    def look(_: Any, pod: Any = None) -> None:
        nonlocal together
        together |= len({p["metadata"]["labels"]["pod-template-hash"] for p in kubelet}) > 1

    kubelet.add_handler(look, look)
    change = {"spec": {"template": {"metadata": {"annotations": {"restarted": "now"}}}}}
    await client.patch(DEPLOYMENTS, "web", change, "default")
    await eventually(lambda: _revision(client, "2"), "the second revision")
    await rolled_out(client)
    assert not together


async def _revision(client: Client, wanted: str) -> bool:
    found = await client.get(DEPLOYMENTS, "web", "default")
    return bool((found["metadata"].get("annotations") or {}).get("deployment.kubernetes.io/revision") == wanted)


async def test_a_paused_deployment_waits_and_old_revisions_go(client: Client, kubelet: Informer) -> None:
    await client.create(DEPLOYMENTS, deployment(1, revisionHistoryLimit=1))
    await rolled_out(client)
    await client.patch(DEPLOYMENTS, "web", {"spec": {"paused": True}}, "default")
    change = {"spec": {"template": {"metadata": {"annotations": {"round": "0"}}}}}
    await client.patch(DEPLOYMENTS, "web", change, "default")

    async def paused() -> bool:
        found = await client.get(DEPLOYMENTS, "web", "default")
        reasons = {c["reason"] for c in found["status"]["conditions"]}
        return "DeploymentPaused" in reasons and found["status"]["observedGeneration"] == found["metadata"]["generation"]

    await eventually(paused, "the pause")
    assert len((await client.list(REPLICASETS, "default"))["items"]) == 1
    await client.patch(DEPLOYMENTS, "web", {"spec": {"paused": False}}, "default")
    await eventually(lambda: _revision(client, "2"), "the second revision")
    for number in range(3, 5):
        await rolled_out(client)
        change["spec"]["template"]["metadata"]["annotations"]["round"] = str(number)
        await client.patch(DEPLOYMENTS, "web", change, "default")
        await eventually(lambda number=number: _revision(client, str(number)), f"revision {number}")  # type: ignore[misc]
    await rolled_out(client)

    async def few() -> bool:
        return len((await client.list(REPLICASETS, "default"))["items"]) == 2

    await eventually(few, "old revisions to go")


async def test_a_replica_set_takes_up_orphans_and_lets_go_of_strangers(client: Client, kubelet: Informer) -> None:
    await add_pod(client, "orphan", labels={"app": "web"})
    spec = deployment(2)["spec"]
    made = await client.create(REPLICASETS, {"metadata": {"name": "set", "namespace": "default"}, "spec": spec})

    async def ready() -> bool:
        return bool(((await client.get(REPLICASETS, "set", "default")).get("status") or {}).get("readyReplicas") == 2)

    await eventually(ready, "two ready pods")
    pods = (await client.list(PODS, "default"))["items"]
    assert len(pods) == 2
    assert {p["metadata"]["ownerReferences"][0]["uid"] for p in pods} == {made["metadata"]["uid"]}
    await client.patch(PODS, "orphan", {"metadata": {"labels": {"app": "other"}}}, "default")

    async def replaced() -> bool:
        pods = (await client.list(PODS, "default"))["items"]
        return len(pods) == 3 and [p["metadata"]["name"] for p in pods if not p["metadata"].get("ownerReferences")] == ["orphan"]

    await eventually(replaced, "the orphan to be let go and replaced")


async def test_a_service_has_the_endpoints_of_its_pods(client: Client, kubelet: Informer) -> None:
    ports = [{"name": "http", "port": 80, "targetPort": "web"}]
    service = {"metadata": {"name": "s", "namespace": "default"}, "spec": {"selector": {"app": "x"}, "ports": ports}}
    await client.create(SERVICES, service)

    async def slices() -> Any:
        found = await client.list(ENDPOINTSLICES, "default", label_selector="kubernetes.io/service-name=s")
        return found["items"]

    assert (await eventually(slices, "a slice without endpoints"))[0].get("endpoints", []) == []
    containers = [{"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 8080}]}]
    await add_pod(client, "a", labels={"app": "x"}, containers=containers)

    async def one_ready() -> Any:
        return [e for s in await slices() for e in s.get("endpoints") or () if e["conditions"]["ready"]]

    endpoint = (await eventually(one_ready, "the endpoint"))[0]
    assert endpoint["nodeName"] == "one"
    assert endpoint["targetRef"]["name"] == "a"

    async def one_slice() -> Any:
        found = await slices()
        return found if len(found) == 1 else None

    found = await eventually(one_slice, "the empty slice to go")
    assert [(s["addressType"], s["ports"]) for s in found] == [("IPv4", [{"name": "http", "port": 8080, "protocol": "TCP"}])]

    async def elder() -> Any:
        return (await client.get(ENDPOINTS, "s", "default")).get("subsets")

    subsets = await eventually(elder, "the Endpoints object")
    assert [address["ip"] for address in subsets[0]["addresses"]] == endpoint["addresses"]
    await client.patch(PODS, "a", {"metadata": {"labels": {"app": "y"}}}, "default")

    async def none() -> bool:
        return not await one_ready() and not await elder()

    await eventually(none, "the endpoint to go")

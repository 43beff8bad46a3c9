"""DaemonSets and Jobs against a real API server; pods are made ready, or ended, as a kubelet would."""

from typing import Any

import pytest

from strata.kubeclient.client import Client
from strata.kubeclient.informer import Informer
from strata.kubeclient.resources import CONTROLLERREVISIONS, DAEMONSETS, JOBS, NODES, PODS
from tests.integration.controllers.conftest import add_node, eventually, pod_spec

pytestmark = pytest.mark.usefixtures("controllers")


async def daemon_status(client: Client) -> dict[str, Any]:
    return dict((await client.get(DAEMONSETS, "d", "default")).get("status") or {})


async def test_each_node_has_its_daemon_through_taints_and_updates(client: Client, kubelet: Informer) -> None:
    await add_node(client, "two")
    template = {"metadata": {"labels": {"app": "d"}}, "spec": pod_spec()}
    spec = {"selector": {"matchLabels": {"app": "d"}}, "template": template}
    await client.create(DAEMONSETS, {"metadata": {"name": "d", "namespace": "default"}, "spec": spec})

    async def available(count: int) -> bool:
        status = await daemon_status(client)
        return [status.get(n, 0) for n in ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")] == [count] * 3

    await eventually(lambda: available(2), "both daemons")
    assert {pod["spec"]["nodeName"] for pod in kubelet.list()} == {"one", "two"}
    await client.patch(NODES, "one", {"spec": {"unschedulable": True}})
    await add_node(client, "three")
    await eventually(lambda: available(3), "the third daemon")
    await client.patch(DAEMONSETS, "d", {"spec": {"template": {"metadata": {"annotations": {"v": "2"}}}}}, "default")

    async def updated() -> bool:
        hashes = {pod["metadata"]["labels"]["controller-revision-hash"] for pod in kubelet.list()}
        revisions = (await client.list(CONTROLLERREVISIONS, "default"))["items"]
        return await available(3) and len(hashes) == 1 and sorted(r["revision"] for r in revisions) == [1, 2]

    await eventually(updated, "the update", seconds=20)
    taint = {"key": "k", "value": "v", "effect": "NoExecute"}
    await client.patch(NODES, "three", {"spec": {"taints": [taint]}})
    await eventually(lambda: available(2), "the daemon to leave the tainted node")
    await client.delete(DAEMONSETS, "d", "default", propagation_policy="Foreground")

    async def none() -> bool:
        return not (await client.list(PODS, "default"))["items"]

    await eventually(none, "the daemons to go")


async def end(client: Client, pod: dict[str, Any], phase: str) -> None:
    await client.patch(PODS, pod["metadata"]["name"], {"status": {"phase": phase}}, "default", subresource="status")


def job(name: str, **spec: Any) -> dict[str, Any]:
    template = {"spec": pod_spec(restartPolicy="Never")}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {"template": template, **spec}}


async def job_status(client: Client, name: str) -> dict[str, Any]:
    status = dict((await client.get(JOBS, name, "default")).get("status") or {})
    status["true"] = {c["type"]: c["reason"] for c in status.get("conditions") or () if c["status"] == "True"}
    return status


async def active(client: Client, count: int) -> Any:
    pods = (await client.list(PODS, "default"))["items"]
    pods = [p for p in pods if p["status"]["phase"] in ("Pending", "Running") and not p["metadata"].get("deletionTimestamp")]
    return pods if len(pods) == count else None


async def test_a_job_runs_its_pods_to_completion(client: Client) -> None:
    await client.create(JOBS, job("j", completions=3, parallelism=2))
    for left in (2, 2, 1):
        pods = await eventually(lambda left=left: active(client, left), f"{left} active pods")  # type: ignore[misc]
        await end(client, pods[0], "Succeeded")

    async def complete() -> Any:
        status = await job_status(client, "j")
        return status if "Complete" in status["true"] else None

    status = await eventually(complete, "completion")
    assert status["succeeded"] == 3
    assert status["true"] == {"SuccessCriteriaMet": "CompletionsReached", "Complete": "CompletionsReached"}
    assert status["completionTime"] >= status["startTime"]
    assert not status.get("uncountedTerminatedPods")
    assert all(not p["metadata"].get("finalizers") for p in (await client.list(PODS, "default"))["items"])


async def test_an_indexed_job_gives_each_index_its_pod(client: Client) -> None:
    await client.create(JOBS, job("j", completions=3, parallelism=3, completionMode="Indexed"))
    pods = await eventually(lambda: active(client, 3), "three pods")
    assert sorted(pod["spec"]["hostname"] for pod in pods) == ["j-0", "j-1", "j-2"]
    assert {pod["spec"]["containers"][0]["env"][0]["name"] for pod in pods} == {"JOB_COMPLETION_INDEX"}
    for pod in pods:
        await end(client, pod, "Succeeded")

    async def complete() -> Any:
        status = await job_status(client, "j")
        return status if "Complete" in status["true"] else None

    assert (await eventually(complete, "completion"))["completedIndexes"] == "0-2"


async def test_a_job_fails_at_its_limit_and_goes_after_its_time(client: Client) -> None:
    await client.create(JOBS, job("j", backoffLimit=0, parallelism=2, completions=2, ttlSecondsAfterFinished=2))
    pods = await eventually(lambda: active(client, 2), "two pods")
    await end(client, pods[0], "Failed")

    async def failed() -> bool:
        return (await job_status(client, "j"))["true"].get("Failed") == "BackoffLimitExceeded"

    await eventually(failed, "the failure")

    async def gone() -> bool:
        return not (await client.list(JOBS, "default"))["items"] and not (await client.list(PODS, "default"))["items"]

    await eventually(gone, "the job and its pods to go")


async def test_a_suspended_job_has_no_pods_until_it_is_resumed(client: Client) -> None:
    await client.create(JOBS, job("j", suspend=True))

    async def suspended() -> bool:
        return (await job_status(client, "j"))["true"] == {"Suspended": "JobSuspended"}

    await eventually(suspended, "the suspension")
    assert (await client.list(PODS, "default"))["items"] == []
    await client.patch(JOBS, "j", {"spec": {"suspend": False}}, "default")
    await eventually(lambda: active(client, 1), "the pod")
    await client.delete(JOBS, "j", "default", propagation_policy="Background")

    async def none() -> bool:
        return not (await client.list(PODS, "default"))["items"]

    await eventually(none, "the pod to go with its job")

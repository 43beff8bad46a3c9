"""The API server and the controllers are killed in the middle of their work."""

import asyncio

from controlplane.controllers import main
from controlplane.controllers.frame import Settings
from strata.kubeclient.client import Client
from strata.kubeclient.informer import Informer
from strata.kubeclient.resources import DEPLOYMENTS, NODES, PODS, REPLICASETS
from tests.integration.controllers.conftest import Door, eventually
from tests.integration.controllers.test_workloads import deployment, has_rolled_out


async def rolled_out(client: Client) -> bool:
    return has_rolled_out(await client.get(DEPLOYMENTS, "web", "default"))


async def test_a_rollout_goes_on_through_killed_controllers(client: Client, kubelet: Informer) -> None:
    await client.create(DEPLOYMENTS, deployment(6))
    for number in range(4):
        serving = asyncio.create_task(main.serve(client, Settings()))
        await asyncio.sleep(0.1 + 0.1 * number)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    serving = asyncio.create_task(main.serve(client, Settings()))
    await eventually(lambda: rolled_out(client), "the rollout", seconds=20)
    assert len((await client.list(PODS, "default"))["items"]) == 6
    assert len((await client.list(REPLICASETS, "default"))["items"]) == 1
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_everything_goes_on_after_the_api_server_was_killed(
    door: Door, client: Client, kubelet: Informer, controllers: Settings
) -> None:
    await client.create(DEPLOYMENTS, deployment(3))
    await eventually(lambda: rolled_out(client), "the rollout", seconds=20)
    change = {"spec": {"template": {"metadata": {"annotations": {"v": "2"}}}}}
    await client.patch(DEPLOYMENTS, "web", change, "default")
    await door.kill()
    await asyncio.sleep(1)
    await door.start()
    await eventually(lambda: rolled_out(client), "the update", seconds=30)
    assert len((await client.list(PODS, "default"))["items"]) == 3
    ready = [c for c in (await client.get(NODES, "one"))["status"]["conditions"] if c["type"] == "Ready"]
    assert [c["status"] for c in ready] == ["True"]

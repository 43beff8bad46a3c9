"""What a user types about workloads, with the real kubectl."""

import asyncio
from pathlib import Path

import pytest

from strata.kubeclient.informer import Informer
from tests.integration.controllers.conftest import Door

pytestmark = pytest.mark.usefixtures("controllers")


async def test_rollouts_as_a_user_types_them(door: Door, kubelet: Informer, tmp_path: Path) -> None:
    async def kubectl(*argv: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "/usr/bin/kubectl", f"--server={door.url}", f"--cache-dir={tmp_path}/cache", "--kubeconfig=/dev/null", *argv,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, output.decode()
        return output.decode()

    await kubectl("create", "deployment", "web", "--image=example/web:1", "--replicas=3")
    assert "successfully rolled out" in await kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    await kubectl("set", "image", "deployment/web", "web=example/web:2")
    assert "successfully rolled out" in await kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    await kubectl("rollout", "restart", "deployment/web")
    assert "successfully rolled out" in await kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    history = await kubectl("rollout", "history", "deployment/web")
    assert [line.split()[0] for line in history.splitlines()[2:] if line.strip()] == ["1", "2", "3"]
    await kubectl("rollout", "undo", "deployment/web", "--to-revision=1")
    assert "successfully rolled out" in await kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    images = await kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.containers[0].image}")
    assert set(images.split()) == {"example/web:1"}
    await kubectl("scale", "deployment/web", "--replicas=1")
    assert "successfully rolled out" in await kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    await kubectl("expose", "deployment/web", "--port=80", "--target-port=8080")
    for _ in range(100):
        port = await kubectl("get", "endpoints/web", "-o", "jsonpath={.subsets[0].ports[0].port}")
        if port == "8080":
            break
        await asyncio.sleep(0.1)
    assert port == "8080"
    described = await kubectl("describe", "deployment", "web")
    assert "ScalingReplicaSet" in described
    await kubectl("delete", "deployment", "web", "--cascade=foreground", "--timeout=20s")
    assert "No resources found" in await kubectl("get", "replicasets,pods")

"""kill -9 of the daemon at any moment: what ran runs on, and what was half-made or half-removed leaves nothing."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from highrt.pods.model import ContainerState
from strata.linux import cgroups, mounts

from .conftest import Node

_CHECKOUT = Path(__file__).parents[3]


def processes_of(name: str) -> list[int]:
    """All in the stack's cgroups."""
    return cgroups.open_cgroup(f"/strata/{name}").pids(recursive=True)


@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
async def test_a_daemon_may_be_killed_at_any_moment(node: Node, rounds: int) -> None:
    await node.manager.close()
    said = node.folder / "said"
    for _ in range(rounds):
        with open(said, "ab") as out:  # noqa: ASYNC230
            daemon = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.integration.pods.crash_scenario", node.folder, node.name, cwd=_CHECKOUT, stdout=out
            )
        await asyncio.sleep(random.uniform(0.5, 2.0))
        assert daemon.returncode is None
        daemon.send_signal(signal.SIGKILL)
        await daemon.wait()
    await node.manager_again()
    manager = node.manager
    lines = [line.split() for line in said.read_text().splitlines()]
    removing = {words[1] for words in lines if words[0] == "removing"}
    started = {words[0]: words[1] for words in lines if words[0] != "removing"}
    for pod_id, container_id in started.items():
        if pod_id not in removing:
            assert manager.pod(pod_id).ready
            assert manager.container(container_id).state == ContainerState.RUNNING
            assert await manager.exec_sync(container_id, ["echo", "on"]) == (b"on\n", b"", 0)
    for pod in manager.pods():
        await manager.remove_pod(pod.id)
    assert node.images.left() == []
    assert os.listdir(node.folder / "s" / "pods") == []
    assert os.listdir(node.folder / "s" / "m") == []
    assert processes_of(node.name) == []
    assert [mount.target for mount in mounts.mountinfo() if mount.target.startswith(str(node.folder))] == []
    for hierarchy in cgroups.open_cgroup(f"/strata/{node.name}").folders():
        assert [
            folder for folder, below, _ in os.walk(hierarchy) if not below and folder.count("/") > hierarchy.count("/") + 1
        ] == []

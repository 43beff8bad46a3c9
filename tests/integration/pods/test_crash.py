"""kill -9 of the daemon, of its spawner, and of both, at any moment, while eight clients do all kinds of things: what ran runs
on, ends are known, logs have all lines, and what was half-made or half-removed leaves nothing.

STRATA_CRASH_SEED repeats the clients' choices and the moments, as far as a seed can.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from highrt.pods.model import ContainerState
from strata.linux import cgroups, mounts

from .conftest import Node

_CHECKOUT = Path(__file__).parents[3]
SEED = os.environ.get("STRATA_CRASH_SEED") or str(random.randrange(10**6))


@dataclass
class Said:
    """What the daemons have said: containers that run (pod → ID, name of the log or -), or end (pod → ID, code); pods that were
    being removed, and that are."""

    spawner: int = 0
    runs: dict[str, tuple[str, str]] = field(default_factory=dict)
    exits: dict[str, tuple[str, int]] = field(default_factory=dict)
    ending: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)

    def read(self, file: Path) -> None:
        for line in file.read_text().splitlines():
            match line.split():
                case "spawner", pid:
                    self.spawner = int(pid)
                case "runs", pod, container, log:
                    self.runs[pod] = (container, log)
                case "exits", pod, container, code:
                    self.exits[pod] = (container, int(code))
                case "ending", pod:
                    self.ending.add(pod)
                case "removed", pod:
                    self.removed.add(pod)


async def kill_once(node: Node, chance: random.Random, number: int, file: Path) -> None:
    """One daemon's life and death."""
    with open(file, "ab") as out:  # noqa: ASYNC230
        command = ["-m", "tests.integration.pods.crash_scenario", str(node.folder), node.name, f"{SEED}-{number}"]
        daemon = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=_CHECKOUT, stdout=out)
    await asyncio.sleep(chance.uniform(0.4, 1.4))
    victims = chance.choice(("daemon", "spawner", "both"))
    if victims != "daemon":
        said = Said()
        said.read(file)
        with contextlib.suppress(ProcessLookupError):
            if said.spawner:
                os.kill(said.spawner, signal.SIGKILL)
    if victims == "spawner":
        await asyncio.sleep(chance.uniform(0.0, 0.6))
    assert daemon.returncode is None
    daemon.send_signal(signal.SIGKILL)
    await daemon.wait()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rounds", [20, pytest.param(500, marks=[pytest.mark.long, pytest.mark.timeout(7200)])])
async def test_a_daemon_and_its_spawner_may_be_killed_at_any_moment(node: Node, rounds: int) -> None:
    print(f"STRATA_CRASH_SEED={SEED}")
    brought_to_run = 0
    await node.manager.close()
    chance, said = random.Random(SEED), Said()
    for number in range(rounds):
        file = node.folder / f"said-{number}"
        await kill_once(node, chance, number, file)
        said.read(file)
        brought_to_run += len(file.read_text().split("runs ")) - 1
        if number % 10 == 9:
            await check(node, said)
    await check(node, said)
    assert brought_to_run > 2 * rounds, "the clients did too little for this to mean anything"
    nothing_is_left(node)
    await node.manager_again()


async def check(node: Node, said: Said) -> None:
    """Everything is as it was said; then it is removed."""
    manager = await node.manager_again()
    for pod_id, (container_id, log) in said.runs.items():
        if pod_id in said.ending:
            continue
        assert manager.pod(pod_id).ready
        assert manager.container(container_id).state == ContainerState.RUNNING
        assert await manager.exec_sync(container_id, ["echo", "on"]) == (b"on\n", b"", 0)
        if log != "-":
            await manager.stop_container(container_id, 0)
            numbers = [int(line.split()[-1]) for line in node.log(log)]
            assert numbers == list(range(1, len(numbers) + 1))
    for pod_id, (container_id, code) in said.exits.items():
        if pod_id in said.ending:
            continue
        for _ in range(100):
            if manager.container(container_id).state == ContainerState.EXITED:
                break
            await asyncio.sleep(0.05)
        assert (manager.container(container_id).state, manager.container(container_id).exit_code) == (ContainerState.EXITED, code)
    assert not {pod.id for pod in manager.pods()} & said.removed
    for pod in manager.pods():
        await manager.remove_pod(pod.id)
    await manager.close()
    said.runs.clear()
    said.exits.clear()


def nothing_is_left(node: Node) -> None:
    assert node.images.left() == []
    assert os.listdir(node.folder / "s" / "pods") == []
    assert os.listdir(node.folder / "s" / "m") == []
    assert cgroups.open_cgroup(f"/strata/{node.name}").pids(recursive=True) == []
    assert [mount.target for mount in mounts.mountinfo() if mount.target.startswith(str(node.folder))] == []
    for hierarchy in cgroups.open_cgroup(f"/strata/{node.name}").folders():
        deep = [folder for folder, below, _ in os.walk(hierarchy) if not below and folder.count("/") > hierarchy.count("/") + 1]
        assert deep == []

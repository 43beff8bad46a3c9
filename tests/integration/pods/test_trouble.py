"""Daemon, spawner and monitors are killed at bad moments: containers run on, and nothing is lost or left."""

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from highrt.pods.errors import AlreadyExists, PodError
from highrt.pods.metadata import Metadata
from highrt.pods.model import ContainerState, Owner, Pod, Stdio
from highrt.pods.sandbox import Sandbox
from strata.linux import cgroups
from strata.protocols.cri_pb2 import NamespaceMode, PodSandboxConfig

from .conftest import Node, ended, read_all

TICKS = ("sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done")


def monitor_pid(node: Node, container_id: str) -> int:
    """The monitor itself is the first in its group; workers come and go."""
    return node.manager._monitors.client(node.manager.container(container_id).pod_id).pid


async def test_a_daemon_started_again_finds_everything(node: Node) -> None:
    runs = await node.started(*TICKS, name="runs")
    ends = await node.started("sh", "-c", "sleep 0.3; exit 9", name="ends")
    pid = node.manager.container(runs).pid
    before = node.manager.pods()
    await node.manager.close()
    await asyncio.sleep(0.6)  # `ends` exits while nobody listens
    start = time.monotonic()
    manager = node.manager = node.new_manager()
    await manager.open()
    assert time.monotonic() - start < 1.0
    assert {pod.id for pod in manager.pods()} == {pod.id for pod in before}
    assert all(pod.ready for pod in manager.pods())
    assert (manager.container(runs).state, manager.container(runs).pid) == (ContainerState.RUNNING, pid)
    assert (manager.container(ends).exit_code, manager.container(ends).reason) == (9, "Error")
    assert await manager.exec_sync(runs, ["echo", "still"]) == (b"still\n", b"", 0)
    await manager.stop_container(runs, 0)
    numbers = [int(line.split()[-1]) for line in node.log("runs")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 20


async def test_an_exit_is_known_after_the_monitor_has_gone_too(node: Node) -> None:
    container_id = await node.started("sh", "-c", "exit 6")
    await ended(node.manager, container_id)
    await node.reopen()
    container = node.manager.container(container_id)
    assert (container.state, container.exit_code) == (ContainerState.EXITED, 6)


async def test_a_killed_spawner_is_replaced_and_pods_run_on(node: Node) -> None:
    first = await node.started("sleep", "60", name="first")
    spawner = node.manager._monitors.spawner
    old = spawner.pid
    os.kill(old, signal.SIGKILL)
    second = await node.started("sleep", "60", name="second")  # by the monitor that waits
    third = await node.started("sleep", "60", name="third")  # by a cold one, while the spawner is started again
    async with asyncio.timeout(5):
        while spawner.pid in (0, old):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    fourth = await node.started("sleep", "60", name="fourth")
    for container_id in (first, second, third, fourth):
        assert await node.manager.exec_sync(container_id, ["echo", "on"]) == (b"on\n", b"", 0)


async def test_a_hanging_spawner_is_replaced_within_seconds(node: Node) -> None:
    spawner = node.manager._monitors.spawner
    old = spawner.pid
    os.kill(old, signal.SIGSTOP)
    start = time.monotonic()
    containers = [await node.started("sleep", "60", name=name) for name in ("first", "second")]
    assert time.monotonic() - start < 4
    assert not Path(f"/proc/{old}").exists()
    for container_id in containers:
        assert await node.manager.exec_sync(container_id, ["true"]) == (b"", b"", 0)


async def test_a_killed_monitor_takes_its_pod_and_no_other(node: Node) -> None:
    doomed = await node.started("sh", "-c", "sleep 60 & sleep 60", name="doomed")
    other = await node.started("sleep", "60", name="other")
    group = cgroups.open_cgroup(node.manager.container(doomed).cgroup)
    output, stdout = os.pipe2(os.O_CLOEXEC)
    session = await node.manager.exec(doomed, ["sleep", "60"], Stdio(stdout=stdout))
    attached = await node.manager.attach(doomed, Stdio())
    os.kill(monitor_pid(node, doomed), signal.SIGKILL)
    with pytest.raises(PodError, match="lost"):
        await asyncio.wait_for(session.wait(), 5)
    await ended(node.manager, doomed)
    await asyncio.wait_for(attached.wait(), 5)
    container = node.manager.container(doomed)
    assert (container.exit_code, container.reason) == (137, "Error")
    assert "monitor" in container.message
    assert not node.manager.pod(container.pod_id).ready
    assert not group.pids(recursive=True)
    assert read_all(output) == b""
    assert node.manager.container(other).state == ContainerState.RUNNING
    await node.manager.remove_pod(container.pod_id)


async def test_a_monitor_killed_while_the_daemon_was_away_is_noticed(node: Node) -> None:
    container_id = await node.started("sleep", "60")
    pid = monitor_pid(node, container_id)
    await node.manager.close()
    os.kill(pid, signal.SIGKILL)
    node.manager = node.new_manager()
    await node.manager.open()
    container = node.manager.container(container_id)
    assert (container.state, container.exit_code) == (ContainerState.EXITED, 137)
    assert not node.manager.pod(container.pod_id).ready


async def test_a_pod_that_was_half_made_is_undone(node: Node) -> None:
    await node.manager.close()
    metadata = Metadata(node.folder / "root" / "pods.db")
    pod = Pod("ab" * 32, Owner.KUBELET, node.pod("half"), "lowrt", False, 1)
    metadata.reserve_pod(pod, "half", "some boot")
    metadata.close()
    Sandbox(node.folder / "s", pod.id).make(pod.config)
    node.manager = node.new_manager()
    await node.manager.open()
    assert node.manager.pods() == []
    assert os.listdir(node.folder / "s" / "pods") == []


async def test_after_a_reboot_what_ran_has_exited(node: Node) -> None:
    container_id = await node.started("sleep", "60")
    pod_id = node.manager.container(container_id).pod_id
    created = await node.manager.create_container(pod_id, node.container("true", name="created"))
    await node.manager.stop_pod(pod_id)  # a reboot ends the processes; here they have to be ended by hand
    container = node.manager.container(container_id)
    container.state = ContainerState.RUNNING
    node.manager._registry.metadata.save_container(container)
    (node.folder / "s" / "pods" / pod_id / container_id / "exit").unlink()
    await node.manager.close()
    node.manager = node.new_manager()
    node.manager._registry.boot = "another boot"
    await node.manager.open()
    container = node.manager.container(container_id)
    assert (container.state, container.exit_code, container.reason) == (ContainerState.EXITED, 255, "Unknown")
    assert not node.manager.pod(pod_id).ready
    assert created.id in {c.id for c in node.manager.containers()}


PLUGIN = """#!/bin/sh
echo $CNI_COMMAND $CNI_CONTAINERID >> {folder}/calls
[ $CNI_COMMAND != DEL ] || [ ! -e {folder}/broken ] || {{ echo '{{"code": 9, "msg": "not now"}}'; exit 1; }}
[ $CNI_COMMAND != ADD ] || echo '{{"cniVersion": "1.0.0", "ips": [{{"address": "10.9.8.7/24"}}]}}'
"""


async def test_a_del_that_fails_after_a_reboot_is_repeated_until_it_succeeds(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("highrt.pods.recovery.RETRY_SECONDS", 0.1)
    for name in ("cni", "bin"):
        (node.folder / name).mkdir()
    (node.folder / "bin/test").write_text(PLUGIN.format(folder=node.folder))
    (node.folder / "bin/test").chmod(0o755)
    conflist = {"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "test"}]}
    (node.folder / "cni/1.conflist").write_text(json.dumps(conflist))
    await node.manager.close()
    node.manager = node.new_manager(cni_bin_dirs=[node.folder / "bin"])
    await node.manager.open()
    pod = await node.manager.run_pod(config_of(node, "pod"))
    assert pod.ips == ["10.9.8.7"]
    (node.folder / "broken").touch()
    with pytest.raises(PodError, match="not now"):
        await node.manager.stop_pod(pod.id)
    await node.manager.close()
    node.manager = node.new_manager(cni_bin_dirs=[node.folder / "bin"])
    node.manager._registry.boot = "another boot"
    await node.manager.open()
    assert node.manager.network.attached() == [pod.id]
    (node.folder / "broken").unlink()
    async with asyncio.timeout(10):
        while node.manager.network.attached():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    others = await node.manager.run_pod(config_of(node, "other"))
    await asyncio.sleep(0.3)
    assert node.manager.network.attached() == [others.id]  # what is ready keeps its address
    calls = (node.folder / "calls").read_text().split()
    assert calls.count("ADD") == 2
    assert calls.count("DEL") >= 3


def config_of(node: Node, name: str) -> PodSandboxConfig:
    config = node.pod(name)
    config.linux.security_context.namespace_options.network = NamespaceMode.POD
    return config


async def test_a_process_that_outlives_its_container_is_ended(node: Node) -> None:
    """Without a PID namespace of its own, a container's other processes do not die with the first."""
    pod = await node.manager.run_pod(node.pod())
    config = node.container("sh", "-c", "sleep 60 & exit 0")
    config.linux.security_context.namespace_options.pid = 2  # NODE
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    assert not cgroups.open_cgroup(container.cgroup).pids(recursive=True)


async def test_the_interpreter_cannot_be_written_through_what_runs_it(node: Node) -> None:
    """CVE-2019-5736: a container's first process runs the monitor's interpreter until its exec."""
    container_id = await node.started("sleep", "60")
    for pid in (node.manager._monitors.spawner.pid, monitor_pid(node, container_id)):
        assert os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY
        with pytest.raises(OSError, match="Read-only file system"):
            os.chmod(f"/proc/{pid}/exe", os.stat(f"/proc/{pid}/exe").st_mode)


async def test_a_call_that_is_given_up_leaves_nothing(node: Node) -> None:
    """The deadline of a CRI call ends it at any point."""
    for number in range(12):
        call = asyncio.create_task(node.manager.run_pod(node.pod(f"pod-{number}")))
        await asyncio.sleep(number * 0.002)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            pod = await call
            await node.manager.remove_pod(pod.id)
    assert node.manager.pods() == []
    assert os.listdir(node.folder / "s" / "pods") == []
    again = await node.manager.run_pod(node.pod("pod-0"))
    assert again.ready


async def test_a_call_that_was_given_up_may_be_made_again_at_once(node: Node) -> None:
    """What was made until then is taken back first: the name is never "reserved" by what is going away."""
    for number in range(8):
        call = asyncio.create_task(node.manager.run_pod(node.pod()))
        await asyncio.sleep(number * 0.003)
        call.cancel()
        try:
            pod = await node.manager.run_pod(node.pod())
        except AlreadyExists:
            pod = await call  # it was made before it could be given up
        first = asyncio.create_task(node.manager.create_container(pod.id, node.container("true")))
        await asyncio.sleep(number * 0.001)
        first.cancel()
        try:
            await node.manager.create_container(pod.id, node.container("true"))
        except AlreadyExists:
            await first
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(call, first)
        assert len(node.manager.containers()) == 1
        await node.manager.remove_pod(pod.id)
    assert node.manager.pods() == []
    assert os.listdir(node.folder / "s" / "pods") == []
    assert node.images.left() == []


async def test_a_pod_is_removed_while_its_container_is_being_made(node: Node) -> None:
    for number in range(8):
        pod = await node.manager.run_pod(node.pod(f"pod-{number}"))
        container = await node.manager.create_container(pod.id, node.container("sleep", "60", name=f"c{number}"))
        call = asyncio.create_task(node.manager.start_container(container.id))
        await asyncio.sleep(number * 0.003)
        call.cancel()
        await asyncio.wait_for(node.manager.remove_pod(pod.id), 10)
        with contextlib.suppress(asyncio.CancelledError, PodError):
            await call
        assert not cgroups.open_cgroup(container.cgroup).pids(recursive=True)
    assert node.manager.containers() == []
    assert os.listdir(node.folder / "s" / "pods") == []


async def test_a_monitor_whose_worker_was_killed_forks_another(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    monitor = node.manager._monitors.client(pod.id).pid
    workers = [int(pid) for pid in Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()]
    assert workers, "one waits for the pod's first container"
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while any(Path(f"/proc/{pid}").exists() for pid in workers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    container = await node.manager.create_container(pod.id, node.container("sleep", "60"))
    await node.manager.start_container(container.id)
    assert await node.manager.exec_sync(container.id, ["echo", "on"]) == (b"on\n", b"", 0)

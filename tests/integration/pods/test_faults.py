"""What a pod needs fails: a runtime or a CNI plugin that hangs, disks that are full, no process to be had. Each is told with its
reason within a bounded time, undone, and hinders nobody else."""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from highrt.pods.errors import PodError
from highrt.pods.manager import PodManager, default_handlers
from highrt.pods.model import ContainerState, Handler
from strata.linux import cgroups, mounts
from strata.protocols.cri_pb2 import ContainerConfig, NamespaceMode, PodSandboxConfig
from tests.integration.pods.conftest import Node, ended

HANGING = """#!/bin/sh
# runc, but for the command that the file says: that one hangs, and so does what it has started.
for word in "$@"; do
  [ "$word" != "$(cat {folder}/hangs)" ] || {{ sleep 4713 & wait; }}
done
exec /usr/sbin/runc "$@"
"""


def sleepers() -> list[str]:
    """The processes of HANGING that are left."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes() == b"sleep\x004713\x00":
                found.append(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture
async def hanging(node: Node, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """A node with the handler `hanging`; the file `hangs` says in which command."""
    monkeypatch.setattr("highrt.pods.monitors.RUNTIME_SECONDS", 1.0)
    (node.folder / "hangs").write_text("nothing")
    runtime = node.folder / "runtime"
    runtime.write_text(HANGING.format(folder=node.folder))
    runtime.chmod(0o755)
    await node.manager.close()
    handler = Handler("hanging", str(runtime), str(node.folder / "runc"))
    node.manager = node.new_manager(handlers={**default_handlers(), "hanging": handler})
    await node.manager.open()
    yield node
    (node.folder / "hangs").write_text("nothing")
    for pid in sleepers():
        os.kill(int(pid), 9)


@pytest.mark.parametrize("step", ["create", "start"])
async def test_a_runtime_that_hangs_fails_the_start_and_only_that(hanging: Node, step: str) -> None:
    node = hanging
    pod = await node.manager.run_pod(node.pod(), handler="hanging")
    well = await node.manager.create_container(pod.id, node.container("sleep", "60", name="well"))
    await node.manager.start_container(well.id)
    (node.folder / "hangs").write_text(step)
    stuck = await node.manager.create_container(pod.id, node.container("sleep", "60", name="stuck"))
    async with asyncio.timeout(10):
        with pytest.raises(PodError, match=f"{step}: it did not end in time"):
            await node.manager.start_container(stuck.id)
    assert (stuck.state, stuck.reason) == (ContainerState.EXITED, "StartError")
    (node.folder / "hangs").write_text("nothing")
    assert (await node.manager.exec_sync(well.id, ["echo", "on"]))[0] == b"on\n"
    await node.manager.remove_container(stuck.id)
    again = await node.manager.create_container(pod.id, node.container("true", name="stuck"))
    await node.manager.start_container(again.id)
    await ended(node.manager, again.id)
    assert again.exit_code == 0
    await node.manager.remove_pod(pod.id)
    assert list((node.folder / "runc").iterdir()) == []


async def test_an_exec_that_hangs_in_the_runtime_is_told(hanging: Node) -> None:
    node = hanging
    pod = await node.manager.run_pod(node.pod(), handler="hanging")
    container = await node.manager.create_container(pod.id, node.container("sleep", "60"))
    await node.manager.start_container(container.id)
    (node.folder / "hangs").write_text("exec")
    async with asyncio.timeout(10):
        with pytest.raises(PodError, match="exec: it did not end in time"):
            await node.manager.exec_sync(container.id, ["true"])
    (node.folder / "hangs").write_text("nothing")
    assert (await node.manager.exec_sync(container.id, ["echo", "on"]))[0] == b"on\n"


async def test_a_runtime_that_hangs_in_its_delete_holds_no_pod(hanging: Node) -> None:
    node = hanging
    pod = await node.manager.run_pod(node.pod(), handler="hanging")
    container = await node.manager.create_container(pod.id, node.container("true"))
    (node.folder / "hangs").write_text("delete")
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    async with asyncio.timeout(15):
        await node.manager.remove_pod(pod.id)
    assert node.manager.pods() == []


async def test_a_caller_who_gave_up_a_start_that_hangs_may_remove_it_and_come_again(hanging: Node) -> None:
    node = hanging
    pod = await node.manager.run_pod(node.pod(), handler="hanging")
    (node.folder / "hangs").write_text("create")
    stuck = await node.manager.create_container(pod.id, node.container("sleep", "60"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await node.manager.start_container(stuck.id)
    (node.folder / "hangs").write_text("nothing")
    async with asyncio.timeout(10):
        await node.manager.remove_container(stuck.id)
        again = await node.manager.create_container(pod.id, node.container("true"))
        await node.manager.start_container(again.id)
        await ended(node.manager, again.id)
    assert again.exit_code == 0


PLUGIN = """#!/bin/sh
# gives an address, but in the commands that the file names: there it hangs
echo $CNI_COMMAND $CNI_CONTAINERID >> {folder}/calls
! grep -qw $CNI_COMMAND {folder}/hangs || sleep 4713
[ $CNI_COMMAND != ADD ] || echo '{{"cniVersion": "1.1.0", "ips": [{{"address": "10.1.2.3/24"}}]}}'
"""


class Slow:
    """A node whose network plugin hangs, where it is told to."""

    def __init__(self, node: Node) -> None:
        self.node = node
        for name in ("cni", "bin"):
            (node.folder / name).mkdir()
        (node.folder / "bin/test").write_text(PLUGIN.format(folder=node.folder))
        (node.folder / "bin/test").chmod(0o755)
        text = '{"cniVersion": "1.1.0", "name": "test", "plugins": [{"type": "test"}]}'
        (node.folder / "cni/1.conflist").write_text(text)

    def hangs_in(self, *commands: str) -> None:
        (self.node.folder / "hangs").write_text(" ".join(commands))

    def calls(self, command: str, pod_id: str = "") -> int:
        lines = (self.node.folder / "calls").read_text().splitlines()
        return len([line for line in lines if line.startswith(f"{command} {pod_id}")])

    def pod(self, name: str) -> PodSandboxConfig:
        config = self.node.pod(name)
        config.linux.security_context.namespace_options.network = NamespaceMode.POD
        return config


@pytest.fixture
async def slow(node: Node, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slow]:
    monkeypatch.setattr("highrt.cni.plugins.TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr("highrt.cni.network.QUICK_SECONDS", 1.0)
    monkeypatch.setattr("highrt.pods.recovery.RETRY_SECONDS", 0.3)
    slow = Slow(node)
    slow.hangs_in("nothing")
    await node.manager.close()
    node.manager = node.new_manager(cni_bin_dirs=[node.folder / "bin"])
    await node.manager.open()
    yield slow
    slow.hangs_in("nothing")


async def test_a_plugin_that_hangs_fails_the_pod_and_gives_its_address_back(slow: Slow) -> None:
    node = slow.node
    slow.hangs_in("ADD")
    async with asyncio.timeout(10):
        with pytest.raises(PodError, match="took longer than 1 s"):
            await node.manager.run_pod(slow.pod("slow"))
        await node.started("sleep", "60", name="other")  # on the host's network: nobody waits
    assert (slow.calls("ADD"), slow.calls("DEL")) == (1, 1)
    assert node.manager.network.attached() == []
    assert sleepers() == []


async def test_a_plugin_that_hangs_in_its_del_loses_no_pod_and_is_asked_until_it_succeeds(slow: Slow) -> None:
    manager = slow.node.manager
    pod, other = await manager.run_pod(slow.pod("slow")), await manager.run_pod(slow.pod("other"))
    containers = []
    for each in (pod, other):
        container = await manager.create_container(each.id, slow.node.container("sleep", "60", name=each.config.metadata.name))
        await manager.start_container(container.id)
        containers.append(container)
    slow.hangs_in("DEL")
    for end in (manager.stop_pod, manager.remove_pod):
        async with asyncio.timeout(5):
            ending = asyncio.create_task(end(pod.id))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(0.9):  # while the plugin hangs
                assert (await manager.exec_sync(containers[1].id, ["echo", "on"]))[0] == b"on\n"
                more = await manager.run_pod(slow.pod(f"during {end.__name__}"))
            with pytest.raises(PodError, match="took longer than 1 s"):
                await ending
        assert pod in manager.pods()
        assert not pod.ready
        assert containers[0].state == ContainerState.EXITED
        assert more.ready
    asked = slow.calls("DEL", pod.id)
    assert asked >= 2
    async with asyncio.timeout(10):
        while slow.calls("DEL", pod.id) < asked + 2:  # nobody but the daemon asks  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        slow.hangs_in("nothing")
        while pod.id in manager.network.attached():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await manager.remove_pod(pod.id)
    assert pod not in manager.pods()
    assert sleepers() == []


async def test_a_plugin_that_hangs_in_everything_holds_no_daemons_start(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("highrt.cni.plugins.TIMEOUT_SECONDS", 30.0)
    monkeypatch.setattr("highrt.pods.manager._RECOVERY_SECONDS", 0.5)
    node = slow.node
    pod, lost = await node.manager.run_pod(slow.pod("kept")), await node.manager.run_pod(slow.pod("lost"))
    await node.manager.close()
    # of a pod that no row names any more, as after a database that was set back
    with closing(sqlite3.connect(node.folder / "root/pods.db")) as database, database:
        assert database.execute("DELETE FROM pods WHERE id = ?", (lost.id,)).rowcount == 1
    slow.hangs_in("DEL", "GC", "STATUS")
    node.manager = node.new_manager(cni_bin_dirs=[node.folder / "bin"])
    async with asyncio.timeout(5):
        await node.manager.open()
        assert [each.id for each in node.manager.pods()] == [pod.id]
        ready, why = await node.manager.network_ready()
    assert (ready, why) == (False, "plugin test took longer than 1 s")
    assert slow.calls("DEL", lost.id) == 1
    assert lost.id in node.manager.network.attached()
    slow.hangs_in("nothing")
    node.manager = await again(slow)
    assert node.manager.network.attached() == [pod.id]
    assert await node.manager.network_ready() == (True, "")


async def again(slow: Slow) -> PodManager:
    await slow.node.manager.close()
    manager = slow.node.new_manager(cni_bin_dirs=[slow.node.folder / "bin"])
    await manager.open()
    return manager


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of that size there, and a file that fills it."""
    place.mkdir(exist_ok=True)
    mounts.mount("small", str(place), "tmpfs", 0, f"size={size},mode=755")
    try:
        yield place / "filling"
    finally:
        mounts.umount(str(place), mounts.DETACH)


def fill(file: Path) -> None:
    subprocess.run(["dd", "if=/dev/zero", f"of={file}", "bs=4k"], stderr=subprocess.DEVNULL, check=False)


async def test_a_full_disk_of_the_pods_state_fails_what_needs_it_and_nothing_else(node: Node) -> None:
    await node.manager.close()
    with small_disk(node.folder / "s", "2m") as filling:
        await node.manager_again()
        running = await node.started("sleep", "60", name="running")
        made = await node.manager.create_container(
            node.manager.container(running).pod_id, node.container("true", name="made before")
        )
        fill(filling)
        for _ in range(2):
            with pytest.raises(PodError, match=r"[Nn]o space left"):
                await node.started("sleep", "60", name="none")
        async with asyncio.timeout(10):
            await node.manager.stop_container(running, 0)
        assert node.manager.container(running).exit_code == 137, "also without room for its exit record"
        filling.unlink()
        await node.manager.start_container(made.id)
        await ended(node.manager, made.id)
        assert made.exit_code == 0
        again = await node.started("sh", "-c", "exit 3", name="none")
        await ended(node.manager, again)
        assert len(node.manager.pods()) == 2, "those that failed have left nothing"
        for pod in node.manager.pods():
            await node.manager.remove_pod(pod.id)
        assert list((node.folder / "s/pods").iterdir()) == []
        await node.manager.close()
    await node.manager_again()


async def test_a_log_whose_disk_fills_in_the_middle_of_a_line_has_whole_lines_only(node: Node) -> None:
    told: list[str] = []
    heard = node.manager._monitors._on_event

    def listen(pod_id: str, event: dict[str, Any]) -> None:
        told.extend([event["text"]] if event.get("event") == "trouble" else [])
        heard(pod_id, event)

    node.manager._monitors._on_event = listen
    with small_disk(node.folder / "logs", "64k"):
        script = "seq -w 100000; touch /done; while test ! -e /go; do sleep 0.05; done; echo after"
        container = await node.started("sh", "-c", script, name="c")
        async with asyncio.timeout(10):
            while (await node.manager.exec_sync(container, ["test", "-e", "/done"]))[2]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # what is in the pipe
        assert len(told) == 1
        assert "log lines are lost" in told[0]
        mounts.mount("small", str(node.folder / "logs"), "tmpfs", mounts.REMOUNT, "size=1m")
        await node.manager.exec_sync(container, ["touch", "/go"])
        await ended(node.manager, container)
        lines = node.log("c")
        assert len(lines) > 100
        assert lines[-1] == "stdout F after"
        assert all(len(line) == len("stdout F 000001") for line in lines[:-1])
        await node.manager.remove_pod(node.manager.container(container).pod_id)


async def test_a_full_disk_of_the_logs_loses_lines_and_holds_nobody_up(node: Node) -> None:
    with small_disk(node.folder / "logs", "256k") as filling:
        script = "seq 100000; echo end >&2; while test ! -e /go; do sleep 0.05; done; echo after; exit 4"
        fill(filling)
        container = await node.started("sh", "-c", script, name="c")
        await asyncio.sleep(0.5)
        assert (await node.manager.exec_sync(container, ["echo", "on"]))[0] == b"on\n"
        filling.unlink()
        await node.manager.exec_sync(container, ["touch", "/go"])
        await ended(node.manager, container)
        assert node.manager.container(container).exit_code == 4
        assert node.log("c")[-1] == "stdout F after", "with room again its lines are kept again"
        await node.manager.remove_pod(node.manager.container(container).pod_id)


@contextmanager
def no_more_processes(node: Node, pid: int) -> Iterator[None]:
    """The process can have no children meanwhile: it is in a group of its own, whose limit is one process."""
    group = cgroups.open_cgroup(f"/strata/{node.name}/few")
    group.create()
    for folder in group.folders():
        Path(folder, "cgroup.procs").write_text(str(pid))
    group.apply({"pids": {"limit": 1}})
    try:
        yield
    finally:
        group.apply({"pids": {"limit": -1}})


async def test_a_spawner_that_cannot_fork_is_replaced(node: Node) -> None:
    await node.started("sleep", "60", name="first")
    with no_more_processes(node, node.manager._monitors.spawner.pid):
        for number in range(3):  # the first has a monitor that was forked ahead of need
            container = await asyncio.wait_for(node.started("sh", "-c", "exit 3", name=f"more{number}"), 20)
            await ended(node.manager, container)
            assert node.manager.container(container).exit_code == 3


async def test_a_monitor_that_cannot_fork_says_so_and_works_later(node: Node) -> None:
    container = await node.started("sh", "-c", "while test ! -e /go; do sleep 0.05; done; exit 5")
    pod = node.manager.container(container).pod_id
    more = await node.manager.create_container(pod, node.container("true", name="more"))
    await asyncio.sleep(2.5)  # workers that are kept for the next work have gone
    with no_more_processes(node, node.manager._monitors.client(pod).pid):
        async with asyncio.timeout(10):
            with pytest.raises(PodError, match="Resource temporarily unavailable"):
                await node.manager.exec_sync(container, ["true"])
            with pytest.raises(PodError, match="Resource temporarily unavailable"):
                await node.manager.start_container(more.id)
    await node.manager.exec_sync(container, ["touch", "/go"])
    await ended(node.manager, container)
    assert node.manager.container(container).exit_code == 5
    await node.manager.remove_container(more.id)
    again = await node.manager.create_container(pod, node.container("true", name="more"))
    await node.manager.start_container(again.id)
    await ended(node.manager, again.id)
    assert again.exit_code == 0


@contextmanager
def little_memory(node: Node, more: int) -> Iterator[None]:
    """All monitors together get so many bytes more than they have."""
    group = cgroups.open_cgroup(f"/strata/{node.name}/monitors")
    group.apply({"memory": {"limit": group.stats().memory_usage_bytes + more}})
    try:
        yield
    finally:
        group.apply({"memory": {"limit": -1}})


async def run(node: Node, config: PodSandboxConfig, asked: ContainerConfig) -> str:
    """A pod with a container that runs; the container's ID."""
    pod = await node.manager.run_pod(config)
    container = await node.manager.create_container(pod.id, asked)
    await node.manager.start_container(container.id)
    return container.id


@pytest.mark.parametrize("pid_mode", [NamespaceMode.CONTAINER, NamespaceMode.POD])
async def test_without_memory_for_its_monitor_a_pod_fails_and_leaves_nothing(
    node: Node, pid_mode: "NamespaceMode.ValueType"
) -> None:
    first = await node.started("sleep", "60", name="first")
    asked = node.container("sleep", "60", name="none")
    asked.linux.security_context.namespace_options.pid = pid_mode
    told: list[str] = []
    with little_memory(node, 16 << 10):
        for number in range(20):  # a few more may fit: what the kernel has counted already is not exact
            config = node.pod(f"none{number}")
            config.linux.security_context.namespace_options.pid = pid_mode
            async with asyncio.timeout(20):
                try:  # the pod, or, where that is small enough, its container
                    await run(node, config, asked)
                except PodError as error:
                    told.append(str(error))
            if len(told) == 3:
                break
        for pod in node.manager.pods():
            if pod.config.metadata.name.startswith("none"):
                await node.manager.remove_pod(pod.id)
    assert len(told) == 3
    assert any("for want of memory in the cgroup" in text for text in told), told
    async with asyncio.timeout(10):
        kept = node.manager.container(first).pod_id
        await node.manager.remove_pod(kept)  # it may have been its monitor that was chosen, too
        assert node.manager.pods() == []
        assert list((node.folder / "s/pods").iterdir()) == []
        assert list((node.folder / "s/m").iterdir()) == []
        assert not cgroups.open_cgroup(f"/strata/{node.name}/pods").pids(recursive=True)
        again = await run(node, config, asked)
    assert (await node.manager.exec_sync(again, ["echo", "on"]))[0] == b"on\n"

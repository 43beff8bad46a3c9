"""Pods whose containers live in a sandbox, gVisor's runsc: a kernel of their own, known to the runtime alone."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from highrt.pods.errors import PodError
from highrt.pods.manager import default_handlers
from highrt.pods.model import ContainerState, Handler, Pod
from strata.protocols.cri_pb2 import NamespaceMode
from tests.integration.pods.conftest import Node, ended


@pytest.fixture
async def sandboxes(node: Node) -> Node:
    """The node with the handler `runsc`."""
    await node.manager.close()
    await open_manager(node)
    return node


async def open_manager(node: Node) -> None:
    # ptrace needs no virtual machine in the processor. Debian's runsc takes every network namespace of a new kernel for the
    # machine's own, and refuses: only the host's network stack serves, in the pod's namespace.
    args = ("--platform=ptrace", "--network=host")
    runsc = Handler("runsc", "/usr/bin/runsc", str(node.folder / "runsc"), args, sandbox=True)
    node.manager = node.new_manager(handlers={**default_handlers(), "runsc": runsc})
    await node.manager.open()


async def sandboxed(node: Node, name: str = "p", pid: NamespaceMode = NamespaceMode.CONTAINER) -> Pod:
    config = node.pod(name)
    options = config.linux.security_context.namespace_options
    options.network, options.pid = NamespaceMode.CONTAINER, pid
    return await node.manager.run_pod(config, handler="runsc")


async def run(
    node: Node, pod: Pod, *argv: str, name: str, pid: NamespaceMode = NamespaceMode.CONTAINER, tty: bool = False
) -> str:
    config = node.container(*argv, name=name, tty=tty)
    config.linux.security_context.namespace_options.pid = pid
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    return container.id


def sandboxes_of(node: Node) -> list[int]:
    """The PIDs of the runtime's processes of this node."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"--root={node.folder}/runsc".encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


async def test_containers_of_a_pod_share_a_sandbox_and_end_each_on_its_own(sandboxes: Node) -> None:
    node = sandboxes
    pod = await sandboxed(node)
    first = await run(node, pod, "sh", "-c", "cat /proc/version; sleep 60", name="first")
    second = await run(node, pod, "sh", "-c", "echo here; exit 7", name="second")
    await ended(node.manager, second)
    assert node.manager.container(second).exit_code == 7
    assert node.log("second") == ["stdout F here"]
    async with asyncio.timeout(10):
        while not node.log("first"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert "4.4.0" in node.log("first")[0], "gVisor's kernel says that it is this one"
    assert node.manager.container(first).state == ContainerState.RUNNING
    assert await node.manager.exec_sync(first, ["sh", "-c", "echo in; echo wrong >&2; exit 3"]) == (b"in\n", b"wrong\n", 3)
    await node.manager.stop_container(first, 0)
    assert node.manager.container(first).exit_code == 137
    again = await run(node, pod, "sh", "-c", "trap 'exit 5' TERM; echo ready; while true; do sleep 0.1; done", name="again")
    await node.said("ready", "again")
    await node.manager.stop_container(again, 10)
    assert node.manager.container(again).exit_code == 5, "it was asked first"
    await node.manager.remove_pod(pod.id)
    assert sandboxes_of(node) == []
    assert not list((node.folder / "runsc").glob("*.state"))


async def test_a_shared_pid_namespace_a_terminal_and_stdin(sandboxes: Node) -> None:
    node = sandboxes
    pod = await sandboxed(node, pid=NamespaceMode.POD)
    await run(node, pod, "sleep", "4711", name="sleeper", pid=NamespaceMode.POD)
    seen = await run(node, pod, "ps", name="seen", pid=NamespaceMode.POD)
    await ended(node.manager, seen)
    assert any("sleep 4711" in line for line in node.log("seen"))
    terminal = await run(node, pod, "sh", "-c", "test -t 0 && echo tty", name="terminal", tty=True)
    await ended(node.manager, terminal)
    assert node.log("terminal") == ["stdout F tty\r"]


async def test_an_exec_that_takes_too_long_is_killed_in_there(sandboxes: Node) -> None:
    node = sandboxes
    container = await run(node, await sandboxed(node), "sleep", "60", name="c")
    with pytest.raises(TimeoutError):
        await node.manager.exec_sync(container, ["sleep", "4712"], timeout_seconds=1)
    async with asyncio.timeout(10):
        while b"sleep 4712" in (await node.manager.exec_sync(container, ["ps"]))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_program_that_is_not_there(sandboxes: Node) -> None:
    node = sandboxes
    pod = await sandboxed(node)
    wrong = await node.manager.create_container(pod.id, node.container("no-such-program", name="wrong"))
    with pytest.raises(PodError, match="no-such-program"):
        await node.manager.start_container(wrong.id)
    assert (wrong.exit_code, wrong.reason) == (128, "StartError")
    await node.manager.remove_container(wrong.id)
    fine = await run(node, pod, "true", name="fine")
    await ended(node.manager, fine)
    assert node.manager.container(fine).exit_code == 0


async def test_when_the_sandbox_dies_all_in_it_have_ended(sandboxes: Node) -> None:
    node = sandboxes
    pod = await sandboxed(node)
    containers = [await run(node, pod, "sleep", "60", name=name) for name in ("a", "b")]
    os.kill(node.manager.container(containers[0]).pid, signal.SIGKILL)
    for container in containers:
        await ended(node.manager, container)
        assert node.manager.container(container).exit_code == 137
    assert not node.manager.pod(pod.id).ready
    await node.manager.remove_pod(pod.id)
    assert sandboxes_of(node) == []


async def test_sandboxes_outlive_the_daemon_but_not_their_monitor(sandboxes: Node) -> None:
    node = sandboxes
    pod = await sandboxed(node)
    container = await run(node, pod, "sh", "-c", "sleep 60", name="c")
    await node.manager.close()
    await open_manager(node)
    assert node.manager.container(container).state == ContainerState.RUNNING
    assert (await node.manager.exec_sync(container, ["echo", "still"]))[0] == b"still\n"
    stat = Path(f"/proc/{node.manager.container(container).pid}/stat").read_text()
    monitor = int(stat.rpartition(")")[2].split()[1])
    os.kill(monitor, signal.SIGKILL)
    await ended(node.manager, container)
    await node.manager.remove_pod(pod.id)
    assert sandboxes_of(node) == []

"""Forked ahead of need: a monitor, its worker, and in that the first process of the pod's first container (lowrt.prefork)."""

import asyncio
import subprocess

import pytest

from strata.linux import syscalls
from tests.conftest import wait_for
from tests.processes import descendants, is_gone

from .conftest import Node


@pytest.mark.skipif(not syscalls.SHARES_MEMORY, reason="nothing is forked ahead on this processor")
async def test_the_first_container_is_made_by_the_process_that_waits_for_it(node: Node) -> None:
    spawner = node.manager._monitors.spawner.pid
    (waiting,) = wait_for(lambda: descendants(spawner, "lowrt"), what="the process that waits")
    trace = node.folder / "trace"
    argv = ["strace", "-o", str(trace), "-e", "trace=clone3", "-p", str(waiting)]
    tracer = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
    assert tracer.stderr
    assert b"attached" in await tracer.stderr.readline()
    container = node.manager.container(await node.started("sleep", "60"))
    await tracer.wait()
    (line,) = [line for line in trace.read_text().splitlines() if line.startswith("clone3(")]
    assert "CLONE_VM" in line
    assert line.endswith(f" = {container.pid}") or "<unfinished" in line
    assert is_gone(waiting)

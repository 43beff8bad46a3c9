"""The memory of what is there for every node and every pod: highrt's spawner, and a monitor from its fork through its work.

`python -m tests.bench.memory [MINUTES]`: with a number it goes on with the same work for so long, and tells how it stands each
minute.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.pods.conftest import Node
from tests.integration.pods.working import Working, memory_bytes, private_bytes, working

MEGABYTE = 1 << 20
_ROUNDS = 3


def main() -> None:
    asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0))


async def measure(minutes: float) -> None:
    node = Node(Path(tempfile.mkdtemp(prefix="bench-", dir="/dev/shm")), f"bench-{os.getpid()}")
    try:
        await node.manager.open()
        async with working(node) as work:
            await show(work, minutes)
    finally:
        await node.end()


async def show(work: Working, minutes: float) -> None:
    spawner, monitor = work.spawner, work.monitor
    print("memory in MB: resident, and private (shared with no other process)")
    line("the spawner", spawner)
    await work.settled()
    line("a monitor whose container has started", monitor)
    for done in range(100, 100 * _ROUNDS + 1, 100):
        await work.everything(execs=100)
        await work.settled()
        line(f"after {done} execs and {done // 10} of each of the others*", monitor)
    children = [int(pid) for pid in Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()]
    for pid in children:
        if pid != monitor:
            line("the spare, which waits to become the next monitor", pid)
            for worker in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                line("its worker, which ends with the pod's start", int(worker))
    print("* exec with a terminal, exec that is killed, attach, log rotation, another container's whole life")
    if minutes:
        await soak(work, minutes)


async def soak(work: Working, minutes: float) -> None:
    execs, started, largest = 0, time.monotonic(), 0
    told = started
    while time.monotonic() - started < minutes * 60:
        await work.everything(execs=100)
        execs += 100
        largest = max(largest, await work.settled())
        if time.monotonic() - told >= 60:
            told = time.monotonic()
            line(f"after {(told - started) / 60:.0f} min, {execs} more execs", work.monitor)
    print(f"  the largest of {execs // 100} samples in {minutes:.0f} min: {largest / MEGABYTE:.2f} MB private", flush=True)


def line(what: str, pid: int) -> None:
    print(f"  {what:<60} {memory_bytes(pid, 'Rss') / MEGABYTE:6.2f} {private_bytes(pid) / MEGABYTE:6.2f}", flush=True)


if __name__ == "__main__":
    main()

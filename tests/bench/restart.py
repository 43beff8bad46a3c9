"""highrt killed by SIGKILL and started again, with 100 pods that run: how long until it serves and has found all of them.

Twice: with one container in each pod, then with three. The clock starts with the new process, and stops when both lists are
whole, and then when a command in one of the containers has run. Each step has a time limit; what takes longer ends all.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from strata.protocols import grpc
from tests.bench import milliseconds
from tests.bench.cri import Client, Daemon, highrt, highrt_command, image_archive, remove_cgroups
from tests.conftest import network_namespace

PODS, AT_ONCE = 100, 4
ROUNDS = 10
STEP_SECONDS = {"the pods' start": 120.0, "a start of the daemon": 30.0, "the pods' end": 180.0}
_POLL_SECONDS = 0.005

T = TypeVar("T")


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        namespace = stack.enter_context(network_namespace())
        stack.callback(remove_cgroups)
        daemon = stack.enter_context(highrt(folder / "highrt", namespace, image_archive(folder)))
        asyncio.run(measure(Restarts(folder / "highrt", namespace, daemon)))


async def within(step: str, work: Awaitable[T]) -> T:
    """Waits for a step, as long as it may take. Raises RuntimeError."""
    try:
        async with asyncio.timeout(STEP_SECONDS[step]):
            return await work
    except TimeoutError:
        raise RuntimeError(f"{step} took longer than {STEP_SECONDS[step]:.0f} s") from None


class Restarts:
    """The daemon, and each one after it."""

    def __init__(self, folder: Path, namespace: str, first: Daemon) -> None:
        self._folder, self._namespace, self.logs, self._pid = folder, namespace, first.logs, first.pid
        self.endpoint, self._argv = highrt_command(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def again(self) -> None:
        """Kills it, and starts the next one."""
        if self._process:
            self._process.kill()
            self._process.wait(10)
        else:
            os.kill(self._pid, signal.SIGKILL)
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self._namespace}", *map(str, self._argv)],
                stdout=log, stderr=log, env={**os.environ, "STRATA_BENCH": str(self._folder)},
            )  # fmt: skip

    def check(self) -> None:
        """Raises RuntimeError where it has ended."""
        if self._process and self._process.poll() is not None:
            raise RuntimeError(f"the daemon ended with {self._process.returncode}: {(self._folder / 'log').read_text()[-3000:]}")

    def end(self) -> None:
        """The last one's; what it was first is its maker's to end."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)


async def measure(restarts: Restarts) -> None:
    print(f"highrt killed and started again, {ROUNDS} rounds: median and p90 in ms, from the start of its process")
    print(f"  {'':<40} {'all are listed':>17}   {'and an exec is done':>19}")
    try:
        await rounds(restarts, "nothing to find", 0, 0)
        for containers in (1, 3):
            async with pods(restarts, containers):
                await rounds(restarts, f"{PODS} pods, {PODS * containers} containers", PODS, PODS * containers)
    finally:
        restarts.end()


async def rounds(restarts: Restarts, label: str, pods: int, containers: int) -> None:
    listed, served = [], []
    for _ in range(ROUNDS):
        restarts.again()
        first, second = await within("a start of the daemon", serving(restarts, pods, containers))
        listed.append(first)
        served.append(second)
    print(f"  {label:<40} {milliseconds(listed)}   {milliseconds(served) if containers else '':>19}", flush=True)


async def serving(restarts: Restarts, pods: int, containers: int) -> tuple[float, float]:
    """How long until everything is listed, and until a command has run besides, in seconds."""
    start = time.perf_counter()
    while True:
        restarts.check()
        client = Client(grpc.channel(restarts.endpoint), restarts.logs)
        try:
            found = await client.running()
            if (len(found[0]), len(found[1])) != (pods, containers):
                raise RuntimeError(f"of {pods} pods and {containers} containers {len(found[0])} and {len(found[1])} run")
            listed = time.perf_counter() - start
            if containers:
                await client.exec_sync(found[1][-1], ["/bin/busybox", "true"])
            return listed, time.perf_counter() - start
        except OSError:  # it does not listen yet
            await asyncio.sleep(_POLL_SECONDS)
        finally:
            client.close()


@asynccontextmanager
async def pods(restarts: Restarts, containers: int) -> AsyncIterator[None]:
    """So many pods, with so many containers each, that all run."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def make(number: int) -> None:
        async with gate:
            pod = await client.start(f"restart-{number}")
            for more in range(1, containers):
                await client.start_container(await client.create(pod, f"c{more}"))

    async def end(pod: str) -> None:
        async with gate:
            await client.stop(pod)

    client = Client(grpc.channel(restarts.endpoint), restarts.logs)
    try:
        await within("the pods' start", asyncio.gather(*(make(number) for number in range(PODS))))
        client.close()
        yield
    finally:
        client.close()
        client = Client(grpc.channel(restarts.endpoint), restarts.logs)
        try:
            await within("the pods' end", asyncio.gather(*(end(pod) for pod in (await client.running())[0])))
        finally:
            client.close()


if __name__ == "__main__":
    sys.exit(main())

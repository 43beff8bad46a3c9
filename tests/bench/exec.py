"""Commands inside a running container, beside Debian's containerd and runc: the same client, image and run, taking turns.

ExecSync and Exec of `true`, and Exec of a command that writes 1 GB (WebSocket and SPDY). Of highrt alone: a minute of a hundred
ExecSync a second, as from probes, what they take of the CPUs, and of its memory; and ListContainers with 500 of them, which
Debian's containerd does not live to see.
"""

import asyncio
import base64
import os
import socket
import statistics
import threading
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

from strata.linux import namespaces, syscalls
from strata.protocols import grpc, spdy
from tests.bench import milliseconds
from tests.bench.cri import Client, Daemon, both, pss

ROUNDS = 40
CONTAINERS = 500
STREAMED = 10**9
PROBES_PER_SECOND, PROBE_SECONDS = 100, 60
TRUE = ["/bin/busybox", "true"]
_CLOSE, _MASKED_CLOSE = b"\x88\x02\x03\xe8", b"\x88\x82\0\0\0\0\x03\xe8"
"""A WebSocket's last frame with the status 1000 (RFC 6455, section 5.5.1)."""
WRITE = ["/bin/busybox", "head", "-c", str(STREAMED), "/dev/zero"]


def main() -> None:
    with both() as (_, namespace, daemons):
        asyncio.run(measure(daemons, namespace))


async def measure(daemons: dict[str, Daemon], namespace: str) -> None:
    async with AsyncExitStack() as stack:
        clients, pods, containers = {}, {}, {}
        for name, daemon in daemons.items():
            client = clients[name] = Client(grpc.channel(daemon.endpoint), daemon.logs)
            stack.callback(client.close)
            pods[name] = await client.start("exec")
            stack.push_async_callback(client.stop, pods[name])
            containers[name] = (await client.containers(pods[name]))[0]
        await measure_true(clients, containers, namespace)
        await measure_streams(daemons, clients, containers, namespace)
        await measure_probes(daemons["highrt"], clients["highrt"], containers["highrt"])
        await measure_lists(clients["highrt"], pods["highrt"])


async def measure_true(clients: dict[str, Client], containers: dict[str, str], namespace: str) -> None:
    samples: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in clients}
    for _ in range(ROUNDS):
        for name, client in clients.items():
            start = time.perf_counter()
            await client.exec_sync(containers[name], TRUE)
            samples[name]["ExecSync"].append(time.perf_counter() - start)
            start = time.perf_counter()
            url = await client.exec_url(containers[name], TRUE)
            await asyncio.to_thread(received, url, namespace, by_spdy=False)
            samples[name]["Exec, WebSocket"].append(time.perf_counter() - start)
    print(f"\n`true` in a container, {ROUNDS} rounds in turns: median and p90 in ms, ratio to containerd")
    for step in ("ExecSync", "Exec, WebSocket"):
        base = statistics.median(samples["containerd"][step])
        for name in clients:
            ratio = statistics.median(samples[name][step]) / base
            print(f"  {step:<16} {name:<11} {milliseconds(samples[name][step])}   {ratio:.2f}")


async def measure_streams(
    daemons: dict[str, Daemon], clients: dict[str, Client], containers: dict[str, str], namespace: str
) -> None:  # fmt: skip
    print(f"\nExec that writes {STREAMED / 1e9:.0f} GB: MB/s in three rounds in turns; growth of the memory (PSS) meanwhile")
    for by_spdy in (False, True):
        rates: dict[str, list[float]] = defaultdict(list)
        growth: dict[str, float] = defaultdict(float)
        for _ in range(3):
            for name, client in clients.items():
                processes = daemons[name].processes()
                before = pss(processes)
                start = time.perf_counter()
                url = await client.exec_url(containers[name], WRITE)
                reading = asyncio.create_task(asyncio.to_thread(received, url, namespace, by_spdy=by_spdy))
                while not (await asyncio.wait([reading], timeout=0.5))[0]:
                    growth[name] = max(growth[name], pss(processes) - before)
                count = await reading
                if count < STREAMED:
                    raise RuntimeError(f"{name} sent {count} bytes only")
                rates[name].append(count / (time.perf_counter() - start) / 1e6)
        for name in clients:
            figures = " ".join(f"{rate:7.0f}" for rate in rates[name])
            print(f"  {'SPDY' if by_spdy else 'WebSocket':<10} {name:<11} {figures}   {growth[name] / 1e6:+.1f} MB")


async def measure_probes(daemon: Daemon, client: Client, container: str) -> None:
    before, idle = pss(daemon.processes()), await busy_cpus(5)
    own, start, busy = time.process_time(), time.perf_counter(), busy_seconds()
    probes = []
    for number in range(PROBES_PER_SECOND * PROBE_SECONDS):
        await asyncio.sleep(max(0.0, start + number / PROBES_PER_SECOND - time.perf_counter()))
        probes.append(asyncio.create_task(client.exec_sync(container, TRUE)))
    took = await asyncio.gather(*probes)
    seconds = time.perf_counter() - start
    cpus = (busy_seconds() - busy - (time.process_time() - own)) / seconds - idle
    print(f"\n{len(probes) / seconds:.0f} ExecSync of `true` a second for {seconds:.0f} s, highrt alone")
    print(f"  {cpus:.2f} CPUs without the client's; {milliseconds(took)} ms (median, p90)")
    await asyncio.sleep(3)
    print(f"  memory (PSS) {(pss(daemon.processes()) - before) / 1e6:+.1f} MB")


async def measure_lists(client: Client, pod: str) -> None:
    for number in range(CONTAINERS - 1):
        await client.create(pod, f"list-{number}")
    samples = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        found = await client.containers()
        samples.append(time.perf_counter() - start)
        if len(found) != CONTAINERS:
            raise RuntimeError(f"{len(found)} containers are listed")
    print(f"\nListContainers with {CONTAINERS} of them, highrt alone, {ROUNDS} rounds: median and p90 in ms")
    print(f"  {milliseconds(samples)}")


def received(url: str, namespace: str, *, by_spdy: bool) -> int:
    """Does what an exec's URL stands for, and counts the bytes that come until the server ends, frames and all."""
    address = urlsplit(url)
    with connected(address.hostname or "", address.port or 80, namespace) as sock:
        head = [f"Host: {address.netloc}", "Connection: Upgrade"]
        if by_spdy:
            head += ["Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"]
        else:
            key = base64.b64encode(os.urandom(16)).decode()
            head += ["Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
            head += ["Sec-WebSocket-Protocol: v4.channel.k8s.io"]
        verb = "POST" if by_spdy else "GET"
        sock.sendall("\r\n".join([f"{verb} {address.path}?{address.query} HTTP/1.1", *head, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(1)
        if b" 101 " not in answer.splitlines()[0]:
            raise RuntimeError(answer.decode())
        if by_spdy:
            sock.sendall(opening())
        return drained(sock)


def drained(sock: socket.socket) -> int:
    count, buffer = 0, bytearray(1 << 20)
    while True:
        try:
            size = sock.recv_into(buffer)
        except ConnectionResetError:  # containerd ends WebSockets in this way
            return count
        if size == 0:
            return count
        count += size
        if buffer[:size].endswith(_CLOSE):  # the server waits for ours
            sock.sendall(_MASKED_CLOSE)


def opening() -> bytes:
    """What a SPDY client of remotecommand sends first: its streams."""

    class Written:
        data = b""

        async def write(self, data: bytes) -> None:
            self.data += data

        async def read(self) -> bytes:
            return b""

        async def close(self) -> None: ...

    written = Written()

    async def open_all() -> None:
        connection = spdy.Connection(written, server=False)
        for kind in ("error", "stdout", "stderr"):
            await connection.open({"streamType": kind})

    asyncio.run(open_all())
    return written.data


def connected(host: str, port: int, namespace: str) -> socket.socket:
    """A connection inside a named network namespace: made by a thread that goes there, and ends."""
    made: list[socket.socket] = []

    def connect() -> None:
        with open(f"/run/netns/{namespace}", "rb") as there:
            syscalls.setns(there.fileno(), namespaces.NEWNET)
        made.append(socket.create_connection((host, port)))

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    return made[0]


def busy_seconds() -> float:
    """What all CPUs of the machine have worked, since it started."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


async def busy_cpus(seconds: float) -> float:
    """How many CPUs are busy when nothing is asked for."""
    start = busy_seconds()
    await asyncio.sleep(seconds)
    return (busy_seconds() - start) / seconds


if __name__ == "__main__":
    main()

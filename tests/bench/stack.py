"""The whole stack: the time of a second scripts/up, a pod from create to Running, writes per second, memory.

It makes a stack of its own in a network namespace (scripts/up --netns) and takes it away again.
"""

import asyncio
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.linux import syscalls
from tests.bench import milliseconds

NAME = "bench"
REPOSITORY = Path(__file__).resolve().parents[2]
PODS, BURST, WRITES, CLIENTS = 15, 20, 800, 8
IMAGE = "127.0.0.1:5000/hello:latest"
DAEMONS = ("controlplane", "highrt", "kubelet", "nodenet")


def main() -> None:
    up = [REPOSITORY / "scripts/up", "--netns", NAME]
    try:
        print(f"scripts/up, first time (set up, empty state): {timed(up):.1f} s")
        print(f"scripts/up again, all running:                {timed(up):.1f} s")
        subprocess.run([REPOSITORY / "scripts/down", "--netns", NAME, "--keep"], check=True, stdout=subprocess.DEVNULL)
        print(f"scripts/up after scripts/down --keep:         {timed(up):.1f} s")
        descriptor = os.open(f"/run/netns/{NAME}", os.O_RDONLY)
        syscalls.setns(descriptor)
        os.close(descriptor)
        asyncio.run(measure())
    finally:
        subprocess.run([REPOSITORY / "scripts/down", "--netns", NAME], check=True, stdout=subprocess.DEVNULL)


def timed(argv: list[Any]) -> float:
    start = time.monotonic()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return time.monotonic() - start


async def measure() -> None:
    client = Client.from_kubeconfig(f"/var/lib/strata/{NAME}/controlplane/admin.kubeconfig", user_agent="bench")
    try:
        await asyncio.sleep(3)
        memory("idle, with one pod")
        before = total_pss()
        samples = [await running(client, f"one-{n}") for n in range(PODS)]
        print(f"pod create to Running, one at a time ({PODS}): median, p90  {milliseconds(samples)} ms")
        print(f"memory a pod adds, all processes: {(total_pss() - before) / PODS:.1f} MB")
        await asyncio.gather(*(delete(client, f"one-{n}") for n in range(PODS)))
        start = time.monotonic()
        await asyncio.gather(*(running(client, f"many-{n}") for n in range(BURST)))
        print(f"{BURST} pods at once: {BURST / (time.monotonic() - start):.1f} pods/s")
        await asyncio.gather(*(delete(client, f"many-{n}") for n in range(BURST)))
        for kind in ("ConfigMap", "Pod"):
            print(f"create {kind}, {CLIENTS} clients: {await writes(client, kind):.0f} /s")
        memory("after that")
    finally:
        await client.close()


def pod(name: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"]}
    return {"metadata": {"name": name}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 0, **spec}}


async def running(client: Client, name: str) -> float:
    """Creates a pod and waits until the API says Running; the seconds it took."""
    start = time.monotonic()
    made = await client.create(resources.PODS, pod(name), "default")
    revision = made["metadata"]["resourceVersion"]
    watch = client.watch(resources.PODS, "default", resource_version=revision, field_selector=f"metadata.name={name}")
    async for event in watch:
        if (event.object.get("status") or {}).get("phase") == "Running":
            break
    return time.monotonic() - start


async def delete(client: Client, name: str) -> None:
    await client.delete(resources.PODS, name, "default", grace_period_seconds=0)


async def writes(client: Client, kind: str) -> float:
    """Creates per second by several clients at once, then everything is deleted. The pods fit no node."""
    resource = resources.CONFIGMAPS if kind == "ConfigMap" else resources.PODS

    async def some(number: int) -> None:
        for n in range(WRITES // CLIENTS):
            name = f"w-{number}-{n}"
            obj = {"metadata": {"name": name}, "data": {"a": "b" * 200}}
            if kind == "Pod":
                obj = pod(name, schedulerName="nobody")
            await client.create(resource, obj, "default")

    start = time.monotonic()
    await asyncio.gather(*(some(n) for n in range(CLIENTS)))
    rate = WRITES / (time.monotonic() - start)
    path = resource.path("default")
    await client.request("DELETE", path, params={"fieldSelector": "metadata.name!=hello,metadata.name!=kube-root-ca.crt"})
    return rate


def processes() -> dict[str, list[int]]:
    """The stack's processes: the daemons by their PID files, their children, and monitors."""
    found: dict[str, list[int]] = {}
    for daemon in DAEMONS:
        pid = int(Path(f"/run/strata/{NAME}/{daemon}.pid").read_text().split()[0])
        found[daemon] = [pid]
        for child in children(pid):
            found.setdefault(f"  {label(child, daemon)}", []).append(child)
    for folder in Path("/sys/fs/cgroup").glob(f"*/strata/{NAME}/monitors/*/cgroup.procs"):
        for line in folder.read_text().split():
            if int(line) not in found.setdefault("monitors", []):
                found["monitors"].append(int(line))
    return found


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def label(pid: int, daemon: str) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    match = re.search(r"controlplane\.controllers|spawner|cni|worker", command)
    return match[0] if match else f"helper of {daemon}"


def pss(pid: int) -> float:
    """Proportional set size in MB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) / 1024  # type: ignore[index]


def total_pss() -> float:
    return sum(pss(pid) for pids in processes().values() for pid in pids)


def memory(when: str) -> None:
    print(f"memory (PSS, MB), {when}:")
    for name, pids in processes().items():
        each = f", {sum(map(pss, pids)) / len(pids):.1f} each of {len(pids)}" if len(pids) > 1 else ""
        print(f"  {name:<28}{sum(map(pss, pids)):7.1f}{each}")
    print(f"  {'all':<28}{total_pss():7.1f}")


if __name__ == "__main__":
    main()

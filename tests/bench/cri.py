"""One pod through CRI, beside Debian's containerd and runc: the same client, image, CNI bridge and run, taking turns.

RunPodSandbox + CreateContainer + StartContainer of a busybox container, then StopPodSandbox + RemovePodSandbox. Both
daemons live in one network namespace without an uplink, with their files on a tmpfs. Also the memory (PSS) that each
adds for a running pod.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from grpclib.client import Channel

from strata.protocols import cri_pb2 as cri
from strata.protocols import grpc
from strata.protocols.cri_grpc import ImageServiceStub, RuntimeServiceStub
from tests.bench import milliseconds
from tests.conftest import network_namespace

ROUNDS = 30
PODS_FOR_MEMORY = 50
SETTLE_SECONDS = 3.0
"""After which no process is left that was made for what has just been done."""
IMAGE = "127.0.0.1:5000/bench:latest"
PAUSE = "127.0.0.1:5000/pause:latest"
CGROUP = "/strata-bench"
NAMESPACES = cri.NamespaceOption(pid=cri.NamespaceMode.CONTAINER)
"""As a kubelet asks for them, unless the pod says shareProcessNamespace."""
STEPS = ("RunPodSandbox", "CreateContainer", "StartContainer", "Stop and remove")


def main() -> None:
    with both() as (folder, namespace, daemons):
        asyncio.run(measure(daemons))
        bare(folder, namespace)


@contextmanager
def both() -> Iterator[tuple[Path, str, dict[str, "Daemon"]]]:
    """A folder on a tmpfs, with `image` in it, a network namespace, and both daemons in them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        namespace = stack.enter_context(network_namespace())
        archive = image_archive(folder)
        daemons = {
            "containerd": stack.enter_context(containerd(folder / "containerd", namespace, archive)),
            "highrt": stack.enter_context(highrt(folder / "highrt", namespace, archive)),
        }
        stack.callback(remove_cgroups)
        yield folder, namespace, daemons


def bare(folder: Path, namespace: str) -> None:
    """What of a pod's time are the system calls alone."""
    command = [sys.executable, "-m", "tests.bench.bare", folder / "bare", folder / "image", str(ROUNDS)]
    done = subprocess.run(["nsenter", f"--net=/run/netns/{namespace}", *command], stdout=subprocess.PIPE, check=True)
    samples = json.loads(done.stdout)
    samples["to started"] = [sum(steps) for steps in zip(*(samples[step] for step in STEPS[:3]), strict=True)]
    print("\nits system calls alone, by one process that does nothing else")
    for step in (*STEPS[:3], "to started", STEPS[3]):
        print(f"  {step:<16} {milliseconds(samples[step])}")


def remove_cgroups() -> None:
    """Takes away the pods' parent cgroups, which the kubelet would own."""
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        for folder, _, _ in os.walk(f"{hierarchy}{CGROUP}", topdown=False):
            os.rmdir(folder)


async def measure(daemons: dict[str, "Daemon"]) -> None:
    clients = {name: Client(grpc.channel(daemon.endpoint), daemon.logs) for name, daemon in daemons.items()}
    try:
        await measure_with(daemons, clients)
    finally:
        for client in clients.values():
            client.close()


async def measure_with(daemons: dict[str, "Daemon"], clients: dict[str, "Client"]) -> None:
    for label, pause in (("back to back", 0.0), ("200 ms idle before each pod", 0.2)):
        samples: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in daemons}
        for number in range(ROUNDS):
            for name in daemons:
                await asyncio.sleep(pause)
                steps = await clients[name].pod_life(f"{label[:4].strip()}-{number}")
                for step, seconds in steps.items():
                    samples[name][step].append(seconds)
                samples[name]["to started"].append(sum(steps[step] for step in STEPS[:3]))
        print(f"\none pod, {label}, {ROUNDS} rounds in turns: median and p90 in ms, ratio to containerd")
        for step in (*STEPS[:3], "to started", STEPS[3]):
            base = statistics.median(samples["containerd"][step])
            for name in daemons:
                ratio = statistics.median(samples[name][step]) / base
                print(f"  {step:<16} {name:<11} {milliseconds(samples[name][step])}   {ratio:.2f}")
    print(f"\n8 clients, each {ROUNDS // 3} whole pod lives")
    for name in daemons:
        start = time.perf_counter()
        await asyncio.gather(*(lives(clients[name], f"c{n}", ROUNDS // 3) for n in range(8)))
        print(f"  {name:<11} {8 * (ROUNDS // 3) / (time.perf_counter() - start):6.1f} pods/s")
    print(f"\nmemory (PSS) added per running pod, over {PODS_FOR_MEMORY}; all without pods; the daemon's process with them")
    for name, daemon in daemons.items():
        await asyncio.sleep(SETTLE_SECONDS)
        alone = pss(daemon.processes())
        client = clients[name]
        pods = [await client.start(f"memory-{n}") for n in range(PODS_FOR_MEMORY)]
        await asyncio.sleep(SETTLE_SECONDS)
        added = (pss(daemon.processes()) - alone) / PODS_FOR_MEMORY
        own = pss([daemon.pid])
        for pod in pods:
            await client.stop(pod)
        print(f"  {name:<11} {added / 1e6:6.2f} MB a pod, {alone / 1e6:6.1f} MB without, {own / 1e6:6.1f} MB the daemon's own")


async def lives(client: "Client", name: str, count: int) -> None:
    for number in range(count):
        await client.pod_life(f"{name}-{number}")


class Client:
    """The calls that a kubelet makes for a pod of one container."""

    def __init__(self, channel: Channel, logs: Path) -> None:
        self._channel, self._logs, self._runtime = channel, logs, RuntimeServiceStub(channel)

    def close(self) -> None:
        self._channel.close()

    async def pod_life(self, name: str) -> dict[str, float]:
        """Makes a pod, takes it away, and returns how long each step took, in seconds."""
        took: dict[str, float] = {}
        pod = await self.start(name, took)
        start = time.perf_counter()
        await self.stop(pod)
        took["Stop and remove"] = time.perf_counter() - start
        return took

    async def start(self, name: str, took: dict[str, float] | None = None) -> str:
        took = {} if took is None else took
        clock = time.perf_counter()

        def lap(step: str) -> None:
            nonlocal clock
            took[step], clock = time.perf_counter() - clock, time.perf_counter()

        pod_config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, namespace="bench", uid=str(uuid.uuid4())),
            hostname=name,
            log_directory=f"{self._logs}/{name}",
            linux=cri.LinuxPodSandboxConfig(cgroup_parent=f"{CGROUP}/{name}", security_context={"namespace_options": NAMESPACES}),
        )
        os.makedirs(pod_config.log_directory, exist_ok=True)
        request = cri.RunPodSandboxRequest(config=pod_config)
        pod = (await self._runtime.RunPodSandbox(request, timeout=30)).pod_sandbox_id
        lap("RunPodSandbox")
        container = await self.create(pod, "c", pod_config)
        lap("CreateContainer")
        await self.start_container(container)
        lap("StartContainer")
        return pod

    async def create(self, pod: str, name: str, pod_config: cri.PodSandboxConfig | None = None) -> str:
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=IMAGE),
            command=["/bin/sleep", "1000"],
            log_path=f"{name}.log",
            linux={"security_context": {"namespace_options": NAMESPACES}},
        )
        request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=pod_config)
        return (await self._runtime.CreateContainer(request, timeout=30)).container_id

    async def start_container(self, container: str) -> None:
        await self._runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=30)

    async def running(self) -> tuple[list[str], list[str]]:
        """The pods that are ready, and the containers that run."""
        ready = cri.PodSandboxFilter(state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY))
        running = cri.ContainerFilter(state=cri.ContainerStateValue(state=cri.CONTAINER_RUNNING))
        pods = await self._runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=ready), timeout=30)
        containers = await self._runtime.ListContainers(cri.ListContainersRequest(filter=running), timeout=30)
        return [pod.id for pod in pods.items], [container.id for container in containers.containers]

    async def containers(self, pod: str = "") -> list[str]:
        request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod))
        return [container.id for container in (await self._runtime.ListContainers(request, timeout=30)).containers]

    async def exec_sync(self, container: str, command: list[str]) -> float:
        """Runs a command in a container, which must succeed; how long that took, in seconds."""
        start = time.perf_counter()
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=30)
        answer = await self._runtime.ExecSync(request, timeout=60)
        if answer.exit_code:
            raise RuntimeError(f"{command} ended with {answer.exit_code}: {answer.stderr.decode()}")
        return time.perf_counter() - start

    async def exec_url(self, container: str, command: list[str]) -> str:
        request = cri.ExecRequest(container_id=container, cmd=command, stdout=True, stderr=True)
        return (await self._runtime.Exec(request, timeout=30)).url

    async def stop(self, pod: str) -> None:
        await self._runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
        await self._runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=60)


class Daemon:
    """A CRI daemon that runs, and which processes are its own."""

    def __init__(self, folder: Path, endpoint: str, pid: int) -> None:
        self.endpoint, self.pid, self.logs, self.processes = endpoint, pid, folder / "logs", processes_of(folder)


def processes_of(folder: Path) -> Callable[[], list[int]]:
    """Finds a daemon with its shims or monitors (its folder is in argv or environment) and its containers."""

    def find() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    own = str(folder).encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                    if own or f"{CGROUP}/" in (entry / "cgroup").read_text():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    return find


def pss(pids: list[int]) -> float:
    """The sum of the processes' proportional set sizes, in bytes."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024.0


def image_archive(folder: Path) -> Path:
    """A docker archive with a busybox image under both names, made without a daemon (skopeo from an OCI layout)."""
    root = folder / "image"
    (root / "bin").mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", root / "bin/busybox"], check=True)
    for applet in ("sh", "sleep", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    layout = folder / "layout"
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:bench"], check=True)
    subprocess.run(["umoci", "insert", "--image", f"{layout}:bench", root / "bin", "/bin"], check=True)
    command = ("--config.cmd", "/bin/sleep", "--config.cmd", "100000")
    subprocess.run(["umoci", "config", "--image", f"{layout}:bench", *command], check=True)
    archive = folder / "image.tar"
    names = [argument for name in (IMAGE, PAUSE) for argument in ("--additional-tag", name)]
    subprocess.run(
        ["skopeo", "copy", "-q", "--insecure-policy", *names, f"oci:{layout}:bench", f"docker-archive:{archive}"],
        check=True,
    )
    return archive


CNI = {
    "cniVersion": "1.0.0",
    "name": "bench",
    "plugins": [
        {
            "type": "bridge",
            "isGateway": True,
            "ipMasq": False,
            "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}]},
        }
    ],
}


def cni_configuration(folder: Path, bridge: str, subnet: str) -> Path:
    folder.mkdir(parents=True)
    conflist = json.loads(json.dumps(CNI))
    conflist["plugins"][0]["bridge"] = bridge
    conflist["plugins"][0]["ipam"].update(ranges=[[{"subnet": subnet}]], dataDir=str(folder.parent / "ipam"))
    (folder / "10-bench.conflist").write_text(json.dumps(conflist))
    return folder


@contextmanager
def daemon_process(argv: list[Any], namespace: str, endpoint: str, log: Path, **environ: str) -> Iterator[int]:
    """Runs a daemon in the namespace until its CRI answers, and gives its PID; ends it and all that it made."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", *map(str, argv)],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, **environ},
    )
    try:
        asyncio.run(answering(endpoint, process, log))
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def answering(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        channel = grpc.channel(endpoint)
        try:
            status = await RuntimeServiceStub(channel).Status(cri.StatusRequest(), timeout=5)
            if all(condition.status for condition in status.status.conditions):
                await ImageServiceStub(channel).ListImages(cri.ListImagesRequest(), timeout=5)
                return
        except Exception:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{endpoint} does not answer:\n{log.read_text()[-3000:]}") from None
        finally:
            channel.close()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{endpoint} is not ready:\n{log.read_text()[-3000:]}")
        await asyncio.sleep(0.05)


@contextmanager
def containerd(folder: Path, namespace: str, archive: Path) -> Iterator[Daemon]:
    conf = cni_configuration(folder / "cni", "benchc0", "10.66.0.0/16")
    config = folder / "config.toml"
    config.write_text(
        f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{folder}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{conf}"
bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
"""
    )
    endpoint = f"unix://{folder}/c.sock"
    with daemon_process(
        ["containerd", "--config", config], namespace, endpoint, folder / "log", STRATA_BENCH="containerd"
    ) as pid:
        subprocess.run(
            ["ctr", "--address", folder / "c.sock", "--namespace", "k8s.io", "images", "import", archive],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        yield Daemon(folder, endpoint, pid)


@contextmanager
def highrt(folder: Path, namespace: str, archive: Path) -> Iterator[Daemon]:
    cni_configuration(folder / "cni", "benchh0", "10.67.0.0/16")
    endpoint, argv = highrt_command(folder)
    with daemon_process(argv, namespace, endpoint, folder / "log", STRATA_BENCH=str(folder)) as pid:
        command = ["highrt", "--address", endpoint, "load", "-i", archive]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
        yield Daemon(folder, endpoint, pid)


def highrt_command(folder: Path) -> tuple[str, list[Any]]:
    """The socket, and the command that serves there."""
    endpoint = f"unix://{folder}/h.sock"
    argv = ["highrt", "serve", "--root", folder / "root", "--state", folder / "state", "--listen", endpoint]
    return endpoint, [*argv, "--cni-conf-dir", folder / "cni", "--cni-bin-dir", "/usr/lib/cni"]


if __name__ == "__main__":
    main()

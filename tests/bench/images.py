"""Pulling and unpacking images, beside Debian's containerd (`ctr images pull`), from Debian's docker-registry on loopback.

Registry and daemons live in one network namespace without an uplink, with their files on a tmpfs; they take turns. Also the
memory (PSS, the daemon with its workers) that a pull adds, and what a second pull of an unchanged tag costs.
"""

import asyncio
import gzip
import hashlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from strata.protocols import cri_pb2 as cri
from strata.protocols import grpc
from strata.protocols.cri_grpc import ImageServiceStub
from tests.bench import milliseconds
from tests.bench.cri import Daemon, containerd, highrt, image_archive, pss
from tests.conftest import network_namespace, wait_for

ROUNDS = 5
REGISTRY = "127.0.0.1:5000"
SAMPLE_SECONDS = 0.01


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        namespace = stack.enter_context(network_namespace())
        registry = stack.enter_context(docker_registry(folder / "registry", namespace))
        push = Pusher(folder / "images", namespace)
        images = {
            "one layer, 6,400 files": push("files", [layer(1, 6_400, 112 << 20)]),
            "one layer, 50,000 small files": push("small", [layer(2, 50_000, 50 << 20)]),
            "ten layers, 300 MB": push("layers", [layer(10 + n, 500, 30 << 20) for n in range(10)]),
        }
        archive = image_archive(folder)
        daemons = {
            "containerd": stack.enter_context(containerd(folder / "containerd", namespace, archive)),
            "highrt": stack.enter_context(highrt(folder / "highrt", namespace, archive)),
        }
        measure(folder, namespace, images, daemons, registry)


def measure(folder: Path, namespace: str, images: dict[str, str], daemons: dict[str, Daemon], registry: "Registry") -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    pulls = {"containerd": Containerd(folder / "containerd/c.sock", namespace), "highrt": Highrt(daemons["highrt"].endpoint)}
    print(f"load of the machine at the start: {os.getloadavg()[0]:.2f}")
    print(f"\npull and unpack, {rounds} rounds in turns: median and p90 in ms, ratio to containerd; highest memory over idle")
    for what, image in images.items():
        took: dict[str, list[float]] = {name: [] for name in pulls}
        memory: dict[str, list[float]] = {name: [] for name in pulls}
        for _ in range(rounds):
            for name, client in pulls.items():
                with Memory(daemons[name].processes) as used:
                    start = time.perf_counter()
                    client.pull(image)
                    took[name].append(time.perf_counter() - start)
                memory[name].append(used.added)
                client.remove(image)
        base = statistics.median(took["containerd"])
        for name in pulls:
            ratio = statistics.median(took[name]) / base
            print(f"  {what:<30} {name:<11} {milliseconds(took[name])}   {ratio:.2f}   {max(memory[name]) / 1e6:5.1f} MB")
    print(f"\nagain, of an unchanged tag, {2 * rounds} times: median and p90 in ms, requests to the registry")
    image = images["one layer, 6,400 files"]
    for name, client in pulls.items():
        client.pull(image)
        before, samples = registry.requests(), []
        for _ in range(2 * rounds):
            start = time.perf_counter()
            client.pull(image)
            samples.append(time.perf_counter() - start)
        print(f"  {name:<11} {milliseconds(samples)}   {(registry.requests() - before) / (2 * rounds):.1f} requests")
    print(f"\nload of the machine at the end: {os.getloadavg()[0]:.2f}")


class Containerd:
    """Its command does the registry's part itself, so it must be in the namespace."""

    def __init__(self, socket: Path, namespace: str) -> None:
        self._argv = [
            "nsenter",
            f"--net=/run/netns/{namespace}",
            "ctr",
            "--address",
            str(socket),
            "--namespace",
            "bench",
            "images",
        ]

    def pull(self, image: str) -> None:
        subprocess.run([*self._argv, "pull", "--plain-http", image], check=True, stdout=subprocess.DEVNULL)

    def remove(self, image: str) -> None:
        subprocess.run([*self._argv, "rm", "--sync", image], check=True, stdout=subprocess.DEVNULL)


class Highrt:
    """As a kubelet calls it."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.new_event_loop()
        self._channel: Any = None

    def _call(self, act: Callable[[ImageServiceStub], Any]) -> None:
        async def run() -> None:
            self._channel = self._channel or grpc.channel(self._endpoint)
            await act(ImageServiceStub(self._channel))

        self._loop.run_until_complete(run())

    def pull(self, image: str) -> None:
        self._call(lambda stub: stub.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=image)), timeout=120))

    def remove(self, image: str) -> None:
        self._call(lambda stub: stub.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)), timeout=120))


class Memory:
    """The highest memory of some processes during the block, beyond what they had at its beginning. added: bytes."""

    def __init__(self, processes: Callable[[], list[int]]) -> None:
        self._processes, self._end = processes, threading.Event()
        self.added = 0.0

    def __enter__(self) -> "Memory":
        self._idle = pss(self._processes())
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS * 10):
            self.added = max(self.added, pss(self._processes()) - self._idle)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


class Registry:
    def __init__(self, log: Path) -> None:
        self._log = log

    def requests(self) -> int:
        """How many requests there were so far, without those that only ask whether it is there."""
        return sum(" /v2/bench/" in line for line in self._log.read_text().splitlines() if '"GET ' in line or '"HEAD ' in line)


@contextmanager
def docker_registry(folder: Path, namespace: str) -> Iterator[Registry]:
    folder.mkdir()
    (folder / "config.yml").write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: false}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '{REGISTRY}'}}\n"
    )
    argv = ["nsenter", f"--net=/run/netns/{namespace}", "docker-registry", "serve", folder / "config.yml"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        probe = ["nsenter", f"--net=/run/netns/{namespace}", "curl", "-sf", "-o", "/dev/null", f"http://{REGISTRY}/v2/"]
        wait_for(lambda: subprocess.run(probe).returncode == 0, what="docker-registry to answer")
        yield Registry(folder / "log")
    finally:
        process.kill()
        process.wait()


class Pusher:
    """Makes an image of tars and puts it into the registry."""

    def __init__(self, layout: Path, namespace: str) -> None:
        self._layout, self._namespace = layout, namespace

    def __call__(self, name: str, tars: list[bytes]) -> str:
        (self._layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (self._layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        described, diff_ids = [], []
        for tar in tars:
            diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
            described.append(self._blob(gzip.compress(tar, 6, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip"))
        config = {"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self._blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": described,
        }
        top = self._blob(json.dumps(manifest).encode(), manifest["mediaType"])
        top["annotations"] = {"org.opencontainers.image.ref.name": name}
        (self._layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
        target = f"{REGISTRY}/bench/{name}:1"
        subprocess.run(
            ["nsenter", f"--net=/run/netns/{self._namespace}", "skopeo", "copy", "-q", "--insecure-policy",
             "--dest-tls-verify=false", f"oci:{self._layout}:{name}", f"docker://{target}"],
            check=True,
        )  # fmt: skip
        packed = sum(item["size"] for item in described)
        print(f"{target}: {len(tars)} layers, {sum(map(len, tars)) / 1e6:.0f} MB, packed {packed / 1e6:.0f}")
        return target

    def _blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self._layout / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def layer(seed: int, files: int, size: int) -> bytes:
    """A tar of files in directories as a distribution has them, about as compressible as programs and texts."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randint(3, 12)) for _ in range(200)]
    sizes = [chance.lognormvariate(0, 1.5) for _ in range(files)]
    scale = size / sum(sizes)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        folder = ""
        for number, share in enumerate(sizes):
            if number % 20 == 0:
                folder = f"usr/share/package-{seed}-{number // 200}/part-{number // 20}"
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                tar.addfile(entry)
            length = int(share * scale)
            text = b"".join(chance.choices(words, k=length // 7 + 1))[:length]
            entry = tarfile.TarInfo(f"{folder}/file-{number}.txt")
            entry.size, entry.mtime = len(text), 1_700_000_000
            tar.addfile(entry, io.BytesIO(text))
    return out.getvalue()


if __name__ == "__main__":
    main()

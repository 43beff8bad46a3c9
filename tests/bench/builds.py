"""A build of five steps, cold and cached, beside Debian's buildah with runc.

Both have the base image there and their files on a tmpfs; they take turns. Commands as a person types them, from their start to
their end. buildah keeps layers (`--layers`), as `podman build` does; its steps have no network, as highrt's have none.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from strata.linux import mounts
from tests.bench import milliseconds
from tests.bench.cri import IMAGE, highrt, image_archive
from tests.conftest import network_namespace

ROUNDS = 10
FILES, FILE_BYTES = 400, 50_000
STEPS = f"""
FROM {IMAGE}
ENV NAME=value
COPY tree /tree
RUN ["/bin/busybox", "sh", "-c", "i=0; while test $i -lt 300; do echo $i > /file-$i; i=$((i+1)); done"]
RUN ["/bin/busybox", "cp", "-r", "/tree", "/copy"]
CMD ["/bin/sleep", "1"]
"""


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        context = folder / "context"
        make_context(context)
        archive = image_archive(folder)
        namespace = stack.enter_context(network_namespace())
        daemon = stack.enter_context(highrt(folder / "highrt", namespace, archive))
        storage = ["--root", folder / "b/root", "--runroot", folder / "b/run", "--storage-driver", "overlay"]
        buildah = [
            *storage,
            "bud",
            "--isolation",
            "oci",
            "--runtime",
            "/usr/sbin/runc",
            "--network",
            "none",
            "--layers",
            "--quiet",
            "--pull-never",
        ]
        subprocess.run(
            ["buildah", *storage, "pull", "-q", f"docker-archive:{archive}:{IMAGE}"], check=True, stdout=subprocess.DEVNULL
        )
        stack.callback(mounts.umount_below, str(folder / "b"))
        builds: dict[str, Callable[..., list[str | Path]]] = {
            "buildah": lambda *options: ["buildah", *buildah, *options, "-t", "built:1", context],
            "highrt": lambda *options: [
                "highrt",
                "--address",
                daemon.endpoint,
                "build",
                "-q",
                *options,
                "-t",
                "built:1",
                context,
            ],
        }
        measure(builds, rounds, folder)


def make_context(context: Path) -> None:
    (context / "tree").mkdir(parents=True)
    (context / "Containerfile").write_text(STEPS)
    chance = random.Random(1)
    for number in range(FILES):
        (context / "tree" / f"file-{number}").write_bytes(chance.randbytes(FILE_BYTES // 2) + bytes(FILE_BYTES // 2))


def measure(builds: dict[str, Callable[..., list[str | Path]]], rounds: int, folder: Path) -> None:
    print(f"load of the machine at the start: {os.getloadavg()[0]:.2f}")
    print(f"\na build of five steps, {rounds} rounds in turns: median and p90 in ms, ratio to buildah")
    for what, options in (("cold", ["--no-cache"]), ("cached", [])):
        took: dict[str, list[float]] = {name: [] for name in builds}
        for build in builds.values():
            run(build(*options), folder)
        for _ in range(rounds):
            for name, build in builds.items():
                start = time.perf_counter()
                run(build(*options), folder)
                took[name].append(time.perf_counter() - start)
        base = statistics.median(took["buildah"])
        for name, samples in took.items():
            print(f"  {what:<7} {name:<8} {milliseconds(samples)}   {statistics.median(samples) / base:.2f}")
    print(f"\nload of the machine at the end: {os.getloadavg()[0]:.2f}")


def run(argv: list[str | Path], folder: Path) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(folder)})


if __name__ == "__main__":
    main()

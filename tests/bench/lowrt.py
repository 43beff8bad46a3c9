"""`lowrt run /bin/true` beside runc's and crun's, as commands, back to back and after idle pauses, taking turns."""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench import milliseconds

ROUNDS = 40


def bundle(folder: Path) -> Path:
    """A busybox bundle with the runtime's default spec, running /bin/true without a terminal."""
    root = folder / "rootfs/bin"
    root.mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "busybox")
    (root / "true").symlink_to("busybox")
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    spec = json.loads((folder / "config.json").read_text())
    spec["process"].update(args=["/bin/true"], terminal=False)
    (folder / "config.json").write_text(json.dumps(spec))
    return folder


def run(runtime: str, state: Path, bundle_folder: Path, number: int) -> float:
    start = time.perf_counter()
    argv = [
        runtime,
        "--root",
        str(state / runtime),
        "run",
        "--bundle",
        str(bundle_folder),
        f"bench-{os.getpid()}-{number}",
    ]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    runtimes = ["lowrt", "runc"]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        there = bundle(folder / "bundle")
        print(f"run /bin/true, runc's default spec, {ROUNDS} rounds in turns      median      p90 (ms)   ratio to runc")
        for label, pause in (("back to back", 0.0), ("100 ms idle before each", 0.1)):
            samples: dict[str, list[float]] = {runtime: [] for runtime in runtimes}
            for number in range(ROUNDS):
                for runtime in runtimes:
                    time.sleep(pause)
                    samples[runtime].append(run(runtime, folder, there, number))
            base = statistics.median(samples["runc"])
            for runtime in runtimes:
                ratio = statistics.median(samples[runtime]) / base
                print(f"  {label:<26} {runtime:<24} {milliseconds(samples[runtime])}   {ratio:.2f}")


if __name__ == "__main__":
    main()

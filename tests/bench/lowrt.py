"""lowrt beside runc and crun: as commands, back to back and after idle pauses, and forked from the warm spawner.

Peers take turns in the same run. `python -m tests.bench.lowrt [ROUNDS]`; the lane with cgroup v2 alone is this program again,
in a mount namespace of its own (`--lane v2`), because crun refuses hybrid hierarchies.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import milliseconds
from tests.integration.lowrt.warm import Spawner

CHECKOUT = Path(__file__).parents[2]
LOWRT = str(CHECKOUT / "lowrt/launcher")
IDLE_SECONDS = 0.1
FORK_SECONDS = 0.05
"""In which a process that waits is there again: nobody else is measured meanwhile."""

SECCOMP = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [{"names": ["kexec_load", "bpf", "add_key", "keyctl", "mount", "umount2"], "action": "SCMP_ACT_ERRNO"}],
}

Samples = dict[str, list[float]]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 40
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        if "--lane" in sys.argv:
            warm_lane(folder, rounds)
            return
        commands(folder, rounds)
        warm_on_this_machine(folder, rounds)
    lane = 'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    here = [sys.executable, "-m", "tests.bench.lowrt", str(rounds), "--lane", "v2"]
    subprocess.run(["unshare", "--mount", "sh", "-c", lane, "sh", *here], check=True, cwd=CHECKOUT)


# --- as commands


def commands(folder: Path, rounds: int) -> None:
    print(f"as commands, runc's default spec, {rounds} rounds in turns")
    runtimes = [LOWRT, "runc"]
    there = bundle(folder / "bundle", ["/bin/true"])
    sleeper = bundle(folder / "sleeper", ["/bin/sleep", "1000"])
    for runtime in runtimes:
        run([*state_of(folder, runtime), "run", "--detach", "--bundle", str(sleeper), f"sleeper-{Path(runtime).name}"])
    works: dict[str, Callable[[list[str], str], float]] = {
        "run /bin/true": lambda argv, name: timed([*argv, "run", "--bundle", str(there), name]),
        "exec /bin/true": lambda argv, name: timed([*argv, "exec", f"sleeper-{Path(argv[0]).name}", "/bin/true"]),
        "create": lambda argv, name: timed([*argv, "create", "--bundle", str(there), name]),
        "start": lambda argv, name: timed([*argv, "start", name]),
        "delete": lambda argv, name: timed([*argv, "delete", name], before=lambda: stopped(argv, name)),
    }
    try:
        for label, pause in (("back to back", 0.0), (f"{IDLE_SECONDS * 1000:.0f} ms idle before each", IDLE_SECONDS)):
            samples: dict[str, Samples] = {work: {runtime: [] for runtime in runtimes} for work in works}
            for number in range(rounds):
                for work, do in works.items():
                    for runtime in runtimes:
                        time.sleep(pause)
                        samples[work][runtime].append(do(state_of(folder, runtime), f"b{number}"))
            print(f"\n{label:<44}       median      p90 (ms)   ratio to runc")
            for work, found in samples.items():
                show(work, found, "runc")
        floor: Samples = {"python3 -IS -c pass": [], "lowrt --version": []}
        for _ in range(rounds):
            floor["python3 -IS -c pass"].append(timed(["/usr/bin/python3", "-IS", "-c", "pass"]))
            floor["lowrt --version"].append(timed([LOWRT, "--version"]))
        print()
        for what, found in floor.items():
            print(f"  {what:<56} {milliseconds(found)}")
    finally:
        for runtime in runtimes:
            run([*state_of(folder, runtime), "delete", "--force", f"sleeper-{Path(runtime).name}"])


def stopped(argv: list[str], name: str) -> None:
    """Waits until a container's first process has ended; not part of what is measured."""
    while json.loads(subprocess.run([*argv, "state", name], capture_output=True, check=True).stdout)["status"] != "stopped":
        time.sleep(0.005)


# --- warm


def warm_on_this_machine(folder: Path, rounds: int) -> None:
    """From the request to the program's first output, with idle pauses, each with a cgroup parent that is new."""
    there = bundle(folder / "echo", ["/bin/echo", "x"])
    spec = json.loads((there / "config.json").read_text())
    spawner = Spawner()
    samples: Samples = {"lowrt, forked from the spawner": [], "runc": []}
    parents = []
    try:
        for number in range(rounds):
            for name, found in samples.items():
                parents.append(f"/strata-bench-{os.getpid()}-{number}-{len(found)}-{name[:1]}")
                spec["linux"]["cgroupsPath"] = f"{parents[-1]}/one"
                (there / "config.json").write_text(json.dumps(spec))
                time.sleep(IDLE_SECONDS)
                found.append(until_output(spawner if name != "runc" else None, folder, there, f"e{number}"))
    finally:
        spawner.close()
        for folder_ in Path("/sys/fs/cgroup").glob(f"*/strata-bench-{os.getpid()}-*"):
            folder_.rmdir()
    print(f"\nfrom request to the program's first output, {IDLE_SECONDS * 1000:.0f} ms idle before each, new cgroup parents")
    for name, found in samples.items():
        print(f"  {name:<44} {milliseconds(found)}")


def until_output(spawner: "Spawner | None", folder: Path, there: Path, name: str) -> float:
    read, write = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    start = time.perf_counter()
    if spawner:
        argv = ["--root", str(folder / "lowrt"), "run", "--bundle", str(there), name]
        pid = os.fork()  # the request waits for the end; the output comes before
        if pid == 0:
            os._exit(spawner.ask(argv, (null, write, 2)))
        os.close(write)
        assert os.read(read, 1) == b"x"
        taken = time.perf_counter() - start
        assert os.waitpid(pid, 0)[1] == 0
        spawner.replenish()
    else:
        process = subprocess.Popen(["runc", "--root", folder / "runc", "run", "--bundle", there, name], stdout=write)
        os.close(write)
        assert os.read(read, 1) == b"x"
        taken = time.perf_counter() - start
        assert process.wait() == 0
    os.close(read)
    os.close(null)
    return taken


def warm_lane(folder: Path, rounds: int) -> None:
    """On cgroup v2 alone: from the request to the exit code received and the state deleted, beside crun's command."""
    there = bundle(folder / "bundle", ["/bin/true"], seccomp=SECCOMP, resources=False)
    spawner = Spawner()
    null = os.open(os.devnull, os.O_RDWR)
    warm, names = "lowrt, forked from the spawner", []

    def from_spawner(number: int) -> float:
        start = time.perf_counter()
        assert spawner.ask(["--root", str(folder / "warm"), "run", "--bundle", str(there), f"w{number}"], (null, null, 2)) == 0
        taken = time.perf_counter() - start
        spawner.replenish()
        time.sleep(FORK_SECONDS)
        return taken

    samples: dict[str, Samples] = {}
    try:
        for label, pause in (("back to back", 0.0), ("idle", IDLE_SECONDS)):
            found = samples[label] = {warm: [], "lowrt, command": [], "crun": [], "runc": []}
            names = list(found)
            for number in range(rounds):
                for name in names:
                    time.sleep(pause)
                    if name == warm:
                        found[name].append(from_spawner(number))
                    else:
                        argv = state_of(folder, LOWRT if name.startswith("lowrt") else name)
                        found[name].append(timed([*argv, "run", "--bundle", str(there), f"c{number}"]))
    finally:
        spawner.close()
    for label, found in samples.items():
        print(f"\nrun /bin/true with seccomp on cgroup v2 alone, {label:<16}    median      p90 (ms)   ratio to crun")
        for name in names:
            show(name, {name: found[name], "crun": found["crun"]}, "crun", only=name)


# --- helpers


def bundle(folder: Path, argv: list[str], *, seccomp: "dict[str, Any] | None" = None, resources: bool = True) -> Path:
    """A busybox bundle with runc's default spec, without a terminal."""
    root = folder / "rootfs/bin"
    root.mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "busybox")
    for name in ("true", "echo", "sleep", "sh"):
        (root / name).symlink_to("busybox")
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    spec = json.loads((folder / "config.json").read_text())
    spec["process"].update(args=argv, terminal=False)
    if seccomp:
        spec["linux"]["seccomp"] = seccomp
    if not resources:
        del spec["linux"]["resources"]
    (folder / "config.json").write_text(json.dumps(spec))
    return folder


def state_of(folder: Path, runtime: str) -> list[str]:
    return [runtime, "--root", str(folder / f"state-{Path(runtime).name}")]


def run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(argv: list[str], before: "Callable[[], None] | None" = None) -> float:
    """Seconds from the start of a program to its end."""
    if before:
        before()
    program = shutil.which(argv[0]) or argv[0]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1)]
    start = time.perf_counter()
    pid = os.posix_spawn(program, argv, os.environ, file_actions=actions, setsigdef=[signal.SIGPIPE])
    status = os.waitpid(pid, 0)[1]
    taken = time.perf_counter() - start
    os.close(null)
    assert status == 0, f"{argv}: {status}"
    return taken


def show(what: str, samples: Samples, base: str, only: str = "") -> None:
    for name, found in samples.items():
        if only and name != only:
            continue
        ratio = statistics.median(found) / statistics.median(samples[base])
        label = what if only else f"{what:<20} {'lowrt' if name == LOWRT else name}"
        print(f"  {label:<44} {milliseconds(found)}   {ratio:.2f}")


if __name__ == "__main__":
    main()

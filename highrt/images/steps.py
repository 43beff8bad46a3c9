"""The default way to execute RUN: a container of the low-level runtime on the build's root file system.

It is confined as a container is: namespaces of its own, the default seccomp profile, few capabilities; and it has no network but
loopback, so that a build step reaches nothing. Any runtime with runc's command line will do.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highrt import seccomp_default
from highrt.images.errors import BuildError
from highrt.images.rooted import RootedTree
from highrt.images.users import User, find_user
from strata.linux import mounts
from strata.telemetry import logs

log = logs.get("highrt.build")


@dataclass(frozen=True)
class StepMount:
    """Something mounted for one step. source: a path that nobody else can exchange, None for a tmpfs of `size` bytes."""

    target: str
    source: Path | None
    read_only: bool = False
    size: int = 0
    mode: int = 0o755


@dataclass(frozen=True)
class Step:
    """One RUN. env: KEY=VALUE texts; user: as USER has it; output: gets each line that is printed."""

    rootfs: Path
    argv: Sequence[str]
    env: Sequence[str] = ()
    cwd: str = "/"
    user: str = ""
    output: Callable[[str], None] = print
    mounts: Sequence[StepMount] = ()


RunStep = Callable[[Step], Awaitable[int]]
"""Executes a step, and returns its exit code."""

_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
_MASKED = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
]
_RUNTIME = "runtime"
"""A file in a bundle that names the command and the container, for those who clean up."""
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def runtime_step(*, runtime: str = "lowrt", folder: Path | None = None, cgroup_parent: str = "") -> RunStep:
    """A RunStep that runs containers with a command that has runc's options.

    folder: where bundles are made, for `drop_steps` to find them after a crash (a temporary folder by default). cgroup_parent:
    below which the step's cgroup is made, the runtime's choice by default.
    """

    async def run(step: Step) -> int:
        command = _command(runtime)
        with RootedTree(str(step.rootfs)) as tree:
            who = find_user(tree, step.user)
        name = f"build-{uuid.uuid4().hex[:12]}"
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        bundle = Path(tempfile.mkdtemp(prefix="highrt-build-", dir=folder))
        try:
            (bundle / _RUNTIME).write_text(f"{command}\n{name}")
            spec = _spec(step, who)
            if cgroup_parent:
                spec["linux"]["cgroupsPath"] = f"{cgroup_parent}/{name}"
            (bundle / "config.json").write_text(json.dumps(spec))
            with RootedTree(str(step.rootfs)) as tree:
                made = _missing(tree, [mount["destination"] for mount in spec["mounts"]])
                code = await _run(command, bundle, name, step.output)
                for path in reversed(made):
                    tree.remove_stub(path)
            return code
        finally:
            shutil.rmtree(bundle, ignore_errors=True)

    return run


def _missing(tree: RootedTree, targets: Sequence[str]) -> list[str]:
    """What the runtime will have to make in a root to mount on, parents first; a layer must not have it because of that.

    It is looked for, and taken away again, inside the root and without following a link: a step may have put one in its place
    (CVE-2024-23652).
    """
    found: dict[str, None] = {}
    for target in targets:
        parts = target.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if tree.stat(path, follow=True) is None and tree.stat(path) is None:
                found[path] = None
    return [*found]


async def drop_steps(folder: Path) -> None:
    """Ends the containers of steps whose daemon was killed, and removes their bundles and what was mounted there."""
    for bundle in folder.iterdir() if folder.is_dir() else ():
        try:
            command, name = (bundle / _RUNTIME).read_text().split("\n")
            await _delete([command, "--root", str(bundle / "state")], name)
        except (OSError, ValueError) as error:
            # It was killed before the container could be begun, or the runtime is gone.
            log.info("nothing to end for a build's step", bundle=str(bundle), error=str(error))
    mounts.umount_below(str(folder.resolve()))
    for bundle in folder.iterdir() if folder.is_dir() else ():
        shutil.rmtree(bundle, ignore_errors=True)


def _command(runtime: str) -> str:
    beside = Path(sys.executable).with_name(runtime)
    found = str(beside) if beside.exists() else shutil.which(runtime)
    if not found:
        raise BuildError(f"RUN needs the runtime {runtime!r}, which is not on the PATH: run scripts/setup")
    return found


async def _run(command: str, bundle: Path, name: str, output: Callable[[str], None]) -> int:
    base = [command, "--root", str(bundle / "state")]
    process = await asyncio.create_subprocess_exec(
        *base,
        "run",
        "--bundle",
        str(bundle),
        name,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        rest = b""
        while data := await process.stdout.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                output(line.decode(errors="replace"))
        if rest:
            output(rest.decode(errors="replace"))
        return await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        # A step that was cut off, or a runtime that died, must leave no container.
        await asyncio.shield(_delete(base, name))
        await asyncio.shield(process.wait())


async def _delete(base: list[str], name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *base, "delete", "--force", name, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await process.wait()


def _spec(step: Step, user: User) -> dict[str, Any]:
    def mount(target: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": source or kind, "options": [*options]}

    def extra(wanted: StepMount) -> dict[str, Any]:
        if wanted.source is None:
            size = [f"size={wanted.size}"] if wanted.size else []
            return mount(wanted.target, "tmpfs", "nosuid", "nodev", f"mode={wanted.mode:o}", *size)
        access = "ro" if wanted.read_only else "rw"
        return mount(wanted.target, "bind", "bind", "nosuid", "nodev", access, source=str(wanted.source))

    env = [*step.env]
    if not any(item.startswith("HOME=") for item in env):
        env.append(f"HOME={user.home}")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
            "args": list(step.argv),
            "env": env,
            "cwd": step.cwd or "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "noNewPrivileges": False,
        },
        "root": {"path": os.path.abspath(step.rootfs), "readonly": False},
        "hostname": "build",
        "mounts": [
            mount("/proc", "proc", "nosuid", "noexec", "nodev"),
            mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k", source="shm"),
            mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            *(extra(wanted) for wanted in sorted(step.mounts, key=lambda wanted: wanted.target.count("/"))),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
            "seccomp": seccomp_default.profile(_CAPABILITIES),
        },
    }

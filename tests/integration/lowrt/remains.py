"""What is left of a container that can be seen from outside."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = "STRATA_TEST_CONTAINER"
"""An environment variable of the commands and of the container's program; its value is the container's ID."""


def mark(runtime: Any) -> dict[str, str]:
    """Lets the container's processes be found; returns the environment for the commands."""
    runtime.config["process"]["env"].append(f"{MARK}={runtime.id}")
    return {**os.environ, MARK: runtime.id}


def of(runtime: Any) -> list[str]:
    """Files in the runtime's root folder, cgroups, mounts and processes (zombies too), a line each."""
    return [*_files(runtime.root), *_cgroups(runtime.cgroup), *_mounts(runtime.root.parent), *_processes(runtime)]


def _files(root: Path) -> Iterator[str]:
    for path in root.rglob("*") if root.exists() else ():
        if root / ".seccomp" not in (path, *path.parents):  # compiled filters, for all containers
            yield f"file {path}"


def _cgroups(path: str) -> Iterator[str]:
    name = os.path.basename(path)
    for folder, _, _ in os.walk("/sys/fs/cgroup"):
        if os.path.basename(folder) == name:
            yield f"cgroup {folder}"


def _mounts(folder: Path) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f"{folder}/" in line:
            yield f"mount {line}"


def _processes(runtime: Any) -> Iterator[str]:
    for entry in os.listdir("/proc"):
        try:
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            groups = Path(f"/proc/{entry}/cgroup").read_text()
            marked = f"{MARK}={runtime.id}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            if marked or f"{runtime.cgroup}\n" in groups or f"{runtime.cgroup}/" in groups:
                yield f"process {entry} {Path(f'/proc/{entry}/stat').read_text()[:80]} {groups.splitlines()[0]}"
        except OSError:
            continue

"""What has hurt users of container runtimes for years, each a test."""

import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Lane, wait_for
from tests.interop.lowrt.conftest import shared_mount


def test_the_hosts_mounts_survive_a_container_whose_root_propagates(runtime: Any, tmp_path: Path) -> None:
    """The old root is let go of inside the container: where it is shared, the host must not lose its mounts by that."""
    with shared_mount(tmp_path / "outer") as outer:
        (outer / "inner").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "inner", outer / "inner"], check=True)
        (outer / "inner/file").touch()
        runtime.config["linux"]["rootfsPropagation"] = "shared"
        runtime.shell("true")
        assert (outer / "inner/file").exists()


LOADER = b"/lib64/ld-nowhere.so.2"


def elf(machine: int, *, loader: bytes = b"") -> bytes:
    """The first bytes of a 64-bit program: its header and, with a loader, one program header that names it."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    kind = 3 if loader else 0
    name = loader + b"\0"
    return header + struct.pack("<IIQQQQQQ", kind, 4, 120, 0, 0, len(name), len(name), 1) + name


@pytest.mark.parametrize(
    ("program", "kernels_word", "reason"),
    [
        (b"#!/bin/nowhere -x\n", "no such file or directory", "its interpreter /bin/nowhere (of its first line)"),
        (b"#! /bin/sh\r\necho\r\n", "no such file or directory", r'CRLF), so that its interpreter is "/bin/sh\r"'),
        (b"\xef\xbb\xbf#!/bin/sh\necho\n", "exec format error", "byte order mark"),
        (b"echo\n", "exec format error", "names no interpreter in its first line"),
        (b"", "exec format error", "the file is empty"),
        (elf(183 if os.uname().machine == "x86_64" else 62), "exec format error", "and this machine is"),
        (elf(62, loader=LOADER), "no such file or directory", f"its loader {LOADER.decode()} is not in the container"),
        (b"#!/etc/passwd\n", "permission denied", "its interpreter /etc/passwd (of its first line)"),
    ],
)
def test_a_program_that_the_kernel_does_not_take_is_explained(
    runtime: Any, program: bytes, kernels_word: str, reason: str
) -> None:
    """moby 40859, runc 1773. The words before the explanation are runc's, which callers look for."""
    file = runtime.bundle / "rootfs/bin/program"
    file.write_bytes(program)
    file.chmod(0o755)
    done = runtime.run("program")
    assert done.returncode == 1
    assert f"exec /bin/program: {kernels_word}: " in done.stderr
    assert reason in done.stderr
    runtime.start("sleep", "100")
    entered = runtime.call("exec", runtime.id, "/bin/program")
    assert entered.returncode == 255
    assert f"exec /bin/program: {kernels_word}: " in entered.stderr
    assert reason in entered.stderr


def test_a_program_that_is_not_found_is_named_with_what_cannot_be_seen(runtime: Any) -> None:
    assert 'exec: "true\\r": executable file not found in $PATH' in runtime.run("true\r").stderr


def test_exec_follows_the_first_process_where_the_containers_group_takes_nobody(runtime: Any, v2_lane: Lane) -> None:
    """crun 81, youki 3437: beside groups of its own that a container has given controllers to, its top group has no process."""
    own = "cd /sys/fs/cgroup; mkdir inner; echo $$ > inner/cgroup.procs"
    given = "read controller rest < cgroup.controllers; echo +$controller > cgroup.subtree_control"
    kinds = runtime.config["linux"]["namespaces"]
    kinds[:] = [entry for entry in kinds if entry["type"] != "cgroup"] + [{"type": "cgroup"}]
    for mount in runtime.config["mounts"]:
        if mount["type"] == "cgroup":
            mount["options"].remove("ro")
    runtime.config["process"]["args"] = ["sh", "-ec", f"{own}; {given}; while :; do sleep 0.1; done"]
    runtime.write()

    def call(*argv: Any, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        command = [*v2_lane.prefix, runtime.launcher, "--root", runtime.root, *argv]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stdout, text=True, timeout=30, check=False)

    try:
        made = call("run", "--detach", "--bundle", runtime.bundle, runtime.id, stdout=subprocess.DEVNULL)
        assert made.returncode == 0
        # Not by an exec: its process would be in the way of the container's own.
        control = v2_lane.tree / runtime.cgroup[1:] / "cgroup.subtree_control"
        wait_for(lambda: control.read_text().strip(), what="controllers")
        assert call("exec", runtime.id, "cat", "/proc/self/cgroup").stdout.endswith("0::/inner\n")
    finally:
        call("delete", "--force", runtime.id)

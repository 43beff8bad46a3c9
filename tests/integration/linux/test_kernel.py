"""strata.linux against the kernel: cgroups of this machine and of a private v2 tree, pinned namespaces, leftovers."""

import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from strata.linux import cgroups, descriptors, mounts, namespaces
from tests.conftest import wait_for

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def group() -> Iterator[cgroups.Cgroup]:
    made = cgroups.open_cgroup(f"/strata-test-{uuid.uuid4().hex[:8]}")
    made.create()
    yield made
    made.kill()
    made.remove()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def test_a_group_holds_freezes_and_kills_its_processes(group: cgroups.Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    group.add(sleeper.pid)
    assert group.pids() == [sleeper.pid]
    assert cgroups.own_path(sleeper.pid) == group.path
    group.freeze()
    assert group.frozen()
    group.thaw()
    assert not group.frozen()
    group.kill()
    assert sleeper.wait(5) == -signal.SIGKILL
    group.remove()
    assert not group.exists()
    assert group.pids() == []


def test_a_frozen_group_is_killed_too(group: cgroups.Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    group.add(sleeper.pid)
    group.freeze()
    group.kill()
    assert sleeper.wait(5) == -signal.SIGKILL


def test_groups_below_are_found_and_removed(group: cgroups.Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    inner = cgroups.open_cgroup(f"{group.path}/inner/most")
    inner.create()
    inner.add(sleeper.pid)
    assert group.pids() == []
    assert group.pids(recursive=True) == [sleeper.pid]
    group.kill()
    sleeper.wait(5)
    group.remove()
    assert not inner.exists()


def test_usage_is_counted(group: cgroups.Cgroup) -> None:
    code = """if True:
        import sys
        sys.stdin.read(1)
        memory, work = bytearray(20 << 20), [i * i for i in range(10**6)]
        print("done", flush=True)
        sys.stdin.read()
    """
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None
    assert worker.stdout is not None
    group.add(worker.pid)
    worker.stdin.write(b"x")
    worker.stdin.flush()
    worker.stdout.readline()
    stats = group.stats()
    worker.stdin.close()
    worker.wait()
    assert stats.cpu_usage_ns > 1_000_000
    assert stats.memory_usage_bytes > 20 << 20
    assert stats.pids == 1


def test_a_limit_that_the_kernel_refuses_names_the_file(group: cgroups.Cgroup) -> None:
    with pytest.raises(OSError, match=r"cpuset\.cpus"):
        group.apply({"cpu": {"cpus": "4000-5000"}})


def test_namespaces_live_as_long_as_they_are_pinned(tmp_path: Path) -> None:
    targets = {kind: str(tmp_path / kind) for kind in ("network", "ipc", "uts")}
    namespaces.pin_new(targets, {"net.ipv4.ip_forward": "1"}, "pinned")
    try:
        entered = ["nsenter", *(f"--{o}={targets[k]}" for o, k in (("net", "network"), ("ipc", "ipc"), ("uts", "uts")))]
        shown = subprocess.run(
            [*entered, "sh", "-c", "hostname; cat /proc/sys/net/ipv4/ip_forward; ip -o link show lo"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert shown.startswith("pinned\n1\n")
        assert "UP" in shown
    finally:
        for target in targets.values():
            namespaces.unpin(target)
    assert not any(mount.target.startswith(str(tmp_path)) for mount in mounts.mountinfo())
    assert list(tmp_path.iterdir()) == []
    namespaces.unpin(targets["uts"])  # again does nothing


def test_pinning_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"sysctl net\.nosuch"):
        namespaces.pin_new({"network": str(tmp_path / "net")}, {"net.nosuch": "1"})
    assert not any(mount.target.startswith(str(tmp_path)) for mount in mounts.mountinfo())


def test_mounts_below_a_folder_go_together(tmp_path: Path) -> None:
    for name in ("one", "one/two"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        mounts.mount("tmpfs", str(folder), "tmpfs", 0)
        if name == "one":
            (folder / "two").mkdir()
    mounts.umount_below(str(tmp_path))
    assert not any(mount.target.startswith(str(tmp_path)) for mount in mounts.mountinfo())


def in_private_v2(script: str) -> str:
    """Runs Python in a mount namespace where /sys/fs/cgroup is one v2 tree, as on a machine of today."""
    prelude = 'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", prelude, sys.executable, textwrap.dedent(script)],
        capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_v2_groups_freeze_kill_and_guard_devices() -> None:
    name = f"/strata-test-{uuid.uuid4().hex[:8]}"
    printed = in_private_v2(f"""
        import os, subprocess
        from strata.linux import cgroups
        assert cgroups.mode() == "v2"
        group = cgroups.open_cgroup("{name}/inner")
        group.create()
        deny = {{"allow": False, "access": "rwm"}}
        zero = {{"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"}}
        group.apply({{"devices": [deny, zero]}})
        code = "import sys; sys.stdin.read(1); open('/dev/zero').close(); open('/dev/urandom')"
        child = subprocess.Popen(["python3", "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        group.add(child.pid)
        _, error = child.communicate("x")
        print("denied" if "PermissionError" in error and "urandom" in error else error)
        sleeper = subprocess.Popen(["sleep", "100"])
        group.add(sleeper.pid)
        group.freeze(); print(group.frozen()); group.thaw(); print(group.frozen())
        group.freeze(); group.kill(); print(sleeper.wait(5))
        outer = cgroups.open_cgroup("{name}")
        outer.remove(); print(outer.exists())
    """)
    assert printed.split() == ["denied", "True", "False", "-9", "False"]


def test_lowrt_runs_on_a_v2_machine(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "rootfs/bin").mkdir(parents=True)
    (bundle / "rootfs/bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (bundle / "rootfs/bin/busybox").chmod(0o755)
    printed = in_private_v2(f"""
        import json, subprocess
        lowrt = ["{REPOSITORY}/lowrt/launcher", "--root", "{tmp_path}/state"]
        subprocess.run([*lowrt, "spec", "--bundle", "{bundle}"], check=True)
        config = json.load(open("{bundle}/config.json"))
        config["process"].update(terminal=False, args=["/bin/busybox", "sh", "-c",
            "busybox cat /proc/self/cgroup; busybox ls /sys/fs/cgroup; busybox cat /dev/kmsg || echo no"])
        json.dump(config, open("{bundle}/config.json", "w"))
        subprocess.run([*lowrt, "run", "--bundle", "{bundle}", "t"], check=True, stdin=subprocess.DEVNULL)
        assert subprocess.run([*lowrt, "list", "-q"], check=True, capture_output=True).stdout == b""
    """)
    assert "0::/\n" in printed  # in its own cgroup namespace it is in the root
    assert "cgroup.procs" in printed
    assert not list(Path("/sys/fs/cgroup").glob("*/t"))


def test_a_container_that_shares_no_pid_namespace_is_killed_as_a_whole(group: cgroups.Cgroup) -> None:
    script = "sleep 300 & sleep 301 & wait"
    shell = subprocess.Popen(["sh", "-c", f"echo $$ >/dev/null; read go; {script}"], stdin=subprocess.PIPE)
    assert shell.stdin is not None
    group.add(shell.pid)
    shell.stdin.write(b"go\n")
    shell.stdin.flush()
    wait_for(lambda: len(group.pids()) == 3, what="the shell's children")
    pids = group.pids()
    group.kill()
    shell.wait(5)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids if pid != shell.pid), what="the children to end")


def test_last_words_are_heard_of_one_who_did_not_listen() -> None:
    here, there = descriptors.pair()
    here.send(b"not read")
    there.send(b"last words")
    there.close()
    assert descriptors.receive(here) == (b"last words", [])
    assert descriptors.receive(here) == (b"", [])
    here.close()

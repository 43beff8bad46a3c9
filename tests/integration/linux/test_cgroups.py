"""strata.linux.cgroups against the kernel: in the machine's own hierarchies, and in its v2 tree alone."""

import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups
from strata.linux.cgroups import ebpf
from strata.linux.cgroups.v2 import CgroupV2
from tests.conftest import Lane, wait_for

DENY_ALL = {"allow": False, "access": "rwm"}
ZERO = {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"}
RANDOM = {"allow": True, "type": "c", "major": 1, "minor": 9, "access": "rw"}


@pytest.fixture
def name() -> str:
    return f"/strata-test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["of the machine", "v2 alone"])
def group(request: Any, name: str, v2_lane: Lane) -> Iterator[cgroups.Cgroup]:
    made = cgroups.open_cgroup(name) if request.param == "of the machine" else CgroupV2(f"{v2_lane.tree}{name}")
    made.create()
    yield made
    made.destroy()


@pytest.fixture
def v2_group(name: str, v2_lane: Lane) -> Iterator[CgroupV2]:
    made = CgroupV2(f"{v2_lane.tree}{name}")
    made.create()
    yield made
    made.destroy()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def below(group: cgroups.Cgroup, path: str) -> cgroups.Cgroup:
    return cgroups.restore({"paths": {name: f"{folder}/{path}" for name, folder in group.paths.items()}})


def test_a_group_holds_freezes_and_kills_its_processes(group: cgroups.Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    group.add(sleeper.pid)
    assert group.pids() == [sleeper.pid]
    group.freeze()
    assert group.frozen()
    group.thaw()
    assert not group.frozen()
    group.kill()
    assert sleeper.wait(5) == -signal.SIGKILL
    group.remove()
    assert not group.exists()
    assert group.pids() == []


def test_a_process_knows_its_group(name: str, sleeper: subprocess.Popen[bytes]) -> None:
    group = cgroups.open_cgroup(name)
    group.create()
    try:
        group.add(sleeper.pid)
        assert cgroups.own_path(sleeper.pid) == name
    finally:
        group.destroy()


def test_a_frozen_group_is_killed_too(group: cgroups.Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    group.add(sleeper.pid)
    group.freeze()
    group.kill()
    assert sleeper.wait(5) == -signal.SIGKILL


def test_a_group_that_forks_all_the_time_freezes(group: cgroups.Cgroup) -> None:
    """cgroup v1 stays in FREEZING then, until it is asked again."""
    storm = subprocess.Popen(["sh", "-c", "read go; while :; do /bin/true & done"], stdin=subprocess.PIPE)
    assert storm.stdin is not None
    try:
        group.add(storm.pid)
        storm.stdin.write(b"go\n")
        storm.stdin.flush()
        wait_for(lambda: len(group.pids()) > 1, what="the shell's children")
        for _ in range(10):
            group.freeze()
            assert group.frozen()
            group.thaw()
    finally:
        group.kill()
        storm.wait(5)
        storm.stdin.close()


def test_one_that_stands_still_with_its_parent_was_not_frozen_itself(group: cgroups.Cgroup) -> None:
    inner = below(group, "inner")
    inner.create()
    group.freeze()
    assert (group.frozen(), inner.frozen()) == (True, False)
    group.thaw()


def test_groups_below_are_found_and_removed(group: cgroups.Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    inner = below(group, "inner/most")
    inner.create()
    inner.add(sleeper.pid)
    assert group.pids() == []
    assert group.pids(recursive=True) == [sleeper.pid]
    group.destroy()
    sleeper.wait(5)
    assert not inner.exists()
    assert not group.exists()


def test_what_was_made_for_a_group_is_taken_back(name: str, v2_lane: Lane) -> None:
    for group in (cgroups.open_cgroup(f"{name}/a/b"), CgroupV2(f"{v2_lane.tree}{name}-2/a/b")):
        group.create()
        assert group.exists()
        group.undo()
        assert not any(os.path.exists(os.path.dirname(os.path.dirname(folder))) for folder in group.folders())


def test_a_process_is_moved_into_groups_below(group: cgroups.Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    below(group, "in").create()
    group.add(sleeper.pid, {"": "in"})
    assert group.pids() == []
    assert group.pids(recursive=True) == [sleeper.pid]
    with pytest.raises(OSError, match=rf'failed to write "{sleeper.pid}": write .*/nosuch/cgroup.procs: no such file'):
        group.add(sleeper.pid, {"": "nosuch"})


def test_usage_is_counted(name: str) -> None:
    code = """if True:
        import sys
        sys.stdin.read(1)
        memory, work = bytearray(20 << 20), [i * i for i in range(10**6)]
        print("done", flush=True)
        sys.stdin.read()
    """
    group = cgroups.open_cgroup(name)
    group.create()
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        group.add(worker.pid)
        worker.stdin.write(b"x")
        worker.stdin.flush()
        worker.stdout.readline()
        stats, usage = group.stats(), group.usage()
        worker.stdin.close()
        worker.wait()
    finally:
        group.destroy()
    assert stats.cpu_usage_ns > 1_000_000
    assert stats.memory_usage_bytes > 20 << 20
    assert stats.pids == 1
    assert usage["cpu"]["usage"]["total"] > 1_000_000
    assert usage["memory"]["usage"]["usage"] > 20 << 20
    assert usage["memory"]["usage"]["limit"] > 2**60
    assert usage["memory"]["raw"]
    assert usage["pids"] == {"current": 1}


def test_a_limit_that_the_kernel_refuses_names_the_file_and_the_value(group: cgroups.Cgroup) -> None:
    with pytest.raises(OSError, match=r'failed to write "4000-5000": write .*/cpuset\.cpus: '):
        group.apply({"cpu": {"cpus": "4000-5000"}})


def test_a_kill_for_want_of_memory_is_told(name: str) -> None:
    group = cgroups.open_cgroup(name)
    group.create()
    hungry = subprocess.Popen([sys.executable, "-c", "input(); bytearray(64 << 20)"], stdin=subprocess.PIPE)
    assert hungry.stdin is not None
    try:
        group.apply({"memory": {"limit": 16 << 20}})
        watch = group.watch()
        group.add(hungry.pid)
        assert watch.read() == (False, False)
        hungry.stdin.write(b"\n")
        hungry.stdin.close()
        assert select.select([watch.descriptor], [], [], 10)[0]
        assert hungry.wait(10) == -signal.SIGKILL
        told = wait_for(lambda: [found for found in [watch.read()] if any(found)], what="the kill to be told")
        assert group.oom_kill_count() == 1
        group.remove()
        if not told[0][1]:  # v2 may have told already that the group is empty
            assert select.select([watch.descriptor], [], [], 10)[0]
            assert watch.read() == (False, True)
        watch.close()
    finally:
        hungry.kill()
        group.destroy()


# --- devices


def opens(group: cgroups.Cgroup, *paths: str) -> list[bool]:
    """Whether a process in the group can open each of them."""
    script = "read go; for path; do if true <$path; then echo yes; else echo no; fi; done"
    pipe = subprocess.PIPE
    child = subprocess.Popen(["sh", "-c", script, "sh", *paths], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    group.add(child.pid)
    printed, _ = child.communicate("go\n")
    return [line == "yes" for line in printed.split()]


def test_device_rules_are_replaced_by_new_ones(group: cgroups.Cgroup) -> None:
    group.apply({"devices": [DENY_ALL, ZERO, RANDOM]})
    assert opens(group, "/dev/zero", "/dev/urandom", "/dev/full") == [True, True, False]
    group.apply({"devices": [DENY_ALL, RANDOM]})
    assert opens(group, "/dev/zero", "/dev/urandom", "/dev/full") == [False, True, False]
    group.apply({"devices": [{"allow": True, "access": "rwm"}, {**ZERO, "allow": False}]})
    assert opens(group, "/dev/zero", "/dev/urandom", "/dev/full") == [False, True, True]
    group.apply({"memory": {}})  # says nothing of devices
    assert opens(group, "/dev/zero", "/dev/full") == [False, True]


def test_what_stays_allowed_is_not_denied_for_a_moment(group: cgroups.Cgroup, tmp_path: Path) -> None:
    group.apply({"devices": [DENY_ALL, ZERO]})
    script = "read go; while [ ! -e $0/stop ]; do true </dev/zero || exit 1; echo >$0/runs; done"
    reader = subprocess.Popen(["sh", "-c", script, tmp_path], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert reader.stdin is not None
    group.add(reader.pid)
    reader.stdin.write(b"go\n")
    reader.stdin.flush()
    wait_for((tmp_path / "runs").exists, what="the reader's first round")
    for turn in range(50):
        group.apply({"devices": [DENY_ALL, ZERO, *([RANDOM] if turn % 2 else [])]})
    (tmp_path / "stop").touch()
    _, error = reader.communicate()
    assert (reader.returncode, error) == (0, b"")


def test_a_v2_group_never_has_two_device_programs(v2_group: CgroupV2) -> None:
    for rules in ([DENY_ALL, ZERO], [DENY_ALL], [DENY_ALL, RANDOM]):
        v2_group.apply({"devices": rules})
        folder = os.open(v2_group.folders()[0], os.O_RDONLY)
        programs = ebpf._attached(folder)
        os.close(folder)
        for program in programs:
            os.close(program)
        assert len(programs) == 1


# --- v2's own


def test_below_threads_a_group_is_made_of_threads(v2_group: CgroupV2, sleeper: subprocess.Popen[bytes]) -> None:
    outer = Path(v2_group.folders()[0])
    for inner in ("one", "two"):
        (outer / inner).mkdir()
    (outer / "one/cgroup.type").write_text("threaded")  # so the outer one is the root of a group of threads
    plain = below(v2_group, "two")
    with pytest.raises(OSError, match=r'cannot enter cgroupv2 ".*/two" with domain controllers -- it is in an invalid state'):
        plain.create({"memory": {"limit": 2**30}})
    plain.create({"pids": {"limit": 5}})
    assert (outer / "two/cgroup.type").read_text() == "threaded\n"
    # A threaded group has no list of processes, and is killed nevertheless.
    v2_group.add(sleeper.pid)
    (outer / "two/cgroup.threads").write_text(str(sleeper.pid))
    assert v2_group.pids(recursive=True) == [sleeper.pid]
    v2_group.kill()
    assert sleeper.wait(5) == -signal.SIGKILL


def test_who_cannot_be_added_to_a_group_follows_its_process(v2_group: CgroupV2, sleeper: subprocess.Popen[bytes]) -> None:
    other = subprocess.Popen(["sleep", "100"])
    try:
        inner = below(v2_group, "inner")
        inner.create()
        inner.add(sleeper.pid)
        elsewhere = below(v2_group, "gone")
        elsewhere.follow(other.pid, sleeper.pid)
        assert inner.pids() == sorted([sleeper.pid, other.pid])
        with pytest.raises(OSError, match=r"/gone/cgroup.procs: no such file"):
            elsewhere.follow(other.pid, sleeper.pid, {"": "/"})
    finally:
        other.kill()
        other.wait()


def test_a_group_is_given_to_a_user(v2_group: CgroupV2) -> None:
    v2_group.delegate(1234)
    folder = Path(v2_group.folders()[0])
    owned = {path.name for path in (folder, *folder.iterdir()) if path.stat().st_uid == 1234}
    assert {folder.name, "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} <= owned
    assert "cgroup.freeze" not in owned


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"unified": {"a/b": "1"}}, "must be a file name"),
        ({"unified": {"nodot": "1"}}, "must be in the form CONTROLLER.PARAMETER"),
        ({"unified": {"nosuch.max": "1"}}, 'controller "nosuch" not available'),
        ({"unified": {"cgroup.nosuch": "1"}}, 'unable to set unified resource "cgroup.nosuch"'),
        ({"memory": {"swappiness": 10}}, "memory.swappiness: not supported on cgroup v2"),
        ({"memory": {"disableOOMKiller": True}}, "memory.disableOOMKiller: not supported"),
        ({"cpu": {"realtimeRuntime": 10}}, "cpu.realtimeRuntime: not supported"),
        ({"network": {"classID": 1}}, "network class and priorities: not supported"),
        ({"blockIO": {"leafWeight": 10}}, "blockIO.leafWeight: not supported"),
        ({"rdma": {"mlx0": {"hcaHandles": 1}}}, 'write .*/rdma.max: no such file|failed to write "mlx0 hca_handle=1"'),
    ],
)
def test_what_v2_cannot_do_is_refused_by_name(v2_group: CgroupV2, resources: dict[str, Any], message: str) -> None:
    with pytest.raises(OSError, match=message):
        v2_group.apply(resources)


def test_unified_files_are_written_line_by_line(v2_group: CgroupV2) -> None:
    v2_group.apply({"unified": {"cgroup.max.depth": "4", "cgroup.max.descendants": "9\n7"}})
    folder = Path(v2_group.folders()[0])
    assert (folder / "cgroup.max.depth").read_text() == "4\n"
    assert (folder / "cgroup.max.descendants").read_text() == "7\n"


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
    shell.stdin.close()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids if pid != shell.pid), what="the children to end")


def test_the_machines_controllers_are_those_of_its_groups(name: str) -> None:
    group = cgroups.open_cgroup(name)
    group.create()
    try:
        for controller, file in (("pids", "pids.current"), ("memory", "memory.stat"), ("no-such", "no-such.max")):
            assert cgroups.has(controller) == any(Path(folder, file).exists() for folder in group.folders())
    finally:
        group.destroy()

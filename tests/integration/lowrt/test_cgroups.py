"""Control groups of lowrt's containers: on the machine as it is, and with cgroup v2 alone."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups
from strata.linux.cgroups.v2 import CgroupV2
from tests.conftest import Lane, wait_for
from tests.integration.lowrt.conftest import LOWRT, Runtime

ROOT = Path("/sys/fs/cgroup")
MIB = 1 << 20
SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
on_v1 = pytest.mark.skipif((ROOT / "cgroup.controllers").exists(), reason="this machine has no cgroup v1")
on_v2 = pytest.mark.skipif(not (ROOT / "cgroup.controllers").exists(), reason="the v2 controllers of this machine are v1's")


@pytest.fixture(params=["as the machine is", "v2 alone"])
def either(request: Any, runtime: Runtime, v2_lane: Lane) -> Iterator[Runtime]:
    if request.param == "v2 alone":
        runtime.prefix = v2_lane.prefix
    yield runtime
    runtime.clean()  # through the prefix, before the lane goes


@pytest.fixture
def v2(runtime: Runtime, v2_lane: Lane) -> Iterator[Runtime]:
    runtime.prefix = v2_lane.prefix
    yield runtime
    runtime.clean()


def group(runtime: Runtime, lane: Lane) -> cgroups.Cgroup:
    """The container's, as this process sees it."""
    alone = bool(runtime.prefix) or cgroups.mode() == "v2"
    return CgroupV2(f"{lane.tree}{runtime.cgroup}") if alone else cgroups.open_cgroup(runtime.cgroup)


def value(runtime: Runtime, controller: str, name: str) -> str:
    return (ROOT / controller / runtime.cgroup[1:] / name).read_text().strip()


def with_cgroup_namespace(runtime: Runtime, *, own: bool) -> None:
    """`spec` asks for one of its own on v2 alone."""
    linux = runtime.config["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "cgroup"]
    linux["namespaces"] += [{"type": "cgroup"}] if own else []


def limits(runtime: Runtime) -> dict[str, Any]:
    found: dict[str, Any] = runtime.config["linux"]["resources"]
    return found


# --- where a container is


def test_a_container_is_in_its_group_and_its_group_goes_with_it(either: Runtime, v2_lane: Lane) -> None:
    with_cgroup_namespace(either, own=True)
    either.config["linux"]["cgroupsPath"] += "/below/../one"  # `..` stays inside
    either.start("sleep", "100")
    either.config["linux"]["cgroupsPath"] = either.cgroup.replace("/below/..", "")
    own = group(either, v2_lane)
    pid = either.state()["pid"]
    assert own.pids() == [pid]
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}
    assert either.cgroup in paths.values()
    # In its own cgroup namespace it is in the root of each hierarchy.
    seen = either.call("exec", either.id, "cat", "/proc/self/cgroup", check=True).stdout
    assert "0::/\n" in seen
    either.call("delete", "--force", either.id, check=True)
    assert not own.exists()
    for folder in own.folders():
        os.rmdir(os.path.dirname(folder))  # of the parents nobody knows whether they are still wanted


def test_a_container_is_below_its_caller_in_each_hierarchy(runtime: Runtime) -> None:
    """As runc places it where no path is given, or a relative one."""
    if cgroups.mode() == "v2":
        pytest.skip("there is one hierarchy here; see the next test")
    callers = {name: cgroups.open_cgroup(f"/strata-test-{runtime.id}-{name}") for name in ("memory", "pids")}
    folders = {name: f"{ROOT}/{name}/strata-test-{runtime.id}-{name}" for name in callers}
    for folder in folders.values():
        os.mkdir(folder)
    try:
        for given in (None, "relative/../one"):
            runtime.config["linux"]["cgroupsPath"] = given
            runtime.config["process"]["args"] = ["cat", "/proc/self/cgroup"]
            with_cgroup_namespace(runtime, own=False)
            runtime.write()
            joins = "; ".join(f"echo $$ >{folder}/cgroup.procs" for folder in folders.values())
            command = [LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
            done = subprocess.run(
                ["sh", "-ec", f'{joins}; exec "$@"', "sh", *command], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            found = dict(line.split(":")[1:] for line in done.stdout.splitlines())
            name = "one" if given else runtime.id
            for controller in callers:
                assert found[controller] == f"/strata-test-{runtime.id}-{controller}/{name}"
            assert found["cpu"] == f"/{name}"
            assert not any(Path(folder, name).exists() for folder in (*folders.values(), ROOT / "cpu"))
    finally:
        for folder in folders.values():
            os.rmdir(folder)


def test_on_v2_a_container_is_beside_its_caller(v2: Runtime, v2_lane: Lane) -> None:
    """A group with processes could not give controllers to one below it."""
    outer = v2_lane.tree / f"strata-test-{v2.id}"
    caller = outer / "caller"
    caller.mkdir(parents=True)
    try:
        del v2.config["linux"]["cgroupsPath"]
        v2.config["process"]["args"] = ["cat", "/proc/self/cgroup"]
        with_cgroup_namespace(v2, own=False)
        v2.write()
        command = [*v2.prefix, LOWRT, "--root", v2.root, "run", "--bundle", v2.bundle, v2.id]
        line = f'echo $$ >{caller}/cgroup.procs; exec "$@"'
        done = subprocess.run(["sh", "-ec", line, "sh", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"0::/strata-test-{v2.id}/{v2.id}\n" in done.stdout
        assert {path.name for path in outer.iterdir() if path.is_dir()} == {"caller"}
    finally:
        wait_for(lambda: not (caller / "cgroup.procs").read_text(), what="the caller to end")
        caller.rmdir()
        outer.rmdir()


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A group of the freezer's that is somebody else's."""
    folder = ROOT / f"freezer/strata-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    (folder / "freezer.state").write_text("THAWED")
    wait_for(lambda: not (folder / "cgroup.procs").read_text(), what="the group to be empty")
    folder.rmdir()


@on_v1
def test_a_container_that_was_moved_to_a_frozen_group_is_deleted_by_force(runtime: Runtime, foreign: Path) -> None:
    runtime.start("sh", "-c", "sleep 1000 & wait")
    processes = json.loads(runtime.call("ps", "--format", "json", runtime.id, check=True).stdout)
    assert len(processes) == 2
    for pid in processes:
        (foreign / "cgroup.procs").write_text(str(pid))
    (foreign / "freezer.state").write_text("FROZEN")
    runtime.call("delete", "--force", runtime.id, check=True)
    assert (foreign / "cgroup.procs").read_text() == ""
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in processes)


def test_a_group_that_is_in_use_or_frozen_is_refused(either: Runtime, v2_lane: Lane) -> None:
    own = group(either, v2_lane)
    own.create()
    sleeper = subprocess.Popen(["sleep", "100"])
    try:
        own.add(sleeper.pid)
        done = either.run("true")
        assert (done.returncode, "container's cgroup is not empty: 1 process(es) found" in done.stderr) == (1, True)
        sleeper.kill()
        sleeper.wait()
        own.freeze()
        done = either.run("true")
        assert (done.returncode, "container's cgroup unexpectedly frozen" in done.stderr) == (1, True)
        assert own.exists()  # it is somebody's
        own.thaw()
        assert either.run("true").returncode == 0
        assert not own.exists()
    finally:
        sleeper.kill()
        sleeper.wait()
        own.destroy()


def test_what_fails_takes_its_parents_back(either: Runtime, v2_lane: Lane) -> None:
    outer = either.cgroup
    either.config["linux"]["cgroupsPath"] += "/a/b"
    limits(either)["cpu"] = {"cpus": "4000"}
    done = either.run("true")
    assert done.returncode == 1
    assert 'unable to apply cgroup configuration: failed to write "4000": write /sys/fs/cgroup/' in done.stderr
    either.config["linux"]["cgroupsPath"] = outer
    assert not group(either, v2_lane).exists()


def test_the_mounts_show_the_containers_own_groups(either: Runtime) -> None:
    with_cgroup_namespace(either, own=False)
    alone = bool(either.prefix) or cgroups.mode() == "v2"
    place = either.cgroup if alone else ""  # v2's mount shows the whole tree
    printed = either.shell(
        f"cd /sys/fs/cgroup{place}; for f in . */; do [ ! -e $f/cgroup.procs ] || head -1 $f/cgroup.procs; done"
    )
    hierarchies = 1 if alone else len(set(cgroups.in_every_hierarchy("").values()))
    assert printed.split() == ["1"] * hierarchies  # in each, the group's first process is the container's


# --- limits


@on_v1
def test_limits_of_v1(runtime: Runtime) -> None:
    limits(runtime).update(
        memory={"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB, "swappiness": 7, "useHierarchy": True, "kernel": 5},
        cpu={"shares": 512, "quota": -1, "period": 50000, "burst": 0, "idle": 0, "cpus": "0", "mems": "0"},
        pids={"limit": -1},
    )
    runtime.start("sleep", "100")
    expected = {
        "memory": {"memory.limit_in_bytes": 64 * MIB, "memory.soft_limit_in_bytes": 32 * MIB,
                   "memory.memsw.limit_in_bytes": 96 * MIB, "memory.swappiness": 7},
        "cpu": {"cpu.shares": 512, "cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 50000, "cpu.idle": 0},
        "cpuset": {"cpuset.cpus": 0, "cpuset.mems": 0},
        "pids": {"pids.max": "max"},
    }  # fmt: skip
    for controller, files in expected.items():
        for name, number in files.items():
            assert (name, value(runtime, controller, name)) == (name, str(number))


def test_kernel_memory_is_ignored_with_a_warning(runtime: Runtime) -> None:
    limits(runtime)["memory"] = {"kernel": 5, "kernelTCP": 5}
    done = runtime.run("true")
    assert (done.returncode, done.stderr) == (0, "lowrt: warning: Kernel memory settings are ignored and will be removed\n")


@on_v1
def test_the_oom_killer_is_disabled(runtime: Runtime) -> None:
    limits(runtime)["memory"] = {"disableOOMKiller": True}
    runtime.start("sleep", "100")
    assert "oom_kill_disable 1" in value(runtime, "memory", "memory.oom_control")


@on_v1
def test_an_idle_container(runtime: Runtime) -> None:
    limits(runtime)["cpu"] = {"shares": 100, "idle": 1}
    runtime.start("sleep", "100")
    assert value(runtime, "cpu", "cpu.idle") == "1"
    runtime.call("update", "--cpu-period", "10000", runtime.id, check=True)
    assert value(runtime, "cpu", "cpu.idle") == "1"
    runtime.call("update", "--cpu-idle", "0", "--cpu-share", "200", runtime.id, check=True)
    assert (value(runtime, "cpu", "cpu.idle"), value(runtime, "cpu", "cpu.shares")) == ("0", "200")
    assert runtime.call("update", "--cpu-idle", "2", runtime.id).returncode == 1


@on_v1
def test_realtime_limits_change_in_the_order_that_the_kernel_takes(runtime: Runtime) -> None:
    """runc 4094: each of the two numbers is checked against the other one."""
    outer = cgroups.open_cgroup(runtime.cgroup)
    outer.create()
    for name in ("cpu.rt_period_us", "cpu.rt_runtime_us"):
        (ROOT / "cpu" / runtime.cgroup[1:] / name).write_text((ROOT / "cpu" / name).read_text())
    try:
        runtime.config["linux"]["cgroupsPath"] += "/inner"
        runtime.start("sleep", "100")
        for period, time_us in ((1000000, 500001), (800001, 500001), (10000, 3000), (100000, 20000)):
            flags = ["--cpu-rt-period", str(period), "--cpu-rt-runtime", str(time_us)]
            runtime.call("update", *flags, runtime.id, check=True)
            found = (value(runtime, "cpu", "cpu.rt_period_us"), value(runtime, "cpu", "cpu.rt_runtime_us"))
            assert found == (str(period), str(time_us))
    finally:
        runtime.clean()
        outer.destroy()


@on_v1
def test_shares_that_the_kernel_bends_are_refused(runtime: Runtime) -> None:
    limits(runtime)["cpu"] = {"shares": 1}
    assert "the minimum allowed cpu-shares is 2" in runtime.run("true").stderr
    limits(runtime)["cpu"] = {"shares": 1 << 20}
    assert "the maximum allowed cpu-shares is 262144" in runtime.run("true").stderr


@on_v1
def test_block_devices_are_throttled(runtime: Runtime) -> None:
    major, minor = map(int, Path("/sys/block/loop0/dev").read_text().split(":"))
    device = {"major": major, "minor": minor}
    limits(runtime)["blockIO"] = {
        "weight": 333, "weightDevice": [],
        "throttleReadBpsDevice": [{**device, "rate": 485760}, {**device, "rate": 485761}],
    }  # fmt: skip
    runtime.start("sleep", "100")
    assert value(runtime, "blkio", "blkio.throttle.read_bps_device") == f"{major}:{minor} 485761"
    assert value(runtime, "blkio", "blkio.bfq.weight") in ("333", "default 333")
    rates = {"throttleReadBpsDevice": 10485760, "throttleWriteBpsDevice": 9437184, "throttleReadIOPSDevice": 1000,
             "throttleWriteIOPSDevice": 900}  # fmt: skip
    changed = {"blockIO": {"weight": 111, **{name: [{**device, "rate": rate}] for name, rate in rates.items()}}}
    runtime.call("update", "-r", "-", runtime.id, stdin=None, input=json.dumps(changed), check=True)
    names = ("read_bps", "write_bps", "read_iops", "write_iops")
    found = [value(runtime, "blkio", f"blkio.throttle.{name}_device") for name in names]
    assert found == [f"{major}:{minor} {rate}" for rate in rates.values()]
    assert value(runtime, "blkio", "blkio.bfq.weight") in ("111", "default 111")


def test_huge_pages_are_limited_wherever_their_controller_is(either: Runtime, v2_lane: Lane) -> None:
    """Here it is the one of the v2 tree beside v1's hierarchies."""
    limits(either)["hugepageLimits"] = [{"pageSize": "2MB", "limit": 4 * MIB}]
    either.start("sleep", "100")
    folder = v2_lane.tree / either.cgroup[1:]
    assert (folder / "hugetlb.2MB.max").read_text() == f"{4 * MIB}\n"
    assert (folder / "hugetlb.2MB.rsvd.max").read_text() == f"{4 * MIB}\n"
    stats = json.loads(either.call("events", "--stats", either.id, check=True).stdout)
    assert stats["data"]["hugetlb"]["2MB"] == {"failcnt": 0}


@on_v1
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unified": {"memory.min": "1"}}, "invalid configuration: cannot use unified on cgroup v1"),
        ({"network": {"classID": 5}}, "cannot set net_cls limit: container could not join or create cgroup"),
        ({"rdma": {"mlx5_0": {"hcaHandles": 5}}}, "cannot set rdma limit: container could not join or create cgroup"),
        ({"memory": {"swappiness": 101}}, "invalid memory swappiness value: 101 (valid range is 0-100)"),
        ({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}, "hugetlb.3MB.max: no such file or directory"),
        ({"cpu": {"period": 100}}, 'failed to write "100": write /sys/fs/cgroup/cpu/'),
        ({"devices": [{"allow": True, "type": "c", "major": 10, "access": "rw"},
                      {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "w"}]}, "would make a hole in the rule"),
    ],
)  # fmt: skip
def test_limits_that_cannot_be_set_are_told(runtime: Runtime, given: dict[str, Any], message: str) -> None:
    limits(runtime).update(given)
    done = runtime.run("true")
    assert done.returncode == 1
    assert message in done.stderr
    assert not cgroups.open_cgroup(runtime.cgroup).exists()


def test_unified_files_of_v2(v2: Runtime, v2_lane: Lane) -> None:
    limits(v2)["unified"] = {"cgroup.max.depth": "3"}
    v2.start("sleep", "100")
    folder = v2_lane.tree / v2.cgroup[1:]
    assert (folder / "cgroup.max.depth").read_text() == "3\n"
    v2.call("update", "-r", "-", v2.id, stdin=None, input='{"unified": {"cgroup.max.depth": "5"}}', check=True)
    assert (folder / "cgroup.max.depth").read_text() == "5\n"


def test_devices_are_guarded_and_nodes_of_the_configuration_are_not_free(either: Runtime) -> None:
    either.config["linux"]["devices"] = [
        {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666},
        {"path": "/dev/full", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666},  # in the place of a default one
    ]
    either.config["process"]["capabilities"] = {
        kind: ["CAP_MKNOD"] for kind in ("bounding", "effective", "permitted")
    }  # fmt: skip
    script = "for d in kmsg full zero null; do (: </dev/$d) 2>/dev/null && echo $d; done; mknod /x c 9 9 && echo made"
    assert either.shell(script).split() == ["zero", "null", "made"]


# --- update


@on_v1
def test_update_changes_what_is_given_and_keeps_the_rest(runtime: Runtime) -> None:
    limits(runtime).update(memory={"limit": 32 * MIB, "reservation": 24 * MIB}, pids={"limit": 20},
                           cpu={"shares": 100, "quota": 500000, "period": 1000000})  # fmt: skip
    runtime.start("sleep", "100")

    def check(**expected: object) -> None:
        names = {"limit": "memory.limit_in_bytes", "soft": "memory.soft_limit_in_bytes", "swap": "memory.memsw.limit_in_bytes",
                 "pids": "pids.max", "shares": "cpu.shares", "quota": "cpu.cfs_quota_us", "period": "cpu.cfs_period_us",
                 "cpus": "cpuset.cpus", "burst": "cpu.cfs_burst_us"}  # fmt: skip
        found = {key: value(runtime, names[key].partition(".")[0], names[key]) for key in expected}
        assert found == {key: str(wanted) for key, wanted in expected.items()}

    def update(*flags: str) -> None:
        runtime.call("update", *flags, runtime.id, check=True)

    unlimited = (ROOT / "memory/memory.limit_in_bytes").read_text().strip()
    check(limit=32 * MIB, soft=24 * MIB, pids=20, shares=100, quota=500000, period=1000000)
    update("--memory", "50M", "--memory-reservation", "33554432")
    check(limit=50 * MIB, soft=32 * MIB, pids=20)
    update("--memory-swap", "-1")
    check(swap=unlimited, limit=50 * MIB)
    update("--memory-swap", "96468992")
    check(swap=96468992)
    update("--memory", "30M", "--memory-swap", "50M")
    update("--memory", "60M", "--memory-swap", "80M")  # the limit is now above what the one with swap was
    check(limit=60 * MIB, swap=80 * MIB)
    update("--memory", "-1")
    check(limit=unlimited, swap=unlimited)
    update("--cpu-period", "900000")
    check(quota=500000, period=900000, shares=100)
    update("--cpu-quota", "600000", "--cpu-burst", "1000")
    check(quota=600000, period=900000, burst=1000)
    update("--cpu-quota", "-1")
    check(quota=-1, period=900000)
    update("--pids-limit", "0")
    check(pids=1)
    update("--pids-limit", "-1", "--cpuset-cpus", "1", "--cpu-share", "200")
    check(pids="max", cpus=1, shares=200)
    stored = json.loads((runtime.root / runtime.id / "state.json").read_text())["resources"]
    assert stored["cpu"] == {"shares": 200, "quota": -1, "period": 900000, "burst": 1000, "cpus": "1"}
    assert stored["pids"] == {"limit": -1}


@on_v1
def test_a_shorter_period_in_a_pod_with_a_quota(runtime: Runtime) -> None:
    """runc 3090: with the old quota the new period would ask for more than the pod has, so the quota goes first."""
    pod = cgroups.open_cgroup(runtime.cgroup)
    pod.create()
    try:
        pod.apply({"cpu": {"quota": 50000, "period": 100000}})
        runtime.config["linux"]["cgroupsPath"] += "/one"
        limits(runtime)["cpu"] = {"quota": 50000, "period": 100000}
        runtime.start("sleep", "100")
        assert runtime.call("update", "--cpu-quota", "60000", runtime.id).returncode == 1
        runtime.call("update", "--cpu-period", "10000", "--cpu-quota", "3000", runtime.id, check=True)
        assert (value(runtime, "cpu", "cpu.cfs_quota_us"), value(runtime, "cpu", "cpu.cfs_period_us")) == ("3000", "10000")
    finally:
        runtime.clean()
        pod.destroy()


@on_v1
def test_an_update_that_fails_changes_nothing(runtime: Runtime) -> None:
    limits(runtime).update(pids={"limit": 20}, cpu={"cpus": "0"})
    runtime.start("sleep", "100")
    before = (runtime.root / runtime.id / "state.json").read_text()
    changed = '{"pids": {"limit": 33}, "cpu": {"cpus": "0", "idle": 7}}'
    done = runtime.call("update", "-r", "-", runtime.id, stdin=None, input=changed)
    assert done.returncode == 1
    assert 'failed to write "7": write' in done.stderr
    assert value(runtime, "pids", "pids.max") == "20"
    assert (runtime.root / runtime.id / "state.json").read_text() == before


@on_v1
def test_a_limit_below_what_is_used_is_refused(runtime: Runtime) -> None:
    runtime.start("sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count=20; sleep 100")
    runtime.config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})
    runtime.call("delete", "--force", runtime.id, check=True)
    runtime.start("sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count=20; sleep 100")
    wait_for(lambda: int(value(runtime, "memory", "memory.usage_in_bytes")) > 20 * MIB, what="the file in memory")
    done = runtime.call("update", "--memory", "4m", runtime.id)
    assert done.returncode == 1
    assert "unable to set memory limit to 4194304 (current usage: " in done.stderr
    assert runtime.state()["status"] == "running"


def test_an_update_of_a_paused_container_leaves_it_paused(either: Runtime) -> None:
    either.start("sleep", "100")
    either.call("pause", either.id, check=True)
    either.call("update", "-r", "-", either.id, stdin=None, input='{"hugepageLimits": []}', check=True)
    assert either.state()["status"] == "paused"
    either.call("resume", either.id, check=True)
    assert either.state()["status"] == "running"


def test_an_update_of_an_ended_container_is_refused(either: Runtime) -> None:
    pid = either.start("sleep", "100")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: either.state()["status"] == "stopped", what="the container to stop")
    done = either.call("update", "--pids-limit", "5", either.id)
    assert (done.returncode, "container not running" in done.stderr) == (1, True)


# --- pause, kill, ps


def test_pause_and_resume_say_what_they_cannot(either: Runtime) -> None:
    either.start("sleep", "100")
    assert "container not paused" in either.call("resume", either.id).stderr
    either.call("pause", either.id, check=True)
    assert "container not running" in either.call("pause", either.id).stderr
    assert either.state()["status"] == "paused"
    either.call("kill", either.id, "KILL", check=True)  # a frozen process dies only when it thaws
    wait_for(lambda: either.state()["status"] == "stopped", what="the container's first process to end")
    assert "container not running" in either.call("pause", either.id).stderr


def test_a_container_in_the_hosts_pid_namespace_is_killed_as_a_whole(either: Runtime, v2_lane: Lane) -> None:
    either.config["linux"]["namespaces"] = [n for n in either.config["linux"]["namespaces"] if n["type"] != "pid"]
    pid = either.start("sleep", "1000")
    for _ in range(3):
        either.call("exec", "--detach", either.id, "sleep", "1000", check=True, **SILENT)
    own = group(either, v2_lane)
    assert len(own.pids()) == 4
    # Also when its first process is gone already (runc 4047).
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(own.pids()) == 3, what="the first process to end")
    assert either.state()["status"] == "stopped"
    either.call("kill", either.id, "KILL", check=True)
    wait_for(lambda: not own.pids(), what="the others to end")
    assert "container not running" in either.call("kill", either.id, "KILL").stderr


def test_a_signal_to_all(either: Runtime) -> None:
    child = "(trap 'echo second >>/got; exit' USR1; touch /ready; while :; do sleep 0.1; done) &"
    script = f"trap 'echo first >>/got' USR1; {child} while :; do wait; done"
    either.start("sh", "-c", script)
    wait_for((either.bundle / "rootfs/ready").exists, what="the shells")
    either.call("kill", "--all", either.id, "USR1", check=True)
    got = either.bundle / "rootfs/got"
    wait_for(lambda: got.exists() and set(got.read_text().split()) == {"first", "second"}, what="both shells to have got it")
    either.call("kill", either.id, "0", check=True)  # it is there
    either.call("kill", either.id, "KILL", check=True)
    wait_for(lambda: either.state()["status"] == "stopped", what="the container to stop")
    assert either.call("kill", either.id, "0").returncode == 1
    assert either.call("kill", "--all", either.id, "0").returncode == 0


def test_processes_are_listed_by_ps_and_as_numbers(either: Runtime) -> None:
    pid = either.start("sleep", "1000")
    listed = either.call("ps", either.id, check=True).stdout.splitlines()
    assert listed[0].split()[:3] == ["UID", "PID", "PPID"]
    assert [line.split()[1] for line in listed[1:]] == [str(pid)]
    assert "COMMAND" in either.call("ps", either.id, "-e", "-x", check=True).stdout
    assert "couldn't find PID field" in either.call("ps", either.id, "-o", "comm").stderr
    assert json.loads(either.call("ps", "-f", "json", either.id, check=True).stdout) == [pid]
    either.call("kill", either.id, "KILL", check=True)
    wait_for(lambda: either.state()["status"] == "stopped", what="the container to stop")
    assert len(either.call("ps", either.id, check=True).stdout.splitlines()) == 1
    assert either.call("ps", "-f", "json", either.id, check=True).stdout == "null\n"


# --- exec


@on_v1
def test_exec_joins_groups_below_by_controller(runtime: Runtime) -> None:
    with_cgroup_namespace(runtime, own=True)
    runtime.start("sleep", "100")
    for controller, name in (("memory", "m"), ("cpu", "c"), ("cpuacct", "c")):
        (ROOT / controller / runtime.cgroup[1:] / name).mkdir()

    def groups(*flags: str) -> dict[str, str]:
        done = runtime.call("exec", *flags, runtime.id, "cat", "/proc/self/cgroup", check=True)
        return dict(line.split(":")[1:] for line in done.stdout.splitlines())

    assert set(groups().values()) == set(groups("--cgroup", "/").values()) == {"/"}
    found = groups("--cgroup", "memory:m", "--cgroup", "cpu,cpuacct:c")
    assert (found["memory"], found["cpu"], found["cpuacct"], found["pids"]) == ("/m", "/c", "/c", "/")
    for flags, message in (
        (["--cgroup", ".."], "bad sub cgroup path"), (["--cgroup", "nosuch"], "error adding pid "),
        (["--cgroup", "cpu:nosuch"], "no such file or directory"), (["--cgroup", "whaat:/"], "unknown controller whaat"),
    ):  # fmt: skip
        done = runtime.call("exec", *flags, runtime.id, "true")
        assert done.returncode == 255
        assert message in done.stderr


def test_exec_follows_a_container_that_has_left_its_group(v2: Runtime, v2_lane: Lane) -> None:
    """runc 5089, crun 81: the group that was made for it takes no process any more, or is gone."""
    pid = v2.start("sleep", "100")
    elsewhere = CgroupV2(f"{v2_lane.tree}{v2.cgroup}-2")
    elsewhere.create()
    try:
        elsewhere.add(pid)
        (v2_lane.tree / v2.cgroup[1:]).rmdir()
        seen = v2.call("exec", v2.id, "sh", "-c", "sleep 1000 & cat /proc/self/cgroup", check=True, **SILENT)
        assert seen.returncode == 0
        assert len(elsewhere.pids()) == 2
        done = v2.call("exec", "--cgroup", "/", v2.id, "true")
        assert done.returncode == 255
        assert "error adding pid" in done.stderr
        assert "no such file or directory" in done.stderr
        v2.call("delete", "--force", v2.id, check=True)
        wait_for(lambda: not elsewhere.pids(), what="its processes to end")
    finally:
        elsewhere.destroy()


def test_a_writable_group_is_given_to_the_containers_root(v2_lane: Lane) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are root's alone
        Path(name).chmod(0o755)
        v2 = Runtime(Path(name))
        v2.prefix = v2_lane.prefix
        linux, folder = v2.config["linux"], v2_lane.tree / v2.cgroup[1:]
        with_cgroup_namespace(v2, own=True)
        linux["namespaces"] += [{"type": "user"}]
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        os.chown(v2.bundle / "rootfs", 100000, 100000)
        try:
            for owner in (0, 100000):
                v2.start("sleep", "100")
                assert folder.stat().st_uid == owner
                assert (folder / "cgroup.procs").stat().st_uid == owner
                assert (folder / "cgroup.freeze").stat().st_uid == 0
                v2.call("delete", "--force", v2.id, check=True)
                shown = next(mount for mount in v2.config["mounts"] if mount["type"] == "cgroup")
                shown["options"] = [option for option in shown["options"] if option != "ro"]  # from the second round on
        finally:
            v2.clean()


# --- events and kills for want of memory


def test_statistics_are_printed_once(either: Runtime) -> None:
    either.start("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 100")
    either.call("exec", either.id, "true", check=True)
    printed = either.call("events", "--stats", either.id, check=True).stdout
    assert printed.startswith(f'{{"type":"stats","id":"{either.id}","data":{{"cpu":')
    data = json.loads(printed)["data"]
    assert list(data) == ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"]
    assert data["cpu"]["usage"]["total"] > 0
    assert data["pids"]["current"] >= 1
    assert data["network_interfaces"] is None
    if not either.prefix and cgroups.mode() != "v2":
        assert data["memory"]["usage"]["usage"] > 0
        assert data["memory"]["raw"]["total_rss"] > 0
        assert data["cpuset"]["cpus"]


def test_events_go_on_until_the_container_ends(either: Runtime) -> None:
    pid = either.start("sleep", "100")
    command = [*either.prefix, LOWRT, "--root", either.root, "events", "--interval", "50ms", either.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            for _ in range(3):
                assert json.loads(following.stdout.readline())["type"] == "stats"
            os.kill(pid, signal.SIGKILL)
            assert following.wait(10) == 0
        finally:
            following.kill()
    assert "is not running" in either.call("events", either.id).stderr
    assert "duration interval must be greater than 0" in either.call("events", "--interval", "0s", either.id).stderr


@on_v1
def test_a_kill_for_want_of_memory_is_an_event(runtime: Runtime) -> None:
    limits(runtime)["memory"] = {"limit": 32 * MIB, "swap": 32 * MIB}
    runtime.start("sleep", "100")
    command = [LOWRT, "--root", runtime.root, "events", "--interval", "100ms", runtime.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            following.stdout.readline()  # so it listens
            done = runtime.call("exec", runtime.id, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
            assert done.returncode == 137
            deadline = time.monotonic() + 10
            while (line := following.stdout.readline()) != f'{{"type":"oom","id":"{runtime.id}"}}\n':
                assert json.loads(line)["type"] == "stats"
                assert time.monotonic() < deadline
        finally:
            following.kill()
    assert runtime.state()["status"] == "running"


@on_v1
def test_a_container_whose_first_process_is_killed_for_want_of_memory_says_so(runtime: Runtime) -> None:
    # Its first page is already too much, so that it is killed while the limit is set or soon after.
    limits(runtime)["memory"] = {"limit": 4096, "swap": 4096}
    done = runtime.run("true")
    assert done.returncode != 0
    assert "container init was OOM-killed (memory limit too low?)" in done.stderr
    assert not cgroups.open_cgroup(runtime.cgroup).exists()


@pytest.mark.parametrize("command", ["run", "exec"])
def test_nobody_is_moved_into_a_cgroup_by_another(either: Runtime, v2_lane: Lane, tmp_path: Path, command: str) -> None:
    """That would wait up to 10 ms for all CPUs. Who moves itself, or is cloned into a group, waits for nobody."""
    runtime = either
    runtime.start("sleep", "100")
    argv = ["exec", runtime.id, "cat", "/proc/self/cgroup"]
    if command == "run":
        runtime.call("delete", "--force", runtime.id, check=True)
        runtime.config["process"]["args"] = ["cat", "/proc/self/cgroup"]
        runtime.write()
        argv = ["run", "--bundle", str(runtime.bundle), runtime.id]
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-e", "trace=openat", "-o", trace]
    done = subprocess.run(
        [*runtime.prefix, *strace, LOWRT, "--root", runtime.root, *argv], capture_output=True, text=True, check=True
    )
    moving = [line for line in trace.read_text().splitlines() if 'cgroup.procs"' in line and "O_WRONLY" in line]
    assert moving == []
    seen = [line for line in done.stdout.splitlines() if line.startswith("0::") or not runtime.prefix]
    paths = {line.split(":", 2)[2] for line in seen}
    assert paths <= {"/", runtime.cgroup}, "seen from a cgroup namespace of its own or not"
    assert len(group(runtime, v2_lane).pids()) == (command == "exec")

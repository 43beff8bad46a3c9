"""Limits on a kernel with every v2 controller: not only written, but in force, and what breaks them is reported."""

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.vm.inside.conftest import CGROUPS, SILENT, BootedRuntime

MIB = 1 << 20


def limits(runtime: BootedRuntime) -> dict[str, Any]:
    found: dict[str, Any] = runtime.config["linux"]["resources"]
    return found


def test_every_controller_is_given_to_the_container(runtime: BootedRuntime) -> None:
    runtime.start("sleep", "100")
    assert set(runtime.value("cgroup.controllers").split()) == set((CGROUPS / "cgroup.controllers").read_text().split())


def test_memory_over_its_limit_is_killed_and_counted(runtime: BootedRuntime) -> None:
    limits(runtime)["memory"] = {"limit": 32 * MIB, "swap": 32 * MIB}
    runtime.start("sh", "-c", "while :; do sleep 1; done")
    assert (runtime.value("memory.max"), runtime.value("memory.swap.max")) == (str(32 * MIB), "0")
    done = runtime.call("exec", runtime.id, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
    assert done.returncode == 137, done.stderr
    assert "oom_kill 1" in runtime.value("memory.events")
    assert runtime.state()["status"] == "running"


def test_an_oom_kill_is_an_event(runtime: BootedRuntime) -> None:
    limits(runtime)["memory"] = {"limit": 32 * MIB, "swap": 32 * MIB}
    runtime.start("sh", "-c", "while :; do sleep 1; done")
    command = [runtime.program, "--root", str(runtime.root), "events", "--interval", "1s", runtime.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        try:
            assert json.loads(events.stdout.readline())["type"] == "stats"  # so it is listening
            runtime.call("exec", runtime.id, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
            found = (json.loads(line) for line in events.stdout)
            oom = next(event for event in itertools.islice(found, 30) if event["type"] == "oom")
            assert oom["id"] == runtime.id
        finally:
            events.kill()


def test_statistics_are_those_of_the_group(runtime: BootedRuntime) -> None:
    limits(runtime).update(memory={"limit": 64 * MIB}, pids={"limit": 20})
    runtime.start("sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count=8; while :; do sleep 1; done")
    wait_for(lambda: int(runtime.value("memory.current")) > 8 * MIB, what="the file in the page cache")
    data = json.loads(runtime.call("events", "--stats", runtime.id, check=True).stdout)["data"]
    assert data["memory"]["usage"]["limit"] == 64 * MIB
    assert data["memory"]["usage"]["usage"] > 8 * MIB
    assert data["pids"]["limit"] == 20
    assert data["pids"]["current"] == 2
    assert data["cpu"]["usage"]["total"] > 0


def test_memory_that_is_too_little_to_start_with_says_so(runtime: BootedRuntime) -> None:
    limits(runtime)["memory"] = {"limit": 64 * 1024}
    done = runtime.run("true")
    assert done.returncode != 0
    assert "OOM-killed (memory limit too low?)" in done.stderr
    assert runtime.call("list", "--quiet").stdout == ""
    assert not (CGROUPS / runtime.cgroup.lstrip("/")).exists()


def test_there_are_no_more_processes_than_allowed(runtime: BootedRuntime) -> None:
    limits(runtime)["pids"] = {"limit": 4}
    done = runtime.run("sh", "-c", "for n in 1 2 3 4 5 6; do sleep 1 & done; wait")
    assert "can't fork" in done.stderr
    assert runtime.call("list", "--quiet").stdout == ""


def test_the_processor_is_shared_out_as_told(runtime: BootedRuntime) -> None:
    limits(runtime)["cpu"] = {"quota": 10000, "period": 100000, "cpus": "1", "shares": 512}
    runtime.start("sh", "-c", "while :; do :; done")
    wait_for(lambda: "nr_throttled 0\n" not in runtime.value("cpu.stat"), seconds=30, what="the loop to be throttled")
    assert "Cpus_allowed_list:\t1\n" in runtime.inside("cat", "/proc/1/status")
    runtime.call("update", "--cpuset-cpus", "0-1", runtime.id, check=True)
    assert "Cpus_allowed_list:\t0-1\n" in runtime.inside("cat", "/proc/1/status")


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[tuple[str, int, int]]:
    """A loop device of 16 MiB: its name, major and minor number."""
    file = tmp_path / "disk"
    with open(file, "wb") as disk:
        disk.truncate(16 * MIB)
    losetup = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True, check=True)
    name = losetup.stdout.strip()
    major, minor = Path(f"/sys/block/{Path(name).name}/dev").read_text().split(":")
    try:
        yield name, int(major), int(minor)
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)


def test_a_disk_is_written_no_faster_than_allowed(runtime: BootedRuntime, block_device: tuple[str, int, int]) -> None:
    name, major, minor = block_device
    numbers = {"major": major, "minor": minor}
    limits(runtime)["blockIO"] = {"throttleWriteBpsDevice": [{**numbers, "rate": MIB}], "weight": 500}
    limits(runtime)["devices"].append({"allow": True, "type": "b", **numbers, "access": "rwm"})
    runtime.config["linux"]["devices"] = [{"path": name, "type": "b", **numbers, "fileMode": 0o660}]
    runtime.start("sleep", "100")
    assert runtime.value("io.max").startswith(f"{major}:{minor} rbps=max wbps={MIB} ")
    assert runtime.value("io.weight").startswith("default ")
    assert runtime.value("io.weight") != "default 100"
    script = (
        f"read a b </proc/uptime; dd if=/dev/zero of={name} bs=1M count=4 oflag=direct 2>&1; read c d </proc/uptime; echo $a $c"
    )
    before, after = runtime.inside("sh", "-ec", script).splitlines()[-1].split()
    assert float(after) - float(before) >= 2.0
    assert f"{major}:{minor} " in runtime.value("io.stat")


def test_huge_pages_and_unified_keys(runtime: BootedRuntime) -> None:
    limits(runtime)["hugepageLimits"] = [{"pageSize": "2MB", "limit": 4 * MIB}]
    limits(runtime)["unified"] = {"memory.high": str(48 * MIB), "memory.oom.group": "1"}
    limits(runtime)["cpu"] = {"idle": 1}
    runtime.start("sleep", "100")
    assert runtime.value("hugetlb.2MB.max") == str(4 * MIB)
    assert (runtime.value("memory.high"), runtime.value("memory.oom.group")) == (str(48 * MIB), "1")
    assert runtime.value("cpu.idle") == "1"


@pytest.mark.parametrize("limit", [{"memory.nosuch": "1"}, {"nosuch.max": "1"}, {"memory.max": "nonsense"}])
def test_a_unified_key_that_the_kernel_lacks_or_refuses_is_an_error(runtime: BootedRuntime, limit: dict[str, str]) -> None:
    limits(runtime)["unified"] = limit
    done = runtime.run("true")
    assert done.returncode != 0
    assert next(iter(limit)) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (CGROUPS / runtime.cgroup.lstrip("/")).exists()


def test_a_container_without_a_path_can_be_started_from_a_service(runtime: BootedRuntime) -> None:
    """The caller's own group has processes, so it can have no group below it that has controllers."""
    del runtime.config["linux"]["cgroupsPath"]
    limits(runtime)["pids"] = {"limit": 33}
    runtime.start("sleep", "100")
    assert runtime.value("pids.max") == "33"
    own = CGROUPS / Path("/proc/self/cgroup").read_text().strip().removeprefix("0::/")
    assert runtime.folder() != own
    folder = runtime.folder()
    runtime.call("delete", "--force", runtime.id, check=True)
    assert not folder.exists()


def test_a_group_that_is_in_use_or_frozen_is_refused(runtime: BootedRuntime, tmp_path: Path) -> None:
    folder = CGROUPS / runtime.cgroup.lstrip("/")
    folder.mkdir()
    sleeper = subprocess.Popen(["sleep", "100"])
    try:
        (folder / "cgroup.procs").write_text(str(sleeper.pid))
        done = runtime.run("true")
        assert done.returncode == 1
        assert "container's cgroup is not empty: 1 process(es) found" in done.stderr
    finally:
        sleeper.kill()
        sleeper.wait()
    (folder / "cgroup.freeze").write_text("1")
    done = runtime.run("true")
    assert done.returncode == 1
    assert "container's cgroup unexpectedly frozen" in done.stderr
    if folder.exists():
        folder.rmdir()


def test_a_paused_container_stays_paused_over_an_update(runtime: BootedRuntime) -> None:
    runtime.start("sleep", "100")
    runtime.call("pause", runtime.id, check=True)
    runtime.call("update", "--pids-limit", "30", runtime.id, check=True)
    assert runtime.state()["status"] == "paused"
    refused = runtime.call("exec", runtime.id, "true")
    assert refused.returncode == 255
    assert "cannot exec in a paused container" in refused.stderr
    waiting = subprocess.Popen(
        [runtime.program, "--root", str(runtime.root), "exec", "--ignore-paused", runtime.id, "echo", "ok"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: len(runtime.value("cgroup.procs").split()) > 1, what="exec's process in the group")
        runtime.call("resume", runtime.id, check=True)
        assert waiting.communicate(timeout=60)[0] == "ok\n"
    finally:
        waiting.kill()


def test_a_limit_below_what_is_used_is_refused_when_asked_to_look(runtime: BootedRuntime) -> None:
    limits(runtime)["memory"] = {"limit": 64 * MIB}
    runtime.start("sh", "-c", "while :; do sleep 1; done")
    file = runtime.bundle / "resources.json"
    file.write_text(json.dumps({"memory": {"limit": 1024, "checkBeforeUpdate": True}}))
    done = runtime.call("update", "--resources", file, runtime.id)
    assert done.returncode != 0
    assert "rejecting memory limit" in done.stderr
    assert runtime.state()["status"] == "running"
    runtime.call("update", "--memory", "4096", runtime.id, **SILENT)
    wait_for(lambda: runtime.state()["status"] == "stopped", what="the container to be killed")

"""--systemd-cgroup against a real systemd: a container is a transient scope, and its limits are the unit's properties.

What the unit shows and what the kernel's files say must agree: systemd writes its own idea over ours at every reload. Units
and properties are those that runc makes (its docs/systemd.md), because callers, and people with systemctl, look for them.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.vm.inside.conftest import CGROUPS, SILENT, SystemdRuntime, systemctl


def loaded(unit: str) -> bool:
    return systemctl("show", "--property", "LoadState", "--value", unit).strip() != "not-found"


def test_a_container_is_a_scope_in_the_slice_that_was_asked_for(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    runtime.start("sleep", "100")
    assert runtime.folder() == CGROUPS / "machine.slice" / runtime.unit
    assert runtime.show("ActiveState") == "active"
    assert runtime.show("Slice") == "machine.slice"
    assert runtime.show("Delegate") == "yes"
    assert runtime.unit.removeprefix("strata-").removesuffix(".scope") in runtime.show("Description")
    assert runtime.show("NeedDaemonReload") == "no"
    # Every controller that the slice could give is there, also those without a limit.
    given = set((runtime.folder() / "cgroup.controllers").read_text().split())
    assert given == set((CGROUPS / "machine.slice/cgroup.controllers").read_text().split())
    runtime.call("delete", "--force", runtime.id, check=True)
    wait_for(lambda: not loaded(runtime.unit), what="the unit to go")
    assert not (CGROUPS / "machine.slice" / runtime.unit).exists()


def test_slices_nest_by_their_dashes(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    runtime.config["linux"]["cgroupsPath"] = "strata-pod1.slice:cri:one"
    try:
        runtime.start("sleep", "100")
        assert runtime.folder() == CGROUPS / "strata.slice/strata-pod1.slice/cri-one.scope"
        runtime.call("delete", "--force", runtime.id, check=True)
    finally:
        systemctl("stop", "strata.slice")


def test_without_a_path_the_scope_is_named_after_the_container(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    del runtime.config["linux"]["cgroupsPath"]
    runtime.start("sleep", "100")
    assert runtime.folder().parent == CGROUPS / "system.slice"
    assert runtime.folder().name.endswith(f"-{runtime.id}.scope")


@pytest.mark.parametrize("path", ["/strata/absolute", "only:two", "no.slice.at.all:x:y", "../machine.slice:x:y"])
def test_a_path_that_names_no_slice_is_refused(systemd_runtime: SystemdRuntime, path: str) -> None:
    runtime = systemd_runtime
    runtime.config["linux"]["cgroupsPath"] = path
    done = runtime.run("true")
    assert done.returncode == 1
    assert "slice" in done.stderr
    assert "Traceback" not in done.stderr
    assert runtime.call("list", "--quiet").stdout == ""


def test_limits_are_properties_and_update_changes_them(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    runtime.config["linux"]["resources"].update(
        memory={"limit": 32 << 20, "reservation": 24 << 20},
        cpu={"shares": 100, "quota": 500000, "period": 1000000, "cpus": "0"},
        pids={"limit": 20},
    )
    runtime.start("sleep", "100")

    def check(memory: str, low: str, tasks: str, cpus: str) -> None:
        assert (runtime.value("memory.max"), runtime.show("MemoryMax")) == (memory, memory.replace("max", "infinity"))
        assert (runtime.value("memory.low"), runtime.show("MemoryLow")) == (low, low)
        assert (runtime.value("pids.max"), runtime.show("TasksMax")) == (tasks, tasks.replace("max", "infinity"))
        assert (runtime.value("cpuset.cpus"), runtime.show("AllowedCPUs")) == (cpus, cpus)
        assert runtime.show("CPUWeight") == runtime.value("cpu.weight")

    check(str(32 << 20), str(24 << 20), "20", "0")
    assert runtime.value("cpu.max") == "500000 1000000"
    assert runtime.show("CPUQuotaPerSecUSec") == "500ms"
    assert runtime.show("CPUQuotaPeriodUSec") == "1s"
    weight = runtime.value("cpu.weight")
    runtime.call("update", "--memory", "64m", "--memory-reservation", "32m", "--pids-limit", "10",
                 "--cpuset-cpus", "1", "--cpu-share", "200", runtime.id, check=True)  # fmt: skip
    check(str(64 << 20), str(32 << 20), "10", "1")
    assert int(runtime.value("cpu.weight")) > int(weight)
    runtime.call("update", "--memory", "-1", "--pids-limit", "-1", "--cpu-quota", "-1", runtime.id, check=True)
    check("max", str(32 << 20), "max", "1")
    assert runtime.value("cpu.max").split()[0] == "max"
    assert runtime.show("CPUQuotaPerSecUSec") == "infinity"
    file = runtime.bundle / "resources.json"
    file.write_text(json.dumps({"pids": {"limit": 33}, "unified": {"memory.high": "20971520"}}))
    runtime.call("update", "--resources", file, runtime.id, check=True)
    assert (runtime.show("TasksMax"), runtime.show("MemoryHigh")) == ("33", "20971520")
    systemctl("daemon-reload")  # systemd writes what it knows: nothing may change
    assert (runtime.value("pids.max"), runtime.value("memory.high")) == ("33", "20971520")
    assert runtime.value("cpuset.cpus") == "1"


def test_unified_keys_are_properties_too(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    runtime.config["linux"]["resources"].update(
        memory={"limit": 33554432},
        unified={"memory.min": "131072", "memory.low": "524288", "memory.high": "20971520", "memory.max": "41943040",
                 "pids.max": "99", "cpu.max": "10000 100000", "cpu.weight": "42"},
    )  # fmt: skip
    runtime.start("sleep", "100")
    for name, value in (("memory.min", "131072"), ("memory.low", "524288"), ("memory.high", "20971520"),
                        ("memory.max", "41943040"), ("pids.max", "99"), ("cpu.max", "10000 100000"),
                        ("cpu.weight", "42")):  # fmt: skip
        assert (name, runtime.value(name)) == (name, value)
    shown = {name: runtime.show(name) for name in ("MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "TasksMax", "CPUWeight")}
    assert shown == {
        "MemoryMin": "131072", "MemoryLow": "524288", "MemoryHigh": "20971520", "MemoryMax": "41943040", "TasksMax": "99",
        "CPUWeight": "42",
    }  # fmt: skip


def test_an_idle_container_has_no_weight_until_it_is_given_one(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    runtime.start("sleep", "100")
    file = runtime.bundle / "resources.json"
    for unified, idle in (({"cpu.idle": "1", "cpu.weight": "8"}, "1"), ({"cpu.weight": "8"}, "0")):
        file.write_text(json.dumps({"unified": unified}))
        runtime.call("update", "--resources", file, runtime.id, check=True)
        assert runtime.value("cpu.idle") == idle
    runtime.call("update", "--cpu-share", "200", "--cpu-idle", "1", runtime.id, check=True)
    assert runtime.value("cpu.idle") == "1"
    runtime.call("update", "--cpu-share", "200", runtime.id, check=True)
    assert (runtime.value("cpu.idle"), runtime.value("cpu.weight")) == ("0", "29")


def test_annotations_set_properties_of_the_unit(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    runtime.config["annotations"] = {
        "org.systemd.property.TimeoutStopUSec": "uint64 123456789",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
    }
    runtime.start("sleep", "100")
    assert runtime.show("TimeoutStopUSec") == "2min 3.456789s"
    assert runtime.show("CollectMode") == "inactive-or-failed"


def test_devices_are_still_guarded_after_a_reload(systemd_runtime: SystemdRuntime) -> None:
    """runc 3551, 4568 and 4859: systemd puts its own device program in place, so it must know the rules."""
    runtime = systemd_runtime
    deny = {"allow": False, "access": "rwm"}
    fuse = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    runtime.config["linux"]["resources"]["devices"] = [deny, fuse]
    runtime.config["linux"]["devices"] = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666},
        {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666},
    ]
    subprocess.run(["modprobe", "fuse"], check=True)
    runtime.start("sleep", "100")

    def check() -> None:
        script = "(: </dev/kmsg) 2>&1 | head -1; : </dev/fuse && : >/dev/null && head -c 4 /dev/zero | wc -c"
        printed = runtime.inside("sh", "-c", script)
        assert "kmsg: Operation not permitted" in printed, printed
        assert "\n4\n" in printed, printed

    check()
    systemctl("daemon-reload")
    check()
    systemctl("daemon-reexec")
    check()
    runtime.call("update", "--pids-limit", "30", runtime.id, check=True)
    check()
    assert runtime.show("NeedDaemonReload") == "no"


def test_all_processes_are_in_the_scope_and_are_paused_and_killed_there(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    runtime.start("sh", "-c", "sleep 1000 & wait")
    runtime.call("exec", "--detach", runtime.id, "sleep", "2000", check=True, **SILENT)
    pids = json.loads(runtime.call("ps", "--format", "json", runtime.id, check=True).stdout)
    commands = sorted(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2] for pid in pids)
    assert commands[:2] == [b"1000", b"2000"]
    assert len(pids) == 3
    runtime.call("pause", runtime.id, check=True)
    assert runtime.value("cgroup.freeze") == "1"
    assert runtime.state()["status"] == "paused"
    runtime.call("resume", runtime.id, check=True)
    assert runtime.value("cgroup.freeze") == "0"
    runtime.call("delete", "--force", runtime.id, check=True)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), what="all its processes to end")
    wait_for(lambda: not loaded(runtime.unit), what="the unit to go")


def test_a_container_that_died_is_deleted_with_its_unit(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    pid = runtime.start("sleep", "100")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: runtime.state()["status"] == "stopped", what="the container to stop")
    runtime.call("delete", runtime.id, check=True)
    wait_for(lambda: not loaded(runtime.unit), what="the unit to go")
    assert runtime.call("list", "--quiet").stdout == ""


def test_a_scope_that_is_stopped_ends_its_container(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    runtime.start("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
    systemctl("stop", runtime.unit)
    assert runtime.state()["status"] == "stopped"
    runtime.call("delete", runtime.id, check=True)


def test_what_fails_leaves_no_unit(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    done = runtime.run("nosuch")
    assert done.returncode == 127 or "executable file not found" in done.stderr
    wait_for(lambda: not loaded(runtime.unit), what="the unit to go")
    runtime.config["linux"]["resources"]["unified"] = {"memory.nosuch": "1"}
    assert runtime.run("true").returncode != 0
    wait_for(lambda: not loaded(runtime.unit), what="the unit to go")
    assert runtime.call("list", "--quiet").stdout == ""


def test_a_scope_that_is_there_already_is_refused_and_left_alone(systemd_runtime: SystemdRuntime) -> None:
    runtime = systemd_runtime
    subprocess.run(["systemd-run", "--quiet", "--scope", "--slice=machine.slice", f"--unit={runtime.unit}", "sh", "-c",
                    "sleep 300 </dev/null >/dev/null 2>&1 &"], check=True, timeout=60)  # fmt: skip
    try:
        done = runtime.run("true")
        assert done.returncode != 0
        assert runtime.show("ActiveState") == "active"
        assert runtime.call("list", "--quiet").stdout == ""
    finally:
        systemctl("stop", runtime.unit)

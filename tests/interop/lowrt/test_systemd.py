"""--systemd-cgroup against a stand-in for systemd on a real message bus: what is asked for, and where processes end up.

(Against systemd itself: the VM lane, tests/vm/inside.)
"""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Lane, wait_for
from tests.integration.lowrt.conftest import LOWRT, Runtime
from tests.interop.lowrt.systemd_peer import Direct, OnBus, Systemd

ROOT = Path("/sys/fs/cgroup")
# Those of v1 that systemd drives, and its own two. The others are left to its callers.
DRIVEN = ("cpu", "cpuacct", "memory", "pids", "blkio", "devices", "systemd", "unified")
INFINITY = 2**64 - 1


class Booted:
    """lowrt where systemd seems to run, and the systemd that it talks to."""

    def __init__(self, runtime: Runtime, systemd: Systemd, slice_: str, run_folder: Path) -> None:
        self.runtime, self.systemd, self.slice, self.run_folder = runtime, systemd, slice_, run_folder
        name = uuid.uuid4().hex[:8]
        self.unit = f"strata-{name}.scope"
        runtime.flags = ["--systemd-cgroup"]
        runtime.config["linux"]["cgroupsPath"] = f"{slice_}:strata:{name}"

    @property
    def properties(self) -> dict[str, Any]:
        return self.systemd.units[self.unit].properties

    def value(self, name: str, controller: str = "") -> str:
        """A control file of the unit's group; a v2 group is that of any controller."""
        folders = self.systemd.folders(self.unit)
        own = [folder for folder in folders if folder.relative_to(ROOT).parts[0] == controller] or folders
        return (own[0] / name).read_text().strip()


@pytest.fixture(params=["v1", "v2"])
def mode(request: Any) -> str:
    if (ROOT / "cgroup.controllers").exists() and request.param == "v1":
        pytest.skip("this machine has no cgroup v1")
    found: str = request.param
    return found


@pytest.fixture
def booted(mode: str, tmp_path: Path, v2_lane: Lane) -> Iterator[Booted]:
    with ExitStack() as stack:
        script = "mount -t tmpfs none /run && mkdir -p /run/systemd/system && echo ready && read end"
        command = [*(v2_lane.prefix if mode == "v2" else ()), "unshare", "--mount", "sh", "-ec", script]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(holder.communicate)
        stack.callback(holder.kill)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        slice_ = f"stratatest-{uuid.uuid4().hex[:8]}.slice"
        hierarchies = [v2_lane.tree] if mode == "v2" else [ROOT / name for name in DRIVEN if (ROOT / name).exists()]
        systemd = Systemd(hierarchies)
        runtime = Runtime(tmp_path)
        stack.callback(remove_slice, slice_, [v2_lane.tree, *(ROOT.iterdir() if mode == "v1" else ())])
        bus = OnBus(systemd, tmp_path)
        stack.callback(bus.close)
        runtime.prefix = [
            "nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "env", f"DBUS_SYSTEM_BUS_ADDRESS={bus.address}",
        ]  # fmt: skip
        stack.callback(runtime.clean)
        yield Booted(runtime, systemd, slice_, Path(f"/proc/{holder.pid}/root/run/systemd"))


def remove_slice(slice_: str, hierarchies: list[Path]) -> None:
    for root in hierarchies:
        for folder in (root / "stratatest.slice" / slice_, root / "stratatest.slice"):
            try:
                folder.rmdir()
            except OSError:  # not in this hierarchy, or another test's
                continue


def test_a_container_is_a_scope(booted: Booted, mode: str) -> None:
    runtime = booted.runtime
    pid = runtime.start("sleep", "100")
    properties = booted.properties
    assert properties["Slice"] == booted.slice
    assert (properties["Delegate"], properties["DefaultDependencies"]) == (True, False)
    assert properties["PIDs"] == [pid]
    accounting = {name.removesuffix("Accounting") for name, value in properties.items() if "Accounting" in name and value is True}
    assert accounting == {"Memory", "CPU", "Tasks", "IO" if mode == "v2" else "BlockIO"}
    where = f"/stratatest.slice/{booted.slice}/{booted.unit}"
    groups = dict(line.split(":")[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    # Also in the hierarchies that systemd leaves alone.
    assert set(groups.values() if mode == "v1" else [groups[""]]) == {where}
    executed = runtime.call("exec", runtime.id, "cat", "/proc/1/cgroup", "/proc/self/cgroup", check=True).stdout.split()
    assert executed[: len(executed) // 2] == executed[len(executed) // 2 :]
    runtime.call("pause", runtime.id, check=True)
    assert runtime.state()["status"] == "paused"
    runtime.call("resume", runtime.id, check=True)
    assert json.loads(runtime.call("ps", "--format", "json", runtime.id, check=True).stdout) == [pid]
    runtime.call("delete", "--force", runtime.id, check=True)
    assert booted.systemd.units == {}
    assert booted.systemd.calls[-2:] == ["StopUnit", "ResetFailedUnit"]
    assert not any((root / where[1:]).exists() for root in ROOT.iterdir())


def test_without_a_path_it_is_named_after_the_container(booted: Booted) -> None:
    runtime = booted.runtime
    # Not in system.slice, where the stand-in has nothing to do.
    runtime.config["linux"]["cgroupsPath"] = f"{booted.slice}:lowrt:{runtime.id}"
    runtime.start("sleep", "100")
    assert list(booted.systemd.units) == [f"lowrt-{runtime.id}.scope"]


def test_limits_are_properties_and_update_changes_them(booted: Booted, mode: str) -> None:
    runtime = booted.runtime
    resources = runtime.config["linux"]["resources"]
    resources["cpu"] = {"shares": 100, "quota": 50000, "period": 100000, "cpus": "0"} if mode == "v1" else {}
    resources["memory"] = {"limit": 32 << 20} if mode == "v1" else {}
    resources["pids"] = {"limit": 20} if mode == "v1" else {}
    # The lane has no such controllers, but systemd is told of the unit's, and the kernel of what it has.
    resources["unified"] = {"cgroup.max.depth": "3"} if mode == "v2" else {}
    runtime.start("sleep", "100")
    if mode == "v2":
        assert booted.value("cgroup.max.depth") == "3"
        assert booted.properties["DevicePolicy"] == "strict"
        assert ("/dev/char/1:3", "rwm") in booted.systemd.units[booted.unit].devices
        assert ("char-136", "rwm") in booted.systemd.units[booted.unit].devices
        return
    found = booted.properties
    assert (found["MemoryLimit"], found["CPUShares"], found["TasksMax"]) == (32 << 20, 100, 20)
    assert (found["CPUQuotaPerSecUSec"], found["CPUQuotaPeriodUSec"], found["AllowedCPUs"]) == (500_000, 100_000, b"\x01")
    assert booted.value("memory.limit_in_bytes", "memory") == str(32 << 20)
    assert booted.value("pids.max", "pids") == "20"
    runtime.call("update", "--memory", "-1", "--pids-limit", "0", "--cpu-quota", "33333", runtime.id, check=True)
    assert (found["MemoryLimit"], found["TasksMax"]) == (INFINITY, 1)
    # systemd keeps whole percentages: the file says the same.
    assert found["CPUQuotaPerSecUSec"] == 340_000
    assert booted.value("cpu.cfs_quota_us", "cpu") == "34000"
    assert booted.value("pids.max", "pids") == "1"


def test_annotations_are_properties(booted: Booted) -> None:
    runtime = booted.runtime
    runtime.config["annotations"] = {
        "org.systemd.property.TimeoutStopUSec": "uint64 123456789",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.RuntimeMaxSec": "90",
        "org.systemd.property.After": "['a.service', 'b.service']",
        "org.example": "no property",
    }
    runtime.start("sleep", "100")
    found = booted.properties
    assert (found["TimeoutStopUSec"], found["CollectMode"]) == (123456789, "inactive-or-failed")
    assert (found["RuntimeMaxUSec"], found["After"]) == (90_000_000, ["a.service", "b.service"])


def test_an_annotation_that_is_no_property_is_refused(booted: Booted) -> None:
    for name, value, message in (
        ("X", "1", "name incorrect: too short"), ("Not Good", "1", "contains non-alphabetic character"),
        ("CollectMode", "'open", "value parse error"), ("TimeoutStopSec", "'soon'", "not a number"),
    ):  # fmt: skip
        booted.runtime.config["annotations"] = {f"org.systemd.property.{name}": value}
        done = booted.runtime.run("true")
        assert done.returncode == 1
        assert message in done.stderr
    assert booted.systemd.calls == []


def test_a_unit_that_has_failed_before_is_reset(booted: Booted) -> None:
    booted.systemd.refuse_once = ("org.freedesktop.systemd1.UnitExists", "it is there")
    booted.runtime.start("sleep", "100")
    calls = [call for call in booted.systemd.calls if call != "Get"]
    assert calls[:3] == ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]


def test_what_systemd_refuses_is_told_and_leaves_nothing(booted: Booted) -> None:
    booted.systemd.refuse_once = ("org.freedesktop.DBus.Error.InvalidArgs", "no such slice")
    done = booted.runtime.run("true")
    assert done.returncode == 1
    assert f'unable to start unit "{booted.unit}": no such slice' in done.stderr
    booted.systemd.job_result = "failed"
    assert "got `failed`" in booted.runtime.run("true").stderr
    booted.systemd.job_result = "done"
    assert booted.runtime.call("list", "--quiet").stdout == ""
    assert booted.systemd.units == {}


def test_a_scope_with_processes_is_refused(booted: Booted) -> None:
    booted.runtime.start("sleep", "100")
    done = booted.runtime.run("true", container_id=f"{booted.runtime.id}-2")
    assert done.returncode == 1
    assert "container's cgroup is not empty: 1 process(es) found" in done.stderr
    assert booted.runtime.state()["status"] == "running"


def test_a_create_that_was_killed_is_deleted_with_its_unit(booted: Booted) -> None:
    runtime = booted.runtime
    runtime.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "60"]}]}
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    command = [*runtime.prefix, LOWRT, "--root", runtime.root, *runtime.flags, "create", "--bundle", runtime.bundle, runtime.id]
    create = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: booted.unit in booted.systemd.units and booted.systemd.jobs, what="the unit, with the process in it")
    create.kill()
    create.wait()
    runtime.call("delete", "--force", runtime.id, check=True)
    assert booted.systemd.units == {}
    assert not any((root / "stratatest.slice" / booted.slice / booted.unit).exists() for root in ROOT.iterdir())


def test_root_speaks_to_systemd_without_a_bus(booted: Booted) -> None:
    direct = Direct(booted.systemd, booted.run_folder / "private")
    try:
        booted.runtime.prefix = booted.runtime.prefix[:2]
        booted.runtime.start("sleep", "100")
        assert booted.unit in booted.systemd.units
        booted.runtime.call("delete", "--force", booted.runtime.id, check=True)
        assert booted.systemd.units == {}
    finally:
        direct.close()


def test_a_users_manager_has_its_slices_below_its_own_group(booted: Booted, mode: str) -> None:
    runtime = booted.runtime
    prefix = [*runtime.prefix]
    prefix[-1] = prefix[-1].replace("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS")
    runtime.prefix, runtime.flags = prefix, ["--systemd-cgroup", "--rootless=true"]
    if mode == "v1":
        assert "cannot use rootless systemd cgroups manager on cgroup v1" in runtime.run("true").stderr
        return
    booted.systemd.base = f"/stratatest.slice/{booted.slice}"
    runtime.config["linux"]["cgroupsPath"] = "app.slice:strata:one"
    pid = runtime.start("sleep", "100")
    where = f"/stratatest.slice/{booted.slice}/app.slice/strata-one.scope"
    assert f"0::{where}\n" in Path(f"/proc/{pid}/cgroup").read_text()
    runtime.call("delete", "--force", runtime.id, check=True)
    (booted.systemd.hierarchies[0] / where[1:]).parent.rmdir()


def test_a_path_that_names_no_unit_is_refused(booted: Booted) -> None:
    for path, message in (
        ("/absolute", "slice:prefix:name"), ("only:two", "slice:prefix:name"), ("no:x:y", "invalid slice name: no"),
        ("a--b.slice:x:y", "invalid slice name: a--b.slice"), ("a.slice:x:y/z", "has no slashes"),
    ):  # fmt: skip
        booted.runtime.config["linux"]["cgroupsPath"] = path
        done = booted.runtime.run("true")
        assert done.returncode == 1
        assert message in done.stderr


def test_where_systemd_does_not_run_it_is_refused(tmp_path: Path) -> None:
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs on this machine")
    runtime = Runtime(tmp_path)
    try:
        runtime.flags = ["--systemd-cgroup"]
        done = runtime.run("true")
        assert done.returncode == 1
        assert "systemd not running on this host, cannot use systemd cgroups manager" in done.stderr
    finally:
        runtime.clean()

"""A user without privileges, as on a person's machine: a systemd manager of their own that was given controllers, and
subordinate IDs that newuidmap and newgidmap map (user_namespaces(7), subuid(5))."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.vm.inside.conftest import CGROUPS, BootedRuntime
from tests.vm.inside.user import MANAGER, UID, as_user, login


class RootlessRuntime(BootedRuntime):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self.bundle / "config.json").unlink()
        subprocess.run(["chown", "-R", f"{UID}:{UID}", folder], check=True)
        subprocess.run(as_user(self.program, "spec", "--rootless", "--bundle", self.bundle), check=True)
        self.config = json.loads((self.bundle / "config.json").read_text())
        self.config["process"]["terminal"] = False
        self.config["root"]["readonly"] = False

    def call(self, *argv: str | Path, check: bool = False, **options: Any) -> "subprocess.CompletedProcess[str]":
        given = {"stdin": subprocess.DEVNULL, "timeout": 60, "capture_output": True, **options}
        command = as_user(self.program, "--root", self.root, *self.flags, *argv)
        done = subprocess.run(command, text=True, cwd=self.bundle, **given)
        assert not check or done.returncode == 0, f"{argv}: {done.returncode} {done.stdout} {done.stderr}"
        return done


@pytest.fixture(scope="module", autouse=True)
def logged_in() -> Iterator[None]:
    with login():
        yield


@pytest.fixture
def rootless(open_folder: Path) -> Iterator[RootlessRuntime]:
    made = RootlessRuntime(open_folder)
    try:
        yield made
    finally:
        made.clean()


def give_all_ids(config: dict[str, Any]) -> None:
    for name in ("uidMappings", "gidMappings"):
        config["linux"][name] = [
            {"containerID": 0, "hostID": UID, "size": 1},
            {"containerID": 1, "hostID": 100000, "size": 65536},
        ]


def test_a_user_runs_a_container_with_one_id(rootless: RootlessRuntime) -> None:
    printed = rootless.shell("id -u; cat /proc/self/uid_map /proc/self/setgroups; touch /file; echo $$")
    assert printed.split() == ["0", "0", str(UID), "1", "deny", "1"]
    assert (rootless.bundle / "rootfs/file").stat().st_uid == UID
    assert rootless.call("list", "--quiet").stdout == ""


def test_the_subordinate_ids_are_mapped_by_newuidmap(rootless: RootlessRuntime) -> None:
    give_all_ids(rootless.config)
    rootless.config["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": [7]}
    (rootless.bundle / "rootfs/tmp").chmod(0o1777)
    assert rootless.shell("id -u; id -G; touch /tmp/file").split() == ["5", "6", "7"]
    assert (rootless.bundle / "rootfs/tmp/file").stat().st_uid == 100000 + 4
    rootless.config["linux"]["uidMappings"][1]["hostID"] = 500000
    done = rootless.run("true")
    assert done.returncode != 0
    assert "newuidmap" in done.stderr


def test_the_life_of_a_users_container(rootless: RootlessRuntime) -> None:
    pid = rootless.start("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done")
    assert os.stat(f"/proc/{pid}").st_uid == UID
    assert rootless.inside("cat", "/proc/1/comm") == "sh\n"
    assert str(pid) in rootless.call("ps", rootless.id, check=True).stdout
    rootless.call("kill", rootless.id, "TERM", check=True)
    wait_for(lambda: rootless.state()["status"] == "stopped", what="the container to stop")
    rootless.call("delete", rootless.id, check=True)
    assert rootless.call("list", "--quiet").stdout == ""


def test_limits_are_set_in_a_group_that_was_delegated(rootless: RootlessRuntime) -> None:
    path = f"{MANAGER.relative_to(CGROUPS)}/app.slice/{rootless.id}"
    rootless.config["linux"]["cgroupsPath"] = f"/{path}"
    rootless.config["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 30}}
    rootless.start("sh", "-c", "while :; do sleep 1; done")
    assert rootless.folder() == CGROUPS / path
    assert (rootless.value("memory.max"), rootless.value("pids.max")) == (str(64 << 20), "30")
    rootless.call("update", "--pids-limit", "20", rootless.id, check=True)
    assert rootless.value("pids.max") == "20"
    rootless.call("pause", rootless.id, check=True)
    assert rootless.state()["status"] == "paused"
    rootless.call("resume", rootless.id, check=True)
    rootless.call("delete", "--force", rootless.id, check=True)
    assert not (CGROUPS / path).exists()


def test_a_group_that_is_not_the_users_is_refused(rootless: RootlessRuntime) -> None:
    rootless.config["linux"]["cgroupsPath"] = "/system.slice/theirs"
    done = rootless.run("true")
    assert done.returncode == 1
    assert "permission denied" in done.stderr.lower()
    assert not (CGROUPS / "system.slice/theirs").exists()
    assert rootless.call("list", "--quiet").stdout == ""


def test_the_users_systemd_makes_the_scope(rootless: RootlessRuntime) -> None:
    rootless.flags = ("--systemd-cgroup",)
    rootless.config["linux"]["cgroupsPath"] = f"user.slice:strata:{rootless.id}"
    rootless.config["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 30}}
    rootless.start("sh", "-c", "while :; do sleep 1; done")
    unit = f"strata-{rootless.id}.scope"
    assert rootless.folder() == MANAGER / "user.slice" / unit
    assert (rootless.value("memory.max"), rootless.value("pids.max")) == (str(64 << 20), "30")

    def show(name: str) -> str:
        command = as_user("systemctl", "--user", "show", "--property", name, "--value", unit)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    assert (show("MemoryMax"), show("TasksMax")) == (str(64 << 20), "30")
    rootless.call("update", "--pids-limit", "20", rootless.id, check=True)
    assert show("TasksMax") == "20"
    assert rootless.inside("cat", "/proc/1/comm") == "sh\n"
    rootless.call("delete", "--force", rootless.id, check=True)
    wait_for(lambda: show("LoadState") == "not-found", what="the unit to go")

"""Containers that manage cgroups of their own: a writable cgroup mount on v2, as systemd, Docker and kubelets inside need it."""

import os
from typing import Any

from tests.conftest import wait_for
from tests.vm.inside.conftest import BootedRuntime


def make_cgroups_writable(config: dict[str, Any]) -> None:
    for mount in config["mounts"]:
        if mount["type"] == "cgroup":
            mount["options"] = [option for option in mount["options"] if option != "ro"]


def test_exec_joins_the_containers_group_while_it_can(runtime: BootedRuntime) -> None:
    """crun 81, youki 3437: once the container has given controllers to its groups, the top one takes no process: EBUSY.

    exec then joins the group that the container's first process is in, as runc does.
    """
    make_cgroups_writable(runtime.config)
    runtime.start("sh", "-c", "while :; do sleep 1; done")
    assert "memory" in runtime.inside("cat", "/sys/fs/cgroup/cgroup.controllers")
    assert runtime.inside("cat", "/proc/self/cgroup") == "0::/\n"
    runtime.inside("sh", "-ec", "mkdir /sys/fs/cgroup/foo; echo 1 >/sys/fs/cgroup/foo/cgroup.procs")
    assert runtime.inside("cat", "/proc/self/cgroup") == "0::/\n"
    script = """cd /sys/fs/cgroup
        for pid in $(cat cgroup.procs); do echo $pid >foo/cgroup.procs 2>/dev/null || true; done
        echo $$ >foo/cgroup.procs
        echo +memory >cgroup.subtree_control"""
    # The first process's `sleep` may have been born meanwhile: then again.
    wait_for(lambda: runtime.call("exec", runtime.id, "sh", "-ec", script).returncode == 0, what="the controllers")
    assert runtime.inside("cat", "/proc/self/cgroup") == "0::/foo\n"
    assert runtime.inside("cat", "/sys/fs/cgroup/foo/memory.max") == "max\n"
    explicit = runtime.call("exec", "--cgroup", "/foo", runtime.id, "cat", "/proc/self/cgroup", check=True).stdout
    assert explicit == "0::/foo\n"
    refused = runtime.call("exec", "--cgroup", "/", runtime.id, "cat", "/proc/self/cgroup")
    assert refused.returncode != 0


def test_nested_groups_are_paused_listed_killed_and_removed(runtime: BootedRuntime) -> None:
    make_cgroups_writable(runtime.config)
    script = """mkdir -p /sys/fs/cgroup/one/two
        (echo 0 >/sys/fs/cgroup/one/two/cgroup.procs; exec sleep 1000) &
        wait"""
    runtime.start("sh", "-c", script)
    folder = runtime.folder()
    wait_for(lambda: (folder / "one/two/cgroup.procs").exists() and (folder / "one/two/cgroup.procs").read_text(), what="sleep")
    assert len(runtime.call("ps", "--format", "json", runtime.id, check=True).stdout.split(",")) == 2
    runtime.call("pause", runtime.id, check=True)
    assert "frozen 1" in (folder / "one/two/cgroup.events").read_text()
    runtime.call("delete", "--force", runtime.id, check=True)
    assert not folder.exists()


def test_a_group_is_delegated_to_the_containers_root(runtime: BootedRuntime) -> None:
    """With a user namespace and a cgroup namespace, a writable mount of v2 belongs to the container's user.

    runtime-spec, config-linux, Cgroup ownership: the group and the files that the kernel lists, and no limit among them.
    """
    make_cgroups_writable(runtime.config)
    linux = runtime.config["linux"]
    linux["namespaces"] += [{"type": "user"}]
    if not any(namespace["type"] == "cgroup" for namespace in linux["namespaces"]):
        linux["namespaces"] += [{"type": "cgroup"}]
    linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    linux["resources"]["memory"] = {"limit": 64 << 20}
    os.chown(runtime.bundle / "rootfs", 100000, 100000)  # mount points are made in it
    runtime.start("sh", "-c", "while :; do sleep 1; done")
    folder = runtime.folder()
    assert folder.stat().st_uid == 100000
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        assert (folder / name).stat().st_uid == 100000, name
    assert (folder / "memory.max").stat().st_uid == 0
    assert runtime.inside("sh", "-ec", "mkdir /sys/fs/cgroup/mine && echo made") == "made\n"
    assert runtime.call("exec", runtime.id, "sh", "-ec", "echo max >/sys/fs/cgroup/memory.max").returncode != 0

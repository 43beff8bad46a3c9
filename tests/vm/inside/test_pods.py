"""highrt's pods on a machine with systemd, cgroup v2 with every controller, and AppArmor."""

import asyncio
from pathlib import Path

import pytest

from highrt.pods.errors import InvalidArgument
from highrt.pods.model import Container
from strata.protocols.cri_pb2 import LinuxContainerResources, NamespaceMode, SecurityProfile
from tests.integration.pods.conftest import Node, ended, node

__all__ = ["node"]

GROUPS = Path("/sys/fs/cgroup")


def group_of(container: Container) -> Path:
    """The cgroup of a container's first process, as the kernel tells it."""
    line = Path(f"/proc/{container.pid}/cgroup").read_text().strip()
    return GROUPS / line.removeprefix("0::").lstrip("/")


async def test_a_pod_in_a_slice_has_its_containers_in_scopes_of_systemds(node: Node) -> None:
    config = node.pod()
    config.linux.cgroup_parent = "/stratatest.slice/stratatest-pod1.slice"
    config.linux.security_context.namespace_options.pid = NamespaceMode.POD
    pod = await node.manager.run_pod(config)
    wanted = node.container("sleep", "60")
    wanted.linux.security_context.namespace_options.pid = NamespaceMode.POD
    wanted.linux.resources.memory_limit_in_bytes = 64 << 20
    container = await node.manager.create_container(pod.id, wanted)
    await node.manager.start_container(container.id)
    group = group_of(container)
    assert group == GROUPS / f"stratatest.slice/stratatest-pod1.slice/strata-{container.id}.scope"
    assert (group / "memory.max").read_text() == f"{64 << 20}\n"
    await node.manager.update_resources(container.id, LinuxContainerResources(memory_limit_in_bytes=32 << 20, cpu_shares=512))
    assert (group / "memory.max").read_text() == f"{32 << 20}\n"
    used = await node.manager.container_stats(container.id)
    assert used.memory_working_set_bytes > 0
    assert {"cpu", "memory", "io"} == set(used.pressure)
    whole = await node.manager.pod_stats(pod.id)
    assert whole.pressure["memory"].some_ns >= 0
    assert await node.manager.exec_sync(container.id, ["cat", "/proc/1/comm"]) == (b"init\n", b"", 0)
    await node.manager.remove_pod(pod.id)
    assert not group.exists()
    # the slices are the kubelet's, which this test stands for
    stop = await asyncio.create_subprocess_exec("systemctl", "stop", "stratatest.slice")
    assert await stop.wait() == 0


async def test_memory_over_the_limit_is_reported_as_oom(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    wanted = node.container("sh", "-c", "tail /dev/zero")
    wanted.linux.resources.memory_limit_in_bytes = wanted.linux.resources.memory_swap_limit_in_bytes = 32 << 20
    container = await node.manager.create_container(pod.id, wanted)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id, 60)
    assert container.reason == "OOMKilled"


async def test_containers_get_the_default_apparmor_profile_and_are_held_back_by_it(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    script = "cat /proc/self/attr/current; mount -t tmpfs none /tmp; echo x > /tmp/file && cat /tmp/file"
    wanted = node.container("sh", "-c", script)
    wanted.linux.security_context.capabilities.add_capabilities.append("SYS_ADMIN")
    container = await node.manager.create_container(pod.id, wanted)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id, 30)
    lines = [line.partition(" F ")[2] for line in node.log()]
    assert lines[0] == "highrt-default (enforce)"
    assert "ermission denied" in " ".join(lines)
    assert lines[-1] == "x"


async def test_an_apparmor_profile_by_name_or_none_at_all(node: Node) -> None:
    profile = "profile strata-test-nofiles flags=(attach_disconnected) { file, network, capability, deny /tmp/** w, }"
    parser = await asyncio.create_subprocess_exec("apparmor_parser", "--replace", stdin=asyncio.subprocess.PIPE)
    await parser.communicate(profile.encode())
    assert parser.returncode == 0
    pod = await node.manager.run_pod(node.pod())
    local = SecurityProfile.ProfileType.Localhost
    for name, asked, expected in (
        ("one", SecurityProfile(profile_type=local, localhost_ref="strata-test-nofiles"), "strata-test-nofiles (enforce)"),
        ("two", SecurityProfile(profile_type=SecurityProfile.ProfileType.Unconfined), "unconfined"),
    ):
        wanted = node.container("sh", "-c", "cat /proc/self/attr/current; echo x > /tmp/file || echo denied", name=name)
        wanted.linux.security_context.apparmor.CopyFrom(asked)
        container = await node.manager.create_container(pod.id, wanted)
        await node.manager.start_container(container.id)
        await ended(node.manager, container.id, 30)
        assert node.log(name)[0] == f"stdout F {expected}"
        assert ("stdout F denied" in node.log(name)) == (name == "one")
    wanted = node.container("true", name="three")
    wanted.linux.security_context.apparmor_profile = "localhost/not-loaded"
    with pytest.raises(InvalidArgument, match="it is not loaded"):
        await node.manager.create_container(pod.id, wanted)


async def test_a_container_has_swap_and_unified_limits(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    wanted = node.container("sleep", "60")
    wanted.linux.resources.memory_limit_in_bytes = 32 << 20
    wanted.linux.resources.memory_swap_limit_in_bytes = 48 << 20
    wanted.linux.resources.unified["memory.high"] = str(24 << 20)
    container = await node.manager.create_container(pod.id, wanted)
    await node.manager.start_container(container.id)
    group = group_of(container)
    values = [int((group / name).read_text()) >> 20 for name in ("memory.max", "memory.swap.max", "memory.high")]
    assert values == [32, 16, 24]

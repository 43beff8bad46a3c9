"""Published holes of other container managers, each mounted against this one. Those about requests are in
tests/integration/highrt/test_cri.py, those of the runtime in tests/integration/escapes, of `cp` in test_copy.py."""

import asyncio
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from highrt.pods.errors import InvalidArgument, PodError
from highrt.pods.extras import ANNOTATION
from highrt.pods.model import Stdio
from strata.linux import cgroups
from strata.protocols.cri_pb2 import ContainerConfig, KeyValue, PodSandboxConfig
from tests.integration.pods.conftest import Node, ended


async def run(node: Node, *argv: str, name: str = "c", **fields: object) -> list[str]:
    """What a container prints."""
    container = await node.started(*argv, name=name, **fields)
    await ended(node.manager, container)
    await node.manager.remove_pod(node.manager.container(container).pod_id)
    return [line.partition("stdout F ")[2] for line in node.log(name)]


async def test_containers_of_one_image_keep_their_environments_apart(node: Node) -> None:
    """CVE-2021-21334."""

    async def one(number: int) -> None:
        name = f"c{number}"
        said = await run(node, "env", name=name, envs=[KeyValue(key="MINE", value=name.encode()), KeyValue(key=f"ONLY_{number}")])
        assert f"MINE={name}" in said
        assert [line for line in said if line.startswith("ONLY_")] == [f"ONLY_{number}="]

    await asyncio.gather(*(one(number) for number in range(10)))


@pytest.mark.parametrize("volume", ["/../../../../../../etc", "/data/../../../etc", "/link"])
async def test_an_images_volumes_show_nothing_of_the_host(node: Node, volume: str) -> None:
    """CVE-2022-23648: what lies on the host at the path of a volume of the image's was copied into the container."""
    image = node.images.image
    node.images.image = replace(image, config=replace(image.config, volumes=(volume,)))
    (node.folder / "base/link").symlink_to("/etc")
    secret = Path("/etc/strata-test-secret")
    secret.write_text("of the host")
    try:
        shown = await run(node, "sh", "-c", "cat /etc/strata-test-secret /link/strata-test-secret 2>/dev/null; ls /; echo end")
    finally:
        secret.unlink()
    assert "of the host" not in " ".join(shown)
    assert shown[-1] == "end"


async def test_no_capability_is_inheritable(node: Node) -> None:
    """CVE-2022-24769: a program with file capabilities got what its user had lost."""
    config = node.container("sh", "-c", "cat /proc/self/status")
    config.linux.security_context.capabilities.add_capabilities.append("NET_ADMIN")
    config.linux.security_context.run_as_user.value = 1001
    pod = await node.manager.run_pod(node.pod())
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    found = {line.split(":")[0]: line.split()[-1] for line in (text.partition(" F ")[2] for text in node.log()) if "Cap" in line}
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0


async def test_endless_output_of_an_exec_takes_no_memory(node: Node) -> None:
    """CVE-2022-31030 and CVE-2022-1708."""
    container = await node.started("sleep", "60")
    before = resident()
    with pytest.raises(TimeoutError):
        await node.manager.exec_sync(container, ["sh", "-c", "yes & yes >&2"], timeout_seconds=2)
    assert resident() - before < 120 << 20  # 16 MiB of each, twice while they are joined
    await asyncio.sleep(0.2)
    left = (await node.manager.exec_sync(container, ["ps"]))[0].splitlines()
    assert not [line for line in left if line.split()[-1] == b"yes"], "[yes] is one that has ended"


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


async def test_the_first_group_is_one_of_the_groups(node: Node) -> None:
    """CVE-2023-25173: without it, a file that is closed to a group was open to its members."""
    config = node.container("sh", "-c", "id -G; id -u")
    context = config.linux.security_context
    context.run_as_user.value, context.run_as_group.value = 1001, 4711
    context.supplemental_groups.append(10)
    pod = await node.manager.run_pod(node.pod())
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    groups = {int(number) for number in node.log()[0].partition(" F ")[2].split()}
    assert {4711, 10} <= groups
    assert 0 not in groups


@pytest.mark.parametrize("user", ["4294967296", "2147483648", "0:4294967296", "-1", "65536 0"])
async def test_a_user_of_the_image_that_is_no_number_is_not_root(node: Node, user: str) -> None:
    """CVE-2024-40635: one that was too large became 0."""
    image = node.images.image
    node.images.image = replace(image, config=replace(image.config, user=user))
    pod = await node.manager.run_pod(node.pod())
    try:
        container = await node.manager.create_container(pod.id, node.container("id", "-u"))
        await node.manager.start_container(container.id)
        await ended(node.manager, container.id)
    except (InvalidArgument, PodError):
        return
    assert node.log()[0] != "stdout F 0"


async def test_a_users_annotations_set_no_limits_and_no_files(node: Node) -> None:
    """CVE-2023-6476: a pod's annotation set resources past what it was allowed. Ours is believed of a person's pods only."""
    asked = json.dumps(
        {"pids_limit": 1, "hosts": {"bad": "198.51.100.1"}, "tmpfs": {"/etc": ""}, "rlimits": {"RLIMIT_NOFILE": [3, 3]}}
    )
    pod = await node.manager.run_pod(node.pod(annotations={ANNOTATION: asked}))
    config = node.container("sh", "-c", "ulimit -n; cat /etc/hosts; ls -d /etc/passwd", annotations={ANNOTATION: asked})
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    said = [line.partition(" F ")[2] for line in node.log()]
    assert int(said[0]) > 3
    assert said[-1] == "/etc/passwd"
    assert "198.51.100.1" not in " ".join(said)


async def test_labels_of_an_image_drive_nothing(node: Node) -> None:
    """CVE-2026-53488."""
    labels = {
        ANNOTATION: '{"rlimits": {"RLIMIT_NOFILE": [3, 3]}}',
        "io.kubernetes.cri.sandbox-id": "x",
        "io.containerd.image.config.stop-signal": "9",
        "io.kubernetes.cri-o.userns-mode": "host",
        "privileged": "true",
    }
    plain = await run(node, "sh", "-c", "ulimit -n; cat /proc/self/status | grep CapEff", name="plain")
    image = node.images.image
    node.images.image = replace(image, config=replace(image.config, labels=labels))
    assert await run(node, "sh", "-c", "ulimit -n; cat /proc/self/status | grep CapEff", name="labelled") == plain


@pytest.mark.parametrize("place", ["etc", "etc/hosts", "etc/resolv.conf", "dev", "proc"])
async def test_links_of_an_image_lead_nowhere(node: Node, place: str) -> None:
    """CVE-2024-5154 and its kin: files that the manager makes in a root were made on the host, through a link of the image's."""
    outside = node.folder / "outside"
    outside.mkdir()
    target = node.folder / "base" / place
    if target.is_dir():
        for file in target.iterdir():
            file.unlink()
        target.rmdir()
    target.symlink_to(f"/../../../../..{outside}/{target.name}" if "/" in place else f"/../../../../..{outside}")
    pod = await node.manager.run_pod(node.pod())
    container = await node.manager.create_container(pod.id, node.container("true"))
    try:
        await node.manager.start_container(container.id)
        await ended(node.manager, container.id)
    except PodError:
        pass  # that is well, too
    assert list(outside.iterdir()) == []


async def test_clients_that_attach_and_leave_take_nothing_along(node: Node) -> None:
    """CVE-2025-64329."""
    container = await node.started("sleep", "60", stdin=True)
    monitor = node.manager._monitors.client(node.manager.container(container).pod_id).pid
    processes = (os.getpid(), monitor)

    async def come_and_go() -> None:
        (stdin, typed), (shown, stdout) = os.pipe(), os.pipe()
        session = await node.manager.attach(container, Stdio(stdin=stdin, stdout=stdout))
        await session.detach()
        os.close(typed)
        os.close(shown)

    for _ in range(5):
        await come_and_go()
    await asyncio.sleep(0.2)
    before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in processes]
    for _ in range(50):
        await come_and_go()
    deadline = time.monotonic() + 5
    while [len(os.listdir(f"/proc/{pid}/fd")) for pid in processes] > before and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert [len(os.listdir(f"/proc/{pid}/fd")) for pid in processes] <= before


async def test_a_log_that_is_a_link_is_not_followed(node: Node) -> None:
    """A pod that may write to the node's log folder could have its lines written anywhere (kubelets read them back, too)."""
    (node.folder / "logs").mkdir()
    victim = node.folder / "victim"
    victim.write_text("kept\n")
    (node.folder / "logs/c.log").symlink_to(victim)
    with pytest.raises(PodError):
        await node.started("sh", "-c", "echo written")
    assert victim.read_text() == "kept\n"
    assert not cgroups.open_cgroup(f"/strata/{node.name}/pods").pids(recursive=True)


async def test_a_log_in_a_folder_that_is_a_link_is_not_written(node: Node) -> None:
    logs, outside = node.folder / "logs", node.folder / "outside"
    logs.mkdir()
    outside.mkdir()
    (logs / "link").symlink_to(outside)
    pod = await node.manager.run_pod(node.pod())

    def asked(path: str) -> ContainerConfig:
        config = node.container("sh", "-c", "while :; do echo line; sleep 0.02; done", name=path.replace("/", "-"))
        config.log_path = path
        return config

    for path in ("link/c.log", "link/deeper/c.log", "./a/../link/c.log"):
        with pytest.raises(InvalidArgument, match="'link' is a link"):
            await node.manager.create_container(pod.id, asked(path))
    for path in ("../c.log", "a/../../c.log", "link/../../outside/c.log", "..", ".", "a/..", str(outside / "c.log")):
        with pytest.raises(InvalidArgument, match="leads out"):
            await node.manager.create_container(pod.id, asked(path))
    with pytest.raises(InvalidArgument, match="must be an absolute path"):
        await node.manager.create_container(pod.id, asked("c.log"), PodSandboxConfig(log_directory="logs"))
    before_start = await node.manager.create_container(pod.id, asked("before/c.log"))
    (logs / "before").rmdir()
    (logs / "before").symlink_to(outside)
    with pytest.raises(PodError, match="'before' is a link"):
        await node.manager.start_container(before_start.id)
    running = await node.manager.create_container(pod.id, asked("later/c.log"))
    await node.manager.start_container(running.id)
    (logs / "later").rename(logs / "moved")
    (logs / "later").symlink_to(outside)
    with pytest.raises(PodError):
        await node.manager.reopen_log(running.id)
    size = (logs / "moved/c.log").stat().st_size
    async with asyncio.timeout(5):
        while (logs / "moved/c.log").stat().st_size == size:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in node.folder.iterdir()) == ["base", "logs", "outside", "root", "s", "snapshots"]


async def test_the_log_directory_itself_may_be_reached_by_a_link(node: Node) -> None:
    (node.folder / "elsewhere").mkdir()
    (node.folder / "logs").symlink_to(node.folder / "elsewhere")
    container = await node.started("echo", "hello")
    await ended(node.manager, container)
    assert node.manager.container(container).log_path == str(node.folder / "logs/c.log")
    assert node.log() == ["stdout F hello"]

"""The life of pods and containers, as the CRI services and the person's API see it."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from highrt.pods.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PodError
from highrt.pods.manager import default_handlers
from highrt.pods.model import ContainerState, EventKind, Handler, Owner, Stdio
from strata.protocols.cri_pb2 import LinuxContainerResources, Mount, NamespaceMode, SecurityProfile
from strata.telemetry import spans

from .conftest import Node, collect, ended, read_all


async def test_a_whole_life(node: Node) -> None:
    manager = node.manager
    pod = await manager.run_pod(node.pod())
    container = await manager.create_container(pod.id, node.container("sh", "-c", "echo out; echo err >&2; exit 3"))
    assert container.state == ContainerState.CREATED
    await manager.start_container(container.id)
    await ended(manager, container.id)
    assert (container.exit_code, container.reason, container.pid) == (3, "Error", 0)
    assert sorted(node.log()) == ["stderr F err", "stdout F out"]
    await manager.remove_pod(pod.id)
    assert manager.pods() == manager.containers() == []
    assert node.images.left() == []
    assert os.listdir(node.folder / "s" / "pods") == []
    assert os.listdir(node.folder / "s" / "m") == []
    await manager.remove_pod(pod.id)
    await manager.remove_container(container.id)


async def test_what_a_container_sees(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    (node.folder / "shared").mkdir()
    (node.folder / "shared/hello").write_text("hi")
    config = node.container("sh", "-c", "echo $FROM $MINE $$; cat /host/hello; touch /host/x 2>/dev/null || echo ro; pwd; id")
    config.working_dir = "/made/by/us"
    config.envs.add(key="MINE", value=b"own")
    config.envs.add(key="FROM", value=b"config")
    config.mounts.append(Mount(container_path="/host", host_path=str(node.folder / "shared"), readonly=True))
    config.linux.security_context.run_as_username = "ann"
    config.linux.security_context.supplemental_groups.append(4242)
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    assert [line.removeprefix("stdout F ") for line in node.log()] == [
        "config own 1", "hiro", "/made/by/us", "uid=1001(ann) gid=1002(ann) groups=10(wheel),1002(ann),4242",
    ]  # fmt: skip


async def test_a_container_is_limited_and_the_limits_change(node: Node) -> None:
    container_id = await node.started("sleep", "60")
    container = node.manager.container(container_id)
    memory = Path(f"/sys/fs/cgroup/memory{container.cgroup}/memory.limit_in_bytes")
    await node.manager.update_resources(container_id, LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512))
    assert int(memory.read_text()) == 64 << 20
    assert container.config.linux.resources.cpu_shares == 512
    stats = await node.manager.container_stats(container_id)
    assert stats.pids == 1
    assert stats.memory_usage_bytes > 0


async def test_memory_over_the_limit_is_reported_as_oom(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    config = node.container("sh", "-c", "tail /dev/zero")
    config.linux.resources.memory_limit_in_bytes = 20 << 20
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    assert (container.exit_code, container.reason) == (137, "OOMKilled")


async def test_a_wrong_command_is_a_start_error(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    container = await node.manager.create_container(pod.id, node.container("no-such-program"))
    with pytest.raises(PodError, match=r"no-such-program.*executable file not found"):
        await node.manager.start_container(container.id)
    assert (container.state, container.exit_code, container.reason) == (ContainerState.EXITED, 128, "StartError")
    assert "no-such-program" in container.message
    with pytest.raises(FailedPrecondition):
        await node.manager.start_container(container.id)


async def test_bad_requests_are_told_and_leave_nothing(node: Node) -> None:
    manager = node.manager
    pod = await manager.run_pod(node.pod())
    with pytest.raises(AlreadyExists, match=pod.id):
        await manager.run_pod(node.pod())
    with pytest.raises(InvalidArgument, match="handler 'nobody'"):
        await manager.run_pod(node.pod("q"), handler="nobody")
    bad = node.pod("q")
    bad.linux.sysctls["kernel.panic"] = "1"
    with pytest.raises(InvalidArgument, match="belongs to no namespace"):
        await manager.run_pod(bad)
    unknown = node.container("true")
    unknown.image.image = "other:tag"
    with pytest.raises(NotFound, match="other:tag"):
        await manager.create_container(pod.id, unknown)
    stranger = node.container("true")
    stranger.linux.security_context.run_as_username = "nobody-here"
    with pytest.raises(InvalidArgument, match="nobody-here"):
        await manager.create_container(pod.id, stranger)
    outside = node.container("true")
    outside.log_path = "../../x.log"
    with pytest.raises(InvalidArgument, match="leads out"):
        await manager.create_container(pod.id, outside)
    with pytest.raises(NotFound):
        await manager.start_container("feed")
    assert manager.pods() == [pod]
    assert manager.containers() == []
    assert node.images.left() == []
    # The name of a container that could not be made is free again.
    await manager.create_container(pod.id, node.container("true"))
    with pytest.raises(AlreadyExists):
        await manager.create_container(pod.id, node.container("true"))


async def test_ids_may_be_shortened_while_they_are_clear(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    assert node.manager.pod(pod.id[:12]) is pod
    with pytest.raises(NotFound):
        node.manager.pod("")
    assert node.manager.pods(Owner.PERSON) == []
    assert node.manager.pods(Owner.KUBELET) == [pod]


async def test_stop_asks_first_and_kills_after_the_time_out(node: Node) -> None:
    script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    polite = await node.started("sh", "-c", script, name="polite")
    await node.said("ready", "polite")  # before its trap, the first process of a PID namespace does not hear SIGTERM
    await node.manager.stop_container(polite, 5)
    assert node.manager.container(polite).exit_code == 7
    assert node.log("polite") == ["stdout F ready", "stdout F bye"]
    stubborn = await node.started("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done", name="stubborn")
    await node.manager.stop_container(stubborn, 0.3)
    assert node.manager.container(stubborn).exit_code == 137
    await node.manager.stop_container(stubborn, 1)


async def test_events_come_in_order(node: Node) -> None:
    seen = []

    async def listen() -> None:
        async for event in node.manager.events():
            seen.append(event)

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    container_id = await node.started("true")
    await ended(node.manager, container_id)
    await node.manager.remove_container(container_id)
    await asyncio.sleep(0)
    task.cancel()
    kinds = [event.kind for event in seen if event.container_id == container_id]
    assert kinds == [EventKind.CREATED, EventKind.STARTED, EventKind.STOPPED, EventKind.DELETED]


async def test_exec_sync(node: Node) -> None:
    container_id = await node.started("sleep", "60")
    assert await node.manager.exec_sync(container_id, ["sh", "-c", "echo a; echo b >&2; exit 4"]) == (b"a\n", b"b\n", 4)
    with pytest.raises(PodError, match="executable file not found"):
        await node.manager.exec_sync(container_id, ["no-such-program"])
    with pytest.raises(TimeoutError, match="killed"):
        await node.manager.exec_sync(container_id, ["sleep", "30"], 0.2)
    pids, _, _ = await node.manager.exec_sync(container_id, ["sh", "-c", "ls -d /proc/[0-9]*"])
    assert len(pids.split()) == 2  # the container's own and this ls: the killed one is gone
    large, _, code = await node.manager.exec_sync(container_id, ["head", "-c", "20000000", "/dev/zero"])
    assert (len(large), code) == (16 << 20, 0)


async def test_exec_sync_does_not_wait_for_what_the_command_left_behind(node: Node) -> None:
    container_id = await node.started("sleep", "60")
    async with asyncio.timeout(1.5):
        script = "sleep 33 & head -c 200000 /dev/zero; echo err >&2"
        stdout, stderr, code = await node.manager.exec_sync(container_id, ["sh", "-c", script])
    assert (len(stdout), stderr, code) == (200000, b"err\n", 0)
    assert b"sleep 33" in (await node.manager.exec_sync(container_id, ["ps"]))[0]
    async with asyncio.timeout(1.5):
        assert (await node.manager.exec_sync(container_id, ["sh", "-c", "yes & sleep 0.1"]))[2] == 0


async def test_many_execs_at_once_all_come_through(node: Node) -> None:
    container_id = await node.started("sleep", "60")
    for _ in range(10):
        every = [node.manager.exec_sync(container_id, ["echo", str(number)]) for number in range(8)]
        assert await asyncio.gather(*every) == [(f"{number}\n".encode(), b"", 0) for number in range(8)]


async def test_exec_sync_out_of_time_takes_all_along_that_it_started(node: Node) -> None:
    container_id = await node.started("sh", "-c", "sleep 60 & wait")
    script = "(sleep 77 & sleep 78) & sleep 79"
    with pytest.raises(TimeoutError):
        await node.manager.exec_sync(container_id, ["sh", "-c", script], 0.3)
    left = (await node.manager.exec_sync(container_id, ["ps"]))[0]
    assert b"sleep 7" not in left
    assert b"sleep 60" in left  # the container's own


async def test_exec_with_pipes_has_the_callers_own_streams(node: Node) -> None:
    container_id = await node.started("sleep", "60")
    stdin, typed = os.pipe2(os.O_CLOEXEC)
    output, stdout = os.pipe2(os.O_CLOEXEC)
    session = await node.manager.exec(
        container_id, ["sh", "-c", "cat; echo $WHO $PWD; id -u"], Stdio(stdin, stdout), env={"WHO": "me"}, cwd="/tmp", user="ann"
    )
    os.write(typed, b"typed\n")
    os.close(typed)
    assert await session.wait() == 0
    assert read_all(output) == b"typed\nme /tmp\n1001\n"


async def test_exec_with_a_terminal(node: Node) -> None:
    container_id = await node.started("sleep", "60")
    stdin, typed = os.pipe2(os.O_CLOEXEC)
    output, stdout = os.pipe2(os.O_CLOEXEC)
    session = await node.manager.exec(container_id, ["sh"], Stdio(stdin, stdout), terminal=True)
    await session.resize(77, 33)
    os.write(typed, b"stty size; sh -c 'echo ready; exec sleep 60'\n")  # it is the sleep's process that is ready
    seen = await collect(output, b"ready\r\n", b"33 77\r\n")
    os.write(typed, b"\x03")  # ctrl-c ends the sleep, not the shell
    os.write(typed, b"echo after; exit 5\n")
    assert await asyncio.wait_for(session.wait(), 5) == 5
    seen += await asyncio.to_thread(read_all, output)
    assert b"after\r\n" in seen
    os.close(typed)


async def test_attach_sees_all_from_the_start_and_types(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    config = node.container("sh", "-c", "echo first; read line; echo got $line; cat; echo end >&2", stdin=True, stdin_once=True)
    container = await node.manager.create_container(pod.id, config)
    stdin, typed = os.pipe2(os.O_CLOEXEC)
    output, stdout = os.pipe2(os.O_CLOEXEC)
    errors, stderr = os.pipe2(os.O_CLOEXEC)
    session = await node.manager.attach(container.id, Stdio(stdin, stdout, stderr))
    await node.manager.start_container(container.id)
    os.write(typed, b"hello\nmore\n")
    os.close(typed)  # with stdin_once the container's own stdin ends with the session's
    await asyncio.wait_for(session.wait(), 5)
    assert await asyncio.to_thread(read_all, output) == b"first\ngot hello\nmore\n"
    assert read_all(errors) == b"end\n"
    await ended(node.manager, container.id)
    assert "stdout F got hello" in node.log()


async def test_detaching_leaves_the_container_running(node: Node) -> None:
    container_id = await node.started("sh", "-c", "while :; do echo tick; sleep 0.05; done")
    output, stdout = os.pipe2(os.O_CLOEXEC)
    other, other_stdout = os.pipe2(os.O_CLOEXEC)
    session = await node.manager.attach(container_id, Stdio(stdout=stdout))
    second = await node.manager.attach(container_id, Stdio(stdout=other_stdout))
    await collect(output, b"tick\n")
    await session.detach()
    await asyncio.wait_for(session.wait(), 5)
    read_all(output)
    await collect(other, b"tick\n")
    os.close(other)  # a client that goes without a word is noticed at the next output
    await asyncio.wait_for(second.wait(), 5)
    assert node.manager.container(container_id).state == ContainerState.RUNNING


async def test_a_terminals_output_is_in_the_log(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    config = node.container("sh", "-c", "test -t 0 && test -t 2 && echo terminal; stty size", tty=True, stdin=True)
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    assert node.log()[0] == "stdout F terminal\r"


async def test_long_lines_and_ends_without_newline_are_parts(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    config = node.container("sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo -n rest")
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    lines = node.log()
    assert [(line[:8], len(line) - 9) for line in lines] == [
        ("stdout P", 16384), ("stdout P", 16384), ("stdout F", 40000 - 2 * 16384), ("stdout P", 4),
    ]  # fmt: skip


async def test_a_log_that_was_moved_away_is_opened_anew(node: Node) -> None:
    container_id = await node.started("sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done")
    path = Path(node.manager.container(container_id).log_path)
    await asyncio.sleep(0.1)
    path.rename(path.with_suffix(".1"))
    await node.manager.reopen_log(container_id)
    await asyncio.sleep(0.2)
    await node.manager.stop_container(container_id, 0)
    old = [int(line.split()[-1]) for line in path.with_suffix(".1").read_text().splitlines()]
    new = [int(line.split()[-1]) for line in path.read_text().splitlines()]
    assert old + new == list(range(1, len(old) + len(new) + 1))
    assert old
    assert new


async def test_a_pod_may_share_its_pid_namespace(node: Node) -> None:
    config = node.pod()
    config.linux.security_context.namespace_options.pid = NamespaceMode.POD
    pod = await node.manager.run_pod(config)
    ids = []
    for name in ("first", "second"):
        each = node.container("sleep", "60", name=name)
        each.linux.security_context.namespace_options.pid = NamespaceMode.POD
        ids.append((await node.manager.create_container(pod.id, each)).id)
        await node.manager.start_container(ids[-1])
    seen, _, _ = await node.manager.exec_sync(ids[0], ["sh", "-c", "cat /proc/1/comm; ps -o args | grep -c '^sleep'"])
    assert seen == b"init\n2\n"
    # The first process has nothing to give, and is out of reach.
    found, denied, _ = await node.manager.exec_sync(ids[0], ["sh", "-c", "ls /proc/1/root/; grep CapBnd /proc/1/status"])
    assert found.split() == [b"CapBnd:", b"0000000000000000"]
    assert b"denied" in denied
    await node.manager.stop_container(ids[0], 0)
    assert node.manager.container(ids[1]).state == ContainerState.RUNNING
    await node.reopen()
    assert node.manager.pod(pod.id).ready
    await node.manager.stop_pod(pod.id)
    assert node.manager.container(ids[1]).state == ContainerState.EXITED


async def test_a_container_may_join_the_processes_of_another(node: Node) -> None:
    target = await node.started("sleep", "61")
    debugger = node.container("sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; echo", name="debugger")
    debugger.linux.security_context.namespace_options.pid = NamespaceMode.TARGET
    debugger.linux.security_context.namespace_options.target_id = target
    container = await node.manager.create_container(node.manager.container(target).pod_id, debugger)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    assert node.log("debugger") == ["stdout F sleep 61 "]


async def test_another_runtime_runs_under_the_same_monitor(node: Node) -> None:
    await node.manager.close()
    runc = Handler("runc", "/usr/bin/runc", str(node.folder / "runc"))
    node.manager = node.new_manager(handlers={**default_handlers(), "runc": runc})
    await node.manager.open()
    pod = await node.manager.run_pod(node.pod(), handler="runc")
    container = await node.manager.create_container(pod.id, node.container("sh", "-c", "echo hi; sleep 60"))
    await node.manager.start_container(container.id)
    assert await node.manager.exec_sync(container.id, ["sh", "-c", "echo in; exit 3"]) == (b"in\n", b"", 3)
    with pytest.raises(PodError, match="executable file not found"):
        await node.manager.exec_sync(container.id, ["no-such-program"])
    await node.manager.stop_container(container.id, 0)
    assert container.exit_code == 137
    assert node.log() == ["stdout F hi"]
    wrong = await node.manager.create_container(pod.id, node.container("no-such-program", name="wrong"))
    with pytest.raises(PodError, match="executable file not found"):
        await node.manager.start_container(wrong.id)
    terminal = await node.manager.create_container(
        pod.id, node.container("sh", "-c", "test -t 0 && echo tty", name="t", tty=True)
    )
    await node.manager.start_container(terminal.id)
    await ended(node.manager, terminal.id)
    assert node.log("t") == ["stdout F tty\r"]
    await node.manager.stop_pod(pod.id)
    assert not list((node.folder / "runc").glob("*"))


async def test_the_default_seccomp_profile_holds_a_container_back(node: Node) -> None:
    pod = await node.manager.run_pod(node.pod())
    config = node.container("sh", "-c", "cat /proc/self/status | grep Seccomp:; mount -t tmpfs none /tmp || echo refused")
    config.linux.security_context.seccomp.profile_type = SecurityProfile.RuntimeDefault
    config.linux.security_context.no_new_privs = True
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    assert node.log()[0] == "stdout F Seccomp:\t2"
    assert "stdout F refused" in node.log()


async def test_a_privileged_container_sees_the_hosts_devices(node: Node) -> None:
    wanted = node.pod()
    wanted.linux.security_context.privileged = True
    pod = await node.manager.run_pod(wanted)
    config = node.container("sh", "-c", "mount -t tmpfs none /tmp && echo mounted; test -c /dev/kmsg && echo kmsg")
    config.linux.security_context.privileged = True
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    assert node.log() == ["stdout F mounted", "stdout F kmsg"]


async def test_a_slow_client_gets_everything_and_the_log_loses_nothing(node: Node) -> None:
    """The container is held back while the client does not read, and ends while there is still much on its way."""
    pod = await node.manager.run_pod(node.pod())
    container = await node.manager.create_container(pod.id, node.container("sh", "-c", "seq 300000; echo the end"))
    output, stdout = os.pipe2(os.O_CLOEXEC)
    session = await node.manager.attach(container.id, Stdio(stdout=stdout))
    await node.manager.start_container(container.id)
    await asyncio.sleep(0.5)
    assert container.state == ContainerState.RUNNING
    wanted = [b"%d" % number for number in range(1, 300001)] + [b"the end"]
    assert (await asyncio.to_thread(read_all, output)).split() == b" ".join(wanted).split()
    await asyncio.wait_for(session.wait(), 5)
    await ended(node.manager, container.id)
    assert [line.removeprefix("stdout F ").encode() for line in node.log()] == wanted


async def test_spans_tell_how_long_the_runtime_took(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.manager.close()
    monkeypatch.setenv(spans.FOLDER_VARIABLE, str(node.folder / "spans"))
    await node.manager_again()
    container_id = await node.started("sleep", "60")
    for _ in range(2):
        assert await node.manager.exec_sync(container_id, ["echo", "on"]) == (b"on\n", b"", 0)
    written = "".join(path.read_text() for path in (node.folder / "spans").iterdir())
    names = [json.loads(line)["name"] for line in written.splitlines()]
    assert [names.count(f"lowrt {command}") for command in ("create", "start", "exec")] == [1, 1, 2]

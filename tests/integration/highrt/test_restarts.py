"""Containers that are started a second time, by a person or by themselves."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon, reboot

COUNT = "echo run >> /runs; cat /runs | wc -l; "


@contextmanager
def container(daemon: Daemon, *options: str, command: tuple[str, ...] = ("sleep", "300")) -> Iterator[str]:
    """The name of a container that was made, and is removed at the end."""
    name = f"c{time.monotonic_ns()}"
    daemon.out("create", "--name", name, "--network", "none", *options, IMAGE, *command)
    try:
        yield name
    finally:
        daemon.command("rm", "-f", name)


def inspect(daemon: Daemon, name: str) -> Any:
    return json.loads(daemon.out("inspect", name))[0]


def state(daemon: Daemon, name: str) -> str:
    return str(inspect(daemon, name)["State"]["Status"])


def kill(daemon: Daemon, name: str) -> None:
    """As if it had died by itself: highrt is not asked."""
    os.kill(inspect(daemon, name)["State"]["Pid"], signal.SIGKILL)


def test_a_container_that_has_ended_starts_again_with_what_it_has_written(daemon: Daemon) -> None:
    with container(daemon, command=("sh", "-c", f"{COUNT} hostname")) as name:
        made = inspect(daemon, name)
        assert made["State"]["Status"] == "created"
        first = daemon.command("start", "-a", name)
        second = daemon.command("start", "--attach", name)
        assert first.stdout.split() == ["1", made["Config"]["Hostname"]]
        assert second.stdout.split() == ["2", made["Config"]["Hostname"]]
        again = inspect(daemon, name)
        assert (again["Id"], again["State"]["Status"], again["State"]["ExitCode"]) == (made["Id"], "exited", 0)
        assert daemon.out("logs", name).split() == [*first.stdout.split(), *second.stdout.split()]
        assert daemon.out("start", name) == name
        assert daemon.out("wait", name) == "0"


def test_start_of_one_that_runs_changes_nothing_and_restart_does(daemon: Daemon) -> None:
    with container(daemon, command=("sh", "-c", f"{COUNT} exec sleep 300")) as name:
        daemon.out("start", name)
        pid = inspect(daemon, name)["State"]["Pid"]
        daemon.out("start", name)
        assert inspect(daemon, name)["State"]["Pid"] == pid
        daemon.out("restart", "-t", "0", name)
        assert inspect(daemon, name)["State"]["Pid"] != pid
        assert daemon.out("exec", name, "cat", "/runs") == "run\nrun"
        daemon.out("stop", "-t", "0", name)
        daemon.out("restart", name)
        assert state(daemon, name) == "running"


def test_input_reaches_one_that_starts_again(daemon: Daemon) -> None:
    with container(daemon, "-i", command=("cat",)) as name:
        for text in ("first\n", "second\n"):
            assert daemon.command("start", "-a", "-i", name, stdin=text).stdout == text


def test_limits_and_files_are_the_same_at_the_second_start(daemon: Daemon) -> None:
    with container(daemon, "--pids-limit", "20", "-e", "A=1", "-w", "/tmp") as name:
        daemon.out("start", name)
        daemon.out("exec", name, "touch", "here")
        daemon.out("stop", "-t", "0", name)
        daemon.out("start", name)
        assert daemon.out("exec", name, "sh", "-c", "echo $A; ls") == "1\nhere"
        pid = inspect(daemon, name)["State"]["Pid"]
        groups = dict(line.split(":")[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
        assert (Path("/sys/fs/cgroup/pids") / groups["pids"][1:] / "pids.max").read_text() == "20\n"


def test_one_that_is_to_run_always_starts_again_until_a_person_stops_it(daemon: Daemon) -> None:
    with container(daemon, "--restart", "always") as name:
        daemon.out("start", name)
        for count in (1, 2):
            kill(daemon, name)
            wait_for(lambda count=count: inspect(daemon, name)["RestartCount"] == count and state(daemon, name) == "running")
        assert inspect(daemon, name)["HostConfig"]["RestartPolicy"] == {"Name": "always", "MaximumRetryCount": 0}
        daemon.out("stop", "-t", "0", name)
        time.sleep(0.5)
        assert state(daemon, name) == "exited"
        daemon.out("start", name)
        assert inspect(daemon, name)["RestartCount"] == 0
        daemon.out("kill", name)
        time.sleep(0.5)
        assert state(daemon, name) == "exited"


def test_one_that_fails_starts_again_as_often_as_it_may(daemon: Daemon) -> None:
    with container(daemon, "--restart", "on-failure:2", command=("sh", "-c", f"{COUNT} exit 3")) as name:
        daemon.out("start", name)
        wait_for(lambda: daemon.out("logs", name) == "1\n2\n3")
        wait_for(lambda: state(daemon, name) == "exited")
        assert inspect(daemon, name)["RestartCount"] == 2
        time.sleep(1)
        assert daemon.out("logs", name) == "1\n2\n3"
    with container(daemon, "--restart", "on-failure", command=("true",)) as name:
        daemon.out("start", name)
        wait_for(lambda: state(daemon, name) == "exited")
        time.sleep(0.5)
        assert inspect(daemon, name)["RestartCount"] == 0


def test_one_that_pauses_before_its_next_start_can_be_seen_stopped_and_removed(daemon: Daemon) -> None:
    with container(daemon, "--restart", "always", command=("false",)) as name:
        daemon.out("start", name)
        wait_for(lambda: state(daemon, name) == "restarting" and inspect(daemon, name)["RestartCount"] > 2)
        wait_for(lambda: daemon.out("ps", "--format", "{{.Names}} {{.Status}}").startswith(f"{name} Restarting (1)"))
        daemon.out("stop", name)
        assert state(daemon, name) == "exited"
        before = inspect(daemon, name)["RestartCount"]
        time.sleep(1)
        assert inspect(daemon, name)["RestartCount"] == before


@pytest.mark.parametrize("policy", ["sometimes", "always:3", "on-failure:x"])
def test_a_policy_that_is_none_is_refused(daemon: Daemon, policy: str) -> None:
    done = daemon.command("run", "-d", "--restart", policy, IMAGE, "true", check=False)
    assert done.returncode == 125
    assert "use no, always, unless-stopped, on-failure" in done.stderr
    done = daemon.command("run", "-d", "--rm", "--restart", "always", IMAGE, "true", check=False)
    assert "--rm and --restart" in done.stderr
    assert daemon.out("ps", "-aq") == ""


def test_one_that_ends_while_there_is_no_daemon_starts_with_the_next(daemon: Daemon) -> None:
    with container(daemon, "--restart", "always") as runs, container(daemon, "--restart", "always") as stopped:
        for name in (runs, stopped):
            daemon.out("start", name)
        daemon.out("stop", "-t", "0", stopped)
        pid = inspect(daemon, runs)["State"]["Pid"]
        daemon.kill()
        os.kill(pid, signal.SIGKILL)
        daemon.start()
        wait_for(lambda: state(daemon, runs) == "running")
        time.sleep(0.5)
        assert state(daemon, stopped) == "exited"


def test_after_a_reboot_those_run_again_that_are_to(daemon: Daemon) -> None:
    wanted = {
        ("no", "runs"): "exited", ("always", "runs"): "running", ("unless-stopped", "runs"): "running",
        ("always", "is stopped"): "running", ("unless-stopped", "is stopped"): "exited",
    }  # fmt: skip
    with ExitStack() as stack:
        names = {kind: stack.enter_context(container(daemon, "--restart", kind[0])) for kind in wanted}
        for (_, before), name in names.items():
            daemon.out("start", name)
            if before == "is stopped":
                daemon.out("stop", "-t", "0", name)
        reboot(daemon)
        wait_for(lambda: {kind: state(daemon, name) for kind, name in names.items()} == wanted)


def test_pause_and_unpause(daemon: Daemon) -> None:
    with container(daemon, command=("sh", "-c", "while true; do echo tick; sleep 0.05; done")) as name:
        daemon.out("start", name)
        wait_for(lambda: "tick" in daemon.out("logs", name))
        daemon.out("pause", name)
        assert state(daemon, name) == "paused"
        assert "(Paused)" in daemon.out("ps", "--format", "{{.Status}}")
        before = daemon.out("logs", name)
        time.sleep(0.3)
        assert daemon.out("logs", name) == before
        assert "paused already" in daemon.command("pause", name, check=False).stderr
        daemon.out("unpause", name)
        wait_for(lambda: daemon.out("logs", name) != before)
        daemon.out("pause", name)
        daemon.out("stop", "-t", "1", name)
        assert state(daemon, name) == "exited"
        assert "not running" in daemon.command("unpause", name, check=False).stderr


def test_rename_top_and_diff(daemon: Daemon) -> None:
    script = "echo a > /new; rm /etc/passwd; echo b >> /etc/group; mkdir /folder; touch /folder/file; exec sleep 300"
    with container(daemon, command=("sh", "-c", script)) as name, container(daemon) as other:
        daemon.out("start", name)
        wait_for(lambda: "sleep 300" in daemon.out("top", name))
        head, row = daemon.out("top", name).splitlines()
        assert head.split() == ["UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD"]
        assert row.split()[:2] == ["root", str(inspect(daemon, name)["State"]["Pid"])]
        changes = set(daemon.out("diff", name).splitlines())
        assert {"A /new", "D /etc/passwd", "C /etc/group", "C /etc", "A /folder", "A /folder/file"} <= changes
        assert "in use" in daemon.command("rename", name, other, check=False).stderr
        daemon.out("rename", name, "another")
        try:
            assert daemon.out("ps", "--format", "{{.Names}}") == "another"
            daemon.kill()
            daemon.start()
            assert daemon.out("ps", "--format", "{{.Names}}") == "another"
        finally:
            daemon.out("rename", "another", name)


def test_prune_removes_what_does_not_run(daemon: Daemon) -> None:
    with container(daemon) as runs:
        daemon.out("start", runs)
        made = daemon.out("create", "--network", "none", IMAGE, "true")
        assert daemon.out("container", "prune", "-f") == made
        assert daemon.out("ps", "-a", "--format", "{{.Names}}") == runs

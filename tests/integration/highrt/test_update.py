"""`highrt update`, and the limits and ends that `run` sets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from strata.linux import cgroups
from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon

MIB = 1 << 20


@pytest.fixture(autouse=True)
def clean(daemon: Daemon) -> Iterator[None]:
    yield
    for container in daemon.out("ps", "-aq").split():
        daemon.out("rm", "-f", container)


def limits(daemon: Daemon, name: str) -> tuple[int, int, int]:
    """Memory in bytes, processes, and CPU time in microseconds of each 100,000 of a container that runs."""
    pid = int(daemon.out("inspect", "-f", "{{.State.Pid}}", name))
    files = {}
    for folder in cgroups.open_cgroup(cgroup_of(pid)).folders():
        files |= {file.name: file for file in Path(folder).iterdir()}
    if "memory.max" in files:
        cpu = int(files["cpu.max"].read_text().split()[0])
        return int(files["memory.max"].read_text()), int(files["pids.max"].read_text()), cpu
    numbers = [int(files[name].read_text()) for name in ("memory.limit_in_bytes", "pids.max", "cpu.cfs_quota_us")]
    return numbers[0], numbers[1], numbers[2]


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    line = next((line for line in lines if ":pids:" in line), lines[-1])
    return line.split(":", 2)[2]


def test_limits_change_while_it_runs_and_for_the_next_run(daemon: Daemon) -> None:
    daemon.out("run", "-d", "--name", "one", "-m", "64m", IMAGE, "sleep", "60")
    daemon.out("update", "-m", "96m", "--memory-swap", "96m", "--cpus", "0.5", "--pids-limit", "50", "one")
    assert limits(daemon, "one") == (96 * MIB, 50, 50_000)
    daemon.out("restart", "-t", "0", "one")
    assert limits(daemon, "one") == (96 * MIB, 50, 50_000)
    daemon.out("stop", "-t", "0", "one")
    wait_for(lambda: daemon.out("ps", "-q") == "", what="its end")
    daemon.out("update", "-m", "128m", "--memory-swap", "128m", "one")
    daemon.kill()
    daemon.start()
    daemon.out("start", "one")
    assert limits(daemon, "one") == (128 * MIB, 50, 50_000)
    assert json.loads(daemon.out("inspect", "one"))[0]["HostConfig"]["Memory"] == 128 * MIB


def test_its_policy_changes(daemon: Daemon) -> None:
    daemon.out("run", "-d", "--name", "again", IMAGE, "sh", "-c", "until test -e /tmp/end; do sleep 0.1; done")
    daemon.out("update", "--restart", "always", "again")
    daemon.out("exec", "-d", "again", "touch", "/tmp/end")  # it may be ended by what it brings about
    wait_for(lambda: int(daemon.out("inspect", "-f", "{{.RestartCount}}", "again")) > 0, what="it to start again")
    daemon.out("update", "--restart", "no", "again")
    wait_for(lambda: daemon.out("ps", "-q", "-f", "status=exited") != "", what="its last end")
    assert "use no, always" in daemon.command("update", "--restart", "never", "again", check=False).stderr
    assert "no-one" in daemon.command("update", "-m", "1g", "no-one", check=False).stderr


def test_how_a_stop_ends_it(daemon: Daemon) -> None:
    script = "trap 'exit 4' USR1; trap '' TERM; while true; do sleep 0.05; done"
    daemon.out("run", "-d", "--name", "asked", "--stop-signal", "USR1", IMAGE, "sh", "-c", script)
    wait_for(lambda: "sh -c" in daemon.out("top", "asked"))
    daemon.out("stop", "asked")
    assert daemon.out("inspect", "-f", "{{.State.ExitCode}}", "asked") == "4"
    daemon.out("run", "-d", "--name", "deaf", "--stop-timeout", "0", IMAGE, "sh", "-c", "trap '' TERM; sleep 60")
    daemon.command("stop", "deaf", timeout=8)
    assert daemon.out("inspect", "-f", "{{.State.ExitCode}}", "deaf") == "137"


def test_shared_memory_groups_and_the_id_in_a_file(daemon: Daemon) -> None:
    file = daemon.folder / "cid"
    script = "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; id -G"
    said = daemon.out(
        "run", "--name", "c", "--shm-size", "8m", "--group-add", "4711", "--cidfile", str(file), IMAGE, "sh", "-c", script
    )
    assert said.split() == ["8192", "0", "4711"]
    assert file.read_text() == daemon.out("ps", "-aq", "--no-trunc")
    assert "exists already" in daemon.command("run", "--cidfile", str(file), IMAGE, "true", check=False).stderr


def test_a_seccomp_profile_of_ones_own(daemon: Daemon) -> None:
    profile = daemon.folder / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    arguments = ("run", "--rm", "--security-opt", f"seccomp={profile}", IMAGE)
    assert daemon.command(*arguments, "sh", "-c", "mkdir /new || echo refused").stdout == "refused\n"
    missing = daemon.command("run", "--rm", "--security-opt", "seccomp=/no/such", IMAGE, "true", check=False)
    assert (missing.returncode, "/no/such" in missing.stderr) == (125, True)

"""The flags of `highrt run` that CRI has no words for."""

import re
from pathlib import Path

import pytest

from strata.linux import cgroups
from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon


def run(daemon: Daemon, *arguments: str) -> str:
    return daemon.out("run", "--rm", "--network", "none", *arguments)


def test_a_file_system_in_memory(daemon: Daemon) -> None:
    shown = run(
        daemon, "--tmpfs", "/scratch:size=1m,mode=700,exec", "--tmpfs", "/tmp", IMAGE, "sh", "-c", "grep tmpfs /proc/mounts"
    )
    scratch = next(line for line in shown.splitlines() if " /scratch " in line)
    assert {"rw", "nosuid", "nodev", "size=1024k", "mode=700"} <= set(scratch.split()[3].split(","))
    assert "noexec" not in scratch
    assert "noexec" in next(line for line in shown.splitlines() if " /tmp " in line)


def test_limits_of_its_processes(daemon: Daemon) -> None:
    script = "ulimit -Sn; ulimit -Hn; ulimit -Sc"
    assert run(daemon, "--ulimit", "nofile=100:200", "--ulimit", "core=0", IMAGE, "sh", "-c", script).split() == [
        "100",
        "200",
        "0",
    ]


@pytest.mark.parametrize("network", ["none", "host"])
def test_further_hosts(daemon: Daemon, network: str) -> None:
    arguments = (
        "--network",
        network,
        "--add-host",
        "db:198.51.100.7",
        "--add-host",
        "six=2001:db8::1",
        IMAGE,
        "cat",
        "/etc/hosts",
    )
    hosts = daemon.out("run", "--rm", *arguments)
    assert re.search(r"^198\.51\.100\.7\tdb$", hosts, re.MULTILINE)
    assert re.search(r"^2001:db8::1\tsix$", hosts, re.MULTILINE)


def test_an_init_reaps_passes_signals_on_and_ends_as_the_command(daemon: Daemon) -> None:
    assert daemon.command("run", "--rm", "--network", "none", "--init", IMAGE, "sh", "-c", "exit 7", check=False).returncode == 7
    assert run(daemon, "--init", IMAGE, "sh", "-c", "(sleep 0.1 & ); sleep 0.5; ls -d /proc/[0-9]* | wc -l").strip() == "4"
    script = "trap 'echo caught; exit 3' TERM; while true; do sleep 0.05; done"
    name = daemon.out("run", "-d", "--network", "none", "--init", IMAGE, "sh", "-c", script)
    try:
        wait_for(lambda: "sh -c" in daemon.out("top", name))
        daemon.out("stop", "-t", "10", name)
        assert (daemon.out("logs", name), daemon.out("inspect", "-f", "{{.State.ExitCode}}", name)) == ("caught", "3")
    finally:
        daemon.command("rm", "-f", name)
    done = daemon.command("run", "--rm", "--network", "none", "--init", IMAGE, "no-such-program", check=False)
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def test_a_log_is_bounded_and_can_be_read_whole(daemon: Daemon) -> None:
    script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); [ $((i % 20)) != 0 ] || sleep 0.05; done"
    options = ("--log-opt", "max-size=4k", "--log-opt", "max-file=3")
    name = daemon.out("run", "-d", "--network", "none", *options, IMAGE, "sh", "-c", script)
    try:
        assert daemon.out("wait", name) == "0"
        log = Path(daemon.out("inspect", "-f", "{{.LogPath}}", name))
        sizes = [path.stat().st_size for path in log.parent.glob(f"{log.name}*")]
        assert len(sizes) == 3
        assert max(sizes) < 8192
        lines = daemon.out("logs", name).splitlines()
        assert lines == [f"line {number}" for number in range(400 - len(lines), 400)]
        assert len(lines) > 100
        assert daemon.out("logs", "--tail", "150", name).splitlines() == lines[-150:]
    finally:
        daemon.command("rm", "-f", name)


def test_a_log_can_be_followed_while_its_files_are_moved_away(daemon: Daemon) -> None:
    script = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.02; done"
    name = daemon.out("run", "-d", "--network", "none", "--log-opt", "max-size=1k", IMAGE, "sh", "-c", script)
    try:
        assert daemon.out("logs", "-f", name).splitlines() == [f"line {number}" for number in range(60)]
    finally:
        daemon.command("rm", "-f", name)


def test_memory_that_is_reserved_a_parent_group_and_labels_of_a_file(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("# of the file\nfrom=file\nboth=file\n")
    parent, file = f"/strata-{daemon.name}-parent", str(tmp_path / "labels")
    options = ("--memory-reservation", "32m", "--cgroup-parent", parent, "--label-file", file, "-l", "both=flag")
    name = daemon.out("run", "-d", "--network", "none", *options, IMAGE, "sleep", "300")
    try:
        group = Group(int(daemon.out("inspect", "-f", "{{.State.Pid}}", name)))
        assert group.path.startswith(f"{parent}/")
        assert group.read("memory", "memory.soft_limit_in_bytes", "memory.low") == str(32 * 2**20)
        assert daemon.out("ps", "--format", "{{.Labels}}") == "both=flag,from=file"
        assert daemon.out("inspect", "-f", "{{.HostConfig.CgroupParent}} {{.HostConfig.MemoryReservation}}", name) == (
            f"{parent} {32 * 2**20}"
        )
    finally:
        daemon.command("rm", "-f", name)
        cgroups.open_cgroup(parent).remove()


class Group:
    """The cgroup of a process, where the memory controller is."""

    def __init__(self, pid: int) -> None:
        groups = dict(line.split(":")[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
        self._is_v2 = "memory" not in groups
        self.path = groups["" if self._is_v2 else "memory"]

    def read(self, controller: str, name: str, name_on_v2: str) -> str:
        base = Path("/sys/fs/cgroup" if self._is_v2 else f"/sys/fs/cgroup/{controller}")
        return (base / f".{self.path}" / (name_on_v2 if self._is_v2 else name)).read_text().strip()


def test_sizes(daemon: Daemon) -> None:
    name = daemon.out("run", "-d", "--network", "none", IMAGE, "sh", "-c", "dd if=/dev/zero of=/f bs=1M count=3; sleep 300")
    try:
        wait_for(lambda: re.fullmatch(r"3\.1\dMB \(virtual 4\.[23]\d*MB\)", daemon.out("ps", "--format", "{{.Size}}")))
        assert daemon.out("ps", "-s").splitlines()[0].split()[-1] == "SIZE"
        assert "SIZE" not in daemon.out("ps")
    finally:
        daemon.command("rm", "-f", name)


def test_the_flags_hold_for_a_second_start(daemon: Daemon) -> None:
    script = "ulimit -n; grep -c ' /scratch tmpfs' /proc/mounts; grep -c db /etc/hosts"
    options = ("--ulimit", "nofile=77", "--tmpfs", "/scratch", "--add-host", "db:198.51.100.7", "--init")
    name = daemon.out("create", "--network", "none", *options, IMAGE, "sh", "-c", script)
    try:
        for _ in range(2):
            assert daemon.out("start", "-a", name).split() == ["77", "1", "1"]
            daemon.kill()
            daemon.start()
    finally:
        daemon.command("rm", "-f", name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ulimit", "nofile"), "write NAME=SOFT"),
        (("--ulimit", "many=3"), "there is none of that name"),
        (("--ulimit", "nofile=5:3"), "above the hard one"),
        (("--tmpfs", "scratch"), "absolute path"),
        (("--tmpfs", "/scratch:upperdir=/etc"), "is not known"),
        (("--add-host", "db"), "write NAME:IP"),
        (("--add-host", "db:here"), "is no address"),
        (("--log-opt", "max-file=0"), "max-size=SIZE and max-file=NUMBER"),
        (("--security-opt", "apparmor=none-of-that-name"), "apparmor"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(daemon: Daemon, arguments: tuple[str, ...], words: str) -> None:
    done = daemon.command("run", "-d", "--network", "none", *arguments, IMAGE, "true", check=False)
    assert done.returncode != 0
    assert words in done.stderr.lower() or words in done.stderr
    assert daemon.out("ps", "-aq") == ""

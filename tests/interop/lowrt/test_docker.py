"""Docker with lowrt as its default runtime: dockerd, its containerd, and the docker command."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.interop.lowrt.conftest import (
    CHOWN,
    IMAGE,
    LOWRT,
    NET_ADMIN,
    Done,
    Place,
    capabilities,
    cgroup_parents,
    limit,
    own_etc,
    place,
    run,
    short_folder,
)
from tests.stack.terminal import Terminal

CGROUPS = "/strata-peers-docker"
# dockerd makes the user that its containers' root shall be, and reads its ranges of IDs.
REMAPPED = "dockremap:x:231:231::/:/bin/false"
RANGES = "dockremap:200000:65536"


class Docker:
    """A dockerd that runs in a place of its own. Calling it runs a docker command."""

    def __init__(self, folder: Path, place: Place) -> None:
        self.folder, self._place = folder, place

    def __call__(self, *argv: object, check: bool = True, text: str | None = None) -> Done:
        return run(*self.argv(*argv), check=check, text=text)

    def argv(self, *argv: object) -> list[str]:
        how = ("env", f"DOCKER_CONFIG={self.folder}/client", "DOCKER_BUILDKIT=0", "/usr/bin/docker")
        return self._place.command(*how, "--host", f"unix://{self.folder}/d.sock", *argv)

    def shell(self, script: str, *options: object) -> str:
        """What a script printed in a new container with these options; it must succeed."""
        return self("run", "--rm", *NETWORK, *options, IMAGE, "sh", "-ec", script).stdout

    def start(self, name: str, *options: object, program: tuple[str, ...] = ("sleep", "100")) -> None:
        self("run", "--detach", "--name", name, *NETWORK, *options, IMAGE, *program)

    def see(self, name: str, template: str) -> str:
        return self("inspect", "--format", template, name).stdout.strip()


NETWORK = ("--network", "none")


def docker_daemon(stack: ExitStack, image_archive: Path, *flags: object, remapped: bool = False) -> Docker:
    stack.enter_context(cgroup_parents(CGROUPS))
    folder = stack.enter_context(short_folder())
    prepare = ""
    if remapped:
        prepare = own_etc(folder) + f"echo {REMAPPED} >> /etc/passwd; echo dockremap:x:231: >> /etc/group; "
        prepare += f"echo {RANGES} > /etc/subuid; echo {RANGES} > /etc/subgid; "
    daemon = (
        "dockerd", "--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid",
        "--host", f"unix://{folder}/d.sock", "--iptables=false", "--ip-forward=false", "--bridge=none",
        "--add-runtime", f"lowrt={LOWRT}", "--default-runtime", "lowrt", "--cgroup-parent", CGROUPS,
        "--exec-opt", "native.cgroupdriver=cgroupfs", *flags,
    )  # fmt: skip
    own = stack.enter_context(place(folder, *daemon, prepare=prepare))
    docker = Docker(folder, own)
    own.answers(*docker.argv("version")[len(own.command()) :])
    docker("load", "--input", image_archive)
    return docker


@pytest.fixture(scope="module")
def docker(image_archive: Path) -> Iterator[Docker]:
    with ExitStack() as stack:
        yield docker_daemon(stack, image_archive)


@pytest.fixture
def one(docker: Docker) -> Iterator[str]:
    """A container that runs."""
    docker.start("one")
    yield "one"
    docker("rm", "--force", "one")


# --- run


def test_run_gives_output_and_status(docker: Docker) -> None:
    done = docker("run", "--rm", *NETWORK, IMAGE, "sh", "-c", "echo out; echo err >&2; exit 4", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (4, "out\n", "err\n")
    assert docker("run", "--rm", "--interactive", *NETWORK, IMAGE, "sort", text="b\na\n").stdout == "a\nb\n"


def test_a_program_that_is_not_there_or_may_not_be_run(docker: Docker) -> None:
    missing = docker("run", "--rm", *NETWORK, IMAGE, "nosuch", check=False)
    assert missing.returncode == 127
    assert 'exec: "nosuch": executable file not found in $PATH' in missing.stderr
    forbidden = docker("run", "--rm", *NETWORK, IMAGE, "/etc/passwd", check=False)
    assert forbidden.returncode == 126
    assert "permission denied" in forbidden.stderr


def test_a_file_mounted_on_a_folder_is_explained(docker: Docker) -> None:
    done = docker("run", "--rm", *NETWORK, "--volume", "/etc/passwd:/etc", IMAGE, "true", check=False)
    assert done.returncode != 0
    assert "Are you trying to mount a directory onto a file" in done.stderr  # docker says so where the runtime says ENOTDIR


def test_a_terminal_has_the_size_of_the_callers_and_gets_ctrl_c(docker: Docker) -> None:
    program = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    with Terminal(docker.argv("run", "--rm", "-it", *NETWORK, IMAGE, "sh", "-c", program), rows=33, columns=101) as terminal:
        terminal.expect("ready")
        terminal.send("\x03")
        terminal.expect("interrupted")
        assert terminal.wait() == 5


def test_limits_stand_in_the_cgroup_and_can_be_changed(docker: Docker) -> None:
    docker.start(
        "limited", "--memory", "50m", "--memory-swap", "80m", "--memory-reservation", "20m", "--pids-limit", "20",
        "--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "0", "--device-read-bps", "/dev/vda:1mb",
    )  # fmt: skip
    group = f"{CGROUPS}/{docker.see('limited', '{{.Id}}')}"
    assert limit(group, "memory", "memory.limit_in_bytes") == str(50 << 20)
    assert limit(group, "memory", "memory.soft_limit_in_bytes") == str(20 << 20)
    assert limit(group, "pids", "pids.max") == "20"
    assert limit(group, "cpu", "cpu.cfs_quota_us") == "50000"
    assert limit(group, "cpu", "cpu.shares") == "512"
    assert limit(group, "cpuset", "cpuset.cpus") == "0"
    assert limit(group, "blkio", "blkio.throttle.read_bps_device").endswith(" 1048576")
    docker("update", "--memory", "70m", "--memory-swap", "90m", "--cpus", "0.3", "--pids-limit", "30", "limited")
    assert limit(group, "memory", "memory.limit_in_bytes") == str(70 << 20)
    assert limit(group, "cpu", "cpu.cfs_quota_us") == "30000"
    assert limit(group, "pids", "pids.max") == "30"
    docker("rm", "--force", "limited")


def test_a_container_that_takes_too_much_memory_is_killed(docker: Docker) -> None:
    eat = ("dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1")
    docker("run", "--name", "eater", *NETWORK, "--memory", "20m", "--memory-swap", "20m", IMAGE, *eat, check=False)
    assert docker.see("eater", "{{.State.ExitCode}} {{.State.OOMKilled}}") == "137 true"
    docker("rm", "eater")


@pytest.mark.parametrize(
    ("options", "script", "printed"),
    [
        (["--read-only", "--tmpfs", "/scratch:size=1m"], "! touch /x; touch /scratch/x", ""),
        (["--tmpfs", "/scratch:size=1m"], "grep -c ' /scratch tmpfs .*size=1024k' /proc/mounts", "1\n"),
        (["--mount", "type=tmpfs,destination=/t,tmpfs-mode=700"], "stat -c %a /t", "700\n"),
        (["--shm-size", "2m"], "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2", "2048\n"),
        (["--device", "/dev/null:/dev/nothing:rw"], "echo gone > /dev/nothing; stat -c %t:%T /dev/nothing", "1:3\n"),
        (["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"),
        (["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status", "Seccomp:\t0\n"),
        ([], "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"),
        (["--security-opt", "systempaths=unconfined"], "grep -c ' /proc/' /proc/self/mountinfo || true", "0\n"),
        (["--ulimit", "nofile=100:200"], "ulimit -n; ulimit -Hn", "100\n200\n"),
        (["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward", "1\n"),
        ([], "ls /sys/class/net", "lo\n"),
        (["--init"], "cat /proc/1/comm", "docker-init\n"),
        (["--workdir", "/new/folder"], "pwd", "/new/folder\n"),
        (["--user", "ada"], "id", "uid=1000(ada) gid=1000(ada) groups=50(staff),1000(ada)\n"),
        (["--group-add", "50"], "id -G", "0 50\n"),
        (["--hostname", "hal", "--domainname", "home", "--env", "A=b c"], "hostname; echo $A", "hal\nb c\n"),
        (["--pid", "host"], "ps | grep -c -m 1 dockerd", "1\n"),
        (["--ipc", "none"], "grep -c ' /dev/shm ' /proc/mounts || true", "0\n"),
        (["--cgroupns", "host"], f"grep -o -m 1 :{CGROUPS}/ /proc/self/cgroup", f":{CGROUPS}/\n"),
        (["--cgroupns", "private"], "grep -o -m 1 memory:/$ /proc/self/cgroup", "memory:/\n"),
        (["--oom-score-adj", "321"], "cat /proc/self/oom_score_adj", "321\n"),
        (["--device-cgroup-rule", "c 10:200 rwm"], "mknod /tun c 10 200; ls /tun", "/tun\n"),
    ],
)  # fmt: skip
def test_an_option_of_run_has_its_effect(docker: Docker, options: list[str], script: str, printed: str) -> None:
    assert docker.shell(script, *options) == printed


def test_capabilities_are_added_and_dropped(docker: Docker) -> None:
    status = docker.shell("cat /proc/self/status", "--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN")
    for kind in ("CapBnd", "CapEff", "CapPrm"):
        assert capabilities(status, kind) & (NET_ADMIN | CHOWN) == NET_ADMIN


def test_a_seccomp_profile_of_ones_own(docker: Docker) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    profile = docker.folder / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    option = ("--security-opt", f"seccomp={profile}")
    assert "Operation not supported" in docker.shell("touch /tmp/x; ! mkdir /tmp/y 2>&1", *option)


def test_volumes(docker: Docker) -> None:
    volume = docker.folder / "volume"
    volume.mkdir()
    (volume / "file").write_text("of the host\n")
    assert docker.shell("cat /v/file; ! touch /v/x", "--volume", f"{volume}:/v:ro") == "of the host\n"
    docker.shell("echo of the container > /v/file", "--volume", f"{volume}:/v")
    assert (volume / "file").read_text() == "of the container\n"
    docker.shell("echo kept > /v/file", "--volume", "named:/v")
    assert docker.shell("cat /v/file", "--volume", "named:/v") == "kept\n"


def test_a_container_joins_the_namespaces_of_another(docker: Docker) -> None:
    docker.start("host", "--ipc", "shareable")
    script = "ps; for n in pid ipc net uts; do readlink /proc/self/ns/$n; done"
    joined = [f"--{kind}=container:host" for kind in ("pid", "ipc", "network")]
    inside = docker("run", "--rm", *joined, IMAGE, "sh", "-c", script).stdout.splitlines()
    theirs = docker("exec", "host", "sh", "-c", script).stdout.splitlines()
    assert any("sleep 100" in line for line in inside)
    assert inside[-4:-1] == theirs[-4:-1]
    assert inside[-1] != theirs[-1]
    docker("rm", "--force", "host")


# --- exec


def test_exec_runs_as_it_is_told(docker: Docker, one: str) -> None:
    assert "sleep 100" in docker("exec", one, "ps").stdout
    assert docker("exec", one, "sh", "-c", "exit 7", check=False).returncode == 7
    assert docker("exec", "--interactive", one, "sort", text="b\na\n").stdout == "a\nb\n"
    script = "id -u; id -g; pwd; echo $A"
    assert docker("exec", "-u", "ada", "-w", "/tmp", "-e", "A=b", one, "sh", "-c", script).stdout == "1000\n1000\n/tmp\nb\n"
    missing = docker("exec", one, "nosuch", check=False)
    assert missing.returncode == 126
    assert "OCI runtime exec failed" in missing.stdout + missing.stderr
    docker("exec", "--detach", one, "sh", "-c", "echo done > /tmp/note")
    wait_for(lambda: docker("exec", one, "cat", "/tmp/note", check=False).stdout == "done\n", what="the note")


def type_into(docker: Docker, container: str) -> None:
    """A person's session by `docker exec -it`: the size, a new size, ctrl-c."""
    with Terminal(docker.argv("exec", "-it", container, "sh"), rows=30, columns=90) as terminal:
        wait_for(lambda: terminal.ask("stty size\n", "30 90"), what="the size")
        terminal.send("tty\n")
        terminal.expect("/dev/pts/[0-9]")
        terminal.resize(rows=44, columns=120)
        wait_for(lambda: terminal.ask("stty size\n", "44 120"), what="the new size")
        terminal.send("sh -c 'echo going; exec sleep 1000'\n")
        terminal.expect("going\r\n")
        terminal.send("\x03")
        terminal.expect("# ")
        terminal.send("exit $?\n")
        assert terminal.wait() == 130


def test_exec_with_a_terminal_is_resized_and_interrupted(docker: Docker, one: str) -> None:
    type_into(docker, one)


# --- a container's life


def test_pause_and_unpause(docker: Docker, one: str) -> None:
    docker("pause", one)
    assert docker.see(one, "{{.State.Status}}") == "paused"
    assert "is paused" in docker("exec", one, "true", check=False).stderr
    docker("unpause", one)
    assert docker("exec", one, "echo", "awake").stdout == "awake\n"
    docker("pause", one)
    docker("kill", one)
    assert docker.see(one, "{{.State.ExitCode}}") == "137"


def test_signals_reach_the_program_and_stop_takes_its_own(docker: Docker) -> None:
    program = "trap 'echo got hup' HUP; trap 'echo bye; exit 3' USR1; echo ready; while :; do sleep 0.1; done"
    docker.start("polite", "--stop-signal", "USR1", program=("sh", "-c", program))
    wait_for(lambda: "ready" in docker("logs", "polite").stdout, what="the program")
    docker("kill", "--signal", "HUP", "polite")
    wait_for(lambda: "got hup" in docker("logs", "polite").stdout, what="the signal")
    docker("stop", "--time", "20", "polite")
    assert docker.see("polite", "{{.State.Status}} {{.State.ExitCode}}") == "exited 3"
    assert docker("logs", "polite").stdout == "ready\ngot hup\nbye\n"
    docker("start", "polite")
    docker("kill", "polite")
    assert docker("wait", "polite").stdout == "137\n"
    docker("rm", "polite")


def test_restart_and_restart_policy(docker: Docker, one: str) -> None:
    before = docker.see(one, "{{.State.Pid}}")
    docker("restart", "--time", "0", one)
    assert docker.see(one, "{{.State.Status}}") == "running"
    assert docker.see(one, "{{.State.Pid}}") != before
    docker.start("again", "--restart", "on-failure:2", program=("sh", "-c", "echo ran; exit 1"))
    wait_for(lambda: docker.see("again", "{{.State.Status}} {{.RestartCount}}") == "exited 2", what="the last end")
    assert docker("logs", "again").stdout == "ran\n" * 3
    docker("rm", "again")


def test_top_and_stats(docker: Docker) -> None:
    docker.start("busy", "--memory", "50m")
    assert docker("top", "busy", "-o", "pid,args").stdout.splitlines()[1].split()[1:] == ["sleep", "100"]
    assert "sleep 100" in docker("top", "busy").stdout
    stats = docker("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "busy").stdout
    assert re.fullmatch(r"busy 1 \S+ / 50MiB\n", stats)
    docker("rm", "--force", "busy")


def test_a_healthcheck_runs_in_the_container(docker: Docker) -> None:
    how = ("--health-cmd", "test -e /tmp/healthy", "--health-interval", "200ms", "--health-retries", "1")
    docker.start("patient", *how)
    wait_for(lambda: docker.see("patient", "{{.State.Health.Status}}") == "unhealthy", what="the bad news")
    docker("exec", "patient", "touch", "/tmp/healthy")
    wait_for(lambda: docker.see("patient", "{{.State.Health.Status}}") == "healthy", what="the good news")
    docker("rm", "--force", "patient")


def test_cp_commit_and_diff(docker: Docker, one: str) -> None:
    sent = docker.folder / "sent"
    sent.write_text("sent\n")
    docker("cp", sent, f"{one}:/tmp/")
    docker("exec", one, "sh", "-c", "cat /tmp/sent > /tmp/back")
    docker("cp", f"{one}:/tmp/back", docker.folder / "back")
    assert (docker.folder / "back").read_text() == "sent\n"
    assert "A /tmp/back" in docker("diff", one).stdout
    docker("commit", one, "committed:1")
    assert docker("run", "--rm", *NETWORK, "committed:1", "cat", "/tmp/back").stdout == "sent\n"


def test_build(docker: Docker) -> None:
    context = docker.folder / "context"
    context.mkdir()
    (context / "copied").write_text("copied\n")
    (context / "Dockerfile").write_text(
        f"FROM {IMAGE}\nRUN echo made > /made\nCOPY copied /there\nRUN cat /made /there\n"
        'WORKDIR /new/folder\nUSER ada\nRUN id -u && pwd\nCMD ["cat", "/made"]\n'
    )
    printed = docker("build", *NETWORK, "--memory", "60m", "--tag", "built:1", context).stdout
    assert "\nmade\ncopied\n" in printed
    assert "\n1000\n/new/folder\n" in printed
    assert docker("run", "--rm", *NETWORK, "built:1").stdout == "made\n"
    (context / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN exit 6\n")
    failed = docker("build", *NETWORK, context, check=False)
    assert failed.returncode == 6
    assert "returned a non-zero code: 6" in failed.stderr


# --- user namespaces


def test_a_daemon_that_remaps_users(image_archive: Path) -> None:
    with ExitStack() as stack:
        docker = docker_daemon(stack, image_archive, "--userns-remap", "default", remapped=True)
        script = "cat /proc/self/uid_map; id -u; touch /x; stat -c %u /x /dev/mqueue /proc/1"
        assert docker.shell(script) == f"{0:10} {200000:10} {65536:10}\n0\n0\n0\n0\n"
        assert docker.shell("cat /proc/self/uid_map", "--userns", "host").split()[2] == "4294967295"
        docker.start("mapped", "--device", "/dev/full")
        type_into(docker, "mapped")
        docker("pause", "mapped")
        docker("unpause", "mapped")
        assert docker("exec", "-u", "ada", "mapped", "sh", "-c", "id -u; ! echo x > /dev/full").stdout == "1000\n"
        docker("rm", "--force", "mapped")

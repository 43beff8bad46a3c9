"""podman with lowrt in runc's place: conmon drives it as it drives runc."""

import json
import re
import signal
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
    PAUSE,
    Done,
    capabilities,
    cgroup_parents,
    limit,
    own_etc,
    run,
    shared_mount,
    short_folder,
)
from tests.stack.terminal import Terminal

# podman asks for limits that only a machine with CAP_SYS_RESOURCE can raise; the network is another layer's.
CONFIGURATION = f"""
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
init_path = "/usr/bin/tini-static"
netns = "none"
[engine]
events_logger = "none"
infra_image = "{PAUSE}"
"""


class Podman:
    """podman with folders of its own. Calling it runs a command of podman's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers.conf").write_text(CONFIGURATION)
        self._base = [
            "env", f"CONTAINERS_CONF={folder}/containers.conf",
            "podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs",
            "--cgroup-manager", "cgroupfs", "--runtime", str(LOWRT),
        ]  # fmt: skip

    def __call__(self, *argv: object, check: bool = True, text: str | None = None) -> Done:
        if check and "rm" in argv[:2]:
            return self._remove(*argv)
        return run(*self.argv(*argv), check=check, text=text, cwd=self.folder)  # conmon drops a file in it

    def _remove(self, *argv: object) -> Done:
        """Again and again: podman unmounts a container's /dev/shm without MNT_DETACH, and gives up where that is still busy. On a
        busy machine that was so with one in 18 pods in user namespaces (with runc, one in 11)."""

        def removed() -> Done | None:
            done = self(*argv, check=False)
            return None if done.returncode else done

        found = wait_for(removed, what=f"podman {' '.join(map(str, argv))}")
        assert found
        return found

    def argv(self, *argv: object) -> list[str]:
        return [*self._base, *map(str, argv)]

    def shell(self, script: str, *options: object) -> str:
        """What a script printed in a new container with these options; it must succeed."""
        return self("run", "--rm", *options, IMAGE, "sh", "-ec", script).stdout

    def start(self, name: str, *options: object, program: tuple[str, ...] = ("sleep", "100")) -> None:
        self("run", "--detach", "--name", name, *options, IMAGE, *program)

    def see(self, name: str, template: str) -> str:
        return self("inspect", name, "--format", template).stdout.strip()

    def remove_all(self) -> None:
        self("pod", "rm", "--all", "--force", "--time", "0", check=False)
        self("rm", "--all", "--force", "--time", "0", check=False)


@pytest.fixture(scope="module")
def podman(image_archive: Path) -> Iterator[Podman]:
    with ExitStack() as stack:
        stack.enter_context(cgroup_parents("/libpod_parent"))  # podman makes it for its conmons
        podman = Podman(stack.enter_context(short_folder()))
        stack.callback(podman.remove_all)
        podman("load", "--input", image_archive)
        yield podman


@pytest.fixture
def one(podman: Podman) -> Iterator[str]:
    """A container that runs."""
    podman.start("one")
    yield "one"
    podman("rm", "--force", "--time", "0", "one")


# --- run


def test_run_gives_output_and_status(podman: Podman) -> None:
    done = podman("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; id -u; exit 4", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (4, "out\n0\n", "err\n")


def test_run_passes_standard_input_on(podman: Podman) -> None:
    assert podman("run", "--rm", "--interactive", IMAGE, "sort", text="b\na\n").stdout == "a\nb\n"


def test_a_program_that_is_not_there_or_may_not_be_run(podman: Podman) -> None:
    missing = podman("run", "--rm", IMAGE, "nosuch", check=False)
    assert missing.returncode == 127
    assert 'exec: "nosuch": executable file not found in $PATH' in missing.stderr
    forbidden = podman("run", "--rm", IMAGE, "/etc/passwd", check=False)
    assert forbidden.returncode == 126
    assert "permission denied" in forbidden.stderr


def test_a_terminal_has_the_size_of_the_callers_and_gets_ctrl_c(podman: Podman) -> None:
    program = "trap 'echo interrupted; exit 5' INT; stty size; echo ready; while :; do sleep 0.1; done"
    with Terminal(podman.argv("run", "--rm", "-it", IMAGE, "sh", "-c", program), rows=33, columns=101) as terminal:
        terminal.expect("33 101")
        terminal.expect("ready")
        terminal.send("\x03")
        terminal.expect("interrupted")
        assert terminal.wait() == 5


def test_limits_stand_in_the_cgroup(podman: Podman) -> None:
    podman.start(
        "limited", "--memory", "50m", "--memory-swap", "80m", "--memory-reservation", "20m", "--pids-limit", "20",
        "--cpus", "0.5", "--cpu-shares", "512", "--cpuset-cpus", "0", "--device-read-bps", "/dev/vda:1mb",
    )  # fmt: skip
    group = podman.see("limited", "{{.State.CgroupPath}}")
    assert limit(group, "memory", "memory.limit_in_bytes") == str(50 << 20)
    assert limit(group, "memory", "memory.soft_limit_in_bytes") == str(20 << 20)
    assert limit(group, "pids", "pids.max") == "20"
    assert limit(group, "cpu", "cpu.cfs_quota_us") == "50000"
    assert limit(group, "cpu", "cpu.shares") == "512"
    assert limit(group, "cpuset", "cpuset.cpus") == "0"
    assert limit(group, "blkio", "blkio.throttle.read_bps_device").endswith(" 1048576")
    podman("rm", "--force", "--time", "0", "limited")


def test_a_container_that_takes_too_much_memory_is_killed(podman: Podman) -> None:
    eat = ("dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1")
    podman("run", "--name", "eater", "--memory", "20m", "--memory-swap", "20m", IMAGE, *eat, check=False)
    assert podman.see("eater", "{{.State.ExitCode}}") == "137"
    podman("rm", "eater")


@pytest.mark.parametrize(
    ("options", "script", "printed"),
    [
        (["--read-only"], "! touch /x; touch /tmp/x /run/x /var/tmp/x", ""),
        (["--tmpfs", "/etc:size=1m"], "cat /etc/group | wc -l; grep -c ' /etc tmpfs .*size=1024k' /proc/mounts", "3\n1\n"),
        (["--shm-size", "2m"], "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2", "2048\n"),
        (["--device", "/dev/null:/dev/nothing:rw"], "echo gone > /dev/nothing; stat -c %t:%T /dev/nothing", "1:3\n"),
        (["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"),
        (["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status", "Seccomp:\t0\n"),
        ([], "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"),
        (["--ulimit", "nofile=100:200", "--ulimit", "nproc=1000:1000"], "ulimit -n; ulimit -Hn", "100\n200\n"),
        (["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward", "1\n"),
        (["--network", "none"], "ls /sys/class/net; stat /proc/net/route >/dev/null", "lo\n"),
        (["--init"], "cat /proc/1/comm", "podman-init\n"),
        (["--workdir", "/tmp"], "pwd", "/tmp\n"),
        (["--user", "ada"], "id", "uid=1000(ada) gid=1000(ada) groups=50(staff),1000(ada)\n"),
        (["--user", "1000:50"], "id -u; id -g", "1000\n50\n"),
        (["--group-add", "50"], "id -G", "0 50\n"),
        (["--umask", "077"], "umask", "0077\n"),
        (["--hostname", "hal", "--env", "A=b c"], "hostname; echo $A", "hal\nb c\n"),
        (["--pid", "host"], "test $$ -gt 2 && ps | grep -c -m 1 podman", "1\n"),
        (["--personality", "LINUX32"], "cat /proc/self/personality", "00000008\n"),
        (["--oom-score-adj", "321"], "cat /proc/self/oom_score_adj", "321\n"),
        (["--uidmap", "0:100000:5000"], "cat /proc/self/uid_map; stat -c %u /bin", f"{0:10} {100000:10} {5000:10}\n0\n"),
        (["--security-opt", "mask=/etc/group"], "cat /etc/group", ""),
        (["--cgroupns", "host"], "grep -o -m 1 :/libpod_parent/libpod- /proc/self/cgroup", ":/libpod_parent/libpod-\n"),
    ],
)  # fmt: skip
def test_an_option_of_run_has_its_effect(podman: Podman, options: list[str], script: str, printed: str) -> None:
    assert podman.shell(script, *options) == printed


def test_capabilities_are_added_and_dropped(podman: Podman) -> None:
    status = podman.shell("cat /proc/self/status", "--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN")
    for kind in ("CapBnd", "CapEff", "CapPrm"):
        assert capabilities(status, kind) & (NET_ADMIN | CHOWN) == NET_ADMIN
    as_user = podman.shell("cat /proc/self/status", "--user", "ada")
    assert (capabilities(as_user, "CapEff"), capabilities(as_user) & CHOWN) == (0, CHOWN)
    privileged = podman.shell("cat /proc/self/status", "--privileged")
    assert capabilities(privileged) == capabilities(Path("/proc/self/status").read_text())


def test_a_seccomp_profile_of_ones_own(podman: Podman) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    profile = podman.folder / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    option = ("--security-opt", f"seccomp={profile}")
    assert "Operation not supported" in podman.shell("touch /tmp/x; ! mkdir /tmp/y 2>&1", *option)


def test_volumes_are_read_only_or_pass_mounts_on(podman: Podman) -> None:
    volume = podman.folder / "volume"
    volume.mkdir()
    (volume / "file").write_text("of the host\n")
    printed = podman.shell("cat /v/file; ! touch /v/x", "--volume", f"{volume}:/v:ro")
    assert printed == "of the host\n"
    podman.shell("echo of the container > /v/file; touch /v/new", "--volume", f"{volume}:/v", "--volume", "named:/w")
    assert (volume / "file").read_text() == "of the container\n"


def test_a_volume_passes_mounts_on_as_it_is_told(podman: Podman) -> None:
    with shared_mount(podman.folder / "shared") as volume:
        podman.start("sender", "--cap-add", "SYS_ADMIN", "--volume", f"{volume}:/v:rshared")
        podman.start("receiver", "--volume", f"{volume}:/v:rslave")
        podman.start("hermit", "--volume", f"{volume}:/v:rprivate")
        podman("exec", "sender", "sh", "-c", "mkdir /v/sub && mount -t tmpfs sub /v/sub && touch /v/sub/file")
        assert (volume / "sub/file").exists()
        assert podman("exec", "receiver", "ls", "/v/sub").stdout == "file\n"
        assert podman("exec", "hermit", "ls", "/v/sub").stdout == ""
        podman("rm", "--force", "--time", "0", "sender", "receiver", "hermit")


def test_user_namespaces_that_podman_chooses(podman: Podman) -> None:
    ids = "".join(f"echo containers:300000:65536 > /etc/{name}; " for name in ("subuid", "subgid"))
    command = podman.argv("run", "--rm", "--userns", "auto:size=2000", IMAGE, "sh", "-c", "cat /proc/self/uid_map; touch /x")
    done = run("unshare", "--mount", "sh", "-ec", own_etc(podman.folder) + ids + 'exec "$@"', "sh", *command)
    assert done.stdout.split() == ["0", "300000", "2000"]


def test_a_user_namespace_is_joined(podman: Podman) -> None:
    podman.start("first", "--uidmap", "0:100000:5000")
    script = "cat /proc/self/uid_map; touch /x; stat -c %u /x; ps; test -t 0 && echo terminal"
    printed = podman.shell(script, "--tty", "--userns", "container:first", "--pid", "container:first")
    assert printed.split()[:4] == ["0", "100000", "5000", "0"]
    assert "sleep 100" in printed
    assert "terminal" in printed
    podman("rm", "--force", "--time", "0", "first")
    podman("pod", "create", "--name", "pod", "--network", "none", "--uidmap", "0:200000:5000")
    podman.start("member", "--pod", "pod")
    assert podman("exec", "member", "cat", "/proc/self/uid_map").stdout.split() == ["0", "200000", "5000"]
    podman("pod", "rm", "--force", "--time", "0", "pod")


def test_a_container_joins_the_namespaces_of_another(podman: Podman, one: str) -> None:
    options = [f"--{kind}=container:{one}" for kind in ("pid", "ipc", "network")]
    assert "sleep 100" in podman.shell("ps", *options)
    pid = podman.see(one, "{{.State.Pid}}")
    inside = podman.shell("for n in pid ipc net uts; do readlink /proc/self/ns/$n; done", *options).splitlines()
    theirs = [str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("pid", "ipc", "net", "uts")]
    assert inside[:3] == theirs[:3]
    assert inside[3] != theirs[3]


# --- exec


def test_exec_runs_as_it_is_told(podman: Podman, one: str) -> None:
    assert "sleep 100" in podman("exec", one, "ps").stdout
    assert podman("exec", one, "sh", "-c", "exit 7", check=False).returncode == 7
    assert podman("exec", "--interactive", one, "sort", text="b\na\n").stdout == "a\nb\n"
    script = "id -u; id -g; pwd; echo $A"
    assert podman("exec", "-u", "ada", "-w", "/tmp", "-e", "A=b", one, "sh", "-c", script).stdout == "1000\n1000\n/tmp\nb\n"
    everything = capabilities(Path("/proc/self/status").read_text())
    assert capabilities(podman("exec", "--privileged", one, "cat", "/proc/self/status").stdout) == everything
    missing = podman("exec", one, "nosuch", check=False)
    assert missing.returncode == 127
    assert "executable file not found in $PATH" in missing.stderr


def test_exec_in_the_background(podman: Podman, one: str) -> None:
    podman("exec", "--detach", one, "sh", "-c", "echo done > /tmp/note")
    wait_for(lambda: podman("exec", one, "cat", "/tmp/note", check=False).stdout == "done\n", what="the note")


@pytest.mark.parametrize("options", [[], ["--uidmap", "0:100000:5000"]])
def test_exec_with_a_terminal_is_resized_and_interrupted(podman: Podman, options: list[str]) -> None:
    podman.start("talker", *options)
    with Terminal(podman.argv("exec", "-it", "talker", "sh"), rows=30, columns=90) as terminal:
        terminal.send("stty size; tty\n")
        terminal.expect("30 90")
        terminal.expect("/dev/pts/[0-9]")
        terminal.resize(rows=44, columns=120)
        wait_for(lambda: terminal.ask("stty size\n", "44 120"), what="the new size")
        terminal.send("sh -c 'echo going; exec sleep 1000'\n")
        terminal.expect("going\r\n")
        terminal.send("\x03")
        terminal.expect("# ")
        terminal.send("exit $?\n")
        assert terminal.wait() == 130
    podman("rm", "--force", "--time", "0", "talker")


# --- a container's life


def test_pause_and_unpause(podman: Podman, one: str) -> None:
    podman("pause", one)
    assert podman.see(one, "{{.State.Status}}") == "paused"
    assert podman("exec", one, "true", check=False).returncode == 255
    podman("unpause", one)
    assert podman("exec", one, "echo", "awake").stdout == "awake\n"


def test_signals_reach_the_program_and_stop_takes_its_own(podman: Podman) -> None:
    program = "trap 'echo got hup' HUP; trap 'echo bye; exit 3' USR1; echo ready; while :; do sleep 0.1; done"
    podman.start("polite", "--stop-signal", "USR1", program=("sh", "-c", program))
    wait_for(lambda: "ready" in podman("logs", "polite").stdout, what="the program")
    podman("kill", "--signal", "HUP", "polite")
    wait_for(lambda: "got hup" in podman("logs", "polite").stdout, what="the signal")
    podman("stop", "--time", "20", "polite")
    assert podman.see("polite", "{{.State.Status}} {{.State.ExitCode}}") == "exited 3"
    assert podman("logs", "polite").stdout == "ready\ngot hup\nbye\n"
    podman("start", "polite")
    podman("kill", "polite")
    assert podman("wait", "polite").stdout == "137\n"
    podman("rm", "polite")


def test_a_stop_that_is_not_heard_becomes_a_kill(podman: Podman, one: str) -> None:
    podman("stop", "--time", "0", one)
    assert podman.see(one, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"


def test_restart_and_restart_policy(podman: Podman, one: str) -> None:
    before = podman.see(one, "{{.State.Pid}}")
    podman("restart", "--time", "0", one)
    assert podman.see(one, "{{.State.Status}}") == "running"
    assert podman.see(one, "{{.State.Pid}}") != before
    podman.start("again", "--restart", "on-failure:2", program=("sh", "-c", "echo ran; exit 1"))
    wait_for(lambda: podman("logs", "again").stdout == "ran\n" * 3, what="three runs")
    wait_for(lambda: podman.see("again", "{{.State.Status}} {{.State.ExitCode}}") == "exited 1", what="the last end")
    podman("rm", "again")


def test_logs_top_and_stats(podman: Podman) -> None:
    podman.start("busy", "--user", "ada", program=("sh", "-c", "echo out; echo err >&2; exec sleep 100"))
    wait_for(lambda: podman("logs", "busy").stdout, what="a line")
    logs = podman("logs", "busy")
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    rows = podman("top", "busy", "pid", "user", "seccomp", "args").stdout.splitlines()
    assert rows[1].split() == ["1", "ada", "filter", "sleep", "100"]
    assert "sleep 100" in podman("top", "busy", "-ef").stdout
    [stats] = json.loads(podman("stats", "--no-stream", "--format", "json", "busy").stdout)
    assert (stats["name"], stats["pids"]) == ("busy", "1")
    podman("rm", "--force", "--time", "0", "busy")


def test_healthcheck_run(podman: Podman) -> None:
    podman.start("patient", "--health-cmd", "test -e /tmp/healthy", "--health-interval", "disable")
    sick = podman("healthcheck", "run", "patient", check=False)
    assert (sick.returncode, sick.stdout) == (1, "unhealthy\n")
    podman("exec", "patient", "touch", "/tmp/healthy")
    podman("healthcheck", "run", "patient")
    assert podman.see("patient", "{{.State.Health.Status}}") == "healthy"
    podman("rm", "--force", "--time", "0", "patient")


def test_cp_commit_and_diff(podman: Podman, one: str) -> None:
    sent = podman.folder / "sent"
    sent.write_text("sent\n")
    podman("cp", sent, f"{one}:/tmp/")
    podman("exec", one, "sh", "-c", "cat /tmp/sent > /tmp/back")
    podman("cp", f"{one}:/tmp/back", podman.folder / "back")
    assert (podman.folder / "back").read_text() == "sent\n"
    assert "A /tmp/back" in podman("diff", one).stdout
    podman("commit", one, "localhost/committed:1")
    assert podman("run", "--rm", "localhost/committed:1", "cat", "/tmp/back").stdout == "sent\n"


def test_update_changes_limits(podman: Podman, one: str) -> None:
    podman("update", "--memory", "70m", "--cpus", "0.3", one)
    group = podman.see(one, "{{.State.CgroupPath}}")
    assert limit(group, "memory", "memory.limit_in_bytes") == str(70 << 20)
    assert limit(group, "cpu", "cpu.cfs_quota_us") == "30000"


def test_checkpoint_is_refused_clearly(podman: Podman, one: str) -> None:
    done = podman("container", "checkpoint", one, check=False)
    assert done.returncode == 125
    assert "runtime does not support checkpoint/restore" in done.stderr
    assert podman.see(one, "{{.State.Status}}") == "running"


# --- pods


def test_a_pod_shares_what_its_infra_container_has(podman: Podman) -> None:
    podman("pod", "create", "--name", "pod", "--network", "none", "--share", "net,ipc,uts,pid", "--hostname", "together")
    for name in ("left", "right"):
        podman.start(name, "--pod", "pod")
    seen = []
    for name in ("left", "right"):
        script = "hostname; ps; for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done"
        seen.append(podman("exec", name, "sh", "-c", script).stdout.splitlines())
    assert seen[0][0] == "together"
    assert sum("sleep 100" in line for line in seen[0]) == 3  # the infra container's sleeps longer
    assert seen[0][-5:-1] == seen[1][-5:-1]
    assert seen[0][-1] != seen[1][-1]
    podman("pod", "pause", "pod")
    assert podman.see("left", "{{.State.Status}}") == "paused"
    podman("pod", "unpause", "pod")
    podman("pod", "restart", "pod")
    assert len(podman("pod", "top", "pod").stdout.splitlines()) == 4
    podman("pod", "stop", "--time", "0", "pod")
    podman("pod", "rm", "pod")


KUBE = """
apiVersion: v1
kind: Pod
metadata: {{name: kube}}
spec:
  hostname: kube
  terminationGracePeriodSeconds: 0
  volumes: [{{name: shared, hostPath: {{path: {volume}, type: DirectoryOrCreate}}}}]
  containers:
  - name: writer
    image: {image}
    command: [sh, -c, "hostname > /shared/note; exec sleep 100"]
    resources: {{limits: {{memory: 40Mi, cpu: 200m}}}}
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  - name: reader
    image: {image}
    command: [sh, -c, "until cat /shared/note; do sleep 0.1; done; exec sleep 100"]
    securityContext: {{runAsUser: 1000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false}}
    volumeMounts: [{{name: shared, mountPath: /shared, readOnly: true}}]
"""


def test_play_kube_runs_a_pod(podman: Podman) -> None:
    manifest = podman.folder / "pod.yaml"
    manifest.write_text(KUBE.format(volume=podman.folder / "kube", image=IMAGE))
    podman("play", "kube", "--network", "none", manifest)
    wait_for(lambda: podman("logs", "kube-reader").stdout == "kube\n", what="the reader to read")
    group = podman.see("kube-writer", "{{.State.CgroupPath}}")
    assert limit(group, "memory", "memory.limit_in_bytes") == str(40 << 20)
    assert limit(group, "cpu", "cpu.cfs_quota_us") == "20000"
    status = podman("exec", "kube-reader", "sh", "-c", "! touch /shared/x; ! touch /x; cat /proc/self/status").stdout
    assert re.search("NoNewPrivs:\t1", status)
    assert re.search("Uid:\t1000", status)
    namespaces = [podman("exec", f"kube-{name}", "readlink", "/proc/self/ns/net").stdout for name in ("writer", "reader")]
    assert namespaces[0] == namespaces[1]
    podman("play", "kube", "--down", manifest)
    assert podman("ps", "--all", "--quiet").stdout == ""


def test_a_killed_container_leaves_no_cgroup(podman: Podman) -> None:
    podman.start("victim")
    group = podman.see("victim", "{{.State.CgroupPath}}")
    podman("kill", "--signal", str(int(signal.SIGKILL)), "victim")
    podman("rm", "--force", "--time", "0", "victim")
    assert not list(Path("/sys/fs/cgroup").glob(f"*{group}"))

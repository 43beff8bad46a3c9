"""The commands of a person against a real daemon: containers without any Kubernetes."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, PROJECT, Daemon


@contextmanager
def container(daemon: Daemon, *options: str, command: tuple[str, ...] = ("sleep", "300")) -> Iterator[str]:
    """The ID of a container that runs in the background, and is removed at the end."""
    identifier = daemon.out("run", "-d", "--network", "none", *options, IMAGE, *command)
    try:
        yield identifier
    finally:
        daemon.command("rm", "-f", identifier)


def run(daemon: Daemon, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return daemon.command("run", "--rm", "--network", "none", *arguments, check=False, stdin=stdin)


def test_run_gives_outputs_and_the_exit_code(daemon: Daemon) -> None:
    done = run(daemon, IMAGE, "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 42)
    assert daemon.out("ps", "-aq") == ""


def test_run_passes_input_on_and_its_end(daemon: Daemon) -> None:
    text = "line\n" * 50_000
    done = run(daemon, "-i", IMAGE, "cat", stdin=text)
    assert done.returncode == 0
    assert done.stdout == text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((IMAGE, "no-such-program"), 127, "not found"),
        ((IMAGE, "/etc/passwd"), 126, "permission denied"),
        (("--user", "nobody-of-that-name", IMAGE, "true"), 125, "nobody-of-that-name"),
        (("--memory", "12x", IMAGE, "true"), 2, "is not a size"),
        (("-v", "/no:relative", IMAGE, "true"), 125, "absolute path"),
        (("-p", "1:2", IMAGE, "true"), 125, "-p needs a bridge network"),
        (("--runtime", "missing", IMAGE, "true"), 125, "missing"),
        (("--pull", "never", "not-here:1", "true"), 125, "not-here"),
    ],
)
def test_what_cannot_run_has_dockers_exit_code_a_reason_and_leaves_nothing(
    daemon: Daemon, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run(daemon, *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr.lower() or words in done.stderr
    assert daemon.out("ps", "-aq") == ""


def test_the_flags_of_run_reach_the_process(daemon: Daemon, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("from the host")
    (tmp_path / "env").write_text("# comment\nB=from file\n")
    script = 'echo "$A|$B|$(pwd)|$(id -u):$(id -g)|$(hostname)|$(cat /data/file)|$(touch /data/x 2>&1 | grep -c Read-only)"'
    done = run(
        daemon, "-e", "A=1", "--env-file", str(tmp_path / "env"), "-w", "/tmp", "-u", "1000:1001", "-h", "box",
        "-v", f"{tmp_path}:/data:ro", IMAGE, "sh", "-c", script,
    )  # fmt: skip
    assert done.stdout == "1|from file|/tmp|1000:1001|box|from the host|1\n", done.stderr


def test_entrypoint_and_read_only_root(daemon: Daemon) -> None:
    done = run(daemon, "--read-only", "--entrypoint", "sh", IMAGE, "-c", "touch /x; echo $?")
    assert done.stdout == "1\n"


def test_capabilities_are_few_unless_asked_for(daemon: Daemon) -> None:
    def effective(*options: str) -> int:
        return int(run(daemon, *options, IMAGE, "sh", "-c", "grep CapEff /proc/self/status").stdout.split()[1], 16)

    net_admin, sys_admin = 1 << 12, 1 << 21
    assert effective() & (net_admin | sys_admin) == 0
    assert effective("--cap-add", "NET_ADMIN") & net_admin
    assert effective("--cap-drop", "ALL") == 0
    assert effective("--privileged") & sys_admin


def test_limits_are_in_the_cgroup(daemon: Daemon) -> None:
    with container(daemon, "-m", "64m", "--pids-limit", "20", "--cpus", "0.5") as identifier:
        pid = daemon.out("inspect", "--format", "{{.State.Pid}}", identifier)
        groups = dict(line.split(":")[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
        base = Path("/sys/fs/cgroup")
        if (base / "cgroup.controllers").exists():
            assert (base / f"./{groups['']}/memory.max").read_text() == f"{64 * 2**20}\n"
            assert (base / f"./{groups['']}/pids.max").read_text() == "20\n"
        else:
            assert (base / f"memory/.{groups['memory']}/memory.limit_in_bytes").read_text() == f"{64 * 2**20}\n"
            assert (base / f"pids/.{groups['pids']}/pids.max").read_text() == "20\n"


def test_a_named_volume_outlives_its_container(daemon: Daemon) -> None:
    run(daemon, "-v", "kept:/data", IMAGE, "sh", "-c", "echo here > /data/file")
    assert run(daemon, "-v", "kept:/data", IMAGE, "cat", "/data/file").stdout == "here\n"


def test_inspect_has_what_was_asked_for_and_what_the_image_says(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text(
        f'FROM {IMAGE}\nENV OWN=1\nUSER 7\nWORKDIR /tmp\nENTRYPOINT ["sleep"]\nCMD ["300"]\nLABEL of=image\n'
        "EXPOSE 80\nVOLUME /kept\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=2s CMD true\n"
    )
    daemon.out("build", "-q", "-t", "inspected", str(tmp_path))
    [image] = json.loads(daemon.out("image", "inspect", "inspected"))
    assert image["Config"]["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 2 * 10**9}
    options = ["--name", "asked", "-e", "GIVEN=2", "-l", "a=b", "-m", "64m", "--pids-limit", "9", "--cap-add", "NET_ADMIN"]
    options += ["-v", f"{tmp_path}:/host:ro", "-v", "inspected:/data", "-p", "127.0.0.1:8099:80", "--ulimit", "nofile=64:128"]
    try:
        daemon.out("run", "-d", *options, "inspected", "200")
        [found] = json.loads(daemon.out("inspect", "asked"))
        assert (found["Path"], found["Args"]) == ("sleep", ["200"])
        config, host = found["Config"], found["HostConfig"]
        assert (config["Entrypoint"], config["Cmd"], config["Image"]) == (["sleep"], ["200"], "inspected")
        assert (config["User"], config["WorkingDir"], config["StopSignal"]) == ("7", "/tmp", "SIGINT")
        assert {"OWN=1", "GIVEN=2"} <= set(config["Env"])
        assert {"of": "image", "a": "b"}.items() <= config["Labels"].items()
        assert (config["ExposedPorts"], config["Volumes"]) == ({"80/tcp": {}}, {"/kept": {}})
        assert config["Healthcheck"] == image["Config"]["Healthcheck"]
        assert (host["Memory"], host["PidsLimit"], host["CapAdd"]) == (64 * 2**20, 9, ["NET_ADMIN"])
        assert host["Ulimits"] == [{"Name": "nofile", "Soft": 64, "Hard": 128}]
        assert f"{tmp_path}:/host:ro" in host["Binds"]
        published = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8099"}]}
        assert host["PortBindings"] == found["NetworkSettings"]["Ports"] == published
        mounts = {mount["Destination"]: mount for mount in found["Mounts"]}
        assert (mounts["/host"]["Type"], mounts["/host"]["RW"], mounts["/host"]["Propagation"]) == ("bind", False, "rprivate")
        assert (mounts["/data"]["Type"], mounts["/data"]["Name"], mounts["/data"]["RW"]) == ("volume", "inspected", True)
    finally:
        daemon.command("rm", "-f", "asked", check=False)
        daemon.command("volume", "rm", "inspected", check=False)
        daemon.command("rmi", "inspected", check=False)


def test_wait_for_conditions(daemon: Daemon) -> None:
    check = ["--health-cmd", "test -e /tmp/well", "--health-interval", "200ms"]
    try:
        daemon.out("create", "--name", "checked", *check, IMAGE, "sh", "-c", "until test -e /tmp/end; do sleep 0.1; done; exit 3")
        daemon.out("run", "-d", "--name", "plain", IMAGE, "sh", "-c", "exit 4")
        assert daemon.out("wait", "--condition", "created", "checked") == "-1"
        daemon.out("start", "checked")
        assert daemon.out("wait", "--condition", "running", "checked") == "-1"
        healthy = subprocess.Popen(daemon.argv("wait", "--condition", "healthy", "checked"), cwd=PROJECT, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            healthy.wait(1)
        daemon.out("exec", "checked", "touch", "/tmp/well")
        assert healthy.communicate(timeout=10)[0] == b"-1\n"
        daemon.out("exec", "-d", "checked", "touch", "/tmp/end")  # it may be ended by what it brings about
        done = daemon.command("wait", "checked", "nothing", "plain", check=False)
        assert (done.returncode, done.stdout) == (1, "3\n4\n")
        assert done.stderr == "highrt: there is no container 'nothing'\n"
        assert daemon.out("wait", "--ignore", "nothing", "plain").split() == ["-1", "4"]
        removed = subprocess.Popen(daemon.argv("wait", "--condition", "removed", "plain"), cwd=PROJECT, stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            removed.wait(1)
        daemon.out("rm", "plain")
        assert removed.communicate(timeout=10)[0] == b"-1\n"
    finally:
        daemon.command("rm", "-f", "checked", "plain", check=False)


def test_stats(daemon: Daemon) -> None:
    page, client = "stats-page", ["run", "--rm", IMAGE, "wget", "-q", "-O", "/dev/null"]
    make = "dd if=/dev/zero of=/tmp/megabyte bs=1M count=1 && exec httpd -f -p 80 -h /tmp"
    daemon.out("run", "-d", "--name", page, "-m", "64m", IMAGE, "sh", "-c", make)
    try:
        address = daemon.out("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", page)
        wait_for(lambda: daemon.command(*client, f"http://{address}/megabyte", check=False).returncode == 0)
        [found] = [json.loads(line) for line in daemon.out("stats", "--no-stream", "--format", "json", page).splitlines()]
        assert (found["Name"], found["PIDs"]) == (page, "1")
        assert found["MemUsage"].endswith("MB / 67.1MB")
        assert 0 < float(found["MemPerc"].removesuffix("%")) < 50
        assert re.fullmatch(r"[\d.]+k?B / 1\.\d+MB", found["NetIO"]), found["NetIO"]
        table = daemon.out("stats", "--no-stream").splitlines()
        assert re.split(" {3,}", table[0])[3:] == ["MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"]
        assert table[1].split()[1] == page
    finally:
        daemon.out("rm", "-f", page)


def test_an_image_of_another_platform_does_not_run_in_its_place(daemon: Daemon) -> None:
    have = daemon.out("inspect", "-f", "{{.Os}}/{{.Architecture}}", IMAGE)
    other = "linux/riscv64"
    run(daemon, "--pull", "never", "--platform", have, IMAGE, "true")
    done = run(daemon, "--pull", "never", "--platform", other, IMAGE, "true")
    assert (done.returncode, done.stderr) == (125, f"highrt: the image {IMAGE} here is for {have}, not for {other}\n")


def test_versions(daemon: Daemon) -> None:
    assert daemon.out("version", "--format", "{{.Client.Version}}") == daemon.out("version", "--format", "{{.Server.Version}}")
    assert daemon.out("version").splitlines()[0].split() == ["Client:", metadata.version("strata")]


def test_ps_exec_inspect_stop_and_rm(daemon: Daemon) -> None:
    identifier = daemon.out("run", "-d", "--network", "none", "--name", "life", IMAGE, "sleep", "300")
    assert daemon.out("ps", "--format", "{{.ID}} {{.Names}} {{.State}}") == f"{identifier[:12]} life running"
    done = daemon.command("exec", "-e", "X=5", "-w", "/tmp", "life", "sh", "-c", "echo $X $PWD; exit 3", check=False)
    assert (done.stdout, done.returncode) == ("5 /tmp\n", 3)
    assert daemon.command("exec", "-i", "life", "cat", stdin="typed").stdout == "typed"
    assert daemon.command("exec", "life", "nothing-like-it", check=False).returncode == 127
    document = json.loads(daemon.out("inspect", "life"))[0]
    assert document["Id"] == identifier
    assert document["State"]["Status"] == "running"
    assert Path(f"/proc/{document['State']['Pid']}/comm").read_text() == "sleep\n"
    taken = daemon.command("run", "-d", "--network", "none", "--name", "life", IMAGE, check=False)
    assert taken.returncode == 125
    assert "in use" in taken.stderr
    refused = daemon.command("rm", "life", check=False)
    assert refused.returncode == 1
    assert "is running" in refused.stderr
    daemon.out("stop", "-t", "0", identifier[:10])
    assert daemon.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "life") == "exited 137"
    assert daemon.out("ps", "-q") == ""
    daemon.out("rm", "life")
    gone = daemon.command("inspect", "life", check=False)
    assert gone.returncode == 1
    assert "no container and no image" in gone.stderr


def test_logs_follow_tail_and_timestamps(daemon: Daemon) -> None:
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.1; done; sleep 1; echo last"
    with container(daemon, command=("sh", "-c", script)) as identifier:
        started = time.monotonic()
        done = daemon.command("logs", "-f", identifier)
        assert time.monotonic() - started < 10
        assert done.stdout == "out 1\nout 2\nout 3\nlast\n"
        assert done.stderr == "err 1\nerr 2\nerr 3\n"
        assert daemon.out("logs", "--tail", "1", identifier) == "last"
        stamp, _, text = daemon.out("logs", "-t", "-n", "1", identifier).partition(" ")
        assert text == "last"
        assert stamp.endswith("Z")
        assert daemon.out("logs", "--since", stamp, identifier) == "last"
        assert daemon.out("logs", "--since", "0s", identifier) == ""


def test_a_line_longer_than_a_log_entry_stays_one_line(daemon: Daemon) -> None:
    with container(daemon, command=("sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end")) as identifier:
        daemon.out("wait", identifier)
        assert daemon.out("logs", identifier) == "x" * 100_000 + "\nend"
        assert daemon.out("logs", "-n", "2", identifier) == "x" * 100_000 + "\nend"


def test_kill_sends_the_signal_and_wait_gives_the_code(daemon: Daemon) -> None:
    script = "trap 'exit 9' USR1; echo ready; while true; do sleep 0.05; done"
    with container(daemon, command=("sh", "-c", script)) as identifier:
        wait_for(lambda: daemon.out("logs", identifier) == "ready")
        waiting = subprocess.Popen(daemon.argv("wait", identifier), cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        daemon.out("kill", "-s", "USR1", identifier)
        assert waiting.communicate(timeout=10)[0] == "9\n"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(PROJECT)
            os.execv(argv[0], argv)
        self.seen = b""

    def type(self, data: bytes) -> None:
        os.write(self.descriptor, data)

    def until(self, text: bytes, seconds: float = 10) -> None:
        """Reads until the text has come; what follows it is kept for the next time."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"waited for {text!r}, have {self.seen!r}"
            self.seen += os.read(self.descriptor, 4096)
        self.seen = self.seen.partition(text)[2]

    def status(self) -> int:
        """The exit code, after reading to the end."""
        while True:
            try:
                if not os.read(self.descriptor, 4096):
                    break
            except OSError:
                break
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_has_sizes_ctrl_c_and_ctrl_d(daemon: Daemon) -> None:
    import fcntl
    import struct
    import termios

    terminal = Terminal(daemon.argv("run", "--rm", "-it", "--network", "none", IMAGE, "sh"))
    terminal.until(b"# ")
    fcntl.ioctl(terminal.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    os.kill(terminal.pid, signal.SIGWINCH)
    time.sleep(0.3)
    terminal.type(b"stty size\n")
    terminal.until(b"33 111\r\n")
    terminal.until(b"# ")
    terminal.type(b"sleep 100\n")
    terminal.until(b"sleep 100\r\n")
    time.sleep(0.2)
    terminal.type(b"\x03")
    terminal.until(b"# ")
    terminal.type(b"exit 5\n")
    assert terminal.status() == 5

    terminal = Terminal(daemon.argv("run", "--rm", "-it", "--network", "none", IMAGE, "sh"))
    terminal.until(b"# ")
    terminal.type(b"\x04")
    assert terminal.status() == 0


def test_detach_keys_leave_the_container_and_attach_comes_back(daemon: Daemon) -> None:
    terminal = Terminal(daemon.argv("run", "-it", "--name", "shell", "--network", "none", IMAGE, "sh"))
    terminal.until(b"# ")
    terminal.type(b"\x10\x11")
    assert terminal.status() == 0
    try:
        assert daemon.out("inspect", "-f", "{{.State.Status}}", "shell") == "running"
        terminal = Terminal(daemon.argv("attach", "shell"))
        time.sleep(0.5)
        terminal.type(b"echo back $((40+2))\n")
        terminal.until(b"back 42\r\n")
        terminal.type(b"exit 6\n")
        assert terminal.status() == 6
    finally:
        daemon.command("rm", "-f", "shell")


def test_exec_with_a_terminal(daemon: Daemon) -> None:
    with container(daemon) as identifier:
        terminal = Terminal(daemon.argv("exec", "-it", identifier, "sh"))
        terminal.until(b"# ")
        terminal.type(b"tty; exit 4\n")
        terminal.until(b"/dev/pts/")
        assert terminal.status() == 4


def test_signals_reach_the_container(daemon: Daemon) -> None:
    script = "trap 'echo got it; exit 3' TERM; echo ready; while true; do sleep 0.05; done"
    client = subprocess.Popen(
        daemon.argv("run", "--rm", "--network", "none", IMAGE, "sh", "-c", script),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout
    assert client.stdout.readline() == "ready\n"
    client.send_signal(signal.SIGTERM)
    assert client.communicate(timeout=10)[0] == "got it\n"
    assert client.returncode == 3


def test_a_client_that_is_killed_leaves_the_container_and_its_exec_dies(daemon: Daemon) -> None:
    with container(daemon) as identifier:
        client = subprocess.Popen(
            daemon.argv("exec", identifier, "sh", "-c", "echo started; exec sleep 4321"),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdout
        assert client.stdout.readline() == "started\n"
        client.kill()
        client.wait()
        wait_for(lambda: "4321" not in daemon.out("exec", identifier, "ps"), what="the exec to end")
        assert daemon.out("inspect", "-f", "{{.State.Running}}", identifier) == "true"


def test_images_save_load_tag_and_rmi(daemon: Daemon, tmp_path: Path) -> None:
    archive = tmp_path / "hello.tar"
    daemon.out("tag", IMAGE, "other/name:2")
    assert daemon.out("images", "--format", "{{.Repository}}:{{.Tag}}", "other/name") == "other/name:2"
    daemon.out("save", "-o", str(archive), "other/name:2")
    daemon.out("rmi", "other/name:2")
    assert daemon.out("images", "-q", "other/name") == ""
    assert "other/name:2" in daemon.out("load", "-i", str(archive))
    assert run(daemon, "other/name:2", "echo", "loaded").stdout == "loaded\n"
    daemon.out("rmi", "other/name:2")
    missing = daemon.command("rmi", "other/name:2", check=False)
    assert missing.returncode == 1
    assert "no such image" in missing.stderr


def test_an_archive_that_is_cut_off_or_no_archive_leaves_the_daemon_well(daemon: Daemon, tmp_path: Path) -> None:
    saving = subprocess.Popen(daemon.argv("save", IMAGE), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert saving.stdout
    assert len(saving.stdout.read(10)) == 10
    saving.kill()
    saving.communicate()
    loading = subprocess.Popen(daemon.argv("load"), cwd=PROJECT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert loading.stdin
    loading.stdin.write(bytes(100_000))
    loading.stdin.flush()
    time.sleep(0.5)
    loading.kill()
    loading.communicate()
    (tmp_path / "junk").write_bytes(os.urandom(3_000_000))
    refused = daemon.command("load", "-i", str(tmp_path / "junk"), check=False)
    assert (refused.returncode, "not an image archive" in refused.stderr) == (1, True)
    assert run(daemon, IMAGE, "echo", "well").stdout == "well\n"


def test_build_prints_its_steps_and_the_image_runs(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text(f'FROM {IMAGE}\nARG WORD=none\nRUN echo "$WORD" > /word\nCMD ["cat", "/word"]\n')
    done = daemon.command("build", "-t", "built:1", "--build-arg", "WORD=given", str(tmp_path), timeout=60)
    assert done.stdout.startswith("sha256:")
    assert "RUN echo" in done.stderr
    assert run(daemon, "built:1").stdout == "given\n"
    (tmp_path / "Containerfile").write_text("FROM scratch\nBREW coffee\n")
    failed = daemon.command("build", str(tmp_path), check=False)
    assert failed.returncode == 1
    assert "line 2" in failed.stderr
    daemon.out("rmi", "built:1")


def test_the_daemon_can_be_killed_while_containers_run(daemon: Daemon) -> None:
    """Containers run on, and the next daemon knows them: also what ended meanwhile, with its code, and --rm is kept."""
    with container(daemon, "--name", "stays") as stays, container(daemon, command=("sh", "-c", "sleep 1.5; exit 8")) as ends:
        daemon.out("run", "-d", "--rm", "--network", "none", IMAGE, "sleep", "1.5")
        pid = daemon.out("inspect", "-f", "{{.State.Pid}}", stays)
        daemon.kill()
        time.sleep(2)
        assert Path(f"/proc/{pid}").exists()
        daemon.start()
        assert daemon.out("inspect", "-f", "{{.State.Status}} {{.State.Pid}}", stays) == f"running {pid}"
        assert daemon.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", ends) == "exited 8"
        assert daemon.out("exec", "stays", "echo", "still here") == "still here"
        wait_for(lambda: len(daemon.out("ps", "-aq").split()) == 2, what="the --rm container to be removed")

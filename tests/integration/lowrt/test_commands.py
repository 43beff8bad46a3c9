"""The command line as runc's callers know it: flags, texts, exit statuses, and the order of a container's steps."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups
from tests.conftest import wait_for
from tests.integration.lowrt.conftest import LOWRT

_ENOUGH_FOR_TRUE = (
    "access arch_prctl brk chdir close execve exit exit_group fchdir fcntl fstat fstat64 getcwd getegid geteuid getgid getuid "
    "ioctl lseek lstat mmap mprotect munmap newfstatat open openat prctl pread64 prlimit64 read readlink rseq rt_sigaction "
    "rt_sigprocmask rt_sigreturn sendto set_robust_list set_tid_address setgid setgroups setresgid setresuid setuid stat uname "
    "capget capset write"
)


def test_a_seccomp_profile_older_than_the_runtimes_system_calls_lets_the_container_start(runtime: Any) -> None:
    """Without no_new_privs the filter is loaded early: what comes after it must be old, as the profiles are."""
    runtime.config["process"]["noNewPrivileges"] = False
    names = _ENOUGH_FOR_TRUE.split()
    runtime.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    }
    done = runtime.run("true")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_in_the_form_that_callers_parse() -> None:
    for flag in ("--version", "-v", "-version"):
        first, second, *_ = _lowrt(flag).stdout.splitlines()
        assert re.fullmatch(r"lowrt version \d+\.\d+\.\d+", first)
        assert re.fullmatch(r"spec: 1\.\d+\.\d+", second)


def test_every_command_has_help() -> None:
    listed = re.findall(r"^   ([a-z]+)  ", _lowrt("--help").stdout.partition("GLOBAL")[0], re.MULTILINE)
    assert {"create", "start", "exec", "state", "ps", "kill", "delete", "pause", "update", "features"} < set(listed)
    for command in listed:
        forms = [("help", command), (command, "--help"), (command, "-h")]
        texts = [_lowrt(*argv) for argv in (forms if command not in ("checkpoint", "restore") else forms[:1])]
        assert {text.returncode for text in texts} == {0}
        assert len({text.stdout for text in texts}) == 1
        assert texts[0].stdout.startswith(f"NAME:\n   lowrt {command} - ")
        assert "USAGE:" in texts[0].stdout
        assert "OPTIONS:" in texts[0].stdout


def test_what_is_no_command_has_no_help_topic() -> None:
    for argv in (["foo"], ["foo", "-h"], ["help", "foo"]):
        done = _lowrt(*argv)
        assert done.returncode == 3
        assert "No help topic for 'foo'" in done.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["state", "--bar", "x"], "flag provided but not defined: -bar"),
        (["--bar", "list"], "flag provided but not defined: -bar"),
        (["run", "--bundle"], "flag needs an argument: --bundle"),
        (["run", "--preserve-fds", "x", "id"], 'invalid value "x" for flag -preserve-fds'),
        (["run", "--detach=perhaps", "id"], 'invalid value "perhaps" for flag -detach'),
        (["state"], '"state" requires exactly 1 argument(s)'),
        (["state", "a", "b"], '"state" requires exactly 1 argument(s)'),
        (["list", "a"], '"list" requires exactly 0 argument(s)'),
        (["exec"], '"exec" requires a minimum of 1 argument(s)'),
        (["kill"], '"kill" requires a minimum of 1 argument(s)'),
        (["kill", "a", "TERM", "b"], '"kill" requires a maximum of 2 argument(s)'),
    ],
)
def test_a_line_that_cannot_be_understood_shows_the_commands_help(argv: list[str], said: str) -> None:
    done = _lowrt(*argv)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout.startswith("Incorrect Usage")
    assert "OPTIONS:" in done.stdout


def test_flags_are_written_with_one_dash_or_two_before_and_after_the_id(runtime: Any) -> None:
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    for argv in (["-bundle", runtime.bundle, "ID"], [f"--bundle={runtime.bundle}", "ID"], ["-b", runtime.bundle, "--", "ID"],
                 ["ID", "-b", runtime.bundle], ["--detach=false", "ID", f"-b={runtime.bundle}"]):  # fmt: skip
        done = runtime.call("run", *(runtime.id if word == "ID" else word for word in argv))
        assert (done.returncode, done.stderr) == (0, "")


def test_what_follows_the_id_of_exec_belongs_to_the_program(runtime: Any) -> None:
    runtime.start("sleep", "100")
    assert runtime.call("exec", runtime.id, "echo", "--tty", "-d", "--").stdout == "--tty -d --\n"


def test_errors_say_which_command_failed_and_end_with_its_status(runtime: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def failing(*argv: Any) -> tuple[int, str]:
        """The exit status, and the error of the log, which is on stderr as well."""
        log.unlink(missing_ok=True)
        done = runtime.call("--log", log, "--log-format", "json", *argv)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["level"] for line in lines] == ["error"]
        assert lines[0]["msg"] in done.stderr
        assert time.strptime(lines[0]["time"], "%Y-%m-%dT%H:%M:%SZ")
        return done.returncode, lines[0]["msg"]

    runtime.config["process"]["args"] = ["nosuch"]
    runtime.write()
    why = 'exec: "nosuch": executable file not found in $PATH'
    missing = f"unable to start container process: error during container init: {why}"
    assert failing("run", "-b", runtime.bundle, runtime.id) == (1, f"lowrt run failed: {missing}")
    assert failing("create", "-b", runtime.bundle, runtime.id) == (1, f"lowrt create failed: {missing}")
    runtime.start("sleep", "100")
    assert failing("exec", runtime.id, "nosuch") == (255, f"exec failed: unable to start container process: {why}")
    assert failing("exec", runtime.id)[0] == 255
    status, text = failing("run", "-b", runtime.bundle, runtime.id)
    assert (status, text.partition(": ")[2].startswith("container with given ID already exists")) == (1, True)
    for command in ("state", "start", "kill", "delete", "pause", "resume", "ps", "exec"):
        status, text = failing(command, "nobody", *(["true"] if command == "exec" else []))
        assert "container does not exist" in text
        assert status == (255 if command == "exec" else 1)
    assert runtime.call("delete", "--force", "nobody").returncode == 0
    assert failing("run", "-b", runtime.bundle, "@@")[1].startswith("lowrt run failed: invalid container ID")
    assert failing("run", "-b", runtime.bundle, "")[1].endswith("container id cannot be empty")
    assert failing("kill", runtime.id, "FOO")[1] == 'unknown signal "FOO"'
    for command in ("checkpoint", "restore"):
        assert failing(command, runtime.id) == (1, f"{command}: not supported by this runtime")
        assert runtime.call(command, "--help").returncode == 1  # podman asks so whether it may use it


def test_a_json_log_without_a_file_goes_to_stderr(runtime: Any) -> None:
    line = json.loads(runtime.call("--log-format", "json", "state", "nobody").stderr)
    assert (line["level"], line["msg"]) == ("error", "container does not exist: nobody")
    assert runtime.call("--log-format", "xml", "list").stderr == "lowrt: invalid log-format: xml\n"


def test_a_log_that_cannot_be_opened_is_an_error(runtime: Any) -> None:
    done = runtime.call("--log", "/nowhere/log", "list")
    assert (done.returncode, done.stderr) == (1, "lowrt: open /nowhere/log: no such file or directory\n")


def test_debug_logs_what_is_done(runtime: Any, tmp_path: Path) -> None:
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    done = runtime.call("--debug", "run", "--bundle", runtime.bundle, runtime.id)
    assert done.returncode == 0
    assert re.search(r'^time="\S+" level=debug msg=".*process \d+.*"$', done.stderr, re.MULTILINE)
    done = runtime.call("--debug", "--log", tmp_path / "log", "--log-format", "json", "run", "-b", runtime.bundle, runtime.id)
    assert done.stderr == ""
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["level"] for line in lines} == {"debug"}
    assert any(runtime.cgroup in line["msg"] for line in lines)
    assert lines[-1]["msg"] == "run ends with status 0"


def test_the_root_folder_is_the_users_own_without_privileges(tmp_path: Path) -> None:
    """XDG_RUNTIME_DIR counts for a user, and not for the machine's root."""
    tmp_path.chmod(0o755)
    runtime_folder = tmp_path / "run"
    runtime_folder.mkdir()
    os.chown(runtime_folder, 65534, 65534)
    for path in tmp_path.parents[:-2]:  # down to what is below /tmp: one more of them where several workers run
        path.chmod(path.stat().st_mode | 0o011)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime_folder)}
    assert "(default: /run/lowrt)" in _lowrt("--help", env=environment).stdout
    assert not any(runtime_folder.iterdir())
    done = _lowrt("list", "-q", env=environment, user=65534)
    assert (done.returncode, done.stderr) == (0, "")
    assert (runtime_folder / "lowrt").stat().st_mode & 0o7777 == 0o1700


def test_the_machines_root_folder_is_no_root_folder() -> None:
    done = _lowrt("--root", "/tmp/..", "list")
    assert (done.returncode, "should not be set to /" in done.stderr) == (1, True)


def test_list_of_a_root_that_is_not_there_fails_only_where_it_was_asked_for(tmp_path: Path) -> None:
    done = _lowrt("--root", str(tmp_path / "nothing"), "list")
    assert done.returncode == 1
    assert done.stderr == f"lowrt: open {tmp_path / 'nothing'}: no such file or directory\n"


def test_features_describe_the_runtime() -> None:
    found = json.loads(_lowrt("features").stdout)
    assert (found["ociVersionMin"], found["ociVersionMax"]) == ("1.0.0", "1.3.0")
    assert {"rbind", "rro", "idmap", "ridmap", "tmpcopyup", "rslave"} <= set(found["mountOptions"])
    linux = found["linux"]
    assert linux["netDevices"] == {"enabled": True}
    assert linux["intelRdt"] == {"enabled": False}
    assert "MPOL_BIND" in linux["memoryPolicy"]["modes"]
    assert set(linux["seccomp"]["supportedFlags"]) <= set(linux["seccomp"]["knownFlags"])
    assert "SECCOMP_FILTER_FLAG_LOG" in linux["seccomp"]["supportedFlags"]
    assert set(linux["namespaces"]) == {"cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"}
    assert linux["mountExtensions"] == {"idmap": {"enabled": True}}
    assert "SCMP_ARCH_X86_64" in linux["seccomp"]["archs"]
    assert "CAP_SYS_ADMIN" in linux["capabilities"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["annotations"]["io.github.seccomp.libseccomp.version"])
    assert isinstance(found["potentiallyUnsafeConfigAnnotations"], list)


def test_spec_writes_a_configuration_once(tmp_path: Path) -> None:
    assert _lowrt("spec", "-b", str(tmp_path)).returncode == 0
    text = (tmp_path / "config.json").read_text()
    assert text == json.dumps(json.loads(text), indent="\t") + "\n"
    again = _lowrt("spec", "--bundle", str(tmp_path))
    assert (again.returncode, again.stderr) == (1, "lowrt: File config.json exists. Remove it first\n")
    (tmp_path / "config.json").unlink()
    assert _lowrt("spec", "--rootless", cwd=tmp_path).returncode == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert [entry["type"] for entry in config["linux"]["namespaces"]][-1] == "user"
    assert "network" not in [entry["type"] for entry in config["linux"]["namespaces"]]
    assert config["linux"]["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    assert not any(option.startswith("gid=") for mount in config["mounts"] for option in mount.get("options", ()))


def test_state_and_list_are_as_runc_prints_them(runtime: Any) -> None:
    runtime.start("sleep", "100")
    text = runtime.call("state", runtime.id).stdout
    state = json.loads(text)
    assert text == json.dumps(state, indent=2) + "\n"
    assert set(state) == {"ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}Z", state["created"])
    listed = json.loads(runtime.call("list", "-f", "json").stdout)
    assert listed == [{**state, "owner": "root"}]
    header, row = runtime.call("list").stdout.splitlines()
    assert header.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert row.split() == [str({**state, "owner": "root"}[n]) for n in ("id", "pid", "status", "bundle", "created", "owner")]
    assert runtime.call("list", "--format", "xml").stderr == "lowrt: invalid format option\n"
    runtime.call("delete", "--force", runtime.id, check=True)
    assert runtime.call("list", "--format=json").stdout == "null\n"


def test_list_tells_of_a_broken_entry_and_goes_on(runtime: Any) -> None:
    runtime.start("sleep", "100")
    broken = runtime.root / "broken"
    broken.mkdir()
    (broken / "state.json").write_text("{")
    done = runtime.call("list", "-q")
    assert (done.returncode, done.stdout) == (0, f"{runtime.id}\n")
    assert done.stderr.startswith("load container broken: ")
    shutil.rmtree(broken)


def test_a_pidfd_of_the_process_goes_to_the_pidfd_socket(runtime: Any, tmp_path: Path) -> None:
    runtime.config["process"]["args"] = ["sleep", "100"]
    runtime.write()
    path = tmp_path / "pidfd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def received() -> int:
            connection, _ = listener.accept()
            with connection:
                _, descriptors, _, _ = socket.recv_fds(connection, 64, 1)
            fields = Path(f"/proc/self/fdinfo/{descriptors[0]}").read_text()
            os.close(descriptors[0])
            return int(re.search(r"^Pid:\s+(\d+)", fields, re.MULTILINE)[1])  # type: ignore[index]

        null = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
        runtime.call("run", "-d", "-b", runtime.bundle, "--pidfd-socket", path, runtime.id, check=True, **null)
        assert received() == runtime.state()["pid"]
        pid_file = tmp_path / "pid"
        runtime.call("exec", "-d", "--pidfd-socket", path, "--pid-file", pid_file, runtime.id, "sleep", "100", check=True, **null)
        assert received() == int(pid_file.read_text())


def test_a_terminal_needs_a_place_to_go_to_before_anything_is_made(runtime: Any) -> None:
    runtime.config["process"]["terminal"] = True
    runtime.write()
    for argv in (["create"], ["run", "--detach"]):
        done = runtime.call(*argv, "--bundle", runtime.bundle, runtime.id)
        assert done.returncode == 1
        assert "cannot allocate tty if lowrt will detach without setting console socket" in done.stderr
    assert "cannot use console socket" in runtime.call("run", "-b", runtime.bundle, "--console-socket", "/x", runtime.id).stderr
    assert runtime.call("list", "-q").stdout == ""


def test_bash_completes_commands_flags_and_containers(runtime: Any) -> None:
    runtime.start("sleep", "100")
    script = _lowrt("completion").stdout

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("lowrt", *words))
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _lowrt; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        environment = {**os.environ, "PATH": f"{runtime.root.parent}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split()

    (runtime.root.parent / "lowrt").symlink_to(LOWRT)
    assert completed("st") == ["start", "state"]
    assert completed("--log-f") == ["--log-format"]
    assert completed("run", "--pid") == ["--pidfd-socket", "--pid-file"]
    assert completed("list", "--format", "j") == ["json"]
    assert completed("--root", str(runtime.root), "state", "") == [runtime.id]


def _quietly_create(runtime: Any, *program: str) -> int:
    """A created container; its PID."""
    runtime.config["process"]["args"] = list(program)
    runtime.write()
    null = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    runtime.call("create", "--bundle", runtime.bundle, runtime.id, check=True, **null)
    return int(runtime.state()["pid"])


@pytest.mark.parametrize("name", ["TERM", "int", "SIGHUP", "3", "USR1", "KILL"])
def test_a_container_that_was_not_started_can_be_killed(runtime: Any, name: str) -> None:
    _quietly_create(runtime, "sleep", "100")
    runtime.call("kill", runtime.id, name, check=True)
    wait_for(lambda: runtime.state()["status"] == "stopped", what="the container to stop")
    done = runtime.call("start", runtime.id)
    assert (done.returncode, "cannot start a container that has stopped" in done.stderr) == (1, True)


def test_a_started_program_has_no_signal_handlers_of_the_runtimes(runtime: Any) -> None:
    pid = _quietly_create(runtime, "sleep", "100")
    runtime.call("start", runtime.id, check=True)
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.findall(r"^Sig(?:Cgt|Ign|Blk):\s+(\w+)$", status, re.MULTILINE) == ["0000000000000000"] * 3


def test_exec_adds_no_path_to_the_environment_of_a_process_file(runtime: Any, tmp_path: Path) -> None:
    runtime.start("sleep", "100")
    process = {"args": ["/bin/cat", "/proc/self/environ"], "cwd": "/", "env": ["A=b"]}
    (tmp_path / "process.json").write_text(json.dumps(process))
    done = runtime.call("exec", "-p", tmp_path / "process.json", runtime.id)
    assert set(done.stdout.strip("\0").split("\0")) == {"A=b", "HOME=/root"}


# --- what the caller's environment asks for


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "manager.sock"))
        listener.settimeout(10)
        yield listener


def _notified(manager: socket.socket) -> list[str]:
    """What a manager is told, up to the barrier, which it answers."""
    told = []
    while True:
        data, descriptors, _, _ = socket.recv_fds(manager, 4096, 1)
        if descriptors:
            assert data == b"BARRIER=1"
            os.close(descriptors[0])
            return told
        told.append(data.decode())


_NOTIFY = "test $NOTIFY_SOCKET = /run/notify/notify.sock; mount | grep -q 'on /run/notify .*ro,'; "


def _say(runtime: Any, *words: str) -> str:
    """Shell that says words at the container's socket, by a program of this test: busybox has none."""
    program = runtime.bundle / "rootfs/bin/say"
    source = runtime.root.parent / "say.c"
    source.write_text(
        "#include <string.h>\n#include <stdlib.h>\n#include <sys/socket.h>\n#include <sys/un.h>\n"
        "int main(int n, char **v) { struct sockaddr_un a = {.sun_family = AF_UNIX}; int s = socket(AF_UNIX, SOCK_DGRAM, 0);\n"
        'strcpy(a.sun_path, getenv("NOTIFY_SOCKET")); for (int i = 1; i < n; i++)\n'
        "if (sendto(s, v[i], strlen(v[i]), 0, (void *)&a, sizeof a) < 0) return 1; return 0; }\n"
    )
    subprocess.run(["gcc", "-static", "-o", program, source], check=True)
    return " ".join(["say", *(f"'{word}'" for word in words)])


@pytest.mark.parametrize("how", ["run", "detach", "start"])
def test_readiness_is_passed_on_to_who_waits_for_it(runtime: Any, manager: socket.socket, how: str) -> None:
    script = _NOTIFY + _say(runtime, "STATUS=nearly", "X=y\nREADY=1") + "; exec sleep 100"
    runtime.config["process"]["args"] = ["sh", "-ec", script]
    runtime.write()
    environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}
    command = [LOWRT, "--root", runtime.root]
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    line = ["--bundle", runtime.bundle, runtime.id]
    if how == "start":
        subprocess.run([*command, "create", *line], env=environment, check=True, timeout=30, **null)
        line = ["start", runtime.id]
    else:
        line = ["run", *(["--detach"] if how == "detach" else []), *line]
    with subprocess.Popen([*command, *line], env=environment, **null) as waiting:
        told = _notified(manager)
        pid = runtime.state()["pid"]
        assert told == ["READY=1\n", f"MAINPID={waiting.pid if how == 'run' else pid}\n"]
        if how == "run":
            os.kill(pid, signal.SIGKILL)
        assert waiting.wait(10) == (137 if how == "run" else 0)
    runtime.call("delete", "--force", runtime.id, check=True)


def test_a_container_that_ends_before_it_is_ready_keeps_nobody_waiting(runtime: Any, manager: socket.socket) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}
    runtime.config["process"]["args"] = ["sh", "-c", "exit 3"]
    runtime.write()
    null = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    assert runtime.call("run", "--bundle", runtime.bundle, runtime.id, env=environment, **null).returncode == 3
    assert runtime.call("run", "-d", "-b", runtime.bundle, runtime.id, env=environment, **null).returncode == 0


def test_sockets_of_socket_activation_are_passed_on_to_whom_they_are_meant_for(runtime: Any) -> None:
    script = "echo $LISTEN_FDS $LISTEN_PID; ls -l /proc/self/fd/3 2>&1; true"
    runtime.config["process"]["args"] = ["sh", "-c", script]
    runtime.write()
    line = f'LISTEN_FDS=1 LISTEN_PID=$(($$ + {{}})) exec "{LOWRT}" --root "{runtime.root}" run -b "{runtime.bundle}" {runtime.id}'
    with socket.socket(socket.AF_UNIX) as listening:
        for offset, seen in ((0, "1 1\n"), (1, "\n")):
            shell = ["bash", "-c", f"exec 3<&{listening.fileno()}; {line.format(offset)}"]
            done = subprocess.run(shell, pass_fds=[listening.fileno()], capture_output=True, text=True, timeout=30, check=True)
            assert done.stdout.startswith(seen)
            assert ("socket:" in done.stdout) == (offset == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN + 3])
def test_signals_are_passed_on_to_a_foreground_containers_program(runtime: Any, number: int) -> None:
    script = f"trap 'echo got; exit 5' {int(number)}; echo ready; while :; do sleep 0.05; done"
    runtime.config["process"]["args"] = ["sh", "-c", script]
    runtime.write()
    command = [LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "ready\n"
        wait_for(lambda: _handles(running.pid, number), what="lowrt to wait")
        running.send_signal(number)
        assert running.stdout.read() == "got\n"
        assert running.wait(10) == 5


def _handles(pid: int, number: int) -> bool:
    caught = re.search(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(caught and int(caught[1], 16) >> (number - 1) & 1)


# --- hooks


def _hook(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **more}


def test_each_hook_is_told_the_state_as_its_side_sees_it(runtime: Any, tmp_path: Path) -> None:
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    runtime.config["hooks"] = {kind: [_hook(f"cat >{tmp_path}/{kind}")] for kind in kinds}
    runtime.config["hooks"]["startContainer"] = [_hook("/bin/cat >/startContainer")]
    runtime.config["annotations"] = {"org.example": "yes"}
    pid = runtime.start("sleep", "100")
    runtime.call("delete", "--force", runtime.id, check=True)
    told = {kind: json.loads((tmp_path / kind).read_text()) for kind in kinds}
    told["startContainer"] = json.loads((runtime.bundle / "rootfs/startContainer").read_text())
    assert {kind: state["status"] for kind, state in told.items()} == {
        "prestart": "creating", "createRuntime": "creating", "createContainer": "creating",
        "startContainer": "created", "poststart": "running", "poststop": "stopped",
    }  # fmt: skip
    assert {kind: state.get("pid") for kind, state in told.items()} == {
        "prestart": pid, "createRuntime": pid, "createContainer": 1, "startContainer": 1, "poststart": pid, "poststop": None,
    }  # fmt: skip
    for state in told.values():
        assert (state["id"], state["bundle"], state["annotations"]) == (runtime.id, str(runtime.bundle), {"org.example": "yes"})


def test_hooks_begin_in_the_bundle_or_the_root_with_the_runtimes_environment(runtime: Any, tmp_path: Path) -> None:
    kinds = ("createRuntime", "createContainer", "poststart", "poststop")
    script = "pwd >{0}.pwd; tr '\\0' '\\n' </proc/self/environ >{0}.env"
    runtime.config["hooks"] = {kind: [_hook(script.format(tmp_path / kind))] for kind in kinds}
    own = _hook("/usr/bin/env >own.env", env=["ONE=two"])
    runtime.config["hooks"]["prestart"] = [own]
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    environment = {**os.environ, "STRATA_TEST_MARK": "here"}
    runtime.call("run", "--bundle", runtime.bundle, runtime.id, check=True, env=environment, cwd="/")
    for kind in kinds:
        where = runtime.bundle / "rootfs" if kind == "createContainer" else runtime.bundle
        assert (tmp_path / f"{kind}.pwd").read_text().strip() == str(where), kind
        marked = "STRATA_TEST_MARK=here" in (tmp_path / f"{kind}.env").read_text().split()
        assert marked == (kind != "createContainer"), kind  # which is the container's already
    assert "ONE=two" in (runtime.bundle / "own.env").read_text().split()
    assert "STRATA_TEST_MARK" not in (runtime.bundle / "own.env").read_text()


@pytest.mark.parametrize("how", ["run", "start"])
def test_a_failing_poststart_hook_ends_and_removes_the_container(runtime: Any, tmp_path: Path, how: str) -> None:
    runtime.config["hooks"] = {"poststart": [_hook("exit 4"), _hook(f"touch {tmp_path}/second")],
                               "poststop": [_hook(f"touch {tmp_path}/poststop")]}  # fmt: skip
    runtime.config["process"]["args"] = ["sleep", "100"]
    runtime.write()
    null = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "capture_output": False}
    if how == "start":
        runtime.call("create", "--bundle", runtime.bundle, runtime.id, check=True, **{**null, "stderr": subprocess.DEVNULL})
        done = runtime.call("start", runtime.id, **null)
    else:
        done = runtime.call("run", "--bundle", runtime.bundle, runtime.id, **null)
    assert (done.returncode, "error running poststart hook #0: exit status 4" in done.stderr) == (1, True)
    assert runtime.call("list", "-q").stdout == ""
    assert not cgroups.open_cgroup(runtime.cgroup).exists()
    assert not (tmp_path / "second").exists()
    assert (tmp_path / "poststop").exists()


def test_failing_poststop_hooks_are_warned_of_and_the_others_run(runtime: Any, tmp_path: Path) -> None:
    runtime.config["hooks"] = {"poststop": [_hook("echo no >&2; exit 4"), _hook(f"touch {tmp_path}/second")]}
    done = runtime.run("true")
    assert done.returncode == 0
    assert done.stderr == "lowrt: warning: error running poststop hook #0: exit status 4, output: no\n"
    assert (tmp_path / "second").exists()


def test_a_filter_without_getcwd_does_not_keep_the_container_from_starting(runtime: Any) -> None:
    runtime.config["process"]["noNewPrivileges"] = False
    rule = {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}
    runtime.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    assert runtime.run("true").stderr == ""


# --- the mount namespace of another, and none


def _without_mount_namespace(runtime: Any) -> None:
    linux = runtime.config["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "mount"]
    linux["maskedPaths"] = linux["readonlyPaths"] = []


def _mounts_of(runtime: Any) -> list[str]:
    """The mounts in the bundle that this process sees, by their targets."""
    targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [target for target in targets if target.startswith(str(runtime.bundle))]


def test_without_a_mount_namespace_the_root_is_changed_and_nothing_stays_mounted(runtime: Any) -> None:
    _without_mount_namespace(runtime)
    try:
        pid = runtime.start("sleep", "100")
        assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
        inside = runtime.call("exec", runtime.id, "ls", "/", "/proc/self/ns")
        assert "etc" in inside.stdout.split()
        assert "usr" not in inside.stdout.split()
        assert str(runtime.bundle / "rootfs/proc") in _mounts_of(runtime)
    finally:
        runtime.call("delete", "--force", runtime.id)
    assert _mounts_of(runtime) == []


def test_a_create_that_fails_without_a_mount_namespace_takes_its_mounts_away(runtime: Any) -> None:
    _without_mount_namespace(runtime)
    runtime.config["hooks"] = {"createContainer": [_hook("exit 1")]}
    assert "createContainer hook #0" in runtime.run("true").stderr
    assert _mounts_of(runtime) == []


def test_masks_need_a_mount_namespace(runtime: Any) -> None:
    _without_mount_namespace(runtime)
    runtime.config["linux"]["maskedPaths"] = ["/proc/kcore"]
    assert "unable to restrict sys entries without a private MNT namespace" in runtime.run("true").stderr


def test_a_joined_mount_namespace_gets_the_containers_root(runtime: Any) -> None:
    holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; exec sleep 100"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        holder.stdout.readline()
        path = f"/proc/{holder.pid}/ns/mnt"
        for entry in runtime.config["linux"]["namespaces"]:
            if entry["type"] == "mount":
                entry["path"] = path
        pid = runtime.start("sleep", "100")
        assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink(path)
        assert "usr" not in runtime.call("exec", runtime.id, "ls", "/").stdout.split()
    finally:
        holder.kill()
        holder.wait()


def _lowrt(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    given = {"stdin": subprocess.DEVNULL, "timeout": 30, "capture_output": True, "text": True, **options}
    return subprocess.run([LOWRT, *argv], check=False, **given)

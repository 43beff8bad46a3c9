"""A container's first process that was forked ahead (lowrt.prefork), as monitors have it: the same container, made sooner."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.linux import syscalls
from tests import processes
from tests.conftest import wait_for
from tests.integration.lowrt.conftest import Runtime
from tests.integration.lowrt.warm import Spawner

pytestmark = pytest.mark.skipif(not syscalls.SHARES_MEMORY, reason="nothing is forked ahead on this processor")


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    made = Spawner()
    yield made
    made.close()


def call(spawner: Spawner, runtime: Runtime, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    return spawner.call("--root", runtime.root, *argv)


def clones(tmp_path: Path, runtime: Runtime) -> list[str]:
    """The calls of clone3 while a container runs."""
    trace = tmp_path / "trace"
    spawner = Spawner("strace", "-f", "-e", "trace=clone3", "-o", trace)
    try:
        done = call(spawner, runtime, "run", "--bundle", runtime.bundle, runtime.id)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    finally:
        spawner.close()
    return [line for line in trace.read_text().splitlines() if "clone3(" in line]


def without_pid_namespace(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"] = [entry for entry in config["linux"]["namespaces"] if entry["type"] != "pid"]


def with_user_namespace(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        config["linux"][key] = [{"containerID": 0, "hostID": 0, "size": 65536}]


def with_a_long_configuration(config: dict[str, Any]) -> None:
    config["annotations"] = {f"org.example.{number}": "x" * 1000 for number in range(300)}


@pytest.mark.parametrize(
    ("change", "ahead"),
    [
        (lambda config: None, True),
        (without_pid_namespace, False),
        (with_user_namespace, False),
        (with_a_long_configuration, False),
    ],
)
def test_it_makes_containers_in_pid_namespaces_of_their_own(
    tmp_path: Path, runtime: Runtime, change: Callable[[dict[str, Any]], None], ahead: bool
) -> None:
    """Whoever could trace the first process has the one that was forked ahead, too."""
    change(runtime.config)
    runtime.config["process"]["args"] = ["sh", "-c", "echo done"]
    runtime.write()
    played = "CLONE_VFORK|CLONE_NEWNS"  # see lowrt.rehearsal
    made = [line for line in clones(tmp_path, runtime) if "CLONE_NEWNS" in line and played not in line]
    assert {"CLONE_VM" in line for line in made} == {ahead}


def test_the_container_is_the_same(spawner: Spawner, runtime: Runtime) -> None:
    wanted = "Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|SigIgn|SigBlk|SigCgt|Cpus_allowed"
    script = f"""
        grep -E '^({wanted}):' /proc/self/status; cut -d' ' -f4- /proc/self/mountinfo; ulimit -a; umask; env | sort
        ls /proc/self/fd; cat /proc/self/oom_score_adj; hostname; id; ls /dev; echo $$
    """
    runtime.config["process"]["args"] = ["sh", "-c", script]
    runtime.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]
    runtime.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}],
    }
    runtime.write()
    ahead = call(spawner, runtime, "run", "--bundle", runtime.bundle, runtime.id)
    alone = runtime.call("run", "--bundle", runtime.bundle, runtime.id)
    assert ahead.returncode == alone.returncode == 0, ahead.stderr + alone.stderr
    assert ahead.stdout == alone.stdout


@pytest.mark.parametrize(
    "broken",
    [
        {"process": {"args": ["nosuch"]}},
        {"process": {"cwd": "/bin/busybox"}},
        {"mounts": [{"destination": "/x", "type": "bind", "source": "/nosuch", "options": ["bind"]}]},
        {"mounts": [{"destination": "/x", "type": "nosuchfs", "source": "x"}]},
        {"hooks": {"createContainer": [{"path": "/nosuch"}]}},
        {"hooks": {"prestart": [{"path": "/bin/false"}]}},
    ],
)
def test_what_fails_in_it_is_told_in_the_same_words(spawner: Spawner, runtime: Runtime, broken: dict[str, Any]) -> None:
    for key, value in broken.items():
        runtime.config[key] = {**runtime.config[key], **value} if key == "process" else value
    runtime.write()
    ahead = call(spawner, runtime, "run", "--bundle", runtime.bundle, runtime.id)
    alone = runtime.call("run", "--bundle", runtime.bundle, runtime.id)
    assert ahead.returncode == alone.returncode != 0
    assert ahead.stderr == alone.stderr
    assert not (runtime.root / runtime.id).exists()


def test_hooks_are_run_as_ever(spawner: Spawner, runtime: Runtime) -> None:
    seen = runtime.bundle / "seen"
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    runtime.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} >>{'/tmp/seen' if kind == 'startContainer' else seen}"]}]
        for kind in kinds
    }
    runtime.config["process"]["args"] = ["cat", "/tmp/seen"]
    runtime.write()
    done = call(spawner, runtime, "run", "--bundle", runtime.bundle, runtime.id)
    assert (done.returncode, done.stdout) == (0, "startContainer\n"), done.stderr
    assert seen.read_text().split() == [kind for kind in kinds if kind != "startContainer"]


def create(spawner: Spawner, runtime: Runtime, stdout: int) -> int:
    """A container that waits for its start; the PID of its first process."""
    runtime.write()
    null = os.open(os.devnull, os.O_RDWR)
    assert (
        spawner.run(["--root", str(runtime.root), "create", "--bundle", str(runtime.bundle), runtime.id], (null, stdout, null))
        == 0
    )
    os.close(null)
    return int(runtime.state()["pid"])


def sharing_memory_with(first: int) -> list[int]:
    """The processes that have the same memory as the first process."""
    others = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in others if pid != first and processes.comm(pid) == "lowrt" and share_memory(pid, first)]


def share_memory(one: int, other: int) -> bool:
    kcmp, vm = 312, 1  # kcmp(2), on x86-64
    try:
        return syscalls.call(kcmp, one, other, vm, 0, 0) == 0
    except ProcessLookupError:
        return False


def test_nothing_of_it_stays_when_the_program_runs(spawner: Spawner, runtime: Runtime) -> None:
    """And a pipe that the program has is closed when the program has closed it."""
    runtime.config["process"]["args"] = ["sh", "-c", "exec >&-; sleep 100"]
    pipe, write = os.pipe()
    first = create(spawner, runtime, write)
    os.close(write)
    (ahead,) = sharing_memory_with(first)
    assert not select.select([pipe], [], [], 0)[0], "the first process has it until the start"
    runtime.call("start", runtime.id, check=True)
    assert select.select([pipe], [], [], 10)[0]
    assert os.read(pipe, 1) == b""
    os.close(pipe)
    wait_for(lambda: processes.is_gone(ahead), what="the end of the process that was forked ahead")
    assert runtime.state()["status"] == "running"


def test_a_container_that_is_deleted_before_its_start_takes_it_along(spawner: Spawner, runtime: Runtime) -> None:
    runtime.config["process"]["args"] = ["sleep", "100"]
    (ahead,) = sharing_memory_with(create(spawner, runtime, 1))
    runtime.call("delete", "--force", runtime.id, check=True)
    wait_for(lambda: processes.is_gone(ahead), what="the end of the process that was forked ahead")


def test_it_may_be_killed_before_it_is_needed(spawner: Spawner, runtime: Runtime) -> None:
    """Then the first process is forked as ever."""
    runtime.config["process"]["args"] = ["sleep", "100"]
    (ahead,) = wait_for(lambda: processes.descendants(spawner.pid, "lowrt"), what="the process that is forked ahead")
    os.kill(ahead, signal.SIGKILL)
    wait_for(lambda: processes.is_gone(ahead), what="its end")
    first = create(spawner, runtime, 1)
    assert sharing_memory_with(first) == []
    runtime.call("start", runtime.id, check=True)
    assert runtime.state()["status"] == "running"


def test_it_may_be_killed_while_it_waits(spawner: Spawner, runtime: Runtime) -> None:
    """The container does not notice."""
    runtime.config["process"]["args"] = ["sleep", "100"]
    (ahead,) = sharing_memory_with(create(spawner, runtime, 1))
    os.kill(ahead, signal.SIGKILL)
    wait_for(lambda: processes.is_gone(ahead), what="its end")
    runtime.call("start", runtime.id, check=True)
    assert runtime.state()["status"] == "running"


def test_it_ends_with_who_has_forked_it(spawner: Spawner) -> None:
    (ahead,) = wait_for(lambda: processes.descendants(spawner.pid, "lowrt"), what="the process that is forked ahead")
    spawner.close()
    wait_for(lambda: processes.is_gone(ahead), what="its end")


def test_a_number_that_became_another_files_is_left_alone() -> None:
    """Who rehearses may close all descriptors afterwards, as daemons do."""
    script = """if True:
        import os
        from lowrt import prefork

        prefork.prepare()
        number = prefork._socket.fileno()
        os.close(number)
        assert os.open("/dev/null", os.O_RDWR) == number
        assert prefork.take() is None
        os.fstat(number)
    """
    subprocess.run([sys.executable, "-c", script], check=True)

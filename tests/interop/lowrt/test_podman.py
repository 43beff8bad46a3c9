"""podman with lowrt in runc's place: conmon drives it as it drives runc."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from strata.linux import cgroups

LOWRT = Path(__file__).parents[3] / "lowrt/launcher"
# podman asks for limits that only a machine with CAP_SYS_RESOURCE can raise; the network is another layer's.
COMMON = ("--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
Podman = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    folder = Path(tempfile.mkdtemp(prefix="pod"))  # short: socket paths lie below it
    base = [
        "podman", "--root", folder / "root", "--runroot", folder / "run", "--storage-driver", "vfs",
        "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", LOWRT,
    ]  # fmt: skip

    def call(*argv: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [str(word) for word in (*base, *argv)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    conmons = cgroups.open_cgroup("/libpod_parent")  # podman makes it for its conmons, and never takes it away
    was_there = conmons.exists()
    root = folder / "image/bin"
    root.mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "busybox")
    for name in ("sh", "id", "ps", "sleep", "ls", "cat"):
        (root / name).symlink_to("busybox")
    subprocess.run(["tar", "-C", folder / "image", "-cf", folder / "image.tar", "."], check=True)
    try:
        call("import", str(folder / "image.tar"), "busybox:1")
        yield call
    finally:
        call("rm", "--all", "--force", "--time", "0", check=False)
        shutil.rmtree(folder)
        if not was_there:
            conmons.remove()


def test_run_gives_output_and_status(podman: Podman) -> None:
    done = podman("run", "--rm", *COMMON, "busybox:1", "sh", "-c", "echo out; id -u; exit 4", check=False)
    assert (done.returncode, done.stdout) == (4, "out\n0\n"), done.stderr


def test_a_container_in_the_background_is_entered_and_stopped(podman: Podman) -> None:
    podman("run", "--detach", "--name", "one", *COMMON, "busybox:1", "sleep", "100")
    assert "sleep 100" in podman("exec", "one", "ps").stdout
    missing = podman("exec", "one", "nosuch", check=False)
    assert missing.returncode == 127
    assert "executable file not found in $PATH" in missing.stderr
    podman("pause", "one")
    assert podman("inspect", "one", "--format", "{{.State.Status}}").stdout == "paused\n"
    podman("unpause", "one")
    podman("stop", "--time", "0", "one")
    assert podman("inspect", "one", "--format", "{{.State.Status}} {{.State.ExitCode}}").stdout == "exited 137\n"
    podman("rm", "one")


def test_a_terminal_and_limits(podman: Podman) -> None:
    done = podman(
        "run", "--rm", "--tty", "--memory", "50m", "--pids-limit", "20", *COMMON, "busybox:1", "ls", "-l", "/dev/console"
    )
    assert done.stdout.startswith("crw")


def test_a_program_that_is_not_there(podman: Podman) -> None:
    done = podman("run", "--rm", *COMMON, "busybox:1", "nosuch", check=False)
    assert done.returncode == 127
    assert "not found" in done.stderr

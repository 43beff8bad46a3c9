"""CVE-2024-21626 and its like: descriptors of the host's that a container's program inherits, or that lead out of it before."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.integration.lowrt.conftest import LOWRT, Runtime
from tests.integration.lowrt.warm import CHECKOUT

SECRET = "what only the host knows"
NUMBERS = range(3, 24)


WARM = (sys.executable, "-m", "tests.integration.lowrt.warm")  # in process, as highrt's monitors do it


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A folder of the host's with a secret in it."""
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    return folder


LEAK = """
import os, sys
folder, count, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
opened = os.open(folder, os.O_RDONLY)
for number in range(3, 3 + count):
    os.dup2(opened, number)
    os.set_inheritable(number, True)
os.closerange(3 + count, 4096)
os.execv(command[0], command)
"""


def leaking(folder: Path, count: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of somebody who has a folder open, under so many numbers from 3 on."""
    argv = [sys.executable, "-c", LEAK, folder, str(count), *command]
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, cwd=CHECKOUT
    )  # fmt: skip


def lines(printed: str) -> dict[int, str]:
    """What `programs/descriptors.c` printed: number → target."""
    return {int(number): target for number, _, target in (line.partition(" ") for line in printed.splitlines())}


@pytest.fixture
def lister(runtime: Runtime, attacker: Callable[..., None]) -> Runtime:
    """A container that prints which descriptors its program has."""
    attacker("descriptors")
    runtime.config["process"]["args"] = ["descriptors"]
    runtime.write()
    return runtime


# --- what a program has


@pytest.mark.parametrize("command", [(LOWRT,), WARM], ids=["command", "warm"])
def test_a_thousand_descriptors_of_the_caller_reach_no_program(
    lister: Runtime, host: Path, command: tuple[str | Path, ...]
) -> None:
    """Neither the first program of a container nor a later one has more than its stdio, whatever the caller forgot to close."""
    done = leaking(host, 1000, *command, "--root", lister.root, "run", "--bundle", lister.bundle, lister.id)
    assert lines(done.stdout).keys() == {0, 1, 2}, done.stderr
    lister.start("sleep", "100")
    done = leaking(host, 1000, *command, "--root", lister.root, "exec", lister.id, "descriptors")
    assert lines(done.stdout).keys() == {0, 1, 2}, done.stderr


def test_a_created_program_has_its_stdio_alone(lister: Runtime, host: Path) -> None:
    """Between create and start the process waits, with a socket of the runtime's."""
    lister.config["process"]["args"] = ["sh", "-c", "exec descriptors >/seen"]
    lister.write()
    with open("/dev/null", "r+") as null:
        subprocess.run([LOWRT, "--root", lister.root, "create", "--bundle", lister.bundle, lister.id],
                       stdin=null, stdout=null, stderr=null, check=True, timeout=30)  # fmt: skip
    leaking(host, 100, LOWRT, "--root", lister.root, "start", lister.id).check_returncode()
    wait_for(lambda: lister.state()["status"] == "stopped", what="the program's end")
    assert lines((lister.bundle / "rootfs/seen").read_text()).keys() == {0, 1, 2}


@pytest.mark.parametrize("count", [1, 3, 40])
def test_preserved_descriptors_are_exactly_those(lister: Runtime, host: Path, count: int) -> None:
    """--preserve-fds N is the caller's word: those N come through, with what they were, and not the next one."""
    expected = {0, 1, 2, *range(3, 3 + count)}
    flags = ["--preserve-fds", str(count)]
    for _ in range(2):
        done = leaking(host, 60, LOWRT, "--root", lister.root, "run", *flags, "--bundle", lister.bundle, lister.id)
        assert lines(done.stdout).keys() == expected, done.stderr
        assert all(lines(done.stdout)[number].endswith("/host") for number in range(3, 3 + count))
    lister.start("sleep", "100")
    done = leaking(host, 60, LOWRT, "--root", lister.root, "exec", *flags, lister.id, "descriptors")
    assert lines(done.stdout).keys() == expected, done.stderr


@pytest.mark.parametrize("given", [0, 2])
def test_a_descriptor_of_the_runtimes_own_is_never_preserved(lister: Runtime, host: Path, given: int) -> None:
    """Who asks for more descriptors than there are would get the runtime's: its sockets, its folders, the root. It is refused."""
    run = ["run", "--preserve-fds", "20", "--bundle", lister.bundle, lister.id]
    done = leaking(host, given, LOWRT, "--root", lister.root, *run)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"unable to stat preserved-fd {given} (of 20): no such file or directory" in done.stderr
    assert lister.call("list", "-q").stdout == ""
    lister.start("sleep", "100")
    done = leaking(host, given, LOWRT, "--root", lister.root, "exec", "--preserve-fds", "20", lister.id, "descriptors")
    assert (done.returncode, done.stdout) == (255, "")
    assert f"unable to stat preserved-fd {given} (of 20)" in done.stderr


def test_sockets_that_were_meant_for_another_process_are_not_passed_on(lister: Runtime, host: Path) -> None:
    """LISTEN_FDS without this process's PID in LISTEN_PID is somebody else's (sd_listen_fds(3)), and what has those numbers here
    may be anything."""
    run = ["--root", lister.root, "run", "--bundle", lister.bundle, lister.id]
    for pid, expected in (("1", {0, 1, 2}), ("$$", {0, 1, 2, 3, 4})):
        activate = f'LISTEN_FDS=2 LISTEN_PID={pid} exec "$@"'
        done = leaking(host, 2, "/bin/sh", "-c", activate, "sh", LOWRT, *run)
        assert lines(done.stdout).keys() == expected, done.stderr


# --- the way out by the working directory

LOOK = ("sh", "-c", "cat secret ../etc/hostname ../../etc/hostname; pwd")
callers = pytest.mark.parametrize(
    ("command", "count"),
    [((LOWRT,), 0), ((LOWRT,), 40), (WARM, 0)],
    ids=["none of the caller's", "forty of the caller's", "warm"],
)


def assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode != 0
    assert done.stdout == "", "the program has run"


@callers
def test_no_descriptor_is_a_working_directory_out_of_the_container(
    runtime: Runtime, host: Path, command: tuple[str | Path, ...], count: int
) -> None:
    """process.cwd = /proc/self/fd/7 stood in a folder of the host that runc had open, and ../../.. was the host's root
    (CVE-2024-21626). Every number is tried, with descriptors that the caller leaks and with lowrt's own."""
    runtime.config["process"]["args"] = LOOK
    for number in NUMBERS:
        runtime.config["process"]["cwd"] = f"/proc/self/fd/{number}"
        runtime.write()
        run = ["run", "--bundle", runtime.bundle, runtime.id]
        assert_refused(leaking(host, count, *command, "--root", runtime.root, *run))
    assert runtime.call("list", "-q").stdout == ""


@callers
def test_no_link_in_the_image_leads_the_working_directory_out_of_the_container(
    runtime: Runtime, host: Path, command: tuple[str | Path, ...], count: int
) -> None:
    """The other half of CVE-2024-21626: nobody looks twice at a working directory /app, and the image has made it a link."""
    runtime.config["process"]["args"] = LOOK
    runtime.config["process"]["cwd"] = "/app"
    runtime.write()
    link = runtime.bundle / "rootfs/app"
    for number in NUMBERS:
        link.unlink(missing_ok=True)
        link.symlink_to(f"/proc/self/fd/{number}")
        run = ["run", "--bundle", runtime.bundle, runtime.id]
        assert_refused(leaking(host, count, *command, "--root", runtime.root, *run))


@callers
@pytest.mark.parametrize("by_link", [False, True])
def test_no_descriptor_is_a_working_directory_of_exec_out_of_the_container(
    runtime: Runtime, host: Path, command: tuple[str | Path, ...], count: int, by_link: bool
) -> None:
    """exec --cwd, where the container has had time to make its links."""
    runtime.start("sleep", "100")
    for number in NUMBERS:
        cwd = f"/proc/self/fd/{number}"
        if by_link:
            (runtime.bundle / "rootfs/app").unlink(missing_ok=True)
            (runtime.bundle / "rootfs/app").symlink_to(cwd)
        execute = ["exec", "--cwd", "/app" if by_link else cwd, runtime.id, *LOOK]
        assert_refused(leaking(host, count, *command, "--root", runtime.root, *execute))


@callers
def test_no_program_is_found_through_a_descriptor(
    runtime: Runtime, host: Path, command: tuple[str | Path, ...], count: int
) -> None:
    """The same way by process.args, and by PATH: a program of the host's would be run with the host's files within reach."""
    shutil.copy("/bin/busybox", host / "look")
    runtime.start("sleep", "100")
    for number in NUMBERS:
        there = f"/proc/self/fd/{number}"
        for flags, name in (([], f"{there}/look"), (["--env", f"PATH={there}"], "look")):
            execute = ["exec", *flags, runtime.id, name, "cat", "/etc/passwd"]
            assert_refused(leaking(host, count, *command, "--root", runtime.root, *execute))


@pytest.mark.parametrize("below_root", [False, True])
def test_a_preserved_folder_is_no_working_directory_either(runtime: Runtime, host: Path, below_root: bool) -> None:
    """What the caller gives on purpose the program may use; but no process begins outside of its container. A folder below the
    root, held by the host's mount of it, is outside too: its .. leads on up, and only the kernel's getcwd(2) tells (the C
    library's asks again, by walking up to what looks like the root)."""
    runtime.config["process"]["cwd"] = "/"
    runtime.start("sleep", "100")
    execute = ["exec", "--preserve-fds", "3", "--cwd", "/proc/self/fd/4", runtime.id, *LOOK]
    folder = runtime.bundle / "rootfs/tmp" if below_root else host
    done = leaking(folder, 3, LOWRT, "--root", runtime.root, *execute)
    assert_refused(done)
    assert "current working directory is outside of container mount namespace root" in done.stderr


def test_the_attack_works_where_a_descriptor_is_left_open(runtime: Runtime, host: Path) -> None:
    """The proof that the attack is one: a runtime that changes its root and goes to the working directory with a folder open."""
    naive = (
        "import os, sys; held = os.open(sys.argv[2], os.O_RDONLY); os.chroot(sys.argv[1]); os.chdir('/');"
        "os.chdir(f'/proc/self/fd/{held}'); os.execv('/bin/cat', ['cat', 'secret'])"
    )
    (runtime.bundle / "rootfs/proc").mkdir()
    mount = 'mount -t proc proc "$1/proc"; exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", runtime.bundle / "rootfs", sys.executable, naive, host]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == SECRET, done.stderr

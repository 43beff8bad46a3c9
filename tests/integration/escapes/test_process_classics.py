"""The old ways out of a container that are no single bug of a runtime: capabilities, keys, /proc, cgroups, devices, terminals."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from strata.linux import capabilities
from tests.integration.escapes.conftest import give_capabilities, install
from tests.integration.lowrt.conftest import LOWRT, Runtime

GiveUserNamespace = Callable[[Runtime], None]


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


def printed(runtime: Runtime, script: str) -> list[str]:
    """The lines that a shell script prints in a new container; it must come to its end."""
    done = runtime.run("sh", "-c", f"{script}\necho that is all")
    assert done.stdout.endswith("that is all\n"), done.stderr
    return lines(done.stdout)[:-1]


# --- capabilities that can be inherited (CVE-2022-29162, CVE-2022-24769)


@pytest.fixture
def inheriting(runtime: Runtime) -> Runtime:
    """An image with a program whose file hands CAP_CHOWN to whoever can inherit it."""
    program = runtime.bundle / "rootfs/inheriting/sh"
    program.parent.mkdir()
    program.write_bytes(Path("/bin/busybox").read_bytes())
    program.chmod(0o755)
    effective_of_version_2, chown = 0x02000001, 1 << capabilities.NUMBERS["CAP_CHOWN"]
    os.setxattr(program, "security.capability", struct.pack("<5I", effective_of_version_2, 0, chown, 0, 0))
    give_capabilities(runtime.config["process"], "CAP_CHOWN")
    runtime.config["process"]["noNewPrivileges"] = False
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    return runtime


ASK = ("/inheriting/sh", "-c", "grep -E 'Cap(Inh|Prm)' /proc/self/status | cut -f 2; id -u")
NOTHING = ["0000000000000000", "0000000000000000", "1000"]


def test_no_capability_is_inherited_by_a_program_of_a_plain_user(inheriting: Runtime) -> None:
    """Docker, and runc's exec --cap, once made the capabilities inheritable too: a plain user in the container could then have
    them from a program whose file says so, though the bounding set was meant as the limit of what setuid programs can get."""
    inheriting.config["process"]["args"] = list(ASK)
    inheriting.write()
    done = inheriting.call("run", "--bundle", inheriting.bundle, inheriting.id)
    assert lines(done.stdout) == NOTHING, done.stderr
    inheriting.start("sleep", "100")
    for flags in ([], ["--cap", "CAP_CHOWN"], ["--user", "1000:1000", "--cap", "CAP_CHOWN"]):
        done = inheriting.call("exec", *flags, inheriting.id, *ASK)
        # Those of --cap are the program's own; what is inherited is looked at.
        assert lines(done.stdout)[0] == NOTHING[0], done.stderr


def test_a_program_would_inherit_what_is_inheritable(inheriting: Runtime) -> None:
    """The proof that the file is one that hands its capability on: here the configuration asks for it."""
    inheriting.config["process"]["capabilities"]["inheritable"] = ["CAP_CHOWN"]
    inheriting.config["process"]["args"] = list(ASK)
    inheriting.write()
    done = inheriting.call("run", "--bundle", inheriting.bundle, inheriting.id)
    assert lines(done.stdout) == ["0000000000000001", "0000000000000001", "1000"]


# --- keys


def test_a_container_does_not_find_its_callers_keys(runtime: Runtime, compiled: Callable[..., Path]) -> None:
    """A session keyring holds what its owner has unlocked (Kerberos tickets, disk keys), and is inherited like a descriptor.
    Without a new one, any program in the container may use the keys of whoever typed `run`, or `exec`."""
    keys = compiled("keys")
    install(runtime, keys)
    find = ["keys", "find", "strata-secret"]
    runtime.config["process"]["args"] = find
    runtime.write()
    run = [LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle]

    def with_key(*command: str | Path) -> str:
        """What a command prints whose session has a key."""
        done = subprocess.run([keys, "with", "strata-secret", *command], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip() + done.stderr

    assert with_key(keys, *find[1:]) == "found"
    assert with_key(*run, "--no-new-keyring", runtime.id) == "found", "the proof that it could be found"
    assert with_key(*run, runtime.id) == "Required key not available"
    runtime.start("sleep", "100")
    assert with_key(LOWRT, "--root", runtime.root, "exec", runtime.id, *find) == "Required key not available"


# --- /proc and /sys


OPEN_ALL = """
for root in /proc/sys /proc/irq /proc/bus /proc/fs /sys; do
  busybox find $root -type f 2>/dev/null
done | while read -r file; do
  { true >>"$file"; } 2>/dev/null && echo "$file"
done
{ true >>/proc/sysrq-trigger; } 2>/dev/null && echo /proc/sysrq-trigger
"""


def test_no_setting_of_the_kernel_can_be_written(runtime: Runtime) -> None:
    """core_pattern names a program that the kernel runs as the host's root, modprobe and hotplug likewise: root in a container
    that can write one of these files is root outside. Every file of /proc/sys, /sys and their like is tried."""
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))  # the proof that root may, were it not for lowrt
    assert printed(runtime, OPEN_ALL) == []


def test_root_of_a_user_namespace_cannot_write_the_hosts_settings(
    runtime: Runtime, give_user_namespace: GiveUserNamespace
) -> None:
    """With all capabilities in its user namespace it may unmask /proc, or mount its own: still the files are the host's."""
    give_user_namespace(runtime)
    give_capabilities(runtime.config["process"])
    script = """
    mkdir /tmp/proc; mount -t proc proc /tmp/proc 2>/dev/null; mount -o remount,rw /proc/sys
    for proc in /proc /tmp/proc; do
      for file in kernel/core_pattern kernel/modprobe kernel/hotplug kernel/sysrq vm/overcommit_memory fs/binfmt_misc/register; do
        { true >>$proc/sys/$file; } 2>/dev/null && echo $proc/sys/$file
      done
      { true >>$proc/sysrq-trigger; } 2>/dev/null && echo $proc/sysrq-trigger
    done
    """
    assert printed(runtime, script) == []


# --- cgroups (CVE-2022-0492 and the classic before it)


def test_no_cgroup_file_can_be_written_in_a_plain_container(runtime: Runtime, attacker: Any) -> None:
    """release_agent is a program that the kernel runs as the host's root when a cgroup becomes empty."""
    script = """
    busybox find /sys/fs/cgroup | while read -r file; do
      case $file in */release_agent) echo "$file is there";; esac
      test -d "$file" || { { true >>"$file"; } 2>/dev/null && echo "$file"; }
    done
    mkdir /sys/fs/cgroup/x /sys/fs/cgroup/*/x 2>/dev/null
    mount -t cgroup -o memory x /tmp 2>/dev/null && echo mounted
    mount -t cgroup2 x /tmp 2>/dev/null && echo mounted
    """
    assert printed(runtime, script) == []


def test_root_of_a_user_namespace_cannot_name_a_release_agent(runtime: Runtime, give_user_namespace: GiveUserNamespace) -> None:
    """It may mount any v1 hierarchy, and sees the whole of one that its cgroup namespace does not divide. What is written is what
    is there already, so that nothing happens where the attack works."""
    give_user_namespace(runtime)
    give_capabilities(runtime.config["process"])
    script = """
    for hierarchy in cpu cpuacct cpuset memory devices freezer blkio pids rdma misc net_cls perf_event none,name=systemd; do
      mkdir -p /tmp/$hierarchy
      mount -t cgroup -o $hierarchy x /tmp/$hierarchy 2>/dev/null || continue
      echo mounted >&2
      file=/tmp/$hierarchy/release_agent
      test -e $file && { cat $file >$file; } 2>/dev/null && echo $hierarchy
    done
    """
    done = runtime.run("sh", "-c", script)
    assert lines(done.stdout) == [], done.stderr


# --- devices


DEVICES = [("c", 1, 1, "mem"), ("c", 1, 4, "port"), ("c", 1, 11, "kmsg"), ("c", 10, 229, "fuse")]


def disks() -> list[tuple[str, int, int, str]]:
    """The host's block devices (/proc/partitions)."""
    rows = [line.split() for line in Path("/proc/partitions").read_text().splitlines()[2:]]
    return [("b", int(row[0]), int(row[1]), row[3]) for row in rows]


@pytest.mark.parametrize("lane", ["as the machine is", "v2"])
def test_a_device_that_root_makes_a_node_of_cannot_be_used(runtime: Runtime, lane: str, request: pytest.FixtureRequest) -> None:
    """With CAP_MKNOD, which Docker grants, root makes a node of the host's disk and reads the host's files from it. The device
    cgroup (v1), or the program that stands for it (v2), is what forbids it."""
    prefix = request.getfixturevalue("v2_lane").prefix if lane == "v2" else []
    give_capabilities(runtime.config["process"], "CAP_MKNOD")
    make = "".join(
        f"mknod /tmp/{name} {kind} {major} {minor} && echo made {name}\n" + "".join(
            f"{{ true {way}/tmp/{name}; }} 2>/dev/null && echo 'opened {name} {way}'\n" for way in ("<", ">>", "<>")
        ) for kind, major, minor, name in [*DEVICES, *disks()]
    )  # fmt: skip
    allow = "for file in /sys/fs/cgroup/devices/devices.allow; do { echo a >$file; } 2>/dev/null && echo allowed; done; "
    script = f"{allow}\n{make}\nmknod /tmp/null c 1 3; echo x >/tmp/null && echo the null device works"
    runtime.config["process"]["args"] = ["sh", "-c", script]
    runtime.config["linux"]["resources"].pop("memory", None)
    runtime.write()
    command = [*prefix, LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    made = [f"made {name}" for *_, name in [*DEVICES, *disks()]]
    assert lines(done.stdout) == [*made, "the null device works"], done.stderr


def test_root_of_a_user_namespace_makes_no_nodes(runtime: Runtime, give_user_namespace: GiveUserNamespace) -> None:
    """There the kernel refuses already to make one."""
    give_user_namespace(runtime)
    give_capabilities(runtime.config["process"])
    script = "".join(f"mknod /tmp/{name} {kind} {major} {minor} 2>/dev/null && echo {name}\n"
                     for kind, major, minor, name in [*DEVICES, *disks()])  # fmt: skip
    assert printed(runtime, script) == []


# --- files by their handles (shocker)


def handle(program: Path, path: Path) -> list[str]:
    return subprocess.run([program, path], capture_output=True, text=True, check=True).stdout.split()


def test_no_file_is_opened_by_its_handle(runtime: Runtime, compiled: Callable[..., Path], tmp_path: Path) -> None:
    """open_by_handle_at(2) knows no roots: with a number that can be guessed it opens any file of the file system that the
    container lies on (shocker, 2014). It needs CAP_DAC_READ_SEARCH, which no container has without asking; the last call is the
    proof."""
    program = compiled("by_handle")
    install(runtime, program)
    secret = tmp_path / "secret"
    secret.write_text("what only the host knows")
    words = ["by_handle", "/", *handle(program, secret)]
    assert runtime.run(*words).stdout.strip() == os.strerror(1)
    runtime.start("sleep", "100")
    assert runtime.call("exec", runtime.id, *words).stdout.strip() == os.strerror(1)
    done = runtime.call("exec", "--cap", "CAP_DAC_READ_SEARCH", runtime.id, *words)
    assert done.stdout == "what only the host knows"


def test_root_of_a_user_namespace_opens_no_file_of_the_host_by_its_handle(
    runtime: Runtime, compiled: Callable[..., Path], tmp_path: Path, give_user_namespace: GiveUserNamespace
) -> None:
    """There CAP_DAC_READ_SEARCH is not the one that counts. The file is open to everybody, and on the same file system."""
    program = compiled("by_handle")
    install(runtime, program)
    give_user_namespace(runtime)
    give_capabilities(runtime.config["process"])
    secret = Path(runtime.config["root"]["path"]).parent / "secret"
    secret.write_text("what only the host knows")
    done = runtime.run("by_handle", "/", *handle(program, secret))
    assert "knows" not in done.stdout
    assert done.stdout.strip() in (os.strerror(1), os.strerror(116))  # EPERM, ESTALE


# --- terminals


LOG_IN = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A pseudo-terminal that a process of the host's has as its controlling one: where a person would sit."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()

    def run(self, *command: str | Path) -> None:
        """A command in a session of its own at this terminal."""
        subprocess.run([sys.executable, "-c", LOG_IN, *command], stdin=self.slave, stdout=self.slave, stderr=self.slave,
                       timeout=30, check=True)  # fmt: skip

    def typed(self) -> int:
        """How many characters wait to be read, as if somebody had typed them."""
        mode = termios.tcgetattr(self.slave)
        mode[3] &= ~termios.ICANON  # or an unfinished line would not count
        termios.tcsetattr(self.slave, termios.TCSANOW, mode)
        (count,) = struct.unpack("i", fcntl.ioctl(self.slave, termios.FIONREAD, bytes(4)))
        return int(count)

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_nobody_types_for_the_caller(runtime: Runtime, attacker: Callable[..., None], terminal: Terminal) -> None:
    """TIOCSTI puts characters into a terminal's input. A program that shares its caller's session types a command line, ends, and
    the caller's shell executes it as the caller. A session of its own, which has no terminal, is what a container's program gets.
    """
    attacker("type_in")
    runtime.config["process"]["args"] = ["type_in"]
    runtime.write()
    lowrt = [LOWRT, "--root", runtime.root]
    terminal.run(*lowrt, "run", "--bundle", runtime.bundle, runtime.id)
    assert terminal.typed() == 0
    runtime.start("sleep", "100")
    terminal.run(*lowrt, "exec", runtime.id, "type_in")
    assert terminal.typed() == 0


def test_a_container_with_a_terminal_types_into_that_alone(
    runtime: Runtime, attacker: Callable[..., None], terminal: Terminal
) -> None:
    """Its own, which lowrt copies to the caller's: what is typed there is the container's own input."""
    attacker("type_in")
    runtime.config["process"]["args"] = ["type_in"]
    runtime.config["process"]["terminal"] = True
    runtime.write()
    lowrt = [LOWRT, "--root", runtime.root]
    terminal.run(*lowrt, "run", "--bundle", runtime.bundle, runtime.id)
    assert terminal.typed() == 0
    runtime.config["process"]["terminal"] = False
    runtime.start("sleep", "100")
    terminal.run(*lowrt, "exec", "--tty", runtime.id, "type_in")
    assert terminal.typed() == 0


def test_a_program_in_the_callers_session_would_type(compiled: Callable[..., Path], terminal: Terminal) -> None:
    """The proof that the attack is one."""
    terminal.run(compiled("type_in"))
    assert terminal.typed() > 0


# --- groups and signals


@pytest.mark.parametrize("in_user_namespace", [False, True])
def test_no_group_of_the_caller_comes_along(
    runtime: Runtime, give_user_namespace: GiveUserNamespace, in_user_namespace: bool
) -> None:
    """A caller in the groups disk or docker would hand them over. In a user namespace the groups are dropped too; their numbers
    would show as 65534 there, and the files that they open be open."""
    if in_user_namespace:
        give_user_namespace(runtime)
    ask = ["sh", "-c", "grep Groups /proc/self/status"]
    runtime.config["process"]["args"] = ask
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5]}
    runtime.write()
    lowrt = ["setpriv", "--groups=6,27,999", LOWRT, "--root", runtime.root]
    run = [*lowrt, "run", "--bundle", runtime.bundle, runtime.id]
    assert subprocess.run(run, capture_output=True, text=True, timeout=30, check=False).stdout.split() == ["Groups:", "5"]
    runtime.start("sleep", "100")
    execute = [*lowrt, "exec", runtime.id, *ask]
    assert subprocess.run(execute, capture_output=True, text=True, timeout=30, check=False).stdout.split() == ["Groups:", "5"]


def test_no_image_makes_the_callers_groups_come_along(runtime: Runtime) -> None:
    """A user namespace may forbid setgroups(2), and then the groups stay as they are: /proc/self/setgroups tells. An image
    without /proc can say there what it likes."""
    runtime.config["mounts"] = [mount for mount in runtime.config["mounts"] if mount["destination"] != "/proc"]
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    fake = runtime.bundle / "rootfs/proc/self/setgroups"
    fake.parent.mkdir(parents=True)
    fake.write_text("deny\n")
    lowrt = ["setpriv", "--groups=6,27,999", LOWRT, "--root", runtime.root]
    runtime.config["process"]["args"] = ["id", "-G"]
    runtime.write()
    run = [*lowrt, "run", "--bundle", runtime.bundle, runtime.id]
    assert subprocess.run(run, capture_output=True, text=True, timeout=30, check=False).stdout.split() == ["1000"]
    runtime.start("sleep", "100")
    execute = [*lowrt, "exec", runtime.id, "id", "-G"]
    assert subprocess.run(execute, capture_output=True, text=True, timeout=30, check=False).stdout.split() == ["1000"]


@contextmanager
def bystander() -> Iterator[int]:
    """A process group of the host's, with somebody in it who wants to live; and where lowrt is called from."""
    with subprocess.Popen(["sleep", "100"], process_group=0) as process:
        try:
            yield process.pid
            assert process.poll() is None, "it was killed"
        finally:
            process.kill()


def test_no_signal_reaches_a_process_of_the_host(runtime: Runtime) -> None:
    """Signals go to PIDs, to everybody, and to the process group, which is inherited: without a session of its own a container's
    `kill 0` would end its caller's shell."""
    give_capabilities(runtime.config["process"], "CAP_KILL")
    with bystander() as group:
        script = f"kill -9 {group} 2>/dev/null; kill -9 -{group} 2>/dev/null; kill -9 -1 2>/dev/null; kill -9 0; echo alive"
        runtime.config["process"]["args"] = ["sh", "-c", script]
        runtime.write()
        lowrt = [LOWRT, "--root", runtime.root]
        run = [*lowrt, "run", "--bundle", runtime.bundle, runtime.id]
        done = subprocess.run(run, capture_output=True, text=True, timeout=30, check=False, process_group=group)
        assert done.stdout == "alive\n", done.stderr
        runtime.start("sleep", "100")
        execute = [*lowrt, "exec", runtime.id, "sh", "-c", script]
        done = subprocess.run(execute, capture_output=True, text=True, timeout=30, check=False, process_group=group)
        assert done.returncode == 128 + signal.SIGKILL, "its own group is what kill 0 means"

"""The container's first process is inert inside the container's root, and so is one that enters (CVE-2019-14271 and its class).

Between pivot_root or setns and exec, lowrt's Python must not import a module, load a library or look anything up: what is there
is the image's, and would run with the host's rights. The image here is full of what could be taken by mistake; the tests make
each step and each system call fail in turn, so that the paths of errors are walked too, and look at the system calls.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.linux import capabilities
from tests.integration.lowrt import tracing
from tests.integration.lowrt.conftest import APPLETS, LOWRT, Runtime
from tests.integration.lowrt.warm import CHECKOUT, Spawner

PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
Change = Callable[[dict[str, Any]], object]
Done = subprocess.CompletedProcess[str]
Used = list[tracing.Use]


# --- the image


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with busybox, and with everything that Python or the C library could ever look for."""
    root = tmp_path_factory.mktemp("poisoned") / "rootfs"
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "work"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in APPLETS.split():
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    _poison_python(root)
    _poison_libraries(root)
    _make_bad_programs(root)
    return root


def _poison_python(root: Path) -> None:
    """Every module of the standard library and of lowrt, wherever an import could find it."""
    interpreter = [
        "/usr/bin/python3",
        "-c",
        "import json, sys; print(json.dumps([sys.path[1:], sys.prefix, sys.version_info[:2]]))",
    ]
    places, prefix, (major, minor) = json.loads(subprocess.run(interpreter, capture_output=True, check=True).stdout)
    places = [*places, f"{prefix}/lib/python{major}.{minor}/encodings", str(CHECKOUT), "/", "/work", "/tmp"]
    names = [*sys.stdlib_module_names, *sys.modules, "utf_8", "ascii", "latin_1", "idna", "mbcs", "aliases", "sitecustomize"]
    trap = "open('/poisoned', 'w').close()\n"
    for place in places:
        folder = root / place.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if "." not in name and name not in ("bin", "etc", "proc", "dev", "sys", "tmp", "work"):
                (folder / f"{name}.py").write_text(trap)
                (folder / f"{name}.cpython-{major}{minor}-x86_64-linux-gnu.so").write_text("no library")
    for package in ("lowrt", "strata/linux", "strata/linux/cgroups", "highrt/spawner"):
        shutil.copytree(CHECKOUT / package, root / str(CHECKOUT).lstrip("/") / package, dirs_exist_ok=True)
        for source in (root / str(CHECKOUT).lstrip("/") / package).glob("*.py"):
            source.write_text(trap)


def _poison_libraries(root: Path) -> None:
    """Shared libraries, the loader and what it reads; tables of names, locales, character sets, times."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    paths = {line.partition(" => ")[2] for line in listed.splitlines() if " => " in line}
    folders = {str(Path(path).parent) for path in paths}
    names = {"libnss_files.so.2", "libnss_dns.so.2", "libnss_systemd.so.2", "libnss_compat.so.2", "libnss_sss.so.2",
             "libseccomp.so.2", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0", "libdl.so.2"}  # fmt: skip
    paths |= {f"{folder}/{name}" for folder in folders for name in names}
    paths |= {f"{folder}/gconv/{name}" for folder in folders for name in ("gconv-modules", "gconv-modules.cache", "UTF-16.so")}
    paths |= {
        "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/ld.so.conf", "/etc/nsswitch.conf", "/etc/group", "/etc/gai.conf",
        "/etc/localtime", "/etc/timezone", "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/locale.alias",
        "/usr/lib/locale/locale-archive", "/usr/lib/locale/C.utf8/LC_CTYPE", "/usr/share/locale/locale.alias",
        "/usr/share/locale/en/LC_MESSAGES/libc.mo", "/usr/share/zoneinfo/UTC", "/usr/lib/pyvenv.cfg", "/pyvenv.cfg",
        "/usr/bin/python3", "/usr/bin/pyvenv.cfg", "/usr/bin/pybuilddir.txt", "/lib64/ld-linux-x86-64.so.2",
    }  # fmt: skip
    for path in paths:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            # Whoever opens one of these waits for a writer that never comes.
            os.mkfifo(target)


def _make_bad_programs(root: Path) -> None:
    (root / "work/text").write_text("no program")
    (root / "work/script").write_text("#!/nosuch/interpreter\n")
    (root / "work/plain").write_text("not executable")
    (root / "closed").mkdir(mode=0o700)
    shutil.copy("/usr/bin/env", root / "work/dynamic")  # its loader is a trap
    for name in ("text", "script", "dynamic"):
        (root / "work" / name).chmod(0o755)


@pytest.fixture
def image(runtime: Runtime, poisoned: Path) -> Iterator[Runtime]:
    """A container of that image, without anything that lowrt would not need."""
    runtime.config["root"]["path"] = str(poisoned)
    runtime.config["process"]["cwd"] = "/work"
    runtime.config["process"]["args"] = ["true"]
    runtime.config["process"]["env"] = [f"PATH={':'.join(PATH)}"]
    yield runtime
    assert not (poisoned / "poisoned").exists(), "code of the image was run"


# --- the two ways in


class Way:
    """lowrt under strace: as a command, or in process as highrt's monitor calls it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._warm, self._output = kind == "warm", folder / "trace"

    def call(self, runtime: Runtime, *argv: str | Path, inject: str = "") -> tuple[Done, Used]:
        """Does a command, and returns how it ended and what was used inside. inject: what strace lets fail."""
        strace = tracing.command(self._output, *([f"--inject={inject}"] if inject else []))
        arguments = ["--root", str(runtime.root), *map(str, argv)]
        if self._warm:
            spawner = Spawner(*strace)
            try:
                done = spawner.call(*arguments)
            finally:
                spawner.close()
        else:
            done = subprocess.run([*strace, str(LOWRT), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=60, check=False)  # fmt: skip
        assert "Traceback" not in done.stderr
        return done, tracing.uses(self._output.read_text(errors="replace"))

    def run(self, runtime: Runtime, *flags: str, inject: str = "") -> tuple[Done, Used]:
        runtime.write()
        return self.call(runtime, "run", *flags, "--bundle", runtime.bundle, runtime.id, inject=inject)


@pytest.fixture(params=["command", "warm"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    return Way(request.param, tmp_path)


def named(runtime: Runtime, *more: str) -> set[str]:
    """The paths that the configuration names: its working directory, the program by its PATH, the user's home in /etc/passwd, and
    the null device, which every container has."""
    process = runtime.config["process"]
    program = process["args"][0]
    return {"/", process["cwd"], program, "/etc/passwd", "/dev/null", *(f"{folder}/{program}" for folder in PATH), *more}


def assert_inert(used: Used, *, named: set[str]) -> None:
    assert {use.path for use in used} <= named


# --- a container's first process


def changed(**process: Any) -> Change:
    return lambda config: config["process"].update(process)


def with_all_capabilities(config: dict[str, Any]) -> None:
    names = list(config["process"]["capabilities"]["bounding"])
    config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), names)
    config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5]}


def filtered(config: dict[str, Any]) -> None:
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}


RUNNING: dict[str, tuple[Change, tuple[str, ...]]] = {
    "as runc's default specification": (changed(), ()),
    "without a home": (changed(user={"uid": 77, "gid": 77}), ()),
    "with a terminal": (changed(terminal=True), ()),
    "with a read-only root": (lambda config: config["root"].update(readonly=True), ()),
    "without pivot_root": (changed(), ("--no-pivot",)),
    "with ambient capabilities": (with_all_capabilities, ()),
    "with a filter": (filtered, ()),
    "with a filter but privileges to gain": (lambda config: (filtered(config), changed(noNewPrivileges=False)(config)), ()),
    "with a share of mounts": (lambda config: config["linux"].update(rootfsPropagation="shared"), ()),
    "by an absolute path": (changed(args=["/bin/true"]), ()),
}


@pytest.mark.parametrize("kind", RUNNING)
def test_a_container_that_runs_uses_nothing_but_what_its_configuration_names(image: Runtime, way: Way, kind: str) -> None:
    change, flags = RUNNING[kind]
    change(image.config)
    done, used = way.run(image, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert tracing.Use("execve", "/bin/true") in used
    assert_inert(used, named=named(image))


def hook(kind: str, *words: str) -> Change:
    return lambda config: config.update(hooks={kind: [{"path": words[0], "args": list(words)}]})


def no_exec(config: dict[str, Any]) -> None:
    """A filter under which not even the program can be executed."""
    rule = {"names": ["execve"], "action": "SCMP_ACT_ERRNO"}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}


def with_terminal_alone(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "devpts"]


FAILING: dict[str, tuple[Change, str]] = {
    "a mount of an unknown kind": (
        lambda config: config["mounts"].append({"destination": "/tmp", "type": "nosuch", "source": "x"}), "no such device"),
    "a mount of nothing": (
        lambda config: config["mounts"].append({"destination": "/tmp", "source": "/nosuch", "options": ["bind"]}), "/nosuch"),
    "a mount with a bad option": (
        lambda config: config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "x", "options": ["size=x"]}),
        "invalid argument"),
    "a device where a folder is": (
        lambda config: config["linux"].update(devices=[{"path": "/work", "type": "c", "major": 1, "minor": 3}]), "/work"),
    "a sysctl that does not exist": (lambda config: config["linux"].update(sysctl={"net.ipv4.nosuch": "1"}), "net.ipv4.nosuch"),
    "a host name that is too long": (lambda config: config.update(hostname="x" * 100), "sethostname"),
    "a hard limit that nobody may have": (changed(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1 << 40}]), "NOFILE"),
    "too many groups": (changed(user={"uid": 0, "gid": 0, "additionalGids": list(range(70000))}), "invalid argument"),
    "a working directory that is a file": (changed(cwd="/etc/passwd"), "/etc/passwd"),
    "a program that is not in PATH": (changed(args=["nosuch"]), "executable file not found in $PATH"),
    "a program that is not there": (changed(args=["/nosuch/program"]), "no such file or directory"),
    "a program that is a folder": (changed(args=["/tmp"]), "is a directory"),
    "a program that is not executable": (changed(args=["/work/plain"]), "permission denied"),
    "a program that is none": (changed(args=["/work/text"]), "exec format error"),
    "a script without its interpreter": (changed(args=["/work/script"]), "/nosuch/interpreter"),
    "a program whose loader is a trap": (changed(args=["/work/dynamic"]), "permission denied"),
    "a createRuntime hook that fails": (hook("createRuntime", "/bin/false"), "createRuntime hook #0"),
    "a createContainer hook that fails": (hook("createContainer", "/bin/false"), "createContainer hook #0"),
    "a startContainer hook that fails": (hook("startContainer", "/bin/sh", "-c", "exit 3"), "startContainer hook #0"),
    "a startContainer hook that is not there": (hook("startContainer", "/nosuch/hook"), "/nosuch/hook"),
    "a poststart hook that fails": (hook("poststart", "/bin/false"), "poststart hook #0"),
    "a filter that forbids execve": (no_exec, "operation not permitted"),
    "a terminal without devpts": (with_terminal_alone, "/dev/pts"),
}  # fmt: skip


@pytest.mark.parametrize("step", FAILING)
def test_a_step_that_fails_uses_nothing_but_what_the_configuration_names(image: Runtime, way: Way, step: str) -> None:
    change, text = FAILING[step]
    change(image.config)
    done, used = way.run(image)
    assert done.returncode != 0
    assert text in done.stderr
    hooks = [one["path"] for kind in (image.config.get("hooks") or {}).values() for one in kind]
    assert_inert(used, named=named(image, *hooks))
    assert image.call("list", "-q").stdout == ""


# The system calls that a container's first process makes inside. when: the number among its kind, where others are made outside.
CALLS = [
    "pivot_root:error=EPERM", "umount2:error=EINVAL", "chdir:error=EACCES", "chdir:error=ENOENT:when=2", "getcwd:error=ENOENT",
    "getcwd:error=ERANGE", "close_range:error=ENOSYS", "setgroups:error=EPERM", "setresgid:error=EINVAL",
    "setresuid:error=EAGAIN", "capset:error=EPERM", "prctl:error=EINVAL:when=4", "prctl:error=EPERM:when=20",
    "prctl:error=EPERM:when=45", "dup2:error=EBADF", "fchown:error=EPERM", "fchown:error=EIO", "keyctl:error=EDQUOT",
    "keyctl:error=EACCES:when=2", "setsid:error=EPERM", "seccomp:error=EFAULT", "seccomp:error=ENOMEM", "execve:error=E2BIG",
    "execve:error=ENOEXEC", "execve:error=EACCES", "execve:error=ENOMEM", "execve:error=ETXTBSY", "mount:error=ENOMEM:when=30",
    "openat2:error=EMFILE:when=30", "openat2:error=EMFILE:when=50", "umask:error=EPERM", "ioctl:error=EIO",
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_system_call_that_fails_makes_nobody_look_around(image: Runtime, way: Way, call: str) -> None:
    """Whether the container then runs all the same or not: what fails is said in words that were there before."""
    filtered(image.config)
    image.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    image.config["hooks"] = {"startContainer": [{"path": "/bin/true"}]}
    done, used = way.run(image, inject=call)
    assert (done.returncode == 0) == (done.stderr == "")
    assert_inert(used, named=named(image))
    assert image.call("list", "-q").stdout == ""


# --- a process that enters

ENTERING: dict[str, tuple[list[str], str]] = {
    "a program": (["true"], ""),
    "a program by its path": (["/bin/true"], ""),
    "a program of another user": (["--user", "77:77", "true"], ""),
    "a program with a terminal": (["--tty", "true"], ""),
    "a program with capabilities": (["--cap", "CAP_CHOWN", "true"], ""),
    "a program in another folder": (["--cwd", "/tmp", "true"], ""),
    "a program that is not in PATH": (["nosuch"], "executable file not found in $PATH"),
    "a program that is not there": (["/nosuch/program"], "no such file or directory"),
    "a program that is a folder": (["/tmp"], "is a directory"),
    "a program that is not executable": (["/work/plain"], "permission denied"),
    "a program that is none": (["/work/text"], "exec format error"),
    "a script without its interpreter": (["/work/script"], "/nosuch/interpreter"),
    "a program whose loader is a trap": (["/work/dynamic"], "permission denied"),
    "a folder that is not there": (["--cwd", "/nosuch/folder", "true"], "no such file or directory"),
    "a folder that is a file": (["--cwd", "/etc/passwd", "true"], "not a directory"),
    "a folder that is closed to the user": (["--cwd", "/closed", "--user", "77:77", "/closed/program"], "permission denied"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENTERING)
def test_a_process_that_enters_uses_nothing_but_what_it_was_told(image: Runtime, way: Way, kind: str) -> None:
    words, text = ENTERING[kind]
    image.start("sleep", "100")
    image.config["process"]["args"] = words[-1:]
    done, used = way.call(image, "exec", *words[:-1], image.id, words[-1])
    assert (done.returncode == 0, text in done.stderr) == (not text, True), done.stderr
    assert used
    told = words[words.index("--cwd") + 1 : words.index("--cwd") + 2] if "--cwd" in words else []
    assert_inert(used, named=named(image, *told, *(["/dev/pts/ptmx"] if "--tty" in words else [])))


ENTERING_CALLS = [
    "setns:error=EPERM", "setns:error=EINVAL:when=2", "chdir:error=EACCES", "chdir:error=EIO:when=2", "getcwd:error=ENOENT",
    "close_range:error=ENOSYS", "setgroups:error=EPERM", "setresgid:error=EINVAL", "setresuid:error=EAGAIN", "capset:error=EPERM",
    "prctl:error=EINVAL", "prctl:error=EPERM:when=3", "prctl:error=EPERM:when=30", "dup2:error=EBADF", "fchown:error=EIO",
    "keyctl:error=EDQUOT", "setsid:error=EPERM", "seccomp:error=EFAULT", "execve:error=E2BIG", "execve:error=ENOEXEC",
    "execve:error=EACCES", "clone3:error=EAGAIN", "openat2:error=EMFILE",
]  # fmt: skip


@pytest.mark.parametrize("call", ENTERING_CALLS)
def test_a_system_call_that_fails_for_a_process_that_enters_makes_it_look_nowhere(image: Runtime, way: Way, call: str) -> None:
    filtered(image.config)
    image.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    image.start("sleep", "100")
    image.config["process"]["args"] = ["true"]
    done, used = way.call(image, "exec", image.id, "true", inject=call)
    assert (done.returncode == 0) == (done.stderr == "")
    assert_inert(used, named=named(image))
    assert image.call("exec", image.id, "true").returncode == 0, "it has spoilt the container"


# --- rights, to the end


def status(pid: int, field: str) -> list[str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line for line in text.splitlines() if line.startswith(f"{field}:")).split()[1:]


def test_a_first_process_that_waits_has_all_its_capabilities(image: Runtime) -> None:
    """Between create and start there is time to look at it, for another container's process in the same PID namespace: that one
    would have to have all those capabilities too (ptrace(2))."""
    image.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    image.write()
    null = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    image.call("create", "--bundle", image.bundle, image.id, check=True, **null)
    pid = image.state()["pid"]
    assert int(status(pid, "CapEff")[0], 16) == capabilities.held()
    assert status(pid, "Uid") == ["0"] * 4


def test_capabilities_are_given_up_at_the_very_end(image: Runtime, tmp_path: Path) -> None:
    """After that a process is one of the container's, whatever it still has open or in memory: what follows is the exec."""
    image.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    image.write()
    output = tmp_path / "trace"
    run = [LOWRT, "--root", image.root, "run", "--bundle", image.bundle, image.id]
    subprocess.run(["strace", "-f", "-o", output, *run], check=True, stdin=subprocess.DEVNULL, timeout=60)
    lines = [line.split(None, 1) for line in output.read_text(errors="replace").splitlines()]
    first = next(pid for pid, call in lines if call.startswith("pivot_root("))
    calls = [call.partition("(")[0] for pid, call in lines if pid == first and not call.startswith("<... ")]
    rest = calls[calls.index("capset") + 1 :]
    rest = rest[: rest.index("execve")]
    assert set(rest) <= {"prctl", "getcwd", "newfstatat", "write", "getpid"}


def test_the_pid_namespace_is_entered_last(image: Runtime, tmp_path: Path) -> None:
    """By a process that is cloned into it when everything is joined and given up: see the container's others, in escapes/."""
    image.start("sleep", "100")
    output = tmp_path / "trace"
    execute = [LOWRT, "--root", image.root, "exec", "--user", "1000", image.id, "true"]
    subprocess.run(["strace", "-f", "-o", output, *execute], check=True, stdin=subprocess.DEVNULL, timeout=60)
    lines = [line.split(None, 1) for line in output.read_text(errors="replace").splitlines()]
    helper = next(pid for pid, call in lines if call.startswith("setns("))
    calls = [call for pid, call in lines if pid == helper]
    order = ("CLONE_NEWNS", "CLONE_NEWPID", "setresuid(1000", "capset(", "CLONE_PARENT")
    found = [next(at for at, call in enumerate(calls) if name in call) for name in order]
    assert found == sorted(found)
    program = next(pid for pid, call in lines if call.startswith('execve("/bin/true"'))
    names = {call.partition("(")[0] for pid, call in lines if pid == program}
    assert names & {"setns", "setresuid", "setresgid", "setgroups", "capset", "openat"} == set()


# --- what is read


PASSWD: dict[str, Callable[[Path], object]] = {
    "a pipe that nobody writes to": os.mkfifo,
    "a folder": os.mkdir,
    "a file without an end": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
    "a link to lowrt's environment": lambda path: path.symlink_to("/proc/self/environ"),
    "a link to lowrt's memory": lambda path: path.symlink_to("/proc/self/mem"),
    "a link to a descriptor": lambda path: path.symlink_to("/proc/self/fd/0"),
    "a link to itself": lambda path: path.symlink_to("passwd"),
    "nonsense": lambda path: path.write_bytes(bytes(range(256)) * 1000),
    "not there": lambda path: None,
}


@pytest.mark.parametrize("kind", PASSWD)
def test_a_strange_etc_passwd_hinders_nobody(image: Runtime, poisoned: Path, kind: str) -> None:
    """HOME is looked for in it. The image chooses what it is."""
    passwd, kept = poisoned / "etc/passwd", poisoned / "etc/passwd.kept"
    passwd.rename(kept)
    try:
        PASSWD[kind](passwd)
        image.config["process"]["user"] = {"uid": 1000, "gid": 1000}
        image.config["process"]["args"] = ["sh", "-c", "echo $HOME"]
        image.write()
        assert image.call("run", "--bundle", image.bundle, image.id, env={"x": "x:x:1000:x:x:/stolen:"}).stdout == "/\n"
        image.start("sleep", "100")
        assert image.call("exec", image.id, "sh", "-c", "echo $HOME").stdout == "/\n"
    finally:
        image.clean()
        if passwd.is_dir() and not passwd.is_symlink():
            passwd.rmdir()
        else:
            passwd.unlink(missing_ok=True)
        kept.rename(passwd)


@pytest.fixture(scope="session")
def latin(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command line to call lowrt with, of somebody whose locale has another character set."""
    folder = tmp_path_factory.mktemp("locales")
    make = ["localedef", "-i", "de_DE", "-f", "ISO-8859-15", folder / "de_DE.ISO-8859-15"]
    subprocess.run(make, check=True, capture_output=True)
    return ["env", f"LOCPATH={folder}", "LC_ALL=de_DE.ISO-8859-15", "LANGUAGE=de:en", str(LOWRT)]


def test_the_callers_locale_is_none_of_the_containers(image: Runtime, tmp_path: Path, latin: list[str]) -> None:
    """For another character set the C library would load a module of the image, as Docker's did (CVE-2019-14271); and config.json
    is UTF-8, so what it names is too."""
    image.config["process"]["cwd"] = "/tmp/früh"
    image.config["process"]["args"] = ["sh", "-c", "busybox pwd"]
    image.write()
    output = tmp_path / "trace"
    run = [*tracing.command(output), *latin, "--root", image.root, "run", "--bundle", image.bundle, image.id]
    done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert done.stdout.decode() == "/tmp/früh\n", done.stderr
    image.config["process"]["args"] = ["/tmp/spät"]
    image.write()
    done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert 'exec: "/tmp/spät": stat /tmp/spät: no such file or directory' in done.stderr.decode()
    used = [tracing.Use(use.call, _text(use.path)) for use in tracing.uses(output.read_text())]
    assert_inert(used, named=named(image))


def _text(path: str) -> str:
    """A path that strace has written with octal escapes."""
    return path.encode().decode("unicode_escape").encode("latin-1").decode()

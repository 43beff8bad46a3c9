"""How lowrt starts: from its snapshot or without one, and from a file that no container may write."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.lowrt.conftest import Runtime

CHECKOUT = Path(__file__).parents[3]
LOWRT = CHECKOUT / "lowrt/launcher"
INTERPRETER = "/usr/bin/python3"
PAGE = 4096


def take_snapshot(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INTERPRETER, tree / "lowrt/boot/snapshot.py"], capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what lowrt needs, with a snapshot of its own."""
    for folder in ("lowrt", "strata/linux"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "snapshot"))
    shutil.copy(CHECKOUT / "strata/__init__.py", tmp_path / "strata")
    done = take_snapshot(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path


def opened(tree: Path, *argv: str) -> tuple[int, set[str]]:
    """The exit status, and the names of the files that the command opened."""
    trace = tree / "trace"
    command = ["strace", "-f", "-z", "-e", "trace=open,openat,execve", "-o", trace, tree / "lowrt/launcher"]
    done = subprocess.run([*command, "--root", tree / "state", *argv], capture_output=True, check=False)
    return done.returncode, {os.path.basename(line.split('"')[1]) for line in trace.read_text().splitlines() if '"' in line}


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "nosuch"],
        ["create", "nosuch"],
        ["exec", "nosuch", "x"],
        *([c, "nosuch"] for c in ("start", "state", "kill", "delete")),
    ],
)
def test_a_command_wakes_from_the_snapshot_and_imports_nothing(tree: Path, argv: list[str]) -> None:
    status, files = opened(tree, *argv)
    assert status != 0
    assert "snapshot" in files
    assert not [file for file in files if file.endswith((".py", ".pyc", ".so", ".so.6")) or file.startswith("python")]


def change_a_module(tree: Path) -> None:
    with (tree / "lowrt/state.py").open("a") as file:
        file.write("\n# changed\n")


def change_the_processor(tree: Path) -> None:
    with (tree / "lowrt/snapshot").open("r+b") as file:
        file.seek(24)
        file.write(bytes(32))


def cut_it(tree: Path) -> None:
    os.truncate(tree / "lowrt/snapshot", 10 * PAGE)


def cut_its_header(tree: Path) -> None:
    os.truncate(tree / "lowrt/snapshot", 100)


def take_it_elsewhere(tree: Path) -> None:
    shutil.copytree(tree / "lowrt", tree / "other/lowrt")
    shutil.move(tree / "lowrt", tree / "away")
    shutil.move(tree / "other/lowrt", tree / "lowrt")
    saved = (tree / "lowrt/snapshot").read_bytes()
    (tree / "lowrt/snapshot").write_bytes(saved.replace(os.fsencode(tree / "lowrt\0"), os.fsencode(tree / "lowru\0")))


@pytest.mark.parametrize(
    "change",
    [
        change_a_module,
        change_the_processor,
        cut_it,
        cut_its_header,
        take_it_elsewhere,
        lambda tree: (tree / "lowrt/snapshot").unlink(),
        lambda tree: (tree / "lowrt/snapshot").write_bytes(b""),
    ],
)
def test_a_snapshot_that_does_not_fit_is_left_alone(tree: Path, change: Callable[[Path], object]) -> None:
    change(tree)
    status, files = opened(tree, "state", "nosuch")
    assert status == 1
    assert "__main__.py" in files


@pytest.mark.parametrize("module", ["lowrt/state.py", "strata/linux/cgroups/common.py", "strata/linux/cgroups/__init__.py"])
def test_a_module_that_was_changed_comes_from_its_file(tree: Path, module: str) -> None:
    source = tree / module
    source.write_text(source.read_text() + "\nimport os\nos.write(2, b'the new one')\n")
    done = subprocess.run([tree / "lowrt/launcher", "delete", "nosuch"], capture_output=True, text=True, check=False)
    assert "the new one" in done.stderr
    assert "container does not exist" in done.stderr


def test_containers_run_without_a_snapshot_too(tree: Path, runtime: Runtime) -> None:
    (tree / "lowrt/snapshot").unlink()
    runtime.config["process"]["args"] = ["sh", "-c", "echo hello; exit 7"]
    runtime.write()
    command = [tree / "lowrt/launcher", "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "hello\n")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("_held = open('/etc/passwd')", "files open: /etc/passwd"),
        ("import threading, time; threading.Thread(target=time.sleep, args=[60], daemon=True).start()", "has threads"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "stopped by SIGTERM"),
        ("raise SystemExit(3)", "ended with 3"),
    ],
)
def test_what_cannot_be_saved_is_told_and_the_old_snapshot_stays(tree: Path, code: str, why: str) -> None:
    before = (tree / "lowrt/snapshot").stat()
    with (tree / "lowrt/hooks.py").open("a") as file:
        file.write(f"\n{code}\n")
    done = take_snapshot(tree)
    assert done.returncode == 1
    assert why in done.stderr
    assert (tree / "lowrt/snapshot").stat() == before
    assert [file.name for file in (tree / "lowrt").glob("snapshot*")] == ["snapshot"]


@pytest.mark.parametrize("saved", [True, False])
def test_it_has_its_own_arguments_and_environment(tree: Path, runtime: Runtime, saved: bool) -> None:
    """Not those of who was saved, nor the interpreter's additions: a hook is given lowrt's environment, whole."""
    if not saved:
        (tree / "lowrt/snapshot").unlink()
    seen = runtime.bundle / "seen"
    runtime.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"env -0 >{seen}"]}]}
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    command = [tree / "lowrt/launcher", "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    given = {b"PATH": os.environb[b"PATH"], b"ODD": b"a=b\n\xff", b"EMPTY": b""}
    subprocess.run(command, env=given, check=True)
    got = dict(entry.partition(b"=")[::2] for entry in seen.read_bytes().split(b"\0")[:-1])
    assert {key: value for key, value in got.items() if key not in (b"PWD", b"SHLVL", b"_", b"OLDPWD")} == given


def test_arguments_arrive_as_they_were(runtime: Runtime) -> None:
    runtime.start("sleep", "100")
    done = subprocess.run(
        [LOWRT, "--root", runtime.root, "exec", runtime.id, "echo", "-n", "\u00e9 \U0001f600", ""],
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == "\u00e9 \U0001f600 "


@pytest.mark.parametrize("ignored", [True, False])
def test_signals_are_as_the_interpreter_has_them(ignored: bool) -> None:
    """SIGPIPE is ignored (an error tells), SIGINT is caught unless whoever called ignores it."""
    caller = ["env", "--ignore-signal=INT" if ignored else "--default-signal=INT"]
    command = [*caller, "strace", "-f", "-e", "trace=rt_sigaction", "-e", "signal=none", LOWRT, "state", "nosuch"]
    trace = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "rt_sigaction(SIGPIPE, {sa_handler=SIG_IGN" in trace
    assert ("rt_sigaction(SIGINT, {sa_handler=0x" in trace) is not ignored


def test_a_big_configuration_makes_the_heap_grow(runtime: Runtime) -> None:
    """The C library must know where this process's break is, not where the saved one's was."""
    runtime.config["annotations"] = {f"org.example.{number}": "x" * (number % 3000) for number in range(10_000)}
    runtime.config["process"]["args"] = ["true"]
    (runtime.bundle / "config.json").write_text(json.dumps(runtime.config))
    assert (runtime.bundle / "config.json").stat().st_size > 10 << 20
    subprocess.run([LOWRT, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id], check=True)


def test_an_interpreter_that_a_container_could_write_is_refused() -> None:
    done = subprocess.run(
        [INTERPRETER, "-IS", CHECKOUT / "lowrt/__main__.py", "run", "nosuch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "start lowrt by its launcher" in done.stderr


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--root", "delete"],
        ["--log", "state", "--debug"],
        ["-log", "/dev/null"],
        ["--log-format=json"],
        ["--criu", "kill"],
        ["--"],
    ],
)
def test_whatever_flags_stand_before_it_a_run_has_the_view(tmp_path: Path, flags: list[str]) -> None:
    """The launcher looks for the command. A run that it took for another would be refused by lowrt itself."""
    command: list[str | Path] = [LOWRT, *flags, "run", "--bundle", tmp_path, "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "launcher" not in done.stderr

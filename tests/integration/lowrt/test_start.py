"""How lowrt starts: what it imports, the bundle of compiled modules, and the interpreter's file that no container may write."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[3]
LOWRT = CHECKOUT / "lowrt/launcher"
INTERPRETER = "/usr/bin/python3"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what lowrt needs, with a bundle of its own."""
    for folder in ("lowrt", "strata/linux"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "strata/__init__.py", tmp_path / "strata")
    subprocess.run([INTERPRETER, "-X", "no_debug_ranges", tmp_path / "lowrt/boot/bundle.py"], check=True)
    return tmp_path


@pytest.mark.parametrize("command", ["run", "create", "start", "exec", "state", "kill", "delete"])
def test_the_modules_of_a_command_come_from_the_bundle(tree: Path, command: str) -> None:
    trace = tree / "trace"
    argv = [
        "strace",
        "-f",
        "-e",
        "trace=openat",
        "-o",
        trace,
        tree / "lowrt/launcher",
        "--root",
        tree / "state",
        command,
        "nosuch",
        *(["x"] if command == "exec" else []),
    ]
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0
    opened = [line.split('"')[1] for line in trace.read_text().splitlines() if str(tree) in line and "= -1" not in line]
    assert {os.path.basename(path) for path in opened if path.endswith((".py", ".pyc"))} == {
        f"bundle.python{sys.version_info[0]}.{sys.version_info[1]}.{command}.pyc"
    }


@pytest.mark.parametrize("module", ["lowrt/state.py", "strata/linux/cgroups/common.py", "strata/linux/cgroups/__init__.py"])
def test_a_module_that_was_changed_comes_from_its_file(tree: Path, module: str) -> None:
    source = tree / module
    source.write_text(source.read_text() + "\nimport os\nos.write(2, b'the new one')\n")
    done = subprocess.run([tree / "lowrt/launcher", "delete", "nosuch"], capture_output=True, text=True, check=False)
    assert "the new one" in done.stderr
    assert "container does not exist" in done.stderr


def test_without_a_bundle_the_package_is_started(tree: Path) -> None:
    shutil.rmtree(tree / "lowrt/__pycache__")
    done = subprocess.run([tree / "lowrt/launcher", "--version"], capture_output=True, text=True, check=True)
    assert "lowrt" in done.stdout


def test_an_interpreter_that_a_container_could_write_is_refused() -> None:
    done = subprocess.run(
        [INTERPRETER, "-IS", CHECKOUT / "lowrt/__main__.py", "list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "start lowrt by its launcher" in done.stderr


def test_the_launchers_helper_is_reaped(runtime: Any) -> None:
    """It wakes cgroup v1 while the interpreter starts; it must not outlive the command."""
    marked = {**os.environ, "STRATA_TEST_HELPER": runtime.id}
    command = [LOWRT, "--root", runtime.root, "run", "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, env=marked, check=False, cwd="/")
    assert done.returncode == 1
    marks = [p for p in Path("/proc").glob("[0-9]*/environ") if _has(p, f"STRATA_TEST_HELPER={runtime.id}")]
    assert marks == []


def _has(path: Path, mark: str) -> bool:
    try:
        return mark.encode() in path.read_bytes().split(b"\0")
    except OSError:
        return False

"""docs/tutorial.md, typed by a shell: every command does what the page shows."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.highrt.conftest import IMAGE, PROJECT, Daemon, networked

_EXIT = re.compile(r"\[exit code (\d+)\]")


@dataclass
class Step:
    command: str
    shown: list[str] = field(default_factory=list)
    exit_code: int = 0


def steps() -> list[Step]:
    """The commands of the page, each with what is shown below it."""
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```", (PROJECT / "docs" / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(line[2:]))
            elif match := _EXIT.fullmatch(line):
                found[-1].exit_code = int(match[1])
            else:
                found[-1].shown.append(line)
    return found


def matches(shown: list[str], printed: str) -> bool:
    """`…` is anything, also nothing and several lines; columns may be wider than on the page."""
    parts = [r"\s+".join(re.escape(word).replace("…", "(.|\n)*") for word in line.split()) for line in shown]
    return re.fullmatch(r"\s*\n\s*".join(parts), printed.strip()) is not None


@pytest.fixture
def place() -> Iterator[tuple[Daemon, str]]:
    """A daemon with the image `hello`, and its network namespace."""
    with networked() as (daemon, namespace):
        daemon.out("tag", IMAGE, "hello")
        daemon.out("rmi", IMAGE)
        yield daemon, namespace


def test_the_tutorial(place: tuple[Daemon, str], tmp_path: Path) -> None:
    daemon, namespace = place
    found = steps()
    assert len({step.command.split()[1] for step in found if step.command.startswith("highrt")}) >= 25
    environ = {**os.environ, "HIGHRT_ADDRESS": daemon.address, "PATH": f"{PROJECT}/.venv/bin:{os.environ['PATH']}"}
    for step in found:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{namespace}", "sh", "-c", step.command],
            cwd=tmp_path,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        told = f"$ {step.command}\n{done.stdout}"
        assert done.returncode == step.exit_code, told
        assert matches(step.shown, done.stdout), told

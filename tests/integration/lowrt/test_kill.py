"""Commands killed by SIGKILL at every point where they change something: `delete --force` removes what is left.

The points are counted: one run of the command tells which system calls it and its children make, and in each round the command is
killed as one of them is entered. Moments at random come on top (STRATA_KILL_SEED repeats them; every failure tells the seed).
"""

import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.integration.lowrt import remains, stepping

SEED = int(os.environ.get("STRATA_KILL_SEED") or random.randrange(10**6))
QUIET: dict[str, Any] = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclass(frozen=True)
class Command:
    """A command to kill. needs: what its container is before. roles: whose calls count: its own (0), those of its children."""

    name: str
    options: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    container: tuple[str, ...] = ("sleep", "1000")
    needs: str = ""
    roles: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        return "-".join((self.name, *(option.strip("-") for option in self.options), self.needs)).strip("-")

    def argv(self, runtime: Any) -> list[str | Path]:
        bundle = ("--bundle", runtime.bundle) if self.name in ("create", "run") else ()
        return [runtime.launcher, "--root", runtime.root, self.name, *self.options, *bundle, runtime.id, *self.program]

    def prepare(self, runtime: Any) -> None:
        """Brings the container to where the command finds it."""
        if self.needs == "created":
            runtime.call("create", "--bundle", runtime.bundle, runtime.id, check=True, **QUIET)
        elif self.needs:
            runtime.call("run", "--detach", "--bundle", runtime.bundle, runtime.id, check=True, **QUIET)
        if self.needs == "stopped":
            runtime.call("kill", runtime.id, "KILL", check=True)
            wait_for(lambda: runtime.state()["status"] == "stopped")


COMMANDS = [
    Command("create", roles=(0, 1)),
    Command("run", ("--detach",), roles=(0, 1)),
    Command("run", container=("true",), roles=(0, 1)),
    Command("start", needs="created"),
    Command("exec", ("--detach",), ("sleep", "1000"), needs="running", roles=(0, 1, 2)),
    Command("delete", needs="stopped"),
    Command("delete", ("--force",), needs="running"),
    Command("delete", ("--force",), needs="created"),
]
Killing = Callable[[list[str | Path]], str]


class Rounds:
    """Rounds with one command."""

    def __init__(self, command: Command, runtime: Any, folder: Path) -> None:
        self._command, self._runtime, self._folder = command, runtime, folder
        self._environ = remains.mark(runtime)
        runtime.config["process"]["args"] = list(command.container)
        runtime.write()
        self.random = random.Random(f"{SEED} {command}")

    def points(self) -> list[tuple[int, int]]:
        """(role, number of the call) of all points of the command."""
        found = []
        for role in self._command.roles:
            self._command.prepare(self._runtime)
            listed = stepping.run(self._command.argv(self._runtime), self._folder, role=role, since=self._since(role))
            assert (listed.returncode, listed.stderr) == (0, "")
            assert len(listed.calls) > 3, listed
            found += [(role, number) for number in range(1, len(listed.calls) + 1)]
            self._runtime.call("delete", "--force", self._runtime.id)
        return found

    def kill_at(self, role: int, number: int) -> None:
        """A round in which the command is killed at that point."""

        def kill(argv: list[str | Path]) -> str:
            outcome = stepping.run(argv, self._folder, role=role, since=self._since(role), at=number, environ=self._environ)
            return f"call {number} of {role} ({outcome.hit or 'not reached'})"

        self._round(kill)

    def kill_at_random(self) -> None:
        """A round in which the command is killed at some moment."""

        def kill(argv: list[str | Path]) -> str:
            seconds = self.random.uniform(0, 0.1)
            process = subprocess.Popen(argv, env=self._environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)  # fmt: skip
            time.sleep(seconds)  # not to wait for something, but to be anywhere
            process.kill()
            process.wait()
            return f"after {seconds} s"

        self._round(kill)

    def _since(self, role: int) -> str:
        return "" if role else f"{self._runtime.root.parent}/"

    def _round(self, kill: Killing) -> None:
        runtime = self._runtime
        self._command.prepare(runtime)
        where = f"STRATA_KILL_SEED={SEED}: killed at {kill(self._command.argv(runtime))}"
        removed = runtime.call("delete", "--force", runtime.id)
        assert (removed.returncode, removed.stderr) == (0, ""), where
        wait_for(lambda: not remains.of(runtime), what=f"nothing to be left ({where}): {remains.of(runtime)}")
        again = runtime.call("create", "--bundle", runtime.bundle, runtime.id, **QUIET)
        assert again.returncode == 0, where
        assert runtime.state()["status"] == "created", where
        runtime.call("delete", runtime.id, check=True)
        assert not remains.of(runtime), where


@pytest.fixture(params=COMMANDS, ids=str)
def rounds(request: pytest.FixtureRequest, runtime: Any, tmp_path: Path) -> Rounds:
    return Rounds(request.param, runtime, tmp_path)


def test_a_command_killed_at_some_points_leaves_what_delete_removes(rounds: Rounds) -> None:
    """Six points, evenly spread from one that the seed chooses, and a moment at random: 56 rounds with all commands."""
    points = rounds.points()
    stride = len(points) // 6
    for role, number in points[rounds.random.randrange(stride) :: stride][:6]:
        rounds.kill_at(role, number)
    rounds.kill_at_random()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_command_killed_at_every_point_leaves_what_delete_removes(rounds: Rounds) -> None:
    for role, number in rounds.points():
        rounds.kill_at(role, number)
    for _ in range(50):
        rounds.kill_at_random()

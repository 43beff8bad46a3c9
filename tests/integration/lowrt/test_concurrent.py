"""Two commands at once on one container: the second waits for the first, and then does what the first has left to do, or says
clearly that there is nothing.

When the two begin is chosen at random, around the moments at which they are in each other's way (STRATA_CONCURRENT_SEED repeats
it; every failure tells the seed).
"""

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.integration.lowrt import remains

SEED = int(os.environ.get("STRATA_CONCURRENT_SEED") or random.randrange(10**6))
MOST_SECONDS_APART = 0.03
"""A command takes some 20 ms."""
QUIET: dict[str, Any] = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
NOT_THERE, NOT_RUNNING = "container does not exist", "container not running"
STOPPED, RUNNING = "cannot start a container that has stopped", "that is not stopped: running"
DIED = "container process died before it could be started"
PAUSED = "container not paused"


@dataclass(frozen=True)
class Command:
    """One of the two. refusals: what it may say when the other was quicker."""

    argv: tuple[str, ...]
    refusals: tuple[str, ...] = ()
    program: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """needs: what the container is before. winners: how many of the two may succeed. holds: what is true of it afterwards."""

    needs: str
    one: Command
    other: Command
    winners: tuple[int, ...]
    after: str
    """What state says then: a status, several to choose from, or "" where the container is gone."""
    holds: Callable[[dict[str, Any]], bool] = field(default=lambda values: True)

    def __str__(self) -> str:
        return "+".join("-".join(word.strip("-") for word in command.argv) for command in (self.one, self.other))


DELETE, DELETE_FORCE = Command(("delete",), (NOT_THERE,)), Command(("delete", "--force"))
DELETE_STOPPED = Command(("delete",), (NOT_THERE, RUNNING))
CREATE = Command(("create",), ("container with given ID already exists",))
START = Command(("start",), (NOT_THERE, STOPPED, DIED, "cannot start an already running container"))
KILL = Command(("kill",), (NOT_THERE, NOT_RUNNING), ("KILL",))
EXEC = Command(
    ("exec", "--detach"),
    (NOT_THERE, "cannot exec in a stopped container", "cannot exec in a paused container", "the container has stopped meanwhile"),
    ("sleep", "1000"),
)
PAUSE, RESUME = Command(("pause",), (NOT_THERE, NOT_RUNNING)), Command(("resume",), (NOT_THERE, PAUSED))
UPDATE_MEMORY = Command(("update", "--memory", "100000000"), (NOT_THERE, NOT_RUNNING))
UPDATE_PIDS = Command(("update", "--pids-limit", "77"), (NOT_THERE, NOT_RUNNING))
MEMORY_IS_SET: Callable[[dict[str, Any]], bool] = lambda values: values["resources"]["memory"]["limit"] == 100000000  # noqa: E731
BOTH_ARE_SET: Callable[[dict[str, Any]], bool] = (  # noqa: E731
    lambda values: MEMORY_IS_SET(values) and values["resources"]["pids"]["limit"] == 77
)

PAIRS = [
    Pair("", CREATE, CREATE, (1,), "created"),
    Pair("", CREATE, DELETE_FORCE, (2,), "created|"),
    Pair("", CREATE, START, (1, 2), "created|running"),
    Pair("", CREATE, Command(("state",), (NOT_THERE,)), (1, 2), "created"),
    Pair("created", START, START, (1,), "running"),
    Pair("created", START, Command(("delete",), (RUNNING,)), (1,), "running|"),
    Pair("created", START, DELETE_FORCE, (1, 2), ""),
    Pair("created", START, KILL, (1, 2), "stopped"),
    Pair("running", KILL, DELETE_STOPPED, (1, 2), "stopped|"),
    Pair("running", KILL, DELETE_FORCE, (1, 2), ""),
    Pair("stopped", DELETE, DELETE, (1,), ""),
    Pair("running", DELETE_FORCE, DELETE_FORCE, (2,), ""),
    Pair("running", EXEC, Command(("delete",), (RUNNING,)), (1,), "running"),
    Pair("running", EXEC, DELETE_FORCE, (1, 2), ""),
    Pair("stopped", EXEC, DELETE, (1,), ""),
    Pair("stopped", KILL, DELETE, (1,), ""),
    Pair("running", EXEC, KILL, (1, 2), "stopped"),
    Pair("running", EXEC, PAUSE, (1, 2), "paused"),
    Pair("running", PAUSE, RESUME, (1, 2), "running|paused"),
    Pair("running", PAUSE, KILL, (1, 2), "stopped"),
    Pair("running", PAUSE, DELETE_FORCE, (1, 2), ""),
    Pair("running", UPDATE_MEMORY, PAUSE, (2,), "paused", MEMORY_IS_SET),
    Pair("running", UPDATE_MEMORY, UPDATE_PIDS, (2,), "running", BOTH_ARE_SET),
    Pair("running", UPDATE_MEMORY, DELETE_FORCE, (1, 2), ""),
]


class Rounds:
    """Rounds with one pair."""

    def __init__(self, pair: Pair, runtime: Any, folder: Path) -> None:
        self._pair, self._runtime, self._environ, self._errors = pair, runtime, remains.mark(runtime), folder
        runtime.config["process"]["args"] = ["sleep", "1000"]
        runtime.write()
        self._random = random.Random(f"{SEED} {pair}")

    def round(self) -> None:
        runtime, pair = self._runtime, self._pair
        self._prepare()
        apart = self._random.uniform(-MOST_SECONDS_APART, MOST_SECONDS_APART)
        first, second = (pair.one, pair.other) if apart > 0 else (pair.other, pair.one)
        running = [self._begin(first, 0)]
        time.sleep(abs(apart))
        running.append(self._begin(second, 1))
        for process in running:
            process.wait(timeout=30)
        ended = [(self._errors / name).read_text() for name in "01"]
        where = f"{pair}, {apart * 1000:.1f} ms apart, seed {SEED}: " + ", ".join(
            f"{process.returncode} {text.strip()!r}" for process, text in zip(running, ended, strict=True)
        )
        for command, process, text in zip((first, second), running, ended, strict=True):
            refused = process.returncode == (255 if command.argv[0] == "exec" else 1)
            assert process.returncode == 0 or (refused and any(it in text for it in command.refusals)), where
        assert sum(process.returncode == 0 for process in running) in pair.winners, where
        self._check_state(where)
        runtime.call("delete", "--force", runtime.id, check=True)
        wait_for(lambda: not remains.of(runtime), what=f"nothing to be left ({where})")

    def _prepare(self) -> None:
        runtime = self._runtime
        if self._pair.needs == "created":
            runtime.call("create", "--bundle", runtime.bundle, runtime.id, check=True, **QUIET)
        elif self._pair.needs:
            runtime.call("run", "--detach", "--bundle", runtime.bundle, runtime.id, check=True, **QUIET)
        if self._pair.needs == "stopped":
            runtime.call("kill", runtime.id, "KILL", check=True)
            wait_for(lambda: runtime.state()["status"] == "stopped")

    def _begin(self, command: Command, number: int) -> "subprocess.Popen[bytes]":
        runtime = self._runtime
        bundle = ("--bundle", runtime.bundle) if command.argv[0] == "create" else ()
        argv = [runtime.launcher, "--root", runtime.root, *command.argv, *bundle, runtime.id, *command.program]
        # What a container or an exec leaves running has the descriptors too: a pipe would not end.
        with open(self._errors / str(number), "wb") as file:
            null = subprocess.DEVNULL
            return subprocess.Popen(argv, stdin=null, stdout=null, stderr=file, env=self._environ)

    def _check_state(self, where: str) -> None:
        runtime, allowed = self._runtime, self._pair.after.split("|")
        folder = Path(runtime.root, runtime.id)
        if not folder.exists():
            assert "" in allowed, where
            assert not remains.of(runtime), where
            return
        values = json.loads((folder / "state.json").read_text())
        assert self._pair.holds(values), f"{where}: {values}"
        wait_for(lambda: runtime.state()["status"] in allowed, what=f"one of {allowed} ({where})")
        assert sorted(path.name for path in folder.iterdir() if path.name.endswith(".new")) == [], where


@pytest.fixture(params=PAIRS, ids=str)
def rounds(request: pytest.FixtureRequest, runtime: Any, tmp_path: Path) -> Rounds:
    return Rounds(request.param, runtime, tmp_path)


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_two_commands_at_once_leave_a_container_that_is_whole(rounds: Rounds, count: int) -> None:
    for _ in range(count):
        rounds.round()

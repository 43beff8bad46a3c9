"""`highrt wait` with docker's conditions, and of several containers at once."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.integration.highrt.conftest import IMAGE, PROJECT, Daemon


@pytest.fixture(autouse=True)
def clean(daemon: Daemon) -> Iterator[None]:
    yield
    for container in daemon.out("ps", "-aq").split():
        daemon.out("rm", "-f", container)


def test_the_next_exit_is_not_the_last_one_nor_is_one_that_was_only_made_running(daemon: Daemon) -> None:
    script = "test -e /second && exit 5; touch /second; exit 6"
    daemon.out("create", "--network", "none", "--name", "again", IMAGE, "sh", "-c", script)
    assert daemon.out("wait", "--condition", "not-running", "again") == "-1"
    daemon.command("start", "-a", "again", check=False)
    assert daemon.out("wait", "--condition", "not-running", "again") == "6"
    argv = daemon.argv("wait", "--condition", "next-exit", "--interval", "50ms", "again")
    waiting = subprocess.Popen(argv, cwd=PROJECT, text=True, stdout=subprocess.PIPE)
    time.sleep(1)
    assert waiting.poll() is None
    daemon.out("start", "again")
    assert waiting.communicate(timeout=10)[0] == "5\n"


def test_what_another_wait_is_for_may_be_over_sooner(daemon: Daemon) -> None:
    daemon.out("run", "-d", "--network", "none", "--name", "long", IMAGE, "sleep", "300")
    daemon.out(
        "run", "-d", "--network", "none", "--name", "short", IMAGE, "sh", "-c", "until test -e /end; do sleep 0.1; done; rm /end"
    )
    argv = daemon.argv("wait", "--condition", "next-exit", "long", "short")
    waiting = subprocess.Popen(argv, cwd=PROJECT, text=True, stdout=subprocess.PIPE)
    time.sleep(1)
    daemon.out("exec", "-d", "short", "touch", "/end")  # it may be ended by what it brings about
    daemon.out("wait", "short")
    time.sleep(0.5)
    daemon.out("start", "short")  # it runs again: who looks now does not see that it has ended
    daemon.out("stop", "-t", "0", "long")
    assert waiting.communicate(timeout=10)[0] == "137\n0\n"

"""Health checks: run in the container, told by ps, inspect, events and `healthcheck run`."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon

QUICK = ("--health-interval", "200ms", "--health-timeout", "1s", "--health-retries", "2")


@pytest.fixture(autouse=True)
def clean(daemon: Daemon) -> Iterator[None]:
    yield
    for container in daemon.out("ps", "-aq").split():
        daemon.out("rm", "-f", container)


def health(daemon: Daemon, name: str) -> str:
    return daemon.out("inspect", "-f", "{{.State.Health.Status}}", name)


def test_from_starting_to_healthy_and_back(daemon: Daemon) -> None:
    start = time.time()
    patience = ("--health-start-period", "1m")  # until the first success failures do not count
    daemon.out("run", "-d", "--name", "well", "--health-cmd", "test -e /ok", *QUICK, *patience, IMAGE, "sleep", "60")
    assert daemon.out("ps", "--format", "{{.Status}}").endswith("(health: starting)")
    daemon.out("exec", "well", "touch", "/ok")
    wait_for(lambda: health(daemon, "well") == "healthy", what="it to be healthy")
    assert daemon.out("ps", "--format", "{{.Status}}").endswith("(healthy)")
    assert daemon.out("ps", "-q", "--filter", "health=healthy") != ""
    assert daemon.out("healthcheck", "run", "well") == "healthy"
    daemon.out("exec", "well", "rm", "/ok")
    wait_for(lambda: health(daemon, "well") == "unhealthy", what="it to be unhealthy")
    found = json.loads(daemon.out("inspect", "well"))[0]["State"]["Health"]
    assert found["FailingStreak"] >= 2
    assert found["Log"][-1]["ExitCode"] == 1
    assert len(found["Log"]) <= 5
    failed = daemon.command("healthcheck", "run", "well", check=False)
    assert (failed.returncode, failed.stdout) == (1, "unhealthy\n")
    told = daemon.out("events", "--since", f"{start:.6f}", "--until", f"{time.time():.6f}", "--filter", "event=health_status")
    assert [line.split()[3] for line in told.splitlines()][-2:] == ["healthy", "unhealthy"]


def test_one_that_hangs_has_failed_and_is_killed(daemon: Daemon) -> None:
    daemon.out("run", "-d", "--name", "slow", "--health-cmd", "sleep 4711", *QUICK, IMAGE, "sleep", "60")
    wait_for(lambda: health(daemon, "slow") == "unhealthy", what="it to be unhealthy")
    assert "timeout" in json.loads(daemon.out("inspect", "slow"))[0]["State"]["Health"]["Log"][-1]["Output"]
    for _ in range(5):  # each is gone before the next begins
        assert daemon.out("top", "slow").count("sleep 4711") <= 1
        time.sleep(0.4)


def test_the_images_own_check_and_none(daemon: Daemon) -> None:
    context = daemon.folder / "context"
    context.mkdir()
    (context / "Containerfile").write_text(f"FROM {IMAGE}\nHEALTHCHECK --interval=200ms CMD echo fine\n")
    daemon.out("build", "-q", "-t", "checked:1", str(context))
    daemon.out("run", "-d", "--name", "own", "checked:1", "sleep", "60")
    wait_for(lambda: health(daemon, "own") == "healthy", what="it to be healthy")
    assert json.loads(daemon.out("inspect", "own"))[0]["State"]["Health"]["Log"][-1]["Output"] == "fine\n"
    daemon.out("run", "-d", "--name", "without", "--no-healthcheck", "checked:1", "sleep", "60")
    assert "Health" not in json.loads(daemon.out("inspect", "without"))[0]["State"]
    assert "no health check" in daemon.command("healthcheck", "run", "without", check=False).stderr
    daemon.kill()
    daemon.start()
    wait_for(lambda: health(daemon, "own") == "healthy", what="the next daemon to look after it")


def test_what_was_found_survives_a_daemon_but_not_the_containers_end(daemon: Daemon) -> None:
    slow = ("--health-interval", "1s", "--health-retries", "2")
    daemon.out("run", "-d", "--name", "kept", "--health-cmd", "echo seen; false", *slow, IMAGE, "sleep", "60")
    wait_for(lambda: health(daemon, "kept") == "unhealthy", what="it to be unhealthy")
    before = json.loads(daemon.out("inspect", "kept"))[0]["State"]["Health"]
    daemon.kill()
    daemon.start()
    after = json.loads(daemon.out("inspect", "kept"))[0]["State"]["Health"]
    assert (after["Status"], after["FailingStreak"] >= before["FailingStreak"]) == ("unhealthy", True)
    assert before["Log"][-1] in after["Log"]
    daemon.out("restart", "-t", "0", "kept")
    assert health(daemon, "kept") == "starting"


def test_it_ends_with_its_container_and_begins_with_the_next_run(daemon: Daemon) -> None:
    daemon.out("run", "-d", "--name", "again", "--health-cmd", "true", *QUICK, IMAGE, "sleep", "60")
    wait_for(lambda: health(daemon, "again") == "healthy", what="it to be healthy")
    daemon.out("stop", "-t", "0", "again")
    wait_for(lambda: "Health" not in json.loads(daemon.out("inspect", "again"))[0]["State"], what="the end of the checks")
    daemon.out("start", "again")
    wait_for(lambda: health(daemon, "again") == "healthy", what="it to be healthy")

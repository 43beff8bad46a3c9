"""`highrt events`, and what `ps` and `logs` choose from."""

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon


@pytest.fixture(autouse=True)
def clean(daemon: Daemon) -> Iterator[None]:
    yield
    for container in daemon.out("ps", "-aq").split():
        daemon.out("rm", "-f", container)


def since(daemon: Daemon, start: float, *options: str) -> list[str]:
    """The events from a time to now: type and action."""
    time.sleep(0.2)  # what happens by itself may come a little later
    lines = daemon.out("events", "--since", f"{start:.9f}", "--until", f"{time.time():.9f}", *options).splitlines()
    return [" ".join(line.split()[1:3]) for line in lines]


def test_a_containers_life_is_told_in_order(daemon: Daemon) -> None:
    start = time.time()
    daemon.out("run", "-d", "--name", "one", "--label", "kind=a", IMAGE, "sleep", "60")
    daemon.out("pause", "one")
    daemon.out("unpause", "one")
    daemon.out("exec", "one", "true")
    daemon.out("rename", "one", "two")
    daemon.out("kill", "two")
    wait_for(lambda: daemon.out("ps", "-q", "--filter", "status=exited") != "", what="its end")
    daemon.out("rm", "two")
    told = since(daemon, start)
    assert told == [
        "container create", "container start", "container pause", "container unpause", "container exec_create:",
        "container exec_start:", "container exec_die", "container rename", "container kill", "container die", "container destroy",
    ]  # fmt: skip
    assert since(daemon, start, "--filter", "event=die", "--filter", "event=start") == ["container start", "container die"]
    assert since(daemon, start, "--filter", "label=kind=b") == []
    died = json.loads(
        daemon.out(
            "events", "--since", "1m", "--until", f"{time.time()}", "--filter", "event=die", "--format", "json"
        ).splitlines()[-1]
    )
    assert died["Actor"]["Attributes"] == {"exitCode": "137", "image": IMAGE, "kind": "a", "name": "two"}


def test_they_come_while_somebody_waits_for_them(daemon: Daemon) -> None:
    with subprocess.Popen(daemon.argv("events", "--filter", "type=volume"), stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout
        time.sleep(1)  # until it listens
        daemon.out("volume", "create", "box")
        daemon.out("run", "--rm", IMAGE, "true")
        daemon.out("volume", "rm", "box")
        assert [reader.stdout.readline().split()[1:4] for _ in range(2)] == [
            ["volume", "create", "box"],
            ["volume", "destroy", "box"],
        ]
        reader.terminate()


def test_images_and_networks(daemon: Daemon) -> None:
    start = time.time()
    daemon.out("tag", IMAGE, "other:1")
    daemon.out("rmi", "other:1")
    daemon.out("network", "create", "lan")
    daemon.out("network", "rm", "lan")
    assert since(daemon, start) == ["image tag", "image untag", "network create", "network destroy"]
    refused = daemon.command("events", "--filter", "colour=red", check=False)
    assert refused.returncode != 0
    assert "not known" in refused.stderr


def test_ps_chooses(daemon: Daemon) -> None:
    daemon.out("run", "-d", "--name", "old", "-l", "kind=a", "-v", "box:/data", IMAGE, "sleep", "60")
    daemon.command("run", "--name", "failed", "-l", "kind=b", IMAGE, "sh", "-c", "exit 3", check=False)
    daemon.out("create", "--name", "new", "--network", "none", IMAGE, "true")

    def names(*options: str) -> list[str]:
        return daemon.out("ps", "--format", "{{.Names}}", *options).split()

    assert names() == ["old"]
    assert names("-a") == ["new", "failed", "old"]
    for options, wanted in (
        (["-f", "status=exited"], ["failed"]),
        (["-f", "status=exited", "-f", "status=created"], ["new", "failed"]),
        (["-f", "exited=3"], ["failed"]),
        (["-a", "-f", "label=kind"], ["failed", "old"]),
        (["-a", "-f", "label=kind=b"], ["failed"]),
        (["-a", "-f", "name=ne"], ["new"]),
        (["-a", "-f", "since=failed"], ["new"]),
        (["-a", "-f", "before=failed"], ["old"]),
        (["-f", "volume=box"], ["old"]),
        (["-a", "-f", "network=none", "-f", "name=new"], ["new"]),
        (["-a", "-f", f"ancestor={IMAGE}", "-f", "name=old"], ["old"]),
        (["-n", "2"], ["new", "failed"]),
        (["-l"], ["new"]),
    ):
        assert names(*options) == wanted, options
    assert "not known" in daemon.command("ps", "--filter", "colour=red", check=False).stderr
    assert "KEY=VALUE" in daemon.command("ps", "--filter", "red", check=False).stderr


def test_logs_end_at_a_time(daemon: Daemon) -> None:
    daemon.out("run", "--name", "talker", IMAGE, "sh", "-c", "echo a; sleep 0.1; echo b; sleep 0.1; echo c")
    stamps = [line.split()[0] for line in daemon.out("logs", "-t", "talker").splitlines()]
    assert daemon.out("logs", "--until", stamps[1], "talker").split() == ["a", "b"]
    assert daemon.out("logs", "--until", stamps[1], "--tail", "1", "talker").split() == ["b"]
    assert daemon.out("logs", "--since", stamps[1], "--until", stamps[1], "talker").split() == ["b"]

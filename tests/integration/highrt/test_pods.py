"""`highrt pod`: several containers that share a network, ports, a host name and, if asked, their processes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon, networked, reboot

SLEEP = (IMAGE, "sleep", "300")


@pytest.fixture(autouse=True)
def clean(daemon: Daemon) -> Iterator[None]:
    yield
    for pod in daemon.out("pod", "ls", "-q").split():
        daemon.out("pod", "rm", "-f", pod)
    assert daemon.out("ps", "-aq") == ""


def inspect(daemon: Daemon, pod: str) -> Any:
    return json.loads(daemon.out("pod", "inspect", pod))[0]


def namespace(daemon: Daemon, name: str, kind: str) -> str:
    return daemon.out("exec", name, "readlink", f"/proc/self/ns/{kind}")


def refusal(daemon: Daemon, *arguments: str) -> str:
    done = daemon.command(*arguments, check=False)
    assert done.returncode != 0
    return done.stderr


def test_containers_share_what_is_the_pods_and_nothing_else(daemon: Daemon) -> None:
    daemon.out("pod", "create", "--name", "p", "--network", "none", "--label", "a=b")
    assert inspect(daemon, "p")["State"] == "Created"
    for name in ("one", "two"):
        daemon.out("run", "-d", "--pod", "p", "--name", name, *SLEEP)
    for kind, same in (("net", True), ("ipc", True), ("uts", True), ("pid", False), ("mnt", False)):
        assert (namespace(daemon, "one", kind) == namespace(daemon, "two", kind)) is same, kind
    assert daemon.out("exec", "two", "hostname") == "p"
    found = inspect(daemon, "p")
    assert (found["State"], found["NumContainers"], found["Labels"]) == ("Running", 2, {"a": "b"})
    assert {each["Name"] for each in found["Containers"]} == {"one", "two"}
    assert daemon.out("ps", "--pod", "--filter", "pod=p", "--format", "{{.Names}} {{.PodName}}").split("\n") == ["two p", "one p"]
    assert "POD ID" in daemon.out("ps", "-p")
    assert "sleep 300" in daemon.out("pod", "top", "p")
    assert daemon.out("pod", "stats", "--no-stream", "p").count("\n") == 2


def test_processes_are_shared_where_it_says_so(daemon: Daemon) -> None:
    daemon.out("pod", "create", "--network", "none", "--share-pid", "p")
    daemon.out("run", "-d", "--pod", "p", "--name", "one", IMAGE, "sleep", "4712")
    assert "sleep 4712" in daemon.out("run", "--rm", "--pod", "p", IMAGE, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert [each["Name"] for each in inspect(daemon, "p")["Containers"]] == ["one"]
    daemon.out("pod", "restart", "-t", "0", "p")
    assert daemon.out("exec", "one", "cat", "/proc/1/comm") == "init"


def test_a_pod_outlives_its_containers_and_they_a_stop_of_it(daemon: Daemon) -> None:
    daemon.out("pod", "create", "--network", "none", "p")
    daemon.out("run", "--pod", "p", "--name", "first", IMAGE, "sh", "-c", "echo said; touch /dev/shm/left")
    daemon.out("run", "-d", "--pod", "p", "--name", "second", *SLEEP)
    daemon.out("create", "--pod", "p", "--name", "never", *SLEEP)
    assert daemon.out("exec", "second", "ls", "/dev/shm") == "left"
    assert inspect(daemon, "p")["State"] == "Degraded"
    daemon.out("exec", "second", "touch", "/mine")
    daemon.out("pod", "stop", "-t", "0", "p")
    assert inspect(daemon, "p")["State"] == "Exited"
    daemon.out("start", "second")
    assert daemon.out("exec", "second", "ls", "/mine", "/dev/shm") == "/mine\n\n/dev/shm:"
    daemon.out("pod", "start", "p")
    wait_for(lambda: daemon.out("logs", "first") == "said\nsaid")
    assert set(daemon.out("ps", "--format", "{{.Names}}").split()) == {"second", "never"}
    daemon.out("pod", "pause", "p")
    assert daemon.out("ps", "--filter", "status=paused", "--format", "{{.Names}}").count("\n") == 1
    daemon.out("pod", "unpause", "p")
    daemon.out("pod", "kill", "p")
    wait_for(lambda: inspect(daemon, "p")["State"] == "Exited")
    assert "never" in refusal(daemon, "pod", "rm", "p")
    daemon.out("rm", "never")
    daemon.out("create", "--pod", "p", "--name", "never", *SLEEP)
    assert inspect(daemon, "p")["NumContainers"] == 3


def test_names_are_those_of_pods_and_containers(daemon: Daemon) -> None:
    daemon.out("pod", "create", "--network", "none", "p")
    assert "is a pod's" in refusal(daemon, "create", "--name", "p", *SLEEP)
    daemon.out("create", "--pod", "p", "--name", "one", *SLEEP)
    assert "in use" in refusal(daemon, "pod", "create", "one")
    assert "in use" in refusal(daemon, "create", "--pod", "p", "--name", "one", *SLEEP)
    daemon.out("rename", "one", "two")
    daemon.out("create", "--pod", "p", "--name", "one", *SLEEP)
    assert daemon.out("ps", "-a", "--format", "{{.Names}}").split() == ["one", "two"]
    assert daemon.out("pod", "ls", "--format", "{{.Name}} {{.NumberOfContainers}}") == "p 2"
    assert json.loads(daemon.out("pod", "ps", "-o", "json"))[0]["Name"] == "p"
    assert daemon.out("pod", "ls", "-q", "--filter", "status=running") == ""
    assert [daemon.command("pod", "exists", name, check=False).returncode for name in ("p", "q")] == [0, 1]


def test_what_is_the_pods_is_refused_of_a_container(daemon: Daemon) -> None:
    daemon.out("pod", "create", "--network", "none", "p")
    for option in (("--network", "host"), ("-p", "1:1"), ("-h", "x"), ("--dns", "192.0.2.1"), ("--add-host", "a:192.0.2.1")):
        assert "with --pod" in refusal(daemon, "create", "--pod", "p", *option, *SLEEP)
    assert "with --pod" in refusal(daemon, "create", "--pod", "p", "--ipc", "host", *SLEEP)
    assert "--share-pid" in refusal(daemon, "create", "--pod", "p", "--pid", "pod", *SLEEP)
    assert "no pod q" in refusal(daemon, "create", "--pod", "q", *SLEEP)
    assert inspect(daemon, "p")["NumContainers"] == 0


def test_anothers_namespaces_are_shared_in_a_pod_only(daemon: Daemon) -> None:
    daemon.out("pod", "create", "--network", "none", "p")
    daemon.out("run", "-d", "--pod", "p", "--name", "one", *SLEEP)
    assert daemon.out("run", "--rm", "--pod", "p", "--pid", "container:one", IMAGE, "readlink", "/proc/self/ns/pid") == namespace(
        daemon, "one", "pid"
    )
    for option in ("--pid", "--ipc", "--network"):
        assert "pod create" in refusal(daemon, "create", option, "container:one", *SLEEP)
    assert "--network host" in refusal(daemon, "create", "--uts", "host", *SLEEP)


def test_a_new_pod_comes_with_its_first_container_or_not_at_all(daemon: Daemon) -> None:
    daemon.out("run", "-d", "--pod", "new:fresh", "--network", "none", "-h", "called", "--name", "one", *SLEEP)
    assert daemon.out("exec", "one", "hostname") == "called"
    assert refusal(daemon, "create", "--pod", "new:other", "--network", "none", "--cap-add", "NO_SUCH", *SLEEP)
    assert daemon.out("pod", "ls", "--format", "{{.Name}}") == "fresh"


def test_it_survives_the_daemon_and_a_reboot(daemon: Daemon) -> None:
    daemon.out("pod", "create", "--network", "none", "p")
    daemon.out("run", "-d", "--pod", "p", "--name", "stays", "--restart", "always", *SLEEP)
    daemon.out("run", "-d", "--pod", "p", "--name", "ends", *SLEEP)
    daemon.kill()
    daemon.start()
    assert inspect(daemon, "p")["State"] == "Running"
    assert namespace(daemon, "stays", "net") == namespace(daemon, "ends", "net")
    reboot(daemon)
    wait_for(lambda: inspect(daemon, "p")["State"] == "Degraded", what="the one that is to run always")
    daemon.out("start", "ends")
    assert namespace(daemon, "stays", "net") == namespace(daemon, "ends", "net")
    assert {entry.name for entry in (daemon.folder / "root/person").iterdir() if entry.is_dir()} != set()


def test_ports_and_names_are_the_pods() -> None:
    with networked() as (daemon, _):
        daemon.out("network", "create", "n")
        daemon.out("pod", "create", "--network", "n", "-p", "8099:80", "p")
        daemon.out("run", "-d", "--pod", "p", "--name", "web", IMAGE, "sh", "-c", "while true; do echo it | nc -l -p 80; done")
        other = daemon.out("run", "--rm", "--network", "n", IMAGE, "sh", "-c", "grep -w p /etc/hosts")
        assert {"p", "web"} <= set(other.split())
        assert "8099->80/tcp" in daemon.out("ps", "--format", "{{.Ports}}")
        assert [*inspect(daemon, "p")["NetworkSettings"]["Networks"]] == ["n"]
        members = json.loads(daemon.out("network", "inspect", "n"))[0]["Containers"]
        assert [each["Name"] for each in members.values()] == ["p"]
        assert daemon.out("run", "--rm", "--pod", "p", IMAGE, "cat", "/etc/hosts").count("web") == 1
        daemon.out("pod", "rm", "-f", "p")
        daemon.out("network", "rm", "n")

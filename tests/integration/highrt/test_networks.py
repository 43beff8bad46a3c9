"""Networks that a person makes: containers on one know each other by name, others do not get in."""

import concurrent.futures
import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon, networked
from tests.integration.highrt.test_network import SERVER, get


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Daemon, str]]:
    with networked() as both:
        yield both


@pytest.fixture(scope="module")
def namespace(both: tuple[Daemon, str]) -> str:
    return both[1]


@pytest.fixture
def daemon(both: tuple[Daemon, str]) -> Iterator[Daemon]:
    daemon, namespace = both
    yield daemon
    for container in daemon.out("ps", "-aq").split():
        daemon.command("rm", "-f", container)
    daemon.command("network", "prune", "-f")
    assert daemon.out("network", "ls", "-q").split() == ["bridge", "host", "none"]
    assert [name for name in links(namespace) if name.startswith("st-")] == []
    rules = inside(namespace, "nft", "list", "ruleset")
    assert "st-" not in rules
    assert "10.89." not in rules
    assert list((daemon.folder / "root" / "cni").iterdir()) == []


def inside(namespace: str, *argv: str) -> str:
    return subprocess.run(["ip", "netns", "exec", namespace, *argv], capture_output=True, text=True, check=True).stdout


def links(namespace: str) -> list[str]:
    return [link["ifname"] for link in json.loads(inside(namespace, "ip", "-j", "link"))]


def serving(daemon: Daemon, name: str, *options: str) -> None:
    """A container whose server tells its own name."""
    server = SERVER.replace("hostname >", f"echo {name} >")
    daemon.out("run", "-d", "--name", name, *options, IMAGE, "sh", "-c", server)
    wait_for(lambda: ask(daemon, name, "127.0.0.1") == name, what="the server")


def ask(daemon: Daemon, container: str, host: str) -> str:
    return daemon.command(
        "exec", container, "timeout", "1", "wget", "-q", "-O", "-", f"http://{host}/", check=False
    ).stdout.strip()


def network_of(daemon: Daemon, container: str, network: str) -> dict[str, str]:
    found = json.loads(daemon.out("inspect", container))[0]["NetworkSettings"]["Networks"]
    return dict(found[network])


def test_names_are_known_on_one_network_and_follow_who_comes_and_goes(daemon: Daemon) -> None:
    daemon.out("network", "create", "lan")
    serving(daemon, "web", "--network", "lan", "--network-alias", "www", "--hostname", "webby")
    serving(daemon, "db", "--network", "lan")
    identity = daemon.out("ps", "-q", "--no-trunc").split()
    for name in ("web", "www", "webby"):
        assert ask(daemon, "db", name) == "web"
    assert ask(daemon, "web", "db") == "db"
    assert {ask(daemon, "db", short[:12]) for short in identity} == {"web", "db"}
    daemon.out("rename", "web", "front")
    assert ask(daemon, "db", "front") == "web"
    assert ask(daemon, "db", "web") == ""
    daemon.out("stop", "-t", "0", "front")
    wait_for(lambda: ask(daemon, "db", "front") == "", what="the name to be gone")
    daemon.out("start", "front")
    wait_for(lambda: ask(daemon, "db", "front") == "web", what="the server after its start")
    daemon.out("rm", "-f", "front")
    assert "front" not in daemon.out("exec", "db", "cat", "/etc/hosts")
    assert "db" in daemon.out("exec", "db", "cat", "/etc/hosts"), "its own name is there, too"


def test_the_default_network_knows_no_names_and_gets_into_no_other(daemon: Daemon) -> None:
    daemon.out("network", "create", "one")
    daemon.out("network", "create", "two")
    serving(daemon, "a", "--network", "one", "-p", "18081:80")
    serving(daemon, "b", "--network", "two")
    serving(daemon, "c")
    for near, far, network in (("b", "a", "one"), ("a", "b", "two"), ("c", "a", "one"), ("a", "c", "bridge")):
        assert ask(daemon, near, far) == "", "by name"
        assert ask(daemon, near, network_of(daemon, far, network)["IPAddress"]) == "", "by address"
    host = network_of(daemon, "b", "two")["Gateway"]
    assert ask(daemon, "b", f"{host}:18081") == "a", "what is published is for all"


def test_a_way_out_but_not_from_an_internal_network(daemon: Daemon, namespace: str) -> None:
    daemon.out("network", "create", "open")
    daemon.out("network", "create", "--internal", "closed")
    route = ("run", "--rm", "--network")
    assert "default" in daemon.out(*route, "open", IMAGE, "ip", "route")
    assert "default" not in daemon.out(*route, "closed", IMAGE, "ip", "route")
    assert '"Internal": true' in daemon.out("network", "inspect", "closed")


def test_connected_and_disconnected_while_it_runs(daemon: Daemon, namespace: str) -> None:
    daemon.out("network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.9", "back")
    serving(daemon, "web", "-p", "18082:80")
    serving(daemon, "db", "--network", "back")
    assert ask(daemon, "web", "db") == ""
    daemon.out("network", "connect", "--ip", "10.77.0.77", "--alias", "frontend", "back", "web")
    assert ask(daemon, "web", "db") == "db"
    assert ask(daemon, "db", "frontend") == "web"
    found = network_of(daemon, "web", "back")
    assert (found["IPAddress"], found["Gateway"], found["Interface"]) == ("10.77.0.77", "10.77.0.9", "eth1")
    assert daemon.out("exec", "web", "ip", "route").count("default") == 1
    assert get(namespace, "http://127.0.0.1:18082/") == "web", "the published port stays with the first network"
    assert "is on network back already" in daemon.command("network", "connect", "back", "web", check=False).stderr
    daemon.out("restart", "-t", "0", "web")
    wait_for(lambda: ask(daemon, "db", "frontend") == "web", what="the server after its start")
    daemon.kill()
    daemon.start()
    assert ask(daemon, "db", "frontend") == "web"
    daemon.out("network", "disconnect", "back", "web")
    assert ask(daemon, "db", "frontend") == ""
    assert "eth1" not in daemon.out("exec", "web", "ls", "/sys/class/net")
    assert "not on network back" in daemon.command("network", "disconnect", "back", "web", check=False).stderr
    daemon.out("network", "disconnect", "bridge", "web")
    assert daemon.out("exec", "web", "ls", "/sys/class/net").split() == ["lo"]


def test_what_is_used_or_built_in_or_taken_is_refused(daemon: Daemon) -> None:
    daemon.out("network", "create", "--label", "a=b", "lan")
    daemon.out("create", "--name", "web", "--network", "lan", IMAGE, "true")
    assert json.loads(daemon.out("network", "inspect", "lan"))[0]["Labels"] == {"a": "b"}

    def refused(*arguments: str) -> str:
        done = daemon.command(*arguments, check=False)
        assert done.returncode != 0
        return done.stderr

    assert "used by web" in refused("network", "rm", "lan")
    assert "already" in refused("network", "create", "lan")
    assert "already" in refused("network", "create", "bridge")
    assert "cannot be removed" in refused("network", "rm", "host")
    assert "no network nothing" in refused("network", "rm", "nothing")
    assert "no network nothing" in refused("run", "--network", "nothing", IMAGE, "true")
    assert "overlaps 10.231.9.0/24" in refused("network", "create", "--subnet", "10.231.0.0/16", "wide")
    assert "not within network lan" in refused("run", "--network", "lan", "--ip", "10.1.2.3", IMAGE, "true")
    assert "letters" in refused("network", "create", "../up")
    assert "network nonsense" not in daemon.out("network", "rm", "-f", "nonsense")
    daemon.out("rm", "web")
    daemon.out("network", "rm", "lan")


def test_many_come_and_go_at_once(daemon: Daemon) -> None:
    daemon.out("network", "create", "lan")
    serving(daemon, "watcher", "--network", "lan")

    def come(number: int) -> None:
        daemon.out("run", "-d", "--name", f"c{number}", "--network", "lan", IMAGE, "sleep", "60")
        if number % 2:
            daemon.out("rm", "-f", f"c{number}")

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        list(pool.map(come, range(10)))
    named = set(daemon.out("exec", "watcher", "cat", "/etc/hosts").split())
    assert {f"c{number}" for number in range(10)} & named == {f"c{number}" for number in range(0, 10, 2)}


def test_killed_half_way_nothing_is_left(daemon: Daemon) -> None:
    for number in range(4):
        daemon.out("network", "create", "lan")
        with subprocess.Popen(daemon.argv("run", "-d", "--name", "web", "--network", "lan", IMAGE, "sleep", "60")) as running:
            wait_for(lambda: list((daemon.folder / "root" / "cni").iterdir()), what="the attachment")
            daemon.kill()
            running.wait()
        daemon.start()
        daemon.command("rm", "-f", "web", check=False)
        wait_for(
            lambda: daemon.command("network", "rm", "lan", check=False).returncode == 0, what=f"its removal in round {number}"
        )

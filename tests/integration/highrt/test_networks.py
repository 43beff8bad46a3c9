"""A person's networks: bridges of their own, names, isolation, and what is left after a daemon was killed half-way."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from strata.protocols import highrt_pb2 as api
from strata.protocols.grpc import channel
from strata.protocols.highrt_grpc import HighrtStub
from tests.conftest import network_namespace, wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon, configure, networked, reboot, started

NetworkCall = Callable[[HighrtStub], Awaitable[Any]]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Daemon, str]]:
    with networked() as both:
        yield both


@pytest.fixture(scope="module")
def daemon(both: tuple[Daemon, str]) -> Daemon:
    return both[0]


@pytest.fixture(scope="module")
def host(both: tuple[Daemon, str]) -> "Host":
    return Host(*both)


@pytest.fixture(autouse=True)
def nothing_is_left(host: "Host") -> Iterator[None]:
    """Every test gives back all that it took."""
    yield
    host.check()
    assert host.bridges() == host.ruled() == set()


class Host:
    """The daemon's network namespace, as the kernel has it."""

    def __init__(self, daemon: Daemon, namespace: str) -> None:
        self.daemon, self.namespace = daemon, namespace

    def run(self, *argv: str) -> str:
        argv = ("nsenter", f"--net=/run/netns/{self.namespace}", *argv)
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def links(self, kind: str) -> set[str]:
        return {link["ifname"] for link in json.loads(self.run("ip", "-j", "link", "show", "type", kind) or "[]")}

    def bridges(self) -> set[str]:
        return self.links("bridge") - {"hrt0"}

    def ruled(self) -> set[str]:
        """The bridges that the rules name, and the subnets."""
        rules = self.run("nft", "list", "ruleset")
        return {*re.findall(r'"(st-[0-9a-f]+)"', rules), *re.findall(r"(?:172|10)\.[0-9.]+/[0-9]+", rules)}

    def check(self) -> None:
        """What there is belongs to the networks that are listed and the containers that run, and nothing is missing."""
        made = [item for item in inspect_all(self.daemon) if item["Name"] not in ("bridge", "host", "none")]
        bridges = {item["Bridge"] for item in made}
        assert {item["Bridge"] for item in made if item["Containers"]} <= self.bridges() <= bridges
        assert self.ruled() <= bridges | {config["Subnet"] for item in made for config in item["IPAM"]["Config"]}
        folder = self.daemon.folder
        assert {path.name for path in (folder / "root/networks/leases").glob("*")} <= bridges
        assert {path.stem for path in (folder / "root/networks").glob("*.*")} == {item["Name"] for item in made}
        ends = [end for item in inspect_all(self.daemon) for end in item["Containers"].values()]
        leases = [path.name for path in (*folder.glob("root/networks/leases/*/*.*.*.*"), *folder.glob("ipam/*/*.*.*.*"))]
        assert sorted(leases) == sorted(end["IPv4Address"].partition("/")[0] for end in ends)
        assert len(self.links("veth") - {"up0", "other", "other-end"}) == len(ends)
        assert len([*folder.glob("root/cni/*")]) == len(ends)


def inspect_all(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.out("network", "inspect", *daemon.out("network", "ls", "-q").split()))
    return found


@contextmanager
def network(daemon: Daemon, *options: str) -> Iterator[str]:
    """The name of a network that is there for the block."""
    name = f"n{time.monotonic_ns()}"
    daemon.out("network", "create", *options, name)
    try:
        yield name
    finally:
        daemon.out("network", "rm", name)


@contextmanager
def container(daemon: Daemon, *options: str, command: tuple[str, ...] = ("sleep", "300")) -> Iterator[str]:
    """The name of a container that runs for the block."""
    name = f"c{time.monotonic_ns()}"
    daemon.out("run", "-d", "--name", name, *options, IMAGE, *command)
    try:
        yield name
    finally:
        daemon.out("rm", "-f", name)


def settings(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.out("inspect", "-f", "{{json .NetworkSettings}}", name))
    return found


def address(daemon: Daemon, name: str, network: str) -> str:
    return str(settings(daemon, name)["Networks"][network]["IPAddress"])


def resolve(daemon: Daemon, name: str, whom: str) -> str:
    """The address that a container finds for a name, as its libc does; "" for none."""
    done = daemon.command("exec", name, "ping", "-c", "1", "-W", "2", whom, check=False)
    found = re.match(r"PING \S+ \(([0-9.]+)\).* 1 packets received", done.stdout, re.DOTALL)
    return found.group(1) if found else ""


def names(daemon: Daemon, name: str) -> set[str]:
    """All names in a container's /etc/hosts."""
    lines = [line.partition("#")[0].split() for line in daemon.out("exec", name, "cat", "/etc/hosts").splitlines()]
    return {each for line in lines for each in line[1:]}


def reaches(daemon: Daemon, name: str, whom: str) -> bool:
    return daemon.command("exec", name, "ping", "-c", "1", "-W", "1", whom, check=False).returncode == 0


def refused(daemon: Daemon, *arguments: str) -> str:
    done = daemon.command(*arguments, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_a_network_from_create_to_rm(daemon: Daemon, host: Host) -> None:
    daemon.out(
        "network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.9", "--ip-range", "10.77.0.64/26",
        "--label", "a=b", "-o", "com.docker.network.driver.mtu=1400", "front",
    )  # fmt: skip
    assert daemon.out("network", "ls", "-q", "--filter", "type=custom") == "front"
    assert daemon.out("network", "ls", "-q", "--filter", "label=a=c") == ""
    (listed,) = json.loads(daemon.out("network", "ls", "-o", "json", "--filter", "name=fro"))
    assert (listed["Subnets"], listed["Labels"]) == (["10.77.0.0/24"], {"a": "b"})
    identifier = listed["ID"]
    (found,) = json.loads(daemon.out("network", "inspect", identifier[:6]))
    assert (found["Id"], found["Driver"], found["Internal"]) == (identifier, "bridge", False)
    with container(daemon, "--network", identifier[:12]) as name:
        assert address(daemon, name, "front") == "10.77.0.64"
        assert "mtu 1400" in daemon.out("exec", name, "ip", "link", "show", "eth0")
        (found,) = json.loads(daemon.out("network", "inspect", "front"))
        (end,) = found["Containers"].values()
        assert (end["Name"], end["IPv4Address"]) == (name, "10.77.0.64/24")
        mine = settings(daemon, name)["Networks"]["front"]
        assert (mine["Gateway"], mine["IPPrefixLen"], mine["NetworkID"]) == ("10.77.0.9", 24, identifier)
        assert mine["MacAddress"] == end["MacAddress"]
        assert mine["MacAddress"] in daemon.out("exec", name, "ip", "link", "show", "eth0")
        host.check()
        assert f"used by {name}" in refused(daemon, "network", "rm", "front")
        daemon.out("stop", "-t", "0", name)
        assert address(daemon, name, "front") == settings(daemon, name)["IPAddress"] == ""
        assert f"used by {name}" in refused(daemon, "network", "rm", "front")
        assert daemon.out("network", "prune", "-f") == ""
    assert daemon.out("network", "prune", "-f") == "front"
    assert "no network" in refused(daemon, "network", "rm", "front")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--driver", "overlay", "n"], "bridge only"),
        (["--subnet", "10.1.0.1/24", "n"], "host bits set"),
        (["--subnet", "10.1.0.0/24", "--gateway", "10.2.0.1", "n"], "within one of the subnets"),
        (["--subnet", "10.1.0.0/24", "--gateway", "10.1.0.0", "n"], "no host can have"),
        (["--subnet", "10.1.0.0/31", "n"], "too small"),
        (["--subnet", "10.1.0.0/24", "--ip-range", "10.1.0.0/16", "n"], "not within"),
        (["--subnet", "10.1.0.0/24", "--subnet", "10.2.0.0/24", "n"], "one of IPv4 is enough"),
        (["-o", "colour=red", "n"], "not known"),
    ],
)
def test_what_cannot_be_made_says_why(daemon: Daemon, arguments: list[str], words: str) -> None:
    assert words in refused(daemon, "network", "create", *arguments)


def test_a_name_is_there_once(daemon: Daemon) -> None:
    with ThreadPoolExecutor() as pool:
        done = [*pool.map(lambda _: daemon.command("network", "create", "same", check=False), range(4))]
    assert sorted(each.returncode for each in done) == [0, 1, 1, 1]
    daemon.out("network", "rm", "same")


def test_subnets_keep_away_from_the_hosts_routes_and_each_other(daemon: Daemon, host: Host) -> None:
    host.run("ip", "link", "add", "other", "type", "veth", "peer", "name", "other-end")
    try:
        host.run("ip", "addr", "add", "10.89.0.5/24", "dev", "other")
        host.run("ip", "link", "set", "other", "up")
        with network(daemon) as one, network(daemon, "--ipv6") as two:
            listed = {item["Name"]: item["Subnets"] for item in json.loads(daemon.out("network", "ls", "-o", "json"))}
            assert listed[one] == ["10.89.1.0/24"]
            assert (listed[two][0], listed[two][1][:2]) == ("10.89.2.0/24", "fd")
    finally:
        host.run("ip", "link", "del", "other")


def test_names_follow_containers_that_come_go_and_are_renamed(daemon: Daemon) -> None:
    with network(daemon) as net, container(daemon, "--network", net, "--network-alias", "db", "-h", "box.example") as one:
        first = address(daemon, one, net)
        short = daemon.out("ps", "-q")
        daemon.out("exec", one, "sh", "-c", "echo 10.9.9.9 by-hand >> /etc/hosts")
        with container(daemon, "--network", f"name={net},alias=web") as two:
            for name in (one, short, "db", "box.example"):
                assert resolve(daemon, two, name) == first
            second = address(daemon, two, net)
            assert resolve(daemon, one, "web") == resolve(daemon, one, two) == second
            daemon.out("rename", two, "other")
            assert resolve(daemon, one, "other") == second
            assert two not in names(daemon, one)
            daemon.out("rename", "other", two)
            daemon.out("restart", "-t", "0", two)
            assert resolve(daemon, one, two) == address(daemon, two, net)
            assert resolve(daemon, two, "db") == first
            daemon.out("stop", "-t", "0", two)
            wait_for(lambda: two not in names(daemon, one), what="the name to go")
            daemon.out("start", two)
            assert resolve(daemon, one, "web") == address(daemon, two, net)
            process = daemon.out("inspect", "-f", "{{.State.Pid}}", one)
            daemon.kill()
            assert f"\t{two} " in Path(f"/proc/{process}/root/etc/hosts").read_text()
            daemon.start()
            assert resolve(daemon, one, "web") == address(daemon, two, net)
        assert names(daemon, one) & {"web", two} == set()
        assert "by-hand" in names(daemon, one)


def test_the_nodes_own_network_has_no_names(daemon: Daemon) -> None:
    with container(daemon, "-h", "first") as one, container(daemon, "--network", "bridge") as two:
        assert names(daemon, two) & {one, "first"} == set()
        assert "first" in names(daemon, one)
        assert reaches(daemon, two, address(daemon, one, "bridge"))
        assert "networks that you made" in refused(daemon, "run", "--rm", "--network-alias", "x", IMAGE, "true")


TELL_WHO_ASKS = """
import socket
server = socket.create_server(("", 80))
while True:
    connection, peer = server.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + peer[0].encode())
    connection.close()
"""


@contextmanager
def outside(host: Host) -> Iterator[str]:
    """An address beyond the host, where a server tells who has asked it: another namespace, joined by a veth pair."""
    with network_namespace() as other:
        host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", other)
        host.run("ip", "addr", "add", "198.51.100.1/24", "dev", "up0")
        host.run("ip", "link", "set", "up0", "up")
        subprocess.run(["ip", "-n", other, "addr", "add", "198.51.100.2/24", "dev", "up0"], check=True)
        subprocess.run(["ip", "-n", other, "link", "set", "up0", "up"], check=True)
        # its answers would find their way without any translation, too
        subprocess.run(["ip", "-n", other, "route", "add", "default", "via", "198.51.100.1"], check=True)
        server = subprocess.Popen(["nsenter", f"--net=/run/netns/{other}", sys.executable, "-c", TELL_WHO_ASKS])
        try:
            wait_for(lambda: "198.51.100.1" in host.run("sh", "-c", "curl -s --max-time 1 http://198.51.100.2/ || true"))
            yield "198.51.100.2"
        finally:
            server.kill()
            server.wait()
            host.run("ip", "link", "del", "up0")


def test_networks_are_apart_lead_out_and_internal_ones_do_not(daemon: Daemon, host: Host) -> None:
    server = ("sh", "-c", "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www")
    ask = ("timeout", "5", "wget", "-q", "-O", "-")
    with (
        outside(host) as there, network(daemon) as front, network(daemon) as back, network(daemon, "--internal") as inner,
        container(daemon, "--network", front) as one,
        container(daemon, "--network", back, "-p", "18080:80", command=server) as two,
        container(daemon, "--network", inner) as three, container(daemon, "--network", inner) as four,
        container(daemon) as plain,
    ):  # fmt: skip
        where = {name: settings(daemon, name)["IPAddress"] for name in (one, two, three, four, plain)}
        assert reaches(daemon, three, four)
        apart = [(one, two), (two, one), (one, three), (three, one), (one, plain), (plain, one), (plain, three)]
        assert [(a, b) for a, b in apart if reaches(daemon, a, where[b])] == []
        assert daemon.command("exec", one, *ask, f"http://{there}/").stdout == "198.51.100.1"
        # also a container that may set its own routes
        with container(daemon, "--network", inner, "--cap-add", "NET_ADMIN") as root:
            gateway = settings(daemon, root)["Gateway"]
            daemon.out("exec", root, "ip", "route", "add", "default", "via", gateway)
            assert not reaches(daemon, root, there)
        # a published port is for everybody
        assert host.run("curl", "-s", "--max-time", "2", "http://198.51.100.1:18080/") == "served\n"
        assert daemon.command("exec", one, *ask, "http://198.51.100.1:18080/").stdout == "served\n"
        assert daemon.command("exec", three, *ask, "http://198.51.100.1:18080/", check=False).returncode != 0
        assert "is internal" in refused(daemon, "run", "--rm", "--network", inner, "-p", "18081:80", IMAGE, "true")


def test_ipv6(daemon: Daemon) -> None:
    with network(daemon, "--ipv6", "--subnet", "fd77::/64") as net, container(daemon, "--network", net) as one:
        mine = settings(daemon, one)["Networks"][net]
        assert (mine["GlobalIPv6Address"], mine["GlobalIPv6PrefixLen"], mine["IPv6Gateway"]) == ("fd77::2", 64, "fd77::1")
        with container(daemon, "--network", net, "--ip6", "fd77::99") as two:
            found = daemon.command("exec", one, "ping", "-6", "-c", "1", "-W", "2", two)
            assert found.stdout.startswith(f"PING {two} (fd77::99)")
            assert "default via fd77::1" in daemon.out("exec", two, "ip", "-6", "route")


def test_connect_and_disconnect(daemon: Daemon, host: Host) -> None:
    with (
        network(daemon) as front,
        network(daemon, "--subnet", "10.78.0.0/24") as back,
        container(daemon, "--network", front) as one,
    ):
        first = address(daemon, one, front)
        with container(daemon, "--network", back) as two:
            daemon.out("network", "connect", "--alias", "extra", "--ip", "10.78.0.50", back, one)
            assert address(daemon, one, back) == resolve(daemon, two, "extra") == "10.78.0.50"
            assert resolve(daemon, one, two) == address(daemon, two, back)
            assert settings(daemon, one)["Networks"][back]["Aliases"] == ["extra"]
            gateway = settings(daemon, one)["Networks"][front]["Gateway"]
            assert f"default via {gateway} dev eth0" in daemon.out("exec", one, "ip", "route")
            assert "already" in refused(daemon, "network", "connect", back, one)
            host.check()
            # it stays so over restarts of the container and the daemon, and a reboot
            daemon.out("restart", "-t", "0", one)
            assert resolve(daemon, two, "extra") == address(daemon, one, back) == "10.78.0.50"
            daemon.kill()
            daemon.start()
            host.check()
            assert resolve(daemon, two, "extra") == "10.78.0.50"
            # the first network goes: the other one leads out
            daemon.out("network", "disconnect", front, one)
            assert "default via 10.78.0.1 dev eth1" in daemon.out("exec", one, "ip", "route")
            assert front not in settings(daemon, one)["Networks"]
            assert "is not on network" in refused(daemon, "network", "disconnect", front, one)
            daemon.out("network", "disconnect", "-f", front, one)
            # of one that does not run it is written down
            daemon.out("stop", "-t", "0", one)
            daemon.out("network", "connect", front, one)
            daemon.out("network", "disconnect", back, one)
            assert address(daemon, one, front) == ""
            daemon.out("start", one)
            assert [*settings(daemon, one)["Networks"]] == [front]
            assert address(daemon, one, front) != first
            daemon.out("network", "connect", "bridge", one)
            assert address(daemon, one, "bridge").startswith("10.231.9.")
            daemon.out("network", "disconnect", "bridge", one)
    with container(daemon, "--network", "none") as alone, network(daemon) as net:
        assert "no networks that can be changed" in refused(daemon, "network", "connect", net, alone)


def test_an_address_is_given_once(daemon: Daemon) -> None:
    with network(daemon, "--subnet", "10.79.0.0/30") as net, container(daemon, "--network", net, "--ip", "10.79.0.2") as one:
        run = ("run", "--rm", "--network", net)
        assert f"in use by container {one}" in refused(daemon, *run, "--ip", "10.79.0.2", IMAGE, "true")
        assert "not available" in refused(daemon, *run, "--ip", "10.79.0.1", IMAGE, "true")
        assert "no IP addresses available" in refused(daemon, *run, IMAGE, "true")


def test_after_a_reboot_the_networks_are_there_again(daemon: Daemon, host: Host) -> None:
    with (
        network(daemon) as net, container(daemon, "--network", net) as one,
        container(daemon, "--network", net, "--restart", "always", "--network-alias", "again") as two,
    ):  # fmt: skip
        for bridge in host.links("bridge"):
            host.run("ip", "link", "del", bridge)
        host.run("nft", "flush", "ruleset")
        reboot(daemon)
        wait_for(lambda: daemon.out("inspect", "-f", "{{.State.Status}}", two) == "running", what="it to run again")
        assert daemon.out("inspect", "-f", "{{.State.Status}}", one) == "exited"
        host.check()
        daemon.out("start", one)
        assert resolve(daemon, one, "again") == address(daemon, two, net)
        host.check()


@pytest.mark.parametrize("milliseconds", [3, 7, 18])
async def test_a_daemon_killed_half_way_leaves_nothing_over(daemon: Daemon, host: Host, milliseconds: int) -> None:
    async def killed_in(call: NetworkCall) -> None:
        """Sends a request, and kills the daemon while it works on it; the next one is there then."""
        link = channel(daemon.address)
        try:
            task = asyncio.ensure_future(call(HighrtStub(link)))
            await asyncio.sleep(milliseconds / 1000)
            await asyncio.to_thread(daemon.kill)
            await asyncio.gather(task, return_exceptions=True)
        finally:
            link.close()
        await asyncio.to_thread(daemon.start)
        await asyncio.to_thread(host.check)

    await killed_in(lambda stub: stub.CreateNetwork(api.CreateNetworkRequest(name="half")))
    if "half" not in daemon.out("network", "ls"):
        daemon.out("network", "create", "half")
    with container(daemon) as one:
        change = api.ConnectNetworkRequest(container=one, endpoint=api.Endpoint(network="half"))
        await killed_in(lambda stub: stub.ConnectNetwork(change))
        if "half" not in settings(daemon, one)["Networks"]:
            daemon.out("network", "connect", "half", one)
        assert [*settings(daemon, one)["Networks"]] == ["bridge", "half"]
        await killed_in(lambda stub: stub.DisconnectNetwork(change))
        daemon.out("network", "disconnect", "-f", "half", one)
        assert daemon.out("exec", one, "ls", "/sys/class/net").split() == ["eth0", "lo"]
    await killed_in(lambda stub: stub.RemoveNetwork(api.NetworkName(name="half")))
    daemon.out("network", "rm", "-f", "half")


def test_ten_containers_come_and_go_at_once(daemon: Daemon, host: Host) -> None:
    with network(daemon) as net, container(daemon, "--network", net) as watcher, ThreadPoolExecutor(10) as pool:

        def life(number: int) -> None:
            name = f"w{number}"
            daemon.out("run", "-d", "--name", name, "--network", net, "--network-alias", "worker", IMAGE, "sleep", "300")
            if number % 3 == 0:
                daemon.out("rm", "-f", name)
            elif number % 3 == 1:
                daemon.out("restart", "-t", "0", name)
                daemon.out("rename", name, f"{name}-renamed")

        assert [*pool.map(life, range(10))] == [None] * 10
        left = {f"w{number}-renamed" if number % 3 == 1 else f"w{number}" for number in range(10) if number % 3}
        expected = {watcher, "worker", *left}
        for name in (watcher, *left):
            wait_for(lambda name=name: {each for each in names(daemon, name) if each in expected or each[0] == "w"} == expected)
            hosts = daemon.out("exec", name, "cat", "/etc/hosts").splitlines()
            known = {word: line.split()[0] for line in hosts for word in line.split()[1:] if word in left}
            assert known == {each: address(daemon, each, net) for each in left}
        host.check()
        assert [*pool.map(lambda name: daemon.command("rm", "-f", name).returncode, left)] == [0] * len(left)
        wait_for(lambda: names(daemon, watcher) & {"worker", *left} == set())


def test_where_the_node_has_no_network_one_is_made() -> None:
    with network_namespace() as namespace, started(namespace) as daemon:
        host = Host(daemon, namespace)
        first = daemon.command("run", "-d", "--name", "first", "-p", "8080:80", IMAGE, "httpd", "-f", "-p", "80")
        assert "the network highrt is made" in first.stderr
        second = daemon.command("run", "-d", "--network", "bridge", "--name", "second", IMAGE, "sleep", "300")
        assert second.stderr == ""
        assert resolve(daemon, "second", "first") == address(daemon, "first", "highrt")
        assert "404" in host.run("curl", "-s", "-m", "5", "http://127.0.0.1:8080/")
        assert "first, second" in refused(daemon, "network", "rm", "highrt")
        configure(daemon)
        assert daemon.out("run", "--rm", IMAGE, "ip", "-o", "-4", "a", "show", "eth0").split()[3].startswith("10.231.9.")
        daemon.out("rm", "-f", "first", "second")
        assert daemon.out("network", "rm", "highrt") == "highrt"
        host.check()
        assert host.bridges() == host.ruled() == set()


def test_the_nodes_own_network_may_be_any_of_several(daemon: Daemon) -> None:
    with network(daemon) as name:
        for order in ((name, "bridge"), ("bridge", name)):
            with container(daemon, "--network", order[0], "--network", order[1]) as both:
                assert [*settings(daemon, both)["Networks"]] == [*order]

"""A person's containers on a CNI bridge, with published ports: a daemon in a network namespace of its own."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon, networked

SERVER = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Daemon, str]]:
    with networked() as both:
        yield both


@pytest.fixture(scope="module")
def daemon(both: tuple[Daemon, str]) -> Daemon:
    return both[0]


@pytest.fixture(scope="module")
def namespace(both: tuple[Daemon, str]) -> str:
    return both[1]


def get(namespace: str, url: str) -> str:
    argv = ["ip", "netns", "exec", namespace, "curl", "-s", "--max-time", "3", url]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def test_an_address_a_published_port_and_names_and_their_end(daemon: Daemon, namespace: str) -> None:
    daemon.out("run", "-d", "--name", "web", "-h", "webby", "-p", "18080:80", IMAGE, "sh", "-c", SERVER)
    address = daemon.out("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
    assert address.startswith("10.231.9.")
    wait_for(lambda: get(namespace, f"http://{address}/") == "webby", what="the server at its address")
    assert get(namespace, "http://127.0.0.1:18080/") == "webby"
    assert daemon.out("ps", "--format", "{{.Ports}}") == "0.0.0.0:18080->80/tcp"
    assert f"{address}\twebby" in daemon.out("exec", "web", "cat", "/etc/hosts")
    other = daemon.command("run", "--rm", IMAGE, "wget", "-q", "-O", "-", f"http://{address}/")
    assert other.stdout == "webby\n"
    taken = daemon.command("run", "-d", "-p", "18080:80", IMAGE, check=False)
    assert (taken.returncode, "18080" in taken.stderr) == (125, True)
    daemon.out("stop", "-t", "0", "web")
    wait_for(lambda: not (daemon.folder / "ipam" / "person" / address).exists(), what="the address to be given back")
    assert get(namespace, "http://127.0.0.1:18080/") == ""
    daemon.out("rm", "web")


def test_the_hosts_network_and_none(daemon: Daemon, namespace: str) -> None:
    links = "ls /sys/class/net"
    assert daemon.command("run", "--rm", "--network", "host", IMAGE, "sh", "-c", links).stdout.split() == ["hrt0", "lo"]
    assert daemon.command("run", "--rm", "--network", "none", IMAGE, "sh", "-c", links).stdout.split() == ["lo"]
    assert daemon.command("run", "--rm", IMAGE, "sh", "-c", links).stdout.split() == ["eth0", "lo"]

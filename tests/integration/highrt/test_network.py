"""A person's containers on a CNI bridge, with published ports: a daemon in a network namespace of its own."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import network_namespace, wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon, started

SERVER = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    with network_namespace() as name:
        yield name


@pytest.fixture(scope="module")
def daemon(namespace: str) -> Iterator[Daemon]:
    # not `ip netns exec`: it mounts a /sys without the cgroups
    with started(["nsenter", f"--net=/run/netns/{namespace}"]) as daemon:
        subnet = {"subnet": "10.231.9.0/24"}
        ipam = {"type": "host-local", "ranges": [[subnet]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": f"{daemon.folder}/ipam"}
        bridge = {"type": "bridge", "bridge": "hrt0", "isGateway": True, "ipam": ipam}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        conflist = {"cniVersion": "1.0.0", "name": "person", "plugins": [bridge, portmap]}
        (daemon.folder / "cni").mkdir()
        (daemon.folder / "cni" / "10-person.conflist").write_text(json.dumps(conflist))
        wait_for(lambda: daemon.out("system", "--format", "{{.networkReady}}") == "true", what="the network to be seen")
        yield daemon


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

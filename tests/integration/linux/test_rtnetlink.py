"""Links, addresses and routes by netlink, beside what iproute2 says of them."""

import ipaddress
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nodenet.cni import netlink
from strata.linux import rtnetlink
from tests.conftest import network_namespace


@pytest.fixture
def node() -> Iterator[str]:
    with network_namespace() as name:
        yield name


@pytest.fixture
def pod() -> Iterator[str]:
    with network_namespace() as name:
        yield name


def ip(namespace: str, *words: str) -> Any:
    done = subprocess.run(["ip", "-n", namespace, "-json", *words], capture_output=True, check=True)
    return json.loads(done.stdout)


@contextmanager
def both(node: str, pod: str) -> Iterator[tuple[rtnetlink.Netlink, rtnetlink.Netlink, int]]:
    """A socket in each, and the second's descriptor."""
    with (
        netlink.namespace_of(f"/run/netns/{node}") as outside,
        netlink.namespace_of(f"/run/netns/{pod}") as inside,
        netlink.connect(outside) as host,
        netlink.connect(inside) as guest,
    ):
        yield host, guest, inside


def test_a_pair_between_a_bridge_and_another_namespace(node: str, pod: str) -> None:
    with both(node, pod) as (host, guest, inside):
        host.add_bridge("br0", 1400)
        bridge = host.link("br0")
        assert bridge is not None
        assert (bridge.kind, bridge.mtu, bridge.flags & rtnetlink.UP) == ("bridge", 1400, rtnetlink.UP)
        host.set_mac(bridge.index, "02:00:00:00:00:07")
        host.add_veth("outer", "eth0", inside, master=bridge.index, mtu=1300)
        outer, inner = host.link("outer"), guest.link("eth0")
        assert outer is not None
        assert inner is not None
        assert (outer.master, outer.kind, outer.mtu, inner.mtu) == (bridge.index, "veth", 1300, 1300)
        host.set_hairpin(outer.index)
        guest.set_flags(inner.index, rtnetlink.UP)
    (seen,) = ip(node, "-details", "link", "show", "outer")
    assert seen["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert (seen["master"], seen["address"]) == ("br0", outer.mac)
    assert ip(node, "link", "show", "br0")[0]["address"] == "02:00:00:00:00:07"
    assert ip(pod, "link", "show", "eth0")[0]["operstate"] == "UP"


def test_addresses_and_routes(node: str) -> None:
    addresses = [ipaddress.ip_interface(text) for text in ("10.9.0.2/24", "fd00::2/64")]
    with netlink.namespace_of(f"/run/netns/{node}") as namespace, netlink.connect(namespace) as here:
        here.add_bridge("br0")
        link = here.link("br0")
        assert link is not None
        for address in addresses:
            here.add_address(link.index, address)
        with pytest.raises(FileExistsError):
            here.add_address(link.index, addresses[0])
        wanted = [
            rtnetlink.Route(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("10.9.0.1"), link.index),
            rtnetlink.Route(ipaddress.ip_network("10.77.0.0/16"), None, link.index),
            rtnetlink.Route(ipaddress.ip_network("::/0"), ipaddress.ip_address("fd00::1"), link.index),
        ]
        for route in wanted * 2:  # the second takes the place of the first
            here.replace_route(route.destination, route.index, route.gateway)
        assert set(addresses) <= set(here.addresses(link.index))
        routes = here.routes()
    assert [route for route in routes if route in wanted] == wanted
    assert {item["dst"]: item.get("gateway") for item in ip(node, "route")} == {
        "default": "10.9.0.1", "10.77.0.0/16": None, "10.9.0.0/24": None,
    }  # fmt: skip


def test_a_link_that_is_removed_is_gone_at_once_and_its_other_end_too(node: str, pod: str) -> None:
    with both(node, pod) as (host, guest, inside):
        host.add_bridge("br0")
        bridge = host.link("br0")
        assert bridge is not None
        for _ in range(20):
            host.add_veth("outer", "eth0", inside, master=bridge.index)
            host.remove_link("outer")
            assert host.link("outer") is None
            assert guest.link("eth0") is None
        with pytest.raises(OSError, match="No such device"):
            host.remove_link("outer")


def test_what_the_kernel_refuses_is_raised(node: str) -> None:
    with netlink.namespace_of(f"/run/netns/{node}") as namespace, netlink.connect(namespace) as here:
        assert here.link("nosuch") is None
        here.add_bridge("br0")
        with pytest.raises(FileExistsError):
            here.add_bridge("br0")
        with pytest.raises(OSError, match="not supported"):
            here.remove_link("lo")

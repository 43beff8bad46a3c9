"""The plugins in real namespaces: what they make works, and what they delete is gone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nodenet.harness import POD_CIDR, ROOT, Namespace, Node, Pod, closing


@pytest.fixture
def pods(node: Node) -> Iterator[tuple[Pod, Pod]]:
    with closing(Pod(node)) as one, closing(Pod(node)) as other:
        yield one, other


def _links(node: Node) -> set[str]:
    return {link["ifname"] for link in json.loads(node.shell("ip -j link"))}


def _leases(node: Node) -> set[str]:
    return {name for name in os.listdir(node.folder / "networks" / "strata") if name[0].isdigit()}


def test_two_pods_reach_each_other_and_their_node(node: Node, pods: tuple[Pod, Pod]) -> None:
    one, other = pods
    other.serve_tcp(80, "other")
    node.serve_tcp(81, "node")
    assert one.get_tcp(other.address, 80) == f"other {one.address}"
    assert one.get_tcp("10.244.7.1", 81) == f"node {one.address}"
    assert node.get_tcp(other.address, 80) == "other 10.244.7.1"


def test_the_result_describes_the_attachment(node: Node, pods: tuple[Pod, Pod]) -> None:
    result = pods[0].result
    bridge, outer, inner = result["interfaces"]
    assert (result["cniVersion"], bridge["name"], inner["name"], inner["sandbox"]) == (
        "1.1.0", "strata0", "eth0", pods[0].path,
    )  # fmt: skip
    assert outer["name"] in _links(node)
    assert result["ips"] == [{"address": f"{pods[0].address}/24", "gateway": "10.244.7.1", "interface": 2}]
    link = json.loads(pods[0].shell("ip -j link show dev eth0"))[0]
    assert (link["address"], link["mtu"]) == (inner["mac"], inner["mtu"])


def test_delete_leaves_nothing_and_may_come_again(node: Node) -> None:
    before = _links(node)
    with closing(Pod(node)) as pod:
        assert len(_leases(node)) == 1
        assert node.cni("DEL", pod.config, pod.id, pod.path) == {}
        assert _links(node) - before == {"strata0"}
        assert _leases(node) == set()
        assert node.cni("DEL", pod.config, pod.id, pod.path) == {}
        assert "eth0" not in pod.shell("ip link")


def test_delete_works_when_the_namespace_is_gone(node: Node) -> None:
    with closing(Namespace()) as space:
        config = node.bridge_config()
        assert "ips" in node.cni("ADD", config, "gone", space.path)
    assert node.cni("DEL", config, "gone", space.path) == {}
    assert node.cni("DEL", config, "gone", "") == {}
    assert _leases(node) == set()
    assert _links(node) == {"lo", "dead0", "dead1", "strata0"}


def test_an_add_that_fails_half_way_leaves_nothing(node: Node) -> None:
    with closing(Namespace()) as space:
        space.shell("ip link add eth0 type veth peer name eth1")
        code, message = node.cni("ADD", node.bridge_config(), "half", space.path)
        assert (code, "eth0" in message) == (100, True)
        assert _leases(node) == set()
        assert not [name for name in _links(node) if name.startswith("veth")]
        space.shell("ip link del eth0")
        # A route by a gateway that no address reaches: refused after the interfaces are there.
        config = node.bridge_config()
        config["ipam"]["routes"] = [{"dst": "10.9.0.0/16", "gw": "172.31.255.1"}]
        code, message = node.cni("ADD", config, "half", space.path)
        assert "10.9.0.0/16" in message
        assert _leases(node) == set()
        assert "eth0" not in space.shell("ip link")


def test_check_sees_what_is_missing(node: Node, pods: tuple[Pod, Pod]) -> None:
    pod = pods[0]
    config = {**pod.config, "prevResult": pod.result}
    assert node.cni("CHECK", config, pod.id, pod.path) == {}
    pod.shell("ip route del default")
    assert node.cni("CHECK", config, pod.id, pod.path) == (102, "route to 0.0.0.0/0 is missing in the container")
    pod.shell(f"ip addr del {pod.address}/24 dev eth0")
    assert node.cni("CHECK", config, pod.id, pod.path)[0] == 102


def test_host_ports_reach_the_pod_from_everywhere(node: Node, pods: tuple[Pod, Pod]) -> None:
    one, other = pods
    one.serve_tcp(80, "one")
    one.serve_udp(53, "udp")
    mappings = [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5300, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ]
    config = {
        "cniVersion": "1.1.0", "name": "strata", "type": "portmap", "capabilities": {"portMappings": True},
        "prevResult": one.result, "runtimeConfig": {"portMappings": mappings},
    }  # fmt: skip
    assert node.cni("ADD", config, one.id, one.path) == one.result
    assert node.cni("CHECK", config, one.id, one.path) == {}
    assert node.get_tcp("192.0.2.1", 8080).startswith("one")
    assert node.get_tcp("127.0.0.1", 8080).startswith("one")
    assert other.get_tcp("192.0.2.1", 8080) == f"one {other.address}"
    assert one.get_tcp("192.0.2.1", 8080).startswith("one"), "hairpin"
    assert node.get_udp("127.0.0.1", 5300).startswith("udp")
    with pytest.raises(OSError, match=r"refused|timed out"):
        node.get_udp("192.0.2.1", 5300)
    code, message = node.cni("ADD", config, other.id, other.path)
    assert (code, "8080/tcp" in message) == (100, True)
    collect = {**config, "cni.dev/valid-attachments": [{"containerID": one.id, "ifname": "eth0"}]}
    assert node.cni("GC", collect) == {}
    assert node.cni("CHECK", config, one.id, one.path) == {}
    assert node.cni("DEL", config, one.id, one.path) == {}
    with pytest.raises(ConnectionRefusedError):
        node.get_tcp("192.0.2.1", 8080)
    assert "elements" not in node.shell("nft list table ip strata-hostports")


def test_a_pod_cannot_use_host_ports_to_reach_the_node_s_loopback(node: Node, pods: tuple[Pod, Pod]) -> None:
    """CVE-2020-8558."""
    one, other = pods
    node.serve_tcp(7777, "secret", "127.0.0.1")
    config = {
        "cniVersion": "1.1.0", "name": "strata", "type": "portmap", "prevResult": one.result,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]},
    }  # fmt: skip
    node.cni("ADD", config, one.id, one.path)
    # A pod that may change its own network sends to the node what is addressed to 127.0.0.1.
    other.shell(
        "ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local; "
        "ip addr flush dev lo; ip route replace 127.0.0.1/32 via 10.244.7.1; sysctl -qw net.ipv4.conf.all.route_localnet=1"
    )
    with pytest.raises(TimeoutError):
        other.get_tcp("127.0.0.1", 7777, 0.5)
    node.shell("nft flush chain ip strata-hostports guard")
    assert other.get_tcp("127.0.0.1", 7777).startswith("secret"), "it is the guard that held it off"
    node.cni("DEL", config, one.id, one.path)


def test_masquerade_hides_pods_from_what_is_outside_their_subnet(node: Node) -> None:
    with closing(Namespace()) as outside:
        node.shell(
            f"ip link add out0 type veth peer name eth0 netns {outside.name}; "
            "ip addr add 198.51.100.1/24 dev out0; ip link set out0 up"
        )
        outside.shell("ip addr add 198.51.100.2/24 dev eth0; ip link set eth0 up")
        outside.serve_tcp(80, "outside")
        with closing(Pod(node, ipMasq=True)) as pod, closing(Pod(node, ipMasq=True)) as other:
            assert pod.get_tcp("198.51.100.2", 80) == "outside 198.51.100.1"
            other.serve_tcp(80, "other")
            assert pod.get_tcp(other.address, 80) == f"other {pod.address}"


def test_garbage_collection_frees_the_addresses_of_the_others(node: Node, pods: tuple[Pod, Pod]) -> None:
    config = {**pods[0].config, "cni.dev/valid-attachments": [{"containerID": pods[0].id, "ifname": "eth0"}]}
    assert node.cni("GC", config) == {}
    assert _leases(node) == {pods[0].address}
    assert node.cni("GC", pods[0].config)[0] == 7, "without the list nothing is thrown away"


def test_addresses_run_out_with_a_clear_error_and_are_used_again(node: Node) -> None:
    config = node.bridge_config()
    config["ipam"]["ranges"] = [[{"subnet": POD_CIDR, "rangeStart": "10.244.7.10", "rangeEnd": "10.244.7.11"}]]
    with closing(Namespace()) as one, closing(Namespace()) as other, closing(Namespace()) as third:
        first = node.cni("ADD", config, "a", one.path)["ips"][0]["address"]
        node.cni("ADD", config, "b", other.path)
        assert node.cni("ADD", config, "c", third.path) == (
            101, "failed to allocate for range 0: no IP addresses available in range set: 10.244.7.10-10.244.7.11",
        )  # fmt: skip
        node.cni("DEL", config, "a", one.path)
        assert node.cni("ADD", config, "c", third.path)["ips"][0]["address"] == first


def test_the_executable_does_the_same_under_the_plugin_s_name(node: Node) -> None:
    link = node.folder / "bridge"
    link.symlink_to(Path(sys.executable).parent / "nodenet")
    with closing(Namespace()) as space:
        environ = {
            "PATH": os.environ["PATH"], "CNI_CONTAINERID": "x", "CNI_NETNS": space.path, "CNI_IFNAME": "eth0",
        }  # fmt: skip

        def call(command: str) -> Any:
            done = node.inside(subprocess.run, [link], input=json.dumps(node.bridge_config()).encode(), cwd=ROOT,
                               env={**environ, "CNI_COMMAND": command}, capture_output=True)  # fmt: skip
            assert done.returncode == 0, done
            return json.loads(done.stdout or b"{}")

        assert call("ADD")["interfaces"][2]["name"] == "eth0"
        assert call("VERSION")["supportedVersions"][-1] == "1.1.0"
        assert call("DEL") == {}
        assert _leases(node) == set()


def test_sizes_and_modes_are_those_of_the_configuration(node: Node) -> None:
    with closing(Pod(node, hairpinMode=False, promiscMode=True, mtu=1400, isDefaultGateway=True)) as pod:
        bridge = json.loads(node.shell("ip -j -d link show dev strata0"))[0]
        assert (bridge["mtu"], "PROMISC" in bridge["flags"]) == (1400, True)
        outer = json.loads(node.shell(f"ip -j -d link show dev {pod.result['interfaces'][1]['name']}"))[0]
        assert (outer["mtu"], outer["linkinfo"]["info_slave_data"]["hairpin"]) == (1400, False)
        assert json.loads(pod.shell("ip -j link show dev eth0"))[0]["mtu"] == 1400
        assert pod.result["routes"] == [{"dst": "0.0.0.0/0"}], "the default route that is there already is enough"
    ipam = {**node.bridge_config()["ipam"], "routes": []}
    with closing(Pod(node, isDefaultGateway=True, ipam=ipam)) as pod:
        assert pod.result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.244.7.1"}]
        assert pod.shell("ip route show default").startswith("default via 10.244.7.1")
    with closing(Namespace()) as space:
        node.shell("ip link add plain0 type veth peer name plain1")
        code, message = node.cni("ADD", node.bridge_config(bridge="plain0"), "c", space.path)
        assert (code, "not a bridge" in message) == (7, True)
        assert _leases(node) == set()


def test_a_pod_with_two_families(node: Node) -> None:
    ranges = [[{"subnet": POD_CIDR}], [{"subnet": "fd00:7::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = {**node.bridge_config()["ipam"], "ranges": ranges, "routes": routes}
    with closing(Pod(node, ipam=ipam)) as one, closing(Pod(node, ipam=ipam)) as other:
        assert [item["gateway"] for item in one.result["ips"]] == ["10.244.7.1", "fd00:7::1"]
        other.serve_tcp(80, "other", "::")
        for item in other.result["ips"]:
            assert one.get_tcp(item["address"].split("/")[0], 80).startswith("other"), "at once, without waiting for duplicates"
        assert node.cni("CHECK", {**one.config, "prevResult": one.result}, one.id, one.path) == {}


def test_executables_side_by_side_share_a_bridge_that_none_has_made_yet(node: Node) -> None:
    spaces = [Namespace() for _ in range(4)]
    try:

        def start(space: Namespace) -> subprocess.Popen[bytes]:
            environ = {"PATH": os.environ["PATH"], "CNI_COMMAND": "ADD", "CNI_CONTAINERID": space.name, "CNI_NETNS": space.path,
                       "CNI_IFNAME": "eth0"}  # fmt: skip
            argv = [sys.executable, "-m", "nodenet.cli", "cni"]
            return node.popen(*argv, env=environ, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        config = json.dumps(node.bridge_config(ipMasq=True)).encode()
        running = [start(space) for space in spaces]
        for process in running:
            assert process.stdin is not None
            process.stdin.write(config)
            process.stdin.close()
            process.stdin = None
        outputs = [process.communicate(timeout=30)[0] for process in running]
        assert [process.returncode for process in running] == [0] * 4, outputs
        assert len({json.loads(output)["ips"][0]["address"] for output in outputs}) == 4
        for space in spaces:
            assert "ips" not in node.cni("DEL", node.bridge_config(), space.name, space.path)
        assert _links(node) == {"lo", "dead0", "dead1", "strata0"}
    finally:
        for space in spaces:
            space.close()

"""The daemon itself: CNI configuration, routes, addresses, taking over, cleaning up."""

import json
import signal
import subprocess
import sys

import pytest

from tests.integration.nodenet.harness import CLUSTER_CIDR, DNS_IP, POD_CIDR, ROOT, Cluster, Namespace, Pod, closing, eventually


def _run(cluster: Cluster, *argv: str) -> subprocess.CompletedProcess[str]:
    return cluster.node.inside(
        subprocess.run, [sys.executable, "-m", "nodenet.cli", *argv], cwd=ROOT, capture_output=True, text=True, timeout=30
    )


def test_the_cni_configuration_follows_the_node_s_range_and_works(cluster: Cluster) -> None:
    path = cluster.node.folder / "net.d" / "10-strata.conflist"
    config = json.loads(path.read_text())
    assert [plugin["type"] for plugin in config["plugins"]] == ["bridge", "portmap"]
    assert config["plugins"][0]["ipam"]["ranges"] == [[{"subnet": POD_CIDR}]]
    assert config["plugins"][1]["capabilities"] == {"portMappings": True}
    with closing(Namespace()) as space:
        first = {"cniVersion": config["cniVersion"], "name": config["name"], **config["plugins"][0]}
        result = cluster.node.cni("ADD", first, "pod", space.path)
        assert result["ips"][0]["gateway"] == "10.244.7.1"
        assert cluster.node.cni("DEL", first, "pod", space.path) == {}


def test_routes_to_the_other_nodes_come_and_go(cluster: Cluster) -> None:
    def routes() -> dict[str, str]:
        return {item["dst"]: item["gateway"] for item in json.loads(cluster.node.shell("ip -j route show proto 83"))}

    with closing(Namespace()) as other:
        cluster.node.shell(f"ip link set dead1 netns {other.name}")
        other.shell("ip addr add 192.0.2.2/24 dev dead1; ip link set dead1 up; ip addr add 10.244.8.9/32 dev lo; "
                    f"ip route add {POD_CIDR} via 192.0.2.1")  # fmt: skip
        other.serve_tcp(80, "other")
        spec = {"podCIDR": "10.244.8.0/24", "podCIDRs": ["10.244.8.0/24"]}
        cluster.create("/api/v1/nodes", {"metadata": {"name": "n2"}, "spec": spec})
        status = {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}}
        cluster.request("PATCH", "/api/v1/nodes/n2/status", status)
        eventually(lambda: routes() == {"10.244.8.0/24": "192.0.2.2"}, "the route to the other node's pods")
        pod = cluster.pod()
        assert pod.get_tcp("10.244.8.9", 80) == f"other {pod.address}", "inside the cluster addresses stay as they are"
        assert pod.get_tcp("192.0.2.2", 80) == "other 192.0.2.1", "outside the node's address stands for the pod's"
        # What no kubelet should write costs this route, and nothing else.
        cluster.request("PATCH", "/api/v1/nodes/n2/status", {"status": {"addresses": [{"type": "InternalIP", "address": "x%y"}]}})
        eventually(lambda: routes() == {}, "the route is gone with the address")
        cluster.request("PATCH", "/api/v1/nodes/n2/status", status)
        eventually(lambda: routes() == {"10.244.8.0/24": "192.0.2.2"}, "and back with it")
        cluster.request("DELETE", "/api/v1/nodes/n2")
        eventually(lambda: routes() == {}, "the route is gone")


def test_killed_and_started_again_it_takes_over_what_is_there(cluster: Cluster) -> None:
    rules = cluster.node.shell("nft -s list table ip strata-proxy")
    cluster.nodenet.process.send_signal(signal.SIGKILL)
    cluster.nodenet.process.wait()
    cluster.nodenet = cluster.start_nodenet()
    eventually(lambda: cluster.node.shell("nft -s list table ip strata-proxy") == rules, "the same rules")
    assert cluster.node.shell("ip -br addr show dev lo").count(f"{DNS_IP}/32") == 1


def test_a_kubeconfig_that_is_not_there_is_a_clear_error(cluster: Cluster) -> None:
    done = _run(cluster, "serve", "--kubeconfig", "/nowhere/kubeconfig", "--node-name", "n1")
    assert done.returncode == 1
    assert "/nowhere/kubeconfig" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("cidr", ["10.0.0.0/99", "pods", "10.244.0.1/16"])
def test_a_range_that_is_none_is_a_clear_error(cluster: Cluster, cidr: str) -> None:
    done = _run(cluster, "proxy", "--kubeconfig", str(cluster.kubeconfig), "--node-name", "n1", "--cluster-cidr", cidr,
                "--service-cidr", CLUSTER_CIDR)  # fmt: skip
    assert done.returncode == 1
    assert "clusterCIDR" in done.stderr
    assert "Traceback" not in done.stderr


def test_cleanup_leaves_nothing() -> None:
    with closing(Cluster()) as cluster:
        with closing(Pod(cluster.node)):
            pass
        cluster.nodenet.close()
        done = _run(cluster, "cleanup", "--cni-conf-dir", str(cluster.node.folder / "net.d"))
        assert done.returncode == 0, done.stderr
        assert cluster.node.shell("nft list ruleset") == ""
        assert {link["ifname"] for link in json.loads(cluster.node.shell("ip -j link"))} == {"lo", "dead0", "dead1"}
        assert DNS_IP not in cluster.node.shell("ip addr")
        assert list((cluster.node.folder / "net.d").iterdir()) == []
        assert _run(cluster, "cleanup", "--cni-conf-dir", str(cluster.node.folder / "net.d")).returncode == 0, "again"

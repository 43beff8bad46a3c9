"""The proxy's rules, seen by the packets that they are for: a real API server, real pods, a default route to nowhere."""

from collections.abc import Iterator

import pytest

from tests.integration.nodenet.harness import Cluster, Namespace, Pod, closing, eventually

TCP = [{"port": 8080, "protocol": "TCP"}]


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> list[Pod]:
    pods = [cluster.pod() for _ in range(3)]
    for index, pod in enumerate(pods[:2]):
        pod.serve_tcp(8080, f"web{index}")
        pod.serve_udp(5353, f"udp{index}")
    return pods


def _endpoint(pod: Pod, **changes: object) -> dict[str, object]:
    return {"addresses": [pod.address], "conditions": {"ready": True}, "nodeName": "n1", **changes}


def test_a_cluster_ip_reaches_every_endpoint_and_keeps_the_client_address(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service("web", {"clusterIP": "10.96.1.1", "ports": [{"port": 80, "targetPort": 8080}]})
    cluster.endpoints("web", [_endpoint(pod) for pod in pods[:2]], TCP)
    eventually(lambda: pods[2].get_tcp("10.96.1.1", 80), "the Service answers")
    answers = {pods[2].get_tcp("10.96.1.1", 80) for _ in range(30)}
    assert answers == {f"web0 {pods[2].address}", f"web1 {pods[2].address}"}


def test_the_node_itself_and_the_endpoint_itself_reach_it_too(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service("self", {"clusterIP": "10.96.1.2", "ports": [{"port": 80, "targetPort": 8080}]})
    cluster.endpoints("self", [_endpoint(pods[0])], TCP)
    eventually(lambda: cluster.node.get_tcp("10.96.1.2", 80), "the Service answers the node")
    assert pods[0].get_tcp("10.96.1.2", 80).startswith("web0")


def test_without_endpoints_a_connection_is_refused_at_once(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service("none", {"clusterIP": "10.96.1.3", "ports": [{"port": 80}]})
    left = cluster.node.left()
    for where in (pods[2], cluster.node):
        with pytest.raises(ConnectionRefusedError):
            where.get_tcp("10.96.1.3", 80)
    assert cluster.node.left() == left


def test_an_address_without_a_service_never_leaves_the_node(cluster: Cluster, pods: list[Pod]) -> None:
    left = cluster.node.left()
    for where in (pods[2], cluster.node):
        for host, port in (("10.96.200.1", 80), ("10.96.1.1", 81)):
            with pytest.raises(ConnectionRefusedError):
                where.get_tcp(host, port)
            # A local sender hears of a rejected datagram as EPERM, a pod as ECONNREFUSED.
            with pytest.raises((ConnectionRefusedError, PermissionError)):
                where.get_udp(host, port)
    assert cluster.node.left() == left


def test_endpoints_come_and_go(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service("moving", {"clusterIP": "10.96.1.4", "ports": [{"port": 80, "targetPort": 8080}]})
    cluster.endpoints("moving", [_endpoint(pods[0])], TCP)
    eventually(lambda: pods[2].get_tcp("10.96.1.4", 80).startswith("web0"), "the first endpoint answers")
    cluster.change_endpoints("moving", [_endpoint(pods[1])])
    eventually(lambda: pods[2].get_tcp("10.96.1.4", 80).startswith("web1"), "the second endpoint answers")
    cluster.change_endpoints("moving", [_endpoint(pods[0], conditions={"ready": False, "serving": True, "terminating": True})])
    eventually(lambda: pods[2].get_tcp("10.96.1.4", 80).startswith("web0"), "one that ends serves while there is no other")
    cluster.change_endpoints("moving", [_endpoint(pods[0], conditions={"ready": False})])

    def refused() -> bool:
        try:
            pods[2].get_tcp("10.96.1.4", 80)
        except ConnectionRefusedError:
            return True
        return False

    eventually(refused, "one that is not ready is not used")
    cluster.request("DELETE", "/api/v1/namespaces/default/services/moving")
    eventually(refused, "a deleted Service refuses")


def test_a_udp_client_follows_when_its_endpoint_goes(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service("udp", {"clusterIP": "10.96.1.5", "ports": [{"port": 53, "targetPort": 5353, "protocol": "UDP"}]})
    cluster.endpoints("udp", [_endpoint(pods[0])], [{"port": 5353, "protocol": "UDP"}])
    eventually(lambda: pods[2].get_udp("10.96.1.5", 53, source_port=40000).startswith("udp0"), "the first endpoint answers")
    cluster.change_endpoints("udp", [_endpoint(pods[1])])
    eventually(
        lambda: pods[2].get_udp("10.96.1.5", 53, source_port=40000).startswith("udp1"), "the same flow gets the second endpoint"
    )


def test_session_affinity_keeps_a_client_at_one_endpoint(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service(
        "sticky", {"clusterIP": "10.96.1.6", "sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": 8080}]}
    )
    cluster.endpoints("sticky", [_endpoint(pod) for pod in pods[:2]], TCP)
    eventually(lambda: pods[2].get_tcp("10.96.1.6", 80), "the Service answers")
    assert len({pods[2].get_tcp("10.96.1.6", 80) for _ in range(20)}) == 1


def test_a_node_port_answers_on_the_node_s_address(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service(
        "port", {"type": "NodePort", "clusterIP": "10.96.1.7", "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]}
    )
    cluster.endpoints("port", [_endpoint(pods[0])], TCP)
    eventually(lambda: cluster.node.get_tcp("192.0.2.1", 30080), "the node port answers the node")
    assert pods[2].get_tcp("192.0.2.1", 30080).startswith("web0")
    assert pods[0].get_tcp("192.0.2.1", 30080).startswith("web0"), "and the endpoint itself"
    with pytest.raises(OSError, match="refused"):
        cluster.node.get_tcp("127.0.0.1", 30080)


def test_local_policies_use_this_node_s_endpoints_only(cluster: Cluster, pods: list[Pod]) -> None:
    spec = {"clusterIP": "10.96.1.8", "internalTrafficPolicy": "Local", "ports": [{"port": 80, "targetPort": 8080}]}
    cluster.service("local", spec)
    elsewhere = {"addresses": ["10.244.99.9"], "conditions": {"ready": True}, "nodeName": "n2"}
    cluster.endpoints("local", [elsewhere, _endpoint(pods[1])], TCP)
    eventually(lambda: pods[2].get_tcp("10.96.1.8", 80), "the Service answers")
    assert {pods[2].get_tcp("10.96.1.8", 80, 1.0) for _ in range(12)} == {f"web1 {pods[2].address}"}


@pytest.fixture(scope="module")
def outside(cluster: Cluster) -> Iterator[Namespace]:
    """A machine that is not in the cluster, on a link with the node, which is 198.51.100.1 there."""
    with closing(Namespace()) as space:
        cluster.node.shell(
            f"ip link add out0 type veth peer name eth0 netns {space.name}; ip addr add 198.51.100.1/24 dev out0; "
            "ip link set out0 up"
        )
        space.shell("ip addr add 198.51.100.9/24 dev eth0; ip link set eth0 up; ip route add default via 198.51.100.1")
        yield space


def test_from_outside_a_policy_decides_whether_the_client_is_seen(cluster: Cluster, pods: list[Pod], outside: Namespace) -> None:
    spec = {"type": "NodePort", "externalIPs": ["203.0.113.5"]}
    cluster.service("open", {**spec, "clusterIP": "10.96.1.20", "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30090}]})
    cluster.endpoints("open", [_endpoint(pods[0])], TCP)
    eventually(lambda: outside.get_tcp("198.51.100.1", 30090) == "web0 10.244.7.1", "masqueraded, by node port")
    assert outside.get_tcp("203.0.113.5", 80) == "web0 10.244.7.1"
    elsewhere = {"addresses": ["10.244.99.9"], "conditions": {"ready": True}, "nodeName": "n2"}
    cluster.change_endpoints("open", [elsewhere, _endpoint(pods[0])])
    cluster.request("PATCH", "/api/v1/namespaces/default/services/open", {"spec": {"externalTrafficPolicy": "Local"}})
    eventually(lambda: outside.get_tcp("198.51.100.1", 30090) == "web0 198.51.100.9", "the client's own address")
    assert {outside.get_tcp("203.0.113.5", 80, 1.0) for _ in range(8)} == {"web0 198.51.100.9"}, "only endpoints of this node"
    cluster.change_endpoints("open", [elsewhere])

    def dropped() -> bool:
        try:
            outside.get_tcp("198.51.100.1", 30090, 0.3)
        except TimeoutError:
            return True
        return False

    eventually(dropped, "without one of its own the node does not answer")


def test_rules_that_somebody_flushed_come_back_with_the_next_change(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service("flushed", {"clusterIP": "10.96.1.21", "ports": [{"port": 80, "targetPort": 8080}]})
    cluster.endpoints("flushed", [_endpoint(pods[0])], TCP)
    eventually(lambda: pods[2].get_tcp("10.96.1.21", 80), "the Service answers")
    cluster.node.shell("nft delete table ip strata-proxy")
    cluster.change_endpoints("flushed", [_endpoint(pods[1])])
    eventually(lambda: pods[2].get_tcp("10.96.1.21", 80, 0.5).startswith("web1"), "the whole table is there again")


def test_rules_stay_when_the_daemon_is_killed_and_are_taken_over(cluster: Cluster, pods: list[Pod]) -> None:
    cluster.service("stay", {"clusterIP": "10.96.1.9", "ports": [{"port": 80, "targetPort": 8080}]})
    cluster.endpoints("stay", [_endpoint(pods[0])], TCP)
    eventually(lambda: pods[2].get_tcp("10.96.1.9", 80), "the Service answers")
    cluster.nodenet.process.kill()
    cluster.nodenet.process.wait()
    assert pods[2].get_tcp("10.96.1.9", 80).startswith("web0")
    cluster.change_endpoints("stay", [_endpoint(pods[1])])
    cluster.nodenet = cluster.start_nodenet()
    eventually(lambda: pods[2].get_tcp("10.96.1.9", 80).startswith("web1"), "what changed meanwhile is in the rules")

"""The cluster's DNS, asked by BIND's dig: from a pod, from the node, over UDP and TCP."""

import re
import socket
from collections.abc import Callable

import pytest

from tests.integration.nodenet.harness import DNS_IP, Cluster, Namespace, Pod, eventually

Dig = Callable[..., str]


@pytest.fixture(scope="module")
def pod(cluster: Cluster) -> Pod:
    pod = cluster.pod()
    cluster.service(
        "web", {"clusterIP": "10.96.2.1", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}
    )
    cluster.service("away", {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})
    cluster.service("lost", {"type": "ExternalName", "externalName": "www.example.com"})
    cluster.service("bare", {"clusterIP": "None", "selector": {"a": "b"}, "ports": [{"name": "http", "port": 80}]})
    endpoints = [
        {"addresses": ["10.244.3.1"], "conditions": {"ready": True}, "hostname": "db-0"},
        {"addresses": ["10.244.3.2"], "conditions": {"ready": True}},
        {"addresses": ["10.244.3.3"], "conditions": {"ready": False}},
    ]
    cluster.endpoints("bare", endpoints, [{"name": "http", "port": 8080, "protocol": "TCP"}])
    cluster.service("idle", {"clusterIP": "None", "selector": {"a": "b"}, "ports": [{"port": 80}]})
    cluster.endpoints("idle", endpoints[2:], [{"port": 80, "protocol": "TCP"}])
    many = [{"addresses": [f"10.244.4.{i}"], "conditions": {"ready": True}} for i in range(1, 90)]
    cluster.service("many", {"clusterIP": "None", "selector": {"a": "b"}, "ports": [{"port": 80}]})
    cluster.endpoints("many", many, [{"port": 80, "protocol": "TCP"}])
    eventually(lambda: _dig(pod, "many.default.svc.cluster.local", "+short", "+tcp"), "the last Service has a name")
    return pod


def _dig(where: Namespace, name: str, *options: str) -> str:
    return where.shell(f"dig @{DNS_IP} +time=2 +tries=1 {name} {' '.join(options)}")


def _short(where: Namespace, name: str, *options: str) -> list[str]:
    return sorted(_dig(where, name, "+short", *options).split("\n")[:-1])


def test_a_service_by_name_from_pod_and_node_over_udp_and_tcp(cluster: Cluster, pod: Pod) -> None:
    for where in (pod, cluster.node):
        for options in ((), ("+tcp",), ("+noedns",)):
            assert _short(where, "web.default.svc.cluster.local", *options) == ["10.96.2.1"]
    assert _short(pod, "WEB.Default.SVC.cluster.local") == ["10.96.2.1"]
    answer = _dig(pod, "web.default.svc.cluster.local")
    assert "flags: qr aa rd;" in answer
    assert "status: NOERROR" in answer
    assert re.search(r"\s5\s+IN\s+A\s+10\.96\.2\.1", answer)


def test_headless_services_have_the_addresses_and_names_of_their_ready_endpoints(pod: Pod) -> None:
    assert _short(pod, "bare.default.svc.cluster.local") == ["10.244.3.1", "10.244.3.2"]
    assert _short(pod, "db-0.bare.default.svc.cluster.local") == ["10.244.3.1"]
    assert _short(pod, "10-244-3-2.bare.default.svc.cluster.local") == ["10.244.3.2"]
    assert _short(pod, "_http._tcp.bare.default.svc.cluster.local", "SRV") == [
        "0 100 8080 10-244-3-2.bare.default.svc.cluster.local.",
        "0 100 8080 db-0.bare.default.svc.cluster.local.",
    ]


def test_srv_ptr_txt_pod_names_and_aliases(pod: Pod) -> None:
    assert _short(pod, "_http._tcp.web.default.svc.cluster.local", "SRV") == ["0 100 80 web.default.svc.cluster.local."]
    assert "10.96.2.1" in _dig(pod, "_dns._udp.web.default.svc.cluster.local", "SRV")
    assert _short(pod, "-x 10.96.2.1") == ["web.default.svc.cluster.local."]
    assert _short(pod, "-x 10.244.3.1") == ["db-0.bare.default.svc.cluster.local."]
    assert _short(pod, "dns-version.cluster.local", "TXT") == ['"1.1.0"']
    assert _short(pod, "10-244-7-9.default.pod.cluster.local") == ["10.244.7.9"]
    assert _short(pod, "away.default.svc.cluster.local") == ["10.96.2.1", "web.default.svc.cluster.local."]
    assert _short(pod, "lost.default.svc.cluster.local") == ["www.example.com."]


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("nobody.default.svc.cluster.local", "A", "NXDOMAIN"),
        ("idle.default.svc.cluster.local", "A", "NXDOMAIN"),
        ("web.nowhere.svc.cluster.local", "A", "NXDOMAIN"),
        ("a.b.c.d.web.default.svc.cluster.local", "A", "NXDOMAIN"),
        ("1-2-3.default.pod.cluster.local", "A", "NXDOMAIN"),
        ("web.default.svc.cluster.local", "AAAA", "NOERROR"),
        ("_tcp.web.default.svc.cluster.local", "A", "NOERROR"),
        ("default.svc.cluster.local", "A", "NOERROR"),
        ("svc.cluster.local", "MX", "NOERROR"),
        ("_nope._tcp.web.default.svc.cluster.local", "SRV", "NXDOMAIN"),
    ],
)
def test_no_such_name_and_no_data_of_this_type(pod: Pod, name: str, kind: str, status: str) -> None:
    answer = _dig(pod, name, kind)
    assert f"status: {status}" in answer
    assert "ANSWER: 0, AUTHORITY: 1" in answer
    assert "SOA\tns.dns.cluster.local." in answer


def test_an_answer_that_is_too_long_is_truncated_and_complete_over_tcp(pod: Pod) -> None:
    name = "many.default.svc.cluster.local"
    assert "flags: qr aa tc" in _dig(pod, name, "+ignore")
    assert "flags: qr aa tc" in _dig(pod, name, "+ignore", "+noedns")
    assert len(_short(pod, name)) == 89, "dig asks again over TCP"


def test_names_of_the_world_without_a_server_to_ask_are_refused_at_once(cluster: Cluster, pod: Pod) -> None:
    left = cluster.node.left()
    assert "status: REFUSED" in _dig(pod, "www.example.com")
    assert cluster.node.left() == left


def test_other_versions_classes_and_opcodes(pod: Pod) -> None:
    assert "status: BADVERS" in _dig(pod, "web.default.svc.cluster.local", "+edns=7", "+noednsneg")
    assert "status: REFUSED" in _dig(pod, "version.bind", "CH", "TXT")
    assert "status: NOTIMP" in _dig(pod, "web.default.svc.cluster.local", "+opcode=2")


def test_packets_that_are_no_queries_get_formerr_or_nothing_and_harm_nothing(cluster: Cluster, pod: Pod) -> None:
    name = b"\x03web\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"
    header = b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"

    def send(packet: bytes) -> bytes | None:
        def call() -> bytes | None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(0.3)
                client.connect((DNS_IP, 53))
                client.send(packet)
                try:
                    return client.recv(4096)
                except TimeoutError:
                    return None

        return pod.inside(call)

    for packet in (
        header,
        header + b"\xc0\x0c",
        header + b"\x3f" + b"a",
        header + name[:-3],
        header + b"\xc0\x0d\xc0\x0c" + name,
    ):
        answer = send(packet)
        assert answer is not None, packet
        assert (answer[:2], answer[3] & 0xF) == (b"\xab\xcd", 1), packet
    assert send(b"\xab\xcd") is None
    assert send(b"\xab\xcd\x81\x80" + header[4:] + name) is None, "an answer is not answered"
    two = send(b"\xab\xcd\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00" + name + name)
    assert two is not None
    assert two[3] & 0xF == 1
    assert _short(pod, "web.default.svc.cluster.local") == ["10.96.2.1"]
    assert cluster.nodenet.process.poll() is None

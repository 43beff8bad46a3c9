"""DNS messages that nobody should send; names come from informers that were filled by hand."""

from typing import Any

from dnslib import DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from nodenet.dns.answers import Responder
from nodenet.dns.forward import Forwarder, upstreams
from nodenet.dns.records import Zone
from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.kubeclient.informer import Informers


def responder(forward: Any = None) -> Responder:
    """A zone with the Service default/web, and a namespace."""
    informers = Informers(Client("http://127.0.0.1:1"))
    zone = Zone(informers, "cluster.local")
    metadata = {"name": "web", "namespace": "default", "resourceVersion": "1"}
    objects = {
        resources.SERVICES: {"metadata": metadata, "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}},
        resources.NAMESPACES: {"metadata": {"name": "default", "resourceVersion": "1"}},
        resources.ENDPOINTSLICES: None,
    }
    for resource, obj in objects.items():
        informer = informers.of(resource)
        if obj:
            informer._store(obj)
        informer._synced.set()
    return Responder(zone, forward)


async def ask(packet: bytes, tcp: bool = False) -> bytes | None:
    return await responder().respond(packet, tcp=tcp)


@given(st.binary(max_size=200), st.booleans())
async def test_random_bytes_get_an_answer_with_their_id_or_none(packet: bytes, tcp: bool) -> None:
    answer = await ask(packet, tcp)
    if len(packet) < 12 or packet[2] & 0x80:
        assert answer is None
    else:
        assert answer is not None
        assert answer[:2] == packet[:2]
        assert answer[2] & 0x80


@given(st.binary(min_size=1, max_size=3), st.integers(12, 60))
async def test_a_query_with_changed_bytes_harms_nothing(change: bytes, where: int) -> None:
    query = bytearray(DNSRecord.question("web.default.svc.cluster.local").pack())
    query[where : where + len(change)] = change
    answer = await ask(bytes(query))
    assert answer is not None
    assert answer[:2] == query[:2]


async def test_names_keep_their_case_and_answers_their_id() -> None:
    query = DNSRecord.question("WeB.Default.svc.Cluster.LOCAL")
    answer = DNSRecord.parse(await ask(query.pack()) or b"")
    assert (answer.header.id, str(answer.q.qname)) == (query.header.id, "WeB.Default.svc.Cluster.LOCAL.")
    assert [str(item.rdata) for item in answer.rr] == ["10.96.0.7"]


async def test_before_the_names_are_known_nothing_is_denied() -> None:
    informers = Informers(Client("http://127.0.0.1:1"))
    answer = await Responder(Zone(informers, "cluster.local"), None).respond(
        DNSRecord.question("web.default.svc.cluster.local").pack(), tcp=False
    )
    assert (answer or b"")[3] & 0xF == 2, "SERVFAIL"


async def test_servers_that_do_not_answer_are_left_alone_for_a_while() -> None:
    query = DNSRecord.question("www.example.com").pack()
    forwarder = Forwarder(["127.0.0.1#1"])  # nobody listens: refused at once
    answer = await responder(forwarder.ask).respond(query, tcp=False)
    assert (answer or b"")[3] & 0xF == 2, "SERVFAIL"
    assert await forwarder.ask(query, False) is None


def test_the_node_s_servers_but_not_ourselves(tmp_path: Any) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# comment\nsearch a b\nnameserver 10.96.0.10\nnameserver 192.0.2.53\nnameserver nonsense\nnameserver\n")
    assert upstreams(path, {"10.96.0.10"}) == ["192.0.2.53"]
    assert upstreams(tmp_path / "missing", ()) == []

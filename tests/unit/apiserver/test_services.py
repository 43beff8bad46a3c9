"""Services: their addresses and ports are handed out once, kept, and given back."""

import ipaddress

from tests.unit.apiserver.client import Api
from tests.unit.apiserver.objects import SERVICES, service

RANGE = ipaddress.IPv4Network("10.96.0.0/16")


async def test_a_service_gets_an_address(api: Api) -> None:
    spec = (await api.create(SERVICES, service()))["spec"]
    assert ipaddress.IPv4Address(spec["clusterIP"]) in RANGE
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert (spec["type"], spec["sessionAffinity"], spec["internalTrafficPolicy"]) == ("ClusterIP", "None", "Cluster")
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")


async def test_addresses_are_given_once(api: Api) -> None:
    chosen = await api.create(SERVICES, service("a", clusterIP="10.96.0.77"))
    taken = await api.request("POST", SERVICES, service("b", clusterIP="10.96.0.77"))
    assert taken.code == 422
    assert "failed to allocate IP 10.96.0.77: provided IP is already allocated" in taken.message
    foreign = await api.request("POST", SERVICES, service("b", clusterIP="192.0.2.1"))
    assert "the provided IP is not in the valid range" in foreign.message
    assert chosen["spec"]["clusterIP"] == "10.96.0.77"
    await api.request("DELETE", f"{SERVICES}/a")
    await api.create(SERVICES, service("b", clusterIP="10.96.0.77"))


async def test_an_address_stays(api: Api) -> None:
    made = await api.create(SERVICES, service())
    replaced = await api.request("PUT", f"{SERVICES}/web", service(ports=[{"port": 81}]))
    assert replaced.body["spec"]["clusterIP"] == made["spec"]["clusterIP"]
    moved = await api.patch(f"{SERVICES}/web", {"spec": {"clusterIP": "10.96.0.99"}})
    assert moved.code == 422
    assert "may not change once set" in moved.message


async def test_headless_and_external_services(api: Api) -> None:
    headless = (await api.create(SERVICES, service("a", clusterIP="None", ports=[])))["spec"]
    assert (headless["clusterIP"], headless["clusterIPs"]) == ("None", ["None"])
    external = await api.create(SERVICES, {"metadata": {"name": "b"}, "spec": {"type": "ExternalName", "externalName": "a.b"}})
    assert "clusterIP" not in external["spec"]
    missing = await api.request("POST", SERVICES, service("c", type="ExternalName"))
    assert "spec.externalName: Required value" in missing.message


async def test_node_ports(api: Api) -> None:
    made = await api.create(SERVICES, service("a", type="NodePort"))
    port = made["spec"]["ports"][0]["nodePort"]
    assert 30000 <= port <= 32767
    assert made["spec"]["externalTrafficPolicy"] == "Cluster"
    taken = await api.request("POST", SERVICES, service("b", type="NodePort", ports=[{"port": 1, "nodePort": port}]))
    assert "spec.ports[0].nodePort: Invalid value" in taken.message
    assert "provided port is already allocated" in taken.message
    outside = await api.request("POST", SERVICES, service("b", type="NodePort", ports=[{"port": 1, "nodePort": 80}]))
    assert "The range of valid ports is 30000-32767" in outside.message
    kept = (await api.patch(f"{SERVICES}/a", {"metadata": {"labels": {"a": "b"}}})).body
    assert kept["spec"]["ports"][0]["nodePort"] == port
    narrowed = (await api.patch(f"{SERVICES}/a", {"spec": {"type": "ClusterIP"}})).body
    assert "nodePort" not in narrowed["spec"]["ports"][0]
    assert "externalTrafficPolicy" not in narrowed["spec"]
    await api.create(SERVICES, service("b", type="NodePort", ports=[{"port": 1, "nodePort": port}]))


async def test_a_service_that_makes_no_sense(api: Api) -> None:
    assert "a DNS-1035 label" in (await api.request("POST", SERVICES, service("1web"))).message
    assert "spec.ports: Required value" in (await api.request("POST", SERVICES, service(ports=[]))).message
    two = await api.request("POST", SERVICES, service(ports=[{"port": 1}, {"port": 2}]))
    assert "spec.ports[0].name: Required value" in two.message
    assert (await api.get(SERVICES)).body["items"] == []

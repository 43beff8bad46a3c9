"""Which endpoints a Service's port uses."""

from typing import Any

import pytest

from nodenet.network import ClusterNetwork, NetworkError, is_node_dns
from nodenet.proxy.fragment import Fragment, build
from nodenet.proxy.model import ServicePort, service_ports
from nodenet.proxy.ruleset import change, create

NETWORK = ClusterNetwork.parse("10.244.0.0/16", "10.96.0.0/16", "cluster.local")


def service(**spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    return {"metadata": {"namespace": "d", "name": "s"}, "spec": {"clusterIP": "10.96.0.5", "ports": ports, **spec}}


def piece(*endpoints: dict[str, Any], family: int = 4, name: str = "http") -> dict[str, Any]:
    return {"addressType": f"IPv{family}", "ports": [{"name": name, "port": 8080}], "endpoints": list(endpoints)}


def endpoint(address: str, node: str = "n1", **conditions: Any) -> dict[str, Any]:
    return {"addresses": [address], "nodeName": node, "conditions": conditions}


def only(ports: list[ServicePort]) -> ServicePort:
    assert len(ports) == 1
    return ports[0]


def test_ready_endpoints_win_over_those_that_end() -> None:
    ending = endpoint("10.1.0.2", ready=False, serving=True, terminating=True)
    port = only(service_ports(service(), [piece(endpoint("10.1.0.1"), ending, endpoint("10.1.0.3", ready=False))], "n1"))
    assert [item.address for item in port.endpoints] == ["10.1.0.1"]
    port = only(service_ports(service(), [piece(ending, endpoint("10.1.0.3", ready=False))], "n1"))
    assert [item.address for item in port.endpoints] == ["10.1.0.2"]


def test_endpoints_of_several_slices_by_port_name_and_family() -> None:
    pieces = [piece(endpoint("10.1.0.1")), piece(endpoint("10.1.0.2", "n2")), piece(endpoint("10.1.0.3"), name="other"),
              piece(endpoint("fd00::1"), family=6), piece(endpoint("not an address; drop"))]  # fmt: skip
    port = only(service_ports(service(), pieces, "n1"))
    assert [(item.address, item.local) for item in port.endpoints] == [("10.1.0.1", True), ("10.1.0.2", False)]
    assert [item.address for item in port.local_endpoints] == ["10.1.0.1"]


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"type": "ExternalName", "clusterIP": ""}, {"clusterIP": ""}])
def test_services_without_an_address_have_no_rules(spec: dict[str, Any]) -> None:
    assert service_ports(service(**spec), [piece(endpoint("10.1.0.1"))], "n1") == []


@pytest.mark.parametrize("label", ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"])
def test_services_that_are_another_proxy_s_have_no_rules(label: str) -> None:
    made = service()
    made["metadata"]["labels"] = {label: "x"}
    assert service_ports(made, [piece(endpoint("10.1.0.1"))], "n1") == []


def test_a_change_back_and_forth_is_no_change() -> None:
    one = build(only(service_ports(service(), [piece(endpoint("10.1.0.1"))], "n1")))
    two = build(only(service_ports(service(), [piece(endpoint("10.1.0.2"))], "n1")))
    assert change(4, one, one) == ""
    assert "10.1.0.2" in change(4, one, two)
    assert "delete chain" in change(4, two, Fragment())
    assert create(4, NETWORK, one).startswith("add table ip strata-proxy\ndelete table ip strata-proxy\n")


def test_nothing_that_a_user_names_is_pasted_into_a_script() -> None:
    evil = 'x"; flush ruleset; #'
    ips = ["10.96.0.5", f"fd00::5%{evil}"]
    made = service(ports=[{"name": evil, "port": 80}], externalIPs=[evil, f"fe80::1%{evil}"], clusterIPs=ips)
    made["metadata"]["name"] = evil
    port = only(service_ports(made, [piece(endpoint("10.1.0.1", node=evil), endpoint(evil), name=evil)], "n1"))
    assert "flush ruleset" not in create(4, NETWORK, build(port))


def test_the_dns_service_without_a_selector_is_the_node_s_own() -> None:
    dns = {"metadata": {"namespace": "kube-system", "name": "kube-dns"}, "spec": {}}
    assert is_node_dns(dns)
    assert not is_node_dns({**dns, "spec": {"selector": {"k8s-app": "kube-dns"}}})
    assert not is_node_dns(service())


@pytest.mark.parametrize("text", ["", "10.0.0.0/99", "x", "10.0.0.1/8", "fd00::%x; flush/64"])
def test_a_network_that_is_none_says_so(text: str) -> None:
    with pytest.raises(NetworkError, match="clusterCIDR"):
        ClusterNetwork.parse(text, "10.96.0.0/16", "cluster.local")

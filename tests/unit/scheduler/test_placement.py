"""Filters, affinity, scores and the cache."""

from typing import Any

import pytest

from controlplane.scheduler import filters, scores
from controlplane.scheduler.affinity import Neighbours
from controlplane.scheduler.cache import Cache, PodInfo

Object = dict[str, Any]
_uids = iter(range(10000))


def node(name: str, cpu: str = "2", pods: str = "10", taints: list[Object] | None = None, **labels: str) -> Object:
    allocatable = {"cpu": cpu, "memory": "4Gi", "pods": pods}
    spec = {"taints": taints} if taints else {}
    return {"metadata": {"name": name, "labels": {"name": name, **labels}}, "spec": spec, "status": {"allocatable": allocatable}}


def pod(cpu: str = "", labels: dict[str, str] | None = None, owner: str = "", **spec: Any) -> Object:
    uid = f"uid-{next(_uids)}"
    container = {"resources": {"requests": {"cpu": cpu}}} if cpu else {}
    metadata: Object = {"name": uid, "namespace": "default", "uid": uid, "labels": labels or {}}
    if owner:
        metadata["ownerReferences"] = [{"uid": owner, "controller": True}]
    return {"metadata": metadata, "spec": {"containers": [container], **spec}, "status": {}}


def cache_of(*nodes: Object) -> Cache:
    cache = Cache()
    for one in nodes:
        cache.set_node(one)
    return cache


def place(cache: Cache, one: Object) -> tuple[list[str], dict[str, list[str]]]:
    nodes = cache.nodes()
    fit, refused = filters.fitting(PodInfo.of(one), nodes, Neighbours(one, nodes))
    return [n.name for n in fit], refused


def best(cache: Cache, one: Object) -> str:
    nodes = cache.nodes()
    return scores.best(PodInfo.of(one), nodes, Neighbours(one, nodes)).name


def on(name: str, one: Object) -> Object:
    return {**one, "spec": {**one["spec"], "nodeName": name}}


def test_room_is_what_pods_leave_of_it() -> None:
    cache = cache_of(node("a", "2"), node("b", "1", pods="1"))
    cache.set_pod(on("a", pod("1500m")))
    cache.set_pod(on("b", pod("100m")))
    assert place(cache, pod("600m")) == ([], {"a": ["Insufficient cpu"], "b": ["Too many pods"]})
    assert place(cache, pod("500m"))[0] == ["a"]


def test_an_assumed_pod_counts_until_it_is_forgotten_and_a_finished_one_does_not() -> None:
    cache = cache_of(node("a", "1"))
    first = pod("1")
    cache.assume(PodInfo.of(first), "a")
    assert place(cache, pod("1"))[0] == []
    cache.forget(first["metadata"]["uid"])
    assert place(cache, pod("1"))[0] == ["a"]
    cache.assume(PodInfo.of(first), "a")
    cache.set_pod(on("a", first))
    cache.forget(first["metadata"]["uid"])
    assert place(cache, pod("1"))[0] == [], "what the API has confirmed is not forgotten"
    cache.set_pod({**on("a", first), "status": {"phase": "Succeeded"}})
    assert place(cache, pod("1"))[0] == ["a"]


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        ({"key": "zone", "operator": "In", "values": ["x"]}, ["a"]),
        ({"key": "zone", "operator": "NotIn", "values": ["x"]}, ["b"]),
        ({"key": "gpu", "operator": "Exists"}, ["b"]),
        ({"key": "gpu", "operator": "DoesNotExist"}, ["a"]),
        ({"key": "gpu", "operator": "Gt", "values": ["3"]}, ["b"]),
    ],
)
def test_required_node_affinity(requirement: Object, fits: list[str]) -> None:
    cache = cache_of(node("a", zone="x"), node("b", zone="y", gpu="4"))
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    assert place(cache, pod(affinity=affinity))[0] == fits


def test_a_node_by_its_name_field() -> None:
    fields = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": fields}}}
    assert place(cache_of(node("a"), node("b")), pod(affinity=affinity))[0] == ["b"]


def test_host_ports_collide_on_the_same_address_only() -> None:
    def with_port(address: str | None, protocol: str = "TCP") -> Object:
        port = {"hostPort": 80, "containerPort": 80, "protocol": protocol, **({"hostIP": address} if address else {})}
        return pod(containers=[{"ports": [port]}])

    cache = cache_of(node("a"))
    cache.set_pod(on("a", with_port("10.0.0.1")))
    assert place(cache, with_port("10.0.0.1"))[0] == []
    assert place(cache, with_port(None))[0] == []
    assert place(cache, with_port("10.0.0.2"))[0] == ["a"]
    assert place(cache, with_port("10.0.0.1", "UDP"))[0] == ["a"]


def affinity_to(kind: str, app: str, topology: str = "zone") -> Object:
    term = {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": topology}
    return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def test_pods_join_others_and_the_first_of_a_group_may_go_anywhere() -> None:
    cache = cache_of(node("a", zone="x"), node("b", zone="x"), node("c", zone="y"))
    assert len(place(cache, pod(labels={"app": "w"}, affinity=affinity_to("podAffinity", "w")))[0]) == 3
    assert place(cache, pod(affinity=affinity_to("podAffinity", "w")))[0] == []
    cache.set_pod(on("a", pod(labels={"app": "w"})))
    assert place(cache, pod(affinity=affinity_to("podAffinity", "w")))[0] == ["a", "b"]


def test_anti_affinity_counts_both_ways() -> None:
    cache = cache_of(node("a", zone="x"), node("b", zone="y"))
    cache.set_pod(on("a", pod(labels={"app": "w"}, affinity=affinity_to("podAntiAffinity", "v"))))
    assert place(cache, pod(affinity=affinity_to("podAntiAffinity", "w")))[0] == ["b"]
    assert place(cache, pod(labels={"app": "v"}))[0] == ["b"]


def test_topology_spread_keeps_the_skew() -> None:
    cache = cache_of(node("a", zone="x"), node("b", zone="y"), node("c"))
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    constraint["labelSelector"] = {"matchLabels": {"app": "w"}}
    one = pod(labels={"app": "w"}, topologySpreadConstraints=[constraint])
    assert place(cache, one)[0] == ["a", "b"]
    cache.set_pod(on("a", pod(labels={"app": "w"})))
    assert place(cache, one)[0] == ["b"]


def test_the_summary_counts_reasons() -> None:
    assert filters.summary(0, {}) == "no nodes available to schedule pods"
    refused = {"a": ["Insufficient cpu", "Too many pods"], "b": ["Insufficient cpu"]}
    assert filters.summary(2, refused) == "0/2 nodes are available: 1 Too many pods, 2 Insufficient cpu."


def test_the_emptier_node_is_better_and_siblings_spread() -> None:
    cache = cache_of(node("a"), node("b"))
    cache.set_pod(on("a", pod("1")))
    assert best(cache, pod("100m")) == "b"
    cache = cache_of(node("a"), node("b", "2"))
    cache.set_pod(on("a", pod("10m", owner="set")))
    cache.set_pod(on("b", pod("200m")))
    assert best(cache, pod("10m", owner="set")) == "b"


def test_preferences_count() -> None:
    cache = cache_of(node("a", disk="ssd"), node("b"))
    term = {"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}
    assert best(cache, pod(affinity=affinity)) == "a"
    soft = cache_of(node("a", taints=[{"key": "k", "effect": "PreferNoSchedule"}]), node("b"))
    assert best(soft, pod()) == "b"


def test_the_sums_are_right_after_any_order_of_events() -> None:
    cache = cache_of(node("a", "4"))
    pods = [on("a", pod("500m")) for _ in range(4)]
    for one in pods:
        cache.set_pod(one)
    cache.set_pod({**pods[0], "status": {"phase": "Failed"}})
    cache.remove_pod(pods[1]["metadata"]["uid"])
    cache.remove_node("a")
    assert cache.nodes() == []
    cache.set_node(node("a", "4"))
    assert cache.nodes()[0].requested["cpu"] == 1000

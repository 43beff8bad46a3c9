"""What a pod asks of a node."""

from typing import Any

from controlplane.scheduler import requests


def container(cpu: str, **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}, **more}


def test_containers_are_summed_and_init_containers_count_at_their_peak() -> None:
    spec = {"containers": [container("100m"), container("200m")], "initContainers": [container("1"), container("250m")]}
    assert requests.of_pod(spec) == {"cpu": 1000, "memory": 2 * 1024**2}


def test_init_containers_that_stay_add_to_those_after_them_and_to_the_containers() -> None:
    staying = container("100m", restartPolicy="Always")
    assert requests.of_pod({"containers": [container("200m")], "initContainers": [container("250m"), staying]})["cpu"] == 300
    assert requests.of_pod({"containers": [container("200m")], "initContainers": [staying, container("250m")]})["cpu"] == 350


def test_overhead_is_added_and_the_pods_own_resources_replace() -> None:
    spec = {"containers": [container("200m")], "overhead": {"cpu": "50m"}}
    assert requests.of_pod(spec)["cpu"] == 250
    assert requests.of_pod({**spec, "resources": {"requests": {"cpu": "1"}}})["cpu"] == 1050


def test_pods_that_ask_for_nothing_count_a_little_when_compared() -> None:
    assert requests.of_pod({"containers": [{}]}) == {}
    assert requests.of_pod({"containers": [{}]}, defaults=True) == {"cpu": 100, "memory": 200 * 1024**2}


def test_host_ports() -> None:
    ports = [
        {"hostPort": 80, "containerPort": 8080},
        {"hostPort": 53, "protocol": "UDP", "hostIP": "10.0.0.1"},
        {"containerPort": 1},
    ]
    assert requests.host_ports({"containers": [{"ports": ports}]}) == {("0.0.0.0", "TCP", 80), ("10.0.0.1", "UDP", 53)}

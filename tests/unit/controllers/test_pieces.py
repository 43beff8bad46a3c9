"""Small pieces of the controllers: templates, deletion order, conditions, expectations, ports, signatures, taints."""

import warnings
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import jwt
import orjson
import pytest

from controlplane import taints
from controlplane.controllers import conditions, endpoints, indexes, pods, templates
from controlplane.controllers.bootstraptokens import signature
from controlplane.controllers.expectations import Expectations

Object = dict[str, Any]


def test_templates_are_equal_but_for_nothing_and_the_hash() -> None:
    one = {
        "metadata": {"labels": {"a": "b"}, "creationTimestamp": None},
        "spec": {"containers": [{"name": "c", "resources": {}}]},
    }
    other = {"metadata": {"labels": {"a": "b", "pod-template-hash": "x"}}, "spec": {"containers": [{"name": "c"}]}}
    assert templates.equal(one, other)
    assert templates.template_hash(one) == templates.template_hash(other)
    assert templates.template_hash(one) != templates.template_hash(one, 1)
    assert not templates.equal(one, {**other, "spec": {"containers": [{"name": "d"}]}})


def pod(name: str, *, node: str = "n", phase: str = "Running", since: str | None = "2026-01-01T00:00:00Z", cost: str = "",
        restarts: int = 0, created: str = "2026-01-01T00:00:00Z") -> Object:  # fmt: skip
    listed = [{"type": "Ready", "status": "True", "lastTransitionTime": since}] if since else []
    return {
        "metadata": {"name": name, "creationTimestamp": created, "annotations": {pods.DELETION_COST: cost} if cost else {}},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": listed, "containerStatuses": [{"restartCount": restarts}]},
    }


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (pod("a", node=""), pod("b")),
        (pod("a", phase="Pending"), pod("b")),
        (pod("a", since=None), pod("b")),
        (pod("a", cost="-5"), pod("b")),
        (pod("a", node="full"), pod("b")),
        (pod("a", since="2026-02-01T00:00:00Z"), pod("b")),
        (pod("a", restarts=3), pod("b")),
        (pod("a", created="2026-02-01T00:00:00Z"), pod("b")),
    ],
)
def test_what_serves_least_is_deleted_first(first: Object, then: Object) -> None:
    ranked = sorted([then, first], key=lambda one: pods.deletion_rank(one, {"full": 2, "n": 1}))
    assert [one["metadata"]["name"] for one in ranked] == ["a", "b"]


def test_a_conditions_time_moves_with_its_status_only() -> None:
    old = [{"type": "A", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2020-01-01T00:00:00Z"}]
    same = conditions.with_condition(old, "A", "True", "S", "m")
    assert same[0]["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert same[0]["reason"] == "S"
    assert conditions.with_condition(old, "A", "False", "S", "m")[0]["lastTransitionTime"] != "2020-01-01T00:00:00Z"


def test_expectations_hold_until_all_was_seen() -> None:
    expectations = Expectations()
    assert expectations.satisfied("k")
    expectations.expect("k", creations=2)
    expectations.created("k")
    assert not expectations.satisfied("k")
    expectations.created("k")
    assert expectations.satisfied("k")
    expectations.expect("k", deletions=["u", "v"])
    expectations.deleted("k", "other")
    expectations.deleted("k", "u")
    assert not expectations.satisfied("k")
    expectations.deleted("k", "v")
    assert expectations.satisfied("k")


def test_named_ports_are_found_in_each_pod() -> None:
    service = {"spec": {"ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"port": 443, "name": "tls"}]}}
    container = {"ports": [{"name": "web", "containerPort": 8080, "protocol": "UDP"}, {"name": "web", "containerPort": 8081}]}
    found = endpoints.ports_in(service, {"spec": {"containers": [container]}})
    assert found == (("http", "TCP", 8081, None), ("tls", "TCP", 443, None))
    assert endpoints.ports_in(service, {"spec": {"containers": [{}]}}) == (("tls", "TCP", 443, None),)


def service_pod(**status: Any) -> Object:
    ready = {"type": "Ready", "status": "True"}
    metadata = {"name": "p", "namespace": "n", "uid": "u"}
    return {"metadata": metadata, "spec": {"containers": []}, "status": {"podIP": "10.0.0.1", "conditions": [ready], **status}}


def test_endpoints_say_whether_they_are_ready_serving_and_terminating() -> None:
    service: Object = {"metadata": {"name": "s"}, "spec": {"ports": []}}

    def of(one: Object, **spec: Any) -> tuple[bool, bool, bool]:
        found = endpoints.of_service({**service, "spec": {**service["spec"], **spec}}, [one])[()][0]
        return found.ready, found.serving, found.terminating

    going = service_pod()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert of(service_pod()) == (True, True, False)
    assert of(going) == (False, True, True)
    assert of(service_pod(conditions=[])) == (False, False, False)
    assert of(service_pod(conditions=[]), publishNotReadyAddresses=True) == (True, False, False)
    assert endpoints.of_service(service, [service_pod(phase="Failed"), service_pod(podIP="")]) == {}


def test_the_signature_of_cluster_info_is_a_detached_jws() -> None:
    header, middle, digest = signature("the content", "abcdef", "0123456789abcdef").split(".")
    assert middle == ""
    assert orjson.loads(urlsafe_b64decode(header + "==")) == {"alg": "HS256", "kid": "abcdef"}
    content = urlsafe_b64encode(b"the content").rstrip(b"=").decode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a token's secret is shorter than RFC 7518 would have it: the format's own choice
        assert jwt.api_jws.decode(f"{header}.{content}.{digest}", "0123456789abcdef", algorithms=["HS256"]) == b"the content"


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "value": "other"}, False),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoSchedule"}, False),
        ({"value": "v"}, False),
    ],
)
def test_tolerations(toleration: Object, expected: bool) -> None:
    assert taints.tolerates(toleration, {"key": "k", "value": "v", "effect": "NoExecute"}) is expected


@pytest.mark.parametrize("text", ["", "0", "0-2", "1,2", "0,2-4,7,8", "5-9"])
def test_completion_indexes_are_written_as_they_were_read(text: str) -> None:
    assert indexes.render(indexes.parse(text)) == text

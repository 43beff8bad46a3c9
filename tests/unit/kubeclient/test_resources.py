"""Resources' URLs, and what errors say about themselves."""

import pytest

from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import DEPLOYMENTS, NODES, PODS


def test_paths() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path("n", "p", "binding") == "/api/v1/namespaces/n/pods/p/binding"
    assert DEPLOYMENTS.path("n") == "/apis/apps/v1/namespaces/n/deployments"
    assert NODES.path(None, "a/b") == "/api/v1/nodes/a%2Fb"
    with pytest.raises(ValueError, match="namespace"):
        PODS.path(None, "p")


def test_kinds_are_filled_in() -> None:
    assert DEPLOYMENTS.typed({"metadata": {}})["apiVersion"] == "apps/v1"
    assert PODS.typed({"apiVersion": "v1", "kind": "Binding"})["kind"] == "Binding"


def test_errors_know_their_kind() -> None:
    status = {"code": 409, "reason": "AlreadyExists", "message": "m"}
    assert ApiError.from_status(status).is_already_exists
    assert not ApiError.from_status(status).is_conflict
    assert ApiError.from_status({"code": 410, "reason": "Expired"}).is_gone
    terminating = {"code": 403, "reason": "Forbidden", "details": {"causes": [{"reason": "NamespaceTerminating"}]}}
    assert ApiError.from_status(terminating).is_namespace_terminating

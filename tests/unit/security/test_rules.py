"""What rules of roles allow, and which rules cover which."""

from typing import Any

import pytest

from controlplane.apiserver.auth.policy import paths, rule
from controlplane.apiserver.auth.rbac import allows, covers
from controlplane.apiserver.request import Attributes, UserInfo

USER = UserInfo("u")


@pytest.mark.parametrize(
    ("granted", "asked", "expected"),
    [
        (rule("get", "core", "pods"), ("get", "", "pods", "", "a"), True),
        (rule("get", "core", "pods"), ("list", "", "pods", "", ""), False),
        (rule("get", "core", "pods"), ("get", "apps", "pods", "", "a"), False),
        (rule("get", "core", "pods"), ("get", "", "pods", "log", "a"), False),
        (rule("get", "core", "pods/log"), ("get", "", "pods", "log", "a"), True),
        (rule("get", "core", "*/log"), ("get", "", "pods", "log", "a"), True),
        (rule("get", "core", "*"), ("get", "", "pods", "log", "a"), True),
        (rule("*", "*", "*"), ("escalate", "rbac.authorization.k8s.io", "roles", "", "a"), True),
        (rule("get", "core", "pods", names="a"), ("get", "", "pods", "", "a"), True),
        (rule("get list", "core", "pods", names="a"), ("list", "", "pods", "", ""), False),
    ],
)
def test_resources(granted: dict[str, Any], asked: tuple[str, str, str, str, str], expected: bool) -> None:
    verb, group, resource, subresource, name = asked
    assert allows(granted, Attributes(USER, verb, group, "v1", resource, subresource, "ns", name)) is expected


@pytest.mark.parametrize(
    ("granted", "path", "expected"),
    [
        ("/healthz", "/healthz", True),
        ("/healthz", "/healthz/ping", False),
        ("/api/*", "/api/v1", True),
        ("/api/*", "/apis", False),
        ("*", "/metrics", True),
    ],
)
def test_paths(granted: str, path: str, expected: bool) -> None:
    assert allows(paths("get", granted), Attributes(USER, "get", path=path)) is expected
    assert not allows(paths("get", granted), Attributes(USER, "post", path=path))
    assert not allows(rule("*", "*", "*"), Attributes(USER, "get", path=path)), "resources are no paths"


@pytest.mark.parametrize(
    ("owned", "wanted", "expected"),
    [
        ([rule("get list", "core", "pods services")], rule("get", "core", "pods services"), True),
        ([rule("get", "core", "pods"), rule("list", "core", "pods")], rule("get list", "core", "pods"), True),
        ([rule("get", "core", "pods")], rule("*", "core", "pods"), False),
        ([rule("get", "core", "pods")], rule("get", "core", "*"), False),
        ([rule("get", "core", "pods")], rule("get", "*", "pods"), False),
        ([rule("get", "core", "pods", names="a")], rule("get", "core", "pods"), False),
        ([rule("get", "core", "pods")], rule("get", "core", "pods", names="a b"), True),
        ([rule("get", "core", "pods", names="a")], rule("get", "core", "pods", names="a b"), False),
        ([rule("get", "core", "*")], rule("get", "core", "pods/log"), True),
        ([rule("*", "*", "*")], paths("get", "/metrics"), False),
        ([paths("*", "*")], paths("get", "/metrics /healthz/*"), True),
        ([paths("get", "/healthz")], paths("get", "/healthz/*"), False),
    ],
)
def test_covering(owned: list[dict[str, Any]], wanted: dict[str, Any], expected: bool) -> None:
    assert covers(owned, wanted, "ns", USER) is expected

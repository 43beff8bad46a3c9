"""Image names mean what docker and containerd take them for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from highrt.images.errors import InvalidReference
from highrt.images.reference import parse, parse_id

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/user/app", "docker.io/user/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("127.0.0.1:5000/hello", "127.0.0.1:5000/hello:latest"),
        ("[::1]:5000/a/b__c:v1", "[::1]:5000/a/b__c:v1"),
        ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        (f"quay.io/a/b@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        (f"quay.io/a/b:tag@{DIGEST}", f"quay.io/a/b:tag@{DIGEST}"),
        ("HOST/app", "HOST/app:latest"),
    ],
)
def test_a_short_name_stands_for_a_whole_one(text: str, whole: str) -> None:
    assert str(parse(text)) == whole


def test_a_digest_decides_over_a_tag() -> None:
    reference = parse(f"quay.io/a/b:tag@{DIGEST}")
    assert reference.target == DIGEST
    assert reference.stored == f"quay.io/a/b@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a repository name"),
        ("UPPER", "lower case"),
        ("a//b", "not a repository name"),
        ("../etc", "not a repository name|not a registry"),
        ("a:", "not a tag"),
        ("a:b:c/d", "not a repository name|not a registry|not a tag"),
        ("a@sha256:123", "not a digest"),
        ("a@", "not a digest"),
        ("a b", "not a repository name"),
        ("a" * 300, "longer than"),
        ("x.io:99x/a", "not a registry"),
    ],
)
def test_a_bad_name_is_refused_with_its_part(text: str, reason: str) -> None:
    with pytest.raises(InvalidReference, match=reason):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except InvalidReference:
        return
    assert parse(str(found)) == found


def test_an_id_may_be_short() -> None:
    assert parse_id("sha256:abc123") == "abc123"
    assert parse_id("abc123") == "abc123"
    assert parse_id("busybox") is None

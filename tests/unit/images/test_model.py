"""Platforms of an index, and configurations that break the specification."""

from typing import Any

import pytest

from highrt.images.errors import DigestMismatch, InvalidImage
from highrt.images.manifests import checked_manifest
from highrt.images.model import OCI_INDEX, OCI_MANIFEST, Descriptor, ImageConfig, Platform
from highrt.images.service import best_match
from highrt.images.snapshots import chain_ids

ID = "sha256:" + "0" * 64


def offer(number: int, **platform: str) -> Descriptor:
    return Descriptor(OCI_MANIFEST, f"sha256:{number:064x}", 1, platform or None)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("linux/amd64", 1),
        ("linux/arm64", 2),
        ("linux/arm/v7", 4),
        ("linux/arm/v6", 3),
        ("linux/arm/v5", None),
        ("linux/s390x", None),
    ],
)
def test_the_best_platform_of_an_index_is_chosen(wanted: str, chosen: int | None) -> None:
    offered = [
        offer(9, os="windows", architecture="amd64"),
        offer(8, os="linux", architecture="amd64", variant="v3"),
        offer(1, os="linux", architecture="amd64"),
        offer(2, os="linux", architecture="arm64", variant="v8"),
        offer(3, os="linux", architecture="arm", variant="v6"),
        offer(4, os="linux", architecture="arm", variant="v7"),
        offer(5, os="unknown", architecture="unknown"),
    ]
    best = best_match(offered, Platform.parse(wanted))
    assert (best and int(best.digest[-2:], 16)) == chosen


def test_an_older_variant_is_taken_where_the_own_is_missing() -> None:
    best = best_match([offer(1, os="linux", architecture="arm", variant="v6")], Platform.parse("linux/arm/v7"))
    assert best is not None


def test_an_entry_without_a_platform_is_the_last_choice() -> None:
    only = offer(1)
    assert best_match([only], Platform.host()) == only
    better = offer(2, os="linux", architecture=Platform.host().architecture)
    assert best_match([only, better], Platform.host()) == better


@pytest.mark.parametrize("text", ["linux", "linux/", "a/b/c/d"])
def test_a_bad_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidImage, match="OS/ARCHITECTURE"):
        Platform.parse(text)


@pytest.mark.parametrize(
    "config",
    ["text", {"Env": "A=b"}, {"Cmd": [1]}, {"User": 5}, {"Labels": {"a": 1}}, {"Volumes": ["/v"]}],
)
def test_a_configuration_of_other_types_is_refused(config: Any) -> None:
    with pytest.raises(InvalidImage, match="config"):
        ImageConfig.from_json(config, "image x")


def test_nulls_in_a_configuration_are_absent_values() -> None:
    assert ImageConfig.from_json({"Env": None, "Cmd": None, "Labels": None, "User": ""}, "x") == ImageConfig()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"digest": "sha256:../../etc", "size": 1},
        {"digest": "md5:" + "0" * 32, "size": 1},
        {"digest": "sha256:" + "0" * 64},
    ],
)
def test_a_bad_descriptor_is_refused(value: Any) -> None:
    with pytest.raises(InvalidImage):
        Descriptor.from_json(value, "x")


def test_a_manifest_is_known_by_what_it_says_and_what_it_has() -> None:
    assert checked_manifest(b'{"manifests": []}', "text/plain", None, "x").descriptor.media_type == OCI_INDEX
    with pytest.raises(InvalidImage, match="schema 1"):
        checked_manifest(b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+prettyjws", None, "x")
    with pytest.raises(DigestMismatch):
        checked_manifest(b"{}", OCI_MANIFEST, "sha256:" + "0" * 64, "x")
    with pytest.raises(InvalidImage, match="not JSON"):
        checked_manifest(b"<html>", OCI_MANIFEST, None, "x")


def test_chain_ids_are_those_of_the_specification() -> None:
    # the sum is from coreutils: printf 'sha256:aaa… sha256:bbb…' | sha256sum
    first, second = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert chain_ids([]) == []
    assert chain_ids([first, second]) == [first, "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"]

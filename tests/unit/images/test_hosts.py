"""containerd's hosts.toml, and the challenges of registries."""

from pathlib import Path

import pytest

from highrt.images.auth import Challenge, challenges
from highrt.images.errors import InvalidConfiguration
from highrt.images.hosts import hosts_for, is_loopback


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "hosts.toml").write_text(text)
    return folder


def test_without_configuration_a_registry_is_asked_itself(tmp_path: Path) -> None:
    (host,) = hosts_for("docker.io", None)
    assert host.url == "https://registry-1.docker.io/v2"
    assert not host.try_http
    (host,) = hosts_for("127.0.0.1:5000", tmp_path)
    assert host.url == "https://127.0.0.1:5000/v2"
    assert host.try_http


def test_mirrors_come_first_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        "docker.io",
        """
        server = "https://registry-1.docker.io"
        [host."https://mirror.example/proxy"]
          capabilities = ["pull", "resolve"]
          ca = "ca.pem"
          [host."https://mirror.example/proxy".header]
            X-Key = ["a", "b"]
        [host."http://10.0.0.1:5000/raw/v2"]
          override_path = true
          skip_verify = true
        """,
    )
    first, second, own = hosts_for("docker.io", tmp_path)
    assert first.url == "https://mirror.example/proxy/v2"
    assert first.capabilities == {"pull", "resolve"}
    assert first.ca == (str(tmp_path / "docker.io/ca.pem"),)
    assert first.header == {"X-Key": "a, b"}
    assert not first.own
    assert (second.url, second.skip_verify) == ("http://10.0.0.1:5000/raw/v2", True)
    assert own.own


def test_a_folder_may_have_the_port_or_be_the_default(tmp_path: Path) -> None:
    write(tmp_path, "reg.example:5000", 'server = "http://a.example"')
    write(tmp_path, "_default", '[host."https://cache.example"]')
    assert hosts_for("reg.example:5000", tmp_path)[0].url == "http://a.example/v2"
    cache, own = hosts_for("other.example", tmp_path)
    assert cache.url == "https://cache.example/v2"
    assert own.url == "https://other.example/v2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("server = ", "Invalid value"),
        ("server = 5", "must be a URL"),
        ('[host."ftp://x"]', "not an http or https URL"),
        ('[host."https://x"]\ncapabilities = ["fly"]', "pull, resolve, push"),
        ('[host."https://x"]\nskip_verfy = true', "unknown keys skip_verfy"),
        ("host = 5", "tables"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    write(tmp_path, "x.example", text)
    with pytest.raises(InvalidConfiguration, match=rf"hosts\.toml.*{reason}"):
        hosts_for("x.example", tmp_path)


@pytest.mark.parametrize(
    ("registry", "loopback"),
    [("localhost:5000", True), ("127.8.9.1", True), ("[::1]:80", True), ("10.0.0.1", False), ("localhost.example", False)],
)
def test_loopback_is_this_machine_only(registry: str, loopback: bool) -> None:
    assert is_loopback(registry) is loopback


def test_challenges_are_told_apart() -> None:
    header = 'Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push", Basic realm="x"'
    assert challenges(header) == [
        Challenge("bearer", {"realm": "https://auth.example/token", "service": "reg", "scope": "repository:a/b:pull,push"}),
        Challenge("basic", {"realm": "x"}),
    ]
    assert challenges("Negotiate abc") == []

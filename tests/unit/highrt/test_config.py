"""The daemon's configuration file."""

from pathlib import Path

import pytest

from highrt.config import Config, InvalidConfig, load


def _load(tmp_path: Path, text: str) -> Config:
    (tmp_path / "config").write_text(text)
    return load(tmp_path, tmp_path, tmp_path / "config")


def test_what_the_file_says_takes_the_place_of_what_is_built_in(tmp_path: Path) -> None:
    plain = load(tmp_path, tmp_path, None)
    assert (plain.default_handler, plain.cgroup_driver) == ("lowrt", "cgroupfs")
    assert "bridge" in plain.cni_entries
    text = "{cgroup_driver: systemd, default_handler: other, handlers: {other: {path: /bin/other}}, cni: {bridge: ''}}"
    found = _load(tmp_path, text)
    assert (found.default_handler, found.cgroup_driver) == ("other", "systemd")
    assert found.handlers["other"].path == "/bin/other"
    assert not found.handlers["other"].sandbox
    assert "bridge" not in found.cni_entries


@pytest.mark.parametrize("handler", ["runsc: {args: [--network=host]}", "g: {path: /opt/runsc}", "g: {sandbox: true}"])
def test_gvisor_puts_pods_into_sandboxes(tmp_path: Path, handler: str) -> None:
    found = _load(tmp_path, f"handlers: {{{handler}}}").handlers[handler.partition(":")[0]]
    assert found.sandbox


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cgroup_driver: docker", "cgroup_driver 'docker': must be cgroupfs or systemd"),
        (
            "surprise: 1",
            "surprise: not known; there are cgroup_driver, cni, cni_template, default_handler, handlers, policy, ",
        ),
        ("default_handler: nosuch", "default_handler 'nosuch' is none of"),
        ("streaming: {address: 0.0.0.0}", "can be reached from outside: give cert and key"),
        ("policy: /nosuch", "policy /nosuch: there is no such file"),
        ("streaming: {address: localhost}", "must be an IP address"),
        ("streaming: {cert: /c}", "cert and key belong together"),
        ("handlers: {g: {sandbox: 1}}", "handler g: sandbox must be true or false"),
        ("handlers: {g: {box: 1}}", "handler g: box: not known; there are path, entry, args, root, sandbox"),
        ("streaming: {port: many}", "streaming: port must be a number"),
        ("[", "--config"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        _load(tmp_path, text)
    assert why in str(refused.value)

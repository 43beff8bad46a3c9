"""What the commands make of their arguments, and how they print."""

import os
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from highrt.cli import endpoints, formats, run
from highrt.cli.containers import signal_number
from highrt.cli.credentials import credentials
from highrt.cli.main import main
from highrt.cli.options import time_ns
from highrt.cli.terminal import DetachKeys
from strata.protocols import highrt_pb2 as api


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("100", 100), ("512m", 512 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("10kb", 10240)]
)
def test_sizes(text: str, count: int) -> None:
    assert run.memory_bytes(text) == count


def test_volumes_and_mounts() -> None:
    found = run.volume("/a:/b:ro,rslave")
    assert (found.source, found.target, found.read_only, found.propagation) == ("/a", "/b", True, "rslave")
    assert run.volume("./here:/b").source == f"{os.getcwd()}/here"
    assert run.volume("named:/b").source == "named"
    long = run.mount("type=bind,src=/a,dst=/b,readonly")
    assert (long.source, long.target, long.read_only) == ("/a", "/b", True)


def test_networks_of_a_container() -> None:
    asked = {"network": ("name=front,alias=a,ip=10.0.0.9", "back"), "network_alias": ("b",), "ip": "", "ip6": "fd00::9"}
    front, back = endpoints.endpoints(asked)
    assert (front.network, [*front.aliases], front.ip, front.ip6) == ("front", ["a", "b"], "10.0.0.9", "fd00::9")
    assert back == api.Endpoint(network="back")
    assert endpoints.endpoints({"network": (), "network_alias": (), "ip": "", "ip6": ""}) == []


def test_ports() -> None:
    found = run.port("127.0.0.1:8080:80/udp")
    assert (found.host_ip, found.host_port, found.container_port, found.protocol) == ("127.0.0.1", 8080, 80, "udp")
    assert run.port("[::1]:8080:80").host_ip == "::1"
    assert run.port("8080:80").protocol == "tcp"


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (run.memory_bytes, "12x"),
        (run.volume, "/only"),
        (run.volume, "/a:/b:what"),
        (run.mount, "type=tmpfs,target=/x"),
        (run.mount, "type=bind,target=/x"),
        (run.mount, "colour=red"),
        (endpoints.endpoint, "alias=only"),
        (endpoints.endpoint, "name=front,colour=red"),
        (run.port, "80"),
        (run.port, "80:99999"),
        (run.port, "80:80/icmp"),
        (signal_number, "NOPE"),
        (signal_number, "99"),
        (lambda text: time_ns(text, "--since"), "yesterday"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_own_words(parse: object, text: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        parse(text)  # type: ignore[operator]
    assert text in refused.value.message


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "yes")
    monkeypatch.delenv("NOT_HERE", raising=False)
    (tmp_path / "env").write_text("# no\n\nA=1=2\n")
    assert run.environment(("B=x", "FROM_HERE", "NOT_HERE"), (str(tmp_path / "env"),)) == ["A=1=2", "B=x", "FROM_HERE=yes"]


def test_times() -> None:
    assert time_ns("", "--since") == 0
    assert time_ns("2026-01-31T12:00:00Z", "--since") == 1769860800_000_000_000
    assert time_ns("2026-01-31T12:00:00.123456789Z", "--since") == 1769860800_123_456_789
    assert time_ns("1769860800.123456789", "--since") == 1769860800_123_456_789
    assert time_ns("1769860800", "--since") == 1769860800_000_000_000
    assert abs(time_ns("1h30m", "--since") - (time.time_ns() - 5400 * 10**9)) < 10**9


def test_signals() -> None:
    assert [signal_number(text) for text in ("TERM", "sigterm", "15")] == [15, 15, 15]


def test_templates() -> None:
    value = {"State": {"Pid": 7, "Up": True}, "Names": ["a", "b"], "Env": {"K": "v"}}
    assert formats.render("{{.State.Pid}}:{{ .State.Up }}", value) == "7:true"
    assert formats.render("{{json .State}}\\t{{.Names}} {{.Env}}", value) == '{"Pid": 7, "Up": true}\t[a b] map[K:v]'
    assert formats.render("{{.Names.1}}", value) == "b"
    networks = {"Networks": {"one": {"IP": "10.0.0.1"}, "two": {"IP": "10.0.0.2"}}, "Names": ["{{.x}}"]}
    assert (
        formats.render("{{range .Networks}}{{.IP}} {{end}}|{{range .Names}}{{.}}{{end}}", networks) == "10.0.0.1 10.0.0.2 |{{.x}}"
    )
    with pytest.raises(click.UsageError, match=r"no \.State\.Nope"):
        formats.render("{{.State.Nope}}", value)
    with pytest.raises(click.UsageError, match=r"only \.Field"):
        formats.render("{{range .Names}}", value)


def test_rows_by_template(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"ID": "1", "Names": "web"}, {"ID": "22", "Names": "db"}]

    def printed(template: str, rows: list[dict[str, str]]) -> list[str]:
        formats.print_rows(template, rows, ["ID", "Names"], {"ID": "CONTAINER ID"})
        return capsys.readouterr().out.splitlines()

    assert printed("", rows) == printed("table", rows) == ["CONTAINER ID   NAMES", "1              web", "22             db"]
    assert printed("table {{.Names}}\\t{{.ID}}", rows) == ["NAMES   CONTAINER ID", "web     1", "db      22"]
    assert printed("table {{.Names}}\\t{{.State}}", []) == ["NAMES   STATE"]
    assert printed("{{.Names}}: {{.ID}}", rows) == ["web: 1", "db: 22"]
    assert printed("json", rows[:1]) == ['{"ID": "1", "Names": "web"}']
    assert printed("{{.Names}}", []) == []


def test_columns_and_sizes() -> None:
    assert formats.table(["A", "LONGER"], [["xyz", "1"]]) == "A     LONGER\nxyz   1"
    assert [formats.size(count) for count in (0, 999, 1_100_000, 31_000_000_000)] == ["0B", "999B", "1.1MB", "31GB"]


def test_detach_keys_are_found_across_reads_and_a_lone_one_is_passed_on() -> None:
    keys = DetachKeys()
    assert keys.feed(b"abc\x10") == (b"abc", False)
    assert keys.feed(b"x") == (b"\x10x", False)
    assert keys.feed(b"\x10") == (b"", False)
    assert keys.feed(b"\x11rest") == (b"", True)


def test_credentials_come_from_dockers_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text('{"auths": {"registry.test:5000": {"auth": "YW5uOnNlY3JldDp4"}}}')
    found = credentials("registry.test:5000/a:1", "")
    assert (found.username, found.password) == ("ann", "secret:x")
    assert not credentials("other.test/a:1", "").username
    assert credentials("other.test/a", "me:pw").password == "pw"


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for command in (
        "serve",
        "run",
        "ps",
        "exec",
        "logs",
        "attach",
        "stop",
        "kill",
        "rm",
        "pull",
        "push",
        "images",
        "rmi",
        "build",
    ):
        assert f"\n  {command} " in result.output
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_no_daemon_at_another_address_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--address", f"unix://{tmp_path}/none.sock", "ps"])
    assert result.exit_code == 1
    assert "no daemon answers" in result.output


def test_an_image_may_be_as_old_as_1970_or_have_no_age() -> None:
    assert formats.image_age("1970-01-01T00:00:00Z").endswith(" days ago")
    assert formats.image_age("") == "N/A"

"""host-local: ranges, the order of addresses, and the store."""

import ipaddress
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.cni.errors import CniError
from nodenet.cni.leases import Leases
from nodenet.cni.main import run
from nodenet.cni.ranges import Range, candidates


def call(command: str, container: str, folder: Path, netns: str = "/ns", **ipam: Any) -> Any:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "host-local", "ipam": {"dataDir": str(folder), **ipam}}
    environ = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
    status, output = run(environ, json.dumps(config).encode())
    body = json.loads(output or b"{}")
    return (body["code"], body["msg"]) if status else body


def address(result: Any) -> str:
    return str(result["ips"][0]["address"])


def test_addresses_go_round_so_that_a_freed_one_rests(tmp_path: Path) -> None:
    given_out = [address(call("ADD", f"c{i}", tmp_path, subnet="10.1.0.0/29")) for i in range(3)]
    assert given_out == ["10.1.0.2/29", "10.1.0.3/29", "10.1.0.4/29"]
    call("DEL", "c0", tmp_path)
    assert address(call("ADD", "d", tmp_path, subnet="10.1.0.0/29")) == "10.1.0.5/29"
    assert address(call("ADD", "e", tmp_path, subnet="10.1.0.0/29")) == "10.1.0.6/29"
    assert address(call("ADD", "f", tmp_path, subnet="10.1.0.0/29")) == "10.1.0.2/29"
    assert call("ADD", "g", tmp_path, subnet="10.1.0.0/29") == (
        101, "failed to allocate for range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.6",
    )  # fmt: skip


def test_the_layout_is_the_reference_s(tmp_path: Path) -> None:
    call("ADD", "c", tmp_path, subnet="10.1.0.0/24")
    assert (tmp_path / "net" / "10.1.0.2").read_bytes() == b"c\r\neth0"
    assert (tmp_path / "net" / "last_reserved_ip.0").read_text() == "10.1.0.2"
    assert (tmp_path / "net" / "lock").exists()


def test_two_families_get_an_address_each_and_all_or_none(tmp_path: Path) -> None:
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64", "rangeStart": "fd00::5", "rangeEnd": "fd00::5"}]]
    assert [item["address"] for item in call("ADD", "a", tmp_path, ranges=ranges)["ips"]] == ["10.1.0.2/24", "fd00::5/64"]
    assert call("ADD", "b", tmp_path, ranges=ranges)[0] == 101
    assert not (tmp_path / "net" / "10.1.0.3").exists()


def test_a_second_add_is_refused_and_a_second_del_is_not(tmp_path: Path) -> None:
    call("ADD", "a", tmp_path, subnet="10.1.0.0/24")
    assert call("ADD", "a", tmp_path, subnet="10.1.0.0/24")[0] == 7
    assert call("DEL", "a", tmp_path) == {}
    assert call("DEL", "a", tmp_path) == {}


@pytest.mark.parametrize(
    "ipam",
    [
        {}, {"subnet": "fd00::%x; flush ruleset/64"},
        {"subnet": "10.1.0.0/31"}, {"subnet": "nonsense"}, {"subnet": 5}, {"ranges": []}, {"ranges": [[]]}, {"ranges": "x"},
        {"ranges": [["x"]]}, {"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}, {"subnet": "10.1.0.0/24", "rangeStart": "x"},
        {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.3"},
        {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]},
        {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]},
        {"subnet": "10.1.0.0/24", "routes": [{"dst": "x"}]}, {"subnet": "10.1.0.0/24", "routes": "x"},
    ],
)  # fmt: skip
def test_a_bad_configuration_is_refused_and_leaves_no_lease(tmp_path: Path, ipam: dict[str, Any]) -> None:
    code, message = call("ADD", "a", tmp_path, **ipam)
    assert code == 7, message
    assert not [path for path in tmp_path.glob("net/*") if path.name[0].isdigit()]


def test_what_a_killed_process_left_is_no_lease(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / ".pending").write_text("half")
    (tmp_path / "net" / "last_reserved_ip.0").write_text("10.1.")
    assert address(call("ADD", "a", tmp_path, subnet="10.1.0.0/24")) == "10.1.0.2/24"


def _take(folder: Path, name: str, count: int) -> list[str]:
    return [address(call("ADD", f"{name}{i}", folder, subnet="10.1.0.0/24")) for i in range(count)]


def test_processes_side_by_side_never_get_the_same_address(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.starmap(_take, [(tmp_path, name, 25) for name in "abc"])
    assert len({item for result in results for item in result}) == 75


@given(st.integers(0, 40), st.integers(2, 30), st.integers(2, 30))
def test_candidates_are_every_address_but_the_gateway_once(last: int, first_size: int, second_size: int) -> None:
    ranges = [
        Range.parse({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.1", "rangeEnd": f"10.1.0.{first_size}"}),
        Range.parse({"subnet": "10.1.1.0/24", "rangeStart": "10.1.1.1", "rangeEnd": f"10.1.1.{second_size}"}),
    ]
    found = [str(item) for item, _ in candidates(ranges, ipaddress.ip_address(f"10.1.0.{last}"))]
    wanted = {f"10.1.0.{i}" for i in range(2, first_size + 1)} | {f"10.1.1.{i}" for i in range(2, second_size + 1)}
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_requested_addresses_are_given_or_refused(tmp_path: Path) -> None:
    with Leases(tmp_path, "net") as leases:
        assert leases.reserve(ipaddress.ip_address("10.1.0.9"), "other", "eth0")
    config = {
        "cniVersion": "1.1.0", "name": "net", "type": "host-local", "runtimeConfig": {"ips": ["10.1.0.20/24"]},
        "ipam": {"dataDir": str(tmp_path), "subnet": "10.1.0.0/24"},
    }  # fmt: skip
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_NETNS": "/ns"}
    status, output = run(environ, json.dumps(config).encode())
    assert (status, address(json.loads(output))) == (0, "10.1.0.20/24")
    for wanted in ("10.1.0.9", "10.1.0.1", "10.9.9.9"):
        environ["CNI_CONTAINERID"], environ["CNI_ARGS"] = "d", f"IP={wanted};K8S_POD_NAME=x"
        config["runtimeConfig"] = {}
        status, output = run(environ, json.dumps(config).encode())
        assert status == 1, output
        assert wanted in json.loads(output)["msg"]


def test_an_invalid_subnet_says_so() -> None:
    with pytest.raises(CniError, match="no subnet in CIDR form"):
        Range.parse({"subnet": "10.1.0.0/33"})

"""What a systemd cgroup is made of: names, properties, and the D-Bus messages that carry them, read back by another codec."""

import json
from typing import Any

import jeepney
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.linux.cgroups import dbus, gvariant, properties, systemd

INFINITY = 2**64 - 1
DENY_ALL = {"allow": False, "access": "rwm"}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("system.slice", "/system.slice"),
        ("-.slice", "/"),
        ("test-a-b.slice", "/test.slice/test-a.slice/test-a-b.slice"),
        ("user-1000.slice", "/user.slice/user-1000.slice"),
    ],
)
def test_slices_nest_by_their_dashes(name: str, path: str) -> None:
    assert systemd.expand_slice(name) == path


@pytest.mark.parametrize("name", ["", ".slice", "no", "a/b.slice", "a--b.slice", "-a.slice", "a-.slice", "slice", "x.scope", "-"])
def test_what_is_no_slice_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="invalid slice name"):
        systemd.expand_slice(name)


# --- messages


ARGUMENTS = (
    "ssa(sv)a(sa(sv))ayaubxd",
    ("unit.scope", "replace", [("Delegate", ("b", True)), ("PIDs", ("au", [1, 2])), ("AllowedCPUs", ("ay", b"\x03\x01")),
                               ("DeviceAllow", ("a(ss)", [("/dev/char/1:3", "rwm")])), ("MemoryMax", ("t", INFINITY))],
     [("aux", [("X", ("s", "é"))])], b"", [7], False, -(2**63), 1.5),
)  # fmt: skip


def test_another_codec_reads_what_is_written() -> None:
    signature, arguments = ARGUMENTS
    fields = [(1, ("o", "/path")), (2, ("s", "inter.face")), (3, ("s", "Member")), (6, ("s", "to.it")), (8, ("g", signature))]
    parser = jeepney.Parser()
    parser.add_data(dbus.encode(1, 77, fields, signature, arguments))
    message = parser.get_next_message()
    assert message is not None
    assert message.header.serial == 77
    assert message.header.message_type is jeepney.MessageType.method_call
    assert {int(name): value for name, value in message.header.fields.items()} == {
        1: "/path", 2: "inter.face", 3: "Member", 6: "to.it", 8: signature,
    }  # fmt: skip
    assert message.body == arguments


@pytest.mark.parametrize("endianness", jeepney.Endianness)
def test_what_another_codec_writes_is_read(endianness: jeepney.Endianness) -> None:
    signature, arguments = ARGUMENTS
    address = jeepney.DBusAddress("/path", "to.it", "inter.face")
    message = jeepney.new_method_call(address, "Member", signature, arguments)
    message.header.endianness = endianness
    data = message.serialise(serial=9)
    assert dbus.message_size(data + b"more") == len(data)
    found = dbus.decode(data)
    assert (found.kind, found.fields[1], found.fields[3]) == (1, "/path", "Member")
    assert [bytes(value) if value == [] else value for value in found.arguments[4:5]] == [b""]
    bits = found.arguments[2][2]
    assert bits == ("AllowedCPUs", ("ay", [3, 1]))
    assert found.arguments[0:2] + found.arguments[5:] == [*arguments[0:2], *arguments[5:]]


@given(st.binary(max_size=200))
def test_nonsense_is_no_message(data: bytes) -> None:
    """It is an error, nothing else, and it asks for no memory that is not there."""
    for whole in (data, dbus.encode(4, 1, [(1, ("o", "/x")), (8, ("g", "a(sv)u"))], "", ()) + data):
        if len(whole) >= 16:
            try:
                if dbus.message_size(whole) <= len(whole):
                    dbus.decode(whole)
            except OSError:
                continue


def test_signatures_are_split() -> None:
    assert dbus.split("ssa(sv)a(sa(sv))a{sv}aau") == ["s", "s", "a(sv)", "a(sa(sv))", "a{sv}", "aau"]
    for bad in ("a", "(s", "z", "a{s"):
        with pytest.raises(ValueError, match="signature"):
            dbus.split(bad)


# --- GVariant's text


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("true", ("b", True)), ("5", ("i", 5)), ("-0x10", ("i", -16)), ("017", ("i", 15)), ("1.5", ("d", 1.5)),
        ("1e3", ("d", 1000.0)), ("[1, uint32 2]", ("au", [1, 2])),
        ("uint64 123456789", ("t", 123456789)), ("byte 255", ("y", 255)), ("int64 -5", ("x", -5)), ("double 3", ("d", 3.0)),
        ("'inactive-or-failed'", ("s", "inactive-or-failed")), (r'"a\"b\n\u00e9"', ("s", 'a"b\né')),
        ("objectpath '/a'", ("o", "/a")), ("['a', 'b']", ("as", ["a", "b"])), ("@as []", ("as", [])),
        ("[[1], [2, 3]]", ("aai", [[1], [2, 3]])), ("<'x'>", ("v", ("s", "x"))), ("('a', uint16 3)", ("(sq)", ("a", 3))),
        ("{'a': <1>, 'b': <true>}", ("a{sv}", [("a", ("i", 1)), ("b", ("b", True))])), ("b'hi'", ("ay", b"hi\0")),
        ("@a(st) [('x', 1)]", ("a(st)", [("x", 1)])), ("  uint32   7  ", ("u", 7)),
    ],
)  # fmt: skip
def test_values_are_written_as_glib_does(text: str, variant: Any) -> None:
    assert gvariant.parse(text) == variant


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "'open", "[1, 'a']", "[]", "uint32 -1", "byte 256", "2147483648", "1 2", "[1", "{'a' 1}", "uint32 uint32 1",
     "@zz 1", "@as 5", "<1", "true false", "'\\u00'", "'\\ud800'", "'\\u0000'", "'\0'", "[" * 10000, "@" + "a" * 10000 + " []"],
)  # fmt: skip
def test_what_is_no_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        gvariant.parse(text)


@given(st.text(alphabet="[](){}<>@'\",:-.0123456789 abdinstuvxey\\", max_size=20))
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    try:
        signature, value = gvariant.parse(text)
    except ValueError:
        return
    # What it is taken for can be sent.
    dbus.encode(1, 1, [], "v", ((signature, value),))
    assert json.dumps(signature)


# --- properties


def of_v2(**resources: Any) -> dict[str, Any]:
    return {name: value for name, (_, value) in properties.of_resources_v2(resources, 252)}


def test_limits_as_properties_on_v2() -> None:
    found = of_v2(
        memory={"limit": 100, "swap": 300, "reservation": 50}, pids={"limit": -1}, blockIO={"weight": 750},
        cpu={"shares": 1024, "quota": 50000, "period": 200000, "cpus": "0-1,9", "mems": "0"},
    )  # fmt: skip
    assert found == {
        "MemoryMax": 100, "MemorySwapMax": 200, "MemoryLow": 50, "TasksMax": INFINITY, "IOWeight": 7475, "CPUWeight": 100,
        "CPUQuotaPeriodUSec": 200000, "CPUQuotaPerSecUSec": 250_000, "AllowedCPUs": b"\x03\x02", "AllowedMemoryNodes": b"\x01",
    }  # fmt: skip
    assert of_v2(memory={"limit": -1}) == {"MemoryMax": INFINITY, "MemorySwapMax": INFINITY}
    assert of_v2(memory={"limit": 100, "swap": 100}) == {"MemoryMax": 100, "MemorySwapMax": 0}
    assert of_v2(pids={"limit": 0}) == {"TasksMax": 1}
    assert of_v2(cpu={"quota": -1, "period": 100000})["CPUQuotaPerSecUSec"] == INFINITY
    assert of_v2(cpu={"idle": 1, "shares": 5}) == {"CPUWeight": 0}
    assert of_v2(cpu={"idle": 0}) == {}


def test_an_old_systemd_is_not_told_what_it_does_not_know() -> None:
    resources = {"cpu": {"quota": 1000, "period": 100000, "cpus": "0"}, "unified": {"cpuset.cpus": "1", "cpu.idle": "1"}}
    assert [name for name, _ in properties.of_resources_v2(resources, 241)] == ["CPUQuotaPerSecUSec"]
    assert properties.of_oom_group({"unified": {"memory.oom.group": "1"}}, 252) == []
    assert properties.of_oom_group({"unified": {"memory.oom.group": "1"}}, 253) == [("OOMPolicy", ("s", "kill"))]


def test_files_that_systemd_has_a_property_for() -> None:
    found = of_v2(
        unified={"memory.min": "1", "memory.low": "2", "memory.high": "3", "memory.max": "max", "memory.swap.max": " 4 ",
                 "pids.max": "0", "cpu.max": "10000 100000", "cpu.weight": "42", "cpuset.cpus": "1", "cpuset.mems": "0",
                 "hugetlb.2MB.max": "1", "memory.oom.group": "1"},
    )  # fmt: skip
    assert found == {
        "MemoryMin": 1, "MemoryLow": 2, "MemoryHigh": 3, "MemoryMax": INFINITY, "MemorySwapMax": 4, "TasksMax": 1,
        "CPUQuotaPeriodUSec": 100000, "CPUQuotaPerSecUSec": 100_000, "CPUWeight": 42, "AllowedCPUs": b"\x02",
        "AllowedMemoryNodes": b"\x01",
    }  # fmt: skip
    assert of_v2(unified={"cpu.idle": "1", "cpu.weight": "8"}) == {"CPUWeight": 0}
    assert of_v2(unified={"cpu.max": "max"})["CPUQuotaPerSecUSec"] == INFINITY
    with pytest.raises(OSError, match=r'unified resource "pids\.max" value conversion error'):
        of_v2(unified={"pids.max": "many"})


def test_a_quota_is_a_whole_percentage() -> None:
    assert [properties.rounded_quota(quota, 100000) for quota in (33333, 33000, 1, -1, 0)] == [34000, 33000, 1000, -1, 0]
    assert properties.rounded_quota(5000, 0) == 5000


def test_a_list_of_numbers_is_a_set_of_bits() -> None:
    assert properties.bits("0") == b"\x01"
    assert properties.bits("5-8") == b"\xe0\x01"
    assert properties.bits("0, 2,,16") == b"\x05\x00\x01"
    for bad in ("", ",", "3-1", "a", "-", "1-", "70000"):
        with pytest.raises(OSError, match="no list of numbers"):
            properties.bits(bad)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([DENY_ALL], ("strict", [])),
        ([{"allow": True, "access": "rwm"}], ("auto", [])),
        ([DENY_ALL, {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
          {"allow": True, "type": "b", "major": 8, "access": "r"}, {"allow": True, "type": "c", "access": "m"},
          {"allow": True, "type": "c", "minor": 5, "access": "r"}],
         ("strict", [("block-8", "r"), ("char-*", "m"), ("/dev/char/1:3", "rw")])),
    ],
)  # fmt: skip
def test_device_rules_as_properties(rules: list[dict[str, Any]], expected: Any) -> None:
    found = properties.of_resources_v2({"devices": rules}, 252)
    assert found[0] == ("DeviceAllow", ("a(ss)", []))  # forgets what there was
    policy = [value for name, (_, value) in found if name == "DevicePolicy"]
    entries = [value for name, (_, value) in found[1:] if name == "DeviceAllow"]
    assert (policy[0], entries[0] if entries else []) == expected


def test_a_list_of_what_is_denied_is_left_to_the_groups_own_program_on_v2() -> None:
    rules = [{"allow": True, "access": "rwm"}, {"allow": False, "type": "c", "major": 1, "minor": 3, "access": "w"}]
    assert ("DevicePolicy", ("s", "auto")) in properties.of_resources_v2({"devices": rules}, 252)
    assert ("DevicePolicy", ("s", "strict")) in properties.of_resources_v1({"devices": rules}, 252)

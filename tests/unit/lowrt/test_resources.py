"""Resources: update's flags, what goes together in an update, what cannot be meant; events' intervals."""

import os
from pathlib import Path
from typing import Any

import pytest

from lowrt import events, execute, lifecycle, resources, schema
from lowrt.errors import RuntimeFailure


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"memory": "50M"}, {"memory": {"limit": 50 << 20}}),
        ({"memory": "1.5g"}, {"memory": {"limit": 3 << 29}}),
        ({"memory": "64MiB", "memory-swap": "-1"}, {"memory": {"limit": 64 << 20, "swap": -1}}),
        ({"memory-reservation": "7 kb"}, {"memory": {"reservation": 7 << 10}}),
        ({"memory": "12b"}, {"memory": {"limit": 12}}),
        ({"pids-limit": "0"}, {"pids": {"limit": 0}}),
        ({"pids-limit": "-1"}, {"pids": {"limit": -1}}),
        ({"cpu-quota": "-1", "cpu-period": "100000"}, {"cpu": {"quota": -1, "period": 100000}}),
        ({"cpu-share": "200", "cpu-idle": "1", "cpu-burst": "0"}, {"cpu": {"shares": 200, "idle": 1, "burst": 0}}),
        ({"cpu-rt-period": "10", "cpu-rt-runtime": "5"}, {"cpu": {"realtimePeriod": 10, "realtimeRuntime": 5}}),
        ({"cpuset-cpus": "0-1", "cpuset-mems": "0"}, {"cpu": {"cpus": "0-1", "mems": "0"}}),
        ({"blkio-weight": "0"}, {}),  # as for runc, 0 is "not given"
        ({"blkio-weight": "500", "cpuset-cpus": ""}, {"blockIO": {"weight": 500}}),
    ],
)
def test_flags_become_resources(flags: dict[str, str], expected: dict[str, Any]) -> None:
    assert resources.from_flags(flags, 0) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"memory": "much"}, "invalid value for memory: invalid size: 'much'"),
        ({"memory": "-5"}, "invalid value for memory: invalid size"),
        ({"memory": "5x"}, "invalid value for memory: invalid size: '5x'"),
        ({"memory": "5mm"}, "invalid value for memory: invalid suffix: 'mm'"),
        ({"memory": "1e3"}, "invalid size"),
        ({"memory": "99999999999g"}, "invalid size"),
        ({"cpu-share": "-1"}, "invalid value for cpu-share"),
        ({"cpu-burst": "x"}, 'invalid value for cpu-burst: parsing "x": invalid syntax'),
        ({"cpu-idle": "1_0"}, "invalid value for cpu-idle"),
        ({"pids-limit": ""}, "invalid value for pids-limit"),
        ({"blkio-weight": "70000"}, "blockIO.weight"),
        ({"l3-cache-schema": "L3:0=f"}, "Intel RDT/CAT: l3 cache schema is not enabled"),
        ({"mem-bw-schema": "MB:0=5"}, "Intel RDT/MBA: memory bandwidth schema is not enabled"),
        ({"resources": "/nosuch"}, "read the resources from /nosuch: .*no such file"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        resources.from_flags(flags, 0)


def test_resources_come_from_a_file_or_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "resources"
    file.write_text('{"pids": {"limit": 7}, "memory": {"limit": null}, "nosuch": 1}')
    assert resources.from_flags({"resources": str(file), "memory": "5m"}, 0) == {"pids": {"limit": 7}, "memory": {}}
    with open(file) as stdin:
        assert resources.from_flags({"resources": "-"}, stdin.fileno()) == {"pids": {"limit": 7}, "memory": {}}
        os.fstat(stdin.fileno())  # still open: it is the caller's
    for broken in ("[]", "{", '{"pids": {"limit": "7"}}', '{"devices": [{"allow": true}]}'):
        file.write_text(broken)
        with pytest.raises(RuntimeFailure):
            resources.from_flags({"resources": str(file)}, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devices": [{"allow": False}]}, "device access at 0 field cannot be empty"),
        ({"devices": [{"type": "x", "access": "r"}]}, "invalid cgroup device type 'x'"),
        ({"hugepageLimits": [{"pageSize": "../../x", "limit": 1}]}, r"hugepageLimits\[0\]"),
        ({"hugepageLimits": [{"pageSize": "2MB"}]}, r"hugepageLimits\[0\]"),
        ({"network": {"priorities": [{"name": "eth0"}]}}, r"priorities\[0\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message):
        resources.check(given)


def test_kernel_memory_is_warned_of() -> None:
    assert resources.warnings({"memory": {"limit": 5}}) == []
    assert resources.warnings({"memory": {"kernelTCP": 5}}) == ["Kernel memory settings are ignored and will be removed"]


@pytest.mark.parametrize(
    ("part", "old", "new", "whole", "now"),
    [
        # A limit alone takes the swap limit that there is along, and the other way round.
        ("memory", {"swap": 9}, {"limit": 5}, {"limit": 5, "swap": 9}, {"limit": 5, "swap": 9}),
        ("memory", {"limit": 5}, {"swap": 9}, {"limit": 5, "swap": 9}, {"limit": 5, "swap": 9}),
        ("memory", {"limit": 5, "swap": 9}, {"limit": -1}, {"limit": -1, "swap": 0}, {"limit": -1, "swap": 0}),
        ("memory", {"limit": 5}, {"reservation": 2}, {"limit": 5, "reservation": 2}, {"reservation": 2}),
        ("cpu", {"quota": 5, "period": 10}, {"period": 20}, {"quota": 5, "period": 20}, {"quota": 5, "period": 20}),
        ("cpu", {"quota": 5, "period": 10}, {"quota": -1}, {"quota": -1, "period": 10}, {"quota": -1, "period": 10}),
        ("cpu", {"quota": 5, "shares": 7}, {"shares": 8}, {"quota": 5, "shares": 8}, {"shares": 8}),
        ("cpu", {"shares": 7}, {"idle": 1}, {"idle": 1}, {"idle": 1}),
        ("pids", {"limit": 5}, {"limit": 0}, {"limit": 0}, {"limit": 0}),
        ("unified", {}, {"a.b": "1"}, {"a.b": "1"}, {"a.b": "1"}),
    ],
)
def test_an_update_knows_which_limits_go_together(part: str, old: Any, new: Any, whole: Any, now: Any) -> None:
    assert resources.merge({part: old}, {part: new}) == ({part: whole}, {part: now})


def test_an_update_leaves_devices_alone() -> None:
    assert resources.merge({"devices": [1]}, {"devices": [2]}) == ({"devices": [1]}, {})


def test_an_update_of_a_device_replaces_what_was_said_of_it() -> None:
    old = {
        "blockIO": {
            "weight": 5,
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}, {"major": 8, "minor": 1, "rate": 2}],
        }
    }
    new = {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 3}]}}
    whole, now = resources.merge(old, new)
    assert whole["blockIO"]["throttleReadBpsDevice"] == [{"major": 8, "minor": 0, "rate": 3}, {"major": 8, "minor": 1, "rate": 2}]
    assert whole["blockIO"]["weight"] == 5
    assert now == new


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("100ms", 0.1), ("1m30s", 90), ("1.5h", 5400), ("2us", 2e-6), ("3µs", 3e-6)]
)
def test_an_interval_is_written_as_go_does(text: str, seconds: float) -> None:
    assert events.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "s", "1x", "-5s", "1s 2s", "0s", "..s", ""])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(RuntimeFailure, match=r"--interval|greater than 0"):
        events.seconds(text)


def test_places_for_exec_are_by_controller() -> None:
    assert execute.sub_cgroups([]) == {}
    assert execute.sub_cgroups(["a/b"]) == {"": "a/b"}
    assert execute.sub_cgroups(["memory:m", "cpu,cpuacct:c"]) == {"memory": "m", "cpu": "c", "cpuacct": "c"}
    for bad, message in (
        (["a", "cpu:b"], "missing <controller>: prefix"), ([":a"], "empty <controller> prefix"), (["cpu,:a"], "empty"),
        (["cpu:a", "cpu:b"], "controller cpu specified multiple times"),
    ):  # fmt: skip
        with pytest.raises(RuntimeFailure, match=message):
            execute.sub_cgroups(bad)


def test_signals_have_names_and_numbers() -> None:
    assert [lifecycle.signal_number(text) for text in ("9", "KILL", "sigterm", "0", "RTMIN+3")] == [9, 9, 15, 0, 37]
    for bad in ("NOSUCH", "RTMIN+x", "99", "-1", "SIG_DFL", ""):
        with pytest.raises(RuntimeFailure, match="unknown signal"):
            lifecycle.signal_number(bad)


def test_names_in_another_case_are_not_overlooked() -> None:
    found = schema.fit({"CPU": {"Cpus": "1"}, "hugepageLimits": [{"pagesize": "2MB", "limit": 5}]}, schema.RESOURCES)
    assert found == {"cpu": {"cpus": "1"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}
    assert schema.fit({"PIDS": {"limit": 1}, "pids": {"limit": 2}}, schema.RESOURCES) == {"pids": {"limit": 2}}
    assert schema.fit({"Pids": None, "unified": {"A.b": "x"}, "nosuch": 1}, schema.RESOURCES) == {"unified": {"A.b": "x"}}

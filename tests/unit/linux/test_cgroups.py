"""Control groups without a kernel: paths, conversions, what device rules mean and the program that says so, shapes of usage."""

from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups
from strata.linux.cgroups import convert, ebpf, usage, v1, v2
from strata.linux.cgroups.devices import Rules

READ, WRITE, MAKE = 2, 4, 1
CHARACTER, BLOCK = 2, 1
DENY_ALL = {"allow": False, "access": "rwm"}
ALLOW_ALL = {"allow": True, "access": "rwm"}


def rule(allow: bool, kind: str, major: int | None, minor: int | None, access: str = "rwm") -> dict[str, Any]:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


@pytest.mark.parametrize("path", ["", "/", "/a/../b", "//."])
def test_a_path_that_leaves_the_hierarchy_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="below the root"):
        cgroups.open_cgroup(path)


def test_a_group_is_found_again_by_what_it_remembers() -> None:
    for group in (v1.CgroupV1({"memory": "/m/g", "": "/u/g"}), v2.CgroupV2("/c/g"), v2.CgroupV2("")):
        again = cgroups.restore(group.remember())
        assert (type(again), again.paths) == (type(group), group.paths)


def test_co_mounted_controllers_are_one_hierarchy_and_links_are_none(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory", "unified", "unmounted"):
        (tmp_path / name).mkdir()
        if name != "unmounted":
            (tmp_path / name / "cgroup.procs").touch()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    together = str(tmp_path / "cpu,cpuacct")
    assert v1.hierarchies(str(tmp_path)) == {
        "cpu": together, "cpuacct": together, "memory": str(tmp_path / "memory"), "": str(tmp_path / "unified"),
    }  # fmt: skip


def test_places_below_a_group_are_by_controller() -> None:
    group = v1.CgroupV1({"cpu": "/c/g", "cpuacct": "/c/g", "memory": "/m/g"})
    assert group._below({"": "in"}) == ["/c/g/in", "/m/g/in"]
    assert group._below({"memory": "a/b", "cpu": "x", "cpuacct": "x"}) == ["/c/g/x", "/m/g/a/b"]
    assert group._below({"": "/"}) == group.folders()
    for bad, message in (({"": ".."}, "bad sub cgroup path"), ({"nosuch": "x"}, "unknown controller nosuch")):
        with pytest.raises(ValueError, match=message):
            group._below(bad)


# --- conversions


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 0), (1, 1), (2, 1), (100, 17), (1024, 100), (3333, 256), (200, 29), (262144, 10000), (10**6, 10000)],
)
def test_shares_become_a_weight_that_keeps_ends_and_default(shares: int, weight: int) -> None:
    assert convert.cpu_weight(shares) == weight


def test_block_weights_become_io_weights() -> None:
    assert [convert.io_weight(weight) for weight in (0, 10, 750, 1000)] == [0, 1, 7475, 10000]


@pytest.mark.parametrize(
    ("swap", "memory", "alone"),
    [(0, 0, 0), (-1, 0, -1), (0, 100, 0), (300, 100, 200), (100, 100, 0), (300, -1, 300), (0, -1, -1), (-1, -1, -1)],
)
def test_a_limit_of_memory_with_swap_becomes_one_of_swap(swap: int, memory: int, alone: int) -> None:
    assert convert.swap_alone(swap, memory) == alone


@pytest.mark.parametrize(
    ("swap", "memory", "message"),
    [(100, 0, "without memory limit"), (50, 100, "should be >= memory limit"), (100, -2, "invalid memory value")],
)
def test_a_swap_limit_that_makes_no_sense_is_refused(swap: int, memory: int, message: str) -> None:
    with pytest.raises(OSError, match=message):
        convert.swap_alone(swap, memory)


def test_pids_limits() -> None:
    assert [convert.tasks(limit) for limit in (-1, 0, 1, 20)] == ["max", "1", "1", "20"]


# --- device rules


def run(program: bytes, access: int, kind: int, major: int, minor: int) -> int:
    """What the kernel would answer: the program's few instructions, interpreted."""
    registers = [0] * 11
    words = {0: access << 16 | kind, 4: major, 8: minor}
    place = 0
    while True:
        opcode, packed = program[place * 8], program[place * 8 + 1]
        target, source = packed & 15, packed >> 4
        offset = int.from_bytes(program[place * 8 + 2 : place * 8 + 4], "little", signed=True)
        immediate = int.from_bytes(program[place * 8 + 4 : place * 8 + 8], "little", signed=True)
        place += 1
        match opcode:
            case 0x61:
                registers[target] = words[offset]
            case 0xBF:
                registers[target] = registers[source]
            case 0xB7:
                registers[target] = immediate
            case 0x57:
                registers[target] &= immediate & 0xFFFFFFFFFFFFFFFF
            case 0x77:
                registers[target] >>= immediate
            case 0x55:
                place += offset if registers[target] != immediate else 0
            case 0x15:
                place += offset if registers[target] == immediate else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(hex(opcode))


@pytest.mark.parametrize(
    ("access", "kind", "major", "minor", "allowed"),
    [
        (READ, CHARACTER, 1, 3, True),
        (READ | WRITE, CHARACTER, 1, 3, True),
        (READ, CHARACTER, 1, 11, False),
        (READ, CHARACTER, 136, 77, True),
        (MAKE, BLOCK, 8, 0, True),
        (READ, BLOCK, 8, 0, False),
        (READ | MAKE, BLOCK, 8, 0, False),
        (READ, CHARACTER, 5, 0, True),
        (WRITE, CHARACTER, 5, 0, False),
        (READ, CHARACTER, 1, 5, False),
    ],
)
def test_a_list_of_what_is_allowed(access: int, kind: int, major: int, minor: int, allowed: bool) -> None:
    rules = [
        DENY_ALL, rule(True, "c", 1, 5), rule(True, "c", 1, 3), rule(True, "c", 136, -1), rule(True, "b", None, None, "m"),
        rule(True, "c", 5, 0, "rw"), rule(False, "c", 5, 0, "w"), rule(False, "c", 1, 5),
    ]  # fmt: skip
    assert run(ebpf.assemble(Rules.of(rules)), access, kind, major, minor) == int(allowed)


@pytest.mark.parametrize(
    ("access", "kind", "major", "minor", "allowed"),
    [
        (READ, BLOCK, 8, 0, True),
        (READ, CHARACTER, 1, 1, True),
        (WRITE, CHARACTER, 1, 1, False),
        (READ | WRITE, CHARACTER, 1, 1, False),  # a part of it is denied
        (READ, CHARACTER, 10, 1, False),
        (READ, BLOCK, 10, 1, True),
    ],
)
def test_a_list_of_what_is_denied(access: int, kind: int, major: int, minor: int, allowed: bool) -> None:
    rules = [rule(False, "c", 7, 7), ALLOW_ALL, rule(False, "c", 1, 1, "w"), rule(False, "c", 10, None)]
    assert run(ebpf.assemble(Rules.of(rules)), access, kind, major, minor) == int(allowed)


def test_no_rule_allows_nothing() -> None:
    assert Rules.of([]) == Rules.of([DENY_ALL])
    assert run(ebpf.assemble(Rules.of([])), READ, CHARACTER, 1, 3) == 0


def test_a_hole_in_a_wider_rule_is_refused() -> None:
    with pytest.raises(OSError, match=r"'c 10:200 rwm' would make a hole in the rule 'c 10:\* rwm'"):
        Rules.of([rule(True, "c", 10, None), rule(False, "c", 10, 200)])
    Rules.of([rule(True, "c", 10, None, "m"), rule(False, "c", 10, 200, "rw")])  # of other kinds of access there is none


def test_rules_change_by_the_fewest_lines_in_the_order_of_the_list() -> None:
    old = Rules.of([rule(True, "c", 1, 3), rule(True, "c", 5, 0, "rw"), rule(True, "b", 8, 0)])
    new = Rules.of([rule(True, "c", 1, 3), rule(True, "c", 5, 0, "rm"), rule(True, "c", 1, 5)])
    assert old.changes(new) == [
        (False, "c 5:0 w"), (False, "b 8:0 rwm"), (True, "c 5:0 m"), (True, "c 1:5 rwm"),
    ]  # fmt: skip
    assert old.changes(old) == []


def test_a_group_that_allows_by_default_is_set_anew() -> None:
    """Nobody can ask the kernel for the exceptions of such a group."""
    fresh = Rules.parse("a *:* rwm\n")
    assert fresh.changes(Rules.of([rule(True, "c", 1, 3)])) == [(False, "a"), (True, "c 1:3 rwm")]
    assert Rules.of([]).changes(Rules.of([ALLOW_ALL])) == [(True, "a")]


def test_a_groups_list_is_read_as_the_kernel_writes_it() -> None:
    listing = "c 1:3 rwm\nb *:* m\nc 136:* rw\n"
    assert Rules.parse(listing).exceptions == {("c", 1, 3): 7, ("b", -1, -1): 1, ("c", 136, -1): 6}


# --- usage


def test_usage_of_v1_has_runcs_shape(tmp_path: Path) -> None:
    files = {
        "cpu/cpu.stat": "nr_periods 7\nnr_throttled 2\nthrottled_time 900\n",
        "cpuacct/cpuacct.usage": "5000\n", "cpuacct/cpuacct.stat": "user 3\nsystem 2\n",
        "cpuacct/cpuacct.usage_percpu": "2000 3000 \n", "cpuacct/cpuacct.usage_all": "cpu user system\n0 1 2\n1 3 4\n",
        "cpuset/cpuset.cpus": "0-1,3\n", "cpuset/cpuset.sched_load_balance": "1\n",
        "cpuset/cpuset.sched_relax_domain_level": "-1\n",
        "memory/memory.stat": "cache 10\nrss 20\ntotal_rss 20\n", "memory/memory.usage_in_bytes": "30\n",
        "memory/memory.max_usage_in_bytes": "40\n", "memory/memory.limit_in_bytes": "50\n", "memory/memory.failcnt": "1\n",
        "pids/pids.current": "3\n", "pids/pids.max": "max\n",
        "blkio/blkio.throttle.io_service_bytes": "254:0 Read 4096\n254:0 Total 4096\nTotal 4096\n",
        "blkio/blkio.throttle.io_serviced": "254:0 Read 1\nTotal 1\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = usage.of_v1({name: str(tmp_path / name) for name in ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio")})
    assert found["cpu"] == {
        "usage": {"total": 5000, "percpu": [2000, 3000], "percpu_kernel": [2, 4], "percpu_user": [1, 3],
                  "kernel": 20_000_000, "user": 30_000_000},
        "throttling": {"periods": 7, "throttledPeriods": 2, "throttledTime": 900},
    }  # fmt: skip
    assert found["cpuset"]["cpus"] == [0, 1, 3]
    assert "mems" not in found["cpuset"]
    assert found["cpuset"]["sched_relax_domain_level"] == -1
    assert found["memory"] == {
        "cache": 10, "usage": {"limit": 50, "usage": 30, "max": 40, "failcnt": 1},
        "raw": {"cache": 10, "rss": 20, "total_rss": 20},
    }  # fmt: skip
    assert found["pids"] == {"current": 3}
    assert found["blkio"] == {
        "ioServiceBytesRecursive": [
            {"major": 254, "op": "Read", "value": 4096}, {"major": 254, "op": "Total", "value": 4096},
        ],
        "ioServicedRecursive": [{"major": 254, "op": "Read", "value": 1}],
    }  # fmt: skip
    assert list(found) == ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"]
    assert found["network_interfaces"] is None


def test_usage_of_v2_has_the_words_of_v1(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 1\nnr_throttled 1\nthrottled_usec 2\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
        "memory.stat": "anon 4\nfile 6\n", "memory.current": "10\n", "memory.max": "100\n", "memory.peak": "20\n",
        "memory.swap.current": "2\n", "memory.swap.max": "50\n", "pids.current": "4\n", "pids.max": "9\n",
        "io.stat": "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = usage.of_v2(str(tmp_path))
    assert found["cpu"]["usage"] == {"total": 9000, "kernel": 4000, "user": 5000}
    assert found["cpu"]["throttling"] == {"periods": 1, "throttledPeriods": 1, "throttledTime": 2000}
    assert found["cpu"]["psi"]["some"] == {"avg10": 1.5, "avg60": 0, "avg300": 0, "total": 12}
    assert found["memory"]["usage"] == {"limit": 100, "usage": 10, "max": 20, "failcnt": 0}
    assert found["memory"]["swap"] == {"limit": 150, "usage": 12, "failcnt": 0}
    assert found["memory"]["cache"] == 6
    assert found["pids"] == {"current": 4, "limit": 9}
    assert found["blkio"]["ioServicedRecursive"] == [
        {"major": 254, "op": "Read", "value": 3}, {"major": 254, "op": "Write", "value": 4},
    ]  # fmt: skip
    assert set(found["cpuset"].values()) == {0}


def test_a_v2_group_without_a_pids_controller_counts_its_processes(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("7\n8\n")
    assert usage.of_v2(str(tmp_path))["pids"] == {"current": 2}

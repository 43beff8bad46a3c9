"""What a container's process may do, and how it is limited and scheduled."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups


def hook(script: str, **fields: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **fields}


def test_a_start_hook_in_the_container_has_no_more_rights_than_its_program(runtime: Any) -> None:
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    runtime.config["process"]["env"] += ["FROM=config"]
    runtime.config["hooks"] = {"startContainer": [hook("id -u; echo $FROM; grep -E 'CapEff|NoNew' /proc/self/status; exit 1")]}
    done = runtime.run("true")
    assert "error running startContainer hook #0: exit status 1, output: 1000\nconfig\n" in done.stderr
    assert "CapEff:\t0000000000000000\nNoNewPrivs:\t1" in done.stderr


def test_a_start_hook_in_the_container_is_filtered_as_its_program_is(runtime: Any) -> None:
    runtime.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}],
    }
    runtime.config["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    runtime.config["hooks"] = {"startContainer": [hook("mkdir /dev/shm/x; exit $?", env=["PATH=/bin"])]}
    assert "error running startContainer hook #0: exit status 159" in runtime.run("true").stderr
    runtime.config["hooks"] = {"startContainer": [hook("exec mkdir /dev/shm/x", env=["PATH=/bin"])]}
    assert "error running startContainer hook #0: signal: bad system call" in runtime.run("true").stderr


# --- capabilities


SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def capabilities(status: str) -> dict[str, int]:
    """By the names of /proc/PID/status."""
    found = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Cap"))
    return {name: int(found[name], 16) for name in SETS}


CHOWN, KILL, AUDIT_WRITE, SYSLOG = 1 << 0, 1 << 5, 1 << 29, 1 << 34


def test_roots_capabilities_are_those_of_the_bounding_set(runtime: Any) -> None:
    sets = runtime.config["process"]["capabilities"]
    sets["bounding"] = ["CAP_SYS_ADMIN"]
    sets["permitted"] = ["CAP_SYS_ADMIN", *sets["permitted"]]
    found = capabilities(runtime.shell("cat /proc/self/status"))
    assert found == dict.fromkeys(SETS, 0) | dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), 1 << 21)


@pytest.mark.parametrize("given", [{}, {"bounding": [], "effective": [], "permitted": []}])
def test_empty_capabilities_are_none(runtime: Any, given: dict[str, Any]) -> None:
    runtime.config["process"]["capabilities"] = given
    assert not any(capabilities(runtime.shell("cat /proc/self/status")).values())


def test_capabilities_that_nobody_speaks_of_are_left_alone(runtime: Any) -> None:
    del runtime.config["process"]["capabilities"]
    ours = capabilities(Path("/proc/self/status").read_text())
    assert capabilities(runtime.shell("cat /proc/self/status"))["CapEff"] == ours["CapEff"]
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    assert capabilities(runtime.shell("cat /proc/self/status"))["CapEff"] == 0


def test_a_users_capabilities_are_the_ambient_ones(runtime: Any) -> None:
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    sets = runtime.config["process"]["capabilities"]
    for kind in ("bounding", "permitted", "inheritable", "effective"):
        sets[kind] = ["CAP_CHOWN", "CAP_KILL"]
    sets["ambient"] = ["CAP_KILL"]
    found = capabilities(runtime.shell("cat /proc/self/status"))
    assert (found["CapEff"], found["CapPrm"], found["CapAmb"], found["CapBnd"]) == (KILL, KILL, KILL, CHOWN | KILL)


def test_what_cannot_be_ambient_and_what_does_not_exist_is_warned_of(runtime: Any) -> None:
    sets = runtime.config["process"]["capabilities"]
    for kind in ("bounding", "permitted", "effective"):
        sets[kind] = ["CAP_KILL", "CAP_CHOWN", "CAP_NOSUCH", "CHOWN"]
    sets["inheritable"], sets["ambient"] = ["CAP_KILL"], ["CAP_KILL", "CAP_CHOWN"]
    done = runtime.run("cat", "/proc/self/status")
    assert capabilities(done.stdout)["CapAmb"] == KILL
    assert "ignoring unknown or unavailable capabilities: [CAP_NOSUCH CHOWN]" in done.stderr
    assert "can't raise ambient capability CAP_CHOWN: operation not permitted" in done.stderr
    log = runtime.root.parent / "log"
    done = runtime.call("--log", log, "run", "--bundle", runtime.bundle, runtime.id)
    assert done.stderr == ""
    assert "level=warning" in log.read_text()


def test_what_the_caller_has_not_is_left_out(runtime: Any) -> None:
    """A machine may lack a capability altogether; a container that asks for all of them still starts."""
    names = ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_WAKE_ALARM"]
    runtime.config["process"]["capabilities"] = dict.fromkeys(
        ("bounding", "permitted", "effective", "inheritable", "ambient"), names
    )
    runtime.config["process"]["args"] = ["cat", "/proc/self/status"]
    runtime.write()
    reduced = ["setpriv", "--bounding-set", "-sys_resource,-wake_alarm", runtime.launcher]
    done = subprocess.run(
        [*reduced, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id],
        capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert capabilities(done.stdout) == dict.fromkeys(SETS, CHOWN)
    assert "[CAP_SYS_RESOURCE CAP_WAKE_ALARM]" in done.stderr


def test_exec_adds_capabilities(runtime: Any) -> None:
    runtime.config["process"]["capabilities"] = {}
    runtime.start("sleep", "100")
    assert not any(capabilities(runtime.call("exec", runtime.id, "cat", "/proc/self/status").stdout).values())
    added = runtime.call("exec", "--cap", "CAP_KILL", "--cap", "CAP_AUDIT_WRITE", runtime.id, "cat", "/proc/self/status")
    both = KILL | AUDIT_WRITE
    assert capabilities(added.stdout) == {"CapInh": 0, "CapPrm": both, "CapEff": both, "CapBnd": both, "CapAmb": 0}


def test_exec_adds_ambient_ones_where_some_are_inheritable(runtime: Any) -> None:
    runtime.config["process"]["capabilities"] = {
        "inheritable": ["CAP_CHOWN", "CAP_SYSLOG"], "permitted": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"],
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"], "ambient": ["CAP_CHOWN"],
    }  # fmt: skip
    runtime.config["process"]["user"] = {"uid": 0}
    runtime.start("sleep", "100")
    found = capabilities(runtime.call("exec", "--cap", "CAP_SYSLOG", runtime.id, "cat", "/proc/self/status").stdout)
    assert found["CapAmb"] == CHOWN | SYSLOG
    assert found["CapInh"] == CHOWN | SYSLOG


def execute(runtime: Any, process: dict[str, Any], *flags: str) -> subprocess.CompletedProcess[str]:
    """exec with a process of its own."""
    path = runtime.root.parent / "process.json"
    path.write_text(json.dumps({"cwd": "/", "env": ["PATH=/bin"], **process}))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False} if flags else {}
    done: subprocess.CompletedProcess[str] = runtime.call("exec", "--process", path, *flags, runtime.id, **quiet)
    return done


def test_a_process_of_its_own_has_the_containers_attributes_where_it_has_none(runtime: Any) -> None:
    process = runtime.config["process"]
    process["capabilities"] = {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")}
    process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    process["user"] = {"uid": 0, "gid": 0, "umask": 0o77}
    runtime.start("sleep", "100")
    script = {"args": ["sh", "-c", "ulimit -n; umask; cat /proc/self/status"]}
    printed = execute(runtime, script).stdout
    assert printed.startswith("100\n0077\n")
    assert capabilities(printed)["CapEff"] == KILL
    assert "NoNewPrivs:\t0" in printed
    printed = execute(runtime, {**script, "capabilities": {}, "noNewPrivileges": True}).stdout
    assert capabilities(printed)["CapEff"] == 0
    assert "NoNewPrivs:\t1" in printed
    assert "args must not be empty" in execute(runtime, {"args": []}).stderr
    assert "process.args" in execute(runtime, {"args": "sh"}).stderr


# --- limits


def test_limits_are_set_also_those_that_would_hit_lowrt(runtime: Any) -> None:
    small = {
        "AS": 4 << 20, "DATA": 1 << 20, "FSIZE": 0, "NOFILE": 4, "CPU": 5, "STACK": 512 << 10, "CORE": 0, "MEMLOCK": 0,
        "SIGPENDING": 10, "MSGQUEUE": 1000, "NICE": 0, "RTPRIO": 0, "RTTIME": 10**6, "LOCKS": 10, "RSS": 1 << 20,
    }  # fmt: skip
    runtime.config["process"]["rlimits"] = [{"type": f"RLIMIT_{n}", "soft": v, "hard": v} for n, v in small.items()]
    for no_new_privileges in (True, False):
        runtime.config["process"]["noNewPrivileges"] = no_new_privileges
        done = runtime.run("cat", "/proc/self/limits")
        assert done.returncode == 0, done.stderr
        rows = {line[:26].strip(): line[26:].split()[:2] for line in done.stdout.splitlines()}
        assert rows["Max address space"] == [str(4 << 20)] * 2
        assert rows["Max open files"] == ["4", "4"]
        assert rows["Max file locks"] == ["10", "10"]
        assert rows["Max file size"] == ["0", "0"]
        assert rows["Max realtime timeout"] == ["1000000"] * 2


def test_soft_and_hard_limits_differ_and_no_limit_is_no_limit(runtime: Any) -> None:
    most = 2**64 - 1
    runtime.config["process"]["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 5, "hard": most},
        {"type": "RLIMIT_FSIZE", "soft": most, "hard": most},
    ]  # fmt: skip
    rows = {line[:26].strip(): line[26:].split()[:2] for line in runtime.run("cat", "/proc/self/limits").stdout.splitlines()}
    assert rows["Max open files"] == ["100", "200"]
    assert rows["Max file size"] == ["unlimited", "unlimited"]


def test_a_limit_that_may_not_be_raised_fails_create_and_leaves_nothing(runtime: Any) -> None:
    reduced = ["prlimit", "--nofile=1000:1000", "setpriv", "--bounding-set", "-sys_resource", runtime.launcher]
    runtime.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 2000}]
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    done = subprocess.run(
        [*reduced, "--root", runtime.root, "create", "--bundle", runtime.bundle, runtime.id],
        capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error setting rlimit type RLIMIT_NOFILE: operation not permitted" in done.stderr
    assert runtime.call("list", "-q").stdout == ""


def test_an_oom_score_that_may_not_be_lowered_is_an_error(runtime: Any) -> None:
    runtime.config["process"]["oomScoreAdj"] = -999
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    reduced = ["setpriv", "--bounding-set", "-sys_resource", runtime.launcher]
    done = subprocess.run(
        [*reduced, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id],
        capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "failed to set oomScoreAdj to -999: permission denied" in done.stderr
    assert runtime.call("list", "-q").stdout == ""


# --- user


def test_the_working_directory_may_be_closed_to_the_user(runtime: Any) -> None:
    """The runtime goes there first, as runc's does: then only what the user does in it may fail."""
    (runtime.bundle / "rootfs/closed").mkdir(mode=0o700)
    (runtime.bundle / "rootfs/theirs").mkdir(mode=0o700)
    os.chown(runtime.bundle / "rootfs/theirs", 1000, 1000)
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    runtime.config["process"]["cwd"] = "/closed"
    assert runtime.shell("readlink /proc/self/cwd") == "/closed\n"
    # Root without CAP_DAC_OVERRIDE, as in a user namespace, cannot go there, but the user can.
    runtime.config["process"]["cwd"] = "/theirs"
    assert runtime.shell("pwd") == "/theirs\n"


def test_groups_and_umask(runtime: Any) -> None:
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 4294967294], "umask": 0o027}
    assert runtime.shell("id -u; id -g; id -G; umask").split() == ["1000", "1001", "1001", "5", "4294967294", "0027"]
    runtime.config["process"]["user"] = {"uid": 0}
    assert runtime.shell("id -G; umask").split() == ["0", "0022"]


# --- scheduling


def test_the_scheduler(runtime: Any) -> None:
    runtime.config["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    pid = runtime.start("sleep", "100")
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7
    printed = runtime.call("exec", runtime.id, "cat", "/proc/self/sched").stdout
    assert f"policy : {os.SCHED_BATCH}" in " ".join(printed.split())
    deadline = {"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RESET_ON_FORK"], "runtime": 42000, "deadline": 100000,
                "period": 1000000}  # fmt: skip
    pid_file = runtime.root.parent / "pid"
    execute(runtime, {"args": ["sleep", "100"], "scheduler": deadline}, "--detach", "--pid-file", str(pid_file))
    shown = subprocess.run(["chrt", "-p", pid_file.read_text()], capture_output=True, text=True, check=True).stdout
    assert "SCHED_DEADLINE|SCHED_RESET_ON_FORK" in shown
    assert "42000/100000/1000000" in shown


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"nice": 1}, "scheduler policy is required"),
        ({"policy": "SCHED_X"}, "invalid scheduler policy: SCHED_X"),
        ({"policy": "SCHED_OTHER", "nice": 20}, "invalid scheduler.nice: 20"),
        ({"policy": "SCHED_OTHER", "priority": 1}, "only be specified for SchedFIFO or SchedRR"),
        ({"policy": "SCHED_BATCH", "runtime": 1}, "only be specified for SchedDeadline"),
        ({"policy": "SCHED_BATCH", "flags": ["X"]}, "invalid scheduler flag: X"),
        ({"policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 1, "period": 1}, "error setting scheduler: invalid argument"),
        ({"policy": "SCHED_ISO"}, "error setting scheduler: invalid argument"),
    ],
)
def test_schedulers_that_cannot_be_fail_create(runtime: Any, scheduler: dict[str, Any], message: str) -> None:
    runtime.config["process"]["scheduler"] = scheduler
    runtime.config["process"]["args"] = ["true"]
    runtime.write()
    done = runtime.call("create", "--bundle", runtime.bundle, runtime.id)
    assert done.returncode == 1
    assert message in done.stderr
    assert runtime.call("list", "-q").stdout == ""


def test_a_deadline_on_some_cpus_only_is_explained(runtime: Any) -> None:
    runtime.config["linux"]["resources"]["cpu"] = {"cpus": "0"}
    runtime.config["process"]["scheduler"] = {"policy": "SCHED_DEADLINE", "runtime": 42000, "deadline": 10**6, "period": 10**6}
    assert "process scheduler can't be used together with AllowedCPUs" in runtime.run("true").stderr


def test_real_time(runtime: Any) -> None:
    """On v1 with RT_GROUP_SCHED a cgroup has no time for it unless it is given some."""
    runtime.config["process"]["scheduler"] = {"policy": "SCHED_FIFO", "priority": 10, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
    done = runtime.run("true")
    assert done.returncode == 0 or "linux.resources.cpu.realtimeRuntime" in done.stderr
    if cgroups.mode() != "v2":
        runtime.config["linux"]["resources"]["cpu"] = {"realtimeRuntime": 9000, "realtimePeriod": 1000000}
    pid = runtime.start("sleep", "100")
    assert os.sched_getscheduler(pid) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    assert os.sched_getparam(pid).sched_priority == 10


def test_io_priority(runtime: Any) -> None:
    runtime.config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 4}
    pid = runtime.start("sleep", "100")
    pid_file = runtime.root.parent / "pid"

    def shown(pid: int | str) -> str:
        return subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True).stdout.strip()

    assert shown(pid) == "best-effort: prio 4"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
    runtime.call("exec", "--detach", "--pid-file", pid_file, runtime.id, "sleep", "100", check=True, **quiet)
    assert shown(pid_file.read_text()) == "best-effort: prio 4"
    own = {"args": ["sleep", "100"], "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}}
    execute(runtime, own, "--detach", "--pid-file", str(pid_file))
    assert shown(pid_file.read_text()) == "idle"
    runtime.clean()
    runtime.config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 8}
    assert "invalid ioPriority.Priority: 8" in runtime.run("true").stderr
    runtime.config["process"]["ioPriority"] = {"class": "BE"}
    assert 'invalid ioPriority.Class: "BE"' in runtime.run("true").stderr


def cpus(status: str) -> str:
    return next(line.split()[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list:"))


def test_the_callers_cpus_are_not_the_containers(runtime: Any) -> None:
    """Nobody who binds lowrt to a CPU means its containers, for ever."""
    allowed = sorted(os.sched_getaffinity(0))
    runtime.config["process"]["args"] = ["cat", "/proc/self/status"]
    runtime.write()
    bound = ["taskset", "--cpu-list", str(allowed[0]), runtime.launcher, "--root", runtime.root]
    for extra, expected in ((None, cpus(Path("/proc/self/status").read_text())), (str(allowed[-1]), str(allowed[-1]))):
        if extra:
            runtime.config["linux"]["resources"]["cpu"] = {"cpus": extra, "mems": "0"}
            runtime.write()
        done = subprocess.run(
            [*bound, "run", "--bundle", runtime.bundle, runtime.id], capture_output=True, text=True, timeout=30, check=False
        )
        assert cpus(done.stdout) == expected
    runtime.config["linux"]["resources"].pop("cpu")
    runtime.start("sleep", "100")
    done = subprocess.run(
        [*bound, "exec", runtime.id, "cat", "/proc/self/status"], capture_output=True, text=True, timeout=30, check=False
    )
    assert cpus(done.stdout) == cpus(Path("/proc/self/status").read_text())


def test_cpus_of_an_exec(runtime: Any) -> None:
    last = str(max(os.sched_getaffinity(0)))
    runtime.config["process"]["execCPUAffinity"] = {"initial": "0", "final": last}
    pid = runtime.start("sleep", "100")
    assert cpus(Path(f"/proc/{pid}/status").read_text()) == cpus(Path("/proc/self/status").read_text())
    assert cpus(runtime.call("exec", runtime.id, "cat", "/proc/self/status").stdout) == last
    show = {"args": ["cat", "/proc/self/status"]}
    assert cpus(execute(runtime, {**show, "execCPUAffinity": {"initial": "0"}}).stdout) == "0"
    assert cpus(execute(runtime, {**show, "execCPUAffinity": {"final": f"0,{last}"}}).stdout) in (f"0-{last}", f"0,{last}", "0")
    wrong = execute(runtime, {**show, "execCPUAffinity": {"final": "3-1"}})
    assert "bad CPUAffinity.Final: invalid range: 3-1" in wrong.stderr
    nowhere = execute(runtime, {**show, "execCPUAffinity": {"final": "60000"}})
    assert "error setting final CPU affinity: invalid argument" in nowhere.stderr


def test_the_memory_policy(runtime: Any) -> None:
    policies = [
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0"}, "interleave:0"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, "bind=static:0"),
        (
            {"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]},
            "prefer (many)=relative:0|prefer=relative:0",
        ),
        ({"mode": "MPOL_DEFAULT"}, "default"),
    ]
    for policy, expected in policies:
        runtime.config["linux"]["memoryPolicy"] = policy
        shown = runtime.shell("head -n 1 /proc/self/numa_maps").split(" ", 1)[1]
        assert shown.startswith(tuple(expected.split("|"))), shown
    runtime.config["linux"]["memoryPolicy"] = {"mode": "MPOL_INTERLEAVE", "nodes": "0"}
    runtime.start("sleep", "100")
    assert " interleave:0 " in runtime.call("exec", runtime.id, "head", "-n", "1", "/proc/self/numa_maps").stdout
    runtime.clean()
    for policy, message in (
        ({"mode": "INTERLEAVE", "nodes": "0"}, "invalid memory policy mode"),
        ({}, "invalid memory policy mode"),
        ({"mode": "MPOL_PREFERRED", "flags": ["x"]}, "invalid memory policy flag"),
        ({"mode": "MPOL_DEFAULT", "nodes": "0-7"}, "mode requires 0 nodes but got 8"),
        ({"mode": "MPOL_BIND", "nodes": ""}, "requires at least one node"),
        ({"mode": "MPOL_BIND", "nodes": "0-9876543210"}, "invalid memory policy nodes"),
        ({"mode": "MPOL_BIND", "nodes": "1000"}, "failed to set memory policy: invalid argument"),
    ):
        runtime.config["linux"]["memoryPolicy"] = policy
        assert message in runtime.run("true").stderr


def test_personality(runtime: Any) -> None:
    runtime.config["linux"]["personality"] = {"domain": "LINUX32", "flags": []}
    runtime.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ERRNO"}],
    }
    assert runtime.shell("uname -m") == "i686\n"
    runtime.start("sleep", "100")
    assert runtime.call("exec", runtime.id, "uname", "-m").stdout == "i686\n"
    runtime.clean()
    runtime.config["linux"]["personality"] = {"domain": "LINUX"}
    assert runtime.run("uname", "-m").stdout == f"{os.uname().machine}\n"
    runtime.config["linux"]["personality"] = {"domain": "SOLARIS"}
    assert "invalid personality domain SOLARIS" in runtime.run("true").stderr
    runtime.config["linux"]["personality"] = {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}
    assert "linux.personality.flags" in runtime.run("true").stderr


# --- time, keys, labels


def test_a_time_namespace_with_offsets(runtime: Any, make_runtime: Any) -> None:
    linux = runtime.config["linux"]
    linux["namespaces"].append({"type": "time"})
    linux["timeOffsets"] = {"monotonic": {"secs": 7881, "nanosecs": 2718281}, "boottime": {"secs": 1337, "nanosecs": 3141519}}
    pid = runtime.start("sleep", "100")
    for show in ("/proc/self/timens_offsets", "/proc/1/timens_offsets"):
        printed = runtime.call("exec", runtime.id, "cat", show).stdout.split()
        assert printed == ["monotonic", "7881", "2718281", "boottime", "1337", "3141519"]
    uptime = float(runtime.call("exec", runtime.id, "cat", "/proc/uptime").stdout.split()[0])
    assert abs(uptime - float(Path("/proc/uptime").read_text().split()[0]) - 1337) < 60
    other = make_runtime("other")
    other.config["linux"]["namespaces"].append({"type": "time", "path": f"/proc/{pid}/ns/time"})
    assert other.shell("cat /proc/self/timens_offsets").split()[:3] == ["monotonic", "7881", "2718281"]
    other.config["linux"]["timeOffsets"] = {"monotonic": {"secs": 1}}
    assert "both namespace path and time offsets" in other.run("true").stderr
    other.clean()
    runtime.clean()
    linux["timeOffsets"] = {"monotonic": {"secs": -(10**12)}}
    assert "numerical result out of range" in runtime.run("true").stderr
    del linux["timeOffsets"]
    assert runtime.run("cat", "/proc/self/timens_offsets").stdout.split()[:3] == ["monotonic", "0", "0"]


# Prints the kernel's description of the session keyring: type, owner, group, permissions, name.
PROGRAM = """
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
	char text[200] = "none";
	syscall(SYS_keyctl, 6, -3, text, sizeof text);
	puts(text);
	return 0;
}
"""


@pytest.fixture
def keyring(runtime: Any, tmp_path: Path) -> Callable[[Any], list[str]]:
    """What a container sees of its session keyring; with words before it, run by them."""
    target = runtime.bundle / "rootfs/bin/keyring"
    subprocess.run(["gcc", "-static", "-x", "c", "-", "-o", target], input=PROGRAM, text=True, check=True)

    def show(done: Any) -> list[str]:
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip().split(";")

    return show


def test_the_session_keyring_is_the_containers_own(runtime: Any, keyring: Callable[[Any], list[str]]) -> None:
    # Its user may search it, so that an exec can join it: permissions of possessor, user, group, others.
    assert keyring(runtime.run("keyring")) == ["keyring", "0", "0", "3f1b0000", f"_ses.{runtime.id}"]
    runtime.start("sleep", "100")
    runtime.call("exec", runtime.id, "true", check=True)
    assert keyring(runtime.call("exec", runtime.id, "keyring"))[4] == f"_ses.{runtime.id}"
    # It is the same one, not another of the same name.
    assert sum(f"_ses.{runtime.id}:" in line for line in Path("/proc/keys").read_text().splitlines()) == 1


def test_the_callers_keyring_is_kept_only_if_asked_for(runtime: Any, keyring: Callable[[Any], list[str]]) -> None:
    runtime.config["process"]["args"] = ["keyring"]
    runtime.write()
    name = f"strata-test-{runtime.id}"
    join = f"import ctypes, os, sys; ctypes.CDLL(None).syscall(250, 1, b'{name}', 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", join, runtime.launcher, "--root", runtime.root, "run", "--bundle", runtime.bundle]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 30, "check": False}
    assert keyring(subprocess.run([*command, runtime.id], **options))[4] == f"_ses.{runtime.id}"
    assert keyring(subprocess.run([*command, "--no-new-keyring", runtime.id], **options))[4] == name


def test_labels_are_given_by_the_module_or_refused(runtime: Any) -> None:
    runtime.config["process"]["apparmorProfile"] = "nosuch-profile"
    done = runtime.run("true")
    assert done.returncode == 1
    assert "apparmor: config provided but apparmor not supported" in done.stderr or "no such file" in done.stderr
    del runtime.config["process"]["apparmorProfile"]
    runtime.config["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0"
    assert "selinux is disabled or not supported" in runtime.run("true").stderr
    del runtime.config["process"]["selinuxLabel"]
    runtime.config["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0"
    assert "mountLabel: selinux is disabled" in runtime.run("true").stderr
    del runtime.config["linux"]["mountLabel"]
    runtime.start("sleep", "100")
    profile = runtime.call("exec", "--apparmor", "nosuch-profile", runtime.id, "true")
    assert "apparmor: config provided but apparmor not supported" in profile.stderr or "no such file" in profile.stderr
    assert "selinux is disabled" in runtime.call("exec", "--process-label", "a:b:c:d", runtime.id, "true").stderr

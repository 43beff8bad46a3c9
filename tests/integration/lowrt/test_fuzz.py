"""Broken and hostile configurations: each gives a container or a clear error, and nothing is left of it."""

import contextlib
import copy
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowrt import config, documents, features, process
from lowrt.errors import RuntimeFailure
from strata.linux import cgroups, seccomp

LOWRT = Path(__file__).parents[3] / "lowrt" / "launcher"


def full_config() -> dict[str, Any]:
    """A valid configuration that has nearly everything that the specification knows."""
    spec: dict[str, Any] = copy.deepcopy(features.template(rootless=False))
    spec["process"] |= {
        "terminal": False, "args": ["/bin/true"], "consoleSize": {"height": 10, "width": 10}, "oomScoreAdj": 500,
        "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [5, 6]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
    }  # fmt: skip
    spec["process"]["capabilities"]["inheritable"] = ["CAP_KILL"]
    spec["process"]["capabilities"]["ambient"] = ["CAP_KILL"]
    spec["process"] |= {
        "scheduler": {"policy": "SCHED_BATCH", "nice": 3, "priority": 0, "flags": ["SCHED_FLAG_RESET_ON_FORK"], "runtime": 0},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4}, "execCPUAffinity": {"initial": "0", "final": "0-1"},
    }  # fmt: skip
    spec["annotations"] = {"org.example": "yes"}
    spec["domainname"] = "example"
    spec["hooks"] = {"createRuntime": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]}
    spec["mounts"].append({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m"]})
    linux = spec["linux"]
    linux["resources"] |= {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20}, "pids": {"limit": 50},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"}, "blockIO": {"weight": 100},
    }  # fmt: skip
    linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmni": "100"}
    linux["devices"] = [{"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 438, "uid": 0, "gid": 0}]
    linux["rootfsPropagation"] = "rslave"
    linux["namespaces"].append({"type": "time"})
    linux["timeOffsets"] = {"monotonic": {"secs": 10, "nanosecs": 5}}
    linux["personality"] = {"domain": "LINUX", "flags": []}
    linux["memoryPolicy"] = {"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    argument = {"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [argument]}],
    }  # fmt: skip
    return spec


# Words that mean something somewhere; none is a path that a container's root could be.
WORDS = (
    "", "x", "\0", "a\0b", "\ud800", "\udc80", "é", "x" * 5000, "pid", "user", "mount", "bind", "rshared", "proc", "=", "=x",
    "-1", "%s", "{}", "a:b:c", "SCMP_ACT_KILL", "RLIMIT_AS", "../../../../nosuch", "/nosuch/../x", "cgroup", "0-1", "4-2", "\n",
)  # fmt: skip
numbers = st.sampled_from(
    [0, -1, 1, 2, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400]
)
scalars = st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | st.sampled_from(WORDS) | st.text(max_size=20)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS[:9]), inner, max_size=3),
    max_leaves=8,
)
deep = st.integers(1, 300).map(lambda depth: ("deep", depth))
changes = st.lists(
    st.tuples(st.integers(0, 10**4), st.sampled_from(["replace", "replace", "alike", "delete", "repeat", "move"]), junk | deep),
    min_size=1, max_size=4,
)  # fmt: skip


# Changes that are often accepted: for containers, of which refused ones tell nothing.
mild = st.lists(
    st.tuples(st.integers(0, 10**4), st.sampled_from(["alike", "alike", "delete", "repeat", "move", "replace"]), scalars),
    min_size=1, max_size=3,
)  # fmt: skip


def alike(value: Any, number: int) -> Any:
    """Another value of the same type."""
    if isinstance(value, str):
        return WORDS[number % len(WORDS)]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return (0, 1, 3, 7, 100, 4096, 65535, 10**6, 2**31 - 1, 2**40)[number % 10]
    return type(value)()


def places(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """All (container, key or index) below a value."""
    found = [] if found is None else found
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        found.append((value, key))
        places(inner, found)
    return found


def changed(spec: dict[str, Any], steps: list[tuple[int, str, Any]]) -> dict[str, Any]:
    """The configuration after some changes of its structure."""
    for number, kind, new in steps:
        all_places = places(spec)
        if not all_places:
            break
        container, key = all_places[number % len(all_places)]
        if isinstance(new, tuple):
            depth, new = new[1], "bottom"
            for level in range(depth):
                new = [new] if level % 2 else {"": new}
        if kind == "alike":
            container[key] = alike(container[key], number)
        elif kind == "delete":
            del container[key]
        elif kind == "repeat" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == "move":
            other, place = all_places[(number * 7 + 1) % len(all_places)]
            if place in other if isinstance(other, dict) else place < len(other):
                container[key] = copy.deepcopy(other[place])
        else:
            container[key] = new
    return spec


def check_only(steps: list[tuple[int, str, Any]]) -> None:
    spec = changed(full_config(), steps)
    with contextlib.suppress(RuntimeFailure):
        config.check(spec)
        if spec.get("process"):
            process.Process(spec["process"], spec["linux"], None, 0)
        documents.loads(documents.dumps(spec))  # as it is written into the state
        if (profile := spec["linux"].get("seccomp")) and not seccomp.is_empty(profile):
            with contextlib.suppress(ValueError):
                seccomp.check(profile)


quick = settings(deadline=None, max_examples=500, print_blob=True, suppress_health_check=list(HealthCheck))


@quick
@given(changes)
def test_a_changed_configuration_is_checked_or_refused(steps: list[tuple[int, str, Any]]) -> None:
    check_only(steps)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(quick, max_examples=10_000)
@given(changes)
def test_ten_thousand_changed_configurations_are_checked_or_refused(steps: list[tuple[int, str, Any]]) -> None:
    check_only(steps)


@quick
@given(
    st.integers(0, 4000),
    st.integers(0, 30),
    st.text(max_size=5) | st.sampled_from(['"', "{", "[", "\\u", "1e999", "NaN", "[" * 2000]),
)
def test_a_changed_text_is_read_or_refused(place: int, length: int, new: str) -> None:
    text = json.dumps(full_config())
    with contextlib.suppress(ValueError):
        documents.loads_once(text[:place] + new + text[place + length :])


def test_what_go_would_accept_is_accepted() -> None:
    spec = full_config()
    spec["process"]["user"] = None
    spec["linux"]["devices"][0]["uid"] = None
    spec["hooks"] = spec["annotations"] = spec["linux"]["sysctl"] = spec["linux"]["resources"]["memory"]["limit"] = None
    spec["unknown"] = {"deep": [None, {"x": 1}]}
    spec["process"]["unknown"] = 5
    config.check(spec)
    assert "user" not in spec["process"]
    assert "unknown" not in spec
    assert spec["linux"]["resources"]["memory"] == {"reservation": 32 << 20}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(process=[]), "config.json: process: must be an object, not a list"),
        (lambda c: c["process"]["args"].append(5), r"process.args\[1\]: must be a string, not a number"),
        (lambda c: c["process"]["args"].append("a\0b"), r"process.args\[1\]: must not contain a NUL byte"),
        (lambda c: c["process"].update(cwd="/\ud800"), "process.cwd: must be Unicode"),
        (lambda c: c["process"]["user"].update(uid=2**32 - 1), "process.user.uid: must be a number from 0 to 4294967294"),
        (lambda c: c["process"]["user"].update(uid=1.0), "process.user.uid: must be a whole number, not a number with a point"),
        (lambda c: c["process"].update(noNewPrivileges="yes"), "noNewPrivileges: must be true or false, not a string"),
        (lambda c: c["process"].update(env=["x"]), "missing '='"),
        (lambda c: c["process"].update(env=["=x"]), "name cannot be empty"),
        (lambda c: c["process"]["rlimits"].append({"type": "RLIMIT_CORE", "soft": 0, "hard": 0}), "given twice"),
        (lambda c: c["process"]["rlimits"].append({"type": "RLIMIT_CPU", "soft": 2, "hard": 1}), "above the hard one"),
        (lambda c: c["process"].update(oomScoreAdj=1001), "oomScoreAdj"),
        (lambda c: c["linux"]["resources"]["memory"].update(limit=2**63), "linux.resources.memory.limit: must be a number"),
        (lambda c: c["linux"]["sysctl"].update({"kernel.panic": "1"}), "not in a separate kernel namespace"),
        (lambda c: c["linux"]["sysctl"].update({"kernel.hostname": "x"}), "conflicts with the OCI"),
        (lambda c: c["linux"]["sysctl"].update({"user.max_user_namespaces": "1"}), "ucounts without a user namespace"),
        (lambda c: c["linux"]["sysctl"].update({"net/../kernel/panic": "1"}), "no such name"),
        (lambda c: c["linux"]["namespaces"].remove({"type": "uts"}), "unable to set hostname without a private UTS namespace"),
        (lambda c: c["linux"]["namespaces"][1].update(path="/proc/self/ns/net"), "not allowed in host network namespace"),
        (lambda c: c["linux"]["namespaces"].remove({"type": "network"}), "not allowed in host network namespace"),
        (lambda c: c["linux"]["namespaces"].remove({"type": "ipc"}), "not allowed in the hosts ipc namespace"),
        (lambda c: c["linux"]["namespaces"].remove({"type": "time"}), "time namespace isn't enabled"),
        (lambda c: c["linux"]["timeOffsets"].update(realtime={}), "no clock 'realtime'"),
        (lambda c: c["linux"].update(uidMappings=[{"containerID": 0, "hostID": 0, "size": 1}]), "user namespace isn't enabled"),
        (lambda c: c["linux"].update(rootfsPropagation="x"), "rootfsPropagation=x is not supported"),
        (lambda c: c["hooks"]["createRuntime"][0].update(timeout=0), "greater than zero"),
        (lambda c: c["hooks"]["createRuntime"][0].update(path="true"), "absolute path"),
        (lambda c: c["linux"].update(mountLabel="system_u:object_r:x:s0"), "mountLabel"),
        (lambda c: c["process"].update(selinuxLabel="system_u:object_r:x:s0"), "selinux is disabled or not supported"),
        (lambda c: c["process"].update(apparmorProfile="x"), "apparmor"),
        (lambda c: c["linux"].update(intelRdt={"closID": "x"}), "intelRdt: not supported"),
        (lambda c: c["linux"].update(netDevices={"eth 0": {}}), "invalid network device name 'eth 0'"),
        (lambda c: c["linux"].update(netDevices={"eth0": {"name": "x" * 16}}), "invalid network device name 'xxxxxxxxxxxxxxxx'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: Any, message: str) -> None:
    spec = full_config()
    change(spec)
    with pytest.raises(RuntimeFailure, match=message):
        config.check(spec)


def test_a_name_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'path' is given twice"):
        documents.loads_once('{"root": {"path": "a", "path": "b"}}')
    assert documents.loads('{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eno2.100/rp_filter", "net/ipv4/conf/eno2.100/rp_filter"),
        ("net.ipv4.conf.eno2/100.rp_filter", "net/ipv4/conf/eno2.100/rp_filter"),
    ],
)
def test_names_of_sysctls_may_have_either_separator(name: str, path: str) -> None:
    assert config.sysctl_path(name) == path


# --- the ones that are accepted, as containers


@pytest.fixture(scope="module")
def bundle() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="strata-test-") as folder:  # pytest's own is closed to a user namespace's root
        made = Path(folder)
        made.chmod(0o755)
        (made / "rootfs/bin").mkdir(parents=True)
        os.chown(made / "rootfs", 100000, 100000)
        shutil.copy("/bin/busybox", made / "rootfs/bin/true")
        yield made


# In a mount namespace of their own, so that nothing that is left in it stays on the machine.
SCRIPT = """
cat /proc/self/mountinfo >before
"$0" --root state create --bundle . fuzzed 2>error </dev/null >/dev/null; status=$?
[ $status = 0 ] && "$0" --root state delete --force fuzzed
cat /proc/self/mountinfo >after
exit $status
"""


def try_to_create(bundle: Path, steps: list[tuple[int, str, Any]], *, user: bool) -> bool:
    """Creates a container of a changed configuration; whether it was made. user: in a user namespace."""
    spec = full_config()
    if user:
        spec["linux"]["namespaces"].append({"type": "user"})
        spec["linux"]["devices"][0] |= {"path": "/dev/zero"}  # what is not on the machine cannot be bound
        for name in ("uidMappings", "gidMappings"):
            spec["linux"][name] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"]["cgroupsPath"] = path = f"/strata-test-fuzz-{os.getpid()}"
    changed(spec, steps)
    text = json.dumps(spec)
    try:
        config.check(spec)
    except RuntimeFailure:
        return False
    if spec["root"]["path"] not in ("rootfs", "nosuch"):
        return False  # nothing of the machine becomes a container's root here
    (bundle / "config.json").write_text(text)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, str(LOWRT)]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=60, check=False)
    error = (bundle / "error").read_text()
    try:
        assert done.returncode in (0, 1, 126, 127), (done.returncode, error, done.stdout, done.stderr)
        failures = [line for line in error.splitlines() if not line.startswith("lowrt: warning: ")]
        assert (failures == []) == (done.returncode == 0)
        assert "Traceback" not in error
        before, after = ((bundle / name).read_text().splitlines() for name in ("before", "after"))
        assert set(after) <= set(before)
        assert not [path for path in (bundle / "state").glob("*") if path.name != ".seccomp"], done.stderr
        own = spec["linux"].get("cgroupsPath")
        assert own != path or not cgroups.open_cgroup(path).exists()
    finally:
        shutil.rmtree(bundle / "state", ignore_errors=True)
        cgroups.open_cgroup(path).remove()
    return done.returncode == 0


@settings(quick, max_examples=60)
@given(mild, st.booleans())
def test_a_changed_configuration_makes_a_container_or_leaves_nothing(
    bundle: Path, steps: list[tuple[int, str, Any]], user: bool
) -> None:
    try_to_create(bundle, steps, user=user)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(quick, max_examples=3000)
@given(mild, st.booleans())
def test_thousands_of_changed_configurations_make_containers_or_leave_nothing(
    bundle: Path, steps: list[tuple[int, str, Any]], user: bool
) -> None:
    try_to_create(bundle, steps, user=user)


@pytest.mark.parametrize("user", [False, True])
def test_the_unchanged_configuration_makes_a_container(bundle: Path, user: bool) -> None:
    assert try_to_create(bundle, [], user=user)

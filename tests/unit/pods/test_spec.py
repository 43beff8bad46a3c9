"""From CRI's configuration and the image's to the OCI runtime's."""

from pathlib import Path
from typing import Any

import pytest

from highrt import seccomp_default
from highrt.images.model import ImageConfig
from highrt.pods import sandbox, sandboxes, spec
from highrt.pods.errors import InvalidArgument
from highrt.pods.signals import number, of_number, stop_signal
from strata.linux import capabilities
from strata.protocols.cri_pb2 import (
    ContainerConfig,
    DNSConfig,
    LinuxContainerResources,
    Mount,
    MountPropagation,
    NamespaceMode,
    PodSandboxConfig,
    SecurityProfile,
    Signal,
)


@pytest.fixture
def place(tmp_path: Path) -> spec.Place:
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:1001:1002::/:/bin/sh\n")
    (tmp_path / "rootfs/etc/group").write_text("wheel:x:10:ann\nann:x:1002:\n")
    shared = {"network": "/ns/network", "ipc": "/ns/ipc"}
    return spec.Place("c1", "p1", tmp_path, tmp_path / "rootfs", "/pods/p1/c1", shared, "", "host-1")


def build(
    place: spec.Place, config: ContainerConfig, image: ImageConfig | None = None, pod: PodSandboxConfig | None = None
) -> dict[str, Any]:
    return spec.build(pod or PodSandboxConfig(), config, image or ImageConfig(cmd=("sh",)), place)


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["entry", "cmd"]),
        ([], ["own"], ["entry", "own"]),
        (["own"], [], ["own"]),
        (["own"], ["args"], ["own", "args"]),
    ],
)
def test_the_command_line(command: list[str], args: list[str], expected: list[str]) -> None:
    image = ImageConfig(entrypoint=("entry",), cmd=("cmd",))
    assert spec.arguments(ContainerConfig(command=command, args=args), image) == expected


def test_no_command_at_all_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        spec.arguments(ContainerConfig(), ImageConfig())


def test_variables_of_the_request_replace_those_of_the_image() -> None:
    config = ContainerConfig(tty=True)
    config.envs.add(key="A", value=b"request=1")
    found = spec.environment(config, ImageConfig(env=("A=image", "PATH=/only")), "h")
    assert found == ["PATH=/only", "A=request=1", "HOSTNAME=h", "TERM=xterm"]
    config.envs.add(key="A=B", value=b"")
    with pytest.raises(InvalidArgument, match="A=B"):
        spec.environment(config, ImageConfig(), "")


def test_capabilities_are_the_defaults_with_what_is_added_and_dropped() -> None:
    config = ContainerConfig()
    asked = config.linux.security_context.capabilities
    assert set(spec.capabilities(config.linux.security_context)) == set(spec.DEFAULT_CAPABILITIES)
    asked.add_capabilities.append("net_admin")
    asked.drop_capabilities.append("CAP_KILL")
    found = set(spec.capabilities(config.linux.security_context))
    assert found == set(spec.DEFAULT_CAPABILITIES) - {"CAP_KILL"} | {"CAP_NET_ADMIN"}
    asked.drop_capabilities.append("ALL")
    assert spec.capabilities(config.linux.security_context) == ["CAP_NET_ADMIN"]
    asked.add_capabilities.append("FLY")
    with pytest.raises(InvalidArgument, match="FLY"):
        spec.capabilities(config.linux.security_context)


def test_a_user_who_is_not_root_has_no_capabilities_but_may_be_given_ambient_ones(place: spec.Place) -> None:
    config = ContainerConfig()
    context = config.linux.security_context
    context.run_as_user.value = 1001
    process = build(place, config)["process"]
    assert process["user"] == {"uid": 1001, "gid": 1002, "additionalGids": [10, 1002]}
    assert process["capabilities"]["effective"] == []
    assert "CAP_KILL" in process["capabilities"]["bounding"]
    context.capabilities.add_capabilities.append("NET_BIND_SERVICE")
    context.capabilities.add_ambient_capabilities.append("NET_BIND_SERVICE")
    sets = build(place, config)["process"]["capabilities"]
    assert sets["ambient"] == sets["effective"] == ["CAP_NET_BIND_SERVICE"]


def test_groups_of_the_image_may_be_left_out(place: spec.Place) -> None:
    config = ContainerConfig()
    context = config.linux.security_context
    context.run_as_username, context.supplemental_groups_policy = "ann", 1
    context.supplemental_groups.append(7)
    context.run_as_group.value = 5
    assert build(place, config)["process"]["user"] == {"uid": 1001, "gid": 5, "additionalGids": [5, 7]}
    context.ClearField("run_as_username")
    with pytest.raises(InvalidArgument, match="run_as_group"):
        build(place, config)


def test_namespaces_are_the_pods_or_the_hosts(place: spec.Place) -> None:
    kinds = {entry["type"]: entry.get("path") for entry in build(place, ContainerConfig())["linux"]["namespaces"]}
    assert kinds.items() >= {"mount": None, "pid": None, "network": "/ns/network", "ipc": "/ns/ipc"}.items()
    config = PodSandboxConfig(hostname="h")
    box = sandbox.Sandbox(Path("/s"), "p")
    assert set(box.namespaces(config)) == {"network", "uts", "ipc"}
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    assert set(box.namespaces(config)) == {"ipc"}
    assert sandbox.hostname(config) != "h"


@pytest.mark.parametrize(("text", "rate"), [("10M", 10_000_000), ("1Gi", 1 << 30), ("1500", 1500), ("1k", 1000)])
def test_a_pods_bandwidth_is_in_its_annotations(text: str, rate: int) -> None:
    config = PodSandboxConfig(annotations={"kubernetes.io/egress-bandwidth": text})
    assert sandboxes.bandwidth(config) == {"egressRate": rate, "egressBurst": 2**32 - 1}


@pytest.mark.parametrize("text", ["fast", "999", "-1M", "1m"])
def test_a_bandwidth_that_cannot_be_is_told(text: str) -> None:
    with pytest.raises(InvalidArgument, match="ingress-bandwidth"):
        sandboxes.bandwidth(PodSandboxConfig(annotations={"kubernetes.io/ingress-bandwidth": text}))


def test_a_privileged_container_is_not_held_back(place: spec.Place) -> None:
    config = ContainerConfig()
    config.linux.security_context.seccomp.profile_type = SecurityProfile.RuntimeDefault
    held = build(place, config)
    assert held["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert "/proc/kcore" in held["linux"]["maskedPaths"]
    assert held["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    config.linux.security_context.privileged = True
    with pytest.raises(InvalidArgument, match="needs a privileged pod sandbox"):
        build(place, config)
    pod = PodSandboxConfig()
    pod.linux.security_context.privileged = True
    free = build(place, config, pod=pod)
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(free["linux"])
    assert free["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "/dev/null" in {node["path"] for node in free["linux"]["devices"]}
    (sysfs,) = [mount for mount in free["mounts"] if mount["destination"] == "/sys"]
    assert "ro" not in sysfs["options"]


def test_mounts_come_in_order_and_replace_the_defaults(place: spec.Place, tmp_path: Path) -> None:
    config = ContainerConfig()
    config.mounts.extend([
        Mount(container_path="/a/b", host_path=str(tmp_path / "new"), propagation=MountPropagation.PROPAGATION_BIDIRECTIONAL),
        Mount(container_path="/a", host_path=str(tmp_path), readonly=True),
        Mount(container_path="/etc/hosts", host_path="/etc/hosts"),
    ])  # fmt: skip
    built = build(place, config)
    found = {mount["destination"]: mount for mount in built["mounts"]}
    order = [mount["destination"] for mount in built["mounts"]]
    assert order.index("/a") < order.index("/a/b")
    assert order.count("/etc/hosts") == 1
    assert found["/etc/hosts"]["source"] == "/etc/hosts"
    assert found["/a"]["options"] == ["rbind", "rprivate", "ro"]
    assert found["/a/b"]["options"] == ["rbind", "rshared", "rw"]
    assert built["linux"]["rootfsPropagation"] == "rshared"
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount(container_path="a", host_path="/tmp"), "absolute"),
        (Mount(container_path="/", host_path="/tmp"), "not the root"),
        (Mount(container_path="/a", host_path="tmp"), "host_path"),
        (Mount(container_path="/a", host_path="/tmp", recursive_read_only=True), "needs readonly"),
        (Mount(container_path="/a", host_path="/dev/null/x"), "cannot make"),
    ],
)
def test_mounts_that_cannot_be_are_refused(place: spec.Place, mount: Mount, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        build(place, ContainerConfig(mounts=[mount]))


def test_limits_that_are_not_set_stay_out() -> None:
    assert spec.oci_resources(LinuxContainerResources()) == {}
    found = spec.oci_resources(LinuxContainerResources(cpu_shares=2, cpu_quota=-1, memory_limit_in_bytes=5))
    assert found == {"cpu": {"shares": 2, "quota": -1}, "memory": {"limit": 5}}


def test_the_oom_score_is_never_below_what_may_be_written() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert spec.oom_score_adj(1000) == 1000
    assert spec.oom_score_adj(-998) in (-998, own)


@pytest.mark.parametrize(
    ("text", "action"),
    [("", None), ("unconfined", None), ("runtime/default", "SCMP_ACT_ERRNO"), ("docker/default", "SCMP_ACT_ERRNO")],
)
def test_seccomp_may_be_asked_for_by_the_text_of_before(place: spec.Place, text: str, action: str | None) -> None:
    config = ContainerConfig()
    config.linux.security_context.seccomp_profile_path = text
    found = build(place, config)["linux"].get("seccomp")
    assert (found and found["defaultAction"]) == action


def test_the_default_seccomp_profile_opens_with_capabilities() -> None:
    def names(granted: list[str]) -> set[str]:
        return {name for rule in seccomp_default.profile(granted)["syscalls"] for name in rule["names"]}

    assert "mount" not in names([])
    assert "mount" in names(["CAP_SYS_ADMIN"])
    assert {"read", "execve", "clone3", "socket"} <= names([])
    assert not {"keyctl", "add_key", "userfaultfd", "kexec_load", "io_uring_setup"} & names(["CAP_SYS_ADMIN"])


def test_sysctls_of_the_host_are_refused() -> None:
    config = PodSandboxConfig()
    config.linux.sysctls["net.core.somaxconn"] = "1"
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    sandbox.check_sysctls(config)
    for name in ("kernel.panic", "vm.swappiness", "net/../kernel/panic", "net.x y"):
        bad = PodSandboxConfig()
        bad.linux.sysctls[name] = "1"
        with pytest.raises(InvalidArgument):
            sandbox.check_sysctls(bad)
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    with pytest.raises(InvalidArgument, match="host's network"):
        sandbox.check_sysctls(config)


def test_the_resolvers_configuration() -> None:
    text = sandbox.resolv_conf(DNSConfig(servers=["1.2.3.4", "::1"], searches=["a", "b"], options=["ndots:5"]))
    assert text == "nameserver 1.2.3.4\nnameserver ::1\nsearch a b\noptions ndots:5\n"
    assert sandbox.resolv_conf(DNSConfig()) == Path("/etc/resolv.conf").read_text()


@pytest.mark.parametrize(
    ("text", "expected"), [("TERM", 15), ("SIGUSR1", 10), ("9", 9), ("SIGRTMIN+3", 37), ("nonsense", 15), ("999", 15)]
)
def test_signals_by_name(text: str, expected: int) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(("key", "value"), [("", b"x"), ("A=B", b"x"), ("A", b"x\0y")])
def test_variables_that_cannot_be_are_refused(key: str, value: bytes) -> None:
    config = ContainerConfig()
    config.envs.add(key=key, value=value)
    with pytest.raises(InvalidArgument, match="environment variable"):
        spec.environment(config, ImageConfig(), "")


def test_limits_of_huge_pages_are_left_out_where_the_kernel_cannot_limit_them(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = LinuxContainerResources()
    resources.hugepage_limits.add(page_size="2MB", limit=0)
    for there, expected in ((True, [{"pageSize": "2MB", "limit": 0}]), (False, None)):
        monkeypatch.setattr("highrt.pods.spec.cgroups.has", lambda controller, there=there: there)
        assert spec.oci_resources(resources).get("hugepageLimits") == expected


def test_every_signal_has_a_name_in_cri_and_back() -> None:
    for value in Signal.values():
        if value != Signal.SIGNAL_RUNTIME_DEFAULT:
            asked = stop_signal(value, "")
            assert stop_signal(of_number(asked), "") == asked
    assert of_number(15) == Signal.SIGNAL_SIGTERM
    assert of_number(35) == Signal.SIGNAL_SIGRTMINPLUS1
    assert of_number(63) == Signal.SIGNAL_SIGRTMAXMINUS1
    assert of_number(33) == Signal.SIGNAL_RUNTIME_DEFAULT


def test_the_stop_signal_is_the_requests_then_the_images() -> None:
    assert stop_signal(Signal.SIGNAL_RUNTIME_DEFAULT, "") == 15
    assert stop_signal(Signal.SIGNAL_RUNTIME_DEFAULT, "SIGQUIT") == 3
    assert stop_signal(Signal.SIGNAL_SIGRTMINPLUS3, "SIGQUIT") == 37


def test_capability_names_are_the_kernels() -> None:
    assert set(spec.DEFAULT_CAPABILITIES) <= set(capabilities.NUMBERS)

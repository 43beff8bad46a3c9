"""containerd with its own shim (io.containerd.runc.v2), which calls lowrt in runc's place: by ctr, and by CRI as a kubelet."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from strata.linux import cgroups
from strata.protocols import cri_pb2 as cri
from strata.protocols import grpc
from strata.protocols.cri_grpc import RuntimeServiceStub
from tests.conftest import wait_for
from tests.interop.lowrt.conftest import (
    IMAGE,
    LOWRT,
    NET_ADMIN,
    PAUSE,
    Done,
    Place,
    capabilities,
    cgroup_parents,
    limit,
    place,
    run,
    short_folder,
)
from tests.stack.terminal import Terminal

CGROUPS = "/strata-peers"
CONFIGURATION = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
address = "{folder}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{folder}/cni"
bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "lowrt"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.lowrt]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.lowrt.options]
BinaryName = "{lowrt}"
"""
NETWORK = {
    "cniVersion": "1.0.0",
    "name": "peers",
    "plugins": [{"type": "bridge", "bridge": "peers0", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/16"}]]}}],
}


class Containerd:
    """A containerd that runs in a place of its own. Calling it runs a command of ctr's."""

    def __init__(self, folder: Path, place: Place) -> None:
        self.folder, self._place = folder, place
        self.endpoint = f"unix://{folder}/c.sock"

    def __call__(self, *argv: object, check: bool = True, text: str | None = None, namespace: str = "default") -> Done:
        return run(*self.argv(*argv, namespace=namespace), check=check, text=text)

    def argv(self, *argv: object, namespace: str = "default") -> list[str]:
        return self._place.command("ctr", "--address", f"{self.folder}/c.sock", "--namespace", namespace, *argv)

    def run(self, name: str, *options: object, program: tuple[str, ...], **given: object) -> Done:
        """Runs a program in a new container, by `ctr run`."""
        how = ("--runc-binary", LOWRT, "--cgroup", f"{CGROUPS}/{name}")
        return self("run", *how, *options, IMAGE, name, *program, **given)  # type: ignore[arg-type]

    def shell(self, script: str, *options: object) -> str:
        return self.run("shell", "--rm", *options, program=("sh", "-ec", script)).stdout

    def task(self, name: str) -> str:
        """The state of a task: RUNNING and so on."""
        rows = [line.split() for line in self("task", "ls").stdout.splitlines()]
        return next(row[2] for row in rows if row[0] == name)

    def remove(self, name: str) -> None:
        self("task", "kill", "--signal", "KILL", name, check=False)
        wait_for(lambda: self("task", "rm", name, check=False).returncode == 0 or name not in self("task", "ls").stdout)
        self("container", "rm", name)


@pytest.fixture(scope="module")
def containerd(image_archive: Path) -> Iterator[Containerd]:
    with ExitStack() as stack:
        stack.enter_context(cgroup_parents(CGROUPS))
        folder = stack.enter_context(short_folder())
        (folder / "cni").mkdir()
        (folder / "cni/10-peers.conflist").write_text(json.dumps(NETWORK))
        config = folder / "config.toml"
        config.write_text(CONFIGURATION.format(folder=folder, pause=PAUSE, lowrt=LOWRT))
        own = stack.enter_context(place(folder, "containerd", "--config", config))
        containerd = Containerd(folder, own)
        own.answers("ctr", "--address", folder / "c.sock", "version")
        for namespace in ("default", "k8s.io"):
            containerd("image", "import", image_archive, namespace=namespace)
        yield containerd


@pytest.fixture
def one(containerd: Containerd) -> Iterator[str]:
    """A container that runs, and ends with 3 when it is asked to."""
    program = "trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done"
    containerd.run("one", "--detach", program=("sh", "-c", program))
    yield "one"
    containerd.remove("one")


# --- ctr


def test_run_gives_output_and_status(containerd: Containerd) -> None:
    done = containerd.run("talk", "--rm", program=("sh", "-c", "echo out; echo err >&2; exit 4"), check=False)
    assert (done.returncode, done.stdout) == (4, "out\n")
    assert "err\n" in done.stderr
    assert containerd.run("talk", "--rm", program=("head", "-n", "1"), text="given\n").stdout == "given\n"
    missing = containerd.run("talk", "--rm", program=("nosuch",), check=False)
    assert missing.returncode == 1
    assert "OCI runtime create failed" in missing.stderr
    assert 'exec: "nosuch": executable file not found in $PATH' in missing.stderr


@pytest.mark.parametrize(
    ("options", "script", "printed"),
    [
        (["--read-only"], "! touch /x", ""),
        (["--env", "A=b", "--cwd", "/tmp"], "echo $A; pwd", "b\n/tmp\n"),
        (["--mount", "type=bind,src=/etc,dst=/v,options=rbind:ro"], "! touch /v/x; test -e /v/passwd", ""),
        (["--mount", "type=tmpfs,src=tmpfs,dst=/t,options=size=1m"], "grep -c ' /t tmpfs' /proc/mounts", "1\n"),
        (["--device", "/dev/fuse"], "stat -c %t:%T /dev/fuse", "a:e5\n"),
        (["--seccomp"], "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"),
        (["--net-host"], "ls /sys/class/net | grep -x lo", "lo\n"),
        (["--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000"], "cat /proc/self/uid_map", f"{0:10} {100000:10} {5000:10}\n"),
        (["--no-pivot", "--privileged"], "id -u; ls /proc/1/root | grep -x bin", "0\nbin\n"),
        (["--allow-new-privs"], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0\n"),
        ([], "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"),
        (["--with-ns", "uts:/proc/1/ns/uts"], "test $(hostname) = $(cat /proc/sys/kernel/hostname)", ""),
    ],
)
def test_an_option_of_run_has_its_effect(containerd: Containerd, options: list[str], script: str, printed: str) -> None:
    assert containerd.shell(script, *options) == printed


def test_capabilities_are_added(containerd: Containerd) -> None:
    assert capabilities(containerd.shell("cat /proc/self/status", "--cap-add", "CAP_NET_ADMIN")) & NET_ADMIN
    assert not capabilities(containerd.shell("cat /proc/self/status")) & NET_ADMIN


def test_limits_and_metrics_are_those_of_the_cgroup(containerd: Containerd) -> None:
    options = ("--memory-limit", str(50 << 20), "--cpu-quota", "30000", "--cpu-period", "100000")
    containerd.run("limited", "--detach", *options, program=("sleep", "100"))
    group = f"{CGROUPS}/limited"
    assert limit(group, "memory", "memory.limit_in_bytes") == str(50 << 20)
    assert limit(group, "cpu", "cpu.cfs_quota_us") == "30000"
    metrics = containerd("task", "metrics", "limited").stdout
    assert re.search(rf"memory.limit_in_bytes\s+{50 << 20}\s", metrics)
    assert re.search(r"pids.current\s+1\s", metrics)
    containerd.remove("limited")
    assert not cgroups.open_cgroup(group).exists()


def test_exec_in_a_task(containerd: Containerd, one: str) -> None:
    def execute(*program: str, text: str | None = None) -> Done:
        return containerd("task", "exec", "--exec-id", "e", one, *program, check=False, text=text)

    assert "sleep 0.1" in execute("ps").stdout
    assert execute("sh", "-c", "exit 6").returncode == 6
    assert execute("head", "-n", "1", text="given\n").stdout == "given\n"
    assert 'exec: "nosuch": executable file not found in $PATH' in execute("nosuch").stderr
    assert containerd("task", "exec", "--exec-id", "e", "--user", "1000:50", "--cwd", "/tmp", one, "id").stdout.startswith(
        "uid=1000(ada) gid=50(staff)"
    )
    containerd("task", "exec", "--detach", "--exec-id", "background", one, "sleep", "1000")
    assert "sleep 1000" in execute("ps").stdout
    containerd("task", "kill", "--exec-id", "background", "--signal", "KILL", one)
    wait_for(lambda: "sleep 1000" not in execute("ps").stdout, what="the end of what was killed")


def test_exec_with_a_terminal(containerd: Containerd, one: str) -> None:
    argv = containerd.argv("task", "exec", "--tty", "--exec-id", "t", one, "sh")
    with Terminal(argv, rows=30, columns=90) as terminal:
        terminal.send("tty\n")
        terminal.expect("/dev/pts/[0-9]")
        wait_for(lambda: terminal.ask("stty size\n", "30 90"), what="the size")
        terminal.resize(rows=44, columns=120)
        wait_for(lambda: terminal.ask("stty size\n", "44 120"), what="the new size")
        terminal.send("sh -c 'echo going; exec sleep 1000'\n")
        terminal.expect("going\r+\n")
        terminal.send("\x03")
        terminal.expect("# ")
        terminal.send("exit 9\n")
        assert terminal.wait() == 9


def test_a_tasks_life(containerd: Containerd, one: str) -> None:
    assert containerd.task(one) == "RUNNING"
    containerd("task", "pause", one)
    assert containerd.task(one) == "PAUSED"
    containerd("task", "resume", one)
    assert containerd.task(one) == "RUNNING"
    assert len(containerd("task", "ps", one).stdout.splitlines()) >= 2
    refused = containerd("task", "checkpoint", one, check=False)
    assert refused.returncode == 1
    assert "checkpoint: not supported" in refused.stderr
    containerd("task", "kill", "--signal", "TERM", one)
    wait_for(lambda: containerd.task(one) == "STOPPED", what="the end")
    assert "exit with non-zero exit code 3" in containerd("task", "rm", one).stderr


# --- CRI


@pytest.fixture
async def runtime(containerd: Containerd) -> AsyncIterator[RuntimeServiceStub]:
    channel = grpc.channel(containerd.endpoint)
    yield RuntimeServiceStub(channel)
    channel.close()


@pytest.fixture
async def pod(containerd: Containerd, runtime: RuntimeServiceStub) -> AsyncIterator[tuple[str, cri.PodSandboxConfig]]:
    """A pod sandbox: its ID and configuration."""
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="pod", namespace="peers", uid="1"),
        hostname="hal",
        log_directory=f"{containerd.folder}/logs",
        linux=cri.LinuxPodSandboxConfig(cgroup_parent=f"{CGROUPS}/pod", sysctls={"net.ipv4.ip_unprivileged_port_start": "0"}),
    )
    sandbox = (await runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config, runtime_handler="lowrt"))).pod_sandbox_id
    yield sandbox, config
    await runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox))


async def start(
    runtime: RuntimeServiceStub, pod: tuple[str, cri.PodSandboxConfig], name: str, script: str, **linux: object
) -> str:
    """Starts a shell script as a container of the pod; the container's ID."""
    sandbox, sandbox_config = pod
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image=IMAGE),
        command=["sh", "-c", script],
        log_path=f"{name}.log",
        linux=cri.LinuxContainerConfig(**linux),  # type: ignore[arg-type]
    )
    request = cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=sandbox_config)
    container: str = (await runtime.CreateContainer(request)).container_id
    await runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    return container


async def execute(runtime: RuntimeServiceStub, container: str, *program: str) -> cri.ExecSyncResponse:
    return await runtime.ExecSync(cri.ExecSyncRequest(container_id=container, cmd=program, timeout=20))


async def test_a_kubelet_runs_a_pod(
    containerd: Containerd, runtime: RuntimeServiceStub, pod: tuple[str, cri.PodSandboxConfig]
) -> None:
    wait = "while :; do sleep 0.1; done"
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=50 << 20, cpu_quota=30000, cpu_period=100000)
    security = cri.LinuxContainerSecurityContext(
        run_as_user=cri.Int64Value(value=1000),
        no_new_privs=True,
        readonly_rootfs=True,
        seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault),
        capabilities=cri.Capability(drop_capabilities=["ALL"]),
    )
    careful = await start(
        runtime,
        pod,
        "careful",
        f"trap 'echo bye; exit 3' TERM; echo ready; {wait}",
        resources=resources,
        security_context=security,
    )
    plain = await start(runtime, pod, "plain", f"trap '' TERM; {wait}")

    script = "id -u; hostname; ! touch /x; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; readlink /proc/self/ns/net"
    answer = await execute(runtime, careful, "sh", "-c", f"{script}; cat /proc/self/status")
    printed = answer.stdout.decode().splitlines()
    assert (answer.exit_code, printed[:3]) == (0, ["1000", "hal", "0"])
    assert {"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"} <= set(printed)
    answer = await execute(runtime, plain, "readlink", "/proc/self/ns/net")
    assert answer.stdout.decode().strip() == printed[3]
    assert (await execute(runtime, plain, "sh", "-c", "exit 5")).exit_code == 5

    group = f"{CGROUPS}/pod/{careful}"
    assert limit(group, "memory", "memory.limit_in_bytes") == str(50 << 20)
    assert limit(group, "cpu", "cpu.cfs_quota_us") == "30000"
    update = cri.LinuxContainerResources(memory_limit_in_bytes=60 << 20)
    await runtime.UpdateContainerResources(cri.UpdateContainerResourcesRequest(container_id=careful, linux=update))
    assert limit(group, "memory", "memory.limit_in_bytes") == str(60 << 20)
    stats = (await runtime.ContainerStats(cri.ContainerStatsRequest(container_id=careful))).stats
    assert stats.memory.working_set_bytes.value > 0
    assert stats.cpu.usage_core_nano_seconds.value > 0

    await runtime.StopContainer(cri.StopContainerRequest(container_id=careful, timeout=20))
    await runtime.StopContainer(cri.StopContainerRequest(container_id=plain, timeout=0))
    ended = [
        (await runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container))).status
        for container in (careful, plain)
    ]
    assert [status.state for status in ended] == [cri.CONTAINER_EXITED] * 2
    assert [status.exit_code for status in ended] == [3, 137]
    log = (containerd.folder / "logs/careful.log").read_text().splitlines()
    assert [line.split(" ", 3)[1:] for line in log] == [["stdout", "F", "ready"], ["stdout", "F", "bye"]]


async def test_a_program_that_a_kubelet_cannot_start(runtime: RuntimeServiceStub, pod: tuple[str, cri.PodSandboxConfig]) -> None:
    sandbox, sandbox_config = pod
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="bad"), image=cri.ImageSpec(image=IMAGE), command=["nosuch"], log_path="bad.log"
    )
    request = cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=sandbox_config)
    container = (await runtime.CreateContainer(request)).container_id
    with pytest.raises(Exception, match=r'exec: "nosuch": executable file not found in \$PATH'):
        await runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    status = (await runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container))).status
    assert (status.exit_code, status.reason) == (128, "StartError")

"""CRI against a real daemon, called as a kubelet calls it; with grpcio, so that a second gRPC stack reads the answers."""

import asyncio
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from strata.linux import mounts
from strata.protocols import cri_pb2 as cri
from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon
from tests.unit.highrt.spdy_client import Tunnel, forward


class Client:
    """Calls `client.Version(cri.VersionRequest())` and so on; messages are of the project's proto, the wire is grpcio's."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address.replace("unix://", "unix:"))

    def __getattr__(self, method: str) -> Any:
        images = method in ("PullImage", "ListImages", "StreamImages", "ImageStatus", "RemoveImage", "ImageFsInfo")
        answer = "ContainerEventResponse" if method == "GetContainerEvents" else f"{method}Response"
        streams = method == "GetContainerEvents" or method.startswith("Stream")
        make = self.channel.unary_stream if streams else self.channel.unary_unary
        call = make(
            f"/runtime.v1.{'Image' if images else 'Runtime'}Service/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(cri, answer).FromString,
        )
        return lambda request, timeout=30: call(request, timeout=timeout)


@pytest.fixture(scope="module")
def daemon(near_daemon: Daemon) -> Daemon:
    """Its streams are on the loopback of the test."""
    return near_daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    client = Client(daemon.address)
    yield client
    client.channel.close()


def pod_config(logs: Path) -> cri.PodSandboxConfig:
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="pod", uid=str(uuid.uuid4()), namespace="test"),
        hostname="pod",
        log_directory=str(logs),
        labels={"app": "test"},
        annotations={"note": "kept"},
    )
    # the network of a pod without CNI: these tests have no bridge
    config.linux.security_context.namespace_options.network = cri.CONTAINER
    return config


@contextmanager
def pod(client: Client, logs: Path) -> Iterator[tuple[str, cri.PodSandboxConfig]]:
    config = pod_config(logs)
    identifier = client.RunPodSandbox(cri.RunPodSandboxRequest(config=config)).pod_sandbox_id
    try:
        yield identifier, config
    finally:
        client.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=identifier))
        client.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=identifier))


def create(client: Client, pod_id: str, config: cri.PodSandboxConfig, *command: str, **options: Any) -> str:
    container = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=f"c{uuid.uuid4().hex[:6]}"),
        image=cri.ImageSpec(image=IMAGE),
        command=command,
        log_path="c.log",
        **options,
    )
    request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=config)
    return str(client.CreateContainer(request).container_id)


def start(client: Client, *arguments: Any, **options: Any) -> str:
    identifier = create(client, *arguments, **options)
    client.StartContainer(cri.StartContainerRequest(container_id=identifier))
    return identifier


def status(client: Client, identifier: str) -> cri.ContainerStatus:
    return client.ContainerStatus(cri.ContainerStatusRequest(container_id=identifier)).status


def refusal(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call(request)
    return refused.value.code(), refused.value.details()


def test_version_and_status(client: Client) -> None:
    version = client.Version(cri.VersionRequest(version="0.1.0"))
    assert (version.runtime_name, version.runtime_api_version) == ("highrt", "v1")
    status = client.Status(cri.StatusRequest(verbose=True))
    conditions = {c.type: c for c in status.status.conditions}
    assert conditions["RuntimeReady"].status
    assert not conditions["NetworkReady"].status
    assert conditions["NetworkReady"].reason == "NetworkPluginNotReady"
    assert "no network configuration" in conditions["NetworkReady"].message
    features = {handler.name: handler.features for handler in status.runtime_handlers}
    assert features[""].recursive_read_only_mounts
    assert features[""] == features["lowrt"]
    assert status.features.supplemental_groups_policy
    assert client.RuntimeConfig(cri.RuntimeConfigRequest()).linux.cgroup_driver == cri.CGROUPFS


def test_a_pods_life(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        again = refusal(client.RunPodSandbox, cri.RunPodSandboxRequest(config=config))
        assert again[0] is grpc.StatusCode.ALREADY_EXISTS
        script = "echo out; echo err >&2; exit 5"
        identifier = create(client, pod_id, config, "sh", "-c", script, labels={"k": "v"})
        assert status(client, identifier).state == cri.CONTAINER_CREATED
        client.StartContainer(cri.StartContainerRequest(container_id=identifier))
        wait_for(lambda: status(client, identifier).state == cri.CONTAINER_EXITED)
        ended = status(client, identifier)
        assert (ended.exit_code, ended.reason) == (5, "Error")
        assert ended.created_at < ended.started_at <= ended.finished_at <= time.time_ns()
        assert ended.image.image == IMAGE
        assert ended.log_path == str(tmp_path / "c.log")
        lines = [line.split(" ", 1)[1] for line in (tmp_path / "c.log").read_text().splitlines()]
        assert sorted(lines) == ["stderr F err", "stdout F out"]

        found = client.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id))
        assert found.status.state == cri.SANDBOX_READY
        assert (found.status.labels["app"], found.status.annotations["note"]) == ("test", "kept")
        listed = client.ListContainers(cri.ListContainersRequest(filter=cri.ContainerFilter(label_selector={"k": "v"})))
        assert [item.id for item in listed.containers] == [identifier]
        none = client.ListContainers(cri.ListContainersRequest(filter=cri.ContainerFilter(label_selector={"k": "x"})))
        assert not none.containers
        ready = cri.PodSandboxFilter(state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY))
        assert [item.id for item in client.ListPodSandbox(cri.ListPodSandboxRequest(filter=ready)).items] == [pod_id]
        client.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
        assert not client.ListPodSandbox(cri.ListPodSandboxRequest(filter=ready)).items
        client.RemoveContainer(cri.RemoveContainerRequest(container_id=identifier))
    for request in (cri.StopPodSandboxRequest, cri.RemovePodSandboxRequest):
        name = request.__name__.removesuffix("Request")
        getattr(client, name)(request(pod_sandbox_id=pod_id))  # a second time is no error
    assert refusal(client.PodSandboxStatus, cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id))[0] is grpc.StatusCode.NOT_FOUND


def test_a_containers_status_tells_its_user_before_the_start_and_after_the_end(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        context = cri.LinuxContainerSecurityContext(supplemental_groups=[5678, 1234])
        context.run_as_user.value, context.run_as_group.value = 1001, 1002
        linux = cri.LinuxContainerConfig(security_context=context)
        identifier = create(client, pod_id, config, "true", linux=linux)
        user = cri.LinuxContainerUser(uid=1001, gid=1002, supplemental_groups=[1002, 1234, 5678])
        assert status(client, identifier).user.linux == user
        daemon.kill()
        daemon.start()
        assert status(client, identifier).user.linux == user
        client.StartContainer(cri.StartContainerRequest(container_id=identifier))
        wait_for(lambda: status(client, identifier).state == cri.CONTAINER_EXITED)
        daemon.kill()
        daemon.start()
        assert status(client, identifier).user.linux == user


def test_read_only_mounts_are_so_at_the_top_or_all_the_way_down(client: Client, tmp_path: Path) -> None:
    (tmp_path / "host/inner").mkdir(parents=True)
    mounts.mount("tmpfs", str(tmp_path / "host/inner"), "tmpfs", 0)
    try:
        with pod(client, tmp_path) as (pod_id, config):

            def touch(**options: Any) -> list[str]:
                mount = cri.Mount(host_path=str(tmp_path / "host"), container_path="/v", readonly=True, **options)
                identifier = create(
                    client,
                    pod_id,
                    config,
                    "sh",
                    "-c",
                    "exec 2>&1; touch /v/a /v/inner/b; ls /v/inner; rm -f /v/inner/b",
                    mounts=[mount],
                )
                client.StartContainer(cri.StartContainerRequest(container_id=identifier))
                wait_for(lambda: status(client, identifier).state == cri.CONTAINER_EXITED)
                lines = [line.split(" ", 3)[3] for line in (tmp_path / "c.log").read_text().splitlines()]
                (tmp_path / "c.log").unlink()
                return lines

            assert touch() == ["touch: /v/a: Read-only file system", "b"]
            assert touch(recursive_read_only=True) == [
                "touch: /v/a: Read-only file system",
                "touch: /v/inner/b: Read-only file system",
            ]
            wrong = cri.Mount(host_path=str(tmp_path / "host"), container_path="/v", recursive_read_only=True)
            with pytest.raises(grpc.RpcError, match="recursive_read_only needs readonly"):
                create(client, pod_id, config, "true", mounts=[wrong])
            wrong.readonly, wrong.propagation = True, cri.PROPAGATION_HOST_TO_CONTAINER
            with pytest.raises(grpc.RpcError, match="recursive_read_only needs readonly"):
                create(client, pod_id, config, "true", mounts=[wrong])
    finally:
        mounts.umount(str(tmp_path / "host/inner"), mounts.DETACH)


def test_a_mount_has_the_options_that_it_is_given(client: Client, tmp_path: Path) -> None:
    assert client.Status(cri.StatusRequest()).features.mount_options
    (tmp_path / "host").mkdir()
    with pod(client, tmp_path) as (pod_id, config):

        def volume(*options: str) -> dict[str, Any]:
            return {"mounts": [cri.Mount(host_path=str(tmp_path / "host"), container_path="/v", mount_options=options)]}

        script = "cp /bin/busybox /v/true; /v/true && echo ran; grep -o ' /v [^ ]*' /proc/self/mountinfo; exit 7"
        identifier = start(client, pod_id, config, "sh", "-c", script, **volume("noexec", "nosuid", "nodev"))
        wait_for(lambda: status(client, identifier).state == cri.CONTAINER_EXITED)
        said = (tmp_path / "c.log").read_text()
        assert status(client, identifier).exit_code == 7
        assert "Permission denied" in said
        assert "stdout F ran" not in said
        assert {"noexec", "nosuid", "nodev"} <= set(said.rpartition(" /v ")[2].strip().split(","))
        for wrong in ("suid", "remount", "upperdir=/etc"):
            with pytest.raises(grpc.RpcError, match="mount_options") as refused:
                create(client, pod_id, config, "true", **volume(wrong))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("call", ["CheckpointContainer", "CheckpointPod", "RestorePod"])
def test_checkpoints_are_refused_by_name(client: Client, call: str) -> None:
    code, text = refusal(getattr(client, call), getattr(cri, f"{call}Request")())
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert text.startswith(f"{call} is not implemented")


def test_an_image_is_a_read_only_volume_as_a_whole_or_in_part(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    image = client.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=IMAGE))).image.id
    with pod(client, tmp_path) as (pod_id, config):
        plain = create(client, pod_id, config, "true")  # has the image's layers unpacked
        client.RemoveContainer(cri.RemoveContainerRequest(container_id=plain))
        snapshots = set((daemon.folder / "root/images/snapshots").iterdir())

        def volume(path: str, **options: Any) -> cri.Mount:
            return cri.Mount(container_path=path, image=cri.ImageSpec(image=IMAGE), **{"readonly": True, **options})

        script = "/whole/bin/cat /part/passwd /file | grep -c root; touch /whole/x; touch /part/x"
        mounts = [volume("/whole"), volume("/part", image_sub_path="etc"), volume("/file", image_sub_path="etc/passwd")]
        identifier = create(client, pod_id, config, "sh", "-c", f"{script}; sleep 60", mounts=mounts)
        assert [mount.image.image_ref for mount in status(client, identifier).mounts] == [image] * 3
        client.StartContainer(cri.StartContainerRequest(container_id=identifier))
        wait_for(lambda: (tmp_path / "c.log").read_text().count("\n") == 3)
        lines = [line.split(" ", 3)[3] for line in (tmp_path / "c.log").read_text().splitlines()]
        assert sorted(lines) == ["2", "touch: /part/x: Read-only file system", "touch: /whole/x: Read-only file system"]
        folder = daemon.folder / "s/pods" / pod_id / identifier / "volumes"
        assert (folder / "0/bin").is_dir()
        client.StopContainer(cri.StopContainerRequest(container_id=identifier))
        assert list((folder / "0").iterdir()) == []
        client.RemoveContainer(cri.RemoveContainerRequest(container_id=identifier))

        for mount, why in (
            (volume("/v", readonly=False), "read-only only"),
            (volume("/v", host_path="/tmp"), "one of them only"),
            (volume("/v", propagation=cri.PROPAGATION_BIDIRECTIONAL), "no propagation"),
            (volume("/v", image_sub_path="../etc"), "without `..`"),
            (volume("/v", image_sub_path="nowhere"), "nowhere.*No such file"),
        ):
            with pytest.raises(grpc.RpcError, match=why) as refused:
                create(client, pod_id, config, "true", mounts=[mount])
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        missing = cri.Mount(container_path="/v", image=cri.ImageSpec(image="not.here/x:1"), readonly=True)
        with pytest.raises(grpc.RpcError, match="pull it first") as refused:
            create(client, pod_id, config, "true", mounts=[missing])
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert set((daemon.folder / "root/images/snapshots").iterdir()) == snapshots


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (cri.ContainerConfig(working_dir="/a\0b"), "config.working_dir"),
        (cri.ContainerConfig(mounts=[cri.Mount(host_path="/a\0", container_path="/b")]), "config.mounts.host_path"),
        (cri.ContainerConfig(command=["sh", "a\0b"]), "config.command"),
        (cri.ContainerConfig(labels={"a": "\0"}), "config.labels"),
    ],
)
def test_texts_with_nul_bytes_are_refused(client: Client, config: cri.ContainerConfig, where: str) -> None:
    code, text = refusal(client.CreateContainer, cri.CreateContainerRequest(pod_sandbox_id="x", config=config))
    assert (code, text.partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, where)


def _dns(**fields: list[str]) -> dict[str, Any]:
    return {"dns_config": cri.DNSConfig(**fields)}


@pytest.mark.parametrize(
    "fields",
    [
        {"hostname": "pod\n10.0.0.1\tbank"}, {"hostname": "pod 10.0.0.1"}, {"hostname": "ü" * 40}, {"log_directory": "relative"},
        {"log_directory": "/logs\n"}, _dns(servers=["1.1.1.1\nnameserver 2.2.2.2"]), _dns(searches=["a b"]),
        _dns(options=["x\r"]),
    ],
)  # fmt: skip
def test_names_of_a_pod_cannot_be_lines_of_their_own(client: Client, fields: dict[str, Any]) -> None:
    """They are written to /etc/hosts, /etc/resolv.conf and paths (CVE-2022-4318 was of that kind)."""
    metadata = cri.PodSandboxMetadata(name="pod", uid="uid", namespace="test")
    request = cri.RunPodSandboxRequest(config=cri.PodSandboxConfig(metadata=metadata, **fields))
    assert refusal(client.RunPodSandbox, request)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_no_socket_of_the_daemons_can_be_reached_from_the_hosts_network(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """CVE-2020-15257: a shim listened on an abstract socket, which belongs to the network namespace."""
    with pod(client, tmp_path) as (pod_id, config):
        identifier = start(client, pod_id, config, "sleep", "60")
        info = json.loads(client.ContainerStatus(cri.ContainerStatusRequest(container_id=identifier, verbose=True)).info["info"])
        stat = Path(f"/proc/{info['pid']}/stat").read_text()
        monitor = int(stat.rpartition(")")[2].split()[1])
        assert daemon.process
        ours = {daemon.process.pid, monitor, *children(daemon.process.pid)}
        assert len(ours) >= 3
        inodes = {f"socket:[{line.split()[6]}]" for line in Path("/proc/net/unix").read_text().splitlines() if " @" in line}
        for process in ours:
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                assert os.readlink(descriptor) not in inodes
        for path in (daemon.folder / "highrt.sock", *(daemon.folder / "s/m").iterdir()):
            assert path.stat().st_mode & 0o007 == 0, path


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel.core_pattern", "|/bin/sh"), ("kernel/core_pattern", "x"), ("net.ipv4.ip_forward+kernel.core_pattern", "1"),
        ("net.ipv4.ip_forward/../../../kernel/core_pattern", "1"), ("vm.overcommit_memory", "1"), ("net/../kernel/hostname", "x"),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=x"), ("", "1"), ("net.", "1"),
    ],
)  # fmt: skip
def test_a_sysctl_reaches_nothing_of_the_hosts(client: Client, tmp_path: Path, name: str, value: str) -> None:
    """CVE-2022-0811: a plus sign in a value began another one."""
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    config = pod_config(tmp_path)
    config.linux.sysctls[name] = value
    with pytest.raises(grpc.RpcError) as refused:
        client.RunPodSandbox(cri.RunPodSandboxRequest(config=config))
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    assert not client.ListPodSandbox(cri.ListPodSandboxRequest()).items


USERS = cri.IDMapping(host_id=200000, container_id=0, length=65536)


def user_namespace(config: cri.PodSandboxConfig, **options: Any) -> cri.NamespaceOption:
    """Gives a pod a user namespace of its own."""
    wanted = config.linux.security_context.namespace_options
    wanted.userns_options.CopyFrom(cri.UserNamespace(**{"uids": [USERS], "gids": [USERS], **options}))
    return wanted


def test_a_pod_has_a_user_namespace_of_its_own(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir(mode=0o755)
    config = pod_config(tmp_path)
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    namespaces = user_namespace(config)
    namespaces.pid = cri.POD
    pod_id = client.RunPodSandbox(cri.RunPodSandboxRequest(config=config)).pod_sandbox_id
    try:
        volume = {"host_path": str(tmp_path / "host"), "uidMappings": [USERS], "gidMappings": [USERS]}
        mounts = [
            cri.Mount(container_path="/host", **volume),
            cri.Mount(container_path="/image", image=cri.ImageSpec(image=IMAGE), readonly=True),
        ]
        context = cri.LinuxContainerSecurityContext(namespace_options=namespaces)
        linux = cri.LinuxContainerConfig(security_context=context)
        identifier = create(client, pod_id, config, "sleep", "60", mounts=mounts, linux=linux)
        client.StartContainer(cri.StartContainerRequest(container_id=identifier))

        def sh(script: str) -> str:
            request = cri.ExecSyncRequest(container_id=identifier, cmd=["sh", "-c", script], timeout=10)
            answer = client.ExecSync(request)
            return str(answer.stdout.decode() + answer.stderr.decode()).strip()

        assert sh("cat /proc/self/uid_map").split() == ["0", "200000", "65536"]
        assert sh("stat -c %u:%g /bin/busybox /etc/hosts /dev/shm /image/bin/busybox /host | sort -u") == "0:0"
        assert sh("echo x > /mine && echo y > /host/file && echo z > /dev/shm/f && echo 10.1.1.1 other >> /etc/hosts") == ""
        assert sh("stat -c %u /mine /host/file | sort -u") == "0"
        assert os.stat(tmp_path / "host/file").st_uid == 0  # on the host's disk, by the mount's own mapping
        layer = client.ContainerStats(cri.ContainerStatsRequest(container_id=identifier)).stats.writable_layer
        assert os.stat(f"{layer.fs_id.mountpoint}/mine").st_uid == 0  # a layer that another pod can use too
        assert sh("cat /proc/sys/kernel/shm_rmid_forced") == "1"
        assert "Operation not permitted" in sh("mknod /dev/mem0 c 1 1")
        verbose = cri.ContainerStatusRequest(container_id=identifier, verbose=True)
        pid = json.loads(client.ContainerStatus(verbose).info["info"])["pid"]
        assert os.stat(f"/proc/{pid}").st_uid == 200000
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert [line for line in groups if line.endswith(f"/{daemon.name}/pods/{pod_id}/{identifier}")]  # CVE-2025-47291
        assert sh("cat /proc/1/cmdline").startswith("/init")
        assert os.stat(daemon.folder / "s/pods" / pod_id).st_mode & 0o777 == 0o710
    finally:
        client.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    assert not (daemon.folder / "s/pods" / pod_id).exists()


def test_user_namespaces_and_image_volumes_outlive_the_daemon_and_leave_nothing(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    config = pod_config(tmp_path)
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=user_namespace(config)))
    volume = cri.Mount(container_path="/image", image=cri.ImageSpec(image=IMAGE), readonly=True)
    pod_id = client.RunPodSandbox(cri.RunPodSandboxRequest(config=config)).pod_sandbox_id
    made = [create(client, pod_id, config, "sleep", "60", mounts=[volume], linux=linux) for _ in range(2)]
    client.StartContainer(cri.StartContainerRequest(container_id=made[0]))
    daemon.kill()
    daemon.start()
    made.append(create(client, pod_id, config, "sleep", "60", mounts=[volume], linux=linux))
    for identifier in made[1:]:  # one that was made before, and one in the namespaces that were there before
        client.StartContainer(cri.StartContainerRequest(container_id=identifier))
    for identifier in made:
        command = ["sh", "-c", "stat -c %u /bin /image/bin; head -c 100 /proc/self/uid_map"]
        done = client.ExecSync(cri.ExecSyncRequest(container_id=identifier, cmd=command, timeout=10))
        assert done.stdout.split() == [b"0", b"0", b"0", b"200000", b"65536"]
    daemon.kill()
    daemon.start()
    client.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    assert not [found.target for found in mounts.mountinfo() if pod_id in found.target]
    assert not (daemon.folder / "s/pods" / pod_id).exists()


PODS = 100


def test_a_hundred_pods_are_found_within_a_moment_after_the_daemon_was_killed(
    daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """scripts/bench restart measures it (the goal: 1 s); here it is seen to on machines of any speed."""

    def make(number: int) -> str:
        config = pod_config(tmp_path / str(number))
        pod_id = client.RunPodSandbox(cri.RunPodSandboxRequest(config=config)).pod_sandbox_id
        return start(client, pod_id, config, "sleep", "600")

    with ThreadPoolExecutor(4) as pool:
        containers = list(pool.map(make, range(PODS)))
        daemon.kill()
        began = time.monotonic()
        daemon.launch()
        again = wait_for(lambda: connected(daemon), seconds=20, what="the daemon")
        pods = again.ListPodSandbox(cri.ListPodSandboxRequest()).items
        try:
            running = cri.ContainerFilter(state=cri.ContainerStateValue(state=cri.CONTAINER_RUNNING))
            found = again.ListContainers(cri.ListContainersRequest(filter=running)).containers
            done = again.ExecSync(cri.ExecSyncRequest(container_id=containers[-1], cmd=["echo", "on"]))
            took = time.monotonic() - began
            assert done.stdout == b"on\n"
            assert sorted(each.id for each in found) == sorted(containers)
            assert [each.state for each in pods] == [cri.SANDBOX_READY] * PODS
            print(f"{PODS} pods found, and an exec done, {took:.2f} s after the start")
            assert took < 3
        finally:
            list(pool.map(lambda each: again.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=each.id)), pods))
            again.channel.close()


def connected(daemon: Daemon) -> Client | None:
    """A client of a daemon that answers, None while there is none. A connection that failed is not tried again for a second."""
    client = Client(daemon.address)
    try:
        client.Version(cri.VersionRequest())
    except grpc.RpcError:
        client.channel.close()
        return None
    return client


def test_a_user_namespace_on_the_hosts_network_shows_the_hosts_sys(client: Client, tmp_path: Path) -> None:
    config = pod_config(tmp_path)
    namespaces = user_namespace(config)
    namespaces.network = cri.NODE
    assert client.Status(cri.StatusRequest()).features.user_namespaces_host_network
    pod_id = client.RunPodSandbox(cri.RunPodSandboxRequest(config=config)).pod_sandbox_id
    try:
        linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=namespaces))
        identifier = create(client, pod_id, config, "ls", "/sys/class/net", linux=linux)
        client.StartContainer(cri.StartContainerRequest(container_id=identifier))
        wait_for(lambda: status(client, identifier).state == cri.CONTAINER_EXITED)
        lines = {line.split(" ", 3)[3] for line in (tmp_path / "c.log").read_text().splitlines()}
        assert lines >= set(os.listdir("/sys/class/net"))
    finally:
        client.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"uids": [USERS, USERS]}, "exactly one mapping is wanted, not 2"),
        ({"gids": []}, "exactly one mapping is wanted, not 0"),
        ({"uids": [cri.IDMapping(host_id=1000, container_id=1, length=10)]}, "must begin with the container's ID 0, not 1"),
        ({"uids": [cri.IDMapping(host_id=1000)]}, "has no length"),
        ({"mode": cri.CONTAINER, "uids": [], "gids": []}, "mode CONTAINER is none"),
        ({"mode": cri.NODE}, "has no mappings"),
    ],
)
def test_user_namespaces_that_cannot_be_are_refused(client: Client, tmp_path: Path, options: dict[str, Any], why: str) -> None:
    config = pod_config(tmp_path)
    user_namespace(config, **options)
    code, text = refusal(client.RunPodSandbox, cri.RunPodSandboxRequest(config=config))
    assert (code, why in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert not client.ListPodSandbox(cri.ListPodSandboxRequest()).items


def test_bad_requests_get_their_codes_and_leave_nothing(client: Client, tmp_path: Path) -> None:
    invalid, missing, failed = (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert refusal(client.RunPodSandbox, cri.RunPodSandboxRequest())[0] is invalid
    nameless = pod_config(tmp_path)
    nameless.metadata.uid = ""
    assert refusal(client.RunPodSandbox, cri.RunPodSandboxRequest(config=nameless)) == (
        invalid,
        "RunPodSandbox: config.metadata.uid is empty",
    )
    code, text = refusal(client.RunPodSandbox, cri.RunPodSandboxRequest(config=pod_config(tmp_path), runtime_handler="gvisor"))
    assert (code, "gvisor" in text) == (invalid, True)
    assert refusal(client.ContainerStatus, cri.ContainerStatusRequest(container_id="feed"))[0] is missing
    assert refusal(client.ExecSync, cri.ExecSyncRequest(container_id="feed", cmd=["true"]))[0] is missing
    with pod(client, tmp_path) as (pod_id, config):
        container = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), image=cri.ImageSpec(image="nowhere:1"))
        request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=config)
        assert refusal(client.CreateContainer, request)[0] is missing
        identifier = create(client, pod_id, config, "no-such-program")
        code, text = refusal(client.StartContainer, cri.StartContainerRequest(container_id=identifier))
        assert "not found" in text
        assert status(client, identifier).reason == "StartError"
        assert refusal(client.Exec, cri.ExecRequest(container_id=identifier, cmd=["sh"], stdout=True))[0] is failed
        running = start(client, pod_id, config, "sleep", "100")
        both = cri.ExecRequest(container_id=running, cmd=["sh"], stdout=True, stderr=True, tty=True)
        assert refusal(client.Exec, both)[0] is invalid
        assert refusal(client.Exec, cri.ExecRequest(container_id=running, cmd=["sh"]))[0] is invalid
    assert not client.ListContainers(cri.ListContainersRequest()).containers


def test_a_kubelet_sees_nothing_of_a_persons(daemon: Daemon, client: Client) -> None:
    identifier = daemon.out("run", "-d", "--network", "none", IMAGE, "sleep", "100")
    pod_id = json.loads(daemon.out("inspect", identifier))[0]["Pod"]["Id"]
    try:
        assert not client.ListContainers(cri.ListContainersRequest()).containers
        assert not client.ListPodSandbox(cri.ListPodSandboxRequest()).items
        assert (
            refusal(client.ContainerStatus, cri.ContainerStatusRequest(container_id=identifier))[0] is grpc.StatusCode.NOT_FOUND
        )
        client.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
        client.StopContainer(cri.StopContainerRequest(container_id=identifier))
        assert daemon.out("inspect", "-f", "{{.State.Status}}", identifier) == "running"
    finally:
        daemon.out("rm", "-f", identifier)


def test_exec_sync_gives_output_code_and_its_deadline(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        identifier = start(client, pod_id, config, "sleep", "100")
        done = client.ExecSync(cri.ExecSyncRequest(container_id=identifier, cmd=["sh", "-c", "echo a; echo b >&2; exit 3"]))
        assert (done.stdout, done.stderr, done.exit_code) == (b"a\n", b"b\n", 3)
        late = refusal(client.ExecSync, cri.ExecSyncRequest(container_id=identifier, cmd=["sleep", "77"], timeout=1))
        assert late[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        left = client.ExecSync(cri.ExecSyncRequest(container_id=identifier, cmd=["ps"]))
        assert b"sleep 77" not in left.stdout


def test_stats_events_log_rotation_and_updates(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        events = client.GetContainerEvents(cri.GetEventsRequest())
        time.sleep(0.3)
        identifier = start(client, pod_id, config, "sh", "-c", "while true; do echo tick; sleep 0.1; done")
        stats = client.ContainerStats(cri.ContainerStatsRequest(container_id=identifier)).stats
        assert stats.attributes.id == identifier
        assert 0 < stats.memory.working_set_bytes.value < 50 * 2**20
        listed = client.ListPodSandboxStats(cri.ListPodSandboxStatsRequest()).stats
        assert [(item.attributes.id, len(item.linux.containers)) for item in listed] == [(pod_id, 1)]
        resources = cri.LinuxContainerResources(memory_limit_in_bytes=80 * 2**20)
        client.UpdateContainerResources(cri.UpdateContainerResourcesRequest(container_id=identifier, linux=resources))
        assert status(client, identifier).resources.linux.memory_limit_in_bytes == 80 * 2**20
        wait_for(lambda: (tmp_path / "c.log").stat().st_size)
        (tmp_path / "c.log").rename(tmp_path / "c.log.1")
        client.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=identifier))
        wait_for(lambda: (tmp_path / "c.log").exists() and (tmp_path / "c.log").stat().st_size)
        client.StopContainer(cri.StopContainerRequest(container_id=identifier, timeout=0))
        client.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
        seen = []
        for event in events:
            assert event.pod_sandbox_status.id == pod_id  # also when the pod has gone
            seen.append((event.container_id, event.container_event_type))
            if seen[-1] == (pod_id, cri.CONTAINER_DELETED_EVENT):
                break
        events.cancel()
        assert seen == [
            (identifier, cri.CONTAINER_CREATED_EVENT), (identifier, cri.CONTAINER_STARTED_EVENT),
            (identifier, cri.CONTAINER_STOPPED_EVENT), (pod_id, cri.CONTAINER_STOPPED_EVENT),
            (identifier, cri.CONTAINER_DELETED_EVENT), (pod_id, cri.CONTAINER_DELETED_EVENT),
        ]  # fmt: skip


def test_a_pods_resources_are_written_down(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, _):
        resources = cri.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=1 << 30)
        client.UpdatePodSandboxResources(cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod_id, resources=resources))
        daemon.kill()
        daemon.start()
        verbose = cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
        linux = json.loads(client.PodSandboxStatus(verbose).info["info"])["config"]["linux"]
        assert linux["resources"] == {"cpu_shares": "512", "memory_limit_in_bytes": str(1 << 30)}
        client.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
        again = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod_id, resources=resources)
        assert refusal(client.UpdatePodSandboxResources, again)[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_verbose_tells_what_a_person_looks_for(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        identifier = start(client, pod_id, config, "sleep", "60", labels={"k": "v"})
        request = cri.ContainerStatusRequest(container_id=identifier, verbose=True)
        found = json.loads(client.ContainerStatus(request).info["info"])
        assert found["sandboxID"] == pod_id
        assert Path(f"/proc/{found['pid']}/cmdline").read_bytes() == b"sleep\x0060\x00"
        assert found["runtimeSpec"]["process"]["args"] == ["sleep", "60"]
        assert found["config"]["labels"] == {"k": "v"}
        assert not client.ContainerStatus(cri.ContainerStatusRequest(container_id=identifier)).info

        of_pod = cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
        info = json.loads(client.PodSandboxStatus(of_pod).info["info"])
        assert info["pid"] == found["pid"]
        paths = {each["type"]: each["path"] for each in info["runtimeSpec"]["linux"]["namespaces"]}
        assert os.stat(paths["network"]).st_ino == os.stat(f"/proc/{info['pid']}/ns/net").st_ino
        assert info["config"]["metadata"]["name"] == "pod"

        of_image = cri.ImageStatusRequest(image=cri.ImageSpec(image=IMAGE), verbose=True)
        image = json.loads(client.ImageStatus(of_image).info["info"])
        assert image["imageSpec"]["config"]["Cmd"] == ["/bin/hello"]
        assert image["chainID"].startswith("sha256:")


@pytest.mark.parametrize("number", [2**32, 2**32 - 1, -1, 2**63 - 1])
def test_ids_that_the_kernel_has_not_are_refused(client: Client, tmp_path: Path, number: int) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        for name in ("run_as_user", "run_as_group", "supplemental_groups"):
            context = cri.LinuxContainerSecurityContext()
            context.run_as_user.value = 1000
            if name == "supplemental_groups":
                context.supplemental_groups.append(number)
            else:
                getattr(context, name).value = number
            with pytest.raises(grpc.RpcError) as refused:
                create(client, pod_id, config, "id", linux=cri.LinuxContainerConfig(security_context=context))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_statistics_and_metrics_tell_what_a_container_uses(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        script = "head -c 300000 /dev/zero > /big; while true; do :; done"
        linux = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512))
        identifier = create(client, pod_id, config, "sh", "-c", script, linux=linux)
        client.StartContainer(cri.StartContainerRequest(container_id=identifier))

        def stats() -> cri.ContainerStats:
            found: cri.ContainerStats = client.ContainerStats(cri.ContainerStatsRequest(container_id=identifier)).stats
            return found

        wait_for(lambda: stats().cpu.usage_core_nano_seconds.value > 1_000_000_000, seconds=60)
        wait_for(lambda: stats().cpu.usage_nano_cores.value > 10_000_000, seconds=60)
        found = stats()
        assert found.memory.available_bytes.value == (64 << 20) - found.memory.working_set_bytes.value
        assert found.memory.page_faults.value > 0
        assert found.writable_layer.used_bytes.value >= 300000
        whole = client.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod_id)).stats.linux
        assert whole.process.process_count.value >= 1
        assert whole.memory.available_bytes.value > 0

        descriptors = client.ListMetricDescriptors(cri.ListMetricDescriptorsRequest()).descriptors
        keys = {each.name: list(each.label_keys) for each in descriptors}
        assert len(keys) == len(descriptors) > 50
        assert all(each.help for each in descriptors)
        listed = client.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest()).pod_metrics
        [of_pod] = [each for each in listed if each.pod_sandbox_id == pod_id]
        [of_container] = of_pod.container_metrics
        assert of_container.container_id == identifier
        values: dict[str, list[tuple[dict[str, str], int]]] = {}
        for metric in of_container.metrics:
            labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
            values.setdefault(metric.name, []).append((labels, metric.value.value))
        [(labels, seconds)] = values["container_cpu_usage_seconds_total"]
        assert seconds >= 1
        assert (labels["name"], labels["pod"], labels["namespace"], labels["cpu"]) == (identifier, "pod", "test", "total")
        assert values["container_spec_memory_limit_bytes"][0][1] == 64 << 20
        assert values["container_spec_cpu_shares"][0][1] == 512
        assert values["container_fs_usage_bytes"][0][1] >= 300000
        assert values["container_processes"][0][1] == 1
        assert values["container_file_descriptors"][0][1] >= 3
        assert {labels["failure_type"] for labels, _ in values["container_memory_failures_total"]} == {"pgfault", "pgmajfault"}


def test_the_lists_as_streams_are_the_same(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        running = start(client, pod_id, config, "sleep", "60")
        made = [create(client, pod_id, config, "true") for _ in range(3)]

        def streamed(call: str, field: str, request: Any) -> list[Any]:
            return [item for answer in getattr(client, call)(request) for item in getattr(answer, field)]

        pods = streamed("StreamPodSandboxes", "pod_sandboxes", cri.StreamPodSandboxesRequest())
        assert pods == list(client.ListPodSandbox(cri.ListPodSandboxRequest()).items)
        containers = streamed("StreamContainers", "containers", cri.StreamContainersRequest())
        assert {each.id for each in containers} == {running, *made}
        wanted = cri.ContainerFilter(state=cri.ContainerStateValue(state=cri.CONTAINER_RUNNING))
        found = streamed("StreamContainers", "containers", cri.StreamContainersRequest(filter=wanted))
        assert found == list(client.ListContainers(cri.ListContainersRequest(filter=wanted)).containers)
        images = streamed("StreamImages", "images", cri.StreamImagesRequest())
        assert images == list(client.ListImages(cri.ListImagesRequest()).images)
        stats = streamed("StreamContainerStats", "container_stats", cri.StreamContainerStatsRequest())
        assert [each.attributes.id for each in stats] == [running]
        of_pods = streamed("StreamPodSandboxStats", "pod_sandbox_stats", cri.StreamPodSandboxStatsRequest())
        assert [each.attributes.id for each in of_pods] == [pod_id]
        metrics = streamed("StreamPodSandboxMetrics", "pod_sandbox_metrics", cri.StreamPodSandboxMetricsRequest())
        assert [(each.pod_sandbox_id, len(each.container_metrics)) for each in metrics] == [(pod_id, 1)]


def test_images_as_a_kubelet_asks(client: Client) -> None:
    found = client.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=IMAGE))).image
    assert found.id.startswith("sha256:")
    assert found.pinned  # a person built it
    assert not client.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image="nowhere:1"))).HasField("image")
    assert found.id in [image.id for image in client.ListImages(cri.ListImagesRequest()).images]
    client.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image="nowhere:1")))
    usage = client.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems[0]
    assert usage.used_bytes.value > 100_000
    assert Path(usage.fs_id.mountpoint).is_dir()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{unused.getsockname()[1]}/nothing:1"
        code, text = refusal(client.PullImage, cri.PullImageRequest(image=cri.ImageSpec(image=name)))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "127.0.0.1" in text


async def messages(ws: aiohttp.ClientWebSocketResponse, until: bytes) -> bytes:
    """Standard output until this text has come."""
    found = b""
    while until not in found:
        message = await asyncio.wait_for(ws.receive_bytes(), 10)
        if message[0] == 1:
            found += message[1:]
    return found


async def test_exec_and_attach_over_websocket(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        identifier = start(client, pod_id, config, "sh", stdin=True, tty=True)
        request = cri.ExecRequest(container_id=identifier, cmd=["sh"], stdin=True, stdout=True, tty=True)
        async with aiohttp.ClientSession() as http:
            url = (await asyncio.to_thread(client.Exec, request)).url
            async with http.ws_connect(url, protocols=["v5.channel.k8s.io"]) as ws:
                await ws.send_bytes(b'\x04{"Width":77,"Height":22}')
                await messages(ws, b"# ")
                await ws.send_bytes(b"\x00stty size\n")
                await messages(ws, b"22 77\r\n")
                await ws.send_bytes(b"\x00exit 6\n")
                status_text = b""
                async for message in ws:
                    status_text += message.data[1:] if message.data[0] == 3 else b""
            assert json.loads(status_text)["details"]["causes"][0]["message"] == "6"

            attach = cri.AttachRequest(container_id=identifier, stdin=True, stdout=True, tty=True)
            url = (await asyncio.to_thread(client.Attach, attach)).url
            async with http.ws_connect(url, protocols=["v4.channel.k8s.io"]) as ws:
                await ws.send_bytes(b"\x00echo sum $((20+3))\n")
                await messages(ws, b"sum 23\r\n")
        found = await asyncio.to_thread(status, client, identifier)
        assert found.state == cri.CONTAINER_RUNNING


async def test_a_client_that_vanishes_takes_its_exec_along(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        identifier = start(client, pod_id, config, "sleep", "100")
        request = cri.ExecRequest(container_id=identifier, cmd=["sh", "-c", "echo on; exec sleep 5678"], stdout=True)
        async with aiohttp.ClientSession() as http:
            url = (await asyncio.to_thread(client.Exec, request)).url
            async with http.ws_connect(url, protocols=["v5.channel.k8s.io"]) as ws:
                await messages(ws, b"on\n")

        def listing() -> bytes:
            return client.ExecSync(cri.ExecSyncRequest(container_id=identifier, cmd=["ps"])).stdout

        await asyncio.to_thread(lambda: wait_for(lambda: b"5678" not in listing(), what="the exec to end"))


async def test_port_forward_reaches_loopback_inside_the_pod(client: Client, tmp_path: Path) -> None:
    with pod(client, tmp_path) as (pod_id, config):
        start(client, pod_id, config, "sh", "-c", "while true; do nc -l -p 8080 -e tr a-z A-Z; done")
        request = cri.PortForwardRequest(pod_sandbox_id=pod_id, port=[8080])
        url = (await asyncio.to_thread(client.PortForward, request)).url
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(url, protocols=["SPDY/3.1+portforward.k8s.io"]) as ws,
            Tunnel.connection(ws) as connection,
        ):
            for number in range(50):  # until nc listens
                data, error = await forward(connection, number, 8080, b"hello")
                if data:
                    break
                await asyncio.sleep(0.1)
            assert (data, error) == (b"HELLO", b"")
            _, error = await forward(connection, 100, 9, b"x")
            assert b"error forwarding port 9" in error

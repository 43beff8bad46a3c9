"""Random CRI requests: each gets an answer or a code that says whose fault it is, and nothing is broken or left by any."""

import random
import string
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from strata.linux import mounts
from strata.protocols import cri_pb2 as cri
from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon
from tests.integration.highrt.test_cri import Client

# A caller can do something about these. UNKNOWN is the runtime's own failure, with its text; INTERNAL would be a fault of ours.
GOOD = {
    grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip
OF_THE_RUNTIME = ("cannot exec in container", "cannot start the container", "update of container", "cannot make the pod")
# Not asked at random: what waits for ever, and what leaves this machine.
LEFT_OUT = {"GetContainerEvents", "PullImage"}
METHODS = [
    method
    for service in ("RuntimeService", "ImageService")
    for method in cri.DESCRIPTOR.services_by_name[service].methods_by_name.values()
    if method.name not in LEFT_OUT and not method.server_streaming
]
ODD_TEXTS = [
    "", "/", "..", "../../etc", "\x00", "a" * 300, "ÿ\n\r\t", "%s%n", "-1", "'; DROP TABLE pods; --",
    "/proc/self/exe", "/dev/null",
    "sha256:" + "0" * 64, "pod", "test", "0", "localhost/x", "runtime/default", "unconfined", "kubepods.slice", "a-b-c.slice",
]  # fmt: skip
ODD_NUMBERS = [0, 1, -1, 2, 7, 1000, 65535, 65536, 2**31 - 1, -(2**31), 2**31, 2**32, 2**53, 2**63 - 1, -(2**63)]


class Maker:
    """Messages of a seed's. known: IDs that are there, so that more than "not found" is asked."""

    def __init__(self, seed: int, known: list[str]) -> None:
        self._random = random.Random(seed)
        self._known = known

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        made: Message = getattr(cri, descriptor.full_name.removeprefix("runtime.v1."))()
        for field in descriptor.fields:
            if self._random.random() < (0.75 if depth < 2 else 0.3):
                self._fill(made, field, depth)
        return made

    def change(self, message: Any) -> None:
        """Changes one or two fields of a message that is right, however deep."""
        for _ in range(self._random.randint(1, 2)):
            at, depth = message, 1
            while True:
                field = self._random.choice(at.DESCRIPTOR.fields)
                if not field.message_type or field.is_repeated or self._random.random() < 0.1:
                    self._fill(at, field, depth)
                    break
                at, depth = getattr(at, field.name), depth + 1
            at.SetInParent()

    def _fill(self, made: Any, field: FieldDescriptor, depth: int) -> None:
        if field.message_type and field.message_type.GetOptions().map_entry:
            for _ in range(self._random.randrange(3)):
                if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                    getattr(made, field.name)[self._text("key")] = self._text(field.name)
        elif field.is_repeated:
            for _ in range(self._random.randrange(3)):
                if field.message_type:
                    if depth < 6:
                        getattr(made, field.name).append(self.message(field.message_type, depth + 1))
                else:
                    getattr(made, field.name).append(self._scalar(field))
        elif field.message_type:
            if depth < 6:
                getattr(made, field.name).CopyFrom(self.message(field.message_type, depth + 1))
        else:
            setattr(made, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> Any:
        match field.type:
            case FieldDescriptor.TYPE_STRING:
                return self._text(field.name)
            case FieldDescriptor.TYPE_BYTES:
                return self._random.randbytes(self._random.randrange(20))
            case FieldDescriptor.TYPE_BOOL:
                return self._random.random() < 0.5
            case FieldDescriptor.TYPE_ENUM:
                return self._random.choice([*(value.number for value in field.enum_type.values), 99])
            case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
                return self._random.choice([0.0, -1.5, float("inf")])
        least, most = {
            FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
            FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
        }.get(field.type, (-(2**63), 2**63 - 1))  # fmt: skip
        return self._random.choice([number for number in ODD_NUMBERS if least <= number <= most])

    def _text(self, name: str) -> str:
        draw = self._random.random()
        if name in ("pod_sandbox_id", "container_id", "id", "target_id") and draw < 0.7:
            return self._random.choice([*self._known, self._random.choice(self._known)[:5]])
        if name in ("image", "user_specified_image") and draw < 0.7:
            return IMAGE
        if name in ("cmd", "command") and draw < 0.7:
            return self._random.choice(["true", "sleep", "sh"])
        if name in ("host_path", "log_directory", "localhost_ref", "cgroup_parent", "seccomp_profile_path"):
            # nothing of the machine's is given to containers or written to here
            return self._random.choice(["", "relative", "\x00", "/nonexistent\x00", "a.slice/..", "..", "/../x\x00"])
        if draw < 0.5:
            return self._random.choice(ODD_TEXTS)
        return "".join(self._random.choices(string.printable, k=self._random.randrange(12)))


def _contain(request: Any) -> None:
    """Keeps a request from doing to this machine what it may do to one: it is the daemon that is tried here."""
    for config in (getattr(request, name, None) for name in ("config", "sandbox_config")):
        if config is None or not config.ListFields():
            continue
        security = config.linux.security_context
        security.privileged = False
        options = security.namespace_options
        if isinstance(config, cri.PodSandboxConfig):
            options.network = cri.CONTAINER
            options.pid, options.ipc = cri.CONTAINER, cri.POD
        elif options.pid == cri.NODE:
            options.pid = cri.CONTAINER
    if isinstance(request, cri.UpdateContainerResourcesRequest | cri.CreateContainerRequest):
        resources = request.linux if isinstance(request, cri.UpdateContainerResourcesRequest) else request.config.linux.resources
        resources.ClearField("oom_score_adj")


def _rounds(client: Client, daemon: Daemon, tmp_path: Path, count: int) -> None:
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="fix", uid="fix", namespace="fix"))
    config.linux.security_context.namespace_options.network = cri.CONTAINER
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    outcomes: Counter[tuple[str, str]] = Counter()
    bad: list[str] = []
    for seed in range(count):
        if seed % 50 == 0:
            _clear(client)
            pod_id = client.RunPodSandbox(cri.RunPodSandboxRequest(config=config)).pod_sandbox_id
            container = cri.ContainerConfig(
                metadata=cri.ContainerMetadata(name="c"), image=cri.ImageSpec(image=IMAGE), command=["sleep", "60"]
            )
            made = client.CreateContainer(cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=container))
            client.StartContainer(cri.StartContainerRequest(container_id=made.container_id))
            known = [pod_id, made.container_id]
        choice = random.Random(seed)
        method, maker = choice.choice(METHODS), Maker(seed, known)
        request: Any
        if choice.random() < 0.5:
            method = choice.choice([each for each in METHODS if each.name in ("RunPodSandbox", "CreateContainer")])
            config.metadata.attempt = container.metadata.attempt = seed
            if method.name == "RunPodSandbox":
                request = cri.RunPodSandboxRequest(config=config)
            else:
                request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=config)
            maker.change(request)
        elif choice.random() < 0.2:
            method = next(each for each in METHODS if each.name == "StartContainer")
            request = cri.StartContainerRequest(container_id=known[-1])
        else:
            request = maker.message(method.input_type)
        _contain(request)
        if isinstance(request, cri.ExecSyncRequest):
            request.timeout = 1
        if isinstance(request, cri.StopContainerRequest):
            request.timeout = min(request.timeout, 1)
        if isinstance(request, cri.RemoveImageRequest):
            request.image.image = "not.here/image"  # the others need the one that is here
        code, text = grpc.StatusCode.OK, ""
        try:
            answer = getattr(client, method.name)(request, timeout=20)
            known += [getattr(answer, name) for name in ("container_id", "pod_sandbox_id") if hasattr(answer, name)]
        except grpc.RpcError as error:
            code, text = error.code(), str(error.details())
        outcomes[method.name, code.name] += 1
        if code not in GOOD and not (code is grpc.StatusCode.UNKNOWN and text.startswith(OF_THE_RUNTIME)):
            bad.append(f"{seed}: {method.name}: {code.name}: {text[:300]}")
    assert not bad, "\n".join(bad)
    assert sum(count for (_, code), count in outcomes.items() if code == "OK") > count // 10, outcomes
    assert daemon.process
    assert daemon.process.poll() is None
    assert "Traceback" not in daemon.log()
    _clear(client)
    assert list((daemon.folder / "s/pods").iterdir()) == []
    wait_for(lambda: not list((daemon.folder / "s/m").iterdir()), what="the monitors to end")
    assert not [found.target for found in mounts.mountinfo() if found.target.startswith(f"{daemon.folder}/")]


def _clear(client: Client) -> None:
    for pod in client.ListPodSandbox(cri.ListPodSandboxRequest()).items:
        client.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))


@pytest.fixture
def client(daemon: Daemon) -> Any:
    client = Client(daemon.address)
    yield client
    client.channel.close()


def test_random_requests_get_right_codes_and_leave_nothing(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    _rounds(client, daemon, tmp_path, 400)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_random_requests_get_right_codes_and_leave_nothing(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    _rounds(client, daemon, tmp_path, 10_000)

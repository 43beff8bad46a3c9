"""gRPC over a unix socket, seen by our own client and by another gRPC stack."""

import asyncio
import json
import socket
from pathlib import Path

import grpc as other_grpc
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from strata.protocols import cri_pb2, grpc
from strata.protocols.cri_grpc import RuntimeServiceBase, RuntimeServiceStub


def _refuse(name: str):
    async def method(self, stream) -> None:
        raise GRPCError(Status.UNIMPLEMENTED, name)

    return method


class Runtime(RuntimeServiceBase):
    """A service of which only Version and Status do anything."""

    async def Version(self, stream) -> None:
        request = await stream.recv_message()
        await stream.send_message(cri_pb2.VersionResponse(runtime_name=f"test {request.version}"))

    async def Status(self, stream) -> None:
        raise RuntimeError("the disk is on fire")


for _name in RuntimeServiceBase.__abstractmethods__ - {"Version", "Status"}:
    setattr(Runtime, _name, _refuse(_name))
Runtime.__abstractmethods__ = frozenset()


@pytest.fixture
async def endpoint(tmp_path: Path):
    server = await grpc.serve([Runtime()], f"unix://{tmp_path}/s")
    yield f"unix://{tmp_path}/s"
    server.close()
    await server.wait_closed()


async def test_a_call_and_a_failing_handler(endpoint: str) -> None:
    channel = grpc.channel(endpoint)
    try:
        stub = RuntimeServiceStub(channel)
        assert (await stub.Version(cri_pb2.VersionRequest(version="v1"), timeout=5)).runtime_name == "test v1"
        with pytest.raises(GRPCError) as caught:
            await stub.Status(cri_pb2.StatusRequest(), timeout=5)
        assert (caught.value.status, caught.value.message) == (Status.INTERNAL, "Status: the disk is on fire")
    finally:
        channel.close()


async def test_another_stack_reads_answers_and_unknown_methods_as_unimplemented(endpoint: str) -> None:
    def call() -> tuple[bytes, other_grpc.StatusCode]:
        with other_grpc.insecure_channel(endpoint) as channel:
            version = channel.unary_unary("/runtime.v1.RuntimeService/Version")(b"\n\x02v1", timeout=5)
            with pytest.raises(other_grpc.RpcError) as caught:
                channel.unary_unary("/runtime.v1.RuntimeService/Fly")(b"", timeout=5)
            return version, caught.value.code()

    version, code = await asyncio.to_thread(call)
    assert cri_pb2.VersionResponse.FromString(version).runtime_name == "test v1"
    assert code == other_grpc.StatusCode.UNIMPLEMENTED


async def test_a_stale_socket_file_is_replaced_and_a_live_one_refused(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(OSError, match="already listens"):
        await grpc.serve([Runtime()], endpoint)
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    server = await grpc.serve([Runtime()], f"unix://{stale}")
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("form", ["unix:///a/b", "unix:/a/b", "/a/b", "unix:%2Fa%2Fb"])
def test_every_form_of_an_endpoint_that_clients_write_is_read(form: str) -> None:
    assert grpc.socket_path(form) == "/a/b"


@pytest.mark.parametrize("form", ["tcp://localhost:1", "relative", "unix:///" + "x" * 200])
def test_an_endpoint_that_cannot_be_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        grpc.socket_path(form)


async def test_spans_follow_a_call_over_the_wire(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from strata.telemetry import rpc, spans

    monkeypatch.setattr(spans, "_file", None)
    spans.configure("both", str(tmp_path))
    server = await grpc.serve([Runtime()], f"unix://{tmp_path}/traced")
    rpc.trace_server(server)
    channel = grpc.channel(f"unix://{tmp_path}/traced")
    rpc.trace_channel(channel)
    try:
        with spans.span("caller"):
            await RuntimeServiceStub(channel).Version(cri_pb2.VersionRequest(), timeout=5)
    finally:
        channel.close()
        server.close()
        await server.wait_closed()
    handled, caller = (json.loads(line) for line in (tmp_path / "both.jsonl").read_text().splitlines())
    assert (handled["name"], handled["parentSpanId"]) == ("Version", caller["spanId"])

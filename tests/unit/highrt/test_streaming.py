"""The streaming server with real clients: WebSocket and SPDY, with a child process in a container's place."""

import asyncio
import datetime
import ipaddress
import json
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from highrt.pods.model import Stdio
from highrt.streaming.relay import Running
from highrt.streaming.server import Command, Endpoint, Forward, StreamingServer
from strata.protocols import spdy
from strata.protocols.channels import SocketChannel
from tests.unit.highrt.spdy_client import Tunnel, forward, rest


class Child:
    """A process of this machine that takes the place of an exec."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.sizes: list[tuple[int, int]] = []

    async def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))

    async def wait(self) -> int | None:
        return await self.process.wait()

    async def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)


class Shell:
    """Starts `sh -c SCRIPT` with the streams of an exec, and keeps the children to look at."""

    def __init__(self, script: str) -> None:
        self.script = script
        self.child: Child | None = None

    async def __call__(self, stdio: Stdio) -> Running:
        null = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                "sh", "-c", self.script, stdin=stdio.stdin or null, stdout=stdio.stdout or null, stderr=stdio.stderr or null
            )
        finally:
            for descriptor in (stdio.stdin, stdio.stdout, stdio.stderr):
                if descriptor is not None:
                    os.close(descriptor)
        self.child = Child(process)
        return self.child


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    server = StreamingServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def url(server: StreamingServer, shell: Shell, *, stdin: bool = False, terminal: bool = False) -> str:
    return server.url("exec", Command(shell, "c1", stdin, True, not terminal, terminal))


async def everything(ws: aiohttp.ClientWebSocketResponse) -> tuple[bytes, bytes, dict[str, Any]]:
    """Standard output, standard error and the status, until the server closes."""
    found = {1: b"", 2: b"", 3: b""}
    async for message in ws:
        found[message.data[0]] += message.data[1:]
    return found[1], found[2], json.loads(found[3])


async def test_websocket_exec_gives_both_outputs_and_the_exit_code(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    shell = Shell("echo out; echo err >&2; exit 7")
    async with http.ws_connect(url(server, shell), protocols=["v5.channel.k8s.io"]) as ws:
        assert ws.protocol == "v5.channel.k8s.io"
        out, err, status = await everything(ws)
    assert (out, err) == (b"out\n", b"err\n")
    assert status == {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": "command terminated with non-zero exit code: exit status 7",
        "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
    }


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1's own, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "streams")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(hours=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    files = tmp_path / "cert", tmp_path / "key"
    files[0].write_bytes(signed.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


async def test_both_wires_work_over_tls(certificate: tuple[Path, Path]) -> None:
    server = StreamingServer(Endpoint(certificate=certificate[0], key=certificate[1]))
    await server.start()
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    try:
        where = url(server, Shell("cat; echo done; exit 3"), stdin=True)
        assert where.startswith("https://127.0.0.1:")
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(where, protocols=["v5.channel.k8s.io"], ssl=trusting) as ws,
        ):
            await ws.send_bytes(b"\x00given\n")
            await ws.send_bytes(b"\xff\x00")
            out, _, status = await everything(ws)
        assert (out, status["details"]["causes"][0]["message"]) == (b"given\ndone\n", "3")

        where = url(server, Shell("yes | head -c 300000"))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(where.split(":")[2].split("/")[0]), ssl=trusting)
        path = where.split("/", 3)[3]
        writer.write(
            f"POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n".encode()
        )
        assert b"101" in await reader.readuntil(b"\r\n\r\n")
        connection = spdy.Connection(SocketChannel(reader, writer), server=False)
        running = asyncio.create_task(connection.run())
        error, stdout, stderr = [await connection.open({"streamtype": name}) for name in ("error", "stdout", "stderr")]
        found = await asyncio.wait_for(asyncio.gather(rest(stdout), rest(stderr), rest(error)), 10)
        assert (len(found[0]), found[1]) == (300000, b"")
        assert json.loads(found[2])["status"] == "Success"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        writer.close()
    finally:
        await server.close()


async def test_websocket_stdin_ends_with_the_close_message(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    async with http.ws_connect(
        url(server, Shell("sort"), stdin=True), protocols=["v5.channel.k8s.io", "v4.channel.k8s.io"]
    ) as ws:
        await ws.send_bytes(b"\x00b\na\n")
        await ws.send_bytes(b"\xff\x00")
        out, _, status = await everything(ws)
    assert out == b"a\nb\n"
    assert status == {"metadata": {}, "status": "Success"}


async def test_more_output_than_any_buffer_arrives_whole(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    size = 5_000_000
    async with http.ws_connect(url(server, Shell(f"head -c {size} /dev/zero")), protocols=["v5.channel.k8s.io"]) as ws:
        await asyncio.sleep(0.3)  # a slow reader: all buffers are full by now
        out, _, status = await everything(ws)
    assert len(out) == size
    assert status["status"] == "Success"


async def test_a_window_size_reaches_the_command(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    shell = Shell("read line")
    async with http.ws_connect(url(server, shell, stdin=True, terminal=True), protocols=["v4.channel.k8s.io"]) as ws:
        await ws.send_bytes(b'\x04{"Width":132,"Height":50}')
        await ws.send_bytes(b"\x04nonsense")
        await ws.send_bytes(b'\x04{"Width":-1,"Height":99999999}')
        await ws.send_bytes(b"\x00\n")
        await everything(ws)
    assert shell.child
    assert shell.child.sizes == [(132, 50)]


async def test_a_client_that_vanishes_ends_its_command(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    shell = Shell("echo ready; sleep 100")
    async with http.ws_connect(url(server, shell, stdin=True), protocols=["v5.channel.k8s.io"]) as ws:
        assert await ws.receive_bytes() == b"\x01ready\n"
    assert shell.child
    assert await asyncio.wait_for(shell.child.process.wait(), 5) == -signal.SIGKILL


async def test_a_background_process_that_keeps_the_pipes_does_not_hold_the_end_up(
    server: StreamingServer, http: aiohttp.ClientSession
) -> None:
    shell = Shell("sleep 20 & echo $!")
    async with http.ws_connect(url(server, shell), protocols=["v5.channel.k8s.io"]) as ws:
        out, _, status = await asyncio.wait_for(everything(ws), 5)
    os.kill(int(out), signal.SIGKILL)
    assert status["status"] == "Success"


async def test_a_url_is_good_once(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    address = url(server, Shell("true"))
    async with http.get(address) as response:
        assert response.status == 400  # no upgrade: the token is kept
    async with http.ws_connect(address, protocols=["v5.channel.k8s.io"]) as ws:
        await everything(ws)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await http.ws_connect(address, protocols=["v5.channel.k8s.io"])
    assert refused.value.status == 404
    other_kind = server.url("attach", Command(Shell("true"), "c", False, True, True, False)).replace("attach", "exec")
    async with http.get(other_kind) as other:
        assert other.status == 404


async def test_unknown_websocket_protocols_are_refused(server: StreamingServer, http: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await http.ws_connect(url(server, Shell("true")), protocols=["v9.channel.k8s.io"])
    assert refused.value.status == 400


async def upgrade(address: str, protocols: list[str]) -> tuple[spdy.Connection, "asyncio.Task[None]", str]:
    """A SPDY client on a plain connection, as older clients make it. Returns the agreed protocol, too."""
    _, _, host, path = address.split("/", 3)
    name, port = host.split(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    offers = "".join(f"X-Stream-Protocol-Version: {protocol}\r\n" for protocol in protocols)
    writer.write(f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{offers}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 101 "), head
    agreed = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("X-Stream-Protocol-Version"))
    connection = spdy.Connection(SocketChannel(reader, writer), server=False)
    return connection, asyncio.create_task(connection.run()), agreed


async def test_spdy_exec(server: StreamingServer) -> None:
    address = url(server, Shell("tr a-z A-Z; echo oops >&2; exit 3"), stdin=True)
    connection, running, agreed = await upgrade(address, ["v4.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io"])
    assert agreed == "v4.channel.k8s.io"
    error, stdin, stdout, stderr = [
        await connection.open({"streamType": kind}) for kind in ("error", "stdin", "stdout", "stderr")
    ]
    await stdin.write(b"hello")
    await stdin.close()
    out, err, status = await asyncio.gather(rest(stdout), rest(stderr), rest(error))
    assert (out, err) == (b"HELLO", b"oops\n")
    assert json.loads(status)["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    await asyncio.wait_for(running, 5)
    await connection.close()


async def test_spdy_sizes_follow_each_other_without_a_separator(server: StreamingServer) -> None:
    shell = Shell("read line")
    connection, running, _ = await upgrade(url(server, shell, stdin=True, terminal=True), ["v4.channel.k8s.io"])
    error, stdin, _, resize = [await connection.open({"streamType": kind}) for kind in ("error", "stdin", "stdout", "resize")]
    await resize.write(b'{"Width":100,"Height":30}\n{"Width":101,')
    await resize.write(b'"Height":31}')
    for _ in range(100):
        if shell.child and len(shell.child.sizes) == 2:
            break
        await asyncio.sleep(0.02)
    await stdin.write(b"\n")
    assert json.loads(await rest(error))["status"] == "Success"
    assert shell.child
    assert shell.child.sizes == [(100, 30), (101, 31)]
    await asyncio.wait_for(running, 5)
    await connection.close()


async def test_a_spdy_client_that_vanishes_ends_its_command(server: StreamingServer) -> None:
    shell = Shell("echo ready; sleep 100")
    connection, running, _ = await upgrade(url(server, shell), ["v4.channel.k8s.io"])
    streams = [await connection.open({"streamType": kind}) for kind in ("error", "stdout", "stderr")]
    assert await streams[1].read() == b"ready\n"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await connection.close()
    assert shell.child
    assert await asyncio.wait_for(shell.child.process.wait(), 5) == -signal.SIGKILL


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A server on a port of loopback that gives back, in capitals, all it gets until the half-close."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()


async def dial(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


async def test_spdy_port_forward_carries_connections_side_by_side(server: StreamingServer, echo: int) -> None:
    connection, running, agreed = await upgrade(server.url("portforward", Forward(dial, "p1")), ["portforward.k8s.io"])
    assert agreed == "portforward.k8s.io"
    texts = [b"x" * 300_000, b"one", b"two"]
    results = await asyncio.gather(*(forward(connection, n, echo, text) for n, text in enumerate(texts)))
    assert results == [(text.upper(), b"") for text in texts]
    await connection.close()
    await running


async def test_a_port_that_nobody_listens_on_is_told_in_the_error_stream(server: StreamingServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        connection, running, _ = await upgrade(server.url("portforward", Forward(dial, "p1")), ["portforward.k8s.io"])
        data, error = await forward(connection, 1, port, b"x")
        assert data == b""
        assert b"error forwarding port" in error
        assert b"Connect call failed" in error
        _, error = await forward(connection, 2, 99999, b"x")
        assert b"not a port number" in error
    await connection.close()
    await running


async def test_port_forward_tunneled_through_a_websocket(server: StreamingServer, http: aiohttp.ClientSession, echo: int) -> None:
    address = server.url("portforward", Forward(dial, "p1"))
    async with http.ws_connect(address, protocols=["SPDY/3.1+portforward.k8s.io"]) as ws:
        assert ws.protocol == "SPDY/3.1+portforward.k8s.io"
        async with Tunnel.connection(ws) as connection:
            assert await forward(connection, 0, echo, b"hello") == (b"HELLO", b"")

"""gRPC over unix sockets: grpclib, with what Kubernetes' clients expect of it.

A server of ours answers an unknown method with UNIMPLEMENTED in a form that Go clients read (grpclib's own abort lacks
the content type, and they report Unknown). Errors of handlers become status codes: `GRPCError` as it is, others
INTERNAL with their text, and the traceback goes to the log, not over the wire. (`strata.telemetry.rpc` adds spans.)
"""

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import unquote

from google.protobuf.empty_pb2 import Empty
from google.protobuf.internal import api_implementation
from grpclib.client import Channel
from grpclib.const import Cardinality, Handler, Status
from grpclib.events import RecvRequest, listen
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from grpclib.server import Stream as ServerStream

# The pure-Python backend is 50 to 100 times slower: better to fail at the start than to be that.
assert api_implementation.Type() == "upb", "protobuf must run on its upb backend"

MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024
"""What kubelets and crictl allow for one CRI message (the default of gRPC is 4 MiB)."""


_MOST_PIECES = 16


class Service(Protocol):
    """What the generated `*Base` classes are: a mapping from method paths to handlers."""

    def __mapping__(self) -> dict[str, Handler]: ...


def socket_path(endpoint: str) -> str:
    """The path of a unix endpoint in any form that kubelets and crictl write: `unix:///p`, `unix:/p` or `/p`.

    Raises ValueError for anything else, and for a path that does not fit into a socket address (108 bytes).
    """
    path = unquote(endpoint.removeprefix("unix:"))
    path = "/" + path.lstrip("/") if path.startswith("/") else path
    if not path.startswith("/"):
        raise ValueError(f"endpoint {endpoint!r}: must be unix:///PATH")
    if len(path.encode()) > 107:
        raise ValueError(f"endpoint {endpoint!r}: the path is longer than the 107 bytes that a unix socket may have")
    return path


async def serve(services: Iterable[Service], endpoint: str, *, mode: int = 0o660) -> Server:
    """Serves on a unix socket until the returned server is closed (`server.close()`, `await server.wait_closed()`).

    A socket file that nobody listens on any more is replaced. Raises OSError (EADDRINUSE) where another process
    still answers on it, and ValueError for an endpoint that is no unix path.
    """
    path = socket_path(endpoint)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    listener = _listen(path, mode)
    server = _Server(list(services))
    # grpclib keeps the methods in this dictionary and looks them up with get().
    server._mapping = _Methods(server._mapping)
    listen(server, RecvRequest, _receive)
    await server.start(sock=listener)
    return server


def channel(endpoint: str) -> Channel:
    """A client's channel to a unix socket; it connects at the first call, and again after the server was restarted.

    The owner closes it (`channel.close()`). Pass `timeout=SECONDS` to each call.
    """
    return _Channel(path=socket_path(endpoint))


def _listen(path: str, mode: int) -> socket.socket:
    with suppress(FileNotFoundError):
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(98, f"another process already listens on {path}")
        finally:
            probe.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound under a private mask: between bind and chmod nobody else may connect.
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    os.chmod(path, mode)
    listener.listen(128)
    return listener


class _Gathered:
    """A transport that writes at once what is written in one turn of the loop. grpclib writes each frame by itself, so an answer
    would be three system calls, and wake its client three times."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        if len(self._pieces) == 1:
            asyncio.get_running_loop().call_soon(self._flush)
        elif len(self._pieces) == _MOST_PIECES:  # who writes much without a pause is to learn when the client does not read
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        data, self._pieces = b"".join(self._pieces), []
        if data and not self._transport.is_closing():
            self._transport.write(data)


def _gathering(protocol: Any) -> Any:
    """The protocol, which gets such a transport once it is connected."""
    made = protocol.connection_made
    protocol.connection_made = lambda transport: made(_Gathered(transport))
    return protocol


class _Server(Server):
    def _protocol_factory(self) -> Any:
        return _gathering(super()._protocol_factory())


class _Channel(Channel):
    def _protocol_factory(self) -> Any:
        return _gathering(super()._protocol_factory())


class _Methods(dict[str, Handler]):
    """grpclib's table of methods, with an answer for the ones that are not in it."""

    def get(self, path: str, default: Any = None) -> Any:
        return super().get(path) or Handler(_unimplemented, Cardinality.UNARY_UNARY, Empty, Empty)


async def _unimplemented(stream: "ServerStream[Empty, Empty]") -> None:
    raise GRPCError(Status.UNIMPLEMENTED, "unknown method")


async def _receive(event: RecvRequest) -> None:
    method, name = event.method_func, event.method_name.rsplit("/", 1)[-1]

    async def call(stream: "ServerStream[Any, Any]") -> None:
        try:
            await method(stream)
        except GRPCError:
            raise
        except Exception as error:
            logging.getLogger("grpc").exception("%s failed", name)
            raise GRPCError(Status.INTERNAL, f"{name}: {error or type(error).__name__}") from error

    event.method_func = call

"""The streaming server: what stands behind the URLs of CRI's Exec, Attach and PortForward.

It listens on loopback, in plain http, unless it is told otherwise. A URL has a token of 128 random bits, is good for one
connection, and expires after a minute. What speaks http (`connections`) is 13 MB, and is brought in when the first client comes.
"""

import asyncio
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from highrt.pods.model import Stdio
from highrt.streaming.relay import Running
from strata.telemetry import logs

if TYPE_CHECKING:
    from highrt.streaming.connections import Connections

log = logs.get("highrt.streaming")

_EXPIRY_SECONDS = 60
_OUTSTANDING_LIMIT = 1000


@dataclass(frozen=True)
class Command:
    """An exec or attach that waits for its client."""

    start: Callable[[Stdio], Awaitable[Running]]
    container_id: str
    stdin: bool
    stdout: bool
    stderr: bool
    terminal: bool


@dataclass(frozen=True)
class Forward:
    """A port-forward that waits for its client. dial: a socket connected to that port inside the pod."""

    dial: Callable[[int], Awaitable[socket.socket]]
    pod_id: str


class TooManyWaiting(Exception):
    """More clients asked for URLs than came for them."""


@dataclass(frozen=True)
class Endpoint:
    """Where the server listens. port: 0 is a free one. certificate and key: files (PEM) for TLS; without them it is plain http,
    which is for loopback alone. client_authorities: a file of the CAs whose certificates clients must have."""

    address: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    client_authorities: Path | None = None

    def tls(self) -> ssl.SSLContext | None:
        """Raises OSError, also where a file is no certificate or key."""
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        if self.client_authorities:
            context.load_verify_locations(self.client_authorities)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class Waiting:
    """The works that wait for their clients, by token."""

    def __init__(self) -> None:
        self._works: dict[str, tuple[float, str, Command | Forward]] = {}

    def add(self, kind: str, work: Command | Forward) -> str:
        """Its token. Raises TooManyWaiting."""
        now = time.monotonic()
        for token in [token for token, (expires, _, _) in self._works.items() if expires < now]:
            del self._works[token]
        if len(self._works) >= _OUTSTANDING_LIMIT:
            raise TooManyWaiting(f"{len(self._works)} streaming URLs wait for their clients: try again in a minute")
        token = secrets.token_urlsafe(16)
        self._works[token] = (now + _EXPIRY_SECONDS, kind, work)
        return token

    def find(self, kind: str, token: str) -> Command | Forward | None:
        expires, wanted, work = self._works.get(token, (0.0, "", None))
        return work if wanted == kind and expires >= time.monotonic() else None

    def remove(self, token: str) -> None:
        del self._works[token]


class StreamingServer:
    """`start` listens, `close` ends all connections."""

    def __init__(self, endpoint: Endpoint | None = None) -> None:
        self._endpoint = endpoint or Endpoint()
        self._waiting = Waiting()
        self._listener: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._starting: asyncio.Task[None] | None = None
        self._connections: Connections | None = None
        self._base = ""

    async def start(self) -> None:
        """Raises OSError where it cannot listen, or the files of TLS cannot be used."""
        self._tls, address = self._endpoint.tls(), self._endpoint.address
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, self._endpoint.port), family=family, backlog=128)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._first_client)
        host = f"[{address}]" if ":" in address else address
        self._base = f"{'https' if self._tls else 'http'}://{host}:{self._listener.getsockname()[1]}"

    async def close(self) -> None:
        if self._starting:
            await self._starting
        if self._connections:
            await self._connections.close()
        elif self._listener:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()

    def _first_client(self) -> None:
        assert self._listener
        asyncio.get_running_loop().remove_reader(self._listener)
        self._starting = asyncio.create_task(self._serve(self._listener))

    async def _serve(self, listener: socket.socket) -> None:
        connections = await asyncio.to_thread(_connections)
        self._connections = connections.Connections(self._waiting)
        await self._connections.serve(listener, self._tls)

    def url(self, kind: str, work: Command | Forward) -> str:
        """A URL for one connection within a minute. kind: exec, attach or portforward. Raises TooManyWaiting."""
        return f"{self._base}/{kind}/{self._waiting.add(kind, work)}"


def _connections() -> ModuleType:
    from highrt.streaming import connections

    return connections

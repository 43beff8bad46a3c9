"""highrt's side of the monitor's wire: requests with answers, and events, on asyncio."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from highrt.monitor import wire
from strata.telemetry import spans

Event = dict[str, Any]

HELLO_SECONDS = 15.0
"""A monitor may be at work in its runtime; one that is silent for longer is taken for dead, and its pod is ended."""


class MonitorError(Exception):
    """The monitor answered with an error; the text is for people, and holds the runtime's own."""


class MonitorGone(Exception):
    """The connection ended. The request may have been done or not."""


class MonitorClient:
    """One connection to a monitor. Made by `connect` or `adopt`."""

    def __init__(self, sock: socket.socket, on_event: Callable[[Event], None], on_gone: Callable[[], None]) -> None:
        self._socket, self._on_event, self._on_gone = sock, on_event, on_gone
        self._loop = asyncio.get_running_loop()
        self._decoder = wire.Decoder()
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._hello: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._writing = asyncio.Lock()
        self._prefix, self._count = uuid.uuid4().hex[:12], 0
        self.closed = False
        self.pid = 0
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._read)

    @classmethod
    async def connect(cls, path: str, on_event: Callable[[Event], None], on_gone: Callable[[], None]) -> "MonitorClient":
        """Raises OSError (ConnectionRefusedError, FileNotFoundError) where no monitor listens, MonitorGone, MonitorError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, path)
        except BaseException:
            sock.close()
            raise
        return await cls.adopt(sock, on_event, on_gone)

    @classmethod
    async def adopt(cls, sock: socket.socket, on_event: Callable[[Event], None], on_gone: Callable[[], None]) -> "MonitorClient":
        """Takes over a connected socket and waits for the monitor's hello, HELLO_SECONDS at most."""
        client = cls(sock, on_event, on_gone)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await client._hello
        except TimeoutError:
            client.close()
            raise MonitorGone(f"the monitor said no hello within {HELLO_SECONDS:.0f} s") from None
        oldest, newest = hello["hello"]
        if newest < wire.VERSIONS[0] or oldest > wire.VERSIONS[1]:
            client.close()
            raise MonitorError(f"the monitor speaks the versions {oldest} to {newest} of the protocol, not {wire.VERSIONS}")
        client.pid = int(hello.get("pid") or 0)
        return client

    async def request(self, do: str, fds: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        """Sends a request and returns the values of its answer.

        fds: go along, and stay the caller's. Raises MonitorError or MonitorGone.
        """
        if self.closed:
            raise MonitorGone("there is no connection to the pod's monitor")
        self._count += 1
        number = f"{self._prefix}-{self._count}"
        message = {"id": number, "do": do, **fields}
        if fds:
            message["fds"] = len(fds)
        if traceparent := spans.current():
            message["traceparent"] = traceparent
        future = self._answers[number] = self._loop.create_future()
        try:
            await self._send(wire.frame(message), fds)
            answer: dict[str, Any] = await future
            return answer
        finally:
            self._answers.pop(number, None)

    def close(self) -> None:
        """Ends the connection; the monitor stays. on_gone is not called."""
        self._end(tell=False)

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        async with self._writing:
            try:
                sent = 0
                while not sent:
                    try:
                        sent = socket.send_fds(self._socket, [data], list(fds)) if fds else self._socket.send(data)
                    except BlockingIOError:
                        await self._writable()
                if sent < len(data):
                    await self._loop.sock_sendall(self._socket, data[sent:])
            except OSError as error:
                self._end(tell=True)
                raise MonitorGone(f"the pod's monitor does not listen: {error.strerror}") from None

    async def _writable(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()

        def writable() -> None:
            if not future.done():
                future.set_result(None)

        self._loop.add_writer(self._socket.fileno(), writable)
        try:
            await future
        finally:
            self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
            messages = self._decoder.feed(data) if data else []
        except BlockingIOError:
            return
        except (OSError, wire.WireError):
            data, messages = b"", []
        for message in messages:
            self._take(message)
        if not data:
            self._end(tell=True)

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message)
        elif "hello" in message:
            if not self._hello.done():
                self._hello.set_result(message)
        else:
            future = self._answers.get(str(message.get("id")))
            if future and not future.done():
                if message.get("error") is not None:
                    future.set_exception(MonitorError(message["error"]))
                else:
                    future.set_result(message.get("ok") or {})

    def _end(self, *, tell: bool) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for future in [self._hello, *self._answers.values()]:
            if not future.done():
                future.set_exception(MonitorGone("the connection to the pod's monitor ended"))
                # Nobody may be waiting for it any more.
                with contextlib.suppress(Exception):
                    future.exception()
        if tell:
            self._on_gone()


def close_all(fds: Sequence[int]) -> None:
    """Closes descriptors whose ownership was passed on, after they were sent or could not be."""
    for descriptor in fds:
        if descriptor >= 0:
            os.close(descriptor)

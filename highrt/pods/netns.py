"""Code inside a pod's network namespace: connections to its localhost, its interfaces' counters, its default routes.

setns(2) acts on a thread, so each call has a thread of its own that ends with it.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from highrt.pods.model import InterfaceStats
from strata.linux import namespaces, rtnetlink, syscalls

T = TypeVar("T")

_CONNECT_SECONDS = 10.0


async def dial(netns: str | None, port: int) -> socket.socket:
    """A connection to a port of the pod's localhost, 127.0.0.1 or ::1. Raises OSError."""

    def connect() -> socket.socket:
        failure: OSError | None = None
        for host in ("127.0.0.1", "::1"):
            try:
                sock = socket.create_connection((host, port), _CONNECT_SECONDS)
            except OSError as error:
                failure = failure or error
                continue
            sock.setblocking(False)
            return sock
        raise failure or OSError("no address")

    return await _inside(netns, connect, lambda sock: sock.close())


async def interfaces(netns: str | None) -> list[InterfaceStats]:
    """The counters of all interfaces but lo (proc(5), /proc/net/dev)."""

    def read() -> list[InterfaceStats]:
        found = []
        with open("/proc/thread-self/net/dev", encoding="ascii") as file:
            for line in file:
                name, colon, counters = line.partition(":")
                numbers = counters.split()
                if colon and name.strip() != "lo" and len(numbers) >= 12:
                    rx, rx_errors, tx, tx_errors = (int(numbers[i]) for i in (0, 2, 8, 10))
                    rest = (int(numbers[i]) for i in (1, 3, 9, 11))
                    found.append(InterfaceStats(name.strip(), rx, rx_errors, tx, tx_errors, *rest))
        return found

    return await _inside(netns, read, lambda found: None)


async def default_routes(netns: str | None, ways: Sequence[tuple[str, str]]) -> None:
    """Sets the pod's default routes. ways: an interface and its gateway, for each version of IP. Raises OSError."""

    def change() -> None:
        with rtnetlink.Netlink() as netlink:
            for name, way in ways:
                gateway = ipaddress.ip_address(way)
                link = netlink.link(name)
                if link is None:
                    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
                everywhere = ipaddress.ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
                netlink.replace_route(everywhere, link.index, gateway)

    await _inside(netns, change, lambda done: None)


async def _inside(netns: str | None, work: Callable[[], T], discard: Callable[[T], None]) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def done(result: T | None, failure: OSError | None) -> None:
        if future.cancelled():
            if failure is None:
                discard(result)  # type: ignore[arg-type]
        elif failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            if netns:
                descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    syscalls.setns(descriptor, namespaces.NEWNET)
                finally:
                    os.close(descriptor)
            result, failure = work(), None
        except OSError as error:
            result, failure = None, error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(done, result, failure)

    threading.Thread(target=run, name="netns", daemon=True).start()
    return await future

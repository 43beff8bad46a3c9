"""exec and attach over a connection: standard streams, window sizes and the exit code.

Two wires carry the same thing: WebSocket messages whose first byte names the channel (v4 and v5.channel.k8s.io, KEP-4006),
and SPDY streams whose header `streamtype` does (v4.channel.k8s.io and older). Both look like a `Peer`
(`remotecommand_peers`).
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

WEBSOCKET_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
SPDY_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255


@dataclass(frozen=True)
class Stdin:
    data: bytes


@dataclass(frozen=True)
class StdinClosed:
    """The client sends no more input; it still reads."""


@dataclass(frozen=True)
class Resize:
    """The client's terminal has this size in characters."""

    width: int
    height: int


Input = Stdin | StdinClosed | Resize


class Peer(Protocol):
    """A client of exec or attach."""

    async def receive(self) -> Input | None:
        """The next thing from the client; None when it is gone."""

    async def send(self, channel: int, data: bytes) -> None:
        """Sends output on STDOUT or STDERR; waits while the client is slow. Raises OSError where it is gone."""

    async def finish(self, status: dict[str, Any]) -> None:
        """Sends the end (a metav1.Status) and closes the connection."""


def success() -> dict[str, Any]:
    return {"metadata": {}, "status": "Success"}


def exited(code: int) -> dict[str, Any]:
    """The status of a command that ended with this code; clients read the code from the cause ExitCode."""
    if code == 0:
        return success()
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failed(message: str) -> dict[str, Any]:
    """The status of a command that could not be run, or lost its connection."""
    return {"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500}


def resize(data: bytes) -> Resize | None:
    """A resize message, `{"Width":80,"Height":24}`; None for one that makes no sense."""
    with suppress(ValueError, TypeError, KeyError):
        size = json.loads(data)
        width, height = int(size["Width"]), int(size["Height"])
        if 0 < width < 65536 and 0 < height < 65536:
            return Resize(width, height)
    return None

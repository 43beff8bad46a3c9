"""A client of the person's API as the peer of a relay: exec and attach over one gRPC stream."""

from typing import Any

from strata.protocols import highrt_pb2 as api
from strata.protocols.remotecommand import STDOUT, Input, Resize, Stdin, StdinClosed


class GrpcPeer:
    """stream: the call's, after its first message. A client that goes cancels the call; grpclib sees to that."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def receive(self) -> Input | None:
        while (message := await self._stream.recv_message()) is not None:
            match message.WhichOneof("message"):
                case "stdin":
                    return Stdin(message.stdin)
                case "stdin_closed":
                    return StdinClosed()
                case "resize":
                    return Resize(message.resize.width, message.resize.height)
        return None

    async def send(self, channel: int, data: bytes) -> None:
        output = api.Output(stdout=data) if channel == STDOUT else api.Output(stderr=data)
        await self._stream.send_message(output)

    async def started(self) -> None:
        await self._stream.send_message(api.Output(started=True))

    async def finish(self, status: dict[str, Any]) -> None:
        """The call's own end says it: the service sends the exit code."""

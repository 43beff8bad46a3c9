"""Spans of gRPC calls: W3C trace context in the metadata key `traceparent`, both ways.

Apart from `spans`, because it imports grpclib, and processes that never speak gRPC should not.
"""

from typing import Any

from grpclib.client import Channel
from grpclib.events import RecvRequest, SendRequest, listen
from grpclib.server import Server, Stream

from strata.telemetry import spans


def trace_server(server: Server) -> None:
    """Gives each call that the server handles a span named after its method, child of the caller's."""
    listen(server, RecvRequest, _receive)


def trace_channel(channel: Channel) -> None:
    """Sends the current trace context along with each call."""
    listen(channel, SendRequest, _send)


async def _receive(event: RecvRequest) -> None:
    if not spans.enabled():
        return
    method, name = event.method_func, event.method_name.rsplit("/", 1)[-1]
    parent = event.metadata.get(spans.METADATA_KEY)

    async def call(stream: "Stream[Any, Any]") -> None:
        with spans.span(name, parent=str(parent) if parent else None):
            await method(stream)

    event.method_func = call


async def _send(event: SendRequest) -> None:
    if traceparent := spans.current():
        event.metadata[spans.METADATA_KEY] = traceparent

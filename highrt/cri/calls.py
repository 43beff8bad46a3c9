"""How a gRPC method of the daemon is written: a coroutine from request to response, whose errors become status codes."""

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from google.protobuf.message import Message
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.images import errors as images
from highrt.pods import errors as pods
from highrt.streaming.server import TooManyWaiting

_CODES: list[tuple[type[Exception], Status]] = [
    (pods.NotFound, Status.NOT_FOUND),
    (pods.AlreadyExists, Status.ALREADY_EXISTS),
    (pods.FailedPrecondition, Status.FAILED_PRECONDITION),
    (pods.InvalidArgument, Status.INVALID_ARGUMENT),
    (pods.TooSlow, Status.RESOURCE_EXHAUSTED),
    (images.ImageNotFound, Status.NOT_FOUND),
    (images.InvalidReference, Status.INVALID_ARGUMENT),
    (images.BuildError, Status.INVALID_ARGUMENT),
    (images.ImageInUse, Status.FAILED_PRECONDITION),
    (images.RegistryUnauthorized, Status.UNAUTHENTICATED),
    (images.RegistryUnavailable, Status.UNAVAILABLE),
    (images.ImageError, Status.UNKNOWN),
    (pods.PodError, Status.UNKNOWN),
    (TooManyWaiting, Status.RESOURCE_EXHAUSTED),
    (TimeoutError, Status.DEADLINE_EXCEEDED),
]


@contextmanager
def worded() -> Iterator[None]:
    """Turns the daemon's errors into gRPC's."""
    try:
        yield
    except Exception as error:
        for kind, status in _CODES:
            if isinstance(error, kind):
                raise GRPCError(status, str(error) or status.name.lower()) from error
        raise


def unary(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Coroutine[Any, Any, None]]:
    """A method with one request and one response."""

    @functools.wraps(method)
    async def call(self: Any, stream: Any) -> None:
        request = await _request(stream)
        with worded():
            response = await method(self, request)
        await stream.send_message(response)

    return call


def streaming(method: Callable[[Any, Any], AsyncGenerator[Any, None]]) -> Callable[[Any, Any], Coroutine[Any, Any, None]]:
    """A method with one request and a stream of responses. The client gets the headers before the first of them."""

    @functools.wraps(method)
    async def call(self: Any, stream: Any) -> None:
        request = await _request(stream)
        await stream.send_initial_metadata()
        # closed at once when the client goes: what the method holds must not wait for the garbage collector
        async with aclosing(method(self, request)) as responses:
            with worded():
                async for response in responses:
                    await stream.send_message(response)

    return call


async def _request(stream: Any) -> Any:
    request = await stream.recv_message()
    if request is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the request has no message")
    if b"\0" in request.SerializeToString() and (where := _with_nul(request)):
        raise GRPCError(
            Status.INVALID_ARGUMENT, f"{where}: a text with a NUL byte, which no path or name of the system's can have"
        )
    return request


def _with_nul(message: Message) -> str:
    """The first field whose text has a NUL byte, "" where there is none."""
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            texts: list[Any] = [text for pair in value.items() for text in pair]
        else:
            texts = [*value] if field.is_repeated else [value]
        for each in texts:
            if isinstance(each, str) and "\0" in each:
                return str(field.name)
            if isinstance(each, Message) and (inside := _with_nul(each)):
                return f"{field.name}.{inside}"
    return ""


def require(condition: object, message: str) -> None:
    """Raises INVALID_ARGUMENT with this text where the condition does not hold."""
    if not condition:
        raise pods.InvalidArgument(message)

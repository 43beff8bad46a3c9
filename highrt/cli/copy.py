"""`highrt cp`: files between a container and this machine."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, BinaryIO

import click
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import StreamClosedError

from highrt.cli.connection import DaemonError, run
from highrt.person import transfer
from highrt.pods.errors import PodError
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub

_CHUNK = 256 * 1024


@click.command("cp")
@click.option("-a", "--archive", "keep_owners", is_flag=True, help="Keep users and groups.")
@click.argument("source", metavar="CONTAINER:PATH|PATH|-")
@click.argument("destination", metavar="CONTAINER:PATH|PATH|-")
@click.pass_context
def copy(ctx: click.Context, keep_owners: bool, source: str, destination: str) -> None:
    """Copy files and folders out of a container, or into one.

    \b
    highrt cp web:/etc/nginx.conf .          highrt cp page.html web:/srv/
    highrt cp web:/var/log - >log.tar        "-" is a tar archive on standard input or output
    """
    from_container, from_path = _split(source)
    to_container, to_path = _split(destination)
    if bool(from_container) == bool(to_container):
        raise click.UsageError("one of both must be CONTAINER:PATH, and the other a path of this machine or -")
    try:
        if from_container:
            place = api.PathName(container=from_container, path=os.fsencode(from_path))
            run(ctx, lambda stub: _from(stub, place, to_path, keep_owners=keep_owners))
        else:
            start = api.CopyStart(to=api.PathName(container=to_container, path=os.fsencode(to_path)), archive=keep_owners)
            run(ctx, lambda stub: _into(stub, from_path, start))
    except (PodError, OSError) as error:
        raise DaemonError(str(error)) from error


def _split(text: str) -> tuple[str, str]:
    """The container, "" for none, and the path."""
    container, colon, path = text.partition(":")
    if not colon or container.startswith((".", "/")):
        return "", text if text == "-" else _absolute(text)
    return container, path


def _absolute(path: str) -> str:
    """The path from the root on. A slash at its end keeps its meaning."""
    end = "/" if path.endswith(("/", "/.")) else ""
    return os.path.abspath(path).rstrip("/") + end or "/"


async def _from(stub: HighrtStub, place: api.PathName, path: str, *, keep_owners: bool) -> None:
    owner = None if keep_owners else (os.geteuid(), os.getegid())
    with _end(path, reads=False, work=lambda root, pipe: transfer.unpack(root, path, pipe, owner=owner)) as (pipe, trouble):
        async with stub.CopyFrom.open() as stream:
            await stream.send_message(place, end=True)
            with suppress(BrokenPipeError):  # this machine's side has failed
                async for chunk in stream:
                    await asyncio.to_thread(pipe.write, chunk.data)
    if trouble:
        raise trouble[0]


async def _into(stub: HighrtStub, path: str, start: api.CopyStart) -> None:
    with _end(path, reads=True, work=lambda root, pipe: transfer.pack(root, path, pipe)) as (pipe, trouble):
        async with stub.CopyInto.open() as stream:
            await stream.send_message(api.CopyInput(start=start))
            with suppress(StreamTerminatedError, StreamClosedError):  # it was refused before its end: the answer says why
                while data := await asyncio.to_thread(pipe.read, _CHUNK):
                    await stream.send_message(api.CopyInput(data=data))
                if trouble:
                    raise trouble[0]
                await stream.end()
            await stream.recv_message()


@contextmanager
def _end(path: str, *, reads: bool, work: Callable[[int, BinaryIO], None]) -> Iterator[tuple[IO[bytes], list[Exception]]]:
    """This process's end of a pipe, at whose other end a thread does the work with this machine's root, and what went wrong
    there, told before the pipe's end. With the path - that is its own standard input or output. reads: at this end."""
    mode = "rb" if reads else "wb"
    trouble: list[Exception] = []
    if path == "-":
        with os.fdopen(os.dup(0 if reads else 1), mode) as own:
            yield own, trouble
        return
    ends = os.pipe()
    ours, theirs = ends if reads else ends[::-1]

    def do() -> None:
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        other = os.fdopen(theirs, "wb" if reads else "rb")
        try:
            work(root, other)
            other.flush()
        except Exception as error:
            trouble.append(error)
        finally:
            os.close(root)
            with suppress(BrokenPipeError):
                other.close()

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    pipe = os.fdopen(ours, mode)
    try:
        yield pipe, trouble
    finally:
        with suppress(BrokenPipeError):
            pipe.close()
        thread.join()


COMMANDS = (copy,)

"""The way from a command to the daemon: its socket, its errors, and its start where none runs."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from highrt.defaults import DEFAULT_ADDRESS, DEFAULT_LOG
from strata.protocols.grpc import channel, socket_path
from strata.protocols.highrt_grpc import HighrtStub

_START_SECONDS = 15

T = TypeVar("T")


class DaemonError(click.ClickException):
    """What the daemon answered in place of a result, or that it did not answer. status: gRPC's, None without an answer."""

    def __init__(self, message: str, status: Status | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.status = status
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class

    def show(self, file: Any = None) -> None:
        click.echo(f"highrt: {self.message}", err=True)


@contextmanager
def forgiving(force: bool) -> Iterator[None]:
    """With --force, what is not there is no failure."""
    try:
        yield
    except GRPCError as error:
        if not (force and error.status is Status.NOT_FOUND):
            raise


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[HighrtStub]:
    """A stub for the daemon at this address; on the default one a daemon is started where none answers."""
    try:
        path = socket_path(address)
    except ValueError as error:
        raise DaemonError(f"--address: {error}") from error
    if not _answers(path):
        if address != DEFAULT_ADDRESS:
            raise DaemonError(
                f"no daemon answers on {address}: start one (highrt serve --listen {address}), or use another --address"
            )
        _start_daemon(path)
    link = channel(address)
    try:
        with errors():
            yield HighrtStub(link)
    finally:
        link.close()


class errors:
    """`with errors():` words what gRPC raises."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, GRPCError):
            raise DaemonError(error.message or error.status.name.lower(), error.status) from error
        if isinstance(error, StreamTerminatedError | ConnectionResetError | ConnectionRefusedError):
            raise DaemonError(f"the connection to the daemon broke: {error or type(error).__name__}") from error


def run(ctx: click.Context, work: Callable[[HighrtStub], Awaitable[T]]) -> T:
    """Runs a command's coroutine with a stub for the daemon of `--address`."""

    async def main() -> T:
        async with connected(ctx.find_root().params["address"]) as stub:
            return await work(stub)

    try:
        return asyncio.run(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # whoever reads our output (head, less) has enough; the interpreter must not flush into it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(1) from None


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except PermissionError as error:
            raise DaemonError(f"cannot use {path}: {error.strerror}; run highrt as root") from error
        except OSError:
            return False
    return True


def _start_daemon(path: str) -> None:
    if os.geteuid() != 0:
        raise DaemonError("no daemon runs, and only root can start one: use sudo")
    log = Path(DEFAULT_LOG)
    log.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"highrt: no daemon answers on {DEFAULT_ADDRESS}; starting one (its log: {log})", err=True)
    with log.open("ab") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "highrt.cli.main", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(path):
        if daemon.poll() is not None:
            raise DaemonError(f"the daemon ended at once (status {daemon.returncode}): see {log}")
        if time.monotonic() > deadline:
            daemon.terminate()
            raise DaemonError(f"the daemon did not answer within {_START_SECONDS} s: see {log}")
        time.sleep(0.05)

"""`highrt wait`: until containers have ended, or are as they shall be."""

import asyncio
import json
from typing import Any

import click
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.cli.connection import DaemonError, run
from highrt.cli.options import DURATION
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub

_ENDED = ("exited", "stopped")
_NOT_RUNNING, _NEXT_EXIT = "not-running", "next-exit"
_HEALTH = ("healthy", "unhealthy")
_REMOVED = "removed"
_NO_CODE = -1
"""What podman prints for a container that has not ended."""


@click.command()
@click.option(
    "--condition", "conditions", multiple=True, default=["exited"], metavar="CONDITION",
    type=click.Choice([*_ENDED, "created", "running", "paused", "restarting", *_HEALTH, _REMOVED, _NOT_RUNNING, _NEXT_EXIT]),
    help="What to wait for: exited (or stopped), created, running, paused, restarting, healthy, unhealthy, removed, not-running "
    "or next-exit; given again, one of them.",
)  # fmt: skip
@click.option("--interval", type=DURATION, default="250ms", metavar="TIME", help="How often to look, where nothing tells.")
@click.option("-i", "--ignore", is_flag=True, help="Do not complain about containers that are not there.")
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def wait(
    ctx: click.Context, /, conditions: tuple[str, ...], interval: int, ignore: bool, containers: tuple[str, ...]
) -> None:  # fmt: skip
    """Wait until containers end, and print their exit codes."""

    async def work(stub: HighrtStub) -> int:
        failed = 0
        # all at once: what one waits for may be over before another's is
        waits = [asyncio.ensure_future(_until(stub, name, conditions, interval / 1e9)) for name in containers]
        for each in waits:
            try:
                click.echo(await each)
            except DaemonError as error:
                error.show()
                failed = 1
            except GRPCError as error:
                if ignore and error.status is Status.NOT_FOUND:
                    click.echo(_NO_CODE)
                else:
                    DaemonError(error.message or error.status.name).show()
                    failed = 1
        return failed

    ctx.exit(run(ctx, work))


async def _until(stub: HighrtStub, name: str, conditions: tuple[str, ...], seconds: float) -> int:
    """The exit code, or _NO_CODE for a container that has not ended. Raises GRPCError, DaemonError."""
    first = await _look(stub, name)
    identifier = first["Id"]  # whatever has its name later
    if not set(conditions) - set(_ENDED):
        return (await stub.Wait(api.ContainerName(container=identifier))).exit_code
    while True:
        try:
            found = await _look(stub, identifier)
        except GRPCError as error:
            if error.status is Status.NOT_FOUND and _REMOVED in conditions:
                return _NO_CODE
            raise
        state = found["State"]
        health = state.get("Health", {}).get("Status", "")
        if not health and state["Running"] and set(conditions) <= set(_HEALTH):
            raise DaemonError(f"container {name} has no health check")
        if state["Status"] in conditions or health in conditions:
            return _NO_CODE
        wanted = {*_ENDED, _NOT_RUNNING, *([_NEXT_EXIT] if state["FinishedAt"] != first["State"]["FinishedAt"] else [])}
        if state["Status"] == "exited" and wanted & set(conditions):
            return int(state["ExitCode"])
        if state["Status"] == "created" and _NOT_RUNNING in conditions:
            return _NO_CODE
        await asyncio.sleep(seconds)


async def _look(stub: HighrtStub, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await stub.Inspect(api.ContainerName(container=name))).json)
    return found

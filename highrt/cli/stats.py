"""`highrt stats`: what running containers use, again and again."""

import asyncio
import os
from collections.abc import Sequence

import click

from highrt.cli import formats
from highrt.cli.connection import run
from highrt.cli.options import taking
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub

_SECONDS = 1.0
_HEADS = {
    "Container": "CONTAINER ID", "ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %",
    "NetIO": "NET I/O", "BlockIO": "BLOCK I/O",
}  # fmt: skip
OPTIONS = (
    click.option("--no-stream", "once", is_flag=True, help="Print once, instead of every second."),
    click.option("--no-trunc", is_flag=True, help="Whole IDs."),
    click.option("--format", "template", default="", help="A template, like '{{.Name}} {{.CPUPerc}}', or json."),
)
_COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")


@click.command()
@taking(OPTIONS)
@click.argument("containers", nargs=-1)
@click.pass_context
def stats(ctx: click.Context, once: bool, no_trunc: bool, template: str, containers: tuple[str, ...]) -> None:
    """Show what running containers use."""
    run(ctx, lambda stub: show(stub, containers, template, once=once, no_trunc=no_trunc))


async def show(stub: HighrtStub, containers: Sequence[str], template: str, *, once: bool, no_trunc: bool) -> None:
    """Prints what containers use, once or until it is interrupted; all that run where none is named. Raises GRPCError."""
    request = api.StatsRequest(containers=containers)
    before = (await stub.Stats(request)).stats
    while True:
        await asyncio.sleep(_SECONDS)
        now = (await stub.Stats(request)).stats
        last = {item.id: item for item in before}
        rows = [_row(item, last.get(item.id), no_trunc=no_trunc) for item in now]
        if not once and os.isatty(1):
            click.clear()
        formats.print_rows(template, rows, _COLUMNS, _HEADS)
        if once:
            return
        before = now


def _row(item: api.ContainerStats, last: api.ContainerStats | None, *, no_trunc: bool) -> dict[str, str]:
    passed = item.time_ns - last.time_ns if last else 0
    share = 100 * (item.cpu_nanoseconds - last.cpu_nanoseconds) / passed if last and passed > 0 else 0.0
    identifier = item.id if no_trunc else formats.short(item.id)
    # without a limit of its own it may take the machine's memory
    limit = item.memory_limit_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "Container": identifier,
        "ID": identifier,
        "Name": item.name,
        "CPUPerc": f"{share:.2f}%",
        "MemUsage": f"{formats.size(item.memory_bytes)} / {formats.size(limit)}",
        "MemPerc": f"{100 * item.memory_bytes / limit:.2f}%",
        "NetIO": f"{formats.size(item.rx_bytes)} / {formats.size(item.tx_bytes)}",
        "BlockIO": f"{formats.size(item.read_bytes)} / {formats.size(item.write_bytes)}",
        "PIDs": str(item.pids),
    }

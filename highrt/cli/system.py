"""`highrt system`: about the daemon itself."""

import json

import click
from google.protobuf.json_format import MessageToDict

from highrt.cli import formats
from highrt.cli.connection import run
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub


@click.command()
@click.option("--format", "template", default="", help="json, or a template.")
@click.pass_context
def system(ctx: click.Context, template: str) -> None:
    """Show the daemon: version, folders, runtimes, network, and how much there is."""

    async def work(stub: HighrtStub) -> api.SystemResponse:
        return await stub.System(api.SystemRequest())

    about = run(ctx, work)
    if template:
        document = MessageToDict(about, always_print_fields_with_no_presence=True)
        click.echo(formats.render(template, document) if template != "json" else json.dumps(document, indent=4))
        return
    handlers = ", ".join(f"{name} (default)" if name == about.default_handler else name for name in about.handlers)
    for name, value in (
        ("version", about.version),
        ("stack", about.name),
        ("daemon", f"process {about.pid}"),
        ("root", about.root),
        ("state", about.state),
        ("runtimes", handlers),
        ("network", "ready" if about.network_ready else f"none for bridge: {about.network_message}"),
        ("containers", f"{about.containers}, {about.running} running"),
        ("images", f"{about.images}, {formats.size(about.image_bytes)}"),
    ):
        click.echo(f"{name + ':':12}{value}")


COMMANDS = (system,)

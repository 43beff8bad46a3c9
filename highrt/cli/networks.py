"""`highrt network`: networks of a person's, on which containers know each other by name."""

import json
from typing import Any

import click
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.cli import formats
from highrt.cli.connection import run
from highrt.cli.containers import each
from highrt.cli.run import labels
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub


@click.group()
def network() -> None:
    """Manage networks, on which containers know each other by name."""


@network.command()
@click.option("-d", "--driver", default="bridge", show_default=True, help="bridge: there is no other.")
@click.option("--subnet", "subnets", multiple=True, metavar="CIDR", help="Its addresses, else a free subnet.")
@click.option("--gateway", "gateways", multiple=True, metavar="IP", help="The bridge's address, else the first one.")
@click.option("--ip-range", "ranges", multiple=True, metavar="CIDR", help="Take containers' addresses from this part only.")
@click.option("--internal", is_flag=True, help="Without a way out of it.")
@click.option("--ipv6", is_flag=True, help="With IPv6 addresses, too.")
@click.option("--label", "noted", multiple=True, metavar="NAME=VALUE", help="Note something on it.")
@click.option("-o", "--opt", "options", multiple=True, metavar="NAME=VALUE", help="com.docker.network.driver.mtu=BYTES.")
@click.argument("name")
@click.pass_context
def create(ctx: click.Context, /, name: str, noted: tuple[str, ...], options: tuple[str, ...], **rest: Any) -> None:
    """Make a network; its name is printed."""

    async def work(stub: HighrtStub) -> str:
        asked = api.CreateNetworkRequest(name=name, labels=labels(noted), options=labels(options), **rest)
        return (await stub.CreateNetwork(asked)).name

    click.echo(run(ctx, work))


def _all(ctx: click.Context) -> list[api.Network]:
    async def work(stub: HighrtStub) -> list[api.Network]:
        return list((await stub.Networks(api.NetworksRequest())).networks)

    return run(ctx, work)


@network.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.option("--format", "template", default="", help="json, or a template.")
@click.pass_context
def list_networks(ctx: click.Context, quiet: bool, template: str) -> None:
    """List networks."""
    found = _all(ctx)
    if quiet:
        for item in found:
            click.echo(item.name)
    elif template:
        for item in found:
            document = {"ID": item.id, "Name": item.name, "Driver": item.driver, "Scope": "local", "Labels": dict(item.labels)}
            click.echo(json.dumps(document) if template == "json" else formats.render(template, document))
    else:
        rows = ([formats.short(item.id), item.name, item.driver, "local"] for item in found)
        click.echo(formats.table(["NETWORK ID", "NAME", "DRIVER", "SCOPE"], rows))


@network.command()
@click.option("-f", "--format", "template", default="", help="json, or a template.")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect(ctx: click.Context, template: str, names: tuple[str, ...]) -> None:
    """Print all about networks, as JSON."""

    async def work(stub: HighrtStub) -> list[Any]:
        return [json.loads((await stub.InspectNetwork(api.NetworkName(name=name))).json) for name in names]

    documents = run(ctx, work)
    if template and template != "json":
        for document in documents:
            click.echo(formats.render(template, document))
    else:
        click.echo(json.dumps(documents, indent=4))


@network.command()
@click.option("-f", "--force", is_flag=True, help="No error for a network that is not there.")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, force: bool, names: tuple[str, ...]) -> None:
    """Remove networks that no container is on."""

    async def act(stub: HighrtStub, name: str) -> None:
        try:
            await stub.RemoveNetwork(api.NetworkName(name=name))
        except GRPCError as error:
            if not force or error.status is not Status.NOT_FOUND:
                raise

    each(ctx, names, act)


@network.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def prune(ctx: click.Context, force: bool) -> None:
    """Remove all networks that no container is on."""
    if not force:
        click.confirm("All networks that no container is on are removed. Go on?", abort=True)
    if names := tuple(item.name for item in _all(ctx) if not item.built_in and not item.members):
        each(ctx, names, lambda stub, name: stub.RemoveNetwork(api.NetworkName(name=name)))


@network.command()
@click.option("--ip", default="", metavar="IP", help="Its address there.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="A further name there.")
@click.argument("name")
@click.argument("container")
@click.pass_context
def connect(ctx: click.Context, ip: str, aliases: tuple[str, ...], name: str, container: str) -> None:
    """Put a container on a further network, also while it runs."""

    async def work(stub: HighrtStub) -> None:
        await stub.ConnectNetwork(api.ConnectNetworkRequest(network=name, container=container, address=ip, aliases=aliases))

    run(ctx, work)


@network.command()
@click.option("-f", "--force", is_flag=True, help="For scripts written for others: nothing more happens.")
@click.argument("name")
@click.argument("container")
@click.pass_context
def disconnect(ctx: click.Context, force: bool, name: str, container: str) -> None:
    """Take a container off a network."""

    async def work(stub: HighrtStub) -> None:
        await stub.DisconnectNetwork(api.ConnectNetworkRequest(network=name, container=container))

    run(ctx, work)

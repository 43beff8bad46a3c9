"""`highrt network`: networks of a person's, on which containers know each other by name."""

import json
from typing import Any

import click

from highrt.cli import formats
from highrt.cli.connection import forgiving, run
from highrt.cli.containers import each
from highrt.cli.options import has_label
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
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="name, id, driver, label, or type=custom.")
@click.option("--format", "template", default="", help="json, or a template.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="All of them as one JSON document.")
@click.pass_context
def list_networks(
    ctx: click.Context, quiet: bool, no_trunc: bool, filters: tuple[str, ...], template: str, output: str | None
) -> None:
    """List networks."""
    wanted = [_filter(text) for text in filters]
    found = [item for item in _all(ctx) if all(_matches(item, key, value) for key, value in wanted)]
    documents = [
        {
            "ID": item.id if no_trunc or output else formats.short(item.id),
            "Name": item.name,
            "Driver": item.driver,
            "Scope": "local",
            "Internal": item.internal,
            "Subnets": [*item.subnets],
            "Labels": dict(item.labels),
        }
        for item in found
    ]
    if output:
        click.echo(json.dumps(documents, indent=4))
    elif quiet:
        for item in found:
            click.echo(item.name)
    else:
        formats.print_rows(template, documents, ["ID", "Name", "Driver", "Scope"], {"ID": "NETWORK ID"})


def _filter(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if key not in ("name", "id", "driver", "label", "type") or not value:
        raise click.BadParameter(f"--filter {text}: use name=, id=, driver=, label= or type=")
    if key == "type" and value not in ("custom", "builtin"):
        raise click.BadParameter(f"--filter {text}: the type is custom or builtin")
    return key, value


def _matches(item: api.Network, key: str, value: str) -> bool:
    match key:
        case "name":
            return value in item.name
        case "id":
            return item.id.startswith(value)
        case "driver":
            return item.driver == value
        case "type":
            return (value == "builtin") == item.built_in
    return has_label(item.labels, value)


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
        with forgiving(force):
            await stub.RemoveNetwork(api.NetworkName(name=name))

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
@click.option("--ip", default="", metavar="IPV4", help="Its address there.")
@click.option("--ip6", default="", metavar="IPV6", help="Its IPv6 address there.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="A further name there.")
@click.argument("name", metavar="NETWORK")
@click.argument("container")
@click.pass_context
def connect(ctx: click.Context, /, name: str, container: str, **wishes: Any) -> None:
    """Put a container on a further network, also while it runs."""
    endpoint = api.Endpoint(network=name, **wishes)

    async def work(stub: HighrtStub) -> None:
        await stub.ConnectNetwork(api.ConnectNetworkRequest(container=container, endpoint=endpoint))

    run(ctx, work)


@network.command()
@click.option("-f", "--force", is_flag=True, help="No error for a container that is not on it.")
@click.argument("name", metavar="NETWORK")
@click.argument("container")
@click.pass_context
def disconnect(ctx: click.Context, force: bool, name: str, container: str) -> None:
    """Take a container off a network."""

    async def work(stub: HighrtStub) -> None:
        request = api.ConnectNetworkRequest(container=container, endpoint=api.Endpoint(network=name))
        with forgiving(force):
            await stub.DisconnectNetwork(request)

    run(ctx, work)

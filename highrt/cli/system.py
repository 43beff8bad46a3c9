"""`highrt system`, `info` and `volume`: about the daemon itself, and what it keeps."""

import json

import click
from google.protobuf.json_format import MessageToDict

from highrt.cli import formats, images
from highrt.cli.connection import DaemonError, run
from highrt.cli.containers import each, ended
from highrt.cli.options import filtered, time_ns
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub


@click.group(invoke_without_command=True)
@click.option("--format", "template", default="", help="json, or a template.")
@click.pass_context
def system(ctx: click.Context, template: str) -> None:
    """Show the daemon, or, with a command, what it keeps on the disk."""
    if ctx.invoked_subcommand is None:
        _show(ctx, template)


@click.command()
@click.option("--format", "template", default="", help="json, or a template.")
@click.pass_context
def info(ctx: click.Context, template: str) -> None:
    """Show the daemon: version, folders, runtimes, network, and how much there is."""
    _show(ctx, template)


@click.command()
@click.option("-f", "--format", "template", default="", help="json, or a template, like '{{.Server.Version}}'.")
@click.pass_context
def version(ctx: click.Context, template: str) -> None:
    """Show the versions of this command and of the daemon."""
    from importlib import metadata  # takes as long as all other imports of a command

    async def work(stub: HighrtStub) -> str:
        return (await stub.System(api.SystemRequest())).version

    found = {"Client": metadata.version("strata"), "Server": run(ctx, work)}
    if template:
        click.echo(formats.render(template, {side: {"Version": number} for side, number in found.items()}))
    else:
        for side, number in found.items():
            click.echo(f"{side + ':':9}{number}")


def _show(ctx: click.Context, template: str) -> None:

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


@system.command()
@click.pass_context
def df(ctx: click.Context) -> None:
    """Show what images, containers and volumes take on the disk, and how much of it nothing uses."""

    async def work(stub: HighrtStub) -> list[api.DiskUsage]:
        return list((await stub.DiskUsage(api.SystemRequest())).kinds)

    rows = []
    for kind in run(ctx, work):
        share = f" ({100 * kind.reclaimable_bytes // kind.bytes}%)" if kind.bytes else ""
        free = formats.size(kind.reclaimable_bytes) + share
        rows.append([kind.kind, str(kind.total), str(kind.active), formats.size(kind.bytes), free])
    click.echo(formats.table(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], rows))


@system.command()
@click.option("-a", "--all", "every", is_flag=True, help="Also images that have names, if no container uses them.")
@click.option("--volumes", is_flag=True, help="Also volumes that no container uses.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def prune(ctx: click.Context, every: bool, volumes: bool, force: bool) -> None:
    """Remove containers that do not run, and networks and images that nothing uses."""
    if not force:
        also = ", networks and volumes" if volumes else " and networks"
        click.confirm(f"All containers that do not run, and the images{also} that nothing uses, are removed. Go on?", abort=True)

    async def work(stub: HighrtStub) -> None:
        for container in await ended(stub):
            await stub.Remove(api.RemoveRequest(container=container))
            click.echo(f"removed container {container}")
        for network in (await stub.Networks(api.NetworksRequest())).networks:
            if not network.built_in and not network.members:
                await stub.RemoveNetwork(api.NetworkName(name=network.name))
                click.echo(f"removed network {network.name}")
        await images.remove_unused(stub, every=every)
        for volume in (await stub.Volumes(api.VolumesRequest())).volumes if volumes else ():
            if not volume.users:
                await stub.RemoveVolume(api.VolumeName(name=volume.name))
                click.echo(f"removed volume {volume.name}")

    run(ctx, work)


@click.command()
@click.option("--since", default="", help="Also those since a time, or for so long, as 10m.")
@click.option("--until", default="", help="End at a time.")
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Like type=container, event=die, container=NAME."
)
@click.option("--format", "template", default="", help="json, or a template.")
@click.pass_context
def events(ctx: click.Context, since: str, until: str, filters: tuple[str, ...], template: str) -> None:
    """Print what happens, as it happens."""
    span = {"since_ns": time_ns(since, "--since"), "until_ns": time_ns(until, "--until")}
    request = api.EventsRequest(**span, filters=[*map(filtered, filters)])

    async def work(stub: HighrtStub) -> None:
        async with stub.Events.open() as stream:
            await stream.send_message(request, end=True)
            async for event in stream:
                click.echo(_told(event, template))

    run(ctx, work)


def _told(event: api.Event, template: str) -> str:
    """A line, as docker has it."""
    if template:
        document = {
            "Type": event.type,
            "Action": event.action,
            "Actor": {"ID": event.actor, "Attributes": dict(event.attributes)},
            "status": event.action,
            "id": event.actor,
            "from": event.attributes.get("image", ""),
            "scope": "local",
            "time": event.time_ns // 10**9,
            "timeNano": event.time_ns,
        }
        return json.dumps(document) if template in ("json", "{{json .}}") else formats.render(template, document)
    attributes = ", ".join(f"{key}={value}" for key, value in sorted(event.attributes.items()))
    return f"{formats.stamp(event.time_ns)} {event.type} {event.action} {event.actor} ({attributes})"


@click.group()
def volume() -> None:
    """Manage volumes, which outlive containers."""


@volume.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.option("--format", "template", default="", help="A template, like '{{.Name}} {{.Mountpoint}}', or json.")
@click.pass_context
def list_volumes(ctx: click.Context, quiet: bool, template: str) -> None:
    """List volumes."""

    async def work(stub: HighrtStub) -> list[api.Volume]:
        return list((await stub.Volumes(api.VolumesRequest())).volumes)

    found = run(ctx, work)
    if quiet:
        for item in found:
            click.echo(item.name)
    else:
        rows = [{"Driver": "local", "Name": item.name, "Mountpoint": item.path, "Scope": "local"} for item in found]
        formats.print_rows(template, rows, ["Driver", "Name"], {"Name": "VOLUME NAME"})


@volume.command()
@click.argument("name", required=False, default="")
@click.pass_context
def create(ctx: click.Context, name: str) -> None:
    """Make a volume; its name is printed."""

    async def work(stub: HighrtStub) -> str:
        return (await stub.CreateVolume(api.VolumeName(name=name))).name

    click.echo(run(ctx, work))


@volume.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Print all about volumes, as JSON."""

    async def work(stub: HighrtStub) -> list[api.Volume]:
        return list((await stub.Volumes(api.VolumesRequest())).volumes)

    known = {item.name: item for item in run(ctx, work)}
    if missing := [name for name in names if name not in known]:
        raise DaemonError(f"there is no volume {missing[0]} (highrt volume ls lists them)")
    documents = [
        {"Name": item.name, "Driver": "local", "Mountpoint": item.path, "Scope": "local", "UsedBy": [*item.users]}
        for item in (known[name] for name in names)
    ]
    click.echo(json.dumps(documents, indent=4))


@volume.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Remove volumes, with all that is in them."""
    each(ctx, names, lambda stub, name: stub.RemoveVolume(api.VolumeName(name=name)))


system.add_command(events)
system.add_command(info)

COMMANDS = (system, info, version, events, volume)

"""`highrt image` and `highrt builder`: the commands about images as a group, and those that are only in it."""

import json

import click

from highrt.cli import formats, images, terminal
from highrt.cli.connection import run
from highrt.cli.containers import inspect
from highrt.cli.options import filtered, time_ns
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub

_WIDTH = 45


@click.group()
def image() -> None:
    """Manage images."""


@click.command()
@click.option("--no-trunc", is_flag=True, help="Whole instructions.")
@click.option("-q", "--quiet", is_flag=True, help="Print layers' digests only.")
@click.option("--format", "template", default="", help="A template, like '{{.CreatedBy}}', or json.")
@click.argument("name", metavar="IMAGE")
@click.pass_context
def history(ctx: click.Context, no_trunc: bool, quiet: bool, template: str, name: str) -> None:
    """Show how an image was made, the last step first."""

    async def work(stub: HighrtStub) -> list[api.HistoryStep]:
        return list((await stub.ImageHistory(api.ImageName(image=name))).steps)

    rows = []
    for step in reversed(run(ctx, work)):
        made = " ".join(step.created_by.split())
        rows.append(
            {
                "ID": (step.diff_id if no_trunc else formats.short(step.diff_id)) or "<missing>",
                "CreatedSince": formats.image_age(step.created),
                "CreatedAt": step.created,
                "CreatedBy": made if no_trunc or len(made) <= _WIDTH else made[: _WIDTH - 1] + "…",
                "Size": formats.size(step.bytes),
                "Comment": step.comment,
            }
        )
    if quiet:
        for row in rows:
            click.echo(row["ID"])
    else:
        heads = {"ID": "LAYER", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY"}
        formats.print_rows(template, rows, ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"], heads)


@image.command()
@click.argument("name", metavar="IMAGE")
@click.pass_context
def tree(ctx: click.Context, name: str) -> None:
    """Show an image's layers, and which other images end with each of them."""

    async def work(stub: HighrtStub) -> tuple[api.History, dict[str, list[str]]]:
        found = await stub.ImageHistory(api.ImageName(image=name))
        tops: dict[str, list[str]] = {}
        for other in (await stub.Images(api.ImagesRequest())).images:
            chain = (await stub.ImageHistory(api.ImageName(image=other.id))).chain_ids
            for top in chain[-1:]:
                tops.setdefault(top, []).extend(other.tags or [formats.short(other.id)])
        return found, tops

    found, tops = run(ctx, work)
    layers = [step for step in found.steps if step.diff_id]
    click.echo(f"Image ID: {formats.short(found.id)}\nTags:     {', '.join(found.tags) or '<none>'}")
    click.echo(f"Size:     {formats.size(sum(step.bytes for step in layers))}\nLayers:")
    for number, (step, chain) in enumerate(zip(layers, found.chain_ids, strict=True), 1):
        ends = f"  top of {', '.join(tops[chain])}" if chain in tops else ""
        click.echo(f"{'└──' if number == len(layers) else '├──'} {formats.short(step.diff_id)}  {formats.size(step.bytes)}{ends}")


@image.command()
@click.option("--format", "template", default="", help="json: one document with the lists added, changed and deleted.")
@click.argument("name", metavar="IMAGE")
@click.argument("base", default="")
@click.pass_context
def diff(ctx: click.Context, template: str, name: str, base: str) -> None:
    """Print which files an image adds (A), changes (C) and deletes (D), beside the image BASE or its own lower layers."""
    if template not in ("", "json"):
        raise click.BadParameter(f"--format {template!r}: there is only json")

    async def work(stub: HighrtStub) -> list[api.Change]:
        return list((await stub.ImageDiff(api.ImageDiffRequest(image=name, base=base))).changes)

    changes = run(ctx, work)
    if template:
        kinds = {"changed": "C", "added": "A", "deleted": "D"}
        lists = {
            name: [item.path.decode(errors="replace") for item in changes if item.kind == kind] for name, kind in kinds.items()
        }
        click.echo(json.dumps({name: paths for name, paths in lists.items() if paths}, ensure_ascii=False))
    else:
        for change in changes:
            terminal.write_all(1, change.kind.encode() + b" " + change.path + b"\n")


@image.command()
@click.option("-a", "--all", "every", is_flag=True, help="Also those that have names, if no container uses them.")
@click.option("--filter", "filters", multiple=True, metavar="until=TIME", help="Only what was made before a time, or longer ago.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def prune(ctx: click.Context, every: bool, filters: tuple[str, ...], force: bool) -> None:
    """Remove images without names that nothing uses."""
    until_ns = 0
    for item in map(filtered, filters):
        if item.key != "until":
            raise click.BadParameter(f"--filter {item.key}={item.value}: there is only until=TIME")
        until_ns = time_ns(item.value, "--filter until")
    if not force:
        click.confirm(f"All images {'' if every else 'without a name '}that nothing uses are removed. Go on?", abort=True)
    run(ctx, lambda stub: images.remove_unused(stub, every=every, until_ns=until_ns))


@image.command()
@click.argument("names", nargs=-1, metavar="[IMAGE]...")
@click.pass_context
def mount(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Mount images read-only and print where; without a name, list those that are mounted."""

    async def work(stub: HighrtStub) -> list[api.MountedImage]:
        if names:
            return [await stub.MountImage(api.ImageName(image=name)) for name in names]
        return list((await stub.MountedImages(api.ImagesRequest())).images)

    for found in run(ctx, work):
        click.echo(found.path if len(names) == 1 else f"{formats.short(found.id)} {found.path}")


@image.command()
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.pass_context
def unmount(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Take the mounts of images away."""

    async def work(stub: HighrtStub) -> None:
        for name in names:
            click.echo((await stub.UnmountImage(api.ImageName(image=name))).id)

    run(ctx, work)


@click.group()
def builder() -> None:
    """Manage what builds keep."""


@builder.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="For scripts written for docker: all goes in every case.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def prune_builds(ctx: click.Context, every: bool, force: bool) -> None:
    """Forget all steps of builds, and the folders of RUN --mount=type=cache."""
    if not force:
        click.confirm("The next builds begin from nothing. Go on?", abort=True)

    async def work(stub: HighrtStub) -> int:
        return (await stub.PruneBuilds(api.PruneBuildsRequest())).freed_bytes

    click.echo(f"Total:\t{formats.size(run(ctx, work))}")


for command in (*images.COMMANDS, history, inspect):
    image.add_command(command)
image.add_command(images.list_images, "ls")
image.add_command(images.rmi, "rm")
image.add_command(unmount, "umount")
COMMANDS = (image, history, builder)

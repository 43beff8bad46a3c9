"""The commands about images: images, pull, push, build, tag, rmi, load, save."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from grpclib.exceptions import StreamTerminatedError

from highrt.cli import formats, layout
from highrt.cli.connection import DaemonError, run
from highrt.cli.credentials import credentials
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub

_CHUNK = 256 * 1024
_IN = click.Path(exists=True, allow_dash=True)
_OUT = click.Path(allow_dash=True)


@click.command()
@click.argument("image")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's ID only.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Which of the image's platforms.")
@click.option("--creds", default="", metavar="USER:PASSWORD", help="Credentials for the registry, for this once.")
@click.pass_context
def pull(ctx: click.Context, image: str, quiet: bool, platform: str, creds: str) -> None:
    """Get an image from its registry."""
    request = api.PullRequest(image=image, platform=platform, credentials=credentials(image, creds))
    click.echo(run(ctx, lambda stub: pull_image(stub, request, quiet=quiet)))


async def pull_image(stub: HighrtStub, request: api.PullRequest, *, quiet: bool) -> str:
    """Pulls with progress on standard error; returns the image's ID."""
    async with stub.Pull.open() as stream:
        await stream.send_message(request, end=True)
        return await _show(stream, request.image, quiet=quiet)


@click.command()
@click.argument("image")
@click.argument("destination", required=False, default="")
@click.option("-q", "--quiet", is_flag=True, help="Print the digest only.")
@click.option("--creds", default="", metavar="USER:PASSWORD", help="Credentials for the registry, for this once.")
@click.pass_context
def push(ctx: click.Context, image: str, destination: str, quiet: bool, creds: str) -> None:
    """Send an image to its registry, or to DESTINATION. Prints the digest."""

    async def work(stub: HighrtStub) -> str:
        request = api.PushRequest(image=image, destination=destination, credentials=credentials(destination or image, creds))
        async with stub.Push.open() as stream:
            await stream.send_message(request, end=True)
            return await _show(stream, destination or image, quiet=quiet)

    click.echo(run(ctx, work))


async def _show(stream: AsyncIterator[api.Progress], name: str, *, quiet: bool) -> str:
    """Bars in a terminal, a line for each change of a layer's phase elsewhere."""
    result = ""
    if quiet or not sys.stderr.isatty():
        phases: dict[str, str] = {}
        async for item in stream:
            if item.result:
                result = item.result
            elif not quiet and phases.get(item.layer) != item.phase:
                phases[item.layer] = item.phase
                amount = f" ({formats.size(item.total_bytes)})" if item.total_bytes else ""
                click.echo(f"{formats.short(item.layer) or name}: {item.phase}{amount}", err=True)
        return result
    # late, because only bars need it
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(30), DownloadColumn(), TextColumn("[dim]{task.fields[phase]}"))
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}
        async for item in stream:
            if item.result:
                result = item.result
                continue
            if item.layer not in tasks:
                tasks[item.layer] = bars.add_task(formats.short(item.layer) or name, total=None, phase=item.phase)
            # a layer that was there already reports no bytes: its bar is full all the same
            finished = item.phase == "done"
            total = item.total_bytes or (1 if finished else None)
            bars.update(tasks[item.layer], completed=total if finished else item.done_bytes, total=total, phase=item.phase)
    return result


@click.command("images")
@click.option("-q", "--quiet", is_flag=True, help="Print IDs only.")
@click.option("--format", "template", default="", help="A template, like '{{.Repository}}:{{.Tag}}', or json.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option("--digests", is_flag=True, help="Show digests, too.")
@click.option("-a", "--all", is_flag=True, expose_value=False, help="Here all are shown anyway.")
@click.argument("name", required=False)
@click.pass_context
def list_images(ctx: click.Context, quiet: bool, template: str, no_trunc: bool, digests: bool, name: str | None) -> None:
    """List the images that are here."""

    async def work(stub: HighrtStub) -> list[api.Image]:
        return list((await stub.Images(api.ImagesRequest())).images)

    rows: list[dict[str, str]] = []
    for image in run(ctx, work):
        digest_of = dict(item.split("@", 1) for item in image.digests)
        names = (
            [item.rpartition(":")[::2] for item in image.tags] or [(item, "<none>") for item in digest_of] or [("<none>",) * 2]
        )
        for repository, tag in names:
            if name and name not in (repository, f"{repository}:{tag}", _familiar(repository), f"{_familiar(repository)}:{tag}"):
                continue
            rows.append(
                {
                    "Repository": _familiar(repository),
                    "Tag": tag,
                    "ID": image.id if no_trunc else formats.short(image.id),
                    "Digest": digest_of.get(repository, "<none>"),
                    "CreatedSince": formats.image_age(image.created),
                    "CreatedAt": image.created,
                    "Size": formats.size(image.size_bytes),
                    "Platform": image.platform,
                }
            )
    if quiet:
        for identifier in dict.fromkeys(row["ID"] for row in rows):
            click.echo(identifier)
    else:
        columns = ["Repository", "Tag", *(["Digest"] if digests else []), "ID", "CreatedSince", "Size"]
        heads = {"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT"}
        formats.print_rows(template, rows, columns, heads)


def _familiar(repository: str) -> str:
    """docker's short form: `busybox` for docker.io/library/busybox."""
    return repository.removeprefix("docker.io/library/").removeprefix("docker.io/")


@click.command()
@click.option("-t", "--tag", "tags", multiple=True, help="A name for the image (more than one may be given).")
@click.option(
    "-f", "--file", default="", help="The Containerfile (- is standard input); by default Containerfile or Dockerfile in CONTEXT."
)
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME[=VALUE]", help="A value for ARG.")
@click.option("--build-context", multiple=True, metavar="NAME=PATH", help="One more folder, for COPY --from=NAME.")
@click.option("--secret", "secrets", multiple=True, metavar="id=ID,src=FILE", help="A secret for RUN --mount=type=secret.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="One more label of the image.")
@click.option("--target", default="", help="The stage to stop at.")
@click.option("--no-cache", is_flag=True, help="Run all steps anew.")
@click.option("--pull", is_flag=True, help="Ask the registries for newer base images.")
@click.option("--iidfile", type=click.File("w"), help="Write the image's ID to a file.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's ID only.")
@click.argument("context", type=click.Path(exists=True, file_okay=False))
@click.pass_context
def build(
    ctx: click.Context,
    tags: tuple[str, ...],
    file: str,
    build_args: tuple[str, ...],
    build_context: tuple[str, ...],
    secrets: tuple[str, ...],
    labels: tuple[str, ...],
    target: str,
    no_cache: bool,
    pull: bool,
    iidfile: Any,
    quiet: bool,
    context: str,
) -> None:
    """Build an image from a Containerfile and the files of CONTEXT."""
    request = api.BuildRequest(
        context=os.path.abspath(context),
        file=os.path.abspath(file) if file not in ("", "-") else "",
        containerfile=sys.stdin.read() if file == "-" else None,
        tags=tags,
        secrets=dict(_secret(item) for item in secrets),
        labels=dict(item.partition("=")[::2] for item in labels),
        target=target,
        no_cache=no_cache,
        pull=pull,
    )
    for item in build_args:
        name, equals, value = item.partition("=")
        if equals or name in os.environ:
            request.build_args[name] = value if equals else os.environ[name]
    for item in build_context:
        name, equals, path = item.partition("=")
        if not equals or not os.path.isdir(path):
            raise click.BadParameter(f"--build-context {item}: write NAME=FOLDER, with a folder that is there")
        request.build_contexts[name] = os.path.abspath(path)

    async def work(stub: HighrtStub) -> str:
        image_id = ""
        async with stub.Build.open() as stream:
            await stream.send_message(request, end=True)
            async for event in stream:
                if event.image_id:
                    image_id = event.image_id
                elif not quiet:
                    click.echo(event.line, err=True)
        return image_id

    image_id = run(ctx, work)
    if iidfile:
        iidfile.write(image_id)
    click.echo(image_id)


def _secret(text: str) -> tuple[str, bytes]:
    """`id=ID,src=FILE`, `id=ID,env=NAME`, or `id=ID`, which is the variable ID or else the file ID."""
    values = dict(item.partition("=")[::2] for item in text.split(","))
    if unknown := set(values) - {"id", "src", "source", "env", "type"}:
        raise click.BadParameter(f"--secret {text}: it has no option {', '.join(sorted(unknown))}")
    identity = values.get("id", "")
    if not identity:
        raise click.BadParameter(f"--secret {text}: write id=ID,src=FILE or id=ID,env=NAME")
    file, variable = values.get("src") or values.get("source"), values.get("env")
    if not file and not variable:
        file, variable = (None, identity) if identity in os.environ else (identity, None)
    if variable:
        if variable not in os.environ:
            raise click.BadParameter(f"--secret {text}: the variable {variable} is not set")
        return identity, os.environb[variable.encode()]
    try:
        return identity, Path(str(file)).expanduser().read_bytes()
    except OSError as error:
        raise click.BadParameter(f"--secret {text}: {error}") from None


@click.command()
@click.argument("image")
@click.argument("reference")
@click.pass_context
def tag(ctx: click.Context, image: str, reference: str) -> None:
    """Give an image one more name."""
    run(ctx, lambda stub: stub.Tag(api.TagRequest(image=image, reference=reference)))


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Do not complain about images that are not here.")
@click.pass_context
def rmi(ctx: click.Context, images: tuple[str, ...], force: bool) -> None:
    """Remove images, or names of images."""

    async def remove(stub: HighrtStub, image: str) -> None:
        await stub.RemoveImage(api.ImageName(image=image))

    failed = False
    for image in images:
        try:
            run(ctx, lambda stub, image=image: remove(stub, image))  # type: ignore[misc]
            click.echo(image)
        except DaemonError as error:
            if not (force and error.status and error.status.name == "NOT_FOUND"):
                failed = True
                error.show()
    ctx.exit(1 if failed else 0)


async def remove_unused(stub: HighrtStub, *, every: bool, until_ns: int = 0) -> None:
    """Removes images that no container uses, and says which. every: also those that have names. until_ns: only those that were
    made before (0: all)."""
    used = {item.image_id for item in (await stub.List(api.ListRequest(all=True, every_owner=True))).containers}
    for image in (await stub.Images(api.ImagesRequest())).images:
        young = bool(until_ns) and (formats.created_ns(image.created) or 0) >= until_ns
        if image.id not in used and not young and (every or not image.tags):
            await stub.RemoveImage(api.ImageName(image=image.id))
            click.echo(f"removed image {', '.join(image.tags) or image.id}")


@click.command()
@click.option(
    "-i", "--input", "source", type=_IN, default="-", help="An archive, or an OCI layout's folder; by default standard input."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def load(ctx: click.Context, source: str, quiet: bool) -> None:
    """Load images from what save, docker, podman or skopeo wrote."""
    if source == "-" and sys.stdin.isatty():
        raise click.UsageError("no archive: name one with -i FILE, or redirect one to standard input")
    with layout.packed(source) if os.path.isdir(source) else click.open_file(source, "rb") as archive:

        async def work(stub: HighrtStub) -> list[api.Image]:
            async with stub.Load.open() as stream:
                await stream.send_request()
                with suppress(StreamTerminatedError):  # it was refused before its end: the answer says why
                    while data := archive.read(_CHUNK):
                        await stream.send_message(api.Chunk(data=data))
                    await stream.end()
                answer = await stream.recv_message()
                return list(answer.images) if answer else []

        images = run(ctx, work)
    for image in images:
        if not quiet:
            click.echo(f"Loaded image: {', '.join(image.tags) or image.id}")


@click.command()
@click.option("-o", "--output", "target", type=_OUT, default="-", help="The archive, or the folder; by default standard output.")
@click.option(
    "--format", "form", type=click.Choice(["docker-archive", "oci-archive", "oci-dir"]), default="oci-archive",
    help="An archive is both docker's and an OCI layout; oci-dir is the layout as a folder.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="For scripts written for podman: nothing is printed in any case.")
@click.argument("images", nargs=-1, required=True)
@click.pass_context
def save(ctx: click.Context, target: str, form: str, quiet: bool, images: tuple[str, ...]) -> None:
    """Write images to an archive or folder, for load, docker, podman or skopeo."""
    if form == "oci-dir" and target == "-":
        raise click.UsageError("--format oci-dir: name the folder with -o FOLDER")
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError("an archive does not go to a terminal: name a file with -o FILE, or redirect standard output")
    with layout.unpacked(target) if form == "oci-dir" else click.open_file(target, "wb", lazy=True) as archive:

        async def work(stub: HighrtStub) -> None:
            async with stub.Save.open() as stream:
                await stream.send_message(api.SaveRequest(images=images), end=True)
                async for chunk in stream:
                    archive.write(chunk.data)

        run(ctx, work)
        archive.flush()


COMMANDS = (list_images, pull, push, build, tag, rmi, load, save)

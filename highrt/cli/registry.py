"""`highrt registry`: what a registry has."""

import json
from collections.abc import Callable
from typing import Any

import click

from highrt.cli import formats
from highrt.cli.connection import run
from highrt.cli.credentials import credentials
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub


@click.group()
def registry() -> None:
    """See what a registry has, and delete it there."""


def _listed(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the lists."""
    for option in (
        click.option("-o", "--output", type=click.Choice(["json"]), help="All of them as one JSON document."),
        click.option("--format", "template", default="", help="json, or a template."),
        _CREDS,
    ):
        command = option(command)
    return command


_CREDS = click.option("--creds", default="", metavar="USER:PASSWORD", help="Credentials for the registry, for this once.")


def _show(documents: list[dict[str, Any]], text: str, template: str, output: str | None) -> None:
    """Prints what a list's options ask for; a text where they ask for nothing."""
    if output:
        click.echo(json.dumps(documents, indent=4))
    elif template:
        for document in documents:
            click.echo(formats.render(template, document))
    elif text:
        click.echo(text)


@registry.command()
@_listed
@click.argument("repository")
@click.pass_context
def tags(ctx: click.Context, repository: str, creds: str, template: str, output: str | None) -> None:
    """List the tags of a repository (HOST/NAME)."""
    request = api.RegistryRequest(name=repository, credentials=credentials(repository, creds))
    names = run(ctx, lambda stub: _names(stub.RegistryTags, request))
    _show([{"Repository": repository, "Tag": name} for name in names], "\n".join(names), template, output)


@registry.command()
@_listed
@click.argument("host")
@click.pass_context
def catalog(ctx: click.Context, host: str, creds: str, template: str, output: str | None) -> None:
    """List the repositories of a registry (HOST[:PORT])."""
    request = api.RegistryRequest(name=host, credentials=credentials(f"{host}/any", creds))
    names = run(ctx, lambda stub: _names(stub.RegistryCatalog, request))
    _show([{"Registry": host, "Repository": name} for name in names], "\n".join(names), template, output)


async def _names(call: Any, request: api.RegistryRequest) -> list[str]:
    names = []
    async with call.open() as stream:
        await stream.send_message(request, end=True)
        async for page in stream:
            names += page.names
    return names


@registry.command()
@_listed
@click.option("--artifact-type", default="", metavar="TYPE", help="Only those of this kind, like application/spdx+json.")
@click.option("--no-trunc", is_flag=True, help="Whole digests.")
@click.argument("reference")
@click.pass_context
def referrers(
    ctx: click.Context, reference: str, artifact_type: str, no_trunc: bool, creds: str, template: str, output: str | None
) -> None:
    """List what in a registry refers to an image, such as signatures."""
    request = api.ReferrersRequest(reference=reference, artifact_type=artifact_type, credentials=credentials(reference, creds))

    async def work(stub: HighrtStub) -> list[api.Referrer]:
        async with stub.RegistryReferrers.open() as stream:
            await stream.send_message(request, end=True)
            return [found async for found in stream]

    found = run(ctx, work)
    documents = [
        {
            "Digest": item.digest,
            "ArtifactType": item.artifact_type,
            "MediaType": item.media_type,
            "Size": item.bytes,
            "Annotations": dict(item.annotations),
        }
        for item in found
    ]
    rows = (
        [item.digest if no_trunc else formats.short(item.digest), item.artifact_type, formats.size(item.bytes)] for item in found
    )
    _show(documents, formats.table(["DIGEST", "ARTIFACT TYPE", "SIZE"], rows), template, output)


@registry.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@_CREDS
@click.argument("reference")
@click.pass_context
def delete(ctx: click.Context, reference: str, creds: str, force: bool) -> None:
    """Delete an image from its registry, with all of its tags there.

    Deleted is the manifest that REFERENCE stands for. Prints its name with its digest.
    """
    if not force:
        click.confirm(f"{reference} is deleted in its registry, and all other tags of the same image. Go on?", abort=True)
    request = api.RegistryRequest(name=reference, credentials=credentials(reference, creds))

    async def work(stub: HighrtStub) -> str:
        return (await stub.DeleteFromRegistry(request)).name

    click.echo(run(ctx, work))


COMMANDS = (registry,)

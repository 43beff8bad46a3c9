"""`highrt registry`: what a registry has."""

import json
from typing import Any

import click

from highrt.cli import formats
from highrt.cli.connection import run
from highrt.cli.credentials import credentials
from highrt.cli.options import taking
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub


@click.group()
def registry() -> None:
    """See what a registry has, and delete it there."""


_CREDS = click.option("--creds", default="", metavar="USER:PASSWORD", help="Credentials for the registry, for this once.")
_LIST = (
    _CREDS,
    click.option("--format", "template", default="", help="json, or a template."),
    click.option("-o", "--output", type=click.Choice(["json"]), help="All of them as one JSON document."),
)


def _show(rows: list[dict[str, Any]], columns: list[str], template: str, output: str | None) -> None:
    """Prints what a list's options ask for; without them a table, or where there is one column only that, for scripts."""
    if output:
        click.echo(json.dumps(rows, indent=4))
    elif len(columns) == 1:
        formats.print_rows(template or f"{{{{.{columns[0]}}}}}", rows, columns, {})
    else:
        formats.print_rows(template, rows, columns, {"ArtifactType": "ARTIFACT TYPE"})


@registry.command()
@taking(_LIST)
@click.argument("repository")
@click.pass_context
def tags(ctx: click.Context, repository: str, creds: str, template: str, output: str | None) -> None:
    """List the tags of a repository (HOST/NAME)."""
    request = api.RegistryRequest(name=repository, credentials=credentials(repository, creds))
    names = run(ctx, lambda stub: _names(stub.RegistryTags, request))
    _show([{"Repository": repository, "Tag": name} for name in names], ["Tag"], template, output)


@registry.command()
@taking(_LIST)
@click.argument("host")
@click.pass_context
def catalog(ctx: click.Context, host: str, creds: str, template: str, output: str | None) -> None:
    """List the repositories of a registry (HOST[:PORT])."""
    request = api.RegistryRequest(name=host, credentials=credentials(f"{host}/any", creds))
    names = run(ctx, lambda stub: _names(stub.RegistryCatalog, request))
    _show([{"Registry": host, "Repository": name} for name in names], ["Repository"], template, output)


async def _names(call: Any, request: api.RegistryRequest) -> list[str]:
    names = []
    async with call.open() as stream:
        await stream.send_message(request, end=True)
        async for page in stream:
            names += page.names
    return names


@registry.command()
@taking(_LIST)
@click.option("--artifact-type", default="", metavar="TYPE", help="Only those of this kind, like application/spdx+json.")
@click.argument("reference")
@click.pass_context
def referrers(ctx: click.Context, reference: str, artifact_type: str, creds: str, template: str, output: str | None) -> None:
    """List what in a registry refers to an image, such as signatures."""
    request = api.ReferrersRequest(reference=reference, artifact_type=artifact_type, credentials=credentials(reference, creds))

    async def work(stub: HighrtStub) -> list[api.Referrer]:
        async with stub.RegistryReferrers.open() as stream:
            await stream.send_message(request, end=True)
            return [found async for found in stream]

    rows = [
        {
            "Digest": item.digest,
            "ArtifactType": item.artifact_type,
            "MediaType": item.media_type,
            "Size": formats.size(item.bytes),
            "Annotations": dict(item.annotations),
        }
        for item in run(ctx, work)
    ]
    _show(rows, ["Digest", "ArtifactType", "Size"], template, output)


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

"""`highrt login` and `logout`."""

import sys

import click

from highrt.cli import credentials
from highrt.cli.connection import DaemonError, run
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub


@click.command()
@click.option("-u", "--username", default="", help="Who; asked for where it is missing.")
@click.option("-p", "--password", default="", help="Others can read it: rather leave it out, or use --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Take the password from standard input.")
@click.argument("registry", default=credentials.HUB)
@click.pass_context
def login(ctx: click.Context, username: str, password: str, password_stdin: bool, registry: str) -> None:
    """Log in to a registry, and keep the credentials for pulls and pushes."""
    if password and password_stdin:
        raise click.UsageError("give -p or --password-stdin, not both")
    if password:
        click.echo("highrt: a password on the command line can be read by others: use --password-stdin", err=True)
    if password_stdin:
        if not username:
            raise click.UsageError("--password-stdin needs --username")
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    username = username or click.prompt("Username", err=True)
    password = password or click.prompt("Password", hide_input=True, err=True)
    found = api.Credentials(username=username, password=password)

    async def work(stub: HighrtStub) -> None:
        await stub.Login(api.LoginRequest(registry=registry, credentials=found))

    run(ctx, work)
    file = credentials.store(registry, found)
    click.echo(f"Login Succeeded ({file})")


@click.command()
@click.option("-a", "--all", "everywhere", is_flag=True, help="Of all registries.")
@click.argument("registry", default=credentials.HUB)
def logout(everywhere: bool, registry: str) -> None:
    """Forget the credentials for a registry."""
    for name in credentials.registries() if everywhere else [registry]:
        if not credentials.erase(name) and not everywhere:
            raise DaemonError(f"not logged in to {name}")
        click.echo(f"Removed login credentials for {name}")


COMMANDS = (login, logout)

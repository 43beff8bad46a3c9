"""The commands about containers that are there."""

import json
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.cli import formats, listing, session, terminal
from highrt.cli.connection import DaemonError, forgiving, run
from highrt.cli.limits import OPTIONS as LIMITS
from highrt.cli.limits import limits
from highrt.cli.options import filtered, taking, time_ns
from highrt.cli.run import create, environment, failure_of
from highrt.cli.run import run as run_container
from highrt.cli.stats import stats
from highrt.cli.wait import wait
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Print IDs only.")
@click.option("--every-owner", "-k", is_flag=True, help="Also those of a kubelet on this machine.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs and commands.")
@click.option("-s", "--size", "sizes", is_flag=True, help="Show what they have written, and that with their images.")
@click.option("-f", "--filter", "texts", multiple=True, metavar="KEY=VALUE", help="Like status=exited, name=web, label=a=b.")
@click.option("-n", "--last", type=click.IntRange(min=0), default=None, metavar="NUMBER", help="The last ones, in any state.")
@click.option("-l", "--latest", is_flag=True, help="The last one, in any state.")
@click.option("-p", "--pod", "pods", is_flag=True, help="Also the pods that they are in.")
@click.option("--format", "template", default="", help="A template, like '{{.ID}} {{.Names}}', or json.")
@click.pass_context
def ps(
    ctx: click.Context, /, everything: bool, quiet: bool, every_owner: bool, no_trunc: bool, sizes: bool,
    texts: tuple[str, ...], last: int | None, latest: bool, pods: bool, template: str,
) -> None:  # fmt: skip
    """List containers."""
    filters = [*map(filtered, texts)]
    last = 1 if latest else last
    # who filters by state wants all states
    asked = api.ListRequest(all=True, every_owner=every_owner, sizes=sizes or "{{.Size" in template.replace(" ", ""))

    async def work(stub: HighrtStub) -> list[api.Container]:
        return list((await stub.List(asked)).containers)

    known = sorted(run(ctx, work), key=lambda item: item.created_at_ns, reverse=True)
    states = everything or last is not None or any(each.key in ("status", "exited") for each in filters)
    found = [item for item in known if states or item.state in ("running", "paused", "restarting")]
    rows = []
    for item in listing.chosen(found, filters, known)[:last]:
        command = " ".join(item.command)
        rows.append(
            {
                "ID": item.id if no_trunc else formats.short(item.id),
                "Image": item.image,
                "Command": f'"{command if no_trunc or len(command) <= 20 else command[:19] + "…"}"',
                "CreatedAt": datetime.fromtimestamp(item.created_at_ns / 1e9, UTC).isoformat(timespec="seconds"),
                "RunningFor": f"{formats.ago(item.created_at_ns)} ago",
                "Status": _status(item),
                "State": item.state,
                "Ports": ", ".join(
                    f"{port.host_ip or '0.0.0.0'}:{port.host_port}->{port.container_port}/{port.protocol}"
                    for port in item.ports
                    if port.host_port
                ),
                "Names": item.name,
                "Owner": item.owner,
                "Pod": item.pod_id if no_trunc else formats.short(item.pod_id),
                "PodName": item.pod_name,
                "Size": f"{formats.size(item.written_bytes)} (virtual {formats.size(item.whole_bytes)})",
                "Labels": formats.labels(item.labels),
            }
        )
    if quiet:
        for row in rows:
            click.echo(row["ID"])
    else:
        heads = {"ID": "CONTAINER ID", "RunningFor": "CREATED", "CreatedAt": "CREATED AT", "Pod": "POD ID"}
        heads["PodName"] = "POD NAME"
        columns = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", *(["Owner"] if every_owner else []), "Names"]
        columns += ["Size"] if sizes else []
        columns += ["Pod", "PodName"] if pods else []
        formats.print_rows(template, rows, columns, heads)


def _status(item: api.Container) -> str:
    if item.state == "running":
        well = f" ({'health: starting' if item.health == 'starting' else item.health})" if item.health else ""
        return f"Up {formats.ago(item.started_at_ns)}{well}"
    if item.state == "paused":
        return f"Up {formats.ago(item.started_at_ns)} (Paused)"
    if item.state == "restarting":
        return f"Restarting ({item.exit_code}) {formats.ago(item.finished_at_ns)} ago"
    if item.state == "exited":
        return f"Exited ({item.exit_code}) {formats.ago(item.finished_at_ns)} ago"
    return item.state.capitalize()


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Leave the command running.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set an environment variable.")
@click.option("--env-file", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Read variables from a file.")
@click.option("-w", "--workdir", default="", help="Working folder inside the container.")
@click.option("-u", "--user", default="", metavar="NAME|UID[:GID]", help="Who the process is.")
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def execute(
    ctx: click.Context,
    interactive: bool,
    tty: bool,
    detach: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    workdir: str,
    user: str,
    container: str,
    command: tuple[str, ...],
) -> None:
    """Run a command in a running container."""
    if tty and interactive and not detach and not terminal.is_terminal():
        raise click.ClickException("the input is not a terminal: leave -t out, or give it one")
    variables = environment(env, env_file)
    if tty and not any(item.startswith("TERM=") for item in variables):
        variables.append(f"TERM={os.environ.get('TERM', 'xterm')}")
    start = api.ExecStart(
        container=container,
        argv=command,
        tty=tty,
        stdin=interactive,
        env=variables,
        working_dir=workdir,
        user=user,
        detach=detach,
    )

    async def work(stub: HighrtStub) -> int:
        if detach:
            async with stub.Exec.open() as stream:
                await stream.send_message(api.ExecInput(start=start), end=True)
                await stream.recv_message()
            return 0
        try:
            return await session.converse(stub.Exec, api.ExecInput, start, stdin=interactive, tty=tty)
        except GRPCError as error:
            if error.status in (Status.NOT_FOUND, Status.FAILED_PRECONDITION):
                raise
            raise failure_of(error, otherwise=126) from error

    ctx.exit(_detachable(ctx, work))


@click.command()
@click.option("--no-stdin", is_flag=True, help="Only watch.")
@click.argument("container")
@click.pass_context
def attach(ctx: click.Context, no_stdin: bool, container: str) -> None:
    """Join a running container's streams; ctrl-p ctrl-q leaves it again."""

    ctx.exit(_detachable(ctx, lambda stub: _attach(stub, container, stdin=not no_stdin, begin=False)))


async def _attach(stub: HighrtStub, container: str, *, stdin: bool, begin: bool) -> int:
    """Joins a container's streams until it ends: the exit code. begin: it is started then."""
    document = json.loads((await stub.Inspect(api.ContainerName(container=container))).json)
    stdin = stdin and document["Config"]["OpenStdin"]

    async def on_signal(number: int) -> None:
        await stub.Kill(api.KillRequest(container=container, signal=number))

    return await session.converse(
        stub.Attach,
        api.AttachInput,
        api.AttachStart(container=container, stdin=stdin, start=begin),
        stdin=stdin,
        tty=document["Config"]["Tty"],
        on_signal=on_signal,
    )


def _detachable(ctx: click.Context, work: Callable[[HighrtStub], Awaitable[int]]) -> int:
    try:
        return run(ctx, work)
    except session.Detached:
        click.echo("\r\nhighrt: detached", err=True)
        return 0


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Stay, and print what comes.")
@click.option("-n", "--tail", default="all", metavar="LINES", help="Only the last so many lines.")
@click.option("--since", default="", metavar="TIME", help="From then on: 2026-01-31T12:00:00Z, or how long ago, like 10m.")
@click.option("--until", default="", metavar="TIME", help="Not what came after then.")
@click.option("-t", "--timestamps", is_flag=True, help="Put the time before each line.")
@click.argument("container")
@click.pass_context
def logs(ctx: click.Context, /, follow: bool, tail: str, since: str, until: str, timestamps: bool, container: str) -> None:
    """Print what a container has written."""
    span = {"since_ns": time_ns(since, "--since"), "until_ns": time_ns(until, "--until")}
    request = api.LogsRequest(container=container, follow=follow, **span)
    if tail != "all":
        if not tail.isdigit():
            raise click.BadParameter(f"--tail {tail}: write a number of lines, or all")
        request.tail = int(tail)

    async def work(stub: HighrtStub) -> None:
        fresh = {1: True, 2: True}
        async with stub.Logs.open() as stream:
            await stream.send_message(request, end=True)
            async for line in stream:
                data = line.data
                if timestamps and fresh[line.stream]:
                    data = f"{formats.stamp(line.time_ns)} ".encode() + data
                fresh[line.stream] = line.data.endswith(b"\n")
                terminal.write_all(line.stream, data)

    run(ctx, work)


def each(ctx: click.Context, containers: tuple[str, ...], act: Callable[[HighrtStub, str], Awaitable[Any]]) -> None:
    """Does it for each container, in one connection; prints the names that went well, and fails where one did not."""

    async def work(stub: HighrtStub) -> int:
        code = 0
        for name in containers:
            try:
                await act(stub, name)
                click.echo(name)
            except GRPCError as error:
                DaemonError(error.message or error.status.name).show()
                code = 1
        return code

    ctx.exit(run(ctx, work))


_STOP_TIME = click.option(
    "-t", "--time", "seconds", type=click.IntRange(min=0), help="Seconds before it is killed (10, or its --stop-timeout)."
)


@click.command()
@_STOP_TIME
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def stop(ctx: click.Context, seconds: int | None, containers: tuple[str, ...]) -> None:
    """Stop running containers: the stop signal, then, after a while, SIGKILL."""
    each(ctx, containers, lambda stub, name: stub.Stop(api.StopRequest(container=name, timeout_seconds=seconds)))


@click.command()
@click.option("-a", "--attach", "attached", is_flag=True, help="Join its streams, from its first byte on.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def start(ctx: click.Context, attached: bool, interactive: bool, containers: tuple[str, ...]) -> None:
    """Start containers that were made, or have ended; they keep what they have written."""
    if not attached and not interactive:
        each(ctx, containers, lambda stub, name: stub.Start(api.ContainerName(container=name)))
        return
    if len(containers) != 1:
        raise click.UsageError("only one container's streams can be joined at once")
    ctx.exit(_detachable(ctx, lambda stub: _attach(stub, containers[0], stdin=interactive, begin=True)))


@click.command()
@_STOP_TIME
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def restart(ctx: click.Context, seconds: int | None, containers: tuple[str, ...]) -> None:
    """Stop containers, if they run, and start them again."""
    each(ctx, containers, lambda stub, name: stub.Restart(api.StopRequest(container=name, timeout_seconds=seconds)))


@click.command()
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def pause(ctx: click.Context, containers: tuple[str, ...]) -> None:
    """Have all processes of containers stand still."""
    each(ctx, containers, lambda stub, name: stub.Pause(api.ContainerName(container=name)))


@click.command()
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def unpause(ctx: click.Context, containers: tuple[str, ...]) -> None:
    """Have the processes of paused containers go on."""
    each(ctx, containers, lambda stub, name: stub.Unpause(api.ContainerName(container=name)))


@click.command()
@click.argument("container")
@click.argument("name")
@click.pass_context
def rename(ctx: click.Context, container: str, name: str) -> None:
    """Give a container another name."""
    run(ctx, lambda stub: stub.Rename(api.RenameRequest(container=container, name=name)))


@click.command()
@click.argument("container")
@click.argument("port", required=False, metavar="[PORT[/PROTOCOL]]")
@click.pass_context
def port(ctx: click.Context, container: str, port: str | None) -> None:
    """Print where a container's ports are published."""

    async def work(stub: HighrtStub) -> api.Container:
        document = json.loads((await stub.Inspect(api.ContainerName(container=container))).json)
        found = (await stub.List(api.ListRequest(all=True, every_owner=True))).containers
        return next(item for item in found if item.id == document["Id"])

    wanted = port and (port if "/" in port else f"{port}/tcp")
    published = [(f"{item.container_port}/{item.protocol}", item) for item in run(ctx, work).ports if item.host_port]
    if wanted and wanted not in dict(published):
        raise DaemonError(f"no public port {wanted} of {container}")
    for inside, item in published:
        outside = f"{item.host_ip or '0.0.0.0'}:{item.host_port}"
        if not wanted:
            click.echo(f"{inside} -> {outside}")
        elif inside == wanted:
            click.echo(outside)


@click.command()
@click.argument("container")
@click.pass_context
def top(ctx: click.Context, container: str) -> None:
    """Show the processes of a container, by the host's PIDs."""

    async def work(stub: HighrtStub) -> list[api.Process]:
        return list((await stub.Top(api.ContainerName(container=container))).processes)

    click.echo(process_table(run(ctx, work)))


def process_table(processes: Sequence[api.Process]) -> str:
    rows = []
    for item in processes:
        started = datetime.fromtimestamp(item.started_at_ns / 1e9)
        seconds = int(item.cpu_seconds)
        spent = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        rows.append([item.user, str(item.pid), str(item.ppid), f"{started:%H:%M}", item.tty, spent, item.command])
    return formats.table(["UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD"], rows)


@click.command()
@click.argument("container")
@click.pass_context
def diff(ctx: click.Context, container: str) -> None:
    """Print which files a container has added (A), changed (C) and deleted (D)."""

    async def work(stub: HighrtStub) -> list[api.Change]:
        return list((await stub.Diff(api.ContainerName(container=container))).changes)

    for change in run(ctx, work):
        terminal.write_all(1, change.kind.encode() + b" " + change.path + b"\n")


@click.command()
@taking(LIMITS)
@click.option("--restart", default="", metavar="POLICY", help="no, always, unless-stopped or on-failure[:N].")
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def update(ctx: click.Context, /, containers: tuple[str, ...], **asked: Any) -> None:
    """Change limits of containers, now and for their next runs."""
    request = api.UpdateRequest(**limits(asked), restart=asked["restart"])

    async def act(stub: HighrtStub, name: str) -> None:
        request.container = name
        await stub.Update(request)

    each(ctx, containers, act)


@click.group()
def healthcheck() -> None:
    """Check whether containers are well."""


@healthcheck.command("run")
@click.argument("container")
@click.pass_context
def run_healthcheck(ctx: click.Context, container: str) -> None:
    """Run a container's health check once; it ends with 1 where the container is not healthy."""

    async def work(stub: HighrtStub) -> str:
        return (await stub.CheckHealth(api.ContainerName(container=container))).status

    status = run(ctx, work)
    click.echo(status)
    ctx.exit(0 if status == "healthy" else 1)


@click.command()
@click.option("-a", "--author", default="", help="Who made it.")
@click.option("-m", "--message", default="", help="A word about it, for the image's history.")
@click.option("-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help='Like ENV A=B, or CMD ["sh"].')
@click.option("-p", "--pause/--no-pause", default=True, show_default=True, help="Let the container stand still meanwhile.")
@click.argument("container")
@click.argument("image", required=False, default="")
@click.pass_context
def commit(ctx: click.Context, /, pause: bool, **asked: Any) -> None:
    """Make an image of what a container has written; its ID is printed."""

    async def work(stub: HighrtStub) -> str:
        return (await stub.Commit(api.CommitRequest(no_pause=not pause, **asked))).image

    click.echo(run(ctx, work))


@click.command()
@click.option("-s", "--signal", "name", default="KILL", show_default=True, help="A signal's name or number.")
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def kill(ctx: click.Context, name: str, containers: tuple[str, ...]) -> None:
    """Send a signal to running containers."""
    number = signal_number(name)
    each(ctx, containers, lambda stub, container: stub.Kill(api.KillRequest(container=container, signal=number)))


def signal_number(text: str) -> int:
    """`TERM`, `SIGTERM` or `15`. Raises click.BadParameter."""
    try:
        if text.isdigit():
            return signal.Signals(int(text)).value
        return signal.Signals["SIG" + text.upper().removeprefix("SIG")].value
    except (ValueError, KeyError) as error:
        raise click.BadParameter(f"--signal {text!r}: no such signal") from error


@click.command()
@click.option("-f", "--force", is_flag=True, help="Also those that run; and do not complain about those that are gone.")
@click.argument("containers", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, force: bool, containers: tuple[str, ...]) -> None:
    """Remove containers, with what they have written."""

    async def act(stub: HighrtStub, name: str) -> None:
        with forgiving(force):
            await stub.Remove(api.RemoveRequest(container=name, force=force))

    each(ctx, containers, act)


@click.command()
@click.option("--format", "-f", "template", default="", help="A template, like '{{.State.Pid}}' or '{{json .Config}}'.")
@click.option("--type", "kind", type=click.Choice(["container", "image"]), help="Look for this kind only.")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect(ctx: click.Context, template: str, kind: str | None, names: tuple[str, ...]) -> None:
    """Print all about containers or images, as JSON."""

    async def one(stub: HighrtStub, name: str) -> Any:
        if kind != "image":
            try:
                return json.loads((await stub.Inspect(api.ContainerName(container=name))).json)
            except GRPCError as error:
                if error.status is not Status.NOT_FOUND or kind == "container":
                    raise
        try:
            return json.loads((await stub.InspectImage(api.ImageName(image=name))).json)
        except GRPCError as error:
            if kind == "image" or error.status not in (Status.NOT_FOUND, Status.INVALID_ARGUMENT):
                raise
            raise DaemonError(f"there is no container and no image {name!r} (highrt ps -a, highrt images)") from error

    async def work(stub: HighrtStub) -> list[Any]:
        return [await one(stub, name) for name in names]

    documents = run(ctx, work)
    if template:
        for document in documents:
            click.echo(formats.render(template, document))
    else:
        click.echo(json.dumps(documents, indent=4, ensure_ascii=False))


@click.group()
def container() -> None:
    """Manage containers: the same commands, and prune."""


@container.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def prune(ctx: click.Context, force: bool) -> None:
    """Remove all containers that do not run."""
    if not force:
        click.confirm("All containers that do not run are removed. Go on?", abort=True)

    async def work(stub: HighrtStub) -> None:
        for identifier in await ended(stub):
            await stub.Remove(api.RemoveRequest(container=identifier))
            click.echo(identifier)

    run(ctx, work)


async def ended(stub: HighrtStub) -> list[str]:
    """The IDs of a person's containers that do not run."""
    found = (await stub.List(api.ListRequest(all=True))).containers
    return [item.id for item in found if item.state in ("created", "exited", "unknown")]


COMMANDS = (
    ps, execute, logs, attach, start, stop, restart, kill, rm, wait, pause, unpause, inspect, stats, top, port, diff, rename,
    commit, update, healthcheck,
)  # fmt: skip
for command in (run_container, create, *COMMANDS):
    container.add_command(command)
container.add_command(ps, "ls")

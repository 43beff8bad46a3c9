"""`highrt pod`: pods of several containers, as podman has them."""

import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.cli import containers, endpoints, formats, stats
from highrt.cli.connection import DaemonError, forgiving, run
from highrt.cli.limits import memory_bytes
from highrt.cli.options import filtered, has_label, taking
from highrt.cli.run import added_host, labels, port
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub

_FILTERS: dict[str, Callable[[api.Pod, str], bool]] = {
    "id": lambda item, value: item.id.startswith(value),
    "name": lambda item, value: value in item.name,
    "status": lambda item, value: item.status.lower() == value.lower(),
    "label": lambda item, value: has_label(item.labels, value),
    "network": lambda item, value: value in item.networks,
    "ctr-names": lambda item, value: any(value in each.name for each in item.containers),
    "ctr-ids": lambda item, value: any(each.id.startswith(value) for each in item.containers),
    "ctr-number": lambda item, value: str(len(item.containers)) == value,
}


@click.group()
def pod() -> None:
    """Manage pods: containers that share a network, ports and a host name."""


@pod.command()
@click.option("--name", default="", help="A name for the pod.")
@click.option("-p", "--publish", multiple=True, metavar="[IP:]HOST:CONTAINER[/udp]", help="Publish a port on the host.")
@taking(endpoints.OPTIONS)
@click.option("-h", "--hostname", default="", help="Its host name; else its name.")
@click.option("--dns", multiple=True, metavar="IP", help="Name servers in place of the host's.")
@click.option("--add-host", "hosts", multiple=True, metavar="NAME:IP", help="Add a line to its /etc/hosts.")
@click.option("--sysctl", multiple=True, metavar="NAME=VALUE", help="Set a kernel parameter of its namespaces.")
@click.option("--shm-size", default="", metavar="SIZE", help="Size of /dev/shm, like 256m.")
@click.option("--cgroup-parent", default="", metavar="PATH", help="The cgroup that its containers' cgroups lie in.")
@click.option("--share-pid", is_flag=True, help="Its containers see each other's processes.")
@click.option("-l", "--label", multiple=True, metavar="NAME=VALUE", help="Note something on it.")
@click.option("--runtime", default="", metavar="NAME", help="A runtime handler of the daemon's configuration.")
@click.argument("given", required=False, default="", metavar="[NAME]")
@click.pass_context
def create(ctx: click.Context, /, name: str, given: str, **options: Any) -> None:
    """Make a pod without containers; its ID is printed."""
    if name and given:
        raise click.UsageError("name the pod once")
    request = api.CreateRequest(
        name=name or given,
        ports=[*map(port, options["publish"])],
        endpoints=endpoints.endpoints(options),
        hostname=options["hostname"],
        dns=options["dns"],
        hosts=dict(added_host(item) for item in options["hosts"]),
        sysctls=labels(options["sysctl"]),
        shm_bytes=memory_bytes(options["shm_size"]),
        cgroup_parent=options["cgroup_parent"],
        pid_mode="pod" if options["share_pid"] else "",
        labels=labels(options["label"]),
        handler=options["runtime"],
    )

    async def work(stub: HighrtStub) -> api.CreateResponse:
        return await stub.CreatePod(request)

    made = run(ctx, work)
    for warning in made.warnings:
        click.echo(f"highrt: {warning}", err=True)
    click.echo(made.id)


async def _all(stub: HighrtStub) -> list[api.Pod]:
    return list((await stub.Pods(api.PodsRequest())).pods)


async def _find(stub: HighrtStub, reference: str) -> api.Pod:
    """A pod with its containers. Raises GRPCError."""
    identity = json.loads((await stub.InspectPod(api.PodName(pod=reference))).json)["Id"]
    return next(item for item in await _all(stub) if item.id == identity)


@pod.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print IDs only.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs.")
@click.option("-f", "--filter", "texts", multiple=True, metavar="KEY=VALUE", help="Like status=running, name=web, label=a=b.")
@click.option("--format", "template", default="", help="json, or a template, like '{{.ID}} {{.Name}}'.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="All of them as one JSON document.")
@click.pass_context
def list_pods(
    ctx: click.Context, quiet: bool, no_trunc: bool, texts: tuple[str, ...], template: str, output: str | None
) -> None:  # fmt: skip
    """List pods."""
    wanted: dict[str, list[str]] = {}
    for each in map(filtered, texts):
        if each.key not in _FILTERS:
            raise click.BadParameter(f"--filter {each.key}: not known; there are {', '.join(sorted(_FILTERS))}")
        wanted.setdefault(each.key, []).append(each.value)
    found = [
        item for item in reversed(run(ctx, _all))
        if all(any(_FILTERS[key](item, value) for value in values) for key, values in wanted.items())
    ]  # fmt: skip
    if output or template == "json":
        click.echo(json.dumps([_document(item) for item in found], indent=4, ensure_ascii=False))
        return
    rows = [_row(item, whole=no_trunc) for item in found]
    if quiet:
        for row in rows:
            click.echo(row["ID"])
    else:
        columns = ["ID", "Name", "Status", "Created", "NumberOfContainers"]
        formats.print_rows(template, rows, columns, {"ID": "POD ID", "NumberOfContainers": "# OF CONTAINERS"})


def _row(item: api.Pod, *, whole: bool) -> dict[str, str]:
    return {
        "ID": item.id if whole else formats.short(item.id),
        "Name": item.name,
        "Status": item.status,
        "Created": f"{formats.ago(item.created_at_ns)} ago",
        "NumberOfContainers": str(len(item.containers)),
        "Networks": ",".join(item.networks),
        "Labels": formats.labels(item.labels),
    }


def _document(item: api.Pod) -> dict[str, Any]:
    return {
        "Id": item.id,
        "Name": item.name,
        "Status": item.status,
        "Created": datetime.fromtimestamp(item.created_at_ns / 1e9, UTC).isoformat(timespec="seconds"),
        "Labels": dict(item.labels),
        "Networks": [*item.networks],
        "Containers": [{"Id": each.id, "Names": each.name, "Status": each.state} for each in item.containers],
    }


@pod.command()
@click.option("-f", "--format", "template", default="", help="json, or a template.")
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def inspect(ctx: click.Context, template: str, pods: tuple[str, ...]) -> None:
    """Print all about pods, as JSON."""

    async def work(stub: HighrtStub) -> list[Any]:
        return [json.loads((await stub.InspectPod(api.PodName(pod=name))).json) for name in pods]

    documents = run(ctx, work)
    if template and template != "json":
        for document in documents:
            click.echo(formats.render(template, document))
    else:
        click.echo(json.dumps(documents, indent=4, ensure_ascii=False))


@pod.command()
@click.argument("pod", metavar="POD")
@click.pass_context
def exists(ctx: click.Context, pod: str) -> None:
    """End with 0 where there is such a pod, with 1 where there is none."""

    async def work(stub: HighrtStub) -> int:
        try:
            await stub.InspectPod(api.PodName(pod=pod))
        except GRPCError as error:
            if error.status is not Status.NOT_FOUND:
                raise
            return 1
        return 0

    ctx.exit(run(ctx, work))


@pod.command()
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def start(ctx: click.Context, pods: tuple[str, ...]) -> None:
    """Start pods with all their containers."""
    containers.each(ctx, pods, lambda stub, name: stub.StartPod(api.PodName(pod=name)))


_STOP_TIME = click.option(
    "-t", "--time", "seconds", type=click.IntRange(min=0), help="Seconds before containers are killed (10, or as they say)."
)


@pod.command()
@_STOP_TIME
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def stop(ctx: click.Context, seconds: int | None, pods: tuple[str, ...]) -> None:
    """Stop pods with all their containers."""
    containers.each(ctx, pods, lambda stub, name: stub.StopPod(api.StopPodRequest(pod=name, timeout_seconds=seconds)))


@pod.command()
@_STOP_TIME
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def restart(ctx: click.Context, seconds: int | None, pods: tuple[str, ...]) -> None:
    """Stop pods, if they run, and start them again."""

    async def act(stub: HighrtStub, name: str) -> None:
        await stub.StopPod(api.StopPodRequest(pod=name, timeout_seconds=seconds))
        await stub.StartPod(api.PodName(pod=name))

    containers.each(ctx, pods, act)


async def _for_members(
    stub: HighrtStub, name: str, states: Collection[str], act: Callable[[str], Awaitable[Any]]
) -> None:  # fmt: skip
    """Does it for all containers of a pod that are in one of the states; raises when all are done. Raises GRPCError, DaemonError
    where none is."""
    found = [item for item in (await _find(stub, name)).containers if item.state in states]
    if not found:
        raise GRPCError(Status.FAILED_PRECONDITION, f"pod {name} has no container that is {' or '.join(states)}")
    failed = None
    for item in found:
        try:
            await act(item.id)
        except GRPCError as error:
            failed = error
    if failed:
        raise failed


@pod.command()
@click.option("-s", "--signal", "name", default="KILL", show_default=True, help="A signal's name or number.")
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def kill(ctx: click.Context, name: str, pods: tuple[str, ...]) -> None:
    """Send a signal to all running containers of pods."""
    number = containers.signal_number(name)
    containers.each(
        ctx, pods,
        lambda stub, pod: _for_members(
            stub, pod, ("running", "paused"), lambda each: stub.Kill(api.KillRequest(container=each, signal=number))
        ),
    )  # fmt: skip


@pod.command()
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def pause(ctx: click.Context, pods: tuple[str, ...]) -> None:
    """Have all processes of pods stand still."""
    containers.each(
        ctx, pods,
        lambda stub, pod: _for_members(stub, pod, ("running",), lambda each: stub.Pause(api.ContainerName(container=each))),
    )  # fmt: skip


@pod.command()
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def unpause(ctx: click.Context, pods: tuple[str, ...]) -> None:
    """Have the processes of paused pods go on."""
    containers.each(
        ctx, pods,
        lambda stub, pod: _for_members(stub, pod, ("paused",), lambda each: stub.Unpause(api.ContainerName(container=each))),
    )  # fmt: skip


@pod.command()
@click.option("-f", "--force", is_flag=True, help="Also with its containers; and do not complain about those that are gone.")
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, force: bool, pods: tuple[str, ...]) -> None:
    """Remove pods."""

    async def act(stub: HighrtStub, name: str) -> None:
        with forgiving(force):
            await stub.RemovePod(api.RemovePodRequest(pod=name, force=force))

    containers.each(ctx, pods, act)


@pod.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_context
def prune(ctx: click.Context, force: bool) -> None:
    """Remove all pods of which no container runs, with their containers."""
    if not force:
        click.confirm("All pods of which no container runs are removed, with their containers. Go on?", abort=True)

    async def work(stub: HighrtStub) -> None:
        for item in await _all(stub):
            if item.status in ("Created", "Exited"):
                await stub.RemovePod(api.RemovePodRequest(pod=item.id, force=True))
                click.echo(item.id)

    run(ctx, work)


@pod.command()
@click.argument("pod", metavar="POD")
@click.pass_context
def top(ctx: click.Context, pod: str) -> None:
    """Show the processes of a pod's containers, by the host's PIDs."""

    async def work(stub: HighrtStub) -> list[api.Process]:
        found: list[api.Process] = []
        for name in await _running(stub, [pod]):
            found.extend((await stub.Top(api.ContainerName(container=name))).processes)
        return found

    click.echo(containers.process_table(run(ctx, work)))


@pod.command("stats")
@taking(stats.OPTIONS)
@click.argument("pods", nargs=-1, required=True)
@click.pass_context
def pod_stats(ctx: click.Context, once: bool, no_trunc: bool, template: str, pods: tuple[str, ...]) -> None:
    """Show what the running containers of pods use."""

    async def work(stub: HighrtStub) -> None:
        await stats.show(stub, await _running(stub, pods), template, once=once, no_trunc=no_trunc)

    run(ctx, work)


async def _running(stub: HighrtStub, pods: Sequence[str]) -> list[str]:
    """The IDs of the running containers of pods. Raises GRPCError, DaemonError where there is none."""
    found = [each.id for name in pods for each in (await _find(stub, name)).containers if each.state in ("running", "paused")]
    if not found:
        raise DaemonError(f"no container of {', '.join(pods)} runs")
    return found


pod.add_command(list_pods, "ps")

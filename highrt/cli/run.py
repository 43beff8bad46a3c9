"""`highrt run`: makes a container from an image, starts it, and stays with it."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.cli import endpoints, limits, session
from highrt.cli.connection import DaemonError, errors
from highrt.cli.connection import run as call
from highrt.cli.images import pull_image
from highrt.cli.limits import memory_bytes
from highrt.cli.options import DURATION, taking
from strata.protocols import highrt_pb2 as api
from strata.protocols.highrt_grpc import HighrtStub

_DAEMON_FAILED, _CANNOT_RUN, _NOT_FOUND = 125, 126, 127


class _ProgramError(click.ClickException):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class

    def show(self, file: Any = None) -> None:
        click.echo(f"highrt: {self.message}", err=True)


def environment(items: tuple[str, ...], files: tuple[str, ...]) -> list[str]:
    """`-e NAME=VALUE`, `-e NAME` (this process's own value, if it has one), and the lines of --env-file."""
    found = []
    for item in [*_lines(files), *items]:
        name, equals, _ = item.partition("=")
        if not name:
            raise click.BadParameter(f"{item!r}: a variable has no name; write NAME=VALUE")
        if equals:
            found.append(item)
        elif name in os.environ:
            found.append(f"{name}={os.environ[name]}")
    return found


def _lines(files: tuple[str, ...]) -> list[str]:
    """Of all files, without comments and empty ones."""
    lines = [line.lstrip() for file in files for line in Path(file).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def volume(text: str) -> api.Mount:
    """`SOURCE:TARGET[:OPTIONS]`; the source is a path or a volume's name. Raises click.BadParameter."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise click.BadParameter(f"{text!r}: write SOURCE:TARGET or SOURCE:TARGET:ro")
    mount = api.Mount(source=_source(parts[0]), target=parts[1])
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option in ("ro", "rw"):
            mount.read_only = option == "ro"
        elif option in ("private", "rprivate", "slave", "rslave", "shared", "rshared"):
            mount.propagation = option
        elif option not in ("z", "Z"):  # SELinux labels, which other machines need
            raise click.BadParameter(f"{text!r}: the option {option!r} is not known; use ro, rw, rslave or rshared")
    return mount


def mount(text: str) -> api.Mount:
    """`type=bind,source=/a,target=/b,readonly` as docker has it. Raises click.BadParameter."""
    found = api.Mount()
    kind = "volume"
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key == "type":
            kind = value
        elif key in ("source", "src"):
            found.source = value
        elif key in ("target", "destination", "dst"):
            found.target = value
        elif key in ("readonly", "ro"):
            found.read_only = value in ("", "true", "1")
        elif key == "bind-propagation":
            found.propagation = value
        else:
            raise click.BadParameter(f"{text!r}: the option {key!r} is not known")
    if kind not in ("bind", "volume"):
        raise click.BadParameter(f"{text!r}: type {kind} is not known; use bind or volume")
    if not found.source or not found.target:
        raise click.BadParameter(f"{text!r}: both source and target are needed")
    found.source = _source(found.source) if kind == "bind" else found.source
    return found


def _source(text: str) -> str:
    return os.path.abspath(os.path.expanduser(text)) if text.startswith(("/", "./", "../", "~")) or text in (".", "..") else text


def port(text: str) -> api.PortMapping:
    """`[IP:]HOST:CONTAINER[/PROTOCOL]`. Raises click.BadParameter."""
    address, _, protocol = text.partition("/")
    parts = address.rsplit(":", 2)
    numbers = parts[-2:]
    if len(parts) < 2 or not all(item.isdigit() and 0 < int(item) < 65536 for item in numbers):
        raise click.BadParameter(f"{text!r}: write HOST:CONTAINER or IP:HOST:CONTAINER, with ports from 1 to 65535")
    if protocol not in ("", "tcp", "udp", "sctp"):
        raise click.BadParameter(f"{text!r}: the protocol is tcp, udp or sctp")
    ip = parts[0].strip("[]") if len(parts) == 3 else ""
    return api.PortMapping(host_ip=ip, host_port=int(numbers[0]), container_port=int(numbers[1]), protocol=protocol or "tcp")


def device(text: str) -> api.Device:
    """`HOST[:CONTAINER[:PERMISSIONS]]`."""
    host, container, permissions = [*text.split(":"), "", ""][:3]
    return api.Device(host_path=host, container_path=container or host, permissions=permissions or "rwm")


def ulimit(text: str) -> api.Limit:
    """`nofile=1024` or `nofile=1024:2048`; -1 is without a limit. Raises click.BadParameter."""
    match = re.fullmatch(r"([a-z]+)=(-1|\d+)(?::(-1|\d+))?", text)
    if not match:
        raise click.BadParameter(f"--ulimit {text!r}: write NAME=SOFT or NAME=SOFT:HARD, like nofile=1024:2048")
    name, soft, hard = match.groups()
    return api.Limit(name=name, soft=int(soft), hard=int(hard or soft))


def added_host(text: str) -> tuple[str, str]:
    """`NAME:IP` or `NAME=IP`. Raises click.BadParameter."""
    name, separator, address = re.split(r"([:=])", text, maxsplit=1) if re.search("[:=]", text) else (text, "", "")
    if not separator:
        raise click.BadParameter(f"--add-host {text!r}: write NAME:IP")
    return name, address.strip("[]")


def _take_log_options(request: api.CreateRequest, items: tuple[str, ...]) -> None:
    for item in items:
        name, _, value = item.partition("=")
        if name == "max-size":
            request.log_bytes = memory_bytes(value)
        elif name == "max-file" and value.isdigit() and int(value) > 0:
            request.log_files = int(value)
        else:
            raise click.BadParameter(f"--log-opt {item}: use max-size=SIZE and max-file=NUMBER")


def _take_health(request: api.CreateRequest, options: dict[str, Any]) -> None:
    if options["no_healthcheck"]:
        request.health.test.append("NONE")
        return
    if options["health_cmd"]:
        request.health.test.extend(["CMD-SHELL", options["health_cmd"]])
    for name in ("interval", "timeout", "start_period"):
        if options[f"health_{name}"]:
            setattr(request.health, f"{name}_ns", options[f"health_{name}"])
    if options["health_retries"]:
        request.health.retries = options["health_retries"]


def labels(items: tuple[str, ...]) -> dict[str, str]:
    return {key: value for key, _, value in (item.partition("=") for item in items)}


_OPTIONS = (
    click.option("--rm", "auto_remove", is_flag=True, help="Remove the container when it ends."),
    click.option("-i", "--interactive", is_flag=True, help="Pass standard input on."),
    click.option("-t", "--tty", is_flag=True, help="Give the container a terminal."),
    click.option("--name", default="", help="A name for the container."),
    click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set an environment variable."),
    click.option("--env-file", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Read variables from a file."),
    click.option("-v", "--volume", "volumes", multiple=True, metavar="SOURCE:TARGET[:ro]", help="Mount a host path or a volume."),
    click.option("--mount", "mounts", multiple=True, metavar="type=bind,source=…,target=…", help="Mount, in the long form."),
    click.option("-w", "--workdir", default="", help="Working folder inside the container."),
    click.option("--group-add", "groups", multiple=True, type=click.IntRange(min=0), metavar="GID", help="A further group."),
    click.option("-u", "--user", default="", metavar="NAME|UID[:GID]", help="Who the process is."),
    click.option("-p", "--publish", multiple=True, metavar="[IP:]HOST:CONTAINER[/udp]", help="Publish a port on the host."),
    *endpoints.OPTIONS,
    click.option("--pod", default="", metavar="[new:]NAME", help="A pod that it joins, or a new one that is made for it."),
    click.option("-h", "--hostname", default="", help="Its host name."),
    click.option("--dns", multiple=True, metavar="IP", help="Name servers in place of the host's."),
    *limits.OPTIONS,
    click.option("--memory-reservation", default="", metavar="SIZE", help="What it is left of when memory is short."),
    click.option("--cgroup-parent", default="", metavar="PATH", help="The cgroup that its own is made in, or a systemd slice."),
    click.option("--privileged", is_flag=True, help="All capabilities and devices: as good as root on the host."),
    click.option("--cap-add", multiple=True, metavar="NAME", help="Give a capability, or ALL."),
    click.option("--cap-drop", multiple=True, metavar="NAME", help="Take a capability, or ALL."),
    click.option("--security-opt", multiple=True, metavar="OPTION", help="no-new-privileges, seccomp=FILE, apparmor=NAME."),
    click.option("--device", "devices", multiple=True, metavar="HOST[:CONTAINER[:rwm]]", help="Give a device of the host's."),
    click.option("--sysctl", multiple=True, metavar="NAME=VALUE", help="Set a kernel parameter of its namespaces."),
    click.option("--pid", default="", metavar="host|container:NAME", help="Share the host's processes, or another's of its pod."),
    click.option("--shm-size", default="", metavar="SIZE", help="Size of /dev/shm, like 256m."),
    click.option("--ipc", default="", metavar="host", help="Share the host's IPC."),
    click.option("--uts", type=click.Choice(["private", "host"]), help="Whose host name it has."),
    click.option("--read-only", is_flag=True, help="Its root cannot be written."),
    click.option("--entrypoint", default=None, help="In place of the image's entry point."),
    click.option("--init", is_flag=True, help="Have a tiny init run the command, which passes signals on and reaps."),
    click.option("--tmpfs", "tmpfs", multiple=True, metavar="PATH[:OPTIONS]", help="Mount a file system in memory."),
    click.option("--ulimit", "ulimits", multiple=True, metavar="NAME=SOFT[:HARD]", help="Set a limit, like nofile=1024."),
    click.option("--add-host", "hosts", multiple=True, metavar="NAME:IP", help="Add a line to its /etc/hosts."),
    click.option("--log-opt", "log_options", multiple=True, metavar="NAME=VALUE", help="max-size=20m and max-file=5."),
    click.option("-l", "--label", multiple=True, metavar="NAME=VALUE", help="Note something on it."),
    click.option("--label-file", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Read labels from a file."),
    click.option(
        "--restart", default="no", show_default=True, metavar="POLICY", help="no, always, unless-stopped or on-failure[:N]."
    ),
    click.option("--stop-signal", default="", metavar="NAME", help="The signal that asks it to end, in place of the image's."),
    click.option("--stop-timeout", type=click.IntRange(min=0), metavar="SECONDS", help="How long a stop waits (10 s)."),
    click.option("--health-cmd", metavar="COMMAND", help="Check with a shell's command whether it is well."),
    click.option("--health-interval", type=DURATION, default=0, metavar="TIME", help="Between two checks, like 30s."),
    click.option("--health-timeout", type=DURATION, default=0, metavar="TIME", help="How long a check may take."),
    click.option("--health-start-period", type=DURATION, default=0, metavar="TIME", help="While failures do not count."),
    click.option("--health-retries", type=click.IntRange(min=1), metavar="N", help="Failures in a row that are unhealthy (3)."),
    click.option("--no-healthcheck", is_flag=True, help="Leave the image's check out."),
    click.option("--cidfile", type=click.Path(dir_okay=False), metavar="FILE", help="Write the container's ID to a new file."),
    click.option("--pull", type=click.Choice(["always", "missing", "never"]), default="missing", show_default=True),
    click.option("--platform", default="", metavar="OS/ARCH", help="Which of an image's platforms is wanted."),
    click.option("--runtime", default="", metavar="NAME", help="A runtime handler of the daemon's configuration."),
)
"""What `run` and `create` have in common."""


def _makes_containers(command: Callable[..., None]) -> Callable[..., None]:
    """The options and arguments that a container is made from."""
    command = click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARG]…]")(command)
    return taking(_OPTIONS)(click.argument("image")(command))


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Print the container's ID and leave it running.")
@_makes_containers
@click.pass_context
def run(ctx: click.Context, /, image: str, args: tuple[str, ...], **options: Any) -> None:
    """Run a command in a new container.

    \b
    highrt run --rm -it IMAGE sh             a shell in a container that is gone afterwards
    highrt run -d --name web -p 8080:80 IMAGE
    """
    tty, interactive, detach = options["tty"], options["interactive"], options["detach"]
    if tty and interactive and not detach and not os.isatty(0):
        raise _ProgramError("the input is not a terminal: leave -t out, or give it one", 1)
    request = _request(image, args, options)
    try:
        code = call(ctx, lambda stub: _run(stub, request, options))
    except DaemonError as error:
        raise _ProgramError(error.message, _DAEMON_FAILED) from error
    ctx.exit(code)


def _request(image: str, args: tuple[str, ...], options: dict[str, Any]) -> api.CreateRequest:
    """What the command line asks for. Raises click.BadParameter."""
    request = api.CreateRequest(
        image=image,
        args=args,
        name=options["name"],
        env=environment(options["env"], options["env_file"]),
        working_dir=options["workdir"],
        user=options["user"],
        tty=options["tty"],
        stdin=options["interactive"],
        mounts=[*map(volume, options["volumes"]), *map(mount, options["mounts"])],
        ports=[*map(port, options["publish"])],
        endpoints=endpoints.endpoints(options),
        hostname=options["hostname"],
        dns=options["dns"],
        **limits.limits(options),
        privileged=options["privileged"],
        cap_add=options["cap_add"],
        cap_drop=options["cap_drop"],
        devices=[*map(device, options["devices"])],
        sysctls=labels(options["sysctl"]),
        memory_reservation_bytes=memory_bytes(options["memory_reservation"]),
        cgroup_parent=options["cgroup_parent"],
        pid_mode=options["pid"],
        ipc_mode=options["ipc"],
        read_only=options["read_only"],
        auto_remove=options["auto_remove"],
        handler=options["runtime"],
        labels=labels((*_lines(options["label_file"]), *options["label"])),
        restart=options["restart"],
        pod=options["pod"],
        init=options["init"],
        tmpfs=dict(item.partition(":")[::2] for item in options["tmpfs"]),
        ulimits=[*map(ulimit, options["ulimits"])],
        hosts=dict(added_host(item) for item in options["hosts"]),
    )
    _take_log_options(request, options["log_options"])
    _take_health(request, options)
    request.groups.extend(options["groups"])
    request.shm_bytes, request.stop_signal = memory_bytes(options["shm_size"]), options["stop_signal"]
    if options["stop_timeout"] is not None:
        request.stop_seconds = options["stop_timeout"]
    if options["uts"] == "host" and [*options["network"]] != ["host"]:
        raise click.BadParameter("--uts host: only with --network host, which brings the host's name along")
    if options["uts"] == "private" and [*options["network"]] == ["host"]:
        raise click.BadParameter("--uts private: with --network host a container has the host's name")
    if options["cidfile"] and os.path.exists(options["cidfile"]):
        raise click.BadParameter(f"--cidfile {options['cidfile']}: it exists already: remove it, or give another")
    for option in options["security_opt"]:
        if option.partition(":")[0] == "no-new-privileges" or option.partition("=")[0] == "no-new-privileges":
            request.no_new_privileges = not option.endswith("false")
        elif option.replace(":", "=") == "seccomp=unconfined":
            request.seccomp_unconfined = True
        elif option.replace(":", "=", 1).startswith("seccomp="):
            request.seccomp_profile = os.path.abspath(option[len("seccomp=") :])
        elif option.replace(":", "=", 1).startswith("apparmor="):
            request.apparmor = option[len("apparmor=") :]
        elif not option.startswith("label"):  # SELinux, which other machines have
            raise click.BadParameter(f"--security-opt {option}: use no-new-privileges, seccomp=FILE or apparmor=PROFILE")
    if options["entrypoint"] is not None:
        request.entrypoint.argv.extend([options["entrypoint"]] if options["entrypoint"] else [])
        request.entrypoint.SetInParent()
    return request


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@_makes_containers
@click.pass_context
def create(ctx: click.Context, /, image: str, args: tuple[str, ...], **options: Any) -> None:
    """Make a container from an image, to be started later; its ID is printed."""
    request = _request(image, args, options)

    async def work(stub: HighrtStub) -> str:
        return (await _create(stub, request, options)).id

    click.echo(call(ctx, work))


async def _create(stub: HighrtStub, request: api.CreateRequest, options: dict[str, Any]) -> api.CreateResponse:
    await _need_image(stub, request.image, options["pull"], options["platform"])
    created = await stub.Create(request)
    for warning in created.warnings:
        click.echo(f"highrt: {warning}", err=True)
    if options["cidfile"]:
        Path(options["cidfile"]).write_text(created.id)
    return created


async def _run(stub: HighrtStub, request: api.CreateRequest, options: dict[str, Any]) -> int:
    created = await _create(stub, request, options)
    try:
        if options["detach"]:
            await stub.Start(api.ContainerName(container=created.id))
            click.echo(created.id)
            return 0

        async def on_signal(number: int) -> None:
            try:
                await stub.Kill(api.KillRequest(container=created.id, signal=number))
            except GRPCError as error:
                click.echo(f"highrt: cannot pass signal {number} on: {error.message}", err=True)

        return await session.converse(
            stub.Attach,
            api.AttachInput,
            api.AttachStart(container=created.id, start=True, stdin=request.stdin),
            stdin=request.stdin,
            tty=request.tty,
            on_signal=on_signal,
        )
    except session.Detached:
        click.echo(f"\r\nhighrt: detached; {created.name} runs on (highrt attach {created.name})", err=True)
        return 0
    except GRPCError as error:
        return await _not_started(stub, created.id, error)


async def _not_started(stub: HighrtStub, container_id: str, error: GRPCError) -> int:
    """The exit code for a container that did not start; like docker's, it is removed when --rm was given, else kept."""
    with errors():
        try:
            found = await stub.Inspect(api.ContainerName(container=container_id))
            if '"AutoRemove": true' in found.json and '"Running": false' in found.json:
                await stub.Remove(api.RemoveRequest(container=container_id, force=True))
        except GRPCError as problem:
            if problem.status is not Status.NOT_FOUND:
                raise
    raise failure_of(error, otherwise=_DAEMON_FAILED) from error


def failure_of(error: GRPCError, *, otherwise: int) -> click.ClickException:
    """The daemon's words with docker's exit code: 127 no such program, 126 one that cannot be run."""
    text = error.message or error.status.name
    lowered = text.lower()
    if "no such file" in lowered or "not found" in lowered:
        return _ProgramError(text, _NOT_FOUND)
    if "permission denied" in lowered or "is a directory" in lowered or "exec format error" in lowered:
        return _ProgramError(text, _CANNOT_RUN)
    return _ProgramError(text, otherwise)


async def _need_image(stub: HighrtStub, image: str, policy: str, platform: str) -> None:
    if policy != "always":
        try:
            found = json.loads((await stub.InspectImage(api.ImageName(image=image))).json)
            have = f"{found['Os']}/{found['Architecture']}"
            if f"{have}/".startswith(f"{platform or have}/"):
                return
            if policy == "never":
                raise DaemonError(f"the image {image} here is for {have}, not for {platform}")
        except GRPCError as error:
            if error.status is not Status.NOT_FOUND or policy == "never":
                raise
    if not sys.stderr.isatty():
        click.echo(f"highrt: pulling {image}", err=True)
    await pull_image(stub, api.PullRequest(image=image, platform=platform), quiet=not sys.stderr.isatty())

"""`highrt serve`: puts the daemon's parts together, runs them, and takes them apart again.

Pods run on when it ends, however it ends; the next daemon of the same folders finds them.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from highrt.config import InvalidConfig, load
from highrt.cri.images import CriImages
from highrt.cri.runtime import CriRuntime
from highrt.images.errors import ImageError
from highrt.images.service import ImageService
from highrt.person.containers import PersonContainers
from highrt.person.service import PersonService
from highrt.pods.errors import PodError
from highrt.pods.manager import PodManager
from highrt.streaming.server import StreamingServer
from strata.protocols.grpc import Service, serve
from strata.telemetry import logs, spans
from strata.telemetry.rpc import trace_server

log = logs.get("highrt")

_CLOSE_SECONDS = 5


@dataclass(frozen=True)
class Options:
    """The options of the command, by their names there."""

    root: Path
    state: Path
    listen: str
    config: Path | None
    cni_conf_dir: Path
    cni_bin_dir: tuple[Path, ...]
    registry_config: Path | None
    name: str
    pid_file: Path | None
    log_level: str
    log_format: str


def main(options: Options) -> None:
    """Runs the daemon until SIGTERM or SIGINT. Ends the process with status 1 and a message where it cannot run."""
    logs.configure(level=options.log_level, format=options.log_format)
    spans.configure("highrt")
    if os.geteuid() != 0:
        sys.exit("highrt serve: needs root (namespaces, mounts, cgroups): run it with sudo")
    try:
        asyncio.run(run(options))
    except (InvalidConfig, ImageError, PodError, ValueError, OSError) as error:
        sys.exit(f"highrt serve: {error}")


async def run(options: Options) -> None:
    """Opens everything, serves until a signal, and closes what was opened, in the other order."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    config = load(options.root.absolute(), options.state.absolute(), options.config)
    config.root.mkdir(parents=True, exist_ok=True, mode=0o711)
    config.state.mkdir(parents=True, exist_ok=True, mode=0o711)
    async with AsyncExitStack() as opened:
        images = ImageService(config.root / "images", options.registry_config, config.trust)
        await _open(opened, images.open, images.close)
        pods = PodManager(
            config.root,
            config.state,
            images,
            name=options.name,
            handlers=config.handlers,
            default_handler=config.default_handler,
            cni_conf_dir=options.cni_conf_dir,
            cni_bin_dirs=options.cni_bin_dir,
            cni_entry=config.cni_entries,
            cni_template=config.cni_template,
        )
        await _open(opened, pods.open, pods.close)
        streams = StreamingServer(config.streaming)
        await _open(opened, streams.start, streams.close)
        containers = PersonContainers(pods, images, config.root)
        await _open(opened, containers.open, containers.close)
        about = {
            "name": options.name,
            "root": str(config.root),
            "state": str(config.state),
            "handlers": [*config.handlers],
            "default_handler": config.default_handler,
        }
        services: list[Service] = [
            CriRuntime(pods, streams, config.cgroup_driver),
            CriImages(images),
            PersonService(pods, images, containers, about),
        ]
        server = await serve(services, options.listen)
        trace_server(server)

        async def close_server() -> None:
            server.close()
            # a client that follows events or logs would hold the end up
            with suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), _CLOSE_SECONDS)

        opened.push_async_callback(close_server)
        if options.pid_file:
            options.pid_file.write_text(f"{os.getpid()}\n")
            opened.callback(options.pid_file.unlink, missing_ok=True)
        log.info("serving", listen=options.listen, root=str(config.root), pods=len(pods.pods()), images=len(images.list()))
        await ended.wait()
        log.info("ending; pods run on")


async def _open(stack: AsyncExitStack, start: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]) -> None:
    await start()
    stack.push_async_callback(close)

"""What a runtime handler can do, as the runtime's own `features` says it (runtime-spec, features.md)."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from highrt.pods.model import Handler
from strata.telemetry import logs

log = logs.get("highrt.pods")

_SECONDS = 10.0
_IDMAPPED_LAYERS = (5, 19)  # the first kernel whose overlayfs takes ID-mapped mounts as its layers


@dataclass(frozen=True)
class Features:
    """What CRI's RuntimeHandlerFeatures tells a kubelet."""

    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False


class Known:
    """What the runtimes said; each is asked once."""

    def __init__(self) -> None:
        self._known: dict[str, Features] = {}

    async def of(self, handler: Handler) -> Features:
        if handler.name not in self._known:
            self._known[handler.name] = await of_handler(handler)
        return self._known[handler.name]


async def of_handler(handler: Handler) -> Features:
    """Asks the runtime's command. One that has no `features` (crun 1.8.1), or cannot be run, has none of these."""
    try:
        process = await asyncio.create_subprocess_exec(
            handler.path, *handler.args, "--root", handler.root, "features",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        log.warning("a runtime cannot be asked for its features", handler=handler.name, error=str(error))
        return Features()
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await process.communicate()
        found = json.loads(output) if process.returncode == 0 else {}
    except (TimeoutError, ValueError) as error:
        log.warning("a runtime does not tell its features", handler=handler.name, error=str(error) or "it takes too long")
        return Features()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return parse(found, os.uname().release)


def parse(found: Any, kernel: str) -> Features:
    """found: the document that `features` prints. kernel: its release, as uname(2) tells it."""
    mount_options = _at(found, "mountOptions") or ()
    kinds = _at(found, "linux", "namespaces") or ()
    maps_ids = bool(_at(found, "linux", "mountExtensions", "idmap", "enabled"))
    version = tuple(int(part) for part in kernel.partition("-")[0].split(".")[:2] if part.isdigit())
    return Features(
        recursive_read_only_mounts="rro" in mount_options,
        user_namespaces="user" in kinds and maps_ids and version >= _IDMAPPED_LAYERS,
    )


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value

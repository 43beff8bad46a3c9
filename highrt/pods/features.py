"""What a runtime handler can do, as the runtime's own `features` says it (runtime-spec, features.md)."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from highrt.pods.model import Handler
from strata.telemetry import logs

log = logs.get("highrt.pods")

_SECONDS = 10.0


@dataclass(frozen=True)
class Features:
    """What CRI's RuntimeHandlerFeatures tells a kubelet."""

    recursive_read_only_mounts: bool = False


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
    return Features(recursive_read_only_mounts="rro" in (_at(found, "mountOptions") or ()))


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value

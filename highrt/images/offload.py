"""Asks a `worker` process to unpack or pack a layer."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from highrt.images import errors
from highrt.images.layers import Applied, Packed


async def unpack_layer(blob: Path, folder: Path, *, diff_id: str, below: Sequence[Path]) -> Applied:
    """`layers.unpack` in a process of its own; the files are on disk when it returns.

    Raises what `layers.unpack` raises, and ImageError where the file system failed.
    """
    request = {
        "do": "unpack",
        "blob": str(blob),
        "folder": str(folder),
        "diff_id": diff_id,
        "below": [str(path) for path in below],
    }
    return Applied(**await _ask(request))


async def pack_layer(folder: Path, blob: Path, *, latest_mtime: int | None) -> Packed:
    """`layers.pack` in a process of its own. Raises ImageError where the file system failed."""
    return Packed(**await _ask({"do": "pack", "folder": str(folder), "blob": str(blob), "latest_mtime": latest_mtime}))


async def _ask(request: dict[str, Any]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "highrt.images.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "WORKER_PARENT": str(os.getpid())},
    )
    try:
        output, trouble = await process.communicate(json.dumps(request).encode())
    except BaseException:
        if process.returncode is None:
            process.kill()
        await asyncio.shield(process.wait())
        raise
    if process.returncode != 0:
        said = trouble.decode(errors="replace").strip().splitlines()
        last = said[-1] if said else "it said nothing"
        raise errors.ImageError(f"the process that had to {request['do']} a layer ended with {process.returncode}: {last}")
    answer: dict[str, Any] = json.loads(output)
    if "error" in answer:
        kind: type[errors.ImageError] = getattr(errors, answer["error"], errors.ImageError)
        raise kind(answer["message"])
    result: dict[str, Any] = answer["result"]
    return result

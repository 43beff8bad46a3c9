"""Asks `worker` processes to unpack and pack layers.

A worker that has answered is kept for some seconds: an image has several layers, and starting an interpreter takes as long as
unpacking a small one.
"""

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from highrt.images import errors
from highrt.images.layers import Blob
from highrt.images.model import Applied, Packed

_IDLE_SECONDS = 5.0
_LINE_LIMIT = 1 << 20
_AT_ONCE = min(max(os.cpu_count() or 1, 2), 4)
"""How many layers are unpacked at once: each takes a core and a half, and some 20 MB."""


class Workers:
    """The workers of one daemon. Each works on one layer at a time; as many are started as are wanted at once."""

    def __init__(self) -> None:
        self._idle: dict[asyncio.subprocess.Process, asyncio.TimerHandle] = {}
        self._unpacking = asyncio.Semaphore(_AT_ONCE)

    async def close(self) -> None:
        """Ends those that are idle; those at work end with the calls that wait for them."""
        for process in [*self._idle]:
            self._end(process)
            await process.wait()

    async def unpack_layer(self, blob: Blob, folder: Path, *, diff_id: str) -> Applied:
        """`layers.unpack` in another process. Raises what that raises, and StorageFailed where the file system failed."""
        async with self._unpacking:
            request = {"do": "unpack", "diff_id": diff_id, "blob": dataclasses.asdict(blob), "folder": str(folder)}
            return Applied(**await self._ask(request))

    async def finish_layer(self, folder: Path, *, below: Sequence[Path], root: bool) -> None:
        """`layers.inherit` in another process; afterwards the layer's files are on disk. Raises as `unpack_layer` does."""
        await self._ask({"do": "finish", "folder": str(folder), "below": [str(path) for path in below], "root": root})

    async def pack_layer(self, folder: Path, blob: Path, *, latest_mtime: int | None, without: Sequence[str] = ()) -> Packed:
        """`layers.pack` in another process. Raises StorageFailed where the file system failed."""
        paths = {"folder": str(folder), "blob": str(blob)}
        return Packed(**await self._ask({"do": "pack", "latest_mtime": latest_mtime, "without": [*without], **paths}))

    async def _ask(self, request: dict[str, Any]) -> Any:
        process = await self._take()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            line = await process.stdout.readline()
            if not line:
                code = await process.wait()
                raise errors.ImageError(
                    f"the process that had to {request['do']} a layer ended with {code}: see the daemon's log"
                )
        except BaseException:
            if process.returncode is None:
                process.kill()
            await asyncio.shield(process.wait())
            raise
        self._keep(process)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind: type[errors.ImageError] = getattr(errors, answer["error"], errors.ImageError)
            raise kind(answer["message"])
        return answer["result"]

    async def _take(self) -> asyncio.subprocess.Process:
        while self._idle:
            process, timer = self._idle.popitem()
            timer.cancel()
            if process.returncode is None:
                return process
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "highrt.images.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "WORKER_PARENT": str(os.getpid())},
        )

    def _keep(self, process: asyncio.subprocess.Process) -> None:
        self._idle[process] = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end, process)

    def _end(self, process: asyncio.subprocess.Process) -> None:
        """A worker ends when its stdin does."""
        self._idle.pop(process).cancel()
        assert process.stdin is not None
        process.stdin.close()

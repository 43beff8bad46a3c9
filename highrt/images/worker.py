"""The process that unpacks and packs layers, so that a million tar headers never hold the daemon's interpreter lock.

`python -m highrt.images.worker` reads one request as JSON from its stdin, and answers on its stdout with
`{"result": …}` or `{"error": CLASS, "message": TEXT}`. It ends with the daemon that started it.
"""

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from highrt.images import errors
from highrt.images.layers import Applied, Packed, pack, unpack
from strata.linux import syscalls

_PR_SET_PDEATHSIG = 1
_SYNCFS = 306 if os.uname().machine == "x86_64" else 267


async def unpack_layer(blob: Path, folder: Path, *, diff_id: str, below: Sequence[Path]) -> Applied:
    """`layers.unpack` in a process of its own; the files are on disk when it returns."""
    request = {
        "do": "unpack",
        "blob": str(blob),
        "folder": str(folder),
        "diff_id": diff_id,
        "below": [str(path) for path in below],
    }
    return Applied(**await _ask(request))


async def pack_layer(folder: Path, blob: Path, *, latest_mtime: int | None) -> Packed:
    """`layers.pack` in a process of its own."""
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
        lines = trouble.decode(errors="replace").strip().splitlines()
        raise errors.ImageError(
            f"the {request['do']} process failed with status {process.returncode}: {lines[-1] if lines else 'it said nothing'}"
        )
    answer: dict[str, Any] = json.loads(output)
    if "error" in answer:
        kind = getattr(errors, answer["error"], errors.ImageError)
        raise kind(answer["message"])
    result: dict[str, Any] = answer["result"]
    return result


def main() -> None:
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["WORKER_PARENT"]):
        sys.exit("the daemon has ended")
    request = json.load(sys.stdin)
    try:
        if request["do"] == "unpack":
            result: Applied | Packed = unpack(
                request["blob"], request["folder"], diff_id=request["diff_id"], below=request["below"]
            )
            _sync_file_system(request["folder"])
        else:
            result = pack(request["folder"], request["blob"], latest_mtime=request["latest_mtime"])
        answer: dict[str, Any] = {"result": dataclasses.asdict(result)}
    except errors.ImageError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        answer = {"error": "ImageError", "message": f"cannot {request['do']} {request['folder']}: {error}"}
    json.dump(answer, sys.stdout)


def _sync_file_system(folder: str) -> None:
    """syncfs(2): the metadata must not call a layer ready whose files a power cut could still empty."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syscalls.call(_SYNCFS, descriptor, what=folder)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()

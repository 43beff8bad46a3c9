"""The process that unpacks and packs layers, so that a million tar headers never hold the daemon's interpreter lock.

`python -m highrt.images.worker` reads requests from its stdin, a line of JSON each, and answers each with a line on its
stdout: `{"result": …}` or `{"error": CLASS, "message": TEXT}`; `offload` is the side that asks. It ends with its stdin, or with
the daemon that started it. It imports little, as a pull waits for its start.
"""

import dataclasses
import json
import os
import signal
import sys
from typing import Any

from highrt.images import errors
from highrt.images.layers import Applied, Packed, pack, unpack
from strata.linux import syscalls

_PR_SET_PDEATHSIG = 1
_SYNCFS = 306 if os.uname().machine == "x86_64" else 267


def main() -> None:
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["WORKER_PARENT"]):
        sys.exit("the daemon has ended")
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["do"] == "unpack":
            result: Applied | Packed = unpack(
                request["blob"], request["folder"], diff_id=request["diff_id"], below=request["below"]
            )
            _sync_file_system(request["folder"])
        else:
            result = pack(request["folder"], request["blob"], latest_mtime=request["latest_mtime"], without=request["without"])
        return {"result": dataclasses.asdict(result)}
    except errors.ImageError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        return {"error": "ImageError", "message": f"cannot {request['do']} {request['folder']}: {error}"}


def _sync_file_system(folder: str) -> None:
    """syncfs(2): the metadata must not call a layer ready whose files a power cut could still empty."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syscalls.call(_SYNCFS, descriptor, what=folder)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()

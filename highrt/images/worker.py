"""The process that unpacks and packs layers, so that a million tar headers never hold the daemon's interpreter lock.

`python -m highrt.images.worker` reads requests from its stdin, a line of JSON each, and answers each with a line on its
stdout: `{"result": …}` or `{"error": CLASS, "message": TEXT}`; `offload` is the side that asks. It ends with its stdin, or with
the daemon that started it. It imports little, as a pull waits for its start.
"""

import dataclasses
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from highrt.images import errors
from highrt.images.layers import Blob, inherit, unpack
from strata.linux import syscalls

_MEMORY = 1 << 30
"""What a worker may take, so that an image that is made to eat memory ends with an error and not with the machine."""
_PR_SET_PDEATHSIG = 1
_SYNCFS = 306 if os.uname().machine == "x86_64" else 267


def main() -> None:
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["WORKER_PARENT"]):
        sys.exit("the daemon has ended")
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    what = request["do"]
    try:
        return {"result": _DO[request.pop("do")](**request)}
    except errors.ImageError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        return {
            "error": "InvalidImage",
            "message": f"cannot {what} a layer: it takes more than {_MEMORY} bytes of memory",
        }
    except OSError as error:
        return {"error": "StorageFailed", "message": f"cannot {what} {request['folder']}: {error}"}


def _unpack(*, blob: dict[str, Any], folder: str, diff_id: str) -> dict[str, Any]:
    return dataclasses.asdict(unpack(Blob(**blob), folder, diff_id=diff_id))


def _finish(*, folder: str, below: list[str], root: bool) -> None:
    inherit(folder, below, root=root)
    _sync_file_system(folder)


def _pack(**options: Any) -> dict[str, Any]:
    from highrt.images.packing import pack  # late: only builds need it

    return dataclasses.asdict(pack(**options))


_DO: dict[str, Callable[..., Any]] = {"unpack": _unpack, "finish": _finish, "pack": _pack}


def _sync_file_system(folder: str) -> None:
    """syncfs(2): the metadata must not call a layer ready whose files a power cut could still empty."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syscalls.call(_SYNCFS, descriptor, what=folder)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()

"""A warm process that calls CNI plugins by a dotted name: `python -m highrt.cni.helper MODULE:FUNCTION FD`.

The function is `run(environ, stdin) -> (exit status, stdout)`. Requests and answers are frames of JSON, one at a time. It
ends with the daemon that started it, at the end of the stream.
"""

import importlib
import socket
import sys
from typing import Any

from highrt.monitor import wire


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    run = getattr(importlib.import_module(module), name)
    sock = socket.socket(fileno=int(sys.argv[2]))
    decoder = wire.Decoder()
    while data := sock.recv(65536):
        for request in decoder.feed(data):
            sock.sendall(wire.frame(_answer(run, request)))


def _answer(run: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        status, output = run(request["environ"], request["stdin"].encode())
    except Exception as error:  # a plugin's fault is an answer, as an executable's would be
        return {"status": 1, "stdout": "", "stderr": f"{type(error).__name__}: {error}"}
    return {"status": status, "stdout": output.decode(errors="replace"), "stderr": ""}


if __name__ == "__main__":
    main()

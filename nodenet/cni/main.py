"""One call of a CNI plugin, in process or as an executable.

In process, and as `nodenet cni`, the configuration's `type` says which plugin is meant. Under a link's name the name says it:
a plugin that delegates address management passes its own configuration on, with its own `type`.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nodenet.cni import request as requests
from nodenet.cni import results
from nodenet.cni.errors import INTERNAL, INVALID_CONFIG, INVALID_ENVIRONMENT, IO_FAILURE, CniError
from nodenet.cni.request import SUPPORTED_VERSIONS, Request


class Plugin(Protocol):
    """A plugin's commands. Each raises CniError; add undoes what it made where it fails."""

    def add(self, request: Request) -> results.Result: ...
    def delete(self, request: Request) -> None: ...
    def check(self, request: Request) -> None: ...
    def status(self, request: Request) -> None: ...
    def collect(self, request: Request) -> None: ...


PLUGINS = ("bridge", "host-local", "portmap", "loopback")


def run(environ: Mapping[str, str], stdin: bytes, plugin: str = "") -> tuple[int, bytes]:
    """Does what CNI's environment and standard input ask, of the given plugin or of the one that the configuration names.

    Returns the exit status and what goes to standard output: a result, or an error object. Never raises.
    """
    version = SUPPORTED_VERSIONS[-1]
    try:
        command = environ.get("CNI_COMMAND", "")
        if command not in requests.COMMANDS:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_COMMAND {command!r}: must be one of {', '.join(requests.COMMANDS)}")
        config = requests.decode(stdin or b"{}") if command == "VERSION" else requests.decode(stdin)
        if config.get("cniVersion") in SUPPORTED_VERSIONS:
            version = config["cniVersion"]
        if command == "VERSION":
            return 0, _encode({"cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS})
        return 0, _dispatch(requests.parse(environ, config), plugin)
    except CniError as error:
        return 1, _error(version, error)
    except OSError as error:
        return 1, _error(version, CniError(IO_FAILURE, str(error)))
    except Exception as error:
        return 1, _error(version, CniError(INTERNAL, f"{type(error).__name__}: {error}"))


def _dispatch(request: Request, name: str) -> bytes:
    plugin = _plugin(name or request.config.get("type"))
    if request.command == "ADD":
        return _encode(results.render(plugin.add(request), request.version))
    steps: dict[str, Callable[[Request], None]] = {
        "DEL": plugin.delete,
        "CHECK": plugin.check,
        "STATUS": plugin.status,
        "GC": plugin.collect,
    }
    steps[request.command](request)
    return b""


def _plugin(kind: Any) -> Plugin:
    # Imported late: portmap and loopback have no need of netlink, and host-local of nothing.
    match kind:
        case "bridge":
            from nodenet.cni.bridge import Bridge

            return Bridge()
        case "host-local":
            from nodenet.cni.hostlocal import HostLocal

            return HostLocal()
        case "portmap":
            from nodenet.cni.portmap import Portmap

            return Portmap()
        case "loopback":
            from nodenet.cni.loopback import Loopback

            return Loopback()
    raise CniError(INVALID_CONFIG, f"type {kind!r}: the plugins here are {', '.join(PLUGINS)}")


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _error(version: str, error: CniError) -> bytes:
    body = {"cniVersion": version, "code": error.code, "msg": error.message}
    if error.details:
        body["details"] = error.details
    return _encode(body)


def main() -> int:
    """The executable; returns the exit status."""
    name = os.path.basename(sys.argv[0])
    stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    status, output = run(os.environ, stdin, name if name in PLUGINS else "")
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()
    return status

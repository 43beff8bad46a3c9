"""The IPAM plugin inside another plugin: host-local in process, any other as an executable (spec, section 4)."""

import ipaddress
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from nodenet.cni import hostlocal
from nodenet.cni.errors import DECODING_FAILURE, INVALID_CONFIG, IO_FAILURE, CniError
from nodenet.cni.request import Request, section
from nodenet.cni.results import Result

_SECONDS = 60
DEFAULT_PATH = "/opt/cni/bin:/usr/lib/cni"


class Ipam:
    """The address management that a configuration names; without `ipam` an attachment has no addresses."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._kind = section(request.config, "ipam").get("type") or ""
        if not isinstance(self._kind, str) or "/" in self._kind:
            raise CniError(INVALID_CONFIG, f"ipam.type {self._kind!r} must be a plugin's name")

    def add(self) -> Result:
        if not self._kind:
            return {}
        if self._kind == "host-local":
            return hostlocal.allocate(self._request)
        output = self._execute("ADD")
        try:
            result = json.loads(output)
            for item in result.get("ips") or []:
                if "%" in str(ipaddress.ip_interface(item["address"])):
                    raise ValueError(f"{item['address']}: an address with a zone")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise CniError(DECODING_FAILURE, f"ipam plugin {self._kind} gave no valid result", str(error)) from None
        return dict(result)

    def delete(self) -> None:
        if self._kind == "host-local":
            hostlocal.release(self._request)
        elif self._kind:
            self._execute("DEL")

    def check(self) -> None:
        if self._kind == "host-local":
            hostlocal.check(self._request)
        elif self._kind:
            self._execute("CHECK")

    def status(self) -> None:
        if self._kind == "host-local":
            hostlocal.HostLocal().status(self._request)
        elif self._kind:
            self._execute("STATUS")

    def collect(self) -> None:
        if self._kind == "host-local":
            hostlocal.collect(self._request)
        elif self._kind:
            self._execute("GC")

    def _execute(self, command: str) -> bytes:
        request = self._request
        path = request.path or DEFAULT_PATH
        executable = next((file for folder in path.split(":") if (file := Path(folder, self._kind)).is_file()), None)
        if executable is None:
            raise CniError(INVALID_CONFIG, f"ipam plugin {self._kind!r} is in no folder of CNI_PATH", path)
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": request.container_id,
            "CNI_IFNAME": request.ifname,
            "CNI_NETNS": request.netns,
            "CNI_PATH": path,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in request.arguments.items()),
        }
        try:
            done = subprocess.run([executable], input=json.dumps(request.config).encode(), env=environment,
                                  capture_output=True, timeout=_SECONDS, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise CniError(IO_FAILURE, f"ipam plugin {self._kind} did not end within {_SECONDS} s") from None
        if done.returncode == 0:
            return done.stdout
        error: Any = {}
        try:
            error = json.loads(done.stdout)
        except ValueError:
            error = {}
        message = error.get("msg") if isinstance(error, dict) else None
        raise CniError(IO_FAILURE, f"ipam plugin {self._kind} failed: {message or done.stderr.decode(errors='replace').strip()}")

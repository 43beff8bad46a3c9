"""systemd, as far as lowrt can tell: org.freedesktop.systemd1 on a message bus of its own, spoken by jeepney's codec, not ours.

It makes the cgroups of transient units and moves processes into them, as systemd does, and remembers what it was asked for.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jeepney import HeaderFields, Message, MessageType, Parser, new_error, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
from jeepney.wrappers import DBusAddress

from tests.conftest import wait_for

MANAGER = DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")
CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy>
</busconfig>
"""


def is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


class Unit:
    def __init__(self, properties: list[tuple[str, tuple[str, Any]]]) -> None:
        self.properties: dict[str, Any] = {}
        self.devices: list[tuple[str, str]] = []
        self.set(properties)

    def set(self, properties: list[tuple[str, tuple[str, Any]]]) -> None:
        for name, (_, value) in properties:
            if name == "DeviceAllow":
                self.devices = [*self.devices, *value] if value else []
            else:
                self.properties[name] = value


class Systemd:
    """hierarchies: where it makes groups, a folder each. base: its own group, as a user's manager has one."""

    def __init__(self, hierarchies: list[Path], base: str = "") -> None:
        self.hierarchies, self.base = hierarchies, base
        self.units: dict[str, Unit] = {}
        self.calls: list[str] = []
        self.version, self.job_result = "252.38-1~deb12u1", "done"
        self.refuse_once: tuple[str, str] | None = None
        self.jobs = 0

    def answer(self, call: Message) -> list[Message]:
        """What it says to a call: an answer and signals."""
        member = call.header.fields[HeaderFields.member]
        self.calls.append(member)
        handler: Callable[..., list[Message]] | None = getattr(self, f"_{member}", None)
        if handler is None:
            return [new_error(call, "org.freedesktop.DBus.Error.UnknownMethod", "s", (member,))]
        if self.refuse_once and member == "StartTransientUnit":
            (name, text), self.refuse_once = self.refuse_once, None
            return [new_error(call, name, "s", (text,))]
        try:
            return handler(call, *call.body)
        except OSError as error:
            return [new_error(call, "org.freedesktop.DBus.Error.Failed", "s", (str(error),))]

    def folders(self, unit: str) -> list[Path]:
        """A unit's group in each hierarchy."""
        slice_ = unit if unit.endswith(".slice") else self.units[unit].properties["Slice"]
        path, stem = Path(self.base.lstrip("/")), ""
        for part in slice_.removesuffix(".slice").split("-") if slice_ != "-.slice" else ():
            stem = f"{stem}-{part}".lstrip("-")
            path /= f"{stem}.slice"
        return [root / path / ("" if unit.endswith(".slice") else unit) for root in self.hierarchies]

    # --- its methods

    def _Get(self, call: Message, interface: str, name: str) -> list[Message]:
        value = {"Version": self.version, "ControlGroup": self.base}[name]
        return [new_method_return(call, "v", (("s", value),))]

    def _StartTransientUnit(self, call: Message, unit: str, mode: str, properties: Any, aux: Any) -> list[Message]:
        if unit in self.units:
            return [new_error(call, "org.freedesktop.systemd1.UnitExists", "s", (f"Unit {unit} already exists.",))]
        self.units[unit] = Unit(properties)
        for folder in self.folders(unit):
            folder.mkdir(parents=True, exist_ok=True)
            for pid in self.units[unit].properties["PIDs"]:
                (folder / "cgroup.procs").write_text(str(pid))
        return self._job(call, unit)

    def _StopUnit(self, call: Message, unit: str, mode: str) -> list[Message]:
        if unit not in self.units:
            return [new_error(call, "org.freedesktop.systemd1.NoSuchUnit", "s", (f"Unit {unit} not loaded.",))]
        for folder in self.folders(unit):
            wait_for(partial(is_removed, folder), what=f"the last process of {folder}")
        del self.units[unit]
        return self._job(call, unit)

    def _ResetFailedUnit(self, call: Message, unit: str) -> list[Message]:
        return [new_method_return(call)]

    def _SetUnitProperties(self, call: Message, unit: str, runtime: bool, properties: Any) -> list[Message]:
        self.units[unit].set(properties)
        return [new_method_return(call)]

    def _AttachProcessesToUnit(self, call: Message, unit: str, below: str, pids: list[int]) -> list[Message]:
        for folder in self.folders(unit):
            for pid in pids:
                (folder / below.lstrip("/") / "cgroup.procs").write_text(str(pid))
        return [new_method_return(call)]

    def _job(self, call: Message, unit: str) -> list[Message]:
        """The end of a job comes before the answer that names it: whoever waits for it must not miss it."""
        self.jobs += 1
        path = f"/org/freedesktop/systemd1/job/{self.jobs}"
        removed = new_signal(MANAGER, "JobRemoved", "uoss", (self.jobs, path, unit, self.job_result))
        return [removed, new_method_return(call, "o", (path,))]


class OnBus:
    """A message bus (Debian's dbus-daemon) with a systemd on it."""

    def __init__(self, systemd: Systemd, folder: Path) -> None:
        self._socket, self._configuration = folder / "bus", folder / "bus.conf"
        self._configuration.write_text(CONFIGURATION.format(socket=self._socket))
        self.address = f"unix:path={self._socket}"
        self._daemon = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._configuration}", "--nofork", "--print-address"], stdout=subprocess.PIPE
        )
        assert self._daemon.stdout is not None
        self._daemon.stdout.readline()
        self._connection = open_dbus_connection(self.address)
        self._connection.send_and_get_reply(message_bus.RequestName(MANAGER.bus_name))
        self._thread = threading.Thread(target=self._serve, args=(systemd,), daemon=True)
        self._thread.start()

    def _serve(self, systemd: Systemd) -> None:
        try:
            while True:
                call = self._connection.receive()
                if call.header.message_type is MessageType.method_call:
                    for message in systemd.answer(call):
                        self._connection.send(message)
        except (ConnectionResetError, OSError):
            return

    def close(self) -> None:
        self._daemon.terminate()
        self._daemon.communicate()
        self._thread.join(10)
        self._connection.close()


class Direct:
    """A systemd at a socket of its own, without a bus between, as /run/systemd/private."""

    def __init__(self, systemd: Systemd, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._path = path
        self._thread = threading.Thread(target=self._serve, args=(systemd,), daemon=True)
        self._thread.start()

    def _serve(self, systemd: Systemd) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb", buffering=0) as lines:
                self._talk(systemd, connection, lines)

    def _talk(self, systemd: Systemd, connection: socket.socket, lines: Any) -> None:
        first = lines.readline()
        assert first == b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n"
        connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
        assert lines.readline() == b"BEGIN\r\n"
        parser, serial = Parser(), 0
        while data := connection.recv(65536):
            parser.add_data(data)
            while (call := parser.get_next_message()) is not None:
                for message in systemd.answer(call):
                    serial += 1
                    connection.sendall(message.serialise(serial=serial))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        self._path.unlink()

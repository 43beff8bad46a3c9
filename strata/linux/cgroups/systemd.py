"""Cgroups that systemd makes: a container is a transient scope, with its limits as the unit's properties.

systemd is asked over D-Bus to start a scope around the container's first process (org.freedesktop.systemd1(5)). What it has no
property for, and what it would round, is written into the group's files as without it; the group is delegated, so systemd lets
them be. Rootless users have a service manager of their own, on v2 alone.
"""

import os

from strata.linux.cgroups import dbus, properties
from strata.linux.cgroups.common import DENIED, Cgroup, join
from strata.linux.cgroups.v1 import CgroupV1
from strata.linux.cgroups.v2 import CgroupV2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from strata.linux.cgroups.common import Resources
    from strata.linux.cgroups.properties import Property

_NAME, _PATH, _MANAGER = "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"
_PREFIX = "lowrt"
"""Of units whose container has no path."""


def unit(path: str, container_id: str, annotations: "dict[str, str]", *, user: bool) -> Cgroup:
    """The group of the unit that a path slice:prefix:name names; without one, of a scope in the default slice.

    annotations: the container's, some of which set the unit's properties. user: by the user's own manager.
    Raises ValueError for a path or annotation that is none, OSError where systemd cannot be asked.
    """
    if not os.path.isdir("/run/systemd/system"):
        raise OSError(2, "systemd not running on this host, cannot use systemd cgroups manager")
    parts = path.split(":") if path else ["", _PREFIX, container_id]
    if len(parts) != 3:
        raise ValueError(f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{path}" instead')
    slice_, prefix, name = parts
    if "/" in prefix + name or not name:
        raise ValueError(f'cgroupsPath "{path}": the name of a unit in slice:prefix:name has no slashes, and is not empty')
    slice_ = slice_ or ("user.slice" if user else "system.slice")
    place = expand_slice(slice_)
    unit_name = name if name.endswith(".slice") else f"{prefix}-{name}.scope"
    extra = properties.of_annotations(annotations)
    from strata.linux import cgroups

    manager, v2 = Manager(user=user), cgroups.mode() == "v2"
    if user and not v2:
        raise OSError(95, "cannot use rootless systemd cgroups manager on cgroup v1")
    base = str(manager.get("ControlGroup")) if user else ""  # the manager's slices are below its own group
    folder = f"{base}{place.rstrip('/')}/{unit_name}"
    kind = _UnitV2 if v2 else _UnitV1
    made = kind({"": f"{cgroups.ROOT}{folder}"} if v2 else cgroups.in_every_hierarchy(folder), unit_name, manager)
    made.slice, made.extra, made.title = slice_, extra, name
    return made


def restore(remembered: "dict[str, Any]") -> Cgroup:
    """The group that `remember` told of."""
    paths = remembered["paths"]
    kind = _UnitV2 if set(paths) == {""} else _UnitV1
    return kind(paths, remembered["unit"], Manager(user=remembered["user"]))


def expand_slice(name: str) -> str:
    """Where a slice's group is: a-b.slice is /a.slice/a-b.slice, and -.slice the root. Raises ValueError."""
    stem = name.removesuffix(".slice")
    parts = stem.split("-")
    if stem == "-" and name != stem:
        return "/"
    if name == stem or "/" in name or "" in parts:
        raise ValueError(f"invalid slice name: {name}")
    return "".join(f"/{'-'.join(parts[: depth + 1])}.slice" for depth in range(len(parts)))


class Manager:
    """A service manager: the machine's, or a user's own. Connected to when it is first asked. Every call raises OSError."""

    def __init__(self, *, user: bool) -> None:
        self.user = user
        self._connection: dbus.Connection | None = None
        self._version = 0

    def get(self, name: str) -> "Any":
        """A property of the manager itself."""
        connection = self._connect()
        ((_, value),) = connection.call(_NAME, _PATH, "org.freedesktop.DBus.Properties", "Get", "ss", _MANAGER, name)
        return value

    @property
    def version(self) -> int:
        """systemd's, like 252; 0 where it cannot be told from what systemd says."""
        if not self._version:
            text = str(self.get("Version")).lstrip("v")
            digits = text[: len(text) - len(text.lstrip("0123456789"))]
            self._version = int(digits or 0)
        return self._version

    def start(self, name: str, wanted: "list[Property]") -> None:
        """Starts a transient unit, and returns when it is up. One of that name that has failed is forgotten first."""
        arguments: tuple[Any, ...] = (name, "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "replace", wanted, [])
        try:
            self._run_job(*arguments)
        except dbus.Refusal as error:
            if not error.name.endswith(".UnitExists"):
                raise
            self.reset(name)
            self._run_job(*arguments)

    def stop(self, name: str) -> None:
        """Stops a unit, and returns when it is gone."""
        try:
            self._run_job(name, "StopUnit", "ss", name, "replace")
        finally:
            self.reset(name)

    def reset(self, name: str) -> None:
        """Forgets that a unit has failed: then systemd removes it."""
        try:
            self._call("ResetFailedUnit", "s", name)
        except dbus.Refusal:
            pass  # it is not there, or has not failed

    def set(self, name: str, wanted: "list[Property]") -> None:
        """Changes properties of a unit, until it is gone."""
        self._call("SetUnitProperties", "sba(sv)", name, True, wanted)

    def attach(self, name: str, below: str, pid: int) -> None:
        """Moves a process into a unit's group, or one below it: for whoever may not do it himself."""
        self._call("AttachProcessesToUnit", "ssau", name, below, [pid])

    def _run_job(self, name: str, member: str, signature: str, *arguments: "Any") -> None:
        connection = self._connect()
        (job,) = self._call(member, signature, *arguments)
        result = connection.wait_for_signal("JobRemoved", 1, job)[3]
        if result != "done":
            self.reset(name)
            raise OSError(5, f"{member} of {name}: got `{result}`")

    def _call(self, member: str, signature: str, *arguments: "Any") -> "list[Any]":
        return self._connect().call(_NAME, _PATH, _MANAGER, member, signature, *arguments)

    def _connect(self) -> dbus.Connection:
        if self._connection is None:
            self._connection = _connect_as_user() if self.user else _connect_to_system()
        return self._connection


def _connect_to_system() -> dbus.Connection:
    """By systemd's own socket, which root can use without a message bus between, else by the system's bus."""
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
    if not address and os.geteuid() == 0:
        try:
            return dbus.Connection("unix:path=/run/systemd/private", bus=False)
        except OSError:
            pass
    return _connect_to_bus(address or "unix:path=/run/dbus/system_bus_socket")


def _connect_as_user() -> dbus.Connection:
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if not address and folder and os.path.exists(f"{folder}/bus"):
        escaped = "".join(letter if letter.isalnum() or letter in "-_/." else f"%{ord(letter):02x}" for letter in folder)
        address = f"unix:path={escaped}/bus"
    if not address:
        raise OSError(2, "no bus of this user's own service manager: DBUS_SESSION_BUS_ADDRESS is not set, and there is no "
                         "$XDG_RUNTIME_DIR/bus (is dbus-user-session installed? log in again after it is)")  # fmt: skip
    return _connect_to_bus(address)


def _connect_to_bus(address: str) -> dbus.Connection:
    try:
        connection = dbus.Connection(address, bus=True)
    except OSError as error:
        raise OSError(error.errno, f"failed to connect to dbus: {error.strerror}") from None
    rule = f"type='signal',interface='{_MANAGER}',member='JobRemoved'"
    connection.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", rule)
    return connection


class _Unit(Cgroup):
    """What a unit's group does otherwise than one that is made here. Comes before the class of its version."""

    takes_clones = joins_itself = False
    slice = title = ""
    extra: "tuple[Property, ...] | list[Property]" = ()

    def __init__(self, paths: "dict[str, str]", name: str, manager: Manager) -> None:
        Cgroup.__init__(self, paths)
        self.unit, self.manager = name, manager

    def remember(self) -> "dict[str, Any]":
        return {**super().remember(), "unit": self.unit, "user": self.manager.user}

    def create(self, resources: "Resources | None" = None, *, lenient: bool = False) -> None:
        """systemd makes it, around the first process: see `take`."""

    def take(self, pid: int, resources: "Resources", *, lenient: bool = False) -> None:
        wanted: list[Property] = [("Description", ("s", f"lowrt container {self.title}"))]
        if self.unit.endswith(".slice"):
            wanted.append(("Wants", ("as", [self.slice])))
        else:
            wanted += [("Slice", ("s", self.slice)), ("Delegate", ("b", True))]
        blocks = "BlockIOAccounting" if isinstance(self, CgroupV1) else "IOAccounting"
        wanted += [
            ("PIDs", ("au", [pid])),
            *((name, ("b", True)) for name in ("MemoryAccounting", "CPUAccounting", blocks, "TasksAccounting")),
            ("DefaultDependencies", ("b", False)),
            *self.extra,
            *properties.of_oom_group(resources, self.manager.version),
            *self._properties(resources),
        ]
        try:
            self.manager.start(self.unit, wanted)
        except OSError as error:
            raise OSError(error.errno, f'unable to start unit "{self.unit}": {error.strerror or error}') from None
        self._complete(pid, resources)
        self._write(resources)

    def apply(self, resources: "Resources") -> None:
        if wanted := self._properties(resources):
            try:
                self.manager.set(self.unit, wanted)
            except OSError as error:
                raise OSError(error.errno, f"unable to set unit properties: {error.strerror or error}") from None
        self._write(resources)

    def _write(self, resources: "Resources") -> None:
        """The limits again, as files of the group."""
        cpu = resources.get("cpu") or {}
        if quota := cpu.get("quota"):
            quota = properties.rounded_quota(quota, cpu.get("period") or 0)
            resources = {**resources, "cpu": {**cpu, "quota": quota}}
        super().apply(resources)

    def _properties(self, resources: "Resources") -> "list[Property]":
        raise NotImplementedError

    def _complete(self, pid: int, resources: "Resources") -> None:
        """What systemd leaves to do for a group that it has just made."""
        raise NotImplementedError

    def add(self, pid: int, below: "dict[str, str] | None" = None) -> None:
        try:
            super().add(pid, below)
        except OSError as error:
            path = (below or {}).get("", "").strip("/")
            if error.errno not in DENIED or (below and "" not in below):
                raise
            # The caller is in a group of somebody else's: the manager may move it all the same.
            self.manager.attach(self.unit, f"/{path}", pid)

    def destroy(self) -> None:
        try:
            self.kill()  # systemd would give what is left a minute and a half
            self.manager.stop(self.unit)
        except OSError:
            pass  # it has ended by itself with its last process, or systemd is not there: what is left goes now
        super().destroy()


class _UnitV1(_Unit, CgroupV1):
    def open_for_exec(self, below: "dict[str, str] | None") -> int:
        return -1

    def _properties(self, resources: "Resources") -> "list[Property]":
        return properties.of_resources_v1(resources, self.manager.version)

    def _complete(self, pid: int, resources: "Resources") -> None:
        # systemd makes groups only for the controllers that it drives.
        CgroupV1.create(self, resources)
        for controller, folder in self.paths.items():
            if controller != "systemd":
                join(folder, pid)


class _UnitV2(_Unit, CgroupV2):
    def _properties(self, resources: "Resources") -> "list[Property]":
        memory = resources.get("memory") or {}
        if memory.get("checkBeforeUpdate"):
            self.check_memory(memory.get("limit") or 0, memory.get("swap") or 0)
        return properties.of_resources_v2(resources, self.manager.version)

    def _complete(self, pid: int, resources: "Resources") -> None:
        CgroupV2.create(self, resources)

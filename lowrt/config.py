"""A bundle's config.json (OCI runtime spec): read, checked for what would otherwise fail half-way, and asked for things.

Unknown fields are ignored, as the spec wants it. What would make a container less confined than it says is refused by name.
"""

import os

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason
from strata.linux import capabilities, namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

SPEC_VERSION = "1.3.0"
_REFUSED = ("intelRdt", "memoryPolicy", "netDevices")
_RLIMITS = ("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS", "RTPRIO",
            "RTTIME", "SIGPENDING", "STACK")  # fmt: skip


def load(bundle: str) -> "Spec":
    """The bundle's configuration, checked. Raises RuntimeFailure."""
    path = f"{bundle}/config.json"
    try:
        with open(path, encoding="utf-8") as file:
            spec = documents.loads(file.read())
    except FileNotFoundError:
        raise RuntimeFailure(
            f"JSON specification file config.json not found in {bundle}: give the bundle with --bundle"
        ) from None
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"read {path}: {reason(error)}") from None
    check(spec)
    checked: Spec = spec
    return checked


def check(spec: "Any") -> None:
    """Raises RuntimeFailure for a configuration that cannot be run."""
    _expect(isinstance(spec, dict), "config.json: must be an object")
    version = spec.get("ociVersion")
    _expect(isinstance(version, str) and version.split(".")[0] == "1", f"ociVersion {version!r}: only 1.x is supported")
    root = spec.get("root")
    _expect(isinstance(root, dict) and isinstance(root.get("path"), str) and root["path"] != "", "root.path: required value")
    linux = spec.get("linux") or {}
    _expect(isinstance(linux, dict), "linux: must be an object")
    for name in _REFUSED:
        _expect(not linux.get(name), f"linux.{name}: not supported by this runtime")
    _check_namespaces(linux)
    for index, mount in enumerate(_objects(spec, "mounts", "")):
        destination = mount.get("destination")
        _expect(isinstance(destination, str) and destination != "", f"mounts[{index}].destination: required value")
        options = mount.get("options") or []
        _expect(
            isinstance(options, list) and all(isinstance(o, str) for o in options), f"mounts[{index}].options: must be strings"
        )
    for index, device in enumerate(_objects(linux, "devices", "linux.")):
        _expect(device.get("type") in ("c", "b", "u", "p"), f"linux.devices[{index}].type: must be c, b, u or p")
        _expect(isinstance(device.get("path"), str), f"linux.devices[{index}].path: required value")
    for name in ("maskedPaths", "readonlyPaths"):
        paths = linux.get(name) or []
        _expect(isinstance(paths, list) and all(isinstance(p, str) for p in paths), f"linux.{name}: must be strings")
    for name in ("uidMappings", "gidMappings"):
        for index, mapping in enumerate(_objects(linux, name, "linux.")):
            numbers = [mapping.get(key) for key in ("containerID", "hostID", "size")]
            _expect(all(_is_id(n) for n in numbers), f"linux.{name}[{index}]: containerID, hostID and size must be numbers")
    for name in ("sysctl",):
        given = linux.get(name) or {}
        _expect(isinstance(given, dict) and all(isinstance(v, str) for v in given.values()), f"linux.{name}: must map strings")
        check_sysctls(given, linux)
    for kind in (spec.get("hooks") or {}).values():
        for hook in kind or ():
            _expect(isinstance(hook.get("path"), str) and hook["path"].startswith("/"), "hooks: each needs an absolute path")
    if spec.get("process") is not None:
        check_process(spec["process"])
    for key in ("hostname", "domainname"):
        if spec.get(key):
            _expect(has_namespace(linux, "uts"), f"{key}: unable to set it without a private UTS namespace")


def check_process(process: "Any") -> None:
    """Raises RuntimeFailure for a process (of a container, or of exec) that cannot be started."""
    _expect(isinstance(process, dict), "process: must be an object")
    arguments = process.get("args")
    _expect(isinstance(arguments, list) and arguments != [], "process.args: must name what to run")
    for name in ("args", "env"):
        values = process.get(name) or []
        fits = isinstance(values, list) and all(isinstance(v, str) and "\0" not in v for v in values)
        _expect(fits, f"process.{name}: must be strings without NUL bytes")
    cwd = process.get("cwd")
    _expect(isinstance(cwd, str) and cwd.startswith("/"), f"process.cwd {cwd!r}: must be an absolute path")
    user = process.get("user") or {}
    _expect(isinstance(user, dict), "process.user: must be an object")
    for name in ("uid", "gid"):
        _expect(_is_id(user.get(name, 0)), f"process.user.{name}: must be a number from 0 to 4294967294")
    groups = user.get("additionalGids") or []
    _expect(isinstance(groups, list) and all(_is_id(g) for g in groups), "process.user.additionalGids: must be numbers")
    for index, limit in enumerate(_objects(process, "rlimits", "process.")):
        kind = str(limit.get("type"))
        _expect(kind.removeprefix("RLIMIT_") in _RLIMITS, f"process.rlimits[{index}].type: unknown limit {kind!r}")
        numbers = [limit.get("soft"), limit.get("hard")]
        _expect(all(isinstance(n, int) and n >= 0 for n in numbers), f"process.rlimits[{index}]: soft and hard must be numbers")
    given = process.get("capabilities") or {}
    _expect(isinstance(given, dict), "process.capabilities: must be an object")
    adjust = process.get("oomScoreAdj")
    _expect(
        adjust is None or (isinstance(adjust, int) and -1000 <= adjust <= 1000), "process.oomScoreAdj: must be from -1000 to 1000"
    )
    for name in ("scheduler", "ioPriority", "execCPUAffinity"):
        _expect(not process.get(name), f"process.{name}: not supported by this runtime yet")
    for name in ("apparmorProfile", "selinuxLabel"):
        if process.get(name):
            module = "AppArmor" if name == "apparmorProfile" else "SELinux"
            folder = "/sys/kernel/security/apparmor" if module == "AppArmor" else "/sys/fs/selinux"
            _expect(os.path.isdir(folder), f"process.{name}: {module} is not enabled on this machine")


def _check_namespaces(linux: "Spec") -> None:
    seen = set()
    for index, entry in enumerate(_objects(linux, "namespaces", "linux.")):
        kind = entry.get("type")
        _expect(kind in namespaces.KINDS, f"linux.namespaces[{index}].type: unknown namespace {kind!r}")
        _expect(kind not in seen, f"linux.namespaces[{index}]: {kind} is given twice")
        seen.add(kind)
        path = entry.get("path")
        _expect(not path or (isinstance(path, str) and path.startswith("/")), f"linux.namespaces[{index}].path: must be absolute")
    _expect("mount" in seen, "linux.namespaces: a container needs a mount namespace of its own")
    if linux.get("uidMappings") or linux.get("gidMappings"):
        _expect("user" in seen, "linux.uidMappings: need a user namespace")
    for entry in linux.get("namespaces") or ():
        if entry["type"] == "user" and not entry.get("path"):
            _expect(
                bool(linux.get("uidMappings") and linux.get("gidMappings")),
                "linux.uidMappings: required for a new user namespace",
            )


_NAMESPACED_SYSCTLS = ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
                       "kernel.shmmni", "kernel.shm_rmid_forced")  # fmt: skip


def check_sysctls(given: "dict[str, str]", linux: "Spec") -> None:
    """Only sysctls of a namespace that the container has for itself may be set."""
    for name in given:
        plain = name.replace("/", ".")
        _expect(".." not in plain and "" not in plain.split("."), f"sysctl {name!r}: no such name")
        if plain in _NAMESPACED_SYSCTLS or plain.startswith("fs.mqueue."):
            needed = "ipc"
        elif plain.startswith("net."):
            needed = "network"
        elif plain in ("kernel.domainname", "kernel.hostname"):
            needed = "uts"
        else:
            raise RuntimeFailure(f'sysctl "{name}" is not in a separate kernel namespace')
        _expect(has_namespace(linux, needed), f'sysctl "{name}" is not allowed in the host {needed} namespace')


def has_namespace(linux: "Spec", kind: str) -> bool:
    return any(entry["type"] == kind for entry in linux.get("namespaces") or ())


def namespace_path(linux: "Spec", kind: str) -> str | None:
    """The path of a namespace to join; "" for a new one, None for the runtime's own."""
    for entry in linux.get("namespaces") or ():
        if entry["type"] == kind:
            return entry.get("path") or ""
    return None


def unknown_capabilities(process: "Spec") -> list[str]:
    """Names that the kernel's list does not have: they are warned of and left out, as runc does."""
    given = process.get("capabilities") or {}
    return sorted({name for names in given.values() for name in names or () if name not in capabilities.NUMBERS})


def _objects(parent: "Spec", name: str, where: str) -> "list[Spec]":
    values = parent.get(name) or []
    _expect(isinstance(values, list) and all(isinstance(v, dict) for v in values), f"{where}{name}: must be a list of objects")
    found: list[Spec] = values
    return found


def _is_id(value: "Any") -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeFailure(message)

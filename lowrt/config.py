"""A bundle's config.json (OCI runtime spec): read, brought into shape (`schema`), checked for what would otherwise fail half-way.

Unknown fields are ignored, as the spec wants it. What would make a container less confined than it says is refused by name.
Texts are runc's where users and tests know them.
"""

import os

from lowrt import documents, resources, schema
from lowrt.errors import RuntimeFailure, reason
from strata.linux import capabilities, mounts, namespaces, rlimits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

SPEC_VERSION = "1.3.0"


def read(bundle: str) -> "Spec":
    """The bundle's configuration, brought into shape, its namespaces checked. Raises RuntimeFailure."""
    path = f"{bundle}/config.json"
    try:
        with open(path, encoding="utf-8") as file:
            spec = documents.loads_once(file.read())
    except FileNotFoundError:
        raise RuntimeFailure(
            f"JSON specification file config.json not found in {os.path.realpath(bundle)}: give the bundle with --bundle"
        ) from None
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"read {os.path.realpath(path)}: {reason(error)}") from None
    _bring_into_shape(spec)
    fitting: Spec = spec
    return fitting


def check(spec: "Any") -> None:
    """Brings a configuration into shape. Raises RuntimeFailure for one that cannot be run."""
    _bring_into_shape(spec)
    check_rest(spec)


def _bring_into_shape(spec: "Any") -> None:
    _fit(spec, schema.CONFIG, "config.json")
    _check_namespaces(spec.get("linux") or {})


def check_rest(spec: "Spec") -> None:
    """Checks what `read` has not. Raises RuntimeFailure for a configuration that cannot be run."""
    version = spec.get("ociVersion", "")
    _expect(version.split(".")[0] == "1", f"ociVersion {version!r}: only 1.x is supported")
    _expect("root" in spec, "root must be specified")
    _expect(spec["root"].get("path", "") != "", "root.path: required value")
    linux = spec.get("linux") or {}
    _check_linux(linux)
    for index, mount in enumerate(spec.get("mounts") or ()):
        _expect(mount.get("destination", "") != "", f"mounts[{index}].destination: required value")
    if os.geteuid() != 0:
        _check_mount_owners(spec, linux)
    for kind, hooks in (spec.get("hooks") or {}).items():
        for index, hook in enumerate(hooks):
            _check_hook(hook, f"hooks.{kind}[{index}]")
    for key in ("hostname", "domainname"):
        if spec.get(key):
            _expect(has_namespace(linux, "uts"), f"unable to set {key} without a private UTS namespace")
    for name, value in (linux.get("sysctl") or {}).items():
        conflict = sysctl_path(name) == "kernel/domainname" and spec.get("domainname", value) != value
        _expect(not conflict, f'sysctl "{name}" conflicts with the OCI "domainname" field')
    if "process" in spec:
        _check_process(spec["process"])
    if label := linux.get("mountLabel"):
        _label_mounts(spec, label)


def _label_mounts(spec: "Spec", label: str) -> None:
    """New file systems are made with the container's SELinux label, but those that the kernel labels itself, as in runc."""
    from strata.linux import lsm

    for mount in spec.get("mounts") or ():
        bind = mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ())
        if not bind and mount.get("type") not in ("proc", "sysfs", "mqueue", "cgroup"):
            mount["options"] = [*(mount.get("options") or ()), lsm.mount_option(label)]


def check_process(process: "Any") -> None:
    """The same for a process alone, as exec has it."""
    fit_process(process)
    _check_process(process)


def fit_process(process: "Any") -> None:
    """Brings a process into shape. Raises RuntimeFailure."""
    _fit(process, schema.PROCESS, "process")


def check_resources(given: "Any") -> None:
    """The same for resources alone, as update has them."""
    _fit(given, schema.RESOURCES, "resources")
    resources.check(given)


def _check_process(process: "Spec") -> None:
    _expect(bool(process.get("args")), "process.args: args must not be empty")
    for variable in process.get("env") or ():
        name, equals, _ = variable.partition("=")
        _expect(equals != "", f"process.env: invalid environment variable: missing '=': {name}")
        _expect(name != "", "process.env: invalid environment variable: name cannot be empty")
    cwd = process.get("cwd", "")
    _expect(cwd != "", "process.cwd: Cwd property must not be empty")
    _expect(cwd.startswith("/"), f"process.cwd {cwd!r}: Cwd must be an absolute path")
    seen = set()
    for index, limit in enumerate(process.get("rlimits") or ()):
        kind, where = limit.get("type", ""), f"process.rlimits[{index}]"
        _expect(kind in rlimits.NUMBERS, f"{where}.type: wrong rlimit value: {kind}")
        _expect(kind not in seen, f"{where}: {kind} is given twice")
        _expect("soft" in limit and "hard" in limit, f"{where}: soft and hard are required")
        _expect(limit["soft"] <= limit["hard"], f"{where}: {kind}: the soft limit must not be above the hard one")
        seen.add(kind)
    adjust = process.get("oomScoreAdj", 0)
    _expect(-1000 <= adjust <= 1000, f"process.oomScoreAdj: must be a number from -1000 to 1000, not {adjust}")
    _check_attributes(process, {})


def _check_attributes(process: "Spec", linux: "Spec") -> None:
    """The rarer ones, which most configurations have none of."""
    for name in ("scheduler", "ioPriority", "execCPUAffinity", "apparmorProfile", "selinuxLabel"):
        if name in process:
            break
    else:
        if not {"personality", "memoryPolicy", "mountLabel"} & linux.keys():
            return
    from lowrt import attributes

    attributes.check(process, linux)


def _check_hook(hook: "Spec", where: str) -> None:
    _expect(hook.get("path", "").startswith("/"), f"{where}: a hook needs an absolute path")
    _expect(hook.get("timeout", 1) > 0, f"{where}: the timeout must be greater than zero")
    for variable in hook.get("env") or ():
        _expect(variable.find("=") > 0, f"{where}: invalid environment variable {variable!r}: give NAME=VALUE")


def _check_linux(linux: "Spec") -> None:
    _expect(not linux.get("intelRdt"), "linux.intelRdt: not supported by this runtime")
    if linux.get("netDevices"):
        _check_net_devices(linux)
    _check_attributes({}, linux)
    resources.check(linux.get("resources") or {})
    for index, device in enumerate(linux.get("devices") or ()):
        where = f"linux.devices[{index}]"
        _expect(device.get("type") in ("c", "b", "u", "p"), f"{where}.type: invalid device type {device.get('type', '')!r}")
        _expect(device.get("path", "") != "", f"{where}.path: required value")
        for name in ("major", "minor"):
            _expect(0 <= device.get(name, 0) < 2**20, f"{where}.{name}: there is no such device number")
    propagation = linux.get("rootfsPropagation")
    _expect(not propagation or propagation in mounts.PROPAGATIONS, f"rootfsPropagation={propagation} is not supported")
    check_sysctls(linux.get("sysctl") or {}, linux)


def _check_net_devices(linux: "Spec") -> None:
    from strata.linux import links

    _expect(has_namespace(linux, "network"), "unable to move network devices without a NET namespace")
    _expect(os.geteuid() == 0, "network devices are not supported for rootless containers")
    for name, settings in linux["netDevices"].items():
        for one in (name, settings.get("name") or name):
            _expect(links.is_name(one), f"invalid network device name {one!r}")


def _check_namespaces(linux: "Spec") -> None:
    kinds = []
    for index, entry in enumerate(linux.get("namespaces") or ()):
        kind, path = entry.get("type", ""), entry.get("path", "")
        _expect(kind in namespaces.KINDS, f"linux.namespaces[{index}].type: unknown namespace: namespace {kind!r} does not exist")
        _expect(kind not in kinds, f"linux.namespaces[{index}]: malformed spec file: duplicated ns: {kind} is given twice")
        _expect(path == "" or path.startswith("/"), f"linux.namespaces[{index}].path: must be absolute")
        kinds.append(kind)
    restricted = linux.get("maskedPaths") or linux.get("readonlyPaths")
    _expect("mount" in kinds or not restricted, "unable to restrict sys entries without a private MNT namespace")
    mapped = bool(linux.get("uidMappings") or linux.get("gidMappings"))
    if "user" not in kinds:
        _expect(os.geteuid() == 0, "rootless container requires user namespaces")
        _expect(not mapped, "user namespace mappings specified, but user namespace isn't enabled in the config")
    elif not namespace_path(linux, "user"):
        _expect(bool(linux.get("uidMappings")), "user namespaces enabled, but no uid mappings found")
        _expect(bool(linux.get("gidMappings")), "user namespaces enabled, but no gid mappings found")
        _check_mappings(linux)
    if "timeOffsets" in linux:
        _check_time_offsets(linux)


def _check_mappings(linux: "Spec") -> None:
    from strata.linux import idmaps

    for kind in ("uid", "gid"):
        mappings = linux[f"{kind}Mappings"]
        for index, mapping in enumerate(mappings):
            _expect(mapping.get("size", 0) > 0, f"linux.{kind}Mappings[{index}].size: must be greater than zero")
        _expect(idmaps.maps(mappings, 0), f"user namespaces enabled, but no mapping found for {kind} 0")


def _check_mount_owners(spec: "Spec", linux: "Spec") -> None:
    """A user without privileges can give files to nobody that his namespace does not know."""
    if namespace_path(linux, "user") != "":
        return
    from strata.linux import idmaps

    for mount in spec.get("mounts") or ():
        for option in mount.get("options") or ():
            kind, equals, number = option.partition("id=")
            if equals and kind in ("u", "g") and number.isdecimal() and not idmaps.maps(linux[f"{kind}idMappings"], int(number)):
                raise RuntimeFailure(
                    f"cannot specify {option} mount option for rootless container: user namespaces enabled, but no mapping found"
                    f" for {kind}id {number}"
                )


def _check_time_offsets(linux: "Spec") -> None:
    path = namespace_path(linux, "time")
    _expect(path is not None, "time namespace offsets specified, but time namespace isn't enabled in the config")
    _expect(not path, "time namespace enabled, but both namespace path and time offsets specified -- you may only provide one")
    for clock, offset in linux["timeOffsets"].items():
        _expect(clock in ("monotonic", "boottime"), f"linux.timeOffsets: no clock {clock!r}: give monotonic or boottime")
        _expect(offset.get("nanosecs", 0) < 10**9, f"linux.timeOffsets[{clock}].nanosecs: must be less than a second")


_IPC_SYSCTLS = ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
                "kernel.shmmni", "kernel.shm_rmid_forced")  # fmt: skip


def sysctl_path(name: str) -> str:
    """A sysctl's path below /proc/sys (sysctl.d(5)): by its first separator, `.` or `/`, the name tells which of the two it
    uses, and the other stands for a `.` in a part of it (net.ipv4.conf.eno2/100.rp_filter)."""
    first = min((place for place in (name.find("."), name.find("/")) if place >= 0), default=-1)
    if first < 0 or name[first] == "/":
        return name
    return "/".join(part.replace("/", ".") for part in name.split("."))


def check_sysctls(given: "dict[str, str]", linux: "Spec") -> None:
    """Only sysctls of a namespace that the container has for itself may be set. Raises RuntimeFailure."""
    for name in given:
        path = sysctl_path(name)
        parts = path.split("/")
        _expect(not {"", ".", ".."} & set(parts), f"sysctl {name!r}: no such name")
        if path.replace("/", ".") in _IPC_SYSCTLS or path.startswith("fs/mqueue/"):
            _expect(has_namespace(linux, "ipc"), f'sysctl "{name}" is not allowed in the hosts ipc namespace')
        elif parts[0] == "net":
            _expect(not _is_our_network(linux), f'sysctl "{name}" not allowed in host network namespace')
        elif path == "kernel/domainname" and has_namespace(linux, "uts"):
            continue
        elif path == "kernel/hostname" and has_namespace(linux, "uts"):
            raise RuntimeFailure(f'sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field')
        elif parts[0] == "user":
            # Without a user namespace of its own they would be everybody's.
            _expect(has_namespace(linux, "user"), f"setting ucounts without a user namespace not allowed: {name}")
        else:
            raise RuntimeFailure(f'sysctl "{name}" is not in a separate kernel namespace')


def _is_our_network(linux: "Spec") -> bool:
    """Whether the container is in this process's network namespace."""
    path = namespace_path(linux, "network")
    if not path:
        return path is None
    try:
        theirs, ours = os.stat(path), os.stat("/proc/self/ns/net")
    except OSError as error:
        raise RuntimeFailure(f"invalid netns path: {reason(error)}") from None
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def has_namespace(linux: "Spec", kind: str) -> bool:
    return any(entry["type"] == kind for entry in linux.get("namespaces") or ())


def namespace_path(linux: "Spec", kind: str) -> str | None:
    """The path of a namespace to join; "" for a new one, None for the runtime's own."""
    for entry in linux.get("namespaces") or ():
        if entry["type"] == kind:
            return entry.get("path") or ""
    return None


def warnings(spec: "Spec") -> list[str]:
    """What will not be as the configuration says, and runc is not stricter about either."""
    found = capability_warnings(spec.get("process") or {}, in_user_namespace=has_namespace(spec.get("linux") or {}, "user"))
    for mount in spec.get("mounts") or ():
        if not mount["destination"].startswith("/"):
            found.append(f"mount destination {mount['destination']} is not absolute: it is taken from the root on")
    return found + resources.warnings((spec.get("linux") or {}).get("resources") or {})


def capability_warnings(process: "Spec", *, in_user_namespace: bool) -> list[str]:
    """Capabilities that a process will not have although it should."""
    given = process.get("capabilities")
    if not given:
        return []
    held = (1 << capabilities.last() + 1) - 1 if in_user_namespace else capabilities.held()
    found = []
    if ignored := capabilities.ignored(given, held):
        found.append(f"ignoring unknown or unavailable capabilities: [{' '.join(ignored)}]")
    for name in capabilities.not_ambient(given):
        found.append(f"can't raise ambient capability {name}: operation not permitted")
    return found


def _fit(value: "Any", kind: "Any", what: str) -> None:
    """what: the name of the whole; a part of config.json is named by its place in it."""
    try:
        schema.fit(value, kind)
    except schema.Misfit as misfit:
        between = "" if not misfit.path else ": " if what == "config.json" else "."
        raise RuntimeFailure(f"{what}{between}{misfit}") from None


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeFailure(message)

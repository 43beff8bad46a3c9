"""Devices by name: the Container Device Interface (CDI, version 1), in which a device says what it wants changed in a container.

Its files are read when a container asks for a device, so that a driver may write them at any time. Of two files that define the
same device the one in the later folder counts; in one folder they contradict each other, and the device cannot be had.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highrt.pods.errors import InvalidArgument
from strata.protocols.cri_pb2 import ContainerConfig
from strata.telemetry import logs

log = logs.get("highrt.pods")

FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
_ANNOTATION = "cdi.k8s.io/"
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")

Spec = dict[str, Any]


@dataclass(frozen=True)
class _Device:
    """file: where it is defined. common: the edits of all devices in that file, made once."""

    file: Path
    common: Mapping[str, Any]
    own: Mapping[str, Any]


def wanted(config: ContainerConfig) -> list[str]:
    """The names that a container asks for: `vendor.com/class=name`, in CRI's field or in annotations, as before there was one."""
    found = [device.name for device in config.CDI_devices]
    for key, value in sorted(config.annotations.items()):
        if key.startswith(_ANNOTATION):
            found += [name.strip() for name in value.split(",")]
    return list(dict.fromkeys(found))


def apply(built: Spec, names: Sequence[str], folders: Sequence[Path], *, privileged: bool) -> None:
    """Changes a config.json as the devices want it. Raises InvalidArgument for a device that there is not, or that is wrong."""
    known = _read(folders)
    done: set[Path] = set()
    for name in names:
        device = known.get(name)
        if device is None:
            raise InvalidArgument(f"CDI device {name}: it is in no file of {', '.join(map(str, folders))}")
        if isinstance(device, str):
            raise InvalidArgument(f"CDI device {name}: {device}")
        try:
            if device.file not in done:
                _edit(built, device.common, privileged=privileged)
            _edit(built, device.own, privileged=privileged)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"CDI device {name} ({device.file}): {type(error).__name__}: {error}") from None
        done.add(device.file)


def _read(folders: Sequence[Path]) -> dict[str, _Device | str]:
    """All devices by their whole names; a text says why one cannot be had."""
    found: dict[str, _Device | str] = {}
    for folder in folders:
        here: dict[str, _Device | str] = {}
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.suffix not in (".json", ".yaml", ".yml"):
                continue
            try:
                for name, device in _devices(file):
                    here[name] = f"{file} defines it as another file there does" if name in here else device
            except (OSError, ValueError) as error:
                log.warning("a CDI file cannot be used", file=str(file), error=str(error))
        found |= here
    return found


def _devices(file: Path) -> Iterator[tuple[str, _Device]]:
    text = file.read_text()
    if file.suffix == ".json":
        content = json.loads(text)
    else:
        import yaml

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None
    if not isinstance(content, dict) or not isinstance(content.get("devices"), list):
        raise ValueError("no CDI specification: it has no list of devices")
    kind = content.get("kind")
    if not isinstance(kind, str) or "/" not in kind:
        raise ValueError(f"kind {kind!r} is not of the form vendor.com/class")
    common = content.get("containerEdits") or {}
    for device in content["devices"]:
        if not isinstance(device, dict) or not isinstance(device.get("name"), str):
            raise ValueError("a device without a name")
        yield f"{kind}={device['name']}", _Device(file, common, device.get("containerEdits") or {})


def _edit(built: Spec, edits: Mapping[str, Any], *, privileged: bool) -> None:
    """One `containerEdits` (CDI specification, OCI edits)."""
    process, linux = built["process"], built["linux"]
    for pair in edits.get("env") or ():
        name = f"{str(pair).partition('=')[0]}="
        process["env"] = [each for each in process["env"] if not each.startswith(name)] + [str(pair)]
    for node in edits.get("deviceNodes") or ():
        made = _node(node)
        linux["devices"] = [each for each in linux["devices"] if each["path"] != made["path"]] + [made]
        if not privileged:
            rule = {key: value for key, value in made.items() if key in ("type", "major", "minor")}
            linux["resources"]["devices"].append({"allow": True, "access": node.get("permissions") or "rwm", **rule})
    for mount in edits.get("mounts") or ():
        built["mounts"].append({
            "destination": str(mount["containerPath"]), "source": str(mount["hostPath"]),
            "type": str(mount.get("type") or "bind"), "options": [str(each) for each in mount.get("options") or ("rbind",)],
        })  # fmt: skip
    for hook in edits.get("hooks") or ():
        if hook["hookName"] not in _HOOKS:
            raise ValueError(f"there is no hook {hook['hookName']!r}")
        entry = {key: hook[key] for key in ("path", "args", "env", "timeout") if hook.get(key)}
        built.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(entry)
    groups = [int(each) for each in edits.get("additionalGids") or ()]
    if groups:
        process["user"]["additionalGids"] = sorted({*process["user"]["additionalGids"], *groups})
    if resctrl := edits.get("intelRdt"):
        linux["intelRdt"] = dict(resctrl)
    for device in edits.get("netDevices") or ():
        linux.setdefault("netDevices", {})[str(device["hostInterfaceName"])] = {"name": str(device["name"])}


def _node(node: Mapping[str, Any]) -> Spec:
    """A device's node as the OCI spec has it; what is not said is what the host's has."""
    path = str(node["path"])
    status = os.stat(node.get("hostPath") or path)
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else "p"
    made: Spec = {
        "path": path, "type": node.get("type") or kind, "fileMode": node.get("fileMode") or stat.S_IMODE(status.st_mode),
        "uid": node["uid"] if node.get("uid") is not None else status.st_uid,
        "gid": node["gid"] if node.get("gid") is not None else status.st_gid,
    }  # fmt: skip
    if made["type"] != "p":
        given = node.get("major") is not None
        made["major"] = node["major"] if given else os.major(status.st_rdev)
        made["minor"] = node.get("minor", 0) if given else os.minor(status.st_rdev)
    return made

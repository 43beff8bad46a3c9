"""The network configuration: the first list, by name, in the configuration folder (CNI specification, section 1)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highrt.cni.errors import NotConfigured

_KINDS = (".conflist", ".conf", ".json")
_NEWEST = "1.1.0"
"""The newest version of the specification that is spoken here."""


@dataclass(frozen=True)
class NetworkConfig:
    """A list of plugins, run in order. raw: the whole object, as it is cached with an attachment."""

    name: str
    version: str
    plugins: list[dict[str, Any]]
    raw: dict[str, Any]

    @property
    def disable_check(self) -> bool:
        return bool(self.raw.get("disableCheck"))

    @property
    def disable_gc(self) -> bool:
        return bool(self.raw.get("disableGC"))

    def at_least(self, version: str) -> bool:
        return _numbers(self.version) >= _numbers(version)


def load(folder: Path) -> NetworkConfig:
    """The configuration that holds now. Raises NotConfigured, with the reason for each file that is no good."""
    reasons = []
    for path in files(folder):
        try:
            return parse(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            reasons.append(f"{path.name}: {error}")
    detail = f" ({'; '.join(reasons)})" if reasons else ""
    raise NotConfigured(f"no network configuration in {folder}{detail}: the node's network writes one there")


def named(folder: Path | None, name: str) -> NetworkConfig:
    """The configuration NAME.conflist. Raises NotConfigured."""
    if folder is None:
        raise NotConfigured(f"there is no network {name}")
    try:
        return parse(json.loads((folder / f"{name}.conflist").read_text()))
    except FileNotFoundError:
        raise NotConfigured(f"there is no network {name}") from None
    except (OSError, ValueError) as error:
        raise NotConfigured(f"network {name}: {error}") from None


def files(folder: Path) -> list[Path]:
    """What may be a configuration, in the order in which they count."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in _KINDS and path.name[0] != ".")
    except OSError:
        return []


def parse(value: Any) -> NetworkConfig:
    """Checks a list, or a single plugin's configuration, which is taken as a list of one. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    if "plugins" not in value and "type" in value:
        value = {"name": value.get("name"), "cniVersion": value.get("cniVersion", "0.2.0"), "plugins": [value]}
    name, plugins = value.get("name"), value.get("plugins")
    version = _version(value)
    if not isinstance(name, str) or not name:
        raise ValueError("`name` is missing")
    if not _is_version(version):
        raise ValueError(f"`cniVersion` must be a text like 1.0.0, not {version!r}")
    if not isinstance(plugins, list) or not plugins:
        raise ValueError("`plugins` must be a list of at least one plugin")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise ValueError("each plugin needs a `type`, the name of its executable")
    return NetworkConfig(name, version, plugins, value)


def _version(value: dict[str, Any]) -> Any:
    """The version to speak: of several that a list offers the newest that is known here, else its only one."""
    offered = value.get("cniVersions")
    known = [each for each in offered if _is_version(each)] if isinstance(offered, list) else []
    known = [each for each in known if _numbers(each) <= _numbers(_NEWEST)]
    return max(known, key=_numbers) if known else value.get("cniVersion", "0.2.0")


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and all(part.isdecimal() for part in value.split("."))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))

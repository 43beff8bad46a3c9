"""The network configuration: the first list, by name, in the configuration folder (CNI specification, section 1)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highrt.cni.errors import NotConfigured

_KINDS = (".conflist", ".conf", ".json")


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


def load(folder: Path) -> NetworkConfig:
    """The configuration that holds now. Raises NotConfigured, with the reason for each file that is no good."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in _KINDS)
    except OSError:
        files = []
    reasons = []
    for path in files:
        try:
            return parse(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            reasons.append(f"{path.name}: {error}")
    detail = f" ({'; '.join(reasons)})" if reasons else ""
    raise NotConfigured(f"no network configuration in {folder}{detail}: the node's network writes one there")


def parse(value: Any) -> NetworkConfig:
    """Checks a list, or a single plugin's configuration, which is taken as a list of one. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    if "plugins" not in value and "type" in value:
        value = {"name": value.get("name"), "cniVersion": value.get("cniVersion", "0.2.0"), "plugins": [value]}
    name, plugins = value.get("name"), value.get("plugins")
    version = value.get("cniVersion", "0.2.0")
    if not isinstance(name, str) or not name:
        raise ValueError("`name` is missing")
    if not isinstance(version, str):
        raise ValueError("`cniVersion` must be a text")
    if not isinstance(plugins, list) or not plugins:
        raise ValueError("`plugins` must be a list of at least one plugin")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise ValueError("each plugin needs a `type`, the name of its executable")
    return NetworkConfig(name, version, plugins, value)

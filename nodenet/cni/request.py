"""What a plugin is asked: CNI's environment variables and the network configuration on standard input, checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nodenet.cni.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, INVALID_CONFIG, INVALID_ENVIRONMENT, CniError

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")

# CNI_CONTAINERID and network names: spec, section 2, "Parameters" and section 1, "Configuration format".
_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_IFNAME_LENGTH = 15


@dataclass(frozen=True, slots=True)
class Request:
    """One call. netns is "" where the spec lets it be missing; config is the decoded standard input; path is CNI_PATH."""

    command: str
    container_id: str
    ifname: str
    netns: str
    config: dict[str, Any]
    arguments: dict[str, str]
    path: str

    @property
    def version(self) -> str:
        return str(self.config["cniVersion"])

    @property
    def network(self) -> str:
        return str(self.config["name"])

    @property
    def runtime_config(self) -> dict[str, Any]:
        return section(self.config, "runtimeConfig")

    @property
    def previous(self) -> dict[str, Any] | None:
        """prevResult, or None where this plugin is the first of its chain."""
        return section(self.config, "prevResult") or None


def section(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object inside a configuration; {} where it is missing or null. Raises CniError for another type."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CniError(INVALID_CONFIG, f"{key} must be an object, not {type(value).__name__}")
    return value


def objects(config: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects inside a configuration; [] where it is missing or null. Raises CniError for another type."""
    value = config.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CniError(INVALID_CONFIG, f"{key} must be a list of objects")
    return value


def valid_attachments(config: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(container ID, interface name) of what GC has to keep. Raises CniError where the list is missing: that is not "nothing"."""
    if config.get("cni.dev/valid-attachments") is None:
        raise CniError(INVALID_CONFIG, "GC needs cni.dev/valid-attachments, the list of what is to be kept")
    return {(str(item.get("containerID")), str(item.get("ifname"))) for item in objects(config, "cni.dev/valid-attachments")}


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CniError(INVALID_CONFIG, f"{key} must be true or false, not {value!r}")
    return value


def number(config: Mapping[str, Any], key: str, default: int = 0) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CniError(INVALID_CONFIG, f"{key} must be a number, not {value!r}")
    return value


def decode(stdin: bytes) -> dict[str, Any]:
    """The configuration of standard input, whatever its version. Raises CniError for what is no JSON object."""
    try:
        config = json.loads(stdin)
    except (ValueError, RecursionError) as error:
        raise CniError(DECODING_FAILURE, "the network configuration on standard input is not JSON", str(error)) from None
    if not isinstance(config, dict):
        raise CniError(DECODING_FAILURE, f"the network configuration must be an object, not {type(config).__name__}")
    return config


def parse(environ: Mapping[str, str], config: dict[str, Any]) -> Request:
    """The request of a call other than VERSION. Raises CniError for what is missing or malformed."""
    command = environ.get("CNI_COMMAND", "")
    version = config.get("cniVersion")
    if version not in SUPPORTED_VERSIONS:
        raise CniError(
            INCOMPATIBLE_VERSION, f"incompatible CNI version {version!r}", f"supported versions: {', '.join(SUPPORTED_VERSIONS)}"
        )
    name = config.get("name")
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise CniError(INVALID_CONFIG, f"name {name!r}: a network name has letters, digits, '_', '.' and '-'")
    container_id, ifname, netns = (environ.get(f"CNI_{key}", "") for key in ("CONTAINERID", "IFNAME", "NETNS"))
    if command in ("ADD", "DEL", "CHECK"):
        if not _IDENTIFIER.fullmatch(container_id):
            raise CniError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID {container_id!r} is missing or has forbidden characters")
        if not 0 < len(ifname) <= _IFNAME_LENGTH or ifname in (".", "..") or re.search(r"[/:\s]", ifname):
            raise CniError(INVALID_ENVIRONMENT, f"CNI_IFNAME {ifname!r} is no valid interface name")
        if command != "DEL" and not netns:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_NETNS is missing; {command} needs it")
    arguments = _arguments(environ.get("CNI_ARGS", ""))
    return Request(command, container_id, ifname, netns, config, arguments, environ.get("CNI_PATH", ""))


def _arguments(text: str) -> dict[str, str]:
    """CNI_ARGS: `KEY=VALUE;KEY=VALUE`."""
    arguments = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {pair!r} is no KEY=VALUE")
        arguments[key] = value
    return arguments

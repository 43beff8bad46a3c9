"""What the daemon is told: its folders, and the configuration file with runtimes and CNI plugins.

The file is YAML:

    handlers:
      lowrt: {entry: "lowrt.main:run"}          # called by the monitors, in forked workers
      crun: {path: /usr/bin/crun, args: []}     # run as a process
      runsc: {args: [--network=host], sandbox: true}  # which puts all containers of a pod into one sandbox (runsc's default)
    default_handler: lowrt
    cgroup_driver: cgroupfs                     # what kubelets are told to use: cgroupfs or systemd
    streaming: {address: 127.0.0.1, port: 0}    # of exec, attach and port-forward; with `cert` and `key` by TLS
    cni_template: /etc/highrt/cni.conflist      # what a network configuration is made from, see highrt.cni.template
    policy: /etc/containers/policy.json         # which images may be pulled, see highrt.images.trust
    registries: /etc/containers/registries.d    # where their signatures are
    cni:
      bridge: "nodenet.cni.warm:run"            # plugins that a warm helper calls, in place of executables

Other packages appear here as dotted names only: any runtime or plugin can take their place.
"""

import shutil
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml

from highrt.images.trust import Places
from highrt.pods.manager import default_handlers
from highrt.pods.model import Handler
from highrt.streaming.server import Endpoint

_CNI_ENTRY = "nodenet.cni.warm:run"
_KEYS = {"handlers", "default_handler", "cgroup_driver", "streaming", "cni", "cni_template", "policy", "registries"}
_HANDLER_KEYS = ("path", "entry", "args", "root", "sandbox")
_CNI_TYPES = ("bridge", "host-local", "portmap", "loopback")


class InvalidConfig(Exception):
    """The configuration file cannot be used; the text says what to change."""


@dataclass(frozen=True)
class Config:
    """handlers: runtimes by name. cni_entries: dotted names of CNI plugins, by type. cgroup_driver: of kubelets, see CRI's
    RuntimeConfig; a pod's own parent tells which one it is of."""

    root: Path
    state: Path
    handlers: dict[str, Handler] = field(default_factory=dict)
    default_handler: str = "lowrt"
    cni_entries: dict[str, str] = field(default_factory=dict)
    cgroup_driver: str = "cgroupfs"
    streaming: Endpoint = field(default_factory=Endpoint)
    cni_template: Path | None = None
    trust: Places = field(default_factory=Places)


def load(root: Path, state: Path, file: Path | None) -> Config:
    """The configuration: the built-in one, with what the file says in its place. Raises InvalidConfig."""
    content: Any = {}
    if file is not None:
        try:
            content = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InvalidConfig(f"--config {file}: {error}") from error
    _is(content, dict, f"--config {file}", "a mapping")
    if unknown := set(content) - _KEYS:
        raise InvalidConfig(f"--config {file}: {', '.join(sorted(unknown))}: not known; there are {', '.join(sorted(_KEYS))}")
    handlers = default_handlers()
    for name in ("runc", "crun", "runsc"):
        if shutil.which(name):
            handlers[name] = _handler(name, {}, state)
    for name, value in _is(content.get("handlers", {}), dict, f"--config {file}: handlers", "a mapping").items():
        handlers[str(name)] = _handler(str(name), _is(value or {}, dict, f"--config {file}: handlers.{name}", "a mapping"), state)
    default = content.get("default_handler", "lowrt")
    if default not in handlers:
        raise InvalidConfig(f"--config {file}: default_handler {default!r} is none of {', '.join(handlers)}")
    driver = content.get("cgroup_driver", "cgroupfs")
    if driver not in ("cgroupfs", "systemd"):
        raise InvalidConfig(f"--config {file}: cgroup_driver {driver!r}: must be cgroupfs or systemd")
    cni = _is(content.get("cni", {}), dict, f"--config {file}: cni", "a mapping of plugin types to dotted names")
    entries = dict.fromkeys(_CNI_TYPES, _CNI_ENTRY) | {str(kind): str(entry) for kind, entry in cni.items() if entry}
    # an empty name takes a built-in plugin away: its executable is used
    for kind in [kind for kind, entry in cni.items() if not entry]:
        entries.pop(str(kind), None)
    streaming = _endpoint(_is(content.get("streaming", {}), dict, f"--config {file}: streaming", "a mapping"))
    template = content.get("cni_template")
    trust = Places(*(Path(str(content.get(key) or getattr(Places, key))) for key in ("policy", "registries")))
    if content.get("policy") and not trust.policy.is_file():
        # Only the built-in one may be missing: nobody names a policy that is to have no effect.
        raise InvalidConfig(f"--config {file}: policy {trust.policy}: there is no such file")
    return Config(root, state, handlers, default, entries, driver, streaming, Path(str(template)) if template else None, trust)


def _endpoint(value: dict[str, Any]) -> Endpoint:
    if unknown := set(value) - {"address", "port", "cert", "key", "client_ca"}:
        raise InvalidConfig(f"streaming: {', '.join(sorted(unknown))}: not known; there are address, port, cert, key, client_ca")
    address, port = str(value.get("address", "127.0.0.1")), _is(value.get("port", 0), int, "streaming: port", "a number")
    cert, key, authorities = (Path(str(value[name])) if value.get(name) else None for name in ("cert", "key", "client_ca"))
    try:
        loopback = ip_address(address).is_loopback
    except ValueError:
        raise InvalidConfig(f"streaming: address {address!r}: must be an IP address") from None
    if bool(cert) != bool(key) or (authorities and not cert):
        raise InvalidConfig("streaming: cert and key belong together, and client_ca to them")
    if not loopback and not cert:
        raise InvalidConfig(f"streaming: address {address} can be reached from outside: give cert and key, for TLS")
    return Endpoint(address, port, cert, key, authorities)


def _handler(name: str, value: dict[str, Any], state: Path) -> Handler:
    if unknown := set(value) - set(_HANDLER_KEYS):
        raise InvalidConfig(f"handler {name}: {', '.join(sorted(unknown))}: not known; there are {', '.join(_HANDLER_KEYS)}")
    args = _is(value.get("args", []), list, f"handler {name}: args", "a list")
    path = str(value.get("path") or shutil.which(name) or name)
    return Handler(
        name=name,
        path=path,
        root=str(value.get("root") or state / "runtimes" / name),
        args=tuple(str(item) for item in args),
        entry=str(value["entry"]) if value.get("entry") else None,
        sandbox=_is(value.get("sandbox", Path(path).name == "runsc"), bool, f"handler {name}: sandbox", "true or false"),
    )


def _is(value: Any, kind: type, what: str, wanted: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidConfig(f"{what} must be {wanted}, not {type(value).__name__}")
    return value

"""What a kubelet is told: flags over a KubeletConfiguration (kubelet.config.k8s.io/v1beta1) over defaults.

https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/ ; fields that this kubelet does not know are
named in a warning and otherwise left alone, so that a real cluster's file works.
"""

import re
import socket
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from strata.kubeclient.quantity import to_bytes

DEFAULT_ENDPOINT = "unix:///run/highrt/highrt.sock"
DEFAULT_ROOT = "/var/lib/strata/default/kubelet"


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names the file and the field."""


@dataclass(frozen=True)
class Config:
    """Sizes in bytes. node_ip "" stands for the address of the default route's interface."""

    root: Path = Path(DEFAULT_ROOT)
    kubeconfig: Path = Path()
    node_name: str = ""
    node_ip: str = ""
    endpoint: str = DEFAULT_ENDPOINT
    address: str = "0.0.0.0"
    port: int = 10250
    cluster_dns: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    resolv_conf: str = "/etc/resolv.conf"
    cgroup_root: str = "/"
    pod_logs: Path = Path("/var/log/pods")
    max_pods: int = 110
    log_max_bytes: int = 10 * 1024 * 1024
    log_max_files: int = 5
    client_ca: Path | None = None
    anonymous: bool = False

    def with_flags(self, **flags: Any) -> "Config":
        """This configuration with the flags that were given (not None)."""
        return replace(self, **{name: value for name, value in flags.items() if value is not None})

    def resolved(self) -> "Config":
        """With node name and address found where they were not given. Raises ConfigError where there is no address."""
        name = (self.node_name or socket.gethostname()).lower()
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name) or len(name) > 253:
            raise ConfigError(f"node name {name!r}: must be a DNS name in lower case; give one with --hostname-override")
        return replace(self, node_name=name, node_ip=self.node_ip or _own_address())


# KubeletConfiguration's name → ours, and how its value is read.
_FIELDS: dict[str, tuple[str, Any]] = {
    "clusterDNS": ("cluster_dns", tuple),
    "clusterDomain": ("cluster_domain", str),
    "resolvConf": ("resolv_conf", str),
    "cgroupRoot": ("cgroup_root", str),
    "podLogsDir": ("pod_logs", Path),
    "maxPods": ("max_pods", int),
    "containerLogMaxSize": ("log_max_bytes", to_bytes),
    "containerLogMaxFiles": ("log_max_files", int),
    "containerRuntimeEndpoint": ("endpoint", str),
    "address": ("address", str),
    "port": ("port", int),
}
_UNDERSTOOD = {"apiVersion", "kind", "authentication", *_FIELDS}


def parse(document: Any, base: Config, *, source: str) -> tuple[Config, list[str]]:
    """A KubeletConfiguration over a base, and the names of the fields that mean nothing to us.

    source: the file's name, for errors. Raises ConfigError.
    """
    if not isinstance(document, dict) or document.get("kind", "KubeletConfiguration") != "KubeletConfiguration":
        raise ConfigError(f"{source}: must be a KubeletConfiguration of kubelet.config.k8s.io/v1beta1")
    values: dict[str, Any] = {}
    for name, (own, read) in _FIELDS.items():
        if document.get(name) not in (None, ""):
            try:
                values[own] = read(document[name])
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{source}: {name}: {error}") from error
    authentication = document.get("authentication") or {}
    if ca := (authentication.get("x509") or {}).get("clientCAFile"):
        values["client_ca"] = Path(ca)
    values["anonymous"] = bool((authentication.get("anonymous") or {}).get("enabled", False))
    assert values.keys() <= {f.name for f in fields(Config)}
    return replace(base, **values), sorted(document.keys() - _UNDERSTOOD)


def load(path: Path, base: Config) -> tuple[Config, list[str]]:
    """A KubeletConfiguration file over a base. Raises ConfigError."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    return parse(document, base, source=str(path))


def _own_address() -> str:
    """The address that packets to elsewhere would carry; nothing is sent to find it."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        probe.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737): connect(2) only looks up the route
        return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"the node's address cannot be told ({error.strerror}): give it with --node-ip") from error
    finally:
        probe.close()

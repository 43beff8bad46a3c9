"""Where a registry is reached: itself, or the mirrors that `DIR/HOST[:PORT]/hosts.toml` names.

The files are containerd's (its docs/hosts.md): `server`, and tables `[host."URL"]` with `capabilities`, `ca`, `client`,
`skip_verify`, `header`, `override_path`. `DIR/_default/hosts.toml` is for registries without a folder.
"""

import ipaddress
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from highrt.images.errors import InvalidConfiguration

PULL, RESOLVE, PUSH = "pull", "resolve", "push"
_ALL = frozenset({PULL, RESOLVE, PUSH})
_KNOWN = {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
_DOCKER_HUB = "registry-1.docker.io"


@dataclass(frozen=True)
class Host:
    """One place to ask.

    url: with the /v2 path. own: whether it is the registry that the image's name says (which credentials are for), and
    not a mirror. try_http: plain http is used where it does not answer TLS.
    """

    url: str
    capabilities: frozenset[str] = _ALL
    own: bool = True
    try_http: bool = False
    skip_verify: bool = False
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str | None], ...] = ()
    header: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def authority(self) -> str:
        return urlsplit(self.url).netloc

    def tls(self) -> ssl.SSLContext:
        """Raises InvalidConfiguration where a file cannot be read."""
        context = ssl.create_default_context()
        try:
            for file in self.ca:
                context.load_verify_locations(file)
            for certificate, key in self.client:
                context.load_cert_chain(certificate, key)
        except OSError as error:
            raise InvalidConfiguration(f"registry {self.authority}: cannot load {', '.join(self.ca)}: {error}") from None
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def hosts_for(registry: str, folder: Path | None) -> list[Host]:
    """The places to ask for a registry's images, in order. Raises InvalidConfiguration, naming the file."""
    file = _file(registry, folder) if folder else None
    if file is None:
        return [_default(registry)]
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidConfiguration(f"{file}: {error}") from None
    hosts = [_host(url, table, file, registry) for url, table in _tables(values, file)]
    if isinstance(values.get("server"), str):
        own = {key: value for key, value in values.items() if key in _KNOWN}
        hosts.append(_host(values["server"], own, file, registry))
    elif "server" in values:
        raise InvalidConfiguration(f"{file}: server must be a URL")
    else:
        hosts.append(_default(registry))
    return hosts


def _file(registry: str, folder: Path) -> Path | None:
    host, colon, port = registry.rpartition(":")
    names = [registry, f"{host}_{port}_"] if colon and port.isdigit() else [registry]
    for name in (*names, "_default"):
        if (file := folder / name / "hosts.toml").is_file():
            return file
    return None


def _tables(values: dict[str, Any], file: Path) -> list[tuple[str, dict[str, Any]]]:
    hosts = values.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(table, dict) for table in hosts.values()):
        raise InvalidConfiguration(f'{file}: hosts are written as tables, [host."https://mirror.example"]')
    return list(hosts.items())


def _host(url: str, table: dict[str, Any], file: Path, registry: str) -> Host:
    if "://" not in url:
        url = f"{'http' if is_loopback(url) else 'https'}://{url}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidConfiguration(f"{file}: {url!r} is not an http or https URL of a registry")
    if unknown := set(table) - _KNOWN:
        raise InvalidConfiguration(f"{file}: host {url!r} has unknown keys {', '.join(sorted(unknown))}")
    capabilities = table.get("capabilities", sorted(_ALL))
    if not isinstance(capabilities, list) or not set(capabilities) <= _ALL:
        raise InvalidConfiguration(f"{file}: capabilities of {url!r} must be a list of pull, resolve, push")
    path = parts.path.rstrip("/")
    if not table.get("override_path") and not path.endswith("/v2"):
        path += "/v2"

    def file_name(value: str) -> str:
        return str(file.parent / value)

    ca = table.get("ca", [])
    clients = table.get("client", [])
    pairs = []
    for item in [clients] if isinstance(clients, str) else clients:
        certificate, key = (item, None) if isinstance(item, str) else item
        pairs.append((file_name(certificate), file_name(key) if key else None))
    headers = {
        name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in table.get("header", {}).items()
    }
    return Host(
        url=f"{parts.scheme}://{parts.netloc}{path}",
        capabilities=frozenset(capabilities),
        own=parts.netloc in (registry, _default_authority(registry)),
        try_http=False,
        skip_verify=bool(table.get("skip_verify", False)),
        ca=tuple(file_name(name) for name in ([ca] if isinstance(ca, str) else ca)),
        client=tuple(pairs),
        header=headers,
    )


def _default_authority(registry: str) -> str:
    return _DOCKER_HUB if registry == "docker.io" else registry


def _default(registry: str) -> Host:
    return Host(url=f"https://{_default_authority(registry)}/v2", try_http=is_loopback(registry))


def is_loopback(registry: str) -> bool:
    """Whether a host[:port] is this machine's loopback: 127.0.0.0/8, ::1 or localhost."""
    host = urlsplit(f"//{registry}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

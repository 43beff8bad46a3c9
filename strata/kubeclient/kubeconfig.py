"""Where a cluster is and who we are to it: a kubeconfig's current context, read again when one of its files changes.

A certificate or token that is renewed on disk is in use from the next request on; nothing has to be started again.
https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
"""

import base64
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.kubeclient.errors import KubeconfigError

_CHECK_SECONDS = 1.0


@dataclass(frozen=True)
class Endpoint:
    """How to reach the API server now. ssl is None for plain HTTP; token is None where a certificate is who we are."""

    server: str
    ssl: ssl.SSLContext | None
    token: str | None
    namespace: str = "default"


class Kubeconfig:
    """The current context of a kubeconfig file.

    Raises KubeconfigError for a file that cannot be read or lacks something, at once and from `endpoint`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._files: dict[Path, tuple[int, int] | None] = {}
        self._checked = 0.0
        self._endpoint = self._load()

    def endpoint(self) -> Endpoint:
        """The endpoint, loaded again if a file behind it has changed.

        A file that is half-way renewed (a certificate without its key yet) leaves the last good one in use.
        """
        now = time.monotonic()
        if now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            if any(_signature(path) != seen for path, seen in self._files.items()):
                try:
                    self._endpoint = self._load()
                except (KubeconfigError, ssl.SSLError):
                    self._files = dict.fromkeys(self._files)
        return self._endpoint

    def _load(self) -> Endpoint:
        import yaml

        self._files = {}
        try:
            document = yaml.safe_load(self._read(self.path))
        except yaml.YAMLError as error:
            raise KubeconfigError(f"kubeconfig {self.path} is not valid YAML: {error}") from None
        if not isinstance(document, dict):
            raise KubeconfigError(f"kubeconfig {self.path} is empty: clusters, users and contexts are needed")
        context = self._named(document, "context", document.get("current-context") or "")
        cluster = self._named(document, "cluster", context.get("cluster") or "")
        user = self._named(document, "user", context["user"]) if context.get("user") else {}
        server = str(cluster.get("server") or "").rstrip("/")
        if not server.startswith(("https://", "http://")):
            raise KubeconfigError(f"kubeconfig {self.path}: server {server!r} must start with https:// or http://")
        tls = self._tls(cluster, user) if server.startswith("https://") else None
        return Endpoint(server, tls, self._token(user), context.get("namespace") or "default")

    def _named(self, document: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
        for entry in document.get(f"{kind}s") or ():
            if entry.get("name") == name:
                return entry.get(kind) or {}
        raise KubeconfigError(f"kubeconfig {self.path}: {kind} {name!r} is named but not defined")

    def _token(self, user: Mapping[str, Any]) -> str | None:
        if user.get("tokenFile"):
            return self._read(self._resolve(user["tokenFile"])).decode().strip()
        return user.get("token") or None

    def _tls(self, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority = self._material(cluster, "certificate-authority")
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        elif authority:
            # Only this CA: what the machine trusts besides is no part of the cluster.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                context.load_verify_locations(cadata=authority.decode())
            except (ssl.SSLError, ValueError) as error:
                raise KubeconfigError(f"kubeconfig {self.path}: certificate-authority is no PEM certificate: {error}") from None
        certificate, key = self._material(user, "client-certificate"), self._material(user, "client-key")
        if certificate and key:
            with _in_memory(certificate + b"\n" + key) as file:
                try:
                    context.load_cert_chain(file)
                except ssl.SSLError as error:
                    raise KubeconfigError(f"kubeconfig {self.path}: client certificate and key do not fit: {error}") from None
        elif certificate or key:
            raise KubeconfigError(f"kubeconfig {self.path}: client-certificate and client-key are needed together")
        return context

    def _material(self, section: Mapping[str, Any], name: str) -> bytes | None:
        if inline := section.get(f"{name}-data"):
            try:
                return base64.b64decode(inline, validate=True)
            except ValueError:
                raise KubeconfigError(f"kubeconfig {self.path}: {name}-data is not base64") from None
        return self._read(self._resolve(section[name])) if section.get(name) else None

    def _resolve(self, name: str) -> Path:
        return self.path.parent / name

    def _read(self, path: Path) -> bytes:
        self._files[path] = _signature(path)
        try:
            return path.read_bytes()
        except OSError as error:
            raise KubeconfigError(f"kubeconfig {self.path}: cannot read {path}: {error.strerror}") from None


def _signature(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path at which OpenSSL can read a key that must not be written to a disk."""
    descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)

"""A person's credentials for registries, where docker and podman keep them: in files, or with credential helpers.

Read are docker's config.json, then podman's auth.json (containers-auth.json(5)). Written is the file that REGISTRY_AUTH_FILE
names, else docker's; where it names a helper for the registry (`credHelpers`, `credsStore`), that keeps them.
"""

import base64
import binascii
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click

from highrt.cli.connection import DaemonError
from strata.protocols import highrt_pb2 as api

HUB = "docker.io"
_HUB_SERVER = "https://index.docker.io/v1/"
_HELPER_SECONDS = 30
_TOKEN_USER = "<token>"
"""The user name by which a helper says that the secret is an identity token."""


def credentials(image: str, given: str = "") -> api.Credentials:
    """`--creds`, or what is kept for the image's registry; empty where there is nothing.

    Raises click.BadParameter, DaemonError.
    """
    if given:
        username, colon, password = given.partition(":")
        if not colon:
            raise click.BadParameter("--creds: write USER:PASSWORD")
        return api.Credentials(username=username, password=password)
    first, _, rest = image.partition("/")
    is_registry = bool(rest) and ("." in first or ":" in first or first == "localhost")
    registry = first if is_registry else HUB
    for file in _files():
        kept = _read(file)
        if helper := _helper(kept, registry):
            if found := _ask(helper, "get", _server(registry)):
                return found
        elif found := _in_file(kept, registry, rest if is_registry else image):
            return found
    return api.Credentials()


def store(registry: str, found: api.Credentials) -> Path:
    """Keeps credentials; returns the file, which may name the helper that has them. Raises DaemonError."""
    file = _own_file()
    kept = _read(file)
    if helper := _helper(kept, registry):
        name, secret = (_TOKEN_USER, found.identity_token) if found.identity_token else (found.username, found.password)
        _ask(helper, "store", json.dumps({"ServerURL": _server(registry), "Username": name, "Secret": secret}))
        return file
    entry = {"auth": base64.b64encode(f"{found.username}:{found.password}".encode()).decode()}
    if found.identity_token:
        entry["identitytoken"] = found.identity_token
    kept.setdefault("auths", {})[_server(registry)] = entry
    _write(file, kept)
    return file


def erase(registry: str) -> bool:
    """Forgets a registry's credentials in all files; whether there were any. Raises DaemonError."""
    erased = False
    for file in _files():
        kept = _read(file)
        if helper := _helper(kept, registry):
            erased = bool(_ask(helper, "get", _server(registry))) or erased
            _ask(helper, "erase", _server(registry))
        known = kept.get("auths") or {}
        if names := [name for name in _names(registry) if name in known]:
            for name in names:
                del known[name]
            _write(file, kept)
            erased = True
    return erased


def registries() -> list[str]:
    """All that have credentials in the files."""
    found = {name.removeprefix("https://").rstrip("/") for file in _files() for name in _read(file).get("auths") or {}}
    return sorted(HUB if name == "index.docker.io/v1" else name for name in found)


def _own_file() -> Path:
    return Path(os.environ.get("REGISTRY_AUTH_FILE") or _docker_file())


def _docker_file() -> str:
    return os.path.join(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"), "config.json")


def _files() -> list[Path]:
    """In the order in which they are asked."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    podman = f"{runtime}/containers/auth.json" if "XDG_RUNTIME_DIR" in os.environ else f"{runtime}/auth.json"
    names = [
        os.environ.get("REGISTRY_AUTH_FILE", ""),
        _docker_file(),
        podman,
        os.path.expanduser("~/.config/containers/auth.json"),
    ]
    return [Path(name) for name in dict.fromkeys(names) if name]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text() or "{}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DaemonError(f"cannot read the credentials in {file}: {error}") from None
    if not isinstance(found, dict):
        raise DaemonError(f"cannot read the credentials in {file}: it is no JSON object")
    return found


def _write(file: Path, kept: dict[str, Any]) -> None:
    """Whole or not at all, and for nobody else's eyes. A link to the file stays one."""
    try:
        file = file.resolve()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, fresh = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
        try:
            with open(descriptor, "w") as out:
                out.write(json.dumps(kept, indent="\t") + "\n")
                out.flush()
                os.fsync(out.fileno())
            os.replace(fresh, file)
        except BaseException:
            os.unlink(fresh)
            raise
    except OSError as error:
        raise DaemonError(f"cannot keep the credentials in {file}: {error}") from None


def _server(registry: str) -> str:
    """The name that a registry's credentials have."""
    return _HUB_SERVER if registry == HUB else registry


def _names(registry: str) -> list[str]:
    names = [registry, f"https://{registry}", f"https://{registry}/", f"http://{registry}"]
    return [_HUB_SERVER, *names] if registry == HUB else names


def _in_file(kept: dict[str, Any], registry: str, path: str) -> api.Credentials | None:
    """podman keeps some for a repository or what it lies in: the longest name counts."""
    known = kept.get("auths") or {}
    parts = path.partition("@")[0].rpartition(":")[0] or path
    below = parts.split("/")
    names = [f"{registry}/{'/'.join(below[:count])}" for count in range(len(below), 0, -1)]
    for name in (*names, *_names(registry)):
        entry = known.get(name)
        if isinstance(entry, dict):
            try:
                username, _, password = base64.b64decode(entry.get("auth") or "").decode().partition(":")
            except (ValueError, binascii.Error):
                raise DaemonError(f"the credentials for {name} are no base64: log in again (highrt login {registry})") from None
            return api.Credentials(username=username, password=password, identity_token=entry.get("identitytoken") or "")
    return None


def _helper(kept: dict[str, Any], registry: str) -> str:
    """The name of the credential helper that has a registry's credentials, or ""."""
    return str((kept.get("credHelpers") or {}).get(registry) or kept.get("credsStore") or "")


def _ask(helper: str, action: str, said: str) -> api.Credentials | None:
    """Runs a credential helper (docker-credential-helpers' protocol). None where it has nothing. Raises DaemonError."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, action], input=said, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False)
    except FileNotFoundError:
        raise DaemonError(
            f"the credential helper {program} is not on the PATH: install it, or take it out of config.json"
        ) from None
    except subprocess.TimeoutExpired:
        raise DaemonError(f"the credential helper {program} did not answer within {_HELPER_SECONDS} s") from None
    if done.returncode:
        # What it prints may hold what it was given.
        if "not found" in done.stdout.lower() and action != "store":
            return None
        raise DaemonError(f"the credential helper {program} failed ({action}, status {done.returncode})")
    if action != "get":
        return None
    try:
        found = json.loads(done.stdout)
        name, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError):
        raise DaemonError(f"the credential helper {program} answered with no credentials") from None
    if name == _TOKEN_USER:
        return api.Credentials(identity_token=secret)
    return api.Credentials(username=name, password=secret)

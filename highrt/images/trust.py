"""Which images may be pulled: containers-policy.json(5), as podman and skopeo read it.

The requirements of the most special scope that fits an image must all be met: `insecureAcceptAnything`, `reject`, or `signedBy`,
a simple signature (containers-signature(5)) by one of some GPG keys, found in the lookaside store that registries.d(5) names.
Others (`sigstoreSigned`) are refused by name: what cannot be checked is not taken.
"""

import asyncio
import base64
import binascii
import json
import re
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from highrt.images.errors import ImageRefused, InvalidConfiguration
from highrt.images.reference import Reference

Fetch = Callable[[str], Awaitable[bytes | None]]
"""Gets what an http address has, None where there is nothing."""

_SIGNATURES = 20
_LARGEST_SIGNATURE = 4 << 20
_GPG_SECONDS = 30
_ARMOR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----.*?\n\r?\n(.*?)\n(=[A-Za-z0-9+/]{4}\r?\n)?-----END", re.DOTALL)
_KIND = "atomic container signature"


@dataclass(frozen=True)
class Places:
    """policy: the file; none there accepts everything. registries: the folder that names lookaside stores."""

    policy: Path = Path("/etc/containers/policy.json")
    registries: Path = Path("/etc/containers/registries.d")


class Trust:
    """The policy, read again for each pull: an administrator's change holds at once."""

    def __init__(self, places: Places, fetch: Fetch) -> None:
        self._places, self._fetch = places, fetch

    async def check(self, name: Reference, digests: Sequence[str]) -> None:
        """Whether an image may be used. digests: those that a signature may be for, of its index and its manifest.

        Raises ImageRefused with the reason, InvalidConfiguration.
        """
        for requirement in self._requirements(name):
            kind = requirement.get("type")
            if kind == "insecureAcceptAnything":
                continue
            if kind == "reject":
                raise ImageRefused(f"{name}: the policy {self._places.policy} rejects images of that name")
            if kind != "signedBy":
                raise ImageRefused(f"{name}: the policy {self._places.policy} wants {kind!r}, which highrt cannot check")
            await self._check_signed(name, digests, requirement)

    def _requirements(self, name: Reference) -> list[dict[str, Any]]:
        try:
            policy = _checked(json.loads(self._places.policy.read_bytes(), object_pairs_hook=_unique))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidConfiguration(f"the policy {self._places.policy} cannot be used: {error}") from None
        scopes = policy.get("transports", {}).get("docker", {})
        return next((scopes[scope] for scope in _scopes(name) if scope in scopes), policy["default"])

    async def _check_signed(self, name: Reference, digests: Sequence[str], requirement: dict[str, Any]) -> None:
        if requirement.get("keyType", "GPGKeys") != "GPGKeys":
            raise InvalidConfiguration(f"{self._places.policy}: keyType {requirement['keyType']!r}: only GPGKeys are known")
        keyring = await asyncio.to_thread(_keyring, requirement)
        store = await asyncio.to_thread(self._lookaside, name)
        if not store:
            raise ImageRefused(
                f"{name}: the policy wants a signature, and no lookaside store is named in {self._places.registries}"
            )
        reasons = []
        for digest in digests:
            for number in range(1, _SIGNATURES + 1):
                signature = await self._signature(f"{store}/{name.repository}@{digest.replace(':', '=', 1)}/signature-{number}")
                if signature is None:
                    break
                try:
                    _check_claim(await _verified(signature, keyring), name, digest, requirement.get("signedIdentity") or {})
                    return
                except ImageRefused as error:
                    reasons.append(str(error))
        raise ImageRefused(f"{name}: the policy wants a signature: {'; '.join(reasons) or f'there is none in {store}'}")

    def _lookaside(self, name: Reference) -> str:
        """The store of an image's signatures, as the most special scope says."""
        default, found = "", dict[str, str]()
        for file in sorted(self._places.registries.glob("*.yaml")):
            try:
                content = yaml.safe_load(file.read_text()) or {}
                default = _store(content.get("default-docker")) or default
                found |= {scope: store for scope, entry in (content.get("docker") or {}).items() if (store := _store(entry))}
            except (OSError, yaml.YAMLError, AttributeError) as error:
                raise InvalidConfiguration(f"{file} cannot be used: {error}") from None
        return next((found[scope] for scope in _scopes(name) if scope in found), default).rstrip("/")

    async def _signature(self, address: str) -> bytes | None:
        url = urlsplit(address)
        if url.scheme in ("http", "https"):
            return await self._fetch(address)
        if url.scheme != "file":
            raise InvalidConfiguration(f"lookaside {address}: write file:///… or https://…")
        try:
            return await asyncio.to_thread(_read_some, Path(url.path))
        except FileNotFoundError:
            return None


def _scopes(name: Reference) -> list[str]:
    """The scopes that an image is in, the most special one first."""
    parts = [name.registry, *name.repository.split("/")]
    exact = f"{name.name}@{name.digest}" if name.digest else f"{name.name}:{name.tag}"
    found = [exact, *("/".join(parts[:count]) for count in range(len(parts), 0, -1))]
    labels = name.registry.partition(":")[0].split(".")  # a port does not count for wildcards, as with skopeo
    return [*found, *(f"*.{'.'.join(labels[count:])}" for count in range(1, len(labels))), ""]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a field is there twice among {', '.join(key for key, _ in pairs)}")
    return found


def _checked(policy: Any) -> dict[str, Any]:
    """As strict as the manual page wants it: a misspelt word must not let anything in. Raises ValueError."""
    if not isinstance(policy, dict) or not {"default"} <= set(policy) <= {"default", "transports"}:
        raise ValueError("it must be an object with `default`, which is needed, and `transports`")
    transports = policy.get("transports", {})
    if not isinstance(transports, dict) or not all(isinstance(scopes, dict) for scopes in transports.values()):
        raise ValueError("`transports` must be an object of objects")
    listed = {f"{transport} {scope!r}": found for transport, scopes in transports.items() for scope, found in scopes.items()}
    for what, requirements in {"default": policy["default"], **listed}.items():
        if not isinstance(requirements, list) or not requirements:
            raise ValueError(f"{what} must be a list with one requirement at least")
        for item in requirements:
            if not isinstance(item, dict) or not isinstance(item.get("type"), str):
                raise ValueError(f"{what}: a requirement must be an object with a type")
            if item["type"] in ("insecureAcceptAnything", "reject") and len(item) > 1:
                raise ValueError(f"{what}: {item['type']!r} has no further fields")
    return policy


def _store(entry: Any) -> str:
    return str(entry.get("lookaside") or entry.get("sigstore") or "") if isinstance(entry, dict) else ""


def _read_some(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST_SIGNATURE)


def _keyring(requirement: dict[str, Any]) -> bytes:
    """All keys that may sign, as gpgv(1) wants them."""
    paths = [*(requirement.get("keyPaths") or ()), *([requirement["keyPath"]] if requirement.get("keyPath") else ())]
    try:
        keys = [Path(str(path)).read_bytes() for path in paths]
        if data := requirement.get("keyData"):
            keys.append(base64.b64decode(str(data), validate=True))
        binary = b"".join(_dearmored(key) for key in keys)
    except (OSError, ValueError, binascii.Error) as error:
        raise InvalidConfiguration(f"a key of the policy cannot be read: {error}") from None
    if not binary:
        raise InvalidConfiguration("the policy wants a signature and names no key (keyPath, keyPaths or keyData)")
    return binary


def _dearmored(key: bytes) -> bytes:
    """RFC 4880, section 6.2."""
    if b"-----BEGIN PGP" not in key:
        return key
    return b"".join(base64.b64decode(body) for body, _ in _ARMOR.findall(key))


async def _verified(signature: bytes, keyring: bytes) -> dict[str, Any]:
    """What was signed. Raises ImageRefused where no key of the keyring has signed it."""
    with tempfile.TemporaryDirectory(prefix="highrt-gpg-") as folder:
        keys, signed, content = (Path(folder) / name for name in ("keys", "signature", "content"))
        keys.write_bytes(keyring)
        signed.write_bytes(signature)
        try:
            process = await asyncio.create_subprocess_exec(
                "gpgv", "--homedir", folder, "--keyring", str(keys), "--output", str(content), str(signed),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            raise InvalidConfiguration("the policy wants signatures: install gpgv, which checks them") from None
        try:
            async with asyncio.timeout(_GPG_SECONDS):
                code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
        if code != 0:
            raise ImageRefused("a signature is by none of the keys, or broken")
        try:
            claim = json.loads(content.read_bytes())
        except (OSError, ValueError):
            raise ImageRefused("a signature holds no claim about an image") from None
    critical = claim.get("critical") if isinstance(claim, dict) else None
    if not isinstance(critical, dict) or critical.get("type") != _KIND:
        raise ImageRefused("a signature holds no claim about an image")
    return critical


def _check_claim(critical: dict[str, Any], name: Reference, digest: str, identity: dict[str, Any]) -> None:
    """Raises ImageRefused where what was signed is another image, or goes by another name."""
    signed = str((critical.get("image") or {}).get("docker-manifest-digest", ""))
    if signed != digest:
        raise ImageRefused(f"a signature is for {signed or 'nothing'}, not for {digest}")
    claimed = str((critical.get("identity") or {}).get("docker-reference", ""))
    repository = claimed.partition("@")[0]
    if ":" in repository.rpartition("/")[2]:
        repository = repository.rpartition(":")[0]
    kind = identity.get("type", "matchRepoDigestOrExact")
    if kind == "matchRepository" or (kind == "matchRepoDigestOrExact" and name.digest):
        right = repository == name.name
    elif kind in ("matchExact", "matchRepoDigestOrExact"):
        right = claimed == f"{name.name}:{name.tag}"
    elif kind == "exactReference":
        right = claimed == identity.get("dockerReference")
    elif kind == "exactRepository":
        right = repository == identity.get("dockerRepository")
    else:
        raise InvalidConfiguration(f"signedIdentity {kind!r} is not known")
    if not right:
        raise ImageRefused(f"a signature is for the name {claimed!r}")

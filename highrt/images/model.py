"""What an image is, in types: descriptors, configuration, platforms, and what a pull reports on its way."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from highrt.images.errors import InvalidImage

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
FOREIGN_LAYERS = ("nondistributable", "foreign.diff")

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}


@dataclass(frozen=True)
class Auth:
    """Credentials for a registry, as CRI's AuthConfig has them.

    server_address: the only host they may be sent to; empty means the registry in the image's name. identity_token is an
    OAuth2 refresh token, registry_token a bearer token that is sent as it is.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)


@dataclass(frozen=True)
class Progress:
    """Where a pull or push stands. layer: a blob's digest; phase: resolving, waiting, downloading, unpacking, pushing, done.

    total_bytes is 0 while it is not known.
    """

    reference: str
    layer: str
    done_bytes: int
    total_bytes: int
    phase: str


@dataclass(frozen=True)
class HistoryEntry:
    """One of an image's history. diff_id, bytes: of its layer, packed; "" and 0 where it has none."""

    diff_id: str
    bytes: int
    created: str = ""
    created_by: str = ""
    comment: str = ""


@dataclass(frozen=True)
class Usage:
    """What images take on disk: blobs and unpacked layers, without the writable snapshots of containers."""

    path: str
    bytes: int
    inodes: int


@dataclass(frozen=True)
class Applied:
    """What unpacking a layer came to. complete: it describes its root and every directory, and takes nothing from those below."""

    diff_id: str
    bytes: int
    inodes: int
    complete: bool


@dataclass(frozen=True)
class Packed:
    """A layer's blob: of the file itself (digest, size), and of the tar inside (diff_id). entries 0: an empty layer."""

    digest: str
    size: int
    diff_id: str
    entries: int


@dataclass(frozen=True)
class Descriptor:
    """Names content by digest (image-spec, descriptor.md)."""

    media_type: str
    digest: str
    size: int
    platform: Mapping[str, Any] | None = None
    annotations: Mapping[str, str] | None = None

    @classmethod
    def from_json(cls, value: Any, what: str) -> "Descriptor":
        """Checks a descriptor that came from outside. Raises InvalidImage."""
        if not isinstance(value, dict):
            raise InvalidImage(f"{what}: a descriptor must be an object, not {type(value).__name__}")
        digest, size, media = value.get("digest"), value.get("size"), value.get("mediaType", "")
        if not isinstance(digest, str) or not is_digest(digest):
            raise InvalidImage(f"{what}: {digest!r} is not a sha256 or sha512 digest")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
            raise InvalidImage(f"{what}: the size of {digest} must be a number of bytes, not {size!r}")
        if not isinstance(media, str):
            raise InvalidImage(f"{what}: the media type of {digest} must be a text, not {media!r}")
        platform, annotations = value.get("platform"), value.get("annotations")
        return cls(
            media,
            digest,
            size,
            platform if isinstance(platform, dict) else None,
            annotations if isinstance(annotations, dict) else None,
        )

    def to_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def is_digest(text: str) -> bool:
    """Whether the text is a digest of an algorithm that is understood here. It is safe as a file name then."""
    algorithm, _, digits = text.partition(":")
    wanted = {"sha256": 64, "sha512": 128}.get(algorithm)
    return len(digits) == wanted and all(c in "0123456789abcdef" for c in digits)


@dataclass(frozen=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def host(cls) -> "Platform":
        machine = os.uname().machine
        architecture = _ARCHITECTURES.get(machine, machine)
        return cls("linux", architecture, {"arm64": "v8", "arm": "v7"}.get(architecture, ""))

    @classmethod
    def parse(cls, text: str | None) -> "Platform":
        """`linux/arm64/v8` or `linux/arm64`; None is the host's. Raises InvalidImage."""
        if not text:
            return cls.host()
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise InvalidImage(f"platform {text!r}: write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, like linux/arm64/v8")
        return cls(parts[0], parts[1], parts[2] if len(parts) == 3 else {"arm64": "v8"}.get(parts[1], ""))

    def rank(self, offered: Mapping[str, Any]) -> int | None:
        """How well an index's platform fits: None not at all, else the smaller the better.

        A variant fits when it is the same, when it is not named, or when it is an older one of the same kind (an arm v7
        runs v6).
        """
        if offered.get("os", "linux") != self.os or offered.get("architecture") != self.architecture:
            return None
        variant = str(offered.get("variant", ""))
        if variant == self.variant or (self.architecture == "arm64" and variant == "" and self.variant == "v8"):
            return 0
        if not variant:
            return 1
        ours, theirs = _number(self.variant), _number(variant)
        if ours is None or theirs is None or theirs > ours:
            # an amd64 without a variant is v1; newer micro-architectures cannot be assumed
            return 2 if not self.variant and theirs == 1 else None
        return 2 + ours - theirs

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def _number(variant: str) -> int | None:
    return int(variant[1:]) if variant[:1] == "v" and variant[1:].isdigit() else None


@dataclass(frozen=True)
class ImageConfig:
    """How a container of the image is started by default (image-spec, config.md, the property `config`).

    health_check: docker's `Healthcheck`, unchecked; empty where there is none.
    """

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    health_check: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Any, what: str) -> "ImageConfig":
        """Raises InvalidImage where a property has another type than the specification's."""
        if value is None:
            return cls()
        if not isinstance(value, dict):
            raise InvalidImage(f"{what}: `config` must be an object")

        def texts(name: str) -> tuple[str, ...]:
            found = value.get(name) or []
            if isinstance(found, str) or not isinstance(found, list) or not all(isinstance(item, str) for item in found):
                raise InvalidImage(f"{what}: config.{name} must be a list of texts")
            return tuple(found)

        def keys(name: str) -> tuple[str, ...]:
            found = value.get(name) or {}
            if not isinstance(found, dict):
                raise InvalidImage(f"{what}: config.{name} must be an object")
            return tuple(sorted(found))

        def text(name: str) -> str:
            found = value.get(name) or ""
            if not isinstance(found, str):
                raise InvalidImage(f"{what}: config.{name} must be a text")
            return found

        labels = value.get("Labels") or {}
        if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
            raise InvalidImage(f"{what}: config.Labels must map texts to texts")
        return cls(
            user=text("User"),
            env=texts("Env"),
            entrypoint=texts("Entrypoint"),
            cmd=texts("Cmd"),
            working_dir=text("WorkingDir"),
            labels=dict(labels),
            stop_signal=text("StopSignal"),
            volumes=keys("Volumes"),
            exposed_ports=keys("ExposedPorts"),
            health_check=check if isinstance(check := value.get("Healthcheck"), dict) else {},
        )


@dataclass(frozen=True)
class Image:
    """An image of this store.

    id: the digest of its configuration. tags and digests: the names it has (`NAME:TAG`, `NAME@sha256:…`). size_bytes:
    manifest, configuration and compressed layers together. created: the image's own time stamp (RFC 3339, may be empty).
    """

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size_bytes: int
    config: ImageConfig
    pinned: bool
    created: str
    manifest: Descriptor
    diff_ids: tuple[str, ...]
    platform: str

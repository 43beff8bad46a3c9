"""Image references: the names that people type, in the grammar of the distribution project's `reference` package.

`busybox` is short for `docker.io/library/busybox:latest`. The first component is a registry's host when it has a dot or a
colon, has an upper case letter, or is `localhost`.
"""

import re
from dataclasses import dataclass, replace

from highrt.images.errors import InvalidReference

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_ID = re.compile(r"(?:sha256:|sha512:)?([0-9a-f]{3,128})")
_MAX_NAME = 255


@dataclass(frozen=True)
class Reference:
    """A whole reference. At least one of tag and digest is there; with both, the digest decides what is pulled."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository: `docker.io/library/busybox`."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest, or else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def stored(self) -> str:
        """The one form under which the metadata keeps it: NAME@DIGEST, or else NAME:TAG."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    def by_digest(self, digest: str) -> "Reference":
        """The same name pinned to a digest, without the tag."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """The reference that a person's text means, with all defaults filled in.

    Raises InvalidReference with the part that is wrong.
    """
    rest, _, digest = text.partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise InvalidReference(f"image name {text!r}: {digest!r} is not a digest (sha256: and 64 hexadecimal digits)")
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        head, tag = rest, ""
    elif not _TAG.fullmatch(tag):
        raise InvalidReference(f"image name {text!r}: {tag!r} is not a tag (letters, digits, _ . -, at most 128)")
    first, slash, path = head.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        registry = first
    else:
        registry, path = DEFAULT_REGISTRY, head
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    if not _HOST.fullmatch(registry):
        raise InvalidReference(f"image name {text!r}: {registry!r} is not a registry's host or host:port")
    if not _PATH.fullmatch(path):
        hint = " (it must be lower case)" if _PATH.fullmatch(path.lower()) else ""
        raise InvalidReference(f"image name {text!r}: {path!r} is not a repository name{hint}")
    if len(registry) + 1 + len(path) > _MAX_NAME:
        raise InvalidReference(f"image name {text[:40]!r}…: longer than {_MAX_NAME} characters")
    if not tag and not digest:
        tag = DEFAULT_TAG
    return Reference(registry, path, tag or None, digest or None)


def parse_repository(text: str) -> Reference:
    """The repository that a text names, without a tag or digest. Raises InvalidReference."""
    if "@" in text or ":" in text.rpartition("/")[2]:
        raise InvalidReference(f"{text!r}: a repository is wanted, without a tag or digest")
    return parse(text)


def parse_registry(text: str) -> str:
    """The registry that a text names: HOST or HOST:PORT. Raises InvalidReference."""
    name = parse(f"{text}/any")
    if name.repository.removeprefix("library/") != "any":
        raise InvalidReference(f"{text!r} is no registry: write HOST or HOST:PORT")
    return name.registry


def parse_id(text: str) -> str | None:
    """The hexadecimal digits, where the text can be an image ID or the beginning of one; else None."""
    found = _ID.fullmatch(text)
    return found[1] if found else None

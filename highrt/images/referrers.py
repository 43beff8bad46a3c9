"""Referrers: the manifests that name another one as their subject, such as signatures and bills of materials
(distribution-spec v1.1, "Listing Referrers").

A registry that does not know them is used by the specification's fallback: an index under the tag `sha256-HEX`, which the
clients keep up to date, when they push a manifest with a subject and when they delete one.
"""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from highrt.images.errors import ImageNotFound, InvalidImage
from highrt.images.manifests import Manifest, checked_manifest
from highrt.images.model import INDEX_TYPES, OCI_INDEX, Descriptor

if TYPE_CHECKING:
    from highrt.images.registry import Repository

_MEDIA_TYPE = re.compile(r"[\w.+/;=-]{0,255}", re.ASCII)


@dataclass(frozen=True)
class Referrer:
    """artifact_type: what kind of thing it is, a media type; "" where nothing says it."""

    descriptor: Descriptor
    artifact_type: str
    annotations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Any, what: str) -> "Referrer":
        """One of an index. Raises InvalidImage."""
        descriptor = Descriptor.from_json(value, what)
        kind = value.get("artifactType") or ""
        if not isinstance(kind, str) or not all(map(_MEDIA_TYPE.fullmatch, (kind, descriptor.media_type))):
            raise InvalidImage(f"{what}: {descriptor.digest} has types that are no media types")
        told = descriptor.annotations or {}
        return cls(descriptor, kind, {str(name): str(text) for name, text in told.items()})

    @classmethod
    def of(cls, manifest: Manifest) -> "Referrer":
        """What an index says of a manifest. An image is known by the type of its configuration where it names no other."""
        document = manifest.document
        config = document.get("config")
        kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else "") or ""
        told = document.get("annotations")
        return cls(manifest.descriptor, str(kind), told if isinstance(told, dict) else {})

    def to_json(self) -> dict[str, Any]:
        found = self.descriptor.to_json()
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        return {**found, "annotations": self.annotations} if self.annotations else found


def fallback_tag(digest: str) -> str:
    """The tag under which clients keep the list ("Referrers Tag Schema")."""
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm[:32]}-{digits[:64]}"


async def referrers(repository: "Repository", digest: str, artifact_type: str = "") -> AsyncIterator[Referrer]:
    """All manifests that have a subject. artifact_type: only those of this kind. Raises the registry's errors, InvalidImage."""
    async for listed in _pages(repository, digest, artifact_type):
        for referrer in listed:
            # A registry need not heed the filter.
            if artifact_type in ("", referrer.artifact_type):
                yield referrer


async def _pages(repository: "Repository", digest: str, artifact_type: str) -> AsyncIterator[list[Referrer]]:
    known = False
    try:
        async for page in repository.referrers(digest, artifact_type):
            known = True
            yield _listed(page.document, digest)
    except ImageNotFound:  # one that knows such lists has an empty one for what it has never heard of
        if known:
            raise
        yield await _kept(repository, digest)


async def note(repository: "Repository", manifest: Manifest, *, noted: str) -> None:
    """Adds a manifest that was pushed to the list under its subject's fallback tag, where there is a subject.

    noted: the subject for which the registry says that it has done so itself. Raises the registry's errors, and InvalidImage
    where the tag is something else.
    """
    subject = subject_of(manifest)
    if subject is None or noted == subject:
        return
    async with repository.keeping(subject):
        kept = await _kept(repository, subject)
        if manifest.descriptor.digest not in [referrer.descriptor.digest for referrer in kept]:
            await _keep(repository, subject, [*kept, Referrer.of(manifest)])


async def forget(repository: "Repository", manifest: Manifest) -> None:
    """Takes a manifest that was deleted from the list under its subject's fallback tag, where it is there. Raises as `note`."""
    subject = subject_of(manifest)
    if subject is None:
        return
    async with repository.keeping(subject):
        kept = await _kept(repository, subject)
        left = [referrer for referrer in kept if referrer.descriptor.digest != manifest.descriptor.digest]
        if left != kept:
            await _keep(repository, subject, left)


def subject_of(manifest: Manifest) -> str | None:
    """The digest of the manifest that this one is about. Raises InvalidImage."""
    value = manifest.document.get("subject")
    return None if value is None else Descriptor.from_json(value, f"{manifest.descriptor.digest}: the subject").digest


async def _kept(repository: "Repository", subject: str) -> list[Referrer]:
    """What is listed under a fallback tag; nothing where there is no such tag."""
    tag = fallback_tag(subject)
    try:
        index = await repository.manifest(tag, own=True)
    except ImageNotFound:
        return []
    if index.descriptor.media_type not in INDEX_TYPES:
        raise InvalidImage(f"the tag {tag}, where the referrers of {subject} are kept, is no index: it is left as it is")
    return _listed(index.document, subject)


async def _keep(repository: "Repository", subject: str, listed: list[Referrer]) -> None:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [referrer.to_json() for referrer in listed]}
    data = json.dumps(document).encode()
    index = checked_manifest(data, OCI_INDEX, None, f"the referrers of {subject}")
    await repository.push_manifest(index.descriptor, data, fallback_tag(subject))


def _listed(document: dict[str, Any], subject: str) -> list[Referrer]:
    listed = document.get("manifests") or []
    if not isinstance(listed, list):
        raise InvalidImage(f"the referrers of {subject} are no list")
    return [Referrer.from_json(value, f"the referrers of {subject}") for value in listed]

"""Manifests and indexes as bytes whose digest counts (image-spec, manifest.md and image-index.md)."""

import hashlib
from dataclasses import dataclass
from typing import Any

from highrt.images.content import parse_document
from highrt.images.errors import DigestMismatch, InvalidImage
from highrt.images.model import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, OCI_MANIFEST, Descriptor


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index as the registry sent it."""

    descriptor: Descriptor
    data: bytes
    document: dict[str, Any]


def checked_manifest(data: bytes, media_type: str, digest: str | None, what: str, size: int | None = None) -> Manifest:
    """A manifest or index whose bytes are those of a digest (None: by tag, whatever came).

    Raises DigestMismatch, InvalidImage.
    """
    algorithm = digest.partition(":")[0] if digest else "sha256"
    found = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    if digest not in (None, found) or size not in (None, len(data)):
        raise DigestMismatch(f"{what}: the manifest {digest} was refused: what came has the digest {found}, {len(data)} bytes")
    document = parse_document(data, f"{what}: the manifest")
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise InvalidImage(f"{what}: it is an image of Docker's schema 1, which says nothing verifiable: push it anew")
    if "manifests" in document and ("layers" in document or "config" in document):
        # Another tool may read the other half of it (CVE-2021-41190).
        raise InvalidImage(f"{what}: what came is both an index and a manifest, and may mean different images: it is not taken")
    # The document's own word on its type comes first: some registries serve everything as text/plain.
    media_type = document.get("mediaType") or media_type
    if media_type not in INDEX_TYPES | MANIFEST_TYPES:
        if "manifests" in document:
            media_type = OCI_INDEX
        elif "layers" in document and "config" in document:
            media_type = OCI_MANIFEST
        else:
            raise InvalidImage(f"{what}: manifests of type {media_type} are not supported")
    return Manifest(Descriptor(media_type, found, len(data)), data, document)

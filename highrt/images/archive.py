"""Images in a tar archive: what `docker save`, `podman save` and `skopeo` write (docker-archive and OCI layout) is loaded,
and what is saved here is both at once, an OCI layout with docker's manifest.json, as docker 25 and newer write it.
"""

import asyncio
import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from highrt.images.content import MAX_DOCUMENT, parse_document
from highrt.images.decompress import broken, decompressed
from highrt.images.errors import DigestMismatch, ImageError, ImageNotFound, InvalidImage, InvalidReference
from highrt.images.model import (
    INDEX_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Image,
    Platform,
)
from highrt.images.reference import parse
from highrt.images.service import ImageService, best_match, diff_ids_of, layers_of
from highrt.images.tarstream import TarError, TarStream

_MOST_FILES = 10_000
_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"


@dataclass(frozen=True)
class _Member:
    """A file of an archive, put aside. digest: its sha256, or its sha512 where its name in a layout says so."""

    path: Path
    digest: str
    size: int

    def read(self) -> bytes:
        """Of a manifest, index or configuration. Raises InvalidImage where it is too large for one."""
        if self.size > MAX_DOCUMENT:
            raise InvalidImage(f"{self.digest} is larger than {MAX_DOCUMENT} bytes, which no manifest or configuration is")
        return self.path.read_bytes()

    def document(self) -> Any:
        return json.loads(self.read())


async def load(service: ImageService, archive: IO[bytes], *, tag: str | None = None, platform: str | None = None) -> list[Image]:
    """Loads the images of an archive (plain, gzip or zstd), and pins them.

    archive: is read in one pass, and may be a pipe's end. tag: a name for the only image of an archive.
    Raises InvalidImage, DigestMismatch, InvalidReference.
    """
    wanted = Platform.parse(platform)
    folder = service.content.scratch(uuid.uuid4().hex)
    async with service.working():
        try:
            folder.mkdir()
            members = await asyncio.to_thread(_read, archive, folder)
            if "index.json" in members:
                found = _from_layout(service, members, wanted)
            elif "manifest.json" in members:
                found = _from_docker(service, members)
            else:
                raise InvalidImage("the archive has neither an index.json (OCI layout) nor a manifest.json (docker save)")
            if tag and len(found) != 1:
                raise InvalidImage(f"the archive has {len(found)} images: they cannot all be named {tag}")
            images = []
            for config, manifest, names in found:
                layers = layers_of(service.content.document(manifest.digest), "the archive")
                await service.unpack(layers, diff_ids_of(service.content.document(config), "the archive"))
                targets = {parse(name).stored: manifest.digest for name in ([tag] if tag else names)}
                images.append(service.record(config, manifest, targets, pinned=True))
            return images
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _read(archive: IO[bytes], folder: Path) -> dict[str, _Member]:
    """Puts the files of an archive aside, by their names in it."""
    members: dict[str, _Member] = {}
    links: dict[str, str] = {}
    try:
        with ExitStack() as stack:
            stream = decompressed(_peekable(archive), stack)
            tar = TarStream(stream)
            for entry in tar:
                if len(members) + len(links) >= _MOST_FILES:
                    raise InvalidImage(f"the archive has more than {_MOST_FILES} files: no image has so many")
                name = os.path.normpath(entry.name)
                if entry.kind in "12":
                    base = os.path.dirname(name) if entry.kind == "2" else ""
                    links[name] = os.path.normpath(os.path.join(base, entry.link))
                elif entry.is_file:
                    members[name] = _put_aside(tar.content(), folder / str(len(members)), _algorithm(name))
    except TarError as error:
        raise InvalidImage(f"this is not an image archive: {error}") from None
    except broken() as error:
        raise InvalidImage(f"the archive cannot be decompressed: {error}") from None
    for name, target in links.items():
        if target in members:
            members[name] = members[target]
    return members


def _peekable(archive: IO[bytes]) -> io.BufferedReader:
    """The stream, as one whose first bytes can be looked at."""
    return archive if isinstance(archive, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, archive))


def _algorithm(name: str) -> str:
    return "sha512" if name.startswith("blobs/sha512/") else "sha256"


def _put_aside(source: Iterable[bytes], path: Path, algorithm: str) -> _Member:
    whole, size = hashlib.new(algorithm), 0
    with path.open("xb") as file:
        for chunk in source:
            whole.update(chunk)
            size += len(chunk)
            file.write(chunk)
    return _Member(path, f"{algorithm}:{whole.hexdigest()}", size)


_Found = tuple[str, Descriptor, list[str]]
"""An image of an archive: its configuration's digest, its manifest, and its names."""


def _from_docker(service: ImageService, members: dict[str, _Member]) -> list[_Found]:
    """manifest.json: [{Config, RepoTags, Layers}]. A manifest is made, as the archive has none."""
    listed = _json(members, "manifest.json")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise InvalidImage("the archive's manifest.json is not a list of images")
    found = []
    for item in listed:
        config = _member(members, item.get("Config"))
        paths = item.get("Layers")
        if not isinstance(paths, list):
            raise InvalidImage("the archive's manifest.json has an image without a list of layers")
        described = []
        for path in paths:
            layer = _member(members, path)
            _keep(service, layer)
            described.append(Descriptor(_layer_type(service.content.path(layer.digest)), layer.digest, layer.size))
        _keep(service, config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor(OCI_CONFIG, config.digest, config.size).to_json(),
            "layers": [layer.to_json() for layer in described],
        }
        names = [name for name in item.get("RepoTags") or [] if isinstance(name, str)]
        found.append((config.digest, service.content.add(json.dumps(manifest, sort_keys=True).encode(), OCI_MANIFEST), names))
    return found


def _layer_type(path: Path) -> str:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"\x1f\x8b":
        return f"{OCI_LAYER}+gzip"
    return f"{OCI_LAYER}+zstd" if magic == b"\x28\xb5\x2f\xfd" else OCI_LAYER


def _from_layout(service: ImageService, members: dict[str, _Member], platform: Platform) -> list[_Found]:
    """index.json of an OCI image layout (image-spec, image-layout.md)."""
    index = _json(members, "index.json")
    manifests = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(manifests, list):
        raise InvalidImage("the archive's index.json has no list of manifests")
    found: dict[str, _Found] = {}
    for descriptor in [Descriptor.from_json(item, "the archive's index.json") for item in manifests]:
        annotations = descriptor.annotations or {}
        name = annotations.get(_FULL_NAME) or _whole_name(annotations.get(_REF_NAME, ""))
        manifest = _choose(members, descriptor, platform)
        if manifest.digest in found:
            found[manifest.digest][2].extend([name] if name else [])
            continue
        document = parse_document(_blob(members, manifest).read(), manifest.digest)
        config = Descriptor.from_json(document.get("config"), manifest.digest)
        for blob in (config, *layers_of(document, manifest.digest), manifest):
            _keep(service, _blob(members, blob))
        found[manifest.digest] = (config.digest, manifest, [name] if name else [])
    return list(found.values())


def _whole_name(text: str) -> str:
    """ref.name is a whole name with some tools, and only a tag with others, which names nothing."""
    try:
        return str(parse(text)) if "/" in text or ":" in text else ""
    except InvalidReference:
        return ""


def _choose(members: dict[str, _Member], descriptor: Descriptor, platform: Platform) -> Descriptor:
    if descriptor.media_type not in INDEX_TYPES:
        return descriptor
    inner = _blob(members, descriptor).document()
    listed = inner.get("manifests") if isinstance(inner, dict) else None
    offered = [Descriptor.from_json(item, descriptor.digest) for item in listed or []]
    best = best_match([item for item in offered if f"blobs/{item.digest.replace(':', '/')}" in members], platform)
    if best is None or best.media_type in INDEX_TYPES:
        raise InvalidImage(f"the archive has no image for {platform}")
    return best


def _blob(members: dict[str, _Member], descriptor: Descriptor) -> _Member:
    member = _member(members, f"blobs/{descriptor.digest.replace(':', '/')}")
    if (member.digest, member.size) != (descriptor.digest, descriptor.size):
        raise DigestMismatch(f"the archive's blob {descriptor.digest} was refused: it has {member.digest}, {member.size} bytes")
    return member


def _member(members: dict[str, _Member], name: Any) -> _Member:
    if not isinstance(name, str) or os.path.normpath(name) not in members:
        raise InvalidImage(f"the archive names a file {name!r} that it does not have")
    return members[os.path.normpath(name)]


def _json(members: dict[str, _Member], name: str) -> Any:
    try:
        return members[name].document()
    except ValueError as error:
        raise InvalidImage(f"the archive's {name} is not JSON: {error}") from None


def _keep(service: ImageService, member: _Member) -> None:
    """Moves a file into the content store."""
    if not service.content.has(member.digest) and member.path.exists():
        service.content.add_file(member.path, member.digest)


async def save(service: ImageService, names: Sequence[str], archive: IO[bytes]) -> None:
    """Writes images to an archive that docker, podman, skopeo and highrt load. Raises ImageNotFound."""
    chosen: dict[str, tuple[Image, list[str]]] = {}
    for name in names:
        image = service.resolve(name)
        if image is None:
            raise ImageNotFound(f"image {name} is not here: pull it first")
        tags = chosen.setdefault(image.id, (image, []))[1]
        stored = _stored_tag(image, name)
        if stored and stored not in tags:
            tags.append(stored)
    async with service.working():
        await asyncio.to_thread(_write, service, list(chosen.values()), archive)


def _stored_tag(image: Image, name: str) -> str | None:
    try:
        stored = parse(name).stored
    except ImageError:
        return None
    return stored if stored in image.tags else None


def _write(service: ImageService, images: list[tuple[Image, list[str]]], archive: IO[bytes]) -> None:
    entries, docker, written = [], [], set()
    with tarfile.open(fileobj=archive, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for image, tags in images:
            manifest = service.content.document(image.manifest.digest)
            layers = layers_of(manifest, image.id)
            config = Descriptor.from_json(manifest.get("config"), image.id)
            for blob in (image.manifest, config, *layers):
                if blob.digest not in written:
                    written.add(blob.digest)
                    _add(tar, _in_layout(blob.digest), service.content.path(blob.digest))
            for tag in tags or [""]:
                named = {"annotations": {_FULL_NAME: tag, _REF_NAME: parse(tag).tag}} if tag else {}
                entries.append({**image.manifest.to_json(), **named})
            docker.append(
                {"Config": _in_layout(image.id), "RepoTags": tags, "Layers": [_in_layout(layer.digest) for layer in layers]}
            )
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index), ("manifest.json", docker)):
            data = json.dumps(value).encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))


def _in_layout(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, 0o644
    with path.open("rb") as file:
        tar.addfile(entry, file)

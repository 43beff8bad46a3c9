"""The image service: what the daemon's other parts call (docs/architecture.md, "highrt: images").

It joins the registry client, the content store, the snapshots and the metadata, and holds the rule that keeps them
consistent: content is collected only while nothing is being pulled, loaded or built, and then everything goes that neither
an image nor a writable snapshot needs.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from highrt.images import referrers
from highrt.images.caches import Caches
from highrt.images.content import ContentStore
from highrt.images.errors import (
    DigestMismatch,
    ImageError,
    ImageInUse,
    ImageNotFound,
    InvalidImage,
    InvalidReference,
    StorageFailed,
)
from highrt.images.layers import Blob
from highrt.images.locks import KeyedLocks
from highrt.images.manifests import Manifest, checked_manifest
from highrt.images.metadata import Metadata
from highrt.images.model import (
    FOREIGN_LAYERS,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_MANIFEST,
    Applied,
    Auth,
    Descriptor,
    HistoryEntry,
    Image,
    ImageConfig,
    Platform,
    Progress,
    Usage,
    is_digest,
)
from highrt.images.offload import Workers
from highrt.images.reference import Reference, parse, parse_id, parse_registry
from highrt.images.snapshots import Rootfs, Snapshots, chain_ids, remove_tree
from highrt.images.steps import drop_steps
from highrt.images.trust import Places, Trust
from strata.linux import mounts
from strata.telemetry import logs
from strata.telemetry.spans import span

if TYPE_CHECKING:
    from highrt.images.registry import Registry, Repository

log = logs.get("highrt.images")

__all__ = ["Auth", "Image", "ImageConfig", "ImageService", "Progress", "Rootfs", "Usage"]

Report = Callable[[Progress], None]
_PARALLEL_DOWNLOADS = 3
_MOST_LAYERS = 500
_CUT_DOWNLOAD_SECONDS = 86400
_TEMPORARY = "temporary-"
_VERDICT_SECONDS = 2
"""How long a layer that cannot be unpacked waits for the end of its download, which tells whether its bytes are right."""


@dataclass
class _Pull:
    """A pull that is under way, and those who wait for it."""

    task: asyncio.Task[Image]
    listeners: list[Report] = field(default_factory=list)
    waiting: int = 0


class ImageService:
    """All images of one root folder. One process owns the folder; `open` before the first call, `close` at the end."""

    def __init__(self, root: Path, registry_config: Path | None = None, places: Places | None = None) -> None:
        """root: where content, snapshots and metadata live. registry_config: containerd's certs.d folder. places: of the policy
        that says which images may be pulled."""
        self._root = root
        self.content = ContentStore(root / "content")
        self._registry_config = registry_config
        self._registry: Registry | None = None
        self.trust = Trust(places or Places(), lambda address: self.registry.fetch(address))
        self.workers = Workers()
        self.steps = root / "steps"
        self.caches = Caches(root / "caches")
        self._images: dict[str, Image] = {}
        self._pulls: dict[tuple[str, str, Auth], _Pull] = {}
        self._downloads = asyncio.Semaphore(_PARALLEL_DOWNLOADS)
        self._blobs = KeyedLocks()
        self._busy = 0

    async def open(self) -> None:
        """Opens the metadata and removes what a killed process left half-done. Raises InvalidConfiguration, OSError."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
        self.content.open()
        # What is setuid in an image must not be within the reach of the host's users (CVE-2021-41103, CVE-2024-25621).
        for folder in (self._root / "content", self._root / "snapshots", self._root / "mounts"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
        self.metadata = Metadata(self._root / "images.db")
        self.snapshots = Snapshots(self._root / "snapshots", self.metadata, self.workers)
        self.content.drop_scratch()
        self.content.drop_cut_downloads(time.time() - _CUT_DOWNLOAD_SECONDS)
        await asyncio.to_thread(self.snapshots.open)
        self._load()
        await drop_steps(self.steps)
        await self._drop_temporary()
        await self.collect(keep_seconds=_CUT_DOWNLOAD_SECONDS)

    async def close(self) -> None:
        """Ends the pulls under way (what they have downloaded is kept), and closes the metadata."""
        tasks = [pull.task for pull in self._pulls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._registry:
            await self._registry.close()
        await self.workers.close()
        self.metadata.close()

    @property
    def registry(self) -> "Registry":
        """The client of registries, brought in when it is wanted first: a third of an idle daemon's memory."""
        if self._registry is None:
            from highrt.images.registry import Registry

            self._registry = Registry(self._registry_config)
        return self._registry

    # what is here

    def list(self) -> list[Image]:
        """All images, the oldest first."""
        return [*self._images.values()]

    def resolve(self, reference_or_id: str) -> Image | None:
        """The image of a name, a digest, an ID or an ID's unique beginning. Raises InvalidReference."""
        digits = parse_id(reference_or_id)
        if digits:
            found = [image for image in self._images.values() if image.id.partition(":")[2].startswith(digits)]
            if len(found) == 1:
                return found[0]
            if reference_or_id.startswith(("sha256:", "sha512:")):
                return None
        reference = parse(reference_or_id)
        for image in self._images.values():
            if reference.stored in image.digests or reference.stored in image.tags:
                return image
        return None

    async def prune_builds(self) -> int:
        """Forgets the steps of builds, and removes the cache mounts' folders that no step uses. Returns the bytes freed."""
        self.metadata.forget_steps()
        return await self.caches.prune()

    def history(self, image: Image) -> Sequence[HistoryEntry]:
        """How an image was made, as far as it says, from the first step on. Layers that it says nothing of come last."""
        document = self.content.document(image.id)
        sizes = [layer.size for layer in layers_of(self.content.document(image.manifest.digest), image.id)]
        layers = list(zip(image.diff_ids, sizes, strict=True))
        told = [item for item in document.get("history") or [] if isinstance(item, dict)]
        steps = []
        for item in told:
            diff_id, size = ("", 0) if item.get("empty_layer") or not layers else layers.pop(0)
            steps.append(HistoryEntry(diff_id, size, *(str(item.get(key) or "") for key in ("created", "created_by", "comment"))))
        return [*steps, *(HistoryEntry(diff_id, size) for diff_id, size in layers)]

    def usage(self) -> Usage:
        """What content and unpacked layers take."""
        blobs, layers = self.content.usage(), self.snapshots.usage()
        return Usage(str(self._root), blobs[0] + layers[0], blobs[1] + layers[1])

    def tag(self, image: Image, reference: str) -> None:
        """Gives an image one more name; another image that had it loses it. Raises InvalidReference, ImageNotFound."""
        name = parse(reference)
        if name.digest:
            raise InvalidImage(f"cannot tag {image.id} as {reference}: a tag is wanted, not a digest")
        if image.id not in self._images:
            raise ImageNotFound(f"image {image.id} is not here any more")
        self.metadata.put_image(image.id, image.manifest, {name.stored: image.manifest.digest})
        self._load()

    async def remove(self, reference_or_id: str) -> None:
        """Takes a name away, and with the last tag, or by ID, the whole image.

        Raises ImageNotFound, and ImageInUse where a container's snapshot stands on it.
        """
        image = self.resolve(reference_or_id)
        if image is None:
            raise ImageNotFound(f"image {reference_or_id} is not here")
        digits = parse_id(reference_or_id)
        by_id = bool(digits) and image.id.partition(":")[2].startswith(digits or "")
        stored = "" if by_id else parse(reference_or_id).stored
        if stored in image.tags and len(image.tags) > 1:
            self.metadata.remove_names([stored])
        elif stored in image.digests and image.tags:
            raise ImageInUse(f"{reference_or_id} also has the tags {', '.join(image.tags)}: remove those, or the ID {image.id}")
        else:
            if users := self.snapshots.users(image.id):
                raise ImageInUse(f"image {reference_or_id} is in use by {', '.join(users)}: remove those first")
            self.metadata.remove_image(image.id)
        self._load()
        await self.collect()

    def _load(self) -> None:
        """Reads the images from the metadata. One whose content is gone or broken is told in the log and left out."""
        names = self.metadata.names()
        images: dict[str, Image] = {}
        for row in self.metadata.images():
            known = self._images.get(row.id)
            mine = [name.reference for name in names if name.image == row.id]
            tags = tuple(name for name in mine if "@" not in name)
            digests = tuple(name for name in mine if "@" in name)
            if known and known.manifest == row.manifest:
                images[row.id] = Image(**{**known.__dict__, "tags": tags, "digests": digests, "pinned": row.pinned})
                continue
            try:
                images[row.id] = self._image(row.id, row.manifest, tags, digests, row.pinned)
            except ImageError as error:
                log.error("an image is broken, pull it again", image=row.id, error=str(error))
        self._images = images

    def _image(self, image_id: str, manifest: Descriptor, tags: tuple[str, ...], digests: tuple[str, ...], pinned: bool) -> Image:
        config = self.content.document(image_id)
        layers = layers_of(self.content.document(manifest.digest), manifest.digest)
        diff_ids = diff_ids_of(config, image_id)
        return Image(
            id=image_id,
            tags=tags,
            digests=digests,
            size_bytes=manifest.size + self.content.size(image_id) + sum(layer.size for layer in layers),
            config=ImageConfig.from_json(config.get("config"), f"image {image_id}"),
            pinned=pinned,
            created=str(config.get("created", "")),
            manifest=manifest,
            diff_ids=diff_ids,
            platform=str(Platform(str(config.get("os")), str(config.get("architecture")), str(config.get("variant", "")))),
        )

    # pull and push

    async def pull(
        self,
        reference: str,
        *,
        auth: Auth | None = None,
        platform: str | None = None,
        progress: Report | None = None,
    ) -> Image:
        """Brings an image here and unpacks it. The same pull wanted twice at once is done once.

        platform: OS/ARCHITECTURE[/VARIANT]; this machine's by default. Raises InvalidReference, ImageNotFound,
        RegistryUnauthorized, RegistryUnavailable, DigestMismatch, InvalidImage.
        """
        name, wanted = parse(reference), Platform.parse(platform)
        key = (str(name), str(wanted), auth or Auth())
        pull = self._pulls.get(key)
        if pull is None:
            listeners: list[Report] = []

            def report(at: Progress) -> None:
                for listener in listeners:
                    listener(at)

            pull = _Pull(asyncio.create_task(self._pull(name, auth, wanted, report)), listeners)
            self._pulls[key] = pull
            pull.task.add_done_callback(lambda _: self._forget_pull(key, pull))
        if progress:
            pull.listeners.append(progress)
        pull.waiting += 1
        try:
            return await asyncio.shield(pull.task)
        finally:
            pull.waiting -= 1
            if progress:
                pull.listeners.remove(progress)
            if pull.waiting == 0 and not pull.task.done():
                pull.task.cancel()  # nobody wants it any more
                self._forget_pull(key, pull)

    def _forget_pull(self, key: tuple[str, str, Auth], pull: _Pull) -> None:
        if self._pulls.get(key) is pull:  # and not a later one of the same name
            del self._pulls[key]

    async def _pull(self, name: Reference, auth: Auth | None, platform: Platform, report: Report) -> Image:
        try:
            return await self._pull_into(name, auth, platform, report)
        except OSError as error:
            raise StorageFailed(f"{name}: cannot be stored in {self._root}: {error}") from error

    async def _pull_into(self, name: Reference, auth: Auth | None, platform: Platform, report: Report) -> Image:
        with span("pull image", image=str(name)):
            async with self.working():
                repository = self.registry.repository(name, auth)
                report(Progress(str(name), "", 0, 0, "resolving"))
                unchanged = await self._unchanged(repository, name)
                top = unchanged or await self._manifest(repository, name.target)
                manifest = await self._choose(repository, top, platform, str(name), seen=bool(unchanged))
                await self.trust.check(name, [*dict.fromkeys((top.descriptor.digest, manifest.descriptor.digest))])
                layers = layers_of(manifest.document, str(name))
                config = Descriptor.from_json(manifest.document.get("config"), f"{name}: config")
                await self._download(repository, name, config, lambda _: None)
                diff_ids = diff_ids_of(self.content.document(config.digest), str(name))
                ImageConfig.from_json(self.content.document(config.digest).get("config"), str(name))
                if len(diff_ids) != len(layers):
                    raise InvalidImage(f"{name}: the manifest has {len(layers)} layers, the configuration {len(diff_ids)}")
                await self._layers(repository, name, layers, diff_ids, report)
                names = {name.by_digest(top.descriptor.digest).stored: top.descriptor.digest}
                if name.tag and not name.digest:
                    names[name.stored] = top.descriptor.digest
                image = self.record(config.digest, manifest.descriptor, names)
            report(Progress(str(name), "", image.size_bytes, image.size_bytes, "done"))
            log.info("pulled image", image=str(name), id=image.id)
            return image

    async def _unchanged(self, repository: "Repository", name: Reference) -> Manifest | None:
        """What a tag or digest stands for, where it is here and the registry says that it still is that."""
        known = name.digest or self.metadata.target(name.stored)
        if not known or not self.content.has(known):
            return None
        # Asked always, so that a private image's name or digest alone does not open it to those without its credentials.
        if await repository.look(name.target) not in (known, "" if name.digest else known):
            return None
        return self._stored_manifest(known)

    def _stored_manifest(self, digest: str, size: int | None = None) -> Manifest:
        return checked_manifest(self.content.path(digest).read_bytes(), "", digest, digest, size)

    async def _manifest(self, repository: "Repository", target: str, size: int | None = None, *, seen: bool = False) -> Manifest:
        """A manifest, from the registry or, by digest, from the store; it is in the store afterwards.

        seen: the registry has just said that it would give the index that names it.
        """
        if ":" in target and self.content.has(target):
            if not seen:
                await repository.look(target)
            return self._stored_manifest(target, size)
        manifest = await repository.manifest(target, size=size)
        with self.content.write(manifest.descriptor.digest) as ingest:
            ingest.restart()
            ingest.append(manifest.data)
            ingest.commit(manifest.descriptor.size)
        return manifest

    async def _choose(self, repository: "Repository", top: Manifest, platform: Platform, what: str, *, seen: bool) -> Manifest:
        """The manifest for a platform: the thing itself, or the best of an index (which may hold indexes)."""
        for _ in range(3):
            if top.descriptor.media_type in MANIFEST_TYPES:
                return top
            listed = top.document.get("manifests")
            if not isinstance(listed, list):
                raise InvalidImage(f"{what}: the index has no list of manifests")
            offered = [Descriptor.from_json(item, f"{what}: the index") for item in listed]
            best = best_match(offered, platform)
            if best is None:
                have = sorted({_platform_text(item) for item in offered if item.platform})
                raise ImageNotFound(f"{what}: there is none for {platform}, only for {', '.join(have) or 'nothing'}")
            top = await self._manifest(repository, best.digest, best.size, seen=seen)
        raise InvalidImage(f"{what}: indexes within indexes")

    async def _download(self, repository: "Repository", name: Reference, blob: Descriptor, count: Callable[[int], None]) -> None:
        async with self._blobs.hold(blob.digest):
            await repository.blob(blob, self.content, count)

    async def _layers(
        self, repository: "Repository", name: Reference, layers: Sequence[Descriptor], diff_ids: Sequence[str], report: Report
    ) -> None:
        """Downloads and unpacks layers side by side: each is unpacked while it arrives."""
        arriving = [asyncio.Event() for _ in layers]
        renewed: set[int] = set()
        resumed: set[int] = set()
        broken: set[int] = set()

        async def download(number: int, layer: Descriptor) -> None:
            reached = 0

            def count(done: int) -> None:
                nonlocal reached
                if done < reached:
                    renewed.add(number)  # the registry could not go on with what was there
                reached = done
                arriving[number].set()
                report(Progress(str(name), layer.digest, done, layer.size, "downloading"))

            if any(mark in layer.media_type for mark in FOREIGN_LAYERS) and not self.content.has(layer.digest):
                raise InvalidImage(f"{name}: layer {layer.digest} may not be distributed ({layer.media_type})")
            report(Progress(str(name), layer.digest, 0, layer.size, "waiting"))
            async with self._downloads, self._blobs.hold(layer.digest):
                partial = self.content.partial(layer.digest)
                if partial.exists() and partial.stat().st_size:
                    resumed.add(number)
                try:
                    await repository.blob(layer, self.content, count)
                except asyncio.CancelledError:
                    if number in broken:
                        self.content.drop_partial(layer.digest)  # nothing is worth going on with
                    raise
                finally:
                    arriving[number].set()
            report(Progress(str(name), layer.digest, layer.size, layer.size, "unpacking"))

        async def bring(number: int, folder: Path) -> Applied:
            layer, task = layers[number], downloads[number]
            path = str(self.content.path(layer.digest))
            await arriving[number].wait()
            partial = str(self.content.partial(layer.digest))
            if task.done():
                await task
                partial = ""
            try:
                done = await self.workers.unpack_layer(Blob(path, partial, layer.size), folder, diff_id=diff_ids[number])
            except (DigestMismatch, InvalidImage):
                # What an earlier pull has left may be wrong, and then the download begins anew; nothing else waits for its end.
                await asyncio.wait([task], timeout=None if number in resumed else _VERDICT_SECONDS)
                if not task.done():
                    broken.add(number)
                    raise
                await task
                if number not in renewed:
                    raise
                remove_tree(folder)  # some of what was read was no part of the blob
                folder.mkdir()
                done = await self.workers.unpack_layer(Blob(path), folder, diff_id=diff_ids[number])
            await task  # whose end says that the digest of the blob is right, too
            return done

        downloads = [asyncio.create_task(download(number, layer)) for number, layer in enumerate(layers)]
        unpacking = asyncio.create_task(self._stack(diff_ids, bring))
        tasks: list[asyncio.Task[Any]] = [*downloads, unpacking]
        try:
            for task in tasks:
                await _first_failure(tasks, task)
            for layer in layers:
                report(Progress(str(name), layer.digest, layer.size, layer.size, "done"))
        except (OSError, StorageFailed):
            broken.update(range(len(layers)))  # a full disk must not stay full of what is half there
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def check_credentials(self, registry: str, auth: Auth) -> None:
        """Whether a registry takes credentials. Raises InvalidReference for what is no registry, and the registry's errors."""
        await self.registry.check(parse_registry(registry), auth)

    async def push(
        self,
        reference: str,
        *,
        destination: str | None = None,
        auth: Auth | None = None,
        progress: Report | None = None,
    ) -> str:
        """Uploads an image to where its name, or `destination`, says. Returns the manifest's digest.

        Raises ImageNotFound, InvalidReference and the registry's errors.
        """
        image = self.resolve(reference)
        if image is None:
            raise ImageNotFound(f"image {reference} is not here: build or pull it first")
        name = parse(destination or reference)
        if not destination and name.stored not in (*image.tags, *image.digests):
            raise InvalidReference(f"{reference} does not say which registry to push to: tag the image first")
        report = progress or (lambda _: None)
        with span("push image", image=str(name)):
            async with self.working():
                repository = self.registry.repository(name, auth)
                manifest = self._pushed(reference, image)
                document = self.content.document(manifest.digest)
                config = Descriptor.from_json(document.get("config"), str(name))

                async def upload(blob: Descriptor) -> None:
                    async with self._downloads:
                        report(Progress(str(name), blob.digest, 0, blob.size, "pushing"))
                        await repository.push_blob(
                            blob,
                            self.content.path(blob.digest),
                            lambda done: report(Progress(str(name), blob.digest, done, blob.size, "pushing")),
                        )
                        report(Progress(str(name), blob.digest, blob.size, blob.size, "done"))

                blobs = {blob.digest: blob for blob in (*layers_of(document, str(name)), config)}
                uploads = [asyncio.create_task(upload(blob)) for blob in blobs.values()]
                try:
                    for task in uploads:
                        await _first_failure(uploads, task)
                finally:
                    for task in uploads:
                        task.cancel()
                    await asyncio.gather(*uploads, return_exceptions=True)
                data = self.content.path(manifest.digest).read_bytes()
                subject = await repository.push_manifest(manifest, data, name.tag or manifest.digest)
                await referrers.note(repository, Manifest(manifest, data, document), noted=subject)
                digest = manifest.digest
                self.record(image.id, image.manifest, {name.by_digest(digest).stored: digest})
        log.info("pushed image", image=str(name), digest=digest)
        return digest

    def _pushed(self, reference: str, image: Image) -> Descriptor:
        """The manifest that a name was pulled as, as one configuration may have several; or else the image's newest."""
        stored = "" if parse_id(reference) else parse(reference).stored
        for name in self.metadata.names():
            if name.reference == stored and self._layers_of_target(name.target):
                document = self.content.document(name.target)
                media_type = document.get("mediaType") or OCI_MANIFEST
                return Descriptor(str(media_type), name.target, self.content.size(name.target))
        return image.manifest

    def _layers_of_target(self, digest: str) -> Sequence[Descriptor]:
        """The layers of what a name stands for, where that is a manifest and not an index."""
        document = self.content.document(digest)
        return layers_of(document, digest) if "layers" in document else []

    # for load and build

    def record(self, image_id: str, manifest: Descriptor, names: dict[str, str], *, pinned: bool | None = None) -> Image:
        """Names an image whose content is in the store. Raises InvalidImage where it is not all there."""
        self._image(image_id, manifest, (), (), False)
        self.metadata.put_image(image_id, manifest, names, pinned=pinned)
        self._load()
        return self._images[image_id]

    async def unpack(self, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> int | None:
        """The snapshot of a chain of layers whose blobs are in the store; None for no layers."""

        async def bring(number: int, folder: Path) -> Applied:
            blob = Blob(str(self.content.path(layers[number].digest)))
            return await self.workers.unpack_layer(blob, folder, diff_id=diff_ids[number])

        return await self._stack(diff_ids, bring)

    async def _stack(self, diff_ids: Sequence[str], bring: Callable[[int, Path], Awaitable[Applied]]) -> int | None:
        """Unpacks the layers of a chain side by side; the first failure ends the others. Returns the topmost snapshot.

        bring: unpacks the layer with a number into a folder.
        """
        tasks: list[asyncio.Task[int]] = []

        async def layer(number: int, chain: str) -> int:
            async def parent() -> int | None:
                return await asyncio.shield(tasks[number - 1]) if number else None

            return await self.snapshots.unpack(chain, parent, diff_ids[number], lambda folder: bring(number, folder))

        try:
            for number, chain in enumerate(chain_ids(diff_ids)):
                tasks.append(asyncio.create_task(layer(number, chain)))
            for task in tasks:
                await _first_failure(tasks, task)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return tasks[-1].result() if tasks else None

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Around whatever adds content: nothing is collected meanwhile. What it leaves unnamed goes with a later collection."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    # snapshots of containers

    async def prepare(self, image: Image, key: str) -> Rootfs:
        """A writable snapshot on an image; the same one for the same key. Raises ImageNotFound, InvalidImage, ImageInUse."""
        if image.id not in self._images:
            raise ImageNotFound(f"image {image.id} is not here any more: pull it again")
        async with self.working():
            top = self.snapshots.layer(chain_ids(image.diff_ids)[-1]) if image.diff_ids else None
            if top is None:
                layers = layers_of(self.content.document(image.manifest.digest), image.id)
                return await self.snapshots.prepare(key, await self.unpack(layers, image.diff_ids), image.id)
            return await self.snapshots.prepare(key, top.id, image.id)

    async def rootfs(self, key: str) -> Rootfs | None:
        """The writable snapshot of a key, if there is one."""
        return self.snapshots.rootfs(key)

    async def release(self, key: str) -> None:
        """Removes a writable snapshot and all that was written there. It must not be mounted any more."""
        await self.snapshots.release(key)

    @contextlib.asynccontextmanager
    async def mounted(self, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> AsyncIterator[tuple[Path, Rootfs]]:
        """A temporary writable snapshot on some layers, mounted at the path that is given. It is gone after the block."""
        async with self.working():
            key = f"{_TEMPORARY}{uuid.uuid4().hex}"
            target = self._root / "mounts" / key
            rootfs = await self.snapshots.prepare(key, await self.unpack(layers, diff_ids), None)
            try:
                target.mkdir()
                try:
                    rootfs.mount(target)
                    yield target, rootfs
                finally:
                    rootfs.unmount(target)
                    target.rmdir()
            finally:
                await asyncio.shield(self.snapshots.release(key))

    # images that a person looks into

    def mounted_at(self, image: Image) -> Path | None:
        """Where an image is mounted by `mount`."""
        target = self._root / "mounts" / _look_key(image)
        return target if target.is_mount() else None

    async def mount(self, image: Image) -> Path:
        """Mounts an image read-only, until `unmount` or the next `open`; the same place every time. Meanwhile it is in use.

        Raises ImageNotFound, InvalidImage.
        """
        target = self._root / "mounts" / _look_key(image)
        rootfs = await self.prepare(image, _look_key(image))
        if not target.is_mount():
            target.mkdir(exist_ok=True)
            try:
                rootfs.mount_read_only(target)
            except BaseException:
                await self.unmount(image)
                raise
        return target

    async def unmount(self, image: Image) -> Path:
        """Takes the mount of `mount` away. Raises ImageNotFound where there is none."""
        key = _look_key(image)
        target, rootfs = self._root / "mounts" / key, await self.rootfs(key)
        if rootfs is None:
            raise ImageNotFound(f"image {image.id} is not mounted")
        rootfs.unmount(target)
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()
        await self.release(key)
        return target

    async def _drop_temporary(self) -> None:
        """What a killed process left of `mounted` and `mount`."""
        folder = self._root.resolve() / "mounts"
        mounts.umount_below(str(folder))
        for left in folder.iterdir():
            left.rmdir()
        for row in self.metadata.snapshots():
            if row.kind == "rootfs" and row.name.startswith(_TEMPORARY):
                await self.snapshots.release(row.name)

    # collection

    async def collect(self, *, keep_seconds: float = 0) -> None:
        """Removes content and layers that nothing needs, unless content is just being added (then a later call does).

        keep_seconds: blobs younger than this stay, as they may be of a pull that was cut and will be tried again.
        """
        if self._busy:
            return
        needed: set[str] = set()
        chains: set[str] = set()
        for image in self._images.values():
            needed |= {image.id, image.manifest.digest}
            needed |= {layer.digest for layer in layers_of(self.content.document(image.manifest.digest), image.id)}
            chains |= set(chain_ids(image.diff_ids))
        for name in self.metadata.names():
            needed |= {name.target, *(layer.digest for layer in self._layers_of_target(name.target))}
        for digest in [digest for digest in self.content.all() if digest not in needed]:
            if time.time() - self.content.path(digest).stat().st_mtime >= keep_seconds:
                self.content.remove(digest)
        self.metadata.forget_steps_without(needed)
        await self.snapshots.collect(chains)


def _look_key(image: Image) -> str:
    return f"{_TEMPORARY}mount-of-{image.id.partition(':')[2][:32]}"


async def _first_failure(tasks: Sequence[asyncio.Task[Any]], wanted: asyncio.Task[Any]) -> None:
    """Waits for one of several tasks; a failure of any is raised at once."""
    while not wanted.done():
        await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    wanted.result()


def best_match(offered: Sequence[Descriptor], platform: Platform) -> Descriptor | None:
    """The manifest of an index that fits a platform best, the first of several equal ones."""
    ranked = []
    for position, item in enumerate(offered):
        if item.media_type in INDEX_TYPES or item.platform is None:
            # an entry without a platform fits where nothing better does
            ranked.append((1000, position, item))
        elif (rank := platform.rank(item.platform)) is not None:
            ranked.append((rank, position, item))
    return min(ranked, default=(0, 0, None))[2]


def _platform_text(item: Descriptor) -> str:
    platform = item.platform or {}
    return "/".join(str(platform[key]) for key in ("os", "architecture", "variant") if platform.get(key))


def layers_of(manifest: dict[str, Any], what: str) -> list[Descriptor]:
    """The layers of a manifest, the lowest first. Raises InvalidImage."""
    layers = manifest.get("layers")
    if not isinstance(layers, list):
        raise InvalidImage(f"{what}: the manifest has no list of layers")
    if len(layers) > _MOST_LAYERS:
        raise InvalidImage(f"{what}: the manifest has {len(layers)} layers, more than the {_MOST_LAYERS} that can be mounted")
    return [Descriptor.from_json(layer, f"{what}: layer {number}") for number, layer in enumerate(layers, 1)]


def diff_ids_of(config: dict[str, Any], what: str) -> tuple[str, ...]:
    """The digests of the layers' tars, from an image's configuration. Raises InvalidImage."""
    rootfs = config.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, str) and is_digest(item) for item in found):
        raise InvalidImage(f"{what}: the configuration has no rootfs.diff_ids (it may be an artifact and no image)")
    return tuple(found)

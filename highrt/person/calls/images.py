"""The calls about images that are here, come and go."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from highrt.cri.calls import require, streaming, unary, worded
from highrt.images import archive
from highrt.images.build import build
from highrt.images.differences import differences
from highrt.images.model import Auth, Image
from highrt.images.snapshots import chain_ids
from highrt.person import chunks, documents, progress
from highrt.person.calls.parts import Parts
from highrt.person.calls.registries import auth
from strata.protocols import highrt_pb2 as api


class ImageCalls(Parts):
    """A part of PersonService."""

    @streaming
    async def Pull(self, request: api.PullRequest) -> AsyncGenerator[api.Progress, None]:
        async def work(report: Any) -> str:
            image = await self._images.pull(
                request.image, auth=auth(request.credentials), platform=request.platform or None, progress=report
            )
            self._note_image("pull", image, request.image)
            return image.id

        async for item in progress.transfer(work):
            yield item

    @streaming
    async def Push(self, request: api.PushRequest) -> AsyncGenerator[api.Progress, None]:
        async def work(report: Any) -> str:
            digest = await self._images.push(
                request.image, destination=request.destination or None, auth=auth(request.credentials), progress=report
            )
            self._note_image("push", self._image(request.image), request.destination or request.image)
            return digest

        async for item in progress.transfer(work):
            yield item

    @unary
    async def Login(self, request: api.LoginRequest) -> api.LoginResponse:
        await self._images.check_credentials(request.registry, auth(request.credentials) or Auth())
        return api.LoginResponse()

    @unary
    async def Images(self, request: api.ImagesRequest) -> api.ImagesResponse:
        return api.ImagesResponse(images=[_image(image) for image in self._images.list()])

    @unary
    async def InspectImage(self, request: api.ImageName) -> api.Document:
        return api.Document(json=documents.text(documents.image(self._image(request.image))))

    @unary
    async def ImageHistory(self, request: api.ImageName) -> api.History:
        image = self._image(request.image)
        steps = [
            api.HistoryStep(
                diff_id=step.diff_id, bytes=step.bytes, created=step.created, created_by=step.created_by, comment=step.comment
            )
            for step in self._images.history(image)
        ]
        return api.History(id=image.id, tags=image.tags, steps=steps, chain_ids=chain_ids(image.diff_ids))

    @unary
    async def ImageDiff(self, request: api.ImageDiffRequest) -> api.DiffResponse:
        base = self._image(request.base) if request.base else None
        found = await differences(self._images, self._image(request.image), base)
        return api.DiffResponse(changes=[api.Change(kind=kind, path=path) for kind, path in found])

    @unary
    async def MountImage(self, request: api.ImageName) -> api.MountedImage:
        image = self._image(request.image)
        return api.MountedImage(id=image.id, path=str(await self._images.mount(image)))

    @unary
    async def UnmountImage(self, request: api.ImageName) -> api.MountedImage:
        image = self._image(request.image)
        return api.MountedImage(id=image.id, path=str(await self._images.unmount(image)))

    @unary
    async def MountedImages(self, request: api.ImagesRequest) -> api.MountedImagesResponse:
        found = [(image, self._images.mounted_at(image)) for image in self._images.list()]
        return api.MountedImagesResponse(images=[api.MountedImage(id=image.id, path=str(path)) for image, path in found if path])

    @unary
    async def PruneBuilds(self, request: api.PruneBuildsRequest) -> api.PruneBuildsResponse:
        return api.PruneBuildsResponse(freed_bytes=await self._images.prune_builds())

    @unary
    async def Tag(self, request: api.TagRequest) -> api.TagResponse:
        image = self._image(request.image)
        self._images.tag(image, request.reference)
        self._note_image("tag", image, request.reference)
        return api.TagResponse()

    @unary
    async def RemoveImage(self, request: api.ImageName) -> api.RemoveImageResponse:
        image = self._image(request.image)
        await self._images.remove(request.image)
        self._note_image("untag" if self._images.resolve(image.id) else "delete", image, request.image)
        return api.RemoveImageResponse()

    @streaming
    async def Build(self, request: api.BuildRequest) -> AsyncGenerator[api.BuildEvent, None]:
        async def work(say: Any) -> str:
            image = await build(
                self._images,
                Path(request.context),
                tag=request.tags[0] if request.tags else None,
                file=Path(request.file) if request.file else None,
                build_args=dict(request.build_args),
                build_contexts={name: Path(path) for name, path in request.build_contexts.items()},
                text=request.containerfile if request.HasField("containerfile") else None,
                secrets=dict(request.secrets),
                labels=dict(request.labels),
                target=request.target or None,
                no_cache=request.no_cache,
                pull=request.pull,
                progress=say,
            )
            for tag in request.tags[1:]:
                self._images.tag(image, tag)
            self._note_image("build", image)
            return image.id

        async for event in progress.lines(work):
            yield event

    async def Load(self, stream: Any) -> None:
        with worded():
            images = await chunks.fed(stream, lambda source: archive.load(self._images, source))
        for image in images:
            self._note_image("load", image)
        await stream.send_message(api.LoadResponse(images=[_image(image) for image in images]))

    @streaming
    async def Save(self, request: api.SaveRequest) -> AsyncGenerator[api.Chunk, None]:
        require(request.images, "save: name an image")
        async for chunk in chunks.written(lambda target: archive.save(self._images, list(request.images), target)):
            yield chunk

    def _note_image(self, action: str, image: Image, name: str = "") -> None:
        self._events.note("image", action, image.id, **{**image.config.labels, "name": name or "".join(image.tags[:1])})


def _image(image: Image) -> api.Image:
    return api.Image(
        id=image.id,
        tags=image.tags,
        digests=image.digests,
        size_bytes=image.size_bytes,
        created=image.created,
        pinned=image.pinned,
        platform=image.platform,
    )

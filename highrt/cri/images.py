"""CRI's ImageService."""

import base64
import binascii
import time
from collections.abc import AsyncGenerator
from contextlib import suppress

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from highrt.cri import info
from highrt.cri.calls import require, streaming, unary
from highrt.images.errors import ImageNotFound, ImageRefused
from highrt.images.model import Auth, Image
from highrt.images.service import ImageService
from highrt.images.snapshots import chain_ids
from highrt.pods.errors import InvalidArgument
from strata.protocols import cri_pb2 as cri
from strata.protocols.cri_grpc import ImageServiceBase

_CHUNK = 100
_REFUSED = "SignatureValidationFailed"
"""The word by which a kubelet knows that a policy did not let an image in (k8s.io/cri-api, errors)."""


class CriImages(ImageServiceBase):
    def __init__(self, images: ImageService) -> None:
        self._images = images

    @unary
    async def PullImage(self, request: cri.PullImageRequest) -> cri.PullImageResponse:
        require(request.image.image, "PullImage: image.image is empty: name the image to pull")
        auth = auth_of(request.auth) if request.HasField("auth") else None
        try:
            image = await self._images.pull(request.image.image, auth=auth)
        except ImageRefused as error:
            raise GRPCError(Status.UNKNOWN, f"{_REFUSED}: {error}") from error
        return cri.PullImageResponse(image_ref=image.id)

    @unary
    async def ListImages(self, request: cri.ListImagesRequest) -> cri.ListImagesResponse:
        return cri.ListImagesResponse(images=self._list(request.filter))

    @streaming
    async def StreamImages(self, request: cri.StreamImagesRequest) -> AsyncGenerator[cri.StreamImagesResponse, None]:
        images = self._list(request.filter)
        for start in range(0, len(images), _CHUNK):
            yield cri.StreamImagesResponse(images=images[start : start + _CHUNK])

    @unary
    async def ImageStatus(self, request: cri.ImageStatusRequest) -> cri.ImageStatusResponse:
        require(request.image.image, "ImageStatus: image.image is empty: name the image to look for")
        image = self._images.resolve(request.image.image)
        if image is None:
            return cri.ImageStatusResponse()
        response = cri.ImageStatusResponse(image=image_message(image))
        if request.verbose:
            chain = chain_ids(image.diff_ids)
            response.info.update(info.of_image(chain[-1] if chain else "", self._images.content.document(image.id)))
        return response

    @unary
    async def RemoveImage(self, request: cri.RemoveImageRequest) -> cri.RemoveImageResponse:
        require(request.image.image, "RemoveImage: image.image is empty: name the image to remove")
        with suppress(ImageNotFound):  # CRI: removing an image that is not here succeeds
            await self._images.remove(request.image.image)
        return cri.RemoveImageResponse()

    @unary
    async def ImageFsInfo(self, request: cri.ImageFsInfoRequest) -> cri.ImageFsInfoResponse:
        usage = self._images.usage()
        filesystem = cri.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=cri.FilesystemIdentifier(mountpoint=str(usage.path)),
            used_bytes=cri.UInt64Value(value=usage.bytes),
            inodes_used=cri.UInt64Value(value=usage.inodes),
        )
        return cri.ImageFsInfoResponse(image_filesystems=[filesystem], container_filesystems=[filesystem])

    def _list(self, wanted: cri.ImageFilter) -> list[cri.Image]:
        if wanted.image.image:
            image = self._images.resolve(wanted.image.image)
            return [image_message(image)] if image else []
        return [image_message(image) for image in self._images.list()]


def image_message(image: Image) -> cri.Image:
    message = cri.Image(id=image.id, repo_tags=image.tags, repo_digests=image.digests, size=image.size_bytes, pinned=image.pinned)
    user = image.config.user.partition(":")[0]
    if user.isdigit():
        message.uid.value = int(user)
    else:
        message.username = user
    return message


def auth_of(message: cri.AuthConfig) -> Auth:
    """The credentials of a request. Raises InvalidArgument where `auth` is not base64 of USER:PASSWORD."""
    username, password = message.username, message.password
    if message.auth and not username:
        try:
            username, colon, password = base64.b64decode(message.auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidArgument(f"PullImage: auth.auth is not base64 of USER:PASSWORD: {error}") from error
        require(colon, "PullImage: auth.auth is not base64 of USER:PASSWORD: it has no colon")
        # docker pads the password with NUL bytes in old configuration files
        password = password.rstrip("\0")
    return Auth(
        username=username,
        password=password,
        server_address=message.server_address,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
    )

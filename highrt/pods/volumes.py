"""Image volumes: an image's files, or a folder or file of them, as a read-only mount of a container (KEP-4639).

Each volume is a snapshot of its own on the image, so that the image's layers stay while the container is there, mounted at
`STATE/pods/POD/CONTAINER/volumes/N`. Images are mounted without what is specific to containers: the mount is never written.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from highrt.images.model import Image
from highrt.images.rooted import RootedTree
from highrt.images.snapshots import Rootfs
from highrt.pods.errors import InvalidArgument, NotFound
from strata.linux import mounts
from strata.protocols.cri_pb2 import ContainerConfig, Mount, MountPropagation


class Images(Protocol):
    """What of the image service is needed here."""

    def resolve(self, reference_or_id: str) -> Image | None: ...

    async def prepare(self, image: Image, key: str) -> Rootfs: ...

    async def release(self, key: str) -> None: ...


def resolved(config: ContainerConfig, images: Images) -> ContainerConfig:
    """The configuration with the images' IDs beside their names, as ContainerStatus tells them (KEP-5365).

    Raises InvalidArgument for a mount that cannot be, and NotFound where an image is not here.
    """
    if not any(True for _ in _of(config)):
        return config
    found = ContainerConfig()
    found.CopyFrom(config)
    for mount in _of(found):
        _check(mount)
        image = images.resolve(mount.image.image)
        if image is None:
            raise NotFound(f"mount at {mount.container_path}: image {mount.image.image!r} is not here: pull it first")
        mount.image.image_ref = image.id
    return found


async def make(config: ContainerConfig, images: Images, container_id: str, folder: Path, user_namespace: str) -> list[Path]:
    """Mounts all image volumes of a container: what each of them shows, in the order of the mounts.

    config: as `resolved` gives it. folder: the container's. user_namespace: the pod's, "" for the host's.

    Raises ImageError, InvalidArgument, NotFound, OSError.
    """
    sources = []
    for number, mount in enumerate(_of(config)):
        image = images.resolve(mount.image.image_ref)
        if image is None:
            raise NotFound(f"mount at {mount.container_path}: image {mount.image.image!r} is not here any more: pull it again")
        rootfs = await images.prepare(image, _key(container_id, number))
        target = _folder(folder, number)
        target.mkdir(parents=True)
        rootfs.mount_read_only(target, user_namespace)
        sources.append(_below(target, mount))
    return sources


def unmount(config: ContainerConfig, folder: Path) -> None:
    """Takes the volumes' mounts away; none there is fine. Raises OSError."""
    for number, _ in enumerate(_of(config)):
        try:
            mounts.umount(str(_folder(folder, number)), mounts.DETACH)
        except OSError as error:
            if error.errno not in (2, 22):  # ENOENT, EINVAL: no folder, no mount
                raise


async def release(config: ContainerConfig, images: Images, container_id: str) -> None:
    """Lets the images go; the volumes are not mounted any more."""
    for number, _ in enumerate(_of(config)):
        await images.release(_key(container_id, number))


def is_volume(mount: Mount) -> bool:
    return bool(mount.HasField("image") and mount.image.image)


def _of(config: ContainerConfig) -> Iterator[Mount]:
    return (mount for mount in config.mounts if is_volume(mount))


def _check(mount: Mount) -> None:
    where = mount.container_path
    if mount.host_path:
        raise InvalidArgument(f"mount at {where}: it has an image and a host_path: one of them only")
    if not mount.readonly:
        raise InvalidArgument(f"mount at {where}: an image can be mounted read-only only: set readonly")
    if mount.propagation != MountPropagation.PROPAGATION_PRIVATE:
        raise InvalidArgument(f"mount at {where}: an image volume has no propagation")
    path = mount.image_sub_path
    if path.startswith("/") or ".." in path.split("/"):
        raise InvalidArgument(f"mount at {where}: image_sub_path {path!r} must be relative and without `..`")


def _below(target: Path, mount: Mount) -> Path:
    if not mount.image_sub_path:
        return target
    with RootedTree(str(target)) as tree:
        try:
            descriptor = tree.open(mount.image_sub_path, os.O_PATH)
        except OSError as error:
            raise InvalidArgument(
                f"mount at {mount.container_path}: image_sub_path {mount.image_sub_path!r} of image {mount.image.image}: "
                f"{error.strerror}"
            ) from None
        try:
            return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        finally:
            os.close(descriptor)


def _key(container_id: str, number: int) -> str:
    return f"{container_id}-volume-{number}"


def _folder(folder: Path, number: int) -> Path:
    return folder / "volumes" / str(number)

"""What can go wrong with images. Each error's text is written for the person who typed the image's name."""

import errno

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class ImageError(Exception):
    """The base of all errors of highrt.images."""


class InvalidReference(ImageError):
    """An image name that does not follow the grammar of references."""


class ImageNotFound(ImageError):
    """The image is not here, or its registry does not have it."""


class ImageInUse(ImageError):
    """The image cannot be removed while a snapshot stands on it."""


class RegistryUnauthorized(ImageError):
    """The registry refused the credentials, or asked for some where none were given."""


class RegistryUnavailable(ImageError):
    """The registry could not be reached, or failed again and again."""


class RegistryForbids(ImageError):
    """The registry does not do this for anybody, such as deleting."""


class DigestMismatch(ImageError):
    """Content that is not what its digest or size says."""


class InvalidImage(ImageError):
    """A manifest, configuration, layer or archive that breaks the image specification."""


class ImageRefused(ImageError):
    """The administrator's policy does not let the image in."""


class StorageFailed(ImageError):
    """The disk of images is full, read-only or broken."""


class InvalidConfiguration(ImageError):
    """A hosts.toml that cannot be understood, or metadata of a newer version."""


class BuildError(ImageError):
    """A Containerfile that cannot be built; the text names its line."""


def is_of_disk(error: BaseException) -> bool:
    """Whether the disk of images is to blame."""
    return isinstance(error, StorageFailed) or (isinstance(error, OSError) and error.errno in _OF_DISKS)

"""An OCI layout as a folder (image-spec, image-layout.md): the daemon reads and writes archives, as streams."""

import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import BinaryIO

from highrt.cli.connection import DaemonError

_CHUNK = 1 << 20


@contextmanager
def packed(folder: str) -> Iterator[BinaryIO]:
    """The folder's archive, to read from. Raises DaemonError where a file of it cannot be read."""
    reading, writing = _pipe()

    def pack() -> None:
        # who reads may stop before the end
        with suppress(BrokenPipeError), writing, tarfile.open(fileobj=writing, mode="w|") as tar:
            tar.add(folder, arcname=".")

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(pack)
        with reading:
            yield reading
        if error := task.exception():
            raise DaemonError(f"cannot read the OCI layout {folder}: {error}")


@contextmanager
def unpacked(folder: str) -> Iterator[BinaryIO]:
    """A file whose archive becomes the folder, which must be empty or not there; after a failure nothing of it is left.

    Raises DaemonError.
    """
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise DaemonError(f"cannot save to {folder}: an OCI layout is written to a new or an empty folder")
    reading, writing = _pipe()

    def unpack() -> None:
        with reading:
            with tarfile.open(fileobj=reading, mode="r|") as tar:
                for member in tar:
                    if content := tar.extractfile(member):
                        _write(content, os.path.join(folder, os.path.normpath(f"/{member.name}").lstrip("/")))  # type: ignore[arg-type]
            while reading.read(_CHUNK):  # what fills up the archive's last block
                pass

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(unpack)
        try:
            with suppress(BrokenPipeError), writing:  # the other end says why
                yield writing
            if error := task.exception():
                raise DaemonError(f"cannot save to {folder}: {error}")
        except BaseException:
            wait([task])
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _write(content: BinaryIO, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        shutil.copyfileobj(content, file, _CHUNK)


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb"), os.fdopen(writing, "wb")

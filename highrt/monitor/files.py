"""Small files, whole. Python's own file objects would cost every monitor a tenth of a megabyte of written pages."""

import os


def read(path: str) -> str:
    """The text of a file, UTF-8 with what is none replaced. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = b""
        while data := os.read(descriptor, 65536):
            found += data
    finally:
        os.close(descriptor)
    return found.decode(errors="replace")


def write(path: str, text: str, flags: int = 0, *, sync: bool = False) -> None:
    """Writes a text to a file, made where it is not there. flags: O_TRUNC, O_EXCL. sync: to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        data = text.encode()
        while data:
            data = data[os.write(descriptor, data) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Nothing happens where it is not there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass

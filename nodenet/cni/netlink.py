"""Netlink sockets inside a network namespace, without a child process.

A netlink socket belongs to the namespace in which it was made, whatever its process does afterwards. So the calling thread
steps into the pod's namespace, opens the socket and steps back; it takes tens of microseconds.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from nodenet.cni.errors import INTERNAL, TRY_AGAIN_LATER, UNKNOWN_CONTAINER, CniError
from strata.linux import namespaces, syscalls
from strata.linux.rtnetlink import Link, Netlink


class NamespaceGone(Exception):
    """The path is no network namespace (any more)."""


def open_namespace(path: str) -> int:
    """A descriptor of a network namespace, to be closed. Raises NamespaceGone, also for a file that is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceGone(f"{path}: {os.strerror(error.errno or 0)}") from None
    # A pinned namespace that was unmounted leaves an empty, ordinary file.
    if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("net:"):
        try:
            with inside(descriptor):
                pass
        except OSError:
            os.close(descriptor)
            raise NamespaceGone(f"{path}: not a network namespace") from None
    return descriptor


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """This thread's network namespace is the given one. The way back cannot fail short of a broken kernel."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(namespace, namespaces.NEWNET)
        try:
            yield
        finally:
            syscalls.setns(home, namespaces.NEWNET)
    finally:
        os.close(home)


def connect(namespace: int | None = None) -> Netlink:
    """A socket of this namespace, or of the given one."""
    if namespace is None:
        return Netlink()
    with inside(namespace):
        return Netlink()


@contextmanager
def namespace_of(path: str) -> Iterator[int]:
    """The namespace of a call that needs one. Raises CniError (unknown container) where it is gone."""
    try:
        descriptor = open_namespace(path)
    except NamespaceGone as error:
        raise CniError(
            UNKNOWN_CONTAINER, f"failed to open netns {error}", "is CNI_NETNS right, and the pod still there?"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def existing_link(socket: Netlink, name: str) -> Link:
    """A link that was just made. Raises CniError where it has vanished again."""
    found = socket.link(name)
    if found is None:
        raise CniError(TRY_AGAIN_LATER, f"interface {name} vanished while it was being set up")
    return found


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns a refusal of the kernel's into a CniError that says what was tried."""
    try:
        yield
    except OSError as error:
        raise CniError(INTERNAL, f"failed to {what}: {os.strerror(error.errno or 0)}") from error

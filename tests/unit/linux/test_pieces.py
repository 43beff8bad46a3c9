"""Pieces of strata.linux that need no privileges."""

import os
import socket

import pytest

from strata.linux import capabilities, descriptors, mounts, namespaces, pidfds


def test_capabilities_by_name() -> None:
    assert capabilities.mask(["CAP_CHOWN", "CAP_KILL"]) == 0b100001
    assert capabilities.mask(None) == 0
    assert capabilities.NUMBERS["CAP_CHECKPOINT_RESTORE"] == 40
    with pytest.raises(ValueError, match="CAP_NOSUCH"):
        capabilities.mask(["CAP_NOSUCH"])


def test_mountinfo_is_read_with_its_escapes() -> None:
    line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime shared:1 master:2 - ext3 /dev/ro\134ot rw,errors=continue"
    mount = mounts.Mount(line)
    assert (mount.id, mount.parent, mount.root, mount.target) == (36, 35, "/mnt1", "/mnt 2")
    assert (mount.options, mount.optional) == ("rw,noatime", ("shared:1", "master:2"))
    assert (mount.fstype, mount.source, mount.super_options) == ("ext3", r"/dev/ro\ot", "rw,errors=continue")
    assert any(one.target == "/" for one in mounts.mountinfo())


def test_descriptors_pass_between_sockets() -> None:
    ours, theirs = descriptors.pair()
    read, write = os.pipe()
    descriptors.send(ours, b"take it", (write,))
    os.close(write)
    data, received = descriptors.receive(theirs)
    assert data == b"take it"
    os.write(received[0], b"through")
    os.close(received[0])
    assert os.read(read, 100) == b"through"
    os.close(read)
    ours.close()
    assert descriptors.receive(theirs) == (b"", [])
    theirs.close()


def test_a_message_with_too_many_descriptors_is_refused_and_leaks_none() -> None:
    ours, theirs = descriptors.pair()
    before = len(os.listdir("/proc/self/fd"))
    descriptors.send(ours, b"x", (0, 1, 2))
    with pytest.raises(OSError, match="too long"):
        descriptors.receive(theirs, max_descriptors=1)
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()


def test_a_pid_with_its_start_time_names_a_process() -> None:
    assert pidfds.start_time(os.getpid()) > 0
    assert not pidfds.is_zombie(os.getpid())
    with pytest.raises(ProcessLookupError):
        pidfds.start_time(2**22 + 1)
    child = os.fork()
    if child == 0:
        os._exit(0)
    pidfd = pidfds.open_pidfd(child)
    assert pidfds.wait_gone(pidfd, 5)
    assert pidfds.is_zombie(child)
    os.waitpid(child, 0)
    assert not pidfds.send_signal(pidfd, 9)
    os.close(pidfd)


def test_namespace_flags_are_those_of_the_kernel() -> None:
    assert namespaces.NEWNET == 0x40000000
    assert namespaces.path_of(1, "network") == "/proc/1/ns/net"


def test_a_closed_pair_is_seen_as_its_end() -> None:
    one, other = descriptors.pair()
    assert one.family == socket.AF_UNIX
    one.close()
    assert descriptors.receive(other) == (b"", [])
    other.close()

"""Pieces of strata.linux that need no privileges."""

import os
import socket
from typing import Any

import pytest

from strata.linux import capabilities, cgroups, descriptors, mounts, namespaces, pidfds
from strata.linux.cgroups import devices


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


@pytest.mark.parametrize("path", ["", "/", "/a/../b", "//."])
def test_a_cgroup_path_that_leaves_the_hierarchy_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="below the root"):
        cgroups.open_cgroup(path)


def run(program: bytes, access: int, kind: int, major: int, minor: int) -> int:
    """What the kernel would answer: the program's few instructions, interpreted."""
    registers = [0] * 11
    words = {0: access << 16 | kind, 4: major, 8: minor}
    place = 0
    while True:
        opcode, packed = program[place * 8], program[place * 8 + 1]
        target, source = packed & 15, packed >> 4
        offset = int.from_bytes(program[place * 8 + 2 : place * 8 + 4], "little", signed=True)
        immediate = int.from_bytes(program[place * 8 + 4 : place * 8 + 8], "little", signed=True)
        place += 1
        match opcode:
            case 0x61:
                registers[target] = words[offset]
            case 0xBF:
                registers[target] = registers[source]
            case 0xB7:
                registers[target] = immediate
            case 0x57:
                registers[target] &= immediate & 0xFFFFFFFFFFFFFFFF
            case 0x77:
                registers[target] >>= immediate
            case 0x55:
                place += offset if registers[target] != immediate else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(hex(opcode))


READ, WRITE, MAKE = 2, 4, 1
CHARACTER, BLOCK = 2, 1


@pytest.mark.parametrize(
    ("access", "kind", "major", "minor", "allowed"),
    [
        (READ, CHARACTER, 1, 3, True),
        (READ | WRITE, CHARACTER, 1, 3, True),
        (READ, CHARACTER, 1, 11, False),
        (READ, CHARACTER, 136, 77, True),
        (MAKE, BLOCK, 8, 0, True),
        (READ, BLOCK, 8, 0, False),
        (READ, CHARACTER, 10, 200, False),
    ],
)
def test_device_rules_decide_as_the_last_one_that_applies(access: int, kind: int, major: int, minor: int, allowed: bool) -> None:
    rules: list[dict[str, Any]] = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "access": "rwm"},
        {"allow": False, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": True, "type": "c", "major": 136, "minor": -1, "access": "rwm"},
        {"allow": True, "type": "b", "access": "m"},
    ]
    assert run(devices.assemble(rules), access, kind, major, minor) == int(allowed)


def test_a_rule_for_everything_ends_the_program() -> None:
    assert run(devices.assemble([{"allow": True, "access": "rwm"}]), READ, BLOCK, 8, 0) == 1
    # Rules before it can never be reached, and the kernel's verifier refuses such code.
    short, long = devices.assemble([{"allow": False}]), devices.assemble([{"allow": True, "type": "c"}, {"allow": False}])
    assert short == long


def test_a_closed_pair_is_seen_as_its_end() -> None:
    one, other = descriptors.pair()
    assert one.family == socket.AF_UNIX
    one.close()
    assert descriptors.receive(other) == (b"", [])
    other.close()

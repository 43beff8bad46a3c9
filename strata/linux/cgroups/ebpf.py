"""Device rules on cgroup v2: an eBPF program on the group, made from the rules (BPF_PROG_TYPE_CGROUP_DEVICE).

The kernel asks it at every open and mknod with a context of three words: the access wanted and the type of the device, its
major and its minor number. All programs on a group and above it must allow.

https://docs.kernel.org/bpf/ and linux/bpf.h; the instructions: https://docs.kernel.org/bpf/standardization/instruction-set.html
"""

import os
from _struct import pack, unpack

from strata.linux import syscalls
from strata.linux.cgroups.common import DENIED
from strata.linux.cgroups.devices import Rules, may_make_no_devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_PROG_TYPE_CGROUP_DEVICE, _CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4
_MOST_PROGRAMS = 64  # the kernel attaches no more to one group
_TYPES = {"b": 1, "c": 2}
_ALL = 7
_R0, _R1, _R2, _R3, _R4, _R5 = range(6)
_UNEQUAL, _EQUAL = 0x55, 0x15


def attach(folder: str, rules: "list[dict[str, Any]]") -> None:
    """Makes a program of these rules the only one on the group in the folder: in place of an earlier one, in one step."""
    meaning = Rules.of(rules)
    try:
        loaded = _load(assemble(meaning))
    except OSError as error:
        if error.errno in DENIED and may_make_no_devices():
            return
        raise OSError(error.errno, f"load the device program of {folder}: {error.strerror}") from None
    group = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    earlier: list[int] = []
    try:
        earlier = _attached(group)
        if len(earlier) == 1:
            try:
                _call(_PROG_ATTACH, pack("5I", group, loaded, _CGROUP_DEVICE, _ALLOW_MULTI | _REPLACE, earlier[0]))
                return
            except OSError as error:
                if error.errno != 22:  # EINVAL: before Linux 5.6 there is no replacing
                    raise
        _call(_PROG_ATTACH, pack("4I", group, loaded, _CGROUP_DEVICE, _ALLOW_MULTI))
        for program in earlier:
            _call(_PROG_DETACH, pack("3I", group, program, _CGROUP_DEVICE))
    except OSError as error:
        raise OSError(error.errno, f"attach the device program to {folder}: {error.strerror}") from None
    finally:
        for descriptor in (*earlier, group, loaded):
            os.close(descriptor)


def assemble(rules: Rules) -> bytes:
    """The program's instructions."""
    code = [
        _load_word(_R2, _R1, 0),  # access << 16 | type
        _instruction(0xBF, _R3, _R2),  # r3 = r2
        _instruction(0x57, _R2, immediate=0xFFFF),  # r2 &= 0xffff: the type
        _instruction(0x77, _R3, immediate=16),  # r3 >>= 16: the access
        _load_word(_R4, _R1, 4),  # major
        _load_word(_R5, _R1, 8),  # minor
    ]
    for (kind, major, minor), access in sorted(rules.exceptions.items()):
        code += _exception(kind, major, minor, access, allow=not rules.allows)
    return b"".join([*code, *_verdict(allow=rules.allows)])


def _exception(kind: str, major: int, minor: int, access: int, *, allow: bool) -> list[bytes]:
    """Tests, each of which jumps past the verdict when it fails."""
    tests: list[tuple[int, int, int]] = [(_UNEQUAL, _R2, _TYPES[kind])]
    if access != _ALL:
        # To be allowed, all that is wanted must be in the exception; to be denied, any of it is enough.
        mask = _ALL & ~access if allow else access
        tests += [(0xBF, _R1, _R3), (0x57, _R1, mask), (_UNEQUAL if allow else _EQUAL, _R1, 0)]
    tests += [(_UNEQUAL, register, number) for register, number in ((_R4, major), (_R5, minor)) if number >= 0]
    verdict = _verdict(allow=allow)
    placed = []
    for index, (opcode, register, value) in enumerate(tests):
        if opcode == 0xBF:
            placed.append(_instruction(opcode, register, value))
        else:
            distance = len(tests) - index - 1 + len(verdict) if opcode in (_UNEQUAL, _EQUAL) else 0
            placed.append(_instruction(opcode, register, offset=distance, immediate=value))
    return placed + verdict


def _verdict(*, allow: bool) -> list[bytes]:
    return [_instruction(0xB7, _R0, immediate=int(allow)), _instruction(0x95)]


def _instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return pack("BBhI", opcode, source << 4 | target, offset, immediate & 0xFFFFFFFF)


def _load_word(target: int, base: int, offset: int) -> bytes:
    return _instruction(0x61, target, base, offset)


def _load(program: bytes) -> int:
    license_ = b"Apache\0"
    places = syscalls.address_of(program), syscalls.address_of(license_)
    return _call(_PROG_LOAD, pack("IIQQ", _PROG_TYPE_CGROUP_DEVICE, len(program) // 8, *places))


def _attached(group: int) -> list[int]:
    """Descriptors of the group's programs; one that this process may not touch (an LSM's label) is left out."""
    identifiers = syscalls.memory(4 * _MOST_PROGRAMS)
    query = pack("4IQI", group, _CGROUP_DEVICE, 0, 0, syscalls.address_of(identifiers), _MOST_PROGRAMS)
    attributes = syscalls.memory(query.ljust(128, b"\0"))
    syscalls.bpf(_PROG_QUERY, attributes)
    (count,) = unpack("I", attributes[24:28])
    found = []
    for identifier in unpack(f"{count}I", identifiers[: 4 * count]):
        try:
            found.append(_call(_PROG_GET_FD_BY_ID, pack("I", identifier)))
        except PermissionError:
            continue
    return found


def _call(command: int, attributes: bytes) -> int:
    return syscalls.bpf(command, attributes.ljust(128, b"\0"))

"""Device rules on cgroup v2: an eBPF program on the group, made from the list of rules (BPF_PROG_TYPE_CGROUP_DEVICE).

The kernel asks it at every open and mknod with a context of three words: the access wanted and the type of the device, its
major and its minor number. The last rule that applies decides, so the program tries them from the end.
"""

import os
from _struct import pack, unpack

from strata.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BPF_PROG_LOAD, _BPF_PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_DEVICE, _CGROUP_DEVICE = 15, 6
_ALLOW_MULTI = 2
_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_VERDICT_LENGTH = 2
_R0, _R1, _R2, _R3, _R4, _R5 = range(6)


def attach(folder: str, rules: "list[dict[str, Any]]") -> None:
    """Loads the program for these rules and attaches it to the group in the folder."""
    program = assemble(rules)
    license_ = b"Apache\0"
    attributes = pack(
        "IIQQ", _PROG_TYPE_CGROUP_DEVICE, len(program) // 8, syscalls.address_of(program), syscalls.address_of(license_)
    )
    loaded = syscalls.bpf(_BPF_PROG_LOAD, attributes.ljust(128, b"\0"))
    try:
        group = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attributes = pack("IIII", group, loaded, _CGROUP_DEVICE, _ALLOW_MULTI)
            syscalls.bpf(_BPF_PROG_ATTACH, attributes.ljust(128, b"\0"))
        finally:
            os.close(group)
    finally:
        os.close(loaded)


def assemble(rules: "list[dict[str, Any]]") -> bytes:
    """The program's instructions. Without a rule that applies, access is denied."""
    code = [
        _load_word(_R2, _R1, 0),  # access << 16 | type
        _instruction(0xBF, _R3, _R2),  # r3 = r2
        _instruction(0x57, _R2, immediate=0xFFFF),  # r2 &= 0xffff: the type
        _instruction(0x77, _R3, immediate=16),  # r3 >>= 16: the access
        _load_word(_R4, _R1, 4),  # major
        _load_word(_R5, _R1, 8),  # minor
    ]
    for rule in reversed(rules):
        instructions = _rule(rule)
        code += instructions
        if len(instructions) == _VERDICT_LENGTH:  # it applies to everything: the verifier refuses what cannot be reached
            return b"".join(code)
    return b"".join([*code, *_verdict(allow=False)])


def _rule(rule: "dict[str, Any]") -> list[bytes]:
    """Tests, each of which jumps past the rule's verdict when it fails."""
    access = 0
    for letter in rule.get("access") or "rwm":
        access |= _ACCESS[letter]
    tests: list[bytes] = []  # instructions; a jump's offset is filled in below
    kind = rule.get("type") or "a"
    if kind != "a":
        tests.append(_instruction(0x55, _R2, immediate=_TYPES[kind]))  # if r2 != type
    if access != 7:
        # All of what is wanted must be in the rule: wanted & ~access == 0.
        tests.append(_instruction(0xBF, _R1, _R3))
        tests.append(_instruction(0x57, _R1, immediate=7 & ~access))
        tests.append(_instruction(0x55, _R1, immediate=0))
    for register, name in ((_R4, "major"), (_R5, "minor")):
        number = rule.get(name)
        if number is not None and number >= 0:
            tests.append(_instruction(0x55, register, immediate=number))
    verdict = _verdict(allow=bool(rule.get("allow")))
    length = len(tests) + len(verdict)
    placed = []
    for index, test in enumerate(tests):
        opcode, registers, _, immediate = unpack("BBhi", test)
        offset = length - index - 1 if opcode == 0x55 else 0
        placed.append(pack("BBhi", opcode, registers, offset, immediate))
    return placed + verdict


def _verdict(*, allow: bool) -> list[bytes]:
    return [_instruction(0xB7, _R0, immediate=int(allow)), _instruction(0x95)]


def _instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return pack("BBhi", opcode, source << 4 | target, offset, immediate)


def _load_word(target: int, base: int, offset: int) -> bytes:
    return _instruction(0x61, target, base, offset)

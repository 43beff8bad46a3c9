"""Seccomp programs, decided as the kernel would: by interpreting them."""

import errno
import struct
from pathlib import Path
from typing import Any

import pytest

from strata.linux import seccomp

X86_64, X86, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
X32_BIT = 1 << 30
ALLOW, KILL_THREAD = 0x7FFF0000, 0
ERRNO = 0x00050000
ENOSYS = ERRNO | errno.ENOSYS


def decide(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would return for a call (classic BPF over struct seccomp_data)."""
    data = struct.pack("IIQ6Q", number, architecture, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    accumulator = place = 0
    while True:
        code, if_true, if_false, constant = struct.unpack_from("HBBI", program, place * 8)
        place += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x05:
                place += constant
            case 0x15:
                place += if_true if accumulator == constant else if_false
            case 0x25:
                place += if_true if accumulator > constant else if_false
            case 0x35:
                place += if_true if accumulator >= constant else if_false
            case 0x45:
                place += if_true if accumulator & constant else if_false
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def compiled(profile: dict[str, Any]) -> bytes:
    return bytes(seccomp.compile_program(profile))


def allowing(*names: str, **fields: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": list(names), "action": "SCMP_ACT_ALLOW"}], **fields}


ARCHITECTURES = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_RISCV64",
                 "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PPC64LE"]  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "read", "mkdir", "above"),
    [
        (X86_64, 0, 83, 438),
        (X86_64, X32_BIT | 0, X32_BIT | 83, X32_BIT | 438),
        (X86, 3, 39, 438),
        (AARCH64, 63, 34, 438),
        (0xC00000F3, 63, 34, 438),
        (0xE0000008, 6000, 6081, 6438),
        (0xC0000015, 3, 39, 438),
    ],
    ids=["x86_64", "x32", "x86", "aarch64", "riscv64", "mips n32", "ppc64le"],
)
def test_each_architecture_has_its_own_numbers_and_its_own_end(architecture: int, read: int, mkdir: int, above: int) -> None:
    program = compiled(allowing("read", "openat2", architectures=ARCHITECTURES))  # openat2: 437 everywhere, plus the ABI's own
    assert decide(program, architecture, read) == ALLOW
    assert decide(program, architecture, mkdir) == ERRNO | errno.EPERM
    assert decide(program, architecture, above) == ENOSYS
    assert decide(program, architecture, above - 1) == ALLOW


def test_an_architecture_that_is_not_named_is_fatal() -> None:
    program = compiled(allowing("read", architectures=["SCMP_ARCH_X86_64"]))
    assert decide(program, X86_64, 0) == ALLOW
    assert decide(program, X86, 3) == KILL_THREAD
    assert decide(program, X86_64, X32_BIT) == KILL_THREAD


def test_the_machines_own_architecture_is_always_there() -> None:
    program = compiled(allowing("read", "openat2", architectures=["SCMP_ARCH_X86"]))
    assert decide(program, X86_64, 0) == ALLOW
    assert decide(program, X86_64, 999) == ENOSYS
    assert decide(program, X86, 3) == ALLOW


@pytest.mark.parametrize(
    "fields",
    [{"defaultAction": "SCMP_ACT_ALLOW"}, {"defaultAction": "SCMP_ACT_LOG"}, {"defaultAction": "SCMP_ACT_TRACE"}],
)
def test_a_profile_that_refuses_single_calls_says_nothing_about_new_ones(fields: dict[str, str]) -> None:
    rules = [{"names": ["mkdir"], "action": "SCMP_ACT_KILL"}]
    assert decide(compiled({"syscalls": rules, **fields}), X86_64, 999) == seccomp.action_value(fields["defaultAction"], None)


@pytest.mark.parametrize("default", ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"])
def test_new_calls_do_not_exist_also_where_others_are_fatal(default: str) -> None:
    program = compiled(allowing("read", "openat2", defaultAction=default))
    assert decide(program, X86_64, 83) == seccomp.ACTIONS[default]
    assert decide(program, X86_64, 999) == ENOSYS


def test_a_long_profile_decides_as_a_short_one() -> None:
    """Beyond 32 calls libseccomp makes a tree of them."""
    names = [f"{kind}{suffix}" for kind in ("set", "get") for suffix in ("uid", "gid", "pgid", "groups", "resuid", "resgid",
             "priority", "rlimit", "itimer", "sid")] + ["read", "write", "close", "fstat", "lseek", "mmap", "munmap", "brk",
             "ioctl", "access", "pipe", "select", "dup", "dup2", "pause", "alarm", "openat2"]  # fmt: skip
    program = compiled(allowing(*names))
    assert [decide(program, X86_64, number) for number in (0, 1, 3, 16, 437)] == [ALLOW] * 5
    assert decide(program, X86_64, 2) == ERRNO | errno.EPERM
    assert decide(program, X86_64, 438) == ENOSYS


def test_a_call_of_64_bit_arguments_is_compared_whole() -> None:
    rule = {"names": ["getcpu"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 2, "value": 5 << 32, "op": "SCMP_CMP_EQ"}]}
    program = compiled({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    assert decide(program, X86_64, 309, 0, 0, 5 << 32) == ERRNO | errno.EPERM
    assert decide(program, X86_64, 309, 0, 0, 5) == ALLOW


def test_flags_are_those_of_the_kernel() -> None:
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule], "listenerPath": "/x"}
    assert seccomp.checked_flags(profile) == 4 | 8
    profile["flags"] = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    assert seccomp.checked_flags(profile) == 2 | 8 | 32
    assert set(seccomp.supported_flags()) <= set(seccomp.FLAGS)
    assert {"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"} <= set(seccomp.supported_flags())


def test_a_kept_program_belongs_to_one_profile_and_one_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kept"
    for profile in (allowing("read"), allowing("read"), allowing("write"), allowing("read", architectures=["SCMP_ARCH_X86"])):
        seccomp.compile_program(profile, str(folder))
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr(seccomp, "_LIBRARY_FOLDERS", (str(tmp_path),))
    (tmp_path / "libseccomp.so.2").write_bytes(b"a newer one")
    seccomp.compile_program(allowing("read"), str(folder))
    assert len(list(folder.iterdir())) == 4
    (tmp_path / "libseccomp.so.2").unlink()  # where the version cannot be told, nothing is kept
    seccomp.compile_program(allowing("close"), str(folder))
    assert len(list(folder.iterdir())) == 4


def test_a_program_that_the_kernel_would_not_take_is_refused() -> None:
    arguments = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in range(4200)]
    rule = {"names": ["getcpu"], "action": "SCMP_ACT_ERRNO", "args": arguments}
    with pytest.raises(ValueError, match="4096 instructions"):
        seccomp.compile_program({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})

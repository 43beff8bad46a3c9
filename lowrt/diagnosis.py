"""Why the kernel would not execute a program that is there, told by the program's first bytes, outside of the container.

execve(2) says "no such file or directory" also where it is the interpreter that is missing, and "exec format error" of all
that it does not know. People then look for a file that they can see.
"""

import errno
import os

# e_machine (elf(5)) as uname(2) says it.
_MACHINES = {3: "i386", 8: "mips", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64",
             258: "loongarch64"}  # fmt: skip
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PT_INTERP = 3


def of_exec(evidence: bytes) -> str:
    """What to add to the kernel's word: ": " and the reason, or nothing. evidence: the error number, a space, the first bytes."""
    number, _, first = evidence.partition(b" ")
    if not first:
        return ": the file is empty" if int(number) == errno.ENOEXEC else ""
    return _REASONS.get(int(number), lambda _: "")(first)


def _missing(first: bytes) -> str:
    if first.startswith(b"#!"):
        name = _named_interpreter(first)
        if name.endswith(b"\r"):
            return (
                f': its first line ends as on Windows (CRLF), so that its interpreter is "{_text(name)}": write the file with'
                " line feeds alone (dos2unix)"
            )
        return f": its interpreter {_text(name)} (of its first line), or what that needs, is not in the container"
    if loader := _loader(first):
        return f": its loader {_text(loader)} is not in the container (is it built for another C library?)"
    return ""


def _format(first: bytes) -> str:
    if first.startswith(b"\x7fELF"):
        order = "big" if first[5:6] == b"\x02" else "little"
        number = int.from_bytes(first[18:20], order)  # type: ignore[arg-type]
        machine, own = _MACHINES.get(number, f"machine {number}"), os.uname().machine
        return f": it is built for {machine}, and this machine is {own}" if machine != own else ": its ELF header is damaged"
    if first.startswith(_BYTE_ORDER_MARK):
        return ": it begins with a byte order mark, which hides its first line: save it as UTF-8 without one"
    if first.startswith(b"#!"):
        return f": its interpreter {_text(_named_interpreter(first))} (of its first line) is no program for this machine"
    return ": it is no program, and names no interpreter in its first line (#!/bin/sh)"


def _denied(first: bytes) -> str:
    if first.startswith(b"#!"):
        return f": it, or its interpreter {_text(_named_interpreter(first))} (of its first line), may not be executed"
    return ""


_REASONS = {errno.ENOENT: _missing, errno.ENOEXEC: _format, errno.EACCES: _denied}


def _named_interpreter(first: bytes) -> bytes:
    """As the kernel reads it (fs/binfmt_script.c): up to a blank; a carriage return is no blank."""
    line = first[2:].partition(b"\n")[0].strip(b" \t")
    return line.replace(b"\t", b" ").partition(b" ")[0]


def _loader(first: bytes) -> bytes:
    """The dynamic loader that a 64-bit little-endian ELF file names (PT_INTERP); b"" where there is none in these bytes."""
    if first[:6] != b"\x7fELF\x02\x01":
        return b""

    def number(at: int, size: int) -> int:
        return int.from_bytes(first[at : at + size], "little")

    table, size, count = number(32, 8), number(54, 2), number(56, 2)
    for entry in range(table, table + size * count, size or 1):
        if number(entry, 4) == _PT_INTERP:
            start = number(entry + 8, 8)
            return first[start : start + number(entry + 32, 8)].rstrip(b"\0")
    return b""


def _text(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace"))[1:-1]

"""Takes the snapshot from which the command wakes: runs `sleeper` under ptrace until it sleeps, and saves its memory.

`/usr/bin/python3 lowrt/boot/snapshot.py` (scripts/setup does it) writes `lowrt/snapshot`, for the launcher beside it. A snapshot
serves as long as the files that it was made from (the interpreter, its libraries, all modules) and the processor are the same;
the launcher looks, and starts the interpreter otherwise, so nobody has to remember to take it anew. It has no secrets of the
process that took it. What every process that wakes from it shares is where its memory lies and how its strings are hashed.
"""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lowrt.boot import _sleep
from strata.linux import syscalls

_PTRACE = 101  # the number of the system call, on x86-64
_TRACEME, _CONT, _GETREGS, _SETOPTIONS = 0, 7, 12, 0x4200
_EXITKILL = 0x100000
# struct user_regs_struct, 27 words, of which:
_RBP, _RIP, _RSP, _FS_BASE, _REGISTERS = 4, 16, 19, 21, 27
_AT_IGNORE, _AT_SYSINFO_EHDR = 1, 33
_PAGE = 4096
_RED_ZONE_BYTES = 128  # below the stack's end, for functions that call nobody
_STACK_BYTES = 8 << 20
_THREAD_BYTES = 0x900  # struct pthread of glibc, generously
# What snapshot.h has.
_MAGIC = b"lowrt 1\n"
_MOST_HEADER_BYTES = 32768
_HEADER = struct.Struct("=8sQQ32sQQQQQQQQ")
_FILE, _REGION = struct.Struct("=QqqQ"), struct.Struct("=QQQQ")
_INTERPRETER = "/usr/bin/python3"
_ENVIRONMENT = {
    "LD_BIND_NOW": "1",  # nothing is left to be looked up
    "GLIBC_TUNABLES": "glibc.pthread.rseq=0",  # the kernel would have to be told about the area anew
}

Region = tuple[int, int, bytes, int]
"""Where, how long, what (zeros follow what is short), PROT_*."""


class Failure(Exception):
    """The process did not get to sleep, or has what cannot be saved."""


def take(folder: Path) -> None:
    """Writes the snapshot for the launcher in the folder. Raises Failure, OSError."""
    program = Path(__file__).with_name("sleeper.py")
    sleeping = subprocess.Popen(
        [_INTERPRETER, "-ISXutf8", program],
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=_be_traced,
    )
    with sleeping:
        try:
            _hide_vdso(sleeping.pid)
            syscalls.call(_PTRACE, _SETOPTIONS, sleeping.pid, 0, _EXITKILL)
            _run_until_it_sleeps(sleeping.pid)
            _check_is_alone(sleeping.pid)
            header, memory = _save(sleeping, folder)
        finally:
            sleeping.kill()
    target = folder / "snapshot"
    temporary = folder / f"snapshot.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            file.write(header)
            for content in memory:
                file.write(content)
        temporary.replace(target)  # never written to once it is there: processes have it mapped
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _be_traced() -> None:
    syscalls.call(_PTRACE, _TRACEME, 0, 0, 0)
    # Who runs this in the background may ignore it, and the interpreter would learn that for good.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _hide_vdso(pid: int) -> None:
    """The C library would remember where the kernel has put its functions, which is elsewhere in each process."""
    _wait_until_stopped(pid)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:

        def word(address: int) -> int:
            memory.seek(address)
            return int.from_bytes(memory.read(8), "little")

        # From the stack's end up: the count of arguments, those and a NULL, the environment and a NULL, the auxiliary vector.
        at = _registers(pid)[_RSP]
        at += 8 * (word(at) + 2)
        while word(at):
            at += 8
        at += 8
        while key := word(at):
            if key == _AT_SYSINFO_EHDR:
                memory.seek(at)
                memory.write(_AT_IGNORE.to_bytes(8, "little"))
            at += 16


def _run_until_it_sleeps(pid: int) -> None:
    number: int = signal.SIGCHLD
    while number == signal.SIGCHLD:  # from what it rehearses with
        syscalls.call(_PTRACE, _CONT, pid, 0, number)
        number = _wait_until_stopped(pid)
    if number != signal.SIGTRAP:
        raise Failure(f"the process to be saved was stopped by {signal.Signals(number).name}")


def _wait_until_stopped(pid: int) -> int:
    """The signal that has stopped it."""
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise Failure(f"the process to be saved has ended with {os.waitstatus_to_exitcode(status)}")
    return os.WSTOPSIG(status)


def _registers(pid: int) -> tuple[int, ...]:
    words = bytearray(8 * _REGISTERS)
    syscalls.call(_PTRACE, _GETREGS, pid, 0, words)
    return struct.unpack(f"={_REGISTERS}Q", words)


def _check_is_alone(pid: int) -> None:
    """Descriptors and threads are the kernel's, and would be missing in who wakes up."""
    if more := sorted(set(os.listdir(f"/proc/{pid}/fd")) - {"0", "1", "2"}):
        raise Failure(f"the process to be saved has files open: {', '.join(os.readlink(f'/proc/{pid}/fd/{fd}') for fd in more)}")
    if len(os.listdir(f"/proc/{pid}/task")) != 1:
        raise Failure("the process to be saved has threads")


def _save(sleeping: "subprocess.Popen[bytes]", folder: Path) -> tuple[bytes, list[bytes]]:
    """The snapshot's header, in whole pages, and the memory that follows it."""
    registers = _registers(sleeping.pid)
    with open(f"/proc/{sleeping.pid}/mem", "rb", buffering=0) as memory:
        regions, mapped = _regions(sleeping.pid, registers[_RSP], memory.fileno())
        thread = os.pread(memory.fileno(), _THREAD_BYTES, registers[_FS_BASE])
    sleeping.kill()
    assert sleeping.stdout
    files = sorted({_INTERPRETER, *mapped, *sleeping.stdout.read().decode().splitlines()})
    names = b"".join(name.encode() + b"\0" for name in [str(folder), *files])
    unpadded = _HEADER.size + _FILE.size * len(files) + _REGION.size * len(regions) + len(names)
    header_bytes = _whole_pages(unpadded)
    if header_bytes > _MOST_HEADER_BYTES:
        raise Failure(f"a header of {header_bytes} bytes is longer than what the launcher reads, {_MOST_HEADER_BYTES}")

    name_at = unpadded - len(names)
    folder_at, name_at = name_at, name_at + len(str(folder).encode()) + 1
    saved_files = b""
    for file in files:
        status = os.stat(file)
        saved_files += _FILE.pack(status.st_size, *divmod(status.st_mtime_ns, 10**9), name_at)
        name_at += len(file.encode()) + 1
    saved_regions, offset, contents = b"", header_bytes, []
    for address, length, content, protection in regions:
        saved_regions += _REGION.pack(address, length, offset if content else 0, protection)
        offset += len(content)
        contents.append(content)
    header = _HEADER.pack(
        _MAGIC, offset, header_bytes, _sleep.cpu(), registers[_RIP], registers[_RSP], registers[_RBP], registers[_FS_BASE],
        _where_is_thread_id(thread, registers[_FS_BASE], sleeping.pid), folder_at, len(files), len(regions),
    )  # fmt: skip
    return (header + saved_files + saved_regions + names).ljust(header_bytes, b"\0"), contents


def _regions(pid: int, stack: int, memory: int) -> tuple[list[Region], set[str]]:
    """The process's memory, each region either saved whole or all zeros, and the files that are mapped."""
    regions: list[Region] = []
    mapped = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, access, _, _, _, *rest = line.split(None, 5)
        start, end = (int(word, 16) for word in span.split("-"))
        name = rest[0] if rest else ""
        protection = sum(1 << bit for bit, letter in enumerate("rwx") if letter in access)
        if not protection or name.startswith(("[v", "[uprobes")):
            continue  # a gap, or the kernel's own
        if name.startswith("/"):
            mapped.add(name)
        if name == "[stack]":
            start = (stack - _RED_ZONE_BYTES) // _PAGE * _PAGE
            regions.append((end - _STACK_BYTES, start - (end - _STACK_BYTES), b"", protection))
        content = os.pread(memory, end - start, start)
        if len(content) != end - start:
            raise Failure(f"cannot read {end - start} bytes of {name or 'memory'} at {start:#x}")
        used = _whole_pages(len(content.rstrip(b"\0")))
        if used:
            _add(regions, (start, used, content[:used], protection))
        if start + used < end:
            regions.append((start + used, end - start - used, b"", protection))
    return regions, mapped


def _add(regions: list[Region], region: Region) -> None:
    """Joins it with the last one, where that goes on in it: a mapping less for each process that wakes."""
    if regions:
        address, length, content, protection = regions[-1]
        if address + length == region[0] and content and protection == region[3]:
            regions[-1] = address, length + region[1], content + region[2], protection
            return
    regions.append(region)


def _where_is_thread_id(thread: bytes, address: int, pid: int) -> int:
    """The C library has it for raise(3). 0 where it is not found: then only that is wrong."""
    found = [at for at in range(0, len(thread), 4) if thread[at : at + 4] == pid.to_bytes(4, "little")]
    return address + found[0] if len(found) == 1 else 0


def _whole_pages(length: int) -> int:
    return -(-length // _PAGE) * _PAGE


if __name__ == "__main__":
    try:
        take(Path(__file__).resolve().parents[1])
    except (Failure, OSError) as failure:
        sys.exit(f"lowrt starts without a snapshot, some milliseconds slower: {failure}")

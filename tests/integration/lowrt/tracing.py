"""What lowrt's processes ask of a container's root, between entering it and becoming a program: by strace."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CALLS = "trace=%file,setns,clone3,clone,fork,vfork"
_LINE = re.compile(r"(\d+) +(.*)")
_PATH = re.compile(r'(\w+)\((?:(?:AT_FDCWD|\d+), )?"((?:[^"\\]|\\.)*)"')
_MAKES_PROCESS = re.compile(r"(?:clone3?|v?fork)\(")
_NEW_PID = re.compile(r"= (\d+)(?: /\* (\d+) in strace's PID NS \*/)?$")
_NOT_OPENED = ("mount", "umount2", "pivot_root", "chroot")  # their "." is what was entered


class Use(NamedTuple):
    """A system call with a path, made inside."""

    call: str
    path: str


def command(output: Path, *more: str) -> list[str]:
    """The command line of strace, to be followed by the one to trace. more: further arguments."""
    return ["strace", "-f", "--seccomp-bpf", "--pidns-translation", "-s", "4096", "-e", CALLS, *more, "-o", str(output)]


def uses(trace: str) -> list[Use]:
    """What processes did with paths after they had changed to a container's root, or joined its mount namespace, and before they
    executed its program. What they fork meanwhile (hooks) counts too."""
    inside: set[int] = set()
    programs: set[int] = set()
    found: list[Use] = []
    for pid, call in _calls(trace):
        done = call.endswith("= 0")
        if pid in programs:
            continue
        if pid in inside:
            if _MAKES_PROCESS.match(call) and (made := _made(call)):
                inside.add(made)
            if (path := _PATH.match(call)) and path[1] not in _NOT_OPENED and path[2]:
                found.append(Use(path[1], path[2]))
            if call.startswith("execve(") and done:
                programs.add(pid)
        elif done and (call.startswith(("pivot_root(", 'chroot(".")')) or _joins_mounts(call)):
            inside.add(pid)
    assert inside or "execve" in trace, "nothing was traced"
    return found


def entered(trace: str) -> bool:
    """Whether any process came inside at all."""
    return any(
        call.endswith("= 0") and (call.startswith(("pivot_root(", 'chroot(".")')) or _joins_mounts(call))
        for _, call in _calls(trace)
    )  # fmt: skip


def _joins_mounts(call: str) -> bool:
    """setns(2) into several namespaces at once, as exec does it; into one alone it is the process's own, to get to its root."""
    return call.startswith("setns(") and "CLONE_NEWNS|" in call


def _calls(trace: str) -> Iterator[tuple[int, str]]:
    """PID and call, whole and in the order of their beginnings, but for the containers that a spawner only plays
    (`lowrt.rehearsal`)."""
    order: list[tuple[int, str]] = []
    begun: dict[int, int] = {}
    for line in trace.splitlines():
        if not (match := _LINE.match(line)):
            continue
        pid, text = int(match[1]), match[2].rstrip()
        if text.endswith("<unfinished ...>"):
            begun[pid] = len(order)
            order.append((pid, text.removesuffix("<unfinished ...>").rstrip()))
        elif text.startswith("<... ") and pid in begun:
            at = begun.pop(pid)
            order[at] = (pid, order[at][1] + text.partition("resumed>")[2])
        else:
            order.append((pid, text))
    rehearsing = {_made(call) for _, call in order if call.startswith("clone3(") and "CLONE_VFORK|CLONE_NEWNS" in call}
    return iter((pid, call) for pid, call in order if pid not in rehearsing)


def _made(call: str) -> int:
    """The PID of the process that a call has made; 0 for none."""
    number = _NEW_PID.search(call)
    return int(number[2] or number[1]) if number else 0

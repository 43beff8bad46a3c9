"""A container's first process, played before there is any container, in a process that others are made from.

CPython replaces the instructions of functions that run often by special ones (PEP 659), fills the caches of its types, and
resolves names: a first process, which lives once, never comes to that. So its life is played here, as far as the exec, which
fails. It is played by children that have this process's memory, so that what the interpreter learns stays here.
"""

import _signal  # type: ignore[import-not-found]
import os

from lowrt import features, init
from lowrt.errors import RuntimeFailure
from strata.linux import descriptors, mounts, namespaces, syscalls

_NAMESPACES = namespaces.NEWNS | namespaces.NEWPID | namespaces.NEWUTS | namespaces.NEWIPC
_STAGE, _PROGRAM = "/run", "/program"
_ALLOW = b"\x06\0\0\0\0\0\xff\x7f"  # a filter of one instruction, SECCOMP_RET_ALLOW


def play(rounds: int) -> None:
    """Raises OSError where this user, or this machine, does not let containers be made."""
    if not syscalls.SHARES_MEMORY:
        return
    handlers = [(number, _signal.getsignal(number)) for number in _signal.valid_signals()]
    ours, theirs = descriptors.pair()
    try:
        for _ in range(rounds):
            for word in (b"g", b"j", b"f" + _ALLOW, b"s"):
                ours.send(word)
            syscalls.play(_NAMESPACES, lambda: _live(theirs))
    finally:
        ours.close()
        theirs.close()
        # What Python knows of them is the memory's, not the process's: what a child has changed is changed.
        for number, handler in handlers:
            if _signal.getsignal(number) is not handler:
                _signal.signal(number, handler)


def _live(sync: descriptors.Socket) -> None:
    """In the child, whose parent has said all that it will say."""
    mounts.mount("", "/", "", mounts.PRIVATE | mounts.REC)
    mounts.mount("tmpfs", _STAGE, "tmpfs", 0)
    os.close(os.open(f"{_STAGE}{_PROGRAM}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o755))  # empty: no format that there is
    spec = features.template(rootless=False)
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
    spec["process"] |= {"args": [_PROGRAM], "terminal": False}
    child = init.Init(init.Plan(spec, _STAGE, [], "/", spec["process"], 0, 0, {}, True, ""))
    child.entered = namespaces.NEWNET
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    child.take(sync, {"stdin": null, "stdout": null, "stderr": null})
    try:
        child.live()
    except RuntimeFailure:
        pass

"""How the kernel schedules a process: policy (sched_setattr(2)), I/O (ioprio_set(2)), the nodes of its memory (set_mempolicy(2)).

The names are those of the OCI runtime specification. What is set is packed beforehand, so that nothing but a system call is left
to do inside a container.
"""

import os
from _struct import pack

from strata.linux import syscalls

POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5, "SCHED_DEADLINE": 6,
}  # fmt: skip
FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_MODES = {
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4, "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}  # fmt: skip
MEMORY_FLAGS = {"MPOL_F_NUMA_BALANCING": 1 << 13, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_STATIC_NODES": 1 << 15}

_X86 = os.uname().machine == "x86_64"
_SCHED_SETATTR, _IOPRIO_SET, _SET_MEMPOLICY = (314, 251, 238) if _X86 else (274, 30, 237)
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_SHIFT = 1, 13
_SCHED_ATTR_BYTES = 56
MOST = 64 * 1024
"""The highest number of a CPU or a memory node that a list may name: what no machine has would only cost memory."""


def pack_attributes(
    policy: int, flags: int = 0, nice: int = 0, priority: int = 0, runtime: int = 0, deadline: int = 0, period: int = 0
) -> bytes:
    """struct sched_attr. Times are in nanoseconds."""
    return pack("IIQiIQQQII", _SCHED_ATTR_BYTES, policy, flags, nice, priority, runtime, deadline, period, 0, 0)


def set_attributes(attributes: bytes) -> None:
    """sched_setattr(2) for this thread."""
    syscalls.call(_SCHED_SETATTR, 0, attributes, 0)


def parse_list(text: str) -> bytes:
    """A set of CPUs or nodes, as the kernel lists them (`0-3,8`), as a mask of whole longs; empty for an empty list.

    Raises ValueError.
    """
    mask = 0
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first and not dash:
            continue
        low = _number(first)
        high = _number(last) if dash else low
        if low > high:
            raise ValueError(f"invalid range: {part.strip()}")
        mask |= (1 << high + 1) - (1 << low)
    if text and not mask:
        raise ValueError(f"no members found in set {text!r}")
    return mask.to_bytes((mask.bit_length() + 63) // 64 * 8, "little")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a number")
    if len(text) > len(str(MOST)) + 5 or int(text) > MOST:
        raise ValueError(f"values larger than {MOST} are not supported")
    return int(text)


def set_io_priority(class_: int, level: int) -> None:
    """ioprio_set(2) for this thread."""
    syscalls.call(_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, class_ << _IOPRIO_CLASS_SHIFT | level)


def set_memory_policy(mode: int, nodes: bytes) -> None:
    """set_mempolicy(2) for this thread. mode: with its flags."""
    # The kernel leaves the last bit that it is told of alone.
    syscalls.call(_SET_MEMPOLICY, mode, nodes or None, len(nodes) * 8 + 1 if nodes else 0)

"""Limits of the OCI runtime spec, which are those of cgroup v1, as numbers of cgroup v2. The formulas are runc's."""


def cpu_weight(shares: int) -> int:
    """cpu.weight (1 to 10000, by default 100) for cpu.shares (2 to 262144, by default 1024); 0 stays 0, which is "not set"."""
    if shares == 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    import math

    # The parabola in the logarithms that meets both ends and the defaults.
    power = math.log2(shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612.0 - 7.0 / 34.0))


def io_weight(weight: int) -> int:
    """io.weight (1 to 10000) for blkio.weight (10 to 1000)."""
    return 1 + (weight - 10) * 9999 // 990 if weight else 0


def swap_alone(swap: int, memory: int) -> int:
    """memory.swap.max for a limit of memory and swap together (0: not set, -1: without limit, both here and there).

    A result of 0 for a swap above 0 means: no swap. Raises OSError where the two do not go together.
    """
    if memory == -1 and swap == 0:
        return -1  # v1 lifts both
    if swap in (-1, 0) or memory == -1:
        return swap
    if memory == 0:
        raise OSError(22, "unable to set swap limit without memory limit")
    if memory < 0:
        raise OSError(22, f"invalid memory value: {memory}")
    if swap < memory:
        raise OSError(22, "memory+swap limit should be >= memory limit")
    return swap - memory


def tasks(limit: int) -> str:
    """pids.max: 0 would forbid the first process, and systemd has no such limit, so it means 1; below 0 there is none."""
    return "max" if limit < 0 else str(limit or 1)

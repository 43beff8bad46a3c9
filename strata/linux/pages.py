"""A process's own memory, page by page (madvise(2))."""

from strata.linux import syscalls

_DONTNEED = 4
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # MADV_POPULATE_*, since Linux 5.14


def copy_now() -> None:
    """Has the kernel copy every page that this process shares with the one that forked it, as far as it may write to it, and
    enter the programs' code into its page tables, which a fork leaves out.

    Otherwise each is copied when it is written to first, by a fault that costs more than the copy: a process that shall be quick
    later does it while nobody waits. Older kernels do nothing.
    """
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        mappings = [line.split(None, 2)[:2] for line in file if "[" not in line or "[heap]" in line]
    for span, flags in mappings:
        start, _, end = span.partition("-")
        advice = {"rw-p": _POPULATE_WRITE, "r-xp": _POPULATE_READ, "r--p": _POPULATE_READ}.get(flags)
        try:
            if advice:
                syscalls.madvise(int(start, 16), int(end, 16) - int(start, 16), advice)
        except OSError:
            return


def drop_code() -> None:
    """Takes the programs' code out of this process's memory. What runs comes back from the page cache, by a fault for some pages
    at a time: for a process that from now on does little of what it did until now."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        mappings = [line.split() for line in file]
    for place, flags, _, _, inode, *_ in mappings:
        if flags == "r-xp" and inode != "0":
            start, _, end = place.partition("-")
            syscalls.madvise(int(start, 16), int(end, 16) - int(start, 16), _DONTNEED)

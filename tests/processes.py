"""The machine's processes, as /proc shows them."""

from pathlib import Path


def read(pid: int, name: str) -> str:
    """A file of a process; "" where that is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def comm(pid: int) -> str:
    """A process's name; "" where it is gone."""
    return read(pid, "comm").removesuffix("\n")


def is_gone(pid: int) -> bool:
    """Whether it has ended, reaped or not."""
    return read(pid, "stat").rpartition(")")[2].split()[:1] in ([], ["Z"])


def descendants(pid: int, name: str = "") -> list[int]:
    """A process's children and theirs; name: only those of that name."""
    children = [int(word) for word in read(pid, f"task/{pid}/children").split()]
    found = [child for child in children if name in ("", comm(child))]
    return found + [deeper for child in children for deeper in descendants(child, name)]

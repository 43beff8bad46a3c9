"""Completion indexes of Jobs, as their status writes them: `0-3,5,7-8`."""

from collections.abc import Iterable

ANNOTATION = "batch.kubernetes.io/job-completion-index"


def parse(text: str) -> set[int]:
    """Raises ValueError for text that is none."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def render(indexes: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    # Two in a row are written one by one, three and more as a range.
    return ",".join(f"{a}" if a == b else f"{a},{b}" if b == a + 1 else f"{a}-{b}" for a, b in runs)

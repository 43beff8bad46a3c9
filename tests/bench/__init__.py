"""Measurements beside the real peers, run by scripts/bench. Each module is one table."""

import statistics
from collections.abc import Sequence


def milliseconds(samples: Sequence[float]) -> str:
    """Median and 90th percentile of durations in seconds, in milliseconds."""
    ordered = sorted(samples)
    return f"{statistics.median(ordered) * 1e3:8.1f} {ordered[int(len(ordered) * 0.9)] * 1e3:8.1f}"

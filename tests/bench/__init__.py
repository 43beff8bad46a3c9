"""Measurements beside the real peers, run by scripts/bench. Each module is one table."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def milliseconds(samples: "Sequence[float]") -> str:
    """Median and 90th percentile of durations in seconds, in milliseconds."""
    import statistics  # the spawner imports this package too, to measure it (`warm`)

    ordered = sorted(samples)
    return f"{statistics.median(ordered) * 1e3:8.1f} {ordered[int(len(ordered) * 0.9)] * 1e3:8.1f}"

"""Times as the API writes them: RFC 3339 in UTC, to the second (Time) or the microsecond (MicroTime)."""

from datetime import UTC, datetime


def now() -> str:
    """The time now, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    """The time now, to the microsecond."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds(text: str | None) -> float:
    """Seconds since the epoch; 0 for nothing. Raises ValueError for what is no time."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def text(epoch_seconds: float) -> str:
    """A time of the clock (seconds since the epoch), to the second."""
    return datetime.fromtimestamp(epoch_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Kernel parameters of the calling thread's network namespace (/proc/sys)."""

from pathlib import Path


def write(name: str, value: str) -> None:
    """Sets a parameter if it differs; name with dots, and "/" for a dot inside a part. Raises OSError."""
    path = Path("/proc/sys", *(part.replace("/", ".") for part in name.split(".")))
    if path.read_text().strip() != value:
        path.write_text(value)

"""Termination messages: what a container wrote to its terminationMessagePath, or the end of its log.

https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
"""

from pathlib import Path

MESSAGE_LIMIT_BYTES = 4096
LOG_LIMIT_BYTES, LOG_LIMIT_LINES = 2048, 80


def message_file(pod_folder: Path, container: str, attempt: int) -> Path:
    """The host's side of a container's terminationMessagePath."""
    return pod_folder / "containers" / container / str(attempt)


def make_message_file(path: Path) -> None:
    """Makes it empty, writable by whatever user the container runs as."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    path.chmod(0o666)


def message(path: Path, policy: str, exit_code: int, log_path: str) -> str:
    """The message of an exited container; the end of its log where the policy and a failure ask for that."""
    try:
        with path.open("rb") as file:
            written = file.read(MESSAGE_LIMIT_BYTES)
    except OSError:
        written = b""
    if written:
        return written.decode(errors="replace")
    if policy == "FallbackToLogsOnError" and exit_code != 0 and log_path:
        return _end_of_log(Path(log_path))
    return ""


def _end_of_log(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - 4 * LOG_LIMIT_BYTES, 0))
            lines = file.read().split(b"\n")[-LOG_LIMIT_LINES - 1 :]
    except OSError:
        return ""
    text = b""
    for line in lines:
        parts = line.split(b" ", 3)  # time, stream, tags, the line (CRI's log format)
        if len(parts) == 4:
            text += parts[3] + (b"\n" if parts[2] == b"F" else b"")
    return text[-LOG_LIMIT_BYTES:].decode(errors="replace")

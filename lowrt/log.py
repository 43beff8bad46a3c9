"""The log of one call: its errors and warnings, and with --debug what it does. Without --log it is the caller's stderr.

Lines are logrus's, text or JSON, as runc writes them: containerd and conmon read the last error of a JSON log to say what went
wrong. There is one log at a time, as there is one call at a time: a process that calls lowrt anew opens it anew. Processes that
become containers have no part in it; what they have to say goes to their parent (`init`).
"""

import os

from lowrt.errors import RuntimeFailure, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_descriptor, _stderr, _json, _debugging = -1, 2, False, False


def start(stderr: int) -> None:
    """Everything to this descriptor, as text, and no debugging: until `open_` is told otherwise."""
    global _descriptor, _stderr, _json, _debugging
    _descriptor, _stderr, _json, _debugging = -1, stderr, False, False


def open_(path: str, format_: str, *, debugging: bool) -> None:
    """Sets where the log goes and how. path: "" for stderr. Raises RuntimeFailure."""
    global _descriptor, _json, _debugging
    if format_ not in ("", "text", "json"):
        raise RuntimeFailure(f"invalid log-format: {format_}")
    _json, _debugging = format_ == "json", debugging
    if path:
        try:
            _descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RuntimeFailure(f"open {reason(error)}") from None


def close() -> None:
    global _descriptor
    if _descriptor >= 0:
        os.close(_descriptor)
        _descriptor = -1


def debugging() -> bool:
    """Whether `debug` writes anything: asked before a text that costs something is made."""
    return _debugging


def debug(text: str) -> None:
    if _debugging:
        _write(_line("debug", text))


def warning(text: str) -> None:
    """What is no failure, but may surprise. In one line, whatever words of a configuration are in it."""
    if not text.isprintable():
        text = text.encode("unicode_escape").decode()
    if _descriptor >= 0 or _json:
        _write(_line("warning", text))
    else:
        _put(_stderr, f"lowrt: warning: {text}")


def warnings(texts: "Iterable[str]") -> None:
    for text in texts:
        warning(text)


def error(text: str) -> None:
    """What made the command fail. It is for people too, so it is on stderr in every case, and there in plain words."""
    if _descriptor >= 0 or _json:
        _write(_line("error", text))
    if _descriptor >= 0 or not _json:
        _put(_stderr, text if text.startswith("lowrt ") else f"lowrt: {text}")


def _line(level: str, text: str) -> str:
    import time

    from lowrt import documents

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if _json:
        return documents.dumps({"level": level, "msg": text, "time": now})
    return f'time="{now}" level={level} msg={documents.dumps(text)}'


def _write(line: str) -> None:
    _put(_descriptor if _descriptor >= 0 else _stderr, line)


def _put(descriptor: int, line: str) -> None:
    try:
        os.write(descriptor, f"{line}\n".encode(errors="surrogateescape"))
    except OSError:
        pass  # a log that cannot be written changes nothing of what is done

"""A daemon's log.

One line an event, in one of two forms: for people (`12:03:04.123 INFO  kubelet  started container  pod=… container=…`)
and as JSON lines (`--log-format json`). What a line is about goes into fields, not into the message:

    log = logs.get("kubelet.pods")
    log.info("started container", pod=uid, container=container_id)
"""

import json
import logging
import sys
import time
from typing import Any, TextIO

_DIM, _RED, _YELLOW, _RESET = "\033[2m", "\033[31m", "\033[33m", "\033[0m"


class Logger:
    """A named logger whose keyword arguments are the fields of the line.

    Fields that are None are left out. `exc_info=True` adds the current exception.
    """

    def __init__(self, name: str, fields: dict[str, Any] | None = None) -> None:
        self._log = logging.getLogger(name)
        self._fields = fields or {}

    def bind(self, **fields: Any) -> "Logger":
        """A logger that adds these fields to each of its lines."""
        return Logger(self._log.name, {**self._fields, **fields})

    def debug(self, message: str, **fields: Any) -> None:
        self._emit(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self._emit(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._emit(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._emit(logging.ERROR, message, fields)

    def exception(self, message: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._emit(logging.ERROR, message, {**fields, "exc_info": True})

    def _emit(self, level: int, message: str, fields: dict[str, Any]) -> None:
        if self._log.isEnabledFor(level):
            exc_info = fields.pop("exc_info", None)
            self._log.log(level, message, extra={"fields": {**self._fields, **fields}}, exc_info=exc_info)


def get(name: str) -> Logger:
    """The logger of a module or mechanism, named like `kubelet.pods`."""
    return Logger(name)


def configure(*, level: str = "info", format: str = "text", stream: TextIO | None = None) -> None:
    """Sets up this process's log.

    level: debug, info, warning or error. format: text or json. stream: standard error when not given.
    Raises ValueError for another level or format.
    """
    if format not in ("text", "json"):
        raise ValueError(f"log format {format!r}: must be text or json")
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r}: must be debug, info, warning or error")
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonFormatter() if format == "json" else _TextFormatter(colour=stream.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for noisy in ("asyncio", "aiohttp.access", "hpack", "urllib3", "pyroute2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in getattr(record, "fields", {}).items() if v is not None}


class _TextFormatter(logging.Formatter):
    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        head = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {record.name:<18}"
        fields = " ".join(f"{k}={_readable(v)}" for k, v in _fields_of(record).items())
        if self._colour:
            tint = _RED if record.levelno >= logging.ERROR else _YELLOW if record.levelno >= logging.WARNING else ""
            head, fields = f"{tint or _DIM}{head}{_RESET}", f"{_DIM}{fields}{_RESET}" if fields else ""
        line = f"{head} {record.getMessage()}" + (f"  {fields}" if fields else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _readable(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c in text for c in ' "=\n\t') else text

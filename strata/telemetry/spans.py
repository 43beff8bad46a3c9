"""Spans: which part of a pod's start took how long, across all processes.

A span is one JSON line {traceId, spanId, parentSpanId, name, startTimeUnixNano, endTimeUnixNano, service, attributes},
the names being those of OpenTelemetry's JSON encoding. They are off until `configure` is called with a folder, or until
the environment has STRATA_SPANS (the folder): each process then appends to `FOLDER/SERVICE.jsonl`, one write a span
(O_APPEND), so that many processes of one service can share the file.

Context travels as W3C trace context (`00-<32 hex>-<16 hex>-01`): in gRPC metadata and the monitor's protocol under
`traceparent`, in lowrt's environment as TRACEPARENT, and across the API in the annotation `tracing.k8s.io/traceparent`.

Only os, time and _contextvars are imported here: the runtime's cold path may have spans on. When they are off, `span`
costs a microsecond.
"""

import os
import time
from _contextvars import ContextVar
from types import TracebackType

ANNOTATION = "tracing.k8s.io/traceparent"
METADATA_KEY = "traceparent"
ENVIRONMENT_KEY = "TRACEPARENT"
FOLDER_VARIABLE = "STRATA_SPANS"

Attribute = str | int | float | bool | None

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)
_file: int | None = None
_service = ""


def configure(service: str, folder: str | None = None) -> None:
    """Switches spans on for this process, or leaves them off where neither folder nor STRATA_SPANS names a place.

    service: the process's name in the spans. Takes up the parent in TRACEPARENT, if there is one.
    Raises OSError where the folder cannot be made or written.
    """
    global _file, _service
    folder = folder or os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    os.makedirs(folder, exist_ok=True)
    _service = service
    _file = os.open(f"{folder}/{service}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    _current.set(_valid(os.environ.get(ENVIRONMENT_KEY)))


def descriptors() -> tuple[int, ...]:
    """What a process that closes all that it has inherited leaves open for its spans."""
    return () if _file is None else (_file,)


def enabled() -> bool:
    return _file is not None


def current() -> str | None:
    """The traceparent to hand to whoever is called next; None when there is no trace."""
    return _current.get()


class span:
    """`with span("pull image", image=ref):` times the block as a child of the current span.

    parent: a traceparent that came from outside (a header, an annotation) and replaces the current one for the block;
    None keeps the current one, and where there is none the span is the root of a new trace.
    An exception that leaves the block is noted in the attribute `error`.
    """

    __slots__ = ("_attributes", "_id", "_name", "_parent", "_start", "_token", "_trace")

    def __init__(self, name: str, parent: str | None = None, **attributes: Attribute) -> None:
        self._name, self._attributes = name, attributes
        self._parent = _valid(parent)

    def __enter__(self) -> "span":
        if _file is None:
            return self
        parent = self._parent or _current.get()
        self._trace, self._parent = (parent[3:35], parent[36:52]) if parent else (os.urandom(16).hex(), "")
        self._id = os.urandom(8).hex()
        self._token = _current.set(f"00-{self._trace}-{self._id}-01")
        self._start = time.time_ns()
        return self

    def set(self, **attributes: Attribute) -> None:
        """Adds attributes that are known only inside the block."""
        self._attributes.update(attributes)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if _file is None or not hasattr(self, "_id"):
            return
        end = time.time_ns()
        _current.reset(self._token)
        if error is not None:
            self._attributes["error"] = f"{type(error).__name__}: {error}"
        attributes = ",".join(f"{_quote(k)}:{_json(v)}" for k, v in self._attributes.items() if v is not None)
        os.write(
            _file,
            f'{{"traceId":"{self._trace}","spanId":"{self._id}","parentSpanId":"{self._parent}",'
            f'"name":{_quote(self._name)},"startTimeUnixNano":{self._start},"endTimeUnixNano":{end},'
            f'"service":{_quote(_service)},"attributes":{{{attributes}}}}}\n'.encode("utf-8", "replace"),
        )


def _valid(traceparent: str | None) -> str | None:
    """The traceparent if it has the one form that is in use (W3C Trace Context, section 3.2), else None."""
    if not traceparent or len(traceparent) != 55:
        return None
    return traceparent if traceparent.startswith("00-") and traceparent[35] == traceparent[52] == "-" else None


def _json(value: Attribute) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else _quote(str(value))


def _quote(text: str) -> str:
    # json costs 9 ms to import in a cold process; these are the characters that RFC 8259 section 7 has escaped.
    return '"' + "".join(c if c >= " " and c not in '"\\' else f"\\u{ord(c):04x}" for c in text) + '"'

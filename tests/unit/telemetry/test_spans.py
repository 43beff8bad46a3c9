"""Spans: one tree over several processes, and no trouble when they are off."""

import json
import os
import subprocess
import sys
from pathlib import Path


def traced(folder: Path, service: str, code: str, **environ: str) -> list[dict]:
    """Runs code in an interpreter of its own with spans on, and returns what it wrote."""
    subprocess.run(
        [sys.executable, "-c", f"from strata.telemetry import spans; spans.configure({service!r})\n{code}"],
        check=True,
        env={**os.environ, "STRATA_SPANS": str(folder), **environ},
    )
    return [json.loads(line) for line in (folder / f"{service}.jsonl").read_text().splitlines()]


def test_nested_spans_of_two_processes_make_one_tree(tmp_path: Path) -> None:
    inner = (
        "import subprocess, sys, os\n"
        "with spans.span('parent', pod='a\"b\\n'):\n"
        "    with spans.span('child'):\n"
        "        code = 'from strata.telemetry import spans; spans.configure(\"second\")\\n'\n"
        "        code += 'with spans.span(\"grandchild\"): pass'\n"
        "        subprocess.run([sys.executable, '-c', code], check=True,\n"
        "                       env={**os.environ, 'TRACEPARENT': spans.current()})\n"
    )
    child, parent = traced(tmp_path, "first", inner)
    (grandchild,) = [json.loads(line) for line in (tmp_path / "second.jsonl").read_text().splitlines()]
    assert parent["parentSpanId"] == ""
    assert parent["attributes"] == {"pod": 'a"b\n'}
    assert child["parentSpanId"] == parent["spanId"]
    assert grandchild["parentSpanId"] == child["spanId"]
    assert {parent["traceId"], child["traceId"]} == {grandchild["traceId"]}
    assert parent["startTimeUnixNano"] <= child["startTimeUnixNano"] <= child["endTimeUnixNano"]


def test_an_exception_is_noted_and_passes_through(tmp_path: Path) -> None:
    code = "try:\n    with spans.span('s'): raise ValueError('no')\nexcept ValueError: pass"
    (span,) = traced(tmp_path, "s", code)
    assert span["attributes"]["error"] == "ValueError: no"


def test_a_malformed_traceparent_starts_a_new_trace(tmp_path: Path) -> None:
    (span,) = traced(tmp_path, "s", "with spans.span('s', parent='00-zz'): pass", TRACEPARENT="rubbish")
    assert span["parentSpanId"] == ""
    assert len(span["traceId"]) == 32


def test_spans_are_off_by_default_and_write_nothing(tmp_path: Path) -> None:
    code = "from strata.telemetry import spans; spans.configure('s')\nwith spans.span('s'): print(spans.current())"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("STRATA_SPANS")}
    out = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environ, capture_output=True)
    assert out.stdout.strip() == b"None"
    assert list(tmp_path.iterdir()) == []


def test_spans_import_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import strata.telemetry.spans; print(*set(sys.modules) - before)"
    out = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, '.')\n{code}"], capture_output=True, check=True
    )
    loaded = set(out.stdout.decode().split())
    assert "strata.telemetry.spans" in loaded
    assert not loaded & {"json", "logging", "re", "enum", "socket", "asyncio", "typing", "collections", "functools"}

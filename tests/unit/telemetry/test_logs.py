"""The daemons' log: one line an event, in a form for people and one for machines."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from strata.telemetry import logs


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_a_json_line_carries_message_and_fields() -> None:
    out = io.StringIO()
    logs.configure(format="json", stream=out)
    logs.get("kubelet.pods").bind(pod="u-1").info("started container", container="c1", image=None)
    line = json.loads(out.getvalue())
    assert {"level": "info", "logger": "kubelet.pods", "message": "started container"}.items() <= line.items()
    assert (line["pod"], line["container"]) == ("u-1", "c1")
    assert "image" not in line


def test_a_text_line_quotes_what_would_not_read_as_one_word() -> None:
    out = io.StringIO()
    logs.configure(stream=out)
    logs.get("x").warning("odd", path='a b"c', empty="")
    assert out.getvalue().rstrip().endswith('odd  path="a b\\"c" empty=""')


def test_an_exception_comes_with_its_traceback() -> None:
    out = io.StringIO()
    logs.configure(format="json", stream=out)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logs.get("x").exception("failed")
    assert "RuntimeError: broken" in json.loads(out.getvalue())["exception"]


@pytest.mark.parametrize("arguments", [{"level": "loud"}, {"format": "xml"}])
def test_an_unknown_level_or_format_is_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must be"):
        logs.configure(**arguments)

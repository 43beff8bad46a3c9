"""What options of several commands mean."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import click

from highrt.person import loglines
from strata.protocols import highrt_pb2 as api

Command = Callable[..., None]

_SPAN_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_NANOSECONDS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


class _Duration(click.ParamType[int]):
    """`1h30m`, `10s`, `500ms` to nanoseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not (parts := _SPAN_PART.findall(value)) or "".join(map("".join, parts)) != value:
            self.fail(f"{value!r} is not a duration, like 30s or 1m30s", param, ctx)
        return int(sum(float(number) * _NANOSECONDS[unit] for number, unit in parts))


DURATION = _Duration()


def taking(options: Sequence[Callable[..., Any]]) -> Callable[[Command], Command]:
    """A decorator that gives a command options which others have too, in this order."""

    def give(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def filtered(text: str) -> api.Filter:
    """`KEY=VALUE` of a --filter. Raises click.BadParameter."""
    key, equals, value = text.partition("=")
    if not equals or not value:
        raise click.BadParameter(f"--filter {text!r}: write KEY=VALUE")
    return api.Filter(key=key, value=value)


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether labels have a NAME, or a NAME=VALUE."""
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def time_ns(text: str, option: str) -> int:
    """A time stamp (RFC 3339, or seconds since 1970) or a duration back from now, in nanoseconds; 0 for "". Raises
    click.BadParameter."""
    if not text:
        return 0
    if re.fullmatch(r"\d{9,}(\.\d+)?", text):
        return int(Decimal(text) * 10**9)
    if match := _DURATION.fullmatch(text):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return time.time_ns() - int((hours * 3600 + minutes * 60 + seconds) * 1e9)
    try:
        # Exact to the nanosecond: who copies a line's stamp wants that line.
        return (
            loglines.nanoseconds(text)
            if "T" in text and text.endswith("Z")
            else int(datetime.fromisoformat(text).timestamp() * 1e9)
        )
    except ValueError as error:
        raise click.BadParameter(
            f"{option} {text!r}: write a time like 2026-01-31T12:00:00Z, or a duration like 1h30m"
        ) from error

"""How results are printed: tables, sizes, ages, and `--format` with the simple part of Go's templates."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

_FIELD = re.compile(r"\{\{\s*(?:(json)\s+)?(\.[\w.-]*)\s*\}\}")
_RANGE = re.compile(r"\{\{\s*range\s+(\.[\w.-]*)\s*\}\}(.*?)\{\{\s*end\s*\}\}", re.DOTALL)
_ESCAPES = {"\\t": "\t", "\\n": "\n"}


def render(template: str, value: Any) -> str:
    """Fills a template in: `{{.State.Pid}}`, `{{json .Config}}`, `{{.}}`, and `{{range .Networks}}{{.IPAddress}} {{end}}` over
    the items of a list or the values of an object; `json` alone is the whole value.

    Raises click.UsageError for a field that is not there, or anything else between the braces.
    """
    if template == "json":
        return json.dumps(value, ensure_ascii=False)
    for escape, character in _ESCAPES.items():
        template = template.replace(escape, character)
    first, *rest = _RANGE.split(template)
    text = _fields(first, value)
    for path, body, after in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        found = _field(path, value)
        items = found.values() if isinstance(found, dict) else found if isinstance(found, list) else []
        text += "".join(_fields(body, item) for item in items) + _fields(after, value)
    return text


def _fields(template: str, value: Any) -> str:
    def fill(match: re.Match[str]) -> str:
        found = _field(match.group(2), value)
        return json.dumps(found, ensure_ascii=False) if match.group(1) else _plain(found)

    if "{{" in _FIELD.sub("", template):
        raise click.UsageError(
            f"--format {template!r}: between {{{{ and }}}} only .Field.Field, json .Field and range .Field (not one in another) "
            "are understood"
        )
    return _FIELD.sub(fill, template)


def _field(path: str, value: Any) -> Any:
    for name in filter(None, path.split(".")):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            have = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise click.UsageError(f"--format: there is no {path}: no {name!r} among {have}")
    return value


def _plain(value: Any) -> str:
    """A value as Go's templates print it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{' '.join(_plain(item) for item in value)}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{_plain(item)}' for key, item in value.items())}]"
    return "" if value is None else str(value)


def print_rows(template: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], heads: Mapping[str, str]) -> None:
    """Prints rows as `--format` wants them, a line each, or without one as a table of columns. `table TEMPLATE` is a table whose
    columns are apart by tabs. heads: of the fields whose name alone does not say it.

    Raises click.UsageError as `render`.
    """

    def head(name: str) -> str:
        return heads.get(name, name.upper())

    kind, _, wanted = template.partition(" ")
    if kind == "table" and wanted.strip():
        cells = wanted.replace("\\t", "\t").split("\t")
        named = [_FIELD.sub(lambda match: head(match.group(2).removeprefix(".")), cell) for cell in cells]
        click.echo(table(named, ([render(cell, row) for cell in cells] for row in rows)))
    elif kind in ("", "table"):
        click.echo(table([*map(head, columns)], ([str(row[column]) for column in columns] for row in rows)))
    else:
        for row in rows:
            click.echo(render(template, row))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns three spaces apart, as docker prints them."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def labels(given: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(given.items()))


def size(count: int) -> str:
    """Bytes as people read them: 1.2MB (powers of ten, as docker has them)."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}TB"


def stamp(time_ns: int) -> str:
    """A time to the nanosecond, as RFC 3339 has it."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def ago(time_ns: int) -> str:
    """How long ago, in one unit: `3 minutes`."""
    seconds = max(0, time.time() - time_ns / 1e9)
    for limit, length, unit in ((60, 1, "second"), (3600, 60, "minute"), (86400, 3600, "hour"), (float("inf"), 86400, "day")):
        if seconds < limit:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return ""


def image_age(created: str) -> str:
    """The age of an image by its own time stamp; N/A where it has none."""
    time_ns = created_ns(created)
    return "N/A" if time_ns is None else f"{ago(time_ns)} ago"


def created_ns(created: str) -> int | None:
    """An image's own time stamp in nanoseconds since 1970; None where it has none."""
    try:
        return int(datetime.fromisoformat(created).timestamp() * 1e9)
    except ValueError:
        return None


def short(identifier: str) -> str:
    return identifier.removeprefix("sha256:").removeprefix("sha512:")[:12]

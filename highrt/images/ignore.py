"""Patterns of a .dockerignore: which files of a context a build does not see. The last pattern that matches decides."""

import re
from collections.abc import Sequence
from pathlib import Path


class Ignore:
    """The patterns of one file; `matches` is asked with paths relative to the context."""

    def __init__(self, lines: Sequence[str] = ()) -> None:
        self._patterns: list[tuple[re.Pattern[str], bool]] = []
        for line in lines:
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            keep = text.startswith("!")
            pattern = text.removeprefix("!").strip().strip("/")
            if pattern not in ("", "."):
                self._patterns.append((re.compile(translate(pattern)), keep))

    @classmethod
    def of(cls, context: Path) -> "Ignore":
        """The context's .containerignore or .dockerignore; none ignores nothing."""
        for name in (".containerignore", ".dockerignore"):
            if (file := context / name).is_file():
                return cls(file.read_text().splitlines())
        return cls()

    def matches(self, path: str) -> bool:
        """Whether the path, or a folder it is in, is ignored."""
        parts = path.strip("/").split("/")
        ancestors = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        ignored = False
        for pattern, keep in self._patterns:
            if any(pattern.fullmatch(ancestor) for ancestor in ancestors):
                ignored = not keep
        return ignored

    def __bool__(self) -> bool:
        """Whether there is a pattern at all."""
        return bool(self._patterns)

    @property
    def has_exceptions(self) -> bool:
        """Whether something inside an ignored folder may still be wanted."""
        return any(keep for _, keep in self._patterns)


def translate(pattern: str) -> str:
    """A pattern as a regular expression: `*` and `?` stay within a component, `**` is any number of them."""
    out, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\")
            out, at = out + f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]", end + 1
        elif pattern[at] == "\\" and at + 1 < len(pattern):
            out, at = out + re.escape(pattern[at + 1]), at + 2
        else:
            out, at = out + {"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at])), at + 1
    return out

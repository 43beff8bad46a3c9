"""`$(NAME)` in commands, arguments, environment values and subPathExpr (Kubernetes' expansion: `$$` is a dollar sign)."""

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$(\$|\(([^)]*)\))")


def expand(text: str, *scopes: Mapping[str, str]) -> str:
    """The text with each known `$(NAME)` replaced by the first scope's value; unknown ones stay as they are."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        for scope in scopes:
            if match[2] in scope:
                return scope[match[2]]
        return match[0]

    return _REFERENCE.sub(value, text)


def missing(text: str, scope: Mapping[str, str]) -> list[str]:
    """Names that the text refers to and the scope does not have."""
    return [m[2] for m in _REFERENCE.finditer(text) if m[1] != "$" and m[2] not in scope]

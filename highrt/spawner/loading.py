"""Importing what a dotted name means, with all that it may need later."""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STANDARD = (
    "ctypes", "encodings.ascii", "encodings.unicode_escape", "fcntl", "resource", "select", "stat", "struct", "termios", "time",
)  # fmt: skip
"""Modules of the standard library that runtimes import late, and character sets that Python looks for when they are used."""


def entry_point(dotted: str, *, with_package: bool) -> "Any":
    """The function that `package.module:name` means.

    with_package: every module beside it is imported too, and what else it may want later: a runtime imports late to be
    quick as a command, and a monitor must not import after its fork.

    Raises ImportError, AttributeError, or ValueError for another form.
    """
    module_name, colon, name = dotted.partition(":")
    if not colon or not name:
        raise ValueError(f"entry point {dotted!r}: write it as package.module:name")
    module = _load(module_name)
    if not with_package:
        return getattr(module, name)
    package, _, _ = module_name.rpartition(".")
    if package and module.__file__:
        for file in sorted(os.listdir(os.path.dirname(module.__file__))):
            stem, dot, kind = file.partition(".")
            if dot and kind == "py" and not stem.startswith("__"):
                _load(f"{package}.{stem}")
    for other in _STANDARD:
        _load(other)
    return getattr(module, name)


def _load(name: str) -> "Any":
    __import__(name)  # importlib would bring warnings: a tenth of a megabyte
    return sys.modules[name]

"""Importing what a dotted name means, with all that it may need later."""

import importlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STANDARD = ("ctypes", "fcntl", "resource", "select", "stat", "struct", "termios", "time")
"""Modules of the standard library that runtimes import late."""


def entry_point(dotted: str, *, with_package: bool) -> "Any":
    """The function that `package.module:name` means.

    with_package: every module beside it is imported too, and what else it may want later: a runtime imports late to be
    quick as a command, and a monitor must not import after its fork.

    Raises ImportError, AttributeError, or ValueError for another form.
    """
    module_name, colon, name = dotted.partition(":")
    if not colon or not name:
        raise ValueError(f"entry point {dotted!r}: write it as package.module:name")
    module = importlib.import_module(module_name)
    if not with_package:
        return getattr(module, name)
    package, _, _ = module_name.rpartition(".")
    if package and module.__file__:
        for file in sorted(os.listdir(os.path.dirname(module.__file__))):
            stem, dot, kind = file.partition(".")
            if dot and kind == "py" and not stem.startswith("__"):
                importlib.import_module(f"{package}.{stem}")
    for other in _STANDARD:
        importlib.import_module(other)
    return getattr(module, name)

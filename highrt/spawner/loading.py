"""Importing what a dotted name means, with all that it may need later."""

import importlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STANDARD = ("ctypes", "fcntl", "resource", "select", "signal", "stat", "struct", "termios", "time")
"""What runtimes import late, to be quick as commands."""


def entry_point(dotted: str) -> "Any":
    """The function that `package.module:name` means; every module beside it is imported too, so that none has to be later.

    Raises ImportError, AttributeError, or ValueError for another form.
    """
    module_name, colon, name = dotted.partition(":")
    if not colon or not name:
        raise ValueError(f"entry point {dotted!r}: write it as package.module:name")
    module = importlib.import_module(module_name)
    package, _, _ = module_name.rpartition(".")
    if package and module.__file__:
        for file in sorted(os.listdir(os.path.dirname(module.__file__))):
            stem, dot, kind = file.partition(".")
            if dot and kind == "py" and not stem.startswith("__"):
                importlib.import_module(f"{package}.{stem}")
    for other in _STANDARD:
        importlib.import_module(other)
    return getattr(module, name)

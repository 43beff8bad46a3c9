"""The program of the bundle (see `bundle`): an importer for the modules in it, and then lowrt's main.

It runs before everything else, at every start, so it uses what the interpreter has loaded already.
"""

import sys
from _frozen_importlib import ModuleSpec  # type: ignore[import-not-found]
from marshal import loads
from posix import stat

_MODULES = "the modules"
"""Name → (file, its time of change in ns, its size in bytes, whether it is a package, marshalled code); `bundle` puts it here."""


class _Importer:
    """Finds and loads the modules whose sources are as they were."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        found = _MODULES.get(name)
        if found is None:
            return None
        file, changed, size, package, _ = found
        try:
            status = stat(file)
        except OSError:
            return None
        if status.st_mtime_ns != changed or status.st_size != size:
            return None
        spec = ModuleSpec(name, _Importer, origin=file, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations.append(file.rpartition("/")[0])
        return spec

    @staticmethod
    def create_module(spec):  # type: ignore[no-untyped-def]
        return None

    @staticmethod
    def exec_module(module):  # type: ignore[no-untyped-def]
        exec(loads(_MODULES[module.__name__][4]), module.__dict__)


sys.meta_path.insert(0, _Importer)
import lowrt.__main__  # noqa: E402, F401

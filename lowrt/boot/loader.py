"""The program of the bundle (see `bundle`): an importer for the modules in it, and then lowrt's main.

It runs before everything else, at every start, so it uses what the interpreter has loaded already.
"""

# mypy: ignore-errors

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader
from marshal import loads
from posix import stat

_MODULES = "the modules"
"""Name → (file, its time of change in ns, its size in bytes, whether it is a package, marshalled code), put here by `bundle`. An
extension module has None for its code: only the search for it is saved."""


class _Importer:
    """Finds and loads the modules whose sources are as they were."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        found = _MODULES.get(name)
        if found is None:
            return None
        file, changed, size, package, code = found
        try:
            status = stat(file)
        except OSError:
            return None
        if status.st_mtime_ns != changed or status.st_size != size:
            return None
        loader = _Importer if code else ExtensionFileLoader(name, file)
        spec = ModuleSpec(name, loader, origin=file, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations.append(file.rpartition("/")[0])
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        exec(loads(_MODULES[module.__name__][4]), module.__dict__)


sys.path.insert(0, sys.argv[0].rsplit("/", 3)[0])  # for what is not in the bundle: ROOT/lowrt/__pycache__/this file
sys.meta_path.insert(0, _Importer)
import lowrt.__main__  # noqa: E402, F401

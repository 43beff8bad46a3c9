"""The program of a bundle (see `bundle`): imports what the command needs from the bundle, and then runs lowrt's main.

It runs before everything else, at every start, so it uses what the interpreter has loaded already.
"""

# mypy: ignore-errors

import gc
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader
from marshal import loads
from posix import stat

gc.disable()  # a command is over before there is anything to collect
_MODULES = "the modules"
"""A tuple for each module that the command begins with, each after those that it needs, put here by `bundle`: name, file, its
time of change in ns, its size in bytes, whether it is a package, its code. An extension module has None for its code: only the
search for it is saved."""
_LATER = "later modules"
"""Name → the same for a module that is imported later, its code still marshalled."""
_Module = type(sys)


class _Importer:
    """Finds and loads the modules whose sources are as they were."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        entry = _LATER.get(name)
        if entry is None or not _is_as_it_was(entry):
            return None
        spec = ModuleSpec(name, _Importer, origin=entry[1], is_package=entry[4])
        spec.has_location = True
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        exec(loads(_LATER[module.__name__][5]), module.__dict__)


def _is_as_it_was(entry):
    try:
        status = stat(entry[1])
    except OSError:
        return False
    return status.st_mtime_ns == entry[2] and status.st_size == entry[3]


def _import_all():
    """Does at once what importing one by one would do at 20 microseconds more for each."""
    packages = {name: file for name, file, _, _, package, _ in _MODULES if package}
    for name, file, _, _, _, code in _MODULES:
        module = sys.modules.get(name)
        if code is None:
            loader = ExtensionFileLoader(name, file)
            spec = ModuleSpec(name, loader, origin=file)
            module = sys.modules[name] = loader.create_module(spec)
            loader.exec_module(module)
            _put_into_its_package(name, module, packages)
        else:
            exec(code, (module or _new(name, file, packages)).__dict__)


def _new(name, file, packages):
    """An empty module, with its package's above it: a package that imports from itself comes after what it imports."""
    module = sys.modules[name] = _Module(name)
    module.__file__ = file
    if name in packages:
        module.__package__ = name
        module.__path__ = [file.rpartition("/")[0]]
    else:
        module.__package__ = name.rpartition(".")[0]
    _put_into_its_package(name, module, packages)
    return module


def _put_into_its_package(name, module, packages):
    parent, _, tail = name.rpartition(".")
    if parent:
        setattr(sys.modules.get(parent) or _new(parent, packages[parent], packages), tail, module)


sys.path.insert(0, sys.argv[0].rsplit("/", 3)[0])  # for what is not in the bundle: ROOT/lowrt/__pycache__/this file
sys.meta_path.insert(0, _Importer)
if all(map(_is_as_it_was, _MODULES)):
    _import_all()
import lowrt.__main__  # noqa: E402, F401

"""The bundles: for each of lowrt's frequent commands one file with the modules that it imports, compiled. The launcher starts it.

They save half of the imports' time. `python3 -X no_debug_ranges lowrt/boot/bundle.py` (scripts/setup does it) writes
`__pycache__/bundle.python3.N.COMMAND.pyc`: the code of `loader` with the modules' in it, in the order in which the command
imports them. A module whose source has changed since then is imported from its file, as if there were no bundle, so nobody
has to remember to build it again.
"""

import importlib
import importlib.util
import marshal
import os
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Entry = tuple[str, str, int, int, bool, CodeType | bytes | None]

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("lowrt", "strata")
_COMMANDS = {
    "create": "lowrt.create",
    "run": "lowrt.create",
    "start": "lowrt.start",
    "exec": "lowrt.execute",
    "state": "lowrt.state",
    "kill": "lowrt.lifecycle",
    "delete": "lowrt.lifecycle",
}
"""The launcher has the same list."""
_LATER = {"run": ["lowrt.foreground", "lowrt.lifecycle"], "exec": ["lowrt.foreground"]}
"""What is imported when somebody waits for something else."""


class _Recorder(Loader):
    """Imports as ever, and remembers which modules of ours and which extension modules were done, and in which order."""

    def __init__(self) -> None:
        self.done: list[ModuleSpec] = []
        self._loaders: dict[str, Loader] = {}

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        self._loaders[name] = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loaders[module.__name__].exec_module(module)
        assert module.__spec__
        if _is_ours(module.__name__) or not str(module.__spec__.origin).endswith(".py"):
            self.done.append(module.__spec__)


def build() -> None:
    """Writes the bundles for the interpreter that runs this."""
    sys.path.insert(0, str(_ROOT))
    loader = _compile(_ROOT / "lowrt/boot/loader.py")
    folder = _ROOT / "lowrt/__pycache__"
    folder.mkdir(exist_ok=True)
    main = importlib.util.find_spec("lowrt.__main__")
    assert main
    for command, name in _COMMANDS.items():
        first = _imported_by(["lowrt.main", name])
        names = {spec.name for spec in first}
        later = [spec for spec in _imported_by(["lowrt.main", name, *_LATER.get(command, [])]) if spec.name not in names]
        put = {
            "the modules": tuple(_entry(spec) for spec in first),
            "later modules": {spec.name: _entry(spec, packed=True) for spec in [*later, main]},
        }
        constants = tuple(put.get(it, it) if isinstance(it, str) else it for it in loader.co_consts)
        target = folder / f"bundle.python{sys.version_info[0]}.{sys.version_info[1]}.{command}.pyc"
        temporary = target.with_suffix(f".{os.getpid()}")
        # The header of a .pyc (PEP 552): magic, flags, and here a source's time and size that nobody asks for.
        temporary.write_bytes(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(loader.replace(co_consts=constants)))
        temporary.rename(target)


def _imported_by(names: list[str]) -> list[ModuleSpec]:
    """The modules that importing these imports, each after those that it needs."""
    recorder = _Recorder()
    for name in [name for name in sys.modules if _is_ours(name)]:
        del sys.modules[name]
    sys.meta_path.insert(0, recorder)
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(recorder)
    return recorder.done


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in _PACKAGES


def _entry(spec: ModuleSpec, *, packed: bool = False) -> "Entry":
    """A module as `loader` wants it. packed: the code is marshalled by itself, to be unpacked when it is needed."""
    file = Path(spec.origin or "")
    status = file.stat()
    code = _compile(file) if file.suffix == ".py" else None
    is_package = spec.submodule_search_locations is not None
    kept = marshal.dumps(code) if packed and code else code
    return spec.name, str(file), status.st_mtime_ns, status.st_size, is_package, kept


def _compile(file: Path) -> CodeType:
    code: CodeType = compile(file.read_bytes(), str(file), "exec", dont_inherit=True, optimize=2)
    return code


if __name__ == "__main__":
    build()

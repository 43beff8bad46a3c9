"""The bundle: the modules that lowrt's frequent commands import, compiled, in one file that the launcher starts.

It saves half of the imports' time. `python3 -X no_debug_ranges lowrt/boot/bundle.py` (scripts/setup does it) writes
`__pycache__/bundle.python3.N.pyc`: the code of `loader` with the modules in it, and for each command the order in which it
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

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("lowrt", "strata")
_COMMANDS = {
    "create": ["lowrt.create"],
    "run": ["lowrt.create"],
    "start": ["lowrt.start"],
    "exec": ["lowrt.execute"],
    "state": ["lowrt.state"],
    "kill": ["lowrt.lifecycle"],
    "delete": ["lowrt.lifecycle"],
}
_LATER = ["lowrt.foreground", "lowrt.lifecycle", "lowrt.__main__"]
"""What is imported when somebody waits for something else; and the last one, which the loader imports itself."""


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


def build() -> Path:
    """Writes the bundle for the interpreter that runs this; returns its path."""
    sys.path.insert(0, str(_ROOT))
    orders, specs = {}, {}
    for command, names in _COMMANDS.items():
        done = _imported_by(["lowrt.main", *names])
        orders[command] = [spec.name for spec in done]
        specs.update({spec.name: spec for spec in done})
    for spec in map(importlib.util.find_spec, _LATER):
        assert spec
        specs[spec.name] = spec
    modules = {name: _entry(Path(spec.origin or ""), spec.submodule_search_locations is not None) for name, spec in specs.items()}
    loader = _compile(_ROOT / "lowrt/boot/loader.py")
    put = {"the modules": modules, "the orders": orders}
    constants = tuple(put.get(constant, constant) if isinstance(constant, str) else constant for constant in loader.co_consts)
    target = _ROOT / "lowrt/__pycache__" / f"bundle.python{sys.version_info[0]}.{sys.version_info[1]}.pyc"
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}")
    # The header of a .pyc (PEP 552): magic, flags, and here a source's time and size that nobody asks for.
    temporary.write_bytes(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(loader.replace(co_consts=constants)))
    temporary.rename(target)
    return target


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


def _entry(file: Path, package: bool) -> tuple[str, int, int, bool, bytes | None]:
    status = file.stat()
    code = marshal.dumps(_compile(file)) if file.suffix == ".py" else None
    return str(file), status.st_mtime_ns, status.st_size, package, code


def _compile(file: Path) -> CodeType:
    code: CodeType = compile(file.read_bytes(), str(file), "exec", dont_inherit=True, optimize=2)
    return code


if __name__ == "__main__":
    build()

"""The bundle: lowrt's modules, compiled, in one file that the launcher starts. It saves a third of the imports' time.

`python3 -X no_debug_ranges lowrt/boot/bundle.py` (scripts/setup does it) writes `__pycache__/bundle.python3.N.pyc`: the code of
`loader` with the modules in it. A module whose source has changed since then is imported from its file, as if there were no
bundle, so nobody has to remember to build it again.
"""

import importlib.util
import marshal
import os
import sys
from pathlib import Path
from types import CodeType

_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT))
_FOLDERS = ("lowrt", "strata/linux", "strata/linux/cgroups")
_PACKAGES = ("strata",)
_EXTENSIONS = ("_json", "resource", "strata.linux._kernel")


def build() -> Path:
    """Writes the bundle for the interpreter that runs this; returns its path."""
    modules: dict[str, tuple[str, int, int, bool, bytes | None]] = {}
    files = [_ROOT / folder / "__init__.py" for folder in _PACKAGES]
    for folder in _FOLDERS:
        files += sorted((_ROOT / folder).glob("*.py"))
    for file in files:
        name = ".".join(file.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__")
        status = file.stat()
        code = marshal.dumps(_compile(file))
        modules[name] = (str(file), status.st_mtime_ns, status.st_size, file.name == "__init__.py", code)
    for name in _EXTENSIONS:
        found = importlib.util.find_spec(name)
        if found and found.has_location and found.origin:  # else it is built into the interpreter
            status = os.stat(found.origin)
            modules[name] = (found.origin, status.st_mtime_ns, status.st_size, False, None)
    loader = _compile(_ROOT / "lowrt/boot/loader.py")
    loader = loader.replace(co_consts=tuple(modules if constant == "the modules" else constant for constant in loader.co_consts))
    target = _ROOT / "lowrt/__pycache__" / f"bundle.python{sys.version_info[0]}.{sys.version_info[1]}.pyc"
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}")
    # The header of a .pyc (PEP 552): magic, flags, and here a source's time and size that nobody asks for.
    temporary.write_bytes(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(loader))
    temporary.rename(target)
    return target


def _compile(file: Path) -> CodeType:
    code: CodeType = compile(file.read_bytes(), str(file), "exec", dont_inherit=True, optimize=2)
    return code


if __name__ == "__main__":
    build()

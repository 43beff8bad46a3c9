"""The machine's second disk: this working tree with what is built in it, and a virtual environment that can run its tests."""

import compileall
import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.vm.image import make_disk

REPOSITORY = Path(__file__).resolve().parents[2]
INSIDE = Path("/srv/strata")
PYTHON = INSIDE / ".venv/bin/python"
# The rest of the virtual environment is much larger, and neither lowrt nor highrt's pods need it.
_DISTRIBUTIONS = ("apsw", "isal", "jeepney", "protobuf", "pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "zstandard")


def pack(disk: Path, scratch: Path) -> None:
    """Makes the disk. `scratch` is an empty folder for the files on their way."""
    tree = scratch / "tree"
    for name in [*_listed("--cached"), *_listed("--others", "--exclude-standard"), *_built()]:
        source = REPOSITORY / name
        if name != ".venv" and os.path.lexists(source):  # else it is deleted, and that is not yet committed
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tree / name, follow_symlinks=False)
    _virtual_environment(tree / ".venv")
    # Compiling is slow inside. The machine's interpreter is the one that made the environment: Debian 12's.
    compileall.compile_dir(tree, quiet=2, stripdir=str(tree), prependdir=str(INSIDE), maxlevels=20)
    make_disk(tree, disk, "1G")


def _listed(*options: str) -> list[str]:
    command = ["git", "ls-files", "-z", *options]
    return subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, text=True).stdout.split("\0")[:-1]


def _built() -> list[str]:
    """What git is told to ignore and is no folder of a tool: the launcher, stubs and libraries that scripts/setup has made.

    The snapshot would not serve inside."""
    ignored = _listed("--others", "--ignored", "--exclude-standard", "--directory")
    return [name for name in ignored if not name.endswith("/") and name != "lowrt/snapshot"]


def _virtual_environment(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to("/usr/bin/python3")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    target = folder / "lib/python3.11/site-packages"
    for distribution in _with_requirements(_DISTRIBUTIONS):
        for file in distribution.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(str(file.locate()), target / file)


def _with_requirements(names: tuple[str, ...]) -> "list[importlib.metadata.Distribution]":
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # required on other systems or Pythons only
            continue
        if distribution.name in found:
            continue
        found[distribution.name] = distribution
        required = [line for line in distribution.requires or () if "extra ==" not in line]
        waiting += [re.match(r"[\w.-]+", line)[0] for line in required]  # type: ignore[index]
    return list(found.values())

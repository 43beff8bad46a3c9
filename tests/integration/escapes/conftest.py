"""Attacks on lowrt: containers as in its own tests, the attackers' programs (`programs/`, compiled here), and user namespaces."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from strata.linux import capabilities
from tests.integration.lowrt.conftest import Runtime, make_runtime, runtime

__all__ = ["make_runtime", "runtime"]

_SOURCES = Path(__file__).parent / "programs"
SUBORDINATE_ID = 100000
SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A program of `programs/`, static; flags: further ones for gcc."""
    folder = tmp_path_factory.mktemp("programs")

    def make(name: str, *flags: str) -> Path:
        made = folder / name
        if not made.exists():
            source = _SOURCES / f"{name}.c"
            subprocess.run(["gcc", "-static", "-Os", "-Wall", "-Wextra", "-Werror", *flags, source, "-o", made], check=True)
        return made

    return make


@pytest.fixture
def attacker(runtime: Runtime, compiled: Callable[..., Path]) -> Callable[..., None]:
    """Puts programs of `programs/` into the container's /bin."""

    def put(*names: str) -> None:
        for name in names:
            install(runtime, compiled(name))

    return put


def install(runtime: Runtime, program: Path, path: str = "") -> None:
    """Puts a program into the image, under its own name in /bin or at a path."""
    target = runtime.bundle / "rootfs" / (path.lstrip("/") or f"bin/{program.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, target)
    target.chmod(0o755)


def give_capabilities(process: dict[str, Any], *names: str) -> None:
    """Lets the process have these besides its own; without names all that this one has."""
    wanted = names or [name for name, number in capabilities.NUMBERS.items() if capabilities.held() >> number & 1]
    for kind in ("bounding", "effective", "permitted"):
        process["capabilities"][kind] = sorted({*process["capabilities"].get(kind, ()), *wanted})


@pytest.fixture
def give_user_namespace() -> Iterator[Callable[[Runtime], None]]:
    """Puts a container into a new user namespace: its root is 100000 on the host, and owns its files."""
    with ExitStack() as folders:

        def give(to: Runtime) -> None:
            # pytest's own folders are closed to everybody but root
            folder = Path(folders.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            folder.chmod(0o755)
            shutil.move(to.bundle / "rootfs", folder / "rootfs")
            (to.bundle / "rootfs").symlink_to(folder / "rootfs")
            for path in (folder / "rootfs", *(folder / "rootfs").rglob("*")):
                os.chown(path, SUBORDINATE_ID, SUBORDINATE_ID, follow_symlinks=False)
            to.config["root"]["path"] = str(folder / "rootfs")
            linux = to.config["linux"]
            linux["namespaces"].append({"type": "user"})
            for name in ("uidMappings", "gidMappings"):
                linux[name] = [{"containerID": 0, "hostID": SUBORDINATE_ID, "size": 65536}]

        yield give

"""A bundle with busybox in it, and lowrt as a person calls it."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

LOWRT = Path(__file__).parents[3] / "lowrt" / "launcher"
APPLETS = (
    "sh true false echo ls cat mount id ps sleep sysctl hostname touch mkdir stty tty kill dd head readlink mknod nc wget ip"
    " uname chmod chown"
)


class Runtime:
    """lowrt with a root folder of its own. `config` is the bundle's configuration; `write` puts it where create reads it.

    prefix: a command that runs the others, as in another namespace. flags: before each command of lowrt.
    """

    prefix: Sequence[str] = ()
    flags: Sequence[str] = ()

    launcher = LOWRT

    def __init__(self, folder: Path) -> None:
        self.root, self.bundle = folder / "state", folder / "bundle"
        rootfs = self.bundle / "rootfs"
        (rootfs / "bin").mkdir(parents=True)
        (rootfs / "etc").mkdir()
        (rootfs / "tmp").mkdir(mode=0o1777)
        shutil.copy("/bin/busybox", rootfs / "bin/busybox")
        for name in APPLETS.split():
            (rootfs / "bin" / name).symlink_to("busybox")
        (rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000:Ada:/home/ada:/bin/sh\n")
        subprocess.run([LOWRT, "spec", "--bundle", self.bundle], check=True)
        self.config: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        self.config["process"]["terminal"] = False
        self.config["root"]["readonly"] = False
        self.config["linux"]["cgroupsPath"] = f"/strata-test-{uuid.uuid4().hex[:8]}"
        self.id = f"t{uuid.uuid4().hex[:10]}"

    @property
    def cgroup(self) -> str:
        path: str = self.config["linux"]["cgroupsPath"]
        return path

    def write(self) -> None:
        (self.bundle / "config.json").write_text(json.dumps(self.config))

    def call(self, *argv: str | Path, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
        """lowrt ARGV…, with what it printed."""
        given = {"stdin": subprocess.DEVNULL, "timeout": 30, "capture_output": True, **options}
        done = subprocess.run([*self.prefix, LOWRT, "--root", self.root, *self.flags, *argv], text=True, **given)
        assert not check or done.returncode == 0, done.stderr
        return done

    def run(self, *program: str, container_id: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a program in a new container and waits for it."""
        self.config["process"]["args"] = list(program)
        self.write()
        return self.call("run", "--bundle", self.bundle, container_id or self.id)

    def shell(self, script: str) -> str:
        """What a shell script printed in a new container; it must succeed."""
        done = self.run("sh", "-ec", script)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *program: str) -> int:
        """A new container that runs in the background; its PID."""
        self.config["process"]["args"] = list(program)
        self.write()
        null = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "capture_output": False}
        self.call("run", "--detach", "--bundle", self.bundle, self.id, check=True, **null)
        return int(self.state()["pid"])

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("state", self.id, check=True).stdout)
        return found

    def clean(self) -> None:
        for container_id in self.call("list", "--quiet").stdout.split():
            self.call("delete", "--force", container_id)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime(tmp_path)
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def make_runtime(tmp_path: Path) -> Iterator[Callable[[str], Runtime]]:
    """Further runtimes, each in a folder of its own."""
    made: list[Runtime] = []

    def make(name: str) -> Runtime:
        made.append(Runtime(tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.clean()

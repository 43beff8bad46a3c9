"""What the famous callers of lowrt share in tests: a busybox image, a place for their daemons, and what they leave behind."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from strata.linux import cgroups
from tests.conftest import wait_for

LOWRT = Path(__file__).parents[3] / "lowrt/launcher"
APPLETS = (
    "cat chmod cut dd df echo env false grep head hostname id kill ls mkdir mount ps pwd readlink rm sh sleep sort stat stty "
    "sysctl tail touch tr true tty wc"
)
IMAGE, PAUSE = "localhost/busybox:1", "localhost/pause:1"
# A sandbox's program is a first process, which SIGTERM does not end unless it has asked for it.
IMAGES: dict[str, dict[str, Any]] = {
    IMAGE: {"Cmd": ["sh"]},
    PAUSE: {"Cmd": ["sleep", "100000"], "StopSignal": "SIGKILL"},
}
FOLDERS = ("dev", "etc", "home/ada", "mnt", "proc", "root", "run", "sys", "tmp", "var/tmp")
Done = subprocess.CompletedProcess[str]


def run(*argv: Any, check: bool = True, text: str | None = None, seconds: float = 60, **options: Any) -> Done:
    """Runs a program to its end, with `text` (or nothing) as its standard input. check: it must succeed."""
    given = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=seconds, check=False, **given, **options
    )
    assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder that anybody may pass through (users of containers), with a name that leaves room for sockets' paths."""
    folder = Path(tempfile.mkdtemp(prefix="peer"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def shared_mount(folder: Path) -> Iterator[Path]:
    """A mount that passes on what is mounted below it."""
    folder.mkdir()
    run("mount", "-t", "tmpfs", "shared", folder)
    try:
        run("mount", "--make-shared", folder)
        yield folder
    finally:
        run("umount", "--recursive", folder)
        folder.rmdir()


@pytest.fixture(scope="session")
def image_archive() -> Iterator[Path]:
    """An archive as `docker save` makes it, of two images of one layer: IMAGE and PAUSE.

    The layer holds busybox, a user ada (1000, also of group staff, 50), and the usual folders.
    """
    with short_folder() as folder:
        root = folder / "image"
        (root / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin/busybox")
        for name in APPLETS.split():
            (root / "bin" / name).symlink_to("busybox")
        for name in FOLDERS:
            (root / name).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000:Ada:/home/ada:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\nada:x:1000:\nstaff:x:50:ada\n")
        parts = folder / "parts"
        parts.mkdir()
        run("tar", "-C", root, "--owner=0", "--group=0", "-cf", parts / "layer.tar", ".")
        digest = hashlib.sha256((parts / "layer.tar").read_bytes()).hexdigest()
        manifest = []
        for number, (name, settings) in enumerate(IMAGES.items()):
            config = {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": ["PATH=/bin"], **settings},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                "history": [{"created": "2020-01-01T00:00:00Z"}],
            }
            (parts / f"{number}.json").write_text(json.dumps(config))
            manifest.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": ["layer.tar"]})
        (parts / "manifest.json").write_text(json.dumps(manifest))
        run("tar", "-C", parts, "-cf", folder / "images.tar", *(path.name for path in parts.iterdir()))
        yield folder / "images.tar"


@contextmanager
def cgroup_parents(*paths: str) -> Iterator[None]:
    """Callers make parents of their containers' groups and leave them: those that were not there before are taken away."""
    missing = [group for path in paths if not (group := cgroups.open_cgroup(path)).exists()]
    try:
        yield
    finally:
        for group in missing:
            group.kill()
            group.remove()


def delete_containers(folder: Path) -> None:
    """Takes away what a caller that was killed has left of containers with bundles below a folder, in lowrt's own root."""
    for container in json.loads(run(LOWRT, "list", "--format", "json").stdout) or ():
        if container["bundle"].startswith(f"{folder}/"):
            run(LOWRT, "delete", "--force", container["id"])


class Place:
    """A machine of its own for a daemon: mount, network and PID namespaces, in which it starts everything that it starts.

    Its network has a loopback device and nothing else, its /run is empty. However a test ends, all its processes and mounts
    go at once: the first process of the PID namespace is killed, by `end` or when this process dies.
    """

    def __init__(self, folder: Path, *daemon: Any, prepare: str = "") -> None:
        """prepare: shell commands that run in the place before the daemon does."""
        self.log = folder / "log"
        script = f"ip link set lo up; mount -t tmpfs run /run; {prepare}\nexec {' '.join(str(word) for word in daemon)}"
        with self.log.open("w") as log:
            self._unshare = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "--mount",
                    "--net",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                    "sh",
                    "-ec",
                    script,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder)},
            )
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.pid = int(wait_for(children.read_text, what="the first process of the place").split()[0])

    def command(self, *argv: Any) -> list[str]:
        """A command line that runs a client in the place."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", *(str(word) for word in argv)]

    def answers(self, *argv: Any) -> None:
        """Waits until a client's command succeeds."""

        def answered() -> bool:
            assert self._unshare.poll() is None, f"the daemon has ended:\n{self.log.read_text()[-3000:]}"
            return run(*self.command(*argv), check=False).returncode == 0

        wait_for(answered, seconds=30, what=f"{argv}")

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait(20)


@contextmanager
def place(folder: Path, *daemon: Any, prepare: str = "") -> Iterator[Place]:
    made = Place(folder, *daemon, prepare=prepare)
    try:
        yield made
    finally:
        made.end()


def capabilities(status: str, kind: str = "CapBnd") -> int:
    """A set of capabilities out of /proc/PID/status."""
    found = re.search(rf"^{kind}:\s*([0-9a-f]+)$", status, re.MULTILINE)
    assert found, status
    return int(found[1], 16)


def limit(container_cgroup: str, controller: str, name: str) -> str:
    """A limit as the host's cgroup v1 has it."""
    return Path(f"/sys/fs/cgroup/{controller}{container_cgroup}/{name}").read_text().strip()


NET_ADMIN, CHOWN = 1 << 12, 1 << 0
Call = Callable[..., Done]


def own_etc(folder: Path) -> str:
    """Shell commands that give this mount namespace an /etc of its own, which can be written and is gone afterwards."""
    top = folder / "etc"
    top.mkdir()
    return (
        f"mount -t tmpfs etc {top}; mkdir {top}/upper {top}/work; "
        f"mount -t overlay -o lowerdir=/etc,upperdir={top}/upper,workdir={top}/work etc /etc; "
    )

"""Other image tools, as peers in the matrix: each writes an image to a place, and reads one from there.

Places are written as containers-transports(5) has them: docker-archive:FILE, oci-archive:FILE, oci:FOLDER:TAG, docker://NAME.
"""

import json
import os
import shutil
import stat
import struct
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highrt.images.model import Auth
from strata.linux import mounts
from tests.interop.images.conftest import run

CONFIG = {"Env": ["A=b"], "Cmd": ["/bin/sh", "-c", "true"], "WorkingDir": "/d", "User": "7:8"}
_CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep (linux/capability.h)


def make_tree(root: Path) -> None:
    """All that a layer can hold: modes, owners, times, attributes, links, devices, and what the second layer takes away."""
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    os.setxattr(root / "bin/busybox", "security.capability", _CAPABILITY)
    (root / "bin/sh").symlink_to("busybox")
    (root / "d").mkdir()
    (root / "d/f").write_text("f")
    os.chown(root / "d/f", 5, 70_000)
    os.setxattr(root / "d/f", "user.note", b"\x01 note")
    os.utime(root / "d/f", (1_000_000_000, 1_234_567_890))
    os.link(root / "d/f", root / "d/hard")
    (root / "d/setuid").write_text("s")
    os.chown(root / "d/setuid", 1, 2)
    os.chmod(root / "d/setuid", 0o6751)
    (root / "d/\u00e9 \u732b").write_text("")
    (root / "d/broken").symlink_to("/no\u00e9/where")
    os.lchown(root / "d/broken", 3, 4)
    os.mkfifo(root / "d/pipe", 0o600)
    os.mknod(root / "d/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "sticky").mkdir()
    os.chmod(root / "sticky", 0o3770)
    (root / "gone").mkdir()
    (root / "gone/f").write_text("x")


def change_tree(root: Path) -> None:
    """What the second layer does."""
    shutil.rmtree(root / "gone")
    (root / "d/new").write_text("new")
    (root / "bin/sh").unlink()
    (root / "bin/sh").symlink_to("/bin/busybox")
    shutil.rmtree(root / "sticky")
    (root / "sticky").mkdir(0o700)
    (root / "sticky/inside").write_text("again")


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """What is in a folder, by path: kind, mode, owner, device, attributes, link or content, the time of all but directories, and
    the first of the names that a file has."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        status, name = path.lstat(), str(path.relative_to(root))
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
        is_folder = stat.S_ISDIR(status.st_mode)
        found[name] = (
            *(oct(status.st_mode), status.st_uid, status.st_gid, status.st_rdev, attributes, content),
            None if is_folder else int(status.st_mtime),
            name if is_folder else first.setdefault(status.st_ino, name),
        )
    return found


def config_of(document: dict[str, Any]) -> dict[str, Any]:
    """The part of an image's configuration that all have to agree on. Tools add a PATH."""
    found = {key: document["config"].get(key) for key in CONFIG}
    return {**found, "Env": [item for item in found["Env"] or [] if not item.startswith("PATH=")]}


@dataclass
class Access:
    """How a registry is spoken to. certificate: a folder with its CA as ca.crt."""

    address: str = ""
    auth: Auth | None = None
    certificate: Path | None = None

    def options(self, side: str = "") -> list[str]:
        """Of skopeo, podman and buildah. side: `src-` or `dest-` where there are two."""
        tls = [f"--{side}cert-dir={self.certificate}"] if self.certificate else [f"--{side}tls-verify=false"]
        return [*tls, *([f"--{side}creds={self.auth.username}:{self.auth.password}"] if self.auth else [])]


@dataclass
class Seen:
    """An image as one tool sees it."""

    config: dict[str, Any]
    tree: dict[str, tuple[object, ...]]


class Peer(ABC):
    """folder: for what it keeps; it is the peer's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def fresh(self) -> Path:
        """A path where nothing is."""
        self._count += 1
        return self.folder / str(self._count)

    @abstractmethod
    def make(self) -> Seen:
        """Makes an image with make_tree and change_tree, and CONFIG."""

    @abstractmethod
    def give(self, place: str, access: Access) -> None:
        """Writes that image somewhere."""

    @abstractmethod
    def take(self, place: str, access: Access) -> Seen:
        """Reads an image."""

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Takes away what is not just files."""


class Umoci(Peer):
    """It knows OCI layouts only."""

    def make(self) -> Seen:
        where = self.folder / "oci"
        self.image = f"{where}:app"
        run("umoci", "init", "--layout", where)
        run("umoci", "new", "--image", self.image)
        for change in (make_tree, change_tree):
            bundle = self.fresh()
            run("umoci", "unpack", "--image", self.image, bundle)
            change(bundle / "rootfs")
            run("umoci", "repack", "--image", self.image, bundle)
        run(
            "umoci", "config", "--image", self.image, "--config.env", "A=b", "--config.workingdir", "/d", "--config.user", "7:8",
            "--config.cmd", "/bin/sh", "--config.cmd", "-c", "--config.cmd", "true",
        )  # fmt: skip
        return self.take(f"oci:{self.image}", Access())

    def give(self, place: str, access: Access) -> None:
        folder, _, _ = place.removeprefix("oci:").rpartition(":")
        shutil.copytree(self.folder / "oci", folder)

    def take(self, place: str, access: Access) -> Seen:
        bundle = self.fresh()
        run("umoci", "unpack", "--image", place.removeprefix("oci:"), bundle)
        return Seen(config_of(json.loads(run("skopeo", "inspect", "--config", place))), listing(bundle / "rootfs"))


class Skopeo(Umoci):
    """It copies: umoci makes its images, and unpacks what it has read."""

    def give(self, place: str, access: Access) -> None:
        options = access.options("dest-") if place.startswith("docker://") else []
        run("skopeo", "copy", *options, f"oci:{self.image}", place)

    def take(self, place: str, access: Access) -> Seen:
        copy = f"oci:{self.fresh()}:app"
        options = access.options("src-") if place.startswith("docker://") else []
        run("skopeo", "copy", *options, place, copy)
        return super().take(copy, access)


class Buildah(Peer):
    """With a storage of its own."""

    tool = "buildah"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._short = Path(tempfile.mkdtemp(prefix="pod"))  # a long one is refused
        self.storage = ("--root", str(folder / "s"), "--runroot", str(self._short), "--storage-driver", "overlay")

    def _buildah(self, *arguments: str | Path) -> str:
        return run("buildah", *self.storage, *arguments).strip()

    def make(self) -> Seen:
        tree, archive = self.folder / "tree", self.folder / "tree.tar"
        make_tree(tree)
        run("tar", "--xattrs", "--xattrs-include=*", "-cf", archive, "-C", tree, ".")
        self._buildah("add", first := self._buildah("from", "scratch"), archive, "/")
        base = self._buildah("commit", "-q", first)
        second = self._buildah("from", "--pull-never", base)
        change_tree(Path(self._buildah("mount", second)))
        self._buildah("umount", second)
        self._buildah("config", "--env", "A=b", "--workingdir", "/d", "--user", "7:8", "--cmd", json.dumps(CONFIG["Cmd"]), second)
        self.image = self._buildah("commit", "-q", second)
        self._buildah("rm", "--all")
        return self._seen(self.image)

    def give(self, place: str, access: Access) -> None:
        self._buildah("push", "-q", *(access.options() if place.startswith("docker://") else []), self.image, place)

    def take(self, place: str, access: Access) -> Seen:
        options = access.options() if place.startswith("docker://") else []
        return self._seen_once(self._buildah("pull", "-q", "--policy=always", *options, place))

    def _seen_once(self, image: str) -> Seen:
        """Removes it afterwards: its layers would be taken for those of the next one."""
        try:
            return self._seen(image)
        finally:
            self._buildah("rmi", "--force", image)

    def _seen(self, image: str) -> Seen:
        container = self._buildah("from", "--pull-never", image)
        try:
            document = json.loads(self._buildah("inspect", "--type", "image", image))["OCIv1"]
            return Seen(config_of(document), listing(Path(self._buildah("mount", container))))
        finally:
            self._buildah("rm", container)

    def close(self) -> None:
        run(self.tool, *self.storage, "rmi", "--all", "--force")
        for folder in (self.folder / "s", self._short):
            mounts.umount_below(str(folder))
        shutil.rmtree(self._short)


class Podman(Buildah):
    """buildah makes its images in the storage that they share; it reads, mounts and writes them itself."""

    tool = "podman"

    def _podman(self, *arguments: str | Path) -> str:
        return run("podman", *self.storage, *arguments).strip()

    def give(self, place: str, access: Access) -> None:
        if place.startswith("docker://"):
            self._podman("push", "-q", *access.options(), self.image, place)
            return
        form, _, path = place.partition(":")
        if form == "oci":
            self._podman("save", "-q", "--format", "oci-dir", "-o", path.rpartition(":")[0], self.image)
        else:
            self._podman("save", "-q", "--format", form, "-o", path, self.image)

    def take(self, place: str, access: Access) -> Seen:
        options = access.options() if place.startswith("docker://") else []
        return self._seen_once(self._podman("pull", "-q", *options, place).splitlines()[-1])

    def _seen(self, image: str) -> Seen:
        folder = Path(self._podman("image", "mount", image))
        try:
            return Seen(config_of({"config": json.loads(self._podman("image", "inspect", image))[0]["Config"]}), listing(folder))
        finally:
            self._podman("image", "unmount", image)


PEERS: dict[str, type[Peer]] = {"skopeo": Skopeo, "umoci": Umoci, "buildah": Buildah, "podman": Podman}

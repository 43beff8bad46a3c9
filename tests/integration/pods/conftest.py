"""A pod manager over real namespaces, cgroups, overlay mounts and lowrt, with an image of Debian's static busybox."""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from highrt.images.model import Descriptor, Image, ImageConfig
from highrt.images.snapshots import Rootfs
from highrt.pods.errors import PodError
from highrt.pods.manager import PodManager
from highrt.pods.model import ContainerState
from strata.linux import cgroups, mounts
from strata.protocols.cri_pb2 import ContainerConfig, ContainerMetadata, ImageSpec, NamespaceMode, PodSandboxConfig

_NAMES = """
sh cat echo sleep true false id ls env hostname kill ps stty head tail yes dd wc nc mount touch seq readlink tr test pwd
"""
APPLETS = _NAMES.split()


async def ended(manager: PodManager, container_id: str, seconds: float = 10) -> None:
    """Until a container has exited."""
    async with asyncio.timeout(seconds):
        while manager.container(container_id).state != ContainerState.EXITED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def read_all(descriptor: int) -> bytes:
    """All until the end, which must come."""
    with open(descriptor, "rb") as file:
        return file.read()


async def collect(descriptor: int, *wanted: bytes, seconds: float = 5) -> bytes:
    """Reads until all that is wanted has come."""
    os.set_blocking(descriptor, False)
    found = b""
    async with asyncio.timeout(seconds):
        while not all(text in found for text in wanted):
            await asyncio.sleep(0.01)
            with contextlib.suppress(BlockingIOError):
                found += os.read(descriptor, 65536)
    os.set_blocking(descriptor, True)
    return found


class BusyboxImages:
    """The image service's part that the manager uses, over one folder of files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._base = folder, folder / "base"
        none = Descriptor("", "", 0)
        config = ImageConfig(env=("PATH=/bin", "FROM=image"), cmd=("sh", "-c", "echo default"))
        self.image = Image("sha256:" + "b" * 64, ("busybox:test",), (), 1, config, False, "", none, (), "linux/amd64")
        if self._base.exists():  # of a daemon before this one
            return
        for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "root"):
            (self._base / name).mkdir(parents=True)
        shutil.copy2("/usr/bin/busybox", self._base / "bin" / "busybox")
        for name in APPLETS:
            (self._base / "bin" / name).symlink_to("busybox")
        (self._base / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nann:x:1001:1002::/home/ann:/bin/sh\n")
        (self._base / "etc/group").write_text("root:x:0:\nann:x:1002:\nwheel:x:10:ann\n")

    def resolve(self, reference_or_id: str) -> Image | None:
        return self.image if reference_or_id in ("busybox:test", self.image.id) else None

    async def prepare(self, image: Image, key: str) -> Rootfs:
        for name in ("fs", "work"):
            (self._folder / "snapshots" / key / name).mkdir(parents=True, exist_ok=True)
        found = await self.rootfs(key)
        assert found
        return found

    async def rootfs(self, key: str) -> Rootfs | None:
        top = self._folder / "snapshots" / key
        return LocalRootfs((self._base,), top / "fs", top / "work") if top.is_dir() else None

    async def release(self, key: str) -> None:
        shutil.rmtree(self._folder / "snapshots" / key, ignore_errors=True)

    def left(self) -> list[str]:
        folder = self._folder / "snapshots"
        return [path.name for path in folder.iterdir()] if folder.exists() else []


class LocalRootfs(Rootfs):
    """The same mount with whole paths: this image's base is no snapshot of the service's."""

    def mount(self, target: str | Path, user_namespace: str = "") -> None:
        data = f"lowerdir={self.lower[0]},upperdir={self.upper},workdir={self.work}"
        mounts.mount("overlay", str(target), "overlay", 0, data)


class Node:
    """What a test gets: folders, images, and managers over them that can be dropped and opened again."""

    def __init__(self, folder: Path, name: str, **options: Any) -> None:
        """options: of all its managers."""
        self.folder, self.name, self._options = folder, name, options
        self.images = BusyboxImages(folder)
        self.manager: PodManager = self.new_manager()

    def new_manager(self, **options: Any) -> PodManager:
        return PodManager(
            self.folder / "root", self.folder / "s", self.images, name=self.name,
            cni_conf_dir=self.folder / "cni", **{"cni_bin_dirs": [Path("/usr/lib/cni")], **self._options, **options},
        )  # fmt: skip

    async def reopen(self) -> PodManager:
        """A daemon that ended and was started anew, as far as the manager is concerned."""
        await self.manager.close()
        return await self.manager_again()

    async def manager_again(self) -> PodManager:
        """The next manager, after the one before was closed."""
        self.manager = self.new_manager()
        await self.manager.open()
        return self.manager

    async def end(self) -> None:
        """Takes everything away, also after a test that failed."""
        try:
            for pod in self.manager.pods():
                with contextlib.suppress(PodError):
                    await self.manager.remove_pod(pod.id)
            await self.manager.close()
        finally:
            group = cgroups.open_cgroup(f"/strata/{self.name}")
            group.kill()
            with contextlib.suppress(OSError):
                group.remove()
            for hierarchy in cgroups.open_cgroup("/strata").folders():
                with contextlib.suppress(OSError):  # other stacks' groups are in it
                    os.rmdir(hierarchy)
            mounts.umount_below(str(self.folder))
            shutil.rmtree(self.folder)

    def log(self, name: str = "c") -> list[str]:
        """The lines of a container's log without their times."""
        path = self.folder / "logs" / f"{name}.log"
        return [line.partition(" ")[2] for line in path.read_bytes().decode().split("\n")[:-1]] if path.exists() else []

    async def said(self, line: str, name: str = "c", seconds: float = 10) -> None:
        """Waits until a container's log has a line."""
        async with asyncio.timeout(seconds):
            while f"stdout F {line}" not in self.log(name):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def pod(self, name: str = "p", **fields: Any) -> PodSandboxConfig:
        """A pod on the host's network: tests of the network have their own."""
        config = PodSandboxConfig(log_directory=str(self.folder / "logs"), **fields)
        config.metadata.name, config.metadata.namespace, config.metadata.uid = name, "tests", f"uid-{name}"
        options = config.linux.security_context.namespace_options
        options.network, options.pid = NamespaceMode.NODE, NamespaceMode.CONTAINER
        return config

    def container(self, *argv: str, name: str = "c", **fields: Any) -> ContainerConfig:
        config = ContainerConfig(
            metadata=ContainerMetadata(name=name), image=ImageSpec(image="busybox:test"), log_path=f"{name}.log", **fields
        )
        config.command.extend(argv)
        config.linux.security_context.namespace_options.pid = NamespaceMode.CONTAINER
        return config

    async def started(self, *argv: str, name: str = "c", **fields: Any) -> str:
        """A pod with a container that runs; the container's ID."""
        pod = await self.manager.run_pod(self.pod(f"pod-of-{name}"))
        container = await self.manager.create_container(pod.id, self.container(*argv, name=name, **fields))
        await self.manager.start_container(container.id)
        return container.id


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    # Sockets lie below it: pytest's own folders have too long names.
    folder = Path(tempfile.mkdtemp(prefix="pods-", dir="/tmp"))
    node = Node(folder, f"test-{os.urandom(4).hex()}")
    try:
        await node.manager.open()
        yield node
    finally:
        await node.end()

"""Disks that are full or read-only: what fails says why and leaves nothing, and it works when there is room again."""

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from highrt.images.build import build
from highrt.images.errors import ImageError, StorageFailed
from highrt.images.service import ImageService
from strata.linux import mounts
from tests.interop.images.conftest import DockerRegistry

FULL = "No space left on device|disk is full"
Remount = Callable[[str], None]


@pytest.fixture
async def root(tmp_path: Path) -> AsyncIterator[Path]:
    """The root of images on a file system of its own."""
    root = tmp_path / "small"
    root.mkdir()
    mounts.mount("tmpfs", str(root), "tmpfs", 0, "size=32m")
    yield root
    mounts.umount_below(str(root))


@pytest.fixture
async def small(root: Path) -> AsyncIterator[ImageService]:
    service = ImageService(root)
    await service.open()
    yield service
    await service.close()


@pytest.fixture
def remount(root: Path) -> Remount:
    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", root], check=True)

    return remount


def nothing_is_left(service: ImageService, root: Path) -> None:
    assert service.list() == []
    assert os.listdir(root / "content/ingest") == []
    assert os.listdir(root / "snapshots") == []
    assert [row for row in service.metadata.snapshots() if row.ready] == []
    assert [mount.target for mount in mounts.mountinfo() if mount.target.startswith(f"{root}/")] == []


@pytest.mark.parametrize("room", ["600k", "1600k"], ids=["download", "unpack"])
async def test_a_pull_to_a_full_disk(
    small: ImageService, root: Path, registry: DockerRegistry, remount: Remount, room: str
) -> None:
    name = f"{registry.address}/app:oci"
    remount(f"size={room}")
    with pytest.raises(ImageError, match=FULL):
        await small.pull(name)
    nothing_is_left(small, root)
    remount("size=32m")
    await small.pull(name)


async def test_a_build_on_a_full_disk(small: ImageService, root: Path, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Containerfile").write_text("FROM scratch\nCOPY data /\n")
    (context / "data").write_bytes(os.urandom(40 << 20))
    with pytest.raises(ImageError, match=FULL):
        await build(small, context, tag="big:1")
    nothing_is_left(small, root)
    (context / "data").write_bytes(b"small")
    await build(small, context, tag="big:1")


async def test_names_on_a_full_disk(small: ImageService, root: Path, registry: DockerRegistry) -> None:
    image = await small.pull(f"{registry.address}/app:oci")
    subprocess.run(["dd", "if=/dev/zero", f"of={root}/filler", "bs=64k"], stderr=subprocess.DEVNULL, check=False)  # noqa: ASYNC221
    given: list[str] = []

    def give_names() -> None:
        for number in range(10_000):
            small.tag(image, f"127.0.0.1:1/a{'b' * 100}:{number}")
            given.append(f"127.0.0.1:1/a{'b' * 100}:{number}")

    with pytest.raises(StorageFailed, match=FULL):
        give_names()
    found = small.resolve(image.id)
    assert found
    assert {*found.tags} == {*image.tags, *given}, "what was answered is there, and nothing else"
    (root / "filler").unlink()
    small.tag(image, "127.0.0.1:1/more:1")


async def test_a_disk_that_has_become_read_only(
    small: ImageService, root: Path, registry: DockerRegistry, remount: Remount
) -> None:
    name = f"{registry.address}/app:oci"
    # The database is open for writing, which keeps a whole file system from being made read-only.
    for folder in (root / "content", root / "snapshots"):
        mounts.mount(str(folder), str(folder), "", mounts.BIND)
        mounts.mount("", str(folder), "", mounts.REMOUNT | mounts.BIND | mounts.RDONLY)
    with pytest.raises(StorageFailed, match="Read-only file system"):
        await small.pull(name)
    for folder in (root / "content", root / "snapshots"):
        mounts.umount(str(folder))
    nothing_is_left(small, root)
    await small.pull(name)


async def test_a_daemon_does_not_begin_on_a_read_only_disk(small: ImageService, root: Path, remount: Remount) -> None:
    await small.close()
    remount("ro")
    with pytest.raises((ImageError, OSError), match=r"Read-only file system|readonly database"):
        await ImageService(root).open()
    remount("rw")
    await small.open()

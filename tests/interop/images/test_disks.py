"""Disks that are full or read-only: what fails says why and leaves nothing, and it works when there is room again."""

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from highrt.images.build import build
from highrt.images.errors import BuildError, ImageError, StorageFailed
from highrt.images.service import ImageService
from highrt.images.steps import runtime_step
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


CONTAINERFILE = """
FROM scratch
COPY --from=host /bin/busybox /bin/busybox
SHELL ["/bin/busybox", "sh", "-c"]
RUN busybox dd if=/dev/urandom of=/data bs=1M count={count}
"""


async def build_with_run(service: ImageService, context: Path, count: int) -> list[str]:
    """A build whose step writes so many MiB. Returns what it says."""
    context.mkdir(exist_ok=True)
    (context / "Containerfile").write_text(CONTAINERFILE.format(count=count))
    said: list[str] = []
    step = runtime_step(runtime="runc", folder=service.steps)
    await build(service, context, tag="run:1", build_contexts={"host": Path("/")}, run_step=step, progress=said.append)
    return said


async def test_a_build_whose_step_fills_the_disk(small: ImageService, root: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"line 5: RUN .*it ended with exit code 1"):
        await build_with_run(small, tmp_path / "context", 40)
    assert not small.list()
    assert os.listdir(root / "content/ingest") == os.listdir(root / "mounts") == os.listdir(root / "steps") == []
    assert sum(status.st_size for status in (path.lstat() for path in root.rglob("*"))) < 8 << 20, "what it wrote is gone"
    assert any("CACHED" in line for line in await build_with_run(small, tmp_path / "context", 1)), (
        "what was built before it stays"
    )


async def test_a_build_whose_layer_fills_the_disk(small: ImageService, root: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=f"line 5: RUN .*({FULL})"):
        await build_with_run(small, tmp_path / "context", 18)
    nothing_is_left(small, root)
    assert [*small.content.all()] == os.listdir(root / "mounts") == os.listdir(root / "steps") == []
    await build_with_run(small, tmp_path / "context", 1)


@pytest.mark.parametrize("part", ["content", "snapshots", "mounts", "steps"])
async def test_a_build_on_a_disk_that_has_become_read_only(small: ImageService, root: Path, tmp_path: Path, part: str) -> None:
    (root / "steps").mkdir(exist_ok=True)
    mounts.mount(str(root / part), str(root / part), "", mounts.BIND)
    mounts.mount("", str(root / part), "", mounts.REMOUNT | mounts.BIND | mounts.RDONLY)
    with pytest.raises(StorageFailed, match="Read-only file system"):
        await build_with_run(small, tmp_path / "context", 1)
    mounts.umount(str(root / part))
    nothing_is_left(small, root)
    assert [*small.content.all()] == os.listdir(root / "mounts") == os.listdir(root / "steps") == []
    await build_with_run(small, tmp_path / "context", 1)


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

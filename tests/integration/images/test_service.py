"""Snapshots and the service over them: shared layers, idempotence, collection, and what a killed process leaves."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from highrt.images import offload
from highrt.images.errors import ImageError, ImageInUse, ImageNotFound, InvalidImage
from highrt.images.model import OCI_LAYER, Descriptor
from highrt.images.service import ImageService
from strata.linux import mounts
from tests.conftest import wait_for
from tests.integration.images.conftest import add_image, file, header, mounted, tar_of, tree

BASE, TOP = tar_of(file("a", b"1"), file("b", b"1")), tar_of(file("a", b"2"), file(".wh.b", b""))
NAME = "127.0.0.1:1/app:1"


async def test_a_container_writes_to_its_own_layer(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME, BASE, TOP, config={"Env": ["A=b"], "Cmd": ["/a"]})
    assert (image.config.env, image.config.cmd) == (("A=b",), ("/a",))
    one = await service.prepare(image, "one")
    two = await service.prepare(image, "two")
    assert await service.prepare(image, "one") == one
    assert await service.rootfs("one") == one
    assert one.lower == two.lower
    assert len(one.lower) == 2
    with mounted(one, tmp_path / "m1") as first, mounted(two, tmp_path / "m2") as second:
        assert tree(first) == ["a"]
        (first / "a").write_text("mine")
        assert (second / "a").read_text() == "2"
    await service.release("one")
    assert await service.rootfs("one") is None
    assert not one.upper.exists()
    await service.release("one")
    again = await service.prepare(image, "one")
    assert again.upper != one.upper
    assert list(again.upper.iterdir()) == []


async def test_the_same_layer_wanted_twice_is_unpacked_once(service: ImageService, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = service.workers.unpack_layer

    async def counted(*arguments: object, **options: object) -> object:
        calls.append(options["diff_id"])
        return await real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(service.workers, "unpack_layer", counted)
    one = add_image(service, NAME, BASE)
    two = add_image(service, "127.0.0.1:1/other:1", BASE, TOP)
    roots = await asyncio.gather(*(service.prepare(image, f"k{n}") for n, image in enumerate([one, two, one, two])))
    assert len(calls) == 2
    assert roots[0].lower[0] == roots[1].lower[-1]


async def test_a_root_without_layers_is_empty(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME)
    with mounted(await service.prepare(image, "k"), tmp_path / "m") as root:
        assert tree(root) == []
        (root / "f").write_text("x")


async def test_layers_whose_paths_do_not_fit_a_page_can_be_mounted(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME, *(tar_of(file(f"f{n}")) for n in range(60)))
    rootfs = await service.prepare(image, "k")
    with mounted(rootfs, tmp_path / "m") as root:
        assert len(tree(root)) == 60
    assert sum(len(str(path)) for path in rootfs.lower) > 4096


async def test_the_root_has_the_attributes_of_the_image(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME, tar_of(header("./", b"5", mode=0o700, uid=42)), tar_of(file("x")))
    with mounted(await service.prepare(image, "k"), tmp_path / "m") as root:
        assert (root.stat().st_mode & 0o7777, root.stat().st_uid) == (0o700, 42)


async def test_names_come_and_go_and_the_last_one_takes_the_content(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME, BASE, TOP)
    add_image(service, "127.0.0.1:1/other:1", BASE)
    await service.prepare(image, "k")
    service.tag(image, "alias:1")
    assert service.resolve("alias:1") == service.resolve(NAME) == service.resolve(image.id[:20])
    await service.remove("alias:1")
    assert service.resolve("alias:1") is None
    for name in (NAME, image.id, image.id[7:19]):
        with pytest.raises(ImageInUse, match="in use by k"):
            await service.remove(name)
    await service.release("k")
    before = service.usage()
    await service.remove(NAME)
    assert service.resolve(image.id) is None
    assert service.usage().bytes < before.bytes
    assert len(list((tmp_path / "images/snapshots").iterdir())) == 1, "the layer that the other image has stays"
    with pytest.raises(ImageNotFound, match="is not here"):
        await service.remove(NAME)
    await service.remove("127.0.0.1:1/other:1")
    assert list((tmp_path / "images/snapshots").iterdir()) == []
    assert service.usage().bytes == 0


async def test_everything_is_found_again(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME, BASE, TOP)
    rootfs = await service.prepare(image, "k")
    (rootfs.upper / "kept").write_text("x")
    await service.close()
    again = ImageService(tmp_path / "images")
    await again.open()
    try:
        assert again.list() == [image]
        assert await again.rootfs("k") == rootfs
        assert (rootfs.upper / "kept").exists()
    finally:
        await again.close()
        service.metadata = again.metadata  # the fixture closes it once more, which is harmless
        await service.registry.close()


async def test_a_broken_layer_leaves_nothing(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME, BASE)
    bad = service.content.add(b"no tar" * 1000, OCI_LAYER)
    with pytest.raises(ImageError):
        await service.unpack([Descriptor(OCI_LAYER, bad.digest, bad.size)], [image.diff_ids[0]])
    assert list((tmp_path / "images/snapshots").iterdir()) == []
    await service.prepare(image, "k")


async def test_a_full_disk_is_told(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME, tar_of(file("big", b"x" * 4_000_000)))
    small = tmp_path / "images/snapshots"
    mounts.mount("tmpfs", str(small), "tmpfs", 0, "size=1m")
    try:
        with pytest.raises(ImageError, match="No space left"):
            await service.prepare(image, "k")
        assert list(small.iterdir()) == []
    finally:
        mounts.umount(str(small))


async def test_an_unknown_image_and_a_bad_tag_are_refused(service: ImageService) -> None:
    image = add_image(service, NAME, BASE)
    with pytest.raises(InvalidImage, match="a tag is wanted"):
        service.tag(image, "x@" + image.id)
    await service.remove(NAME)
    with pytest.raises(ImageNotFound, match="not here any more"):
        await service.prepare(image, "k")


async def test_a_worker_that_is_killed_fails_its_layer_only(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, NAME, tar_of(*(file(f"f{n}", os.urandom(4096)) for n in range(4000))))
    task = asyncio.create_task(service.prepare(image, "k"))
    snapshots = tmp_path / "images/snapshots"
    async with asyncio.timeout(30):
        while not any(len(list(folder.iterdir())) > 20 for folder in snapshots.glob("*/fs")):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    (worker,) = (int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split() if is_worker(pid))
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(ImageError, match="ended with -9"):
        await task
    assert list(snapshots.iterdir()) == []
    await service.prepare(image, "k")


def is_worker(pid: str) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"highrt.images.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


async def test_workers_end_when_they_are_idle(service: ImageService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "_IDLE_SECONDS", 0.05)
    for number in range(3):
        image = add_image(service, f"127.0.0.1:1/app:{number}", tar_of(file(f"f{number}")))
        await service.prepare(image, f"k{number}")
    async with asyncio.timeout(10):
        while any(map(is_worker, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


KILLED = """
import asyncio, sys
from pathlib import Path
from highrt.images.service import ImageService

async def main():
    service = ImageService(Path(sys.argv[1]))
    await service.open()
    (image,) = service.list()
    async with service.mounted([], []) as (root, _):
        (root / "f").write_text("x")
        print("mounted", flush=True)
        await service.prepare(image, "k")

asyncio.run(main())
"""


async def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    service = ImageService(tmp_path / "images")
    await service.open()
    # one file is large, so that the process is killed while it unpacks
    add_image(service, NAME, tar_of(*(file(f"f{n}", os.urandom(4096)) for n in range(4000))))
    await service.close()
    command: list[str | Path] = [sys.executable, "-c", KILLED, tmp_path / "images"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 (the test waits for it)
    assert process.stdout is not None
    assert process.stdout.readline() == "mounted\n"
    snapshots = tmp_path / "images/snapshots"
    wait_for(lambda: any(len(list(folder.iterdir())) > 20 for folder in snapshots.glob("*/fs")), what="the unpacking to begin")
    process.send_signal(signal.SIGKILL)
    process.wait()
    service = ImageService(tmp_path / "images")
    await service.open()
    try:
        wait_for(lambda: list(snapshots.iterdir()) == [], what="the half-done snapshots to go")
        assert [mount for mount in mounts.mountinfo() if str(tmp_path) in mount.target] == []
        (image,) = service.list()
        rootfs = await service.prepare(image, "k")
        assert len(list(rootfs.lower[0].iterdir())) == 4000
    finally:
        await service.close()

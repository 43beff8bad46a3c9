"""What an image adds, changes and deletes, beside its lower layers and beside another image."""

import os
import tarfile
from pathlib import Path

from highrt.images.differences import differences
from highrt.images.service import ImageService
from strata.linux import mounts
from tests.integration.images.conftest import add_image, file, header, tar_of

DIRECTORY, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE
LOWER = tar_of(
    header("d", DIRECTORY),
    file("d/kept", b"kept"),
    file("d/gone"),
    file("d/longer", b"1"),
    file("d/other", b"old!"),
    file("d/touched", b"same"),
    file("d/again", b"same"),
    header("gone", DIRECTORY),
    file("gone/with"),
    header("opaque", DIRECTORY),
    file("opaque/old"),
    header("quiet", DIRECTORY),
    file("quiet/f"),
    header("link", LINK, linkname="d"),
    header("moved", LINK, linkname="d"),
    file("kind"),
    header("folder", DIRECTORY),
    file("folder/f"),
    file("capable"),
)
UPPER = tar_of(
    header("d", DIRECTORY),
    file("d/.wh.gone", b""),
    file("d/longer", b"12"),
    file("d/other", b"new!"),
    file("d/touched", b"same", mtime=1_100_000_000),
    file("d/again", b"same"),
    file("d/new"),
    file(".wh.gone", b""),
    header("opaque", DIRECTORY),
    file("opaque/.wh..wh..opq", b""),
    file("opaque/new"),
    header("quiet", DIRECTORY),
    header("link", LINK, linkname="d"),
    header("moved", LINK, linkname="quiet"),
    header("kind", DIRECTORY),
    file("kind/f"),
    file("folder", b"file"),
    file("capable", pax_headers={"SCHILY.xattr.user.x": "y"}),
    header("fresh", DIRECTORY),
    file("fresh/f"),
    file("fresh/new\nline \udcff".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")),
)
CHANGES = [
    ("C", b"/capable"), ("C", b"/d"), ("D", b"/d/gone"), ("C", b"/d/longer"), ("A", b"/d/new"), ("C", b"/d/other"),
    ("C", b"/d/touched"), ("C", b"/folder"), ("D", b"/folder/f"), ("A", b"/fresh"), ("A", b"/fresh/f"),
    ("A", b"/fresh/new\nline \xff"), ("D", b"/gone"), ("C", b"/kind"), ("A", b"/kind/f"), ("C", b"/moved"), ("C", b"/opaque"),
    ("A", b"/opaque/new"), ("D", b"/opaque/old"),
]  # fmt: skip


async def test_an_image_beside_its_lower_layers(service: ImageService, tmp_path: Path) -> None:
    image = add_image(service, "app:1", LOWER, UPPER)
    assert await differences(service, image) == CHANGES
    assert os.listdir(tmp_path / "images/mounts") == []
    assert not [mount for mount in mounts.mountinfo() if mount.target.startswith(str(tmp_path))]
    assert [row for row in service.metadata.snapshots() if row.kind == "rootfs"] == []


async def test_an_image_beside_another_one(service: ImageService) -> None:
    lower, whole = add_image(service, "app:0", LOWER), add_image(service, "app:1", LOWER, UPPER)
    alone = add_image(service, "app:2", tar_of(file("d/kept", b"kept")))
    assert await differences(service, whole, lower) == CHANGES
    back = {path: kind for kind, path in await differences(service, lower, whole)}
    assert (back[b"/gone"], back[b"/gone/with"], back[b"/d/new"], back[b"/d/other"]) == ("A", "A", "D", "C")
    assert await differences(service, whole, whole) == []
    assert b"/d/kept" not in [path for _, path in await differences(service, alone, lower)], "other inodes, but the same file"


async def test_an_image_of_one_layer_has_added_all(service: ImageService) -> None:
    image = add_image(service, "app:1", tar_of(header("d", DIRECTORY), file("d/f")))
    assert await differences(service, image) == [("A", b"/d"), ("A", b"/d/f")]
    empty = add_image(service, "empty:1")
    assert await differences(service, empty) == []
    assert await differences(service, empty, image) == [("D", b"/d")]


async def test_a_tree_of_any_depth(service: ImageService, tmp_path: Path) -> None:
    path = "/".join(["d"] * 1200)
    image = add_image(service, "deep:1", tar_of(file("f")), tar_of(file(f"{path}/f")))
    assert len(await differences(service, image)) == 1201
    await service.remove(image.id)
    assert os.listdir(tmp_path / "images/snapshots") == []

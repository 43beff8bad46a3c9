"""Published holes of other image managers, each tried on this one (docs/images.md lists where the others have their tests)."""

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from highrt.images.archive import load
from highrt.images.errors import ImageError, InvalidImage
from highrt.images.layers import Blob, unpack
from highrt.images.service import ImageService
from tests.integration.images.conftest import add_image, file, header, tar_of

NOBODY = 65534


@pytest.fixture
async def reachable() -> AsyncIterator[tuple[ImageService, Path]]:
    """A service whose root everybody may pass, as the daemon's is."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o711)
    service = ImageService(folder / "images")
    await service.open()
    yield service, folder / "images"
    await service.close()
    shutil.rmtree(folder)


async def test_cve_2021_41103_and_2024_25621_no_user_of_the_host_reaches_what_is_in_images(
    reachable: tuple[ImageService, Path],
) -> None:
    service, root = reachable
    program = tar_of(header("bin", tarfile.DIRTYPE), file("bin/su", b"#!/bin/sh\n", mode=0o4755))
    image = add_image(service, "127.0.0.1:1/app:1", program)
    rootfs = await service.prepare(image, "k")
    layers = service.content.document(image.manifest.digest)["layers"]
    async with service.mounted([], []) as (target, _):
        (target / "su").write_text("x")
        (target / "su").chmod(0o4755)
        for place in (rootfs.lower[0] / "bin/su", rootfs.upper, service.content.path(layers[0]["digest"]), target / "su"):
            assert place.exists()
            argv = ["ls", "-d", place]
            seen = subprocess.run(argv, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True)  # noqa: ASYNC221
            assert "Permission denied" in seen.stderr
        for folder in ("content", "snapshots", "mounts"):
            assert (root / folder).stat().st_mode & 0o7777 == 0o700
    await service.release("k")


@pytest.mark.parametrize("link", ["symlink", "hard link to a symlink", "folder"])
def test_cve_2021_32760_a_layer_changes_no_modes_of_the_host(tmp_path: Path, link: str) -> None:
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o700)
    (canary / "f").write_text("x")
    (canary / "f").chmod(0o600)
    entries: dict[str, list[Any]] = {
        "symlink": [header("l", tarfile.SYMTYPE, linkname=str(canary / "f")), file("l", b"", mode=0o777, uid=NOBODY)],
        "hard link to a symlink": [
            header("l", tarfile.SYMTYPE, linkname=str(canary / "f")),
            header("h", tarfile.LNKTYPE, linkname="l", mode=0o777, uid=NOBODY),
            file("h", b"", mode=0o777, uid=NOBODY),
        ],
        "folder": [header("l", tarfile.SYMTYPE, linkname=str(canary)), header("l/f", tarfile.LNKTYPE, linkname="l/f", mode=0o777),
                   header("l", tarfile.DIRTYPE, mode=0o777, uid=NOBODY)],
    }  # fmt: skip
    tar = tar_of(*entries[link])
    (tmp_path / "blob").write_bytes(tar)
    (tmp_path / "layer").mkdir()
    try:
        unpack(Blob(str(tmp_path / "blob")), str(tmp_path / "layer"), diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
    except InvalidImage:
        assert link == "folder", "its hard link leads outside"
    assert [(path.stat().st_mode & 0o7777, path.stat().st_uid) for path in (canary, canary / "f")] == [(0o700, 0), (0o600, 0)]


@pytest.mark.parametrize("what", ["index", "manifest", "config"])
async def test_cve_2023_25153_an_archive_with_an_endless_document_takes_no_memory(service: ImageService, what: str) -> None:
    huge = b" " * (256 << 20)

    def described(data: bytes, kind: str) -> dict[str, Any]:
        return {"mediaType": f"application/vnd.oci.image.{kind}.v1+json", "digest": digest(data), "size": len(data)}

    def digest(data: bytes) -> str:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    config = huge if what == "config" else b"{}"
    manifest = json.dumps({"schemaVersion": 2, "config": described(config, "config"), "layers": []}).encode()
    manifest += huge if what == "manifest" else b""
    index = json.dumps({"schemaVersion": 2, "manifests": [described(manifest, "manifest")]}).encode() + (
        huge if what == "index" else b""
    )
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            names = [f"blobs/{digest(data).replace(':', '/')}" for data in (config, manifest)]
            for name, data in zip((*names, "index.json"), (config, manifest, index), strict=True):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        del manifest, index, data
        archive.seek(0)
        tracemalloc.start()
        try:
            with pytest.raises(ImageError, match="larger than 4194304 bytes"):
                await load(service, archive)
            assert tracemalloc.get_traced_memory()[1] < 60 << 20
        finally:
            tracemalloc.stop()
    assert service.list() == []
    assert os.listdir(service.content.partial("sha256:" + "0" * 64).parent) == []


def _sparse(parts: int) -> bytes:
    """A file of so many parts, which has no content but the list of them (GNU's sparse form 1.0)."""
    numbers = "".join(f"{n}\n0\n" for n in range(parts))
    data = f"{parts}\n{numbers}".encode()
    data += bytes(-len(data) % 512)
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f", "GNU.sparse.realsize": str(parts)}
    return tar_of(file("f", data, pax_headers=pax))


async def test_cve_2026_47262_an_image_that_is_made_to_eat_memory_ends_with_an_error(service: ImageService) -> None:
    """Whoever unpacks a layer may have 1 GiB; here some less, to see it end."""
    await service.prepare(add_image(service, "127.0.0.1:1/small:1", tar_of(file("f"))), "small")
    (worker,) = service.workers._idle
    assert resource.prlimit(worker.pid, resource.RLIMIT_DATA) == (1 << 30, 1 << 30)
    status = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
    resource.prlimit(worker.pid, resource.RLIMIT_DATA, (used + (64 << 20), 1 << 30))
    image = add_image(service, "127.0.0.1:1/large:1", _sparse(1_000_000))
    with pytest.raises(InvalidImage, match=r"takes more than \d+ bytes of memory"):
        await service.prepare(image, "large")
    assert [row.name for row in service.metadata.snapshots() if row.kind == "rootfs"] == ["small"]
    assert worker.returncode is None, "it goes on with other layers"


def test_a_list_of_a_million_parts_is_read_once(tmp_path: Path) -> None:
    """And not once for each of its 30,000 blocks."""
    tar = _sparse(1_000_000)
    (tmp_path / "blob").write_bytes(tar)
    (tmp_path / "layer").mkdir()
    before = time.process_time()
    unpack(Blob(str(tmp_path / "blob")), str(tmp_path / "layer"), diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
    assert time.process_time() - before < 15

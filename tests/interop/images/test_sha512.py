"""Images whose content is named by sha512, which the image specification allows: pulled, saved, loaded and pushed."""

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from highrt.images.archive import load, save
from highrt.images.errors import DigestMismatch
from highrt.images.service import ImageService
from tests.integration.images.conftest import file, tar_of
from tests.interop.images.conftest import Proxy

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TAR = tar_of(file("f", b"content"))


def named(data: bytes, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@pytest.fixture
def published(proxy: Proxy) -> Callable[[str], dict[str, bytes]]:
    """Puts an image before the registry, with diff IDs of an algorithm: its blobs, which may be exchanged."""

    def publish(diff: str) -> dict[str, bytes]:
        layer = gzip.compress(TAR)
        config = json.dumps(
            {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [named(TAR, diff)]}}
        ).encode()
        blobs = {named(data, "sha512"): data for data in (layer, config)}
        kinds = ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.config.v1+json")
        described = [
            {"mediaType": kind, "digest": digest, "size": len(data)}
            for kind, (digest, data) in zip(kinds, blobs.items(), strict=True)
        ]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[1], "layers": described[:1]}

        async def rule(request: web.Request) -> web.StreamResponse | None:
            if request.method == "GET" and "/manifests/" in request.path:
                return web.Response(body=json.dumps(manifest).encode(), content_type=MANIFEST)
            found = blobs.get(request.path.rpartition("/")[2])
            return web.Response(body=found) if request.method == "GET" and found is not None else None

        proxy.rules.append(rule)
        return blobs

    return publish


@pytest.mark.parametrize("diff", ["sha256", "sha512"])
async def test_content_named_by_sha512(
    service: ImageService, proxy: Proxy, tmp_path: Path, published: Callable[[str], dict[str, bytes]], diff: str
) -> None:
    blobs = published(diff)
    image = await service.pull(f"{proxy.address}/app:512")
    assert image.id == [*blobs][1]
    assert image.diff_ids == (named(TAR, diff),), "as the configuration says"
    assert ((await service.prepare(image, "k")).lower[0] / "f").read_bytes() == b"content"
    await service.release("k")
    for name in (image.id, image.id[:30], image.id.partition(":")[2], image.id.partition(":")[2][:12]):
        assert service.resolve(name) == image
    assert (await service.push(f"{proxy.address}/app:512", destination=f"{proxy.address}/copy:512")).startswith("sha256:")
    archive = io.BytesIO()
    await save(service, [image.id], archive)
    await service.remove(image.id)
    assert [*service.content.all()] == []
    archive.seek(0)
    (loaded,) = await load(service, archive)
    assert (loaded.id, loaded.diff_ids) == (image.id, image.diff_ids)
    await service.remove(image.id.partition(":")[2][:12])


async def test_wrong_content_is_found_out(
    service: ImageService, proxy: Proxy, published: Callable[[str], dict[str, bytes]]
) -> None:
    blobs = published("sha256")
    digest = next(iter(blobs))
    blobs[digest] = blobs[digest][:-1] + bytes([blobs[digest][-1] ^ 1])
    with pytest.raises(DigestMismatch, match="sha512"):
        await service.pull(f"{proxy.address}/app:512")

"""The `oras` library, a client of registries that is not ours, reads what highrt pushed, blob by blob."""

import hashlib

import oras.client

from highrt.images.service import ImageService
from tests.interop.images.conftest import DockerRegistry


async def test_oras_reads_what_was_pushed(service: ImageService, registry: DockerRegistry) -> None:
    image = await service.pull(f"{registry.address}/app:oci")
    reference = f"{registry.address}/for-oras:1"
    await service.push(image.id, destination=reference)
    client = oras.client.OrasClient(hostname=registry.address, insecure=True)
    manifest = client.get_manifest(reference)
    assert manifest["config"]["digest"] == image.id
    assert len(manifest["layers"]) == len(image.diff_ids)
    container = client.get_container(reference)
    for blob in (manifest["config"], *manifest["layers"]):
        content = client.get_blob(container, blob["digest"]).content
        assert len(content) == blob["size"]
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == blob["digest"]
    assert "1" in client.get_tags(reference)

"""The content store and the metadata keep what is whole, and nothing else."""

import hashlib
from pathlib import Path

import apsw
import pytest

from highrt.images.content import ContentStore
from highrt.images.errors import DigestMismatch, ImageNotFound, InvalidConfiguration, InvalidImage
from highrt.images.metadata import CachedStep, Metadata
from highrt.images.model import OCI_LAYER, OCI_MANIFEST, Descriptor

DATA = b"some content" * 1000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
MANIFEST = Descriptor(OCI_MANIFEST, "sha256:" + "1" * 64, 5)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = ContentStore(tmp_path)
    store.open()
    return store


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_cut_blob_is_gone_on_with(store: ContentStore) -> None:
    with store.write(DIGEST) as ingest:
        ingest.append(DATA[:5000])
    assert not store.has(DIGEST)
    with store.write(DIGEST) as ingest:
        ingest.resume()
        assert ingest.offset == 5000
        ingest.append(DATA[5000:])
        ingest.commit(len(DATA))
    assert store.path(DIGEST).read_bytes() == DATA


@pytest.mark.parametrize(("data", "size"), [(DATA[:-1] + b"x", len(DATA)), (DATA, len(DATA) - 1), (b"", len(DATA))])
def test_another_digest_or_size_is_refused_and_leaves_nothing(
    store: ContentStore, tmp_path: Path, data: bytes, size: int
) -> None:
    with store.write(DIGEST) as ingest:
        ingest.append(data)
        with pytest.raises(DigestMismatch, match="refused"):
            ingest.commit(size)
    assert files(tmp_path) == []


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha256:abc", "x", "sha1:" + "0" * 40])
def test_only_digests_are_names(store: ContentStore, digest: str) -> None:
    with pytest.raises(InvalidImage):
        store.path(digest)


def test_a_document_is_a_json_object(store: ContentStore) -> None:
    with pytest.raises(ImageNotFound):
        store.document(DIGEST)
    blob = store.add(b"[1]", "application/json")
    with pytest.raises(InvalidImage, match="not a JSON object"):
        store.document(blob.digest)


def test_metadata_survives_and_names_move(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path / "images.db")
    metadata.put_image("sha256:one", MANIFEST, {"a:1": "t1", "b:1": "t1"}, pinned=True)
    metadata.put_image("sha256:two", MANIFEST, {"a:1": "t2"})
    metadata.put_image("sha256:one", MANIFEST, {})
    metadata.close()
    metadata = Metadata(tmp_path / "images.db")
    assert [(name.reference, name.image) for name in metadata.names()] == [("a:1", "sha256:two"), ("b:1", "sha256:one")]
    assert {image.id: image.pinned for image in metadata.images()} == {"sha256:one": True, "sha256:two": False}
    metadata.remove_image("sha256:one")
    assert [name.reference for name in metadata.names()] == ["a:1"]
    metadata.close()


def test_a_snapshot_is_there_once_it_is_ready_and_its_number_is_never_used_again(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path / "images.db")
    base = metadata.new_snapshot("layer", "chain", None)
    assert metadata.snapshot("layer", "chain") is None
    metadata.snapshot_ready(base, 10, 2)
    top = metadata.new_snapshot("rootfs", "key", base, "sha256:one")
    metadata.snapshot_ready(top)
    assert metadata.ancestry(top) == [top, base]
    metadata.remove_snapshot(top)
    assert metadata.new_snapshot("rootfs", "key", base) > top
    metadata.close()


def test_a_cached_step_goes_with_its_layer(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path / "images.db")
    step = CachedStep(Descriptor(OCI_LAYER, DIGEST, 3), "sha256:diff", "2026-01-01T00:00:00Z")
    metadata.cache_step("key", step, {})
    metadata.forget_steps_without({DIGEST})
    assert metadata.cached_step("key") == step
    metadata.forget_steps_without(set())
    assert metadata.cached_step("key") is None
    metadata.close()


def test_metadata_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Metadata(tmp_path / "images.db").close()
    connection = apsw.Connection(str(tmp_path / "images.db"))
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(InvalidConfiguration, match=r"version 99.*newer highrt"):
        Metadata(tmp_path / "images.db")

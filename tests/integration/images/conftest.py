"""Layers made by hand, and a service of its own for each test."""

import gzip
import hashlib
import io
import json
import os
import socket
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from highrt.images.hosts import is_loopback
from highrt.images.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Image
from highrt.images.reference import parse
from highrt.images.service import ImageService, Rootfs


def tar_of(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive of headers, and of contents where an entry has one."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            header, data = entry if isinstance(entry, tuple) else (entry, b"")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def header(name: str, kind: bytes = tarfile.REGTYPE, **attributes: Any) -> tarfile.TarInfo:
    """A tar header; attributes as TarInfo has them."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, 0o755 if kind == tarfile.DIRTYPE else 0o644, 1_000_000_000
    for key, value in attributes.items():
        setattr(entry, key, value)
    return entry


def file(name: str, data: bytes = b"data", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return header(name, **attributes), data


def add_image(service: ImageService, name: str, *layers: bytes, config: dict[str, Any] | None = None) -> Image:
    """Puts an image of tar layers into a service, as a pull would."""
    described, diff_ids = [], []
    for tar in layers:
        diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
        described.append(service.content.add(gzip.compress(tar, mtime=0), f"{OCI_LAYER}+gzip"))
    document = {
        "os": "linux",
        "architecture": "amd64",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    stored: Descriptor = service.content.add(json.dumps(document).encode(), OCI_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": stored.to_json(),
        "layers": [layer.to_json() for layer in described],
    }
    top = service.content.add(json.dumps(manifest).encode(), OCI_MANIFEST)
    return service.record(stored.digest, top, {parse(name).stored: top.digest})


@contextmanager
def mounted(rootfs: Rootfs, target: Path) -> Iterator[Path]:
    """A root file system, mounted for the block."""
    target.mkdir(exist_ok=True)
    rootfs.mount(target)
    try:
        yield target
    finally:
        rootfs.unmount(target)


def tree(folder: Path) -> list[str]:
    """All paths below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[ImageService]:
    if os.geteuid() != 0:
        pytest.fail("these tests make devices and mounts: run them as root")
    service = ImageService(tmp_path / "images")
    await service.open()
    yield service
    await service.close()


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may look a name up: a typing error in an image's name would be a packet to a public registry."""
    real = socket.getaddrinfo

    def local(host: str | None, *arguments: Any, **options: Any) -> Any:
        if host and not is_loopback(host if ":" not in host else f"[{host}]"):
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not this machine")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local)

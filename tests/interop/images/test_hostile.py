"""Registries that mean harm: whatever they send, a pull ends soon, takes little memory, and names what was wrong."""

import asyncio
import hashlib
import json
import os
import resource
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from highrt.images import registry as registry_module
from highrt.images.errors import (
    DigestMismatch,
    ImageError,
    InvalidImage,
    RegistryUnavailable,
)
from highrt.images.model import Auth, Descriptor
from highrt.images.reference import parse
from highrt.images.service import ImageService
from tests.integration.images.conftest import file, header, tar_of
from tests.interop.images.conftest import Proxy, listening, send

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DIGEST = "sha256:" + "1" * 64


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_FIRST_WAIT_SECONDS", 0.025)


def answers(part: str, **response: Any) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    async def rule(request: web.Request) -> web.StreamResponse | None:
        return web.Response(**response) if part in request.path else None

    return rule


def endless(part: str, **headers: str) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """Streams zeros until the client leaves."""

    async def rule(request: web.Request) -> web.StreamResponse | None:
        if part not in request.path:
            return None
        response = web.StreamResponse(headers=headers)
        with suppress(ConnectionError):
            await response.prepare(request)
            while True:
                await response.write(bytes(1 << 20))
        return response

    return rule


async def refused(service: ImageService, proxy: Proxy, kind: type[ImageError], reason: str) -> None:
    """A pull fails so, in time, and leaves nothing; it does not take much memory either."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with asyncio.timeout(30):
        with pytest.raises(kind, match=reason):
            await service.pull(f"{proxy.address}/app:oci")
    assert service.list() == []
    assert [row for row in service.metadata.snapshots() if row.ready] == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000, "KiB"


@pytest.mark.parametrize("headers", [{}, {"Content-Length": str(1 << 30)}], ids=["endless", "1 GB"])
async def test_a_manifest_that_does_not_end_is_left(service: ImageService, proxy: Proxy, headers: dict[str, str]) -> None:
    proxy.rules.append(endless("/manifests/", **headers))
    await refused(service, proxy, InvalidImage, "a manifest of more than 4194304 bytes")


async def test_a_manifest_that_trickles_is_left(service: ImageService, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_DOCUMENT_SECONDS", 0.1)

    async def trickle(request: web.Request) -> web.StreamResponse | None:
        response = web.StreamResponse()
        with suppress(ConnectionError):
            await response.prepare(request)
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        return response

    proxy.rules.append(trickle)
    await refused(service, proxy, RegistryUnavailable, "did not answer in time")


async def test_a_layer_that_does_not_end_is_left_at_its_size(service: ImageService, proxy: Proxy) -> None:
    proxy.rules.append(endless("/blobs/"))
    await refused(service, proxy, DigestMismatch, "it has more than")


async def test_a_length_that_is_a_lie_is_found_out(service: ImageService, proxy: Proxy) -> None:
    async def short(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" not in request.path:
            return None
        response = web.StreamResponse(headers={"Content-Length": "100000000"})
        await response.prepare(request)
        await response.write(b"short")
        request.transport.close()  # type: ignore[union-attr]
        return response

    proxy.rules.append(short)
    await refused(service, proxy, (RegistryUnavailable), "failed 5 times|refused")


async def test_a_circle_of_redirects_ends(service: ImageService, proxy: Proxy) -> None:
    async def around(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=307, headers={"Location": str(request.rel_url)})

    proxy.rules.append(around)
    await refused(service, proxy, RegistryUnavailable, "redirects more than 10 times")
    assert len(proxy.seen) == 10


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://127.0.0.1/", "http://[::1", "http://127.0.0.1:x/"])
async def test_a_redirect_leads_to_http_only(service: ImageService, proxy: Proxy, location: str) -> None:
    proxy.rules.append(answers("/v2/", status=307, headers={"Location": location}))
    await refused(service, proxy, RegistryUnavailable, "which is no http address")


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_what_a_busy_registry_asks_for_is_done(service: ImageService, proxy: Proxy, form: str) -> None:
    times: list[float] = []
    wait = {"seconds": "1", "date": format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)}[form]

    async def busy(_: web.Request) -> web.StreamResponse | None:
        times.append(time.monotonic())
        return web.Response(status=429, headers={"Retry-After": wait}) if len(times) == 1 else None

    proxy.rules.append(busy)
    await service.pull(f"{proxy.address}/app:oci")
    assert times[1] - times[0] >= 0.9


async def test_a_busy_registry_cannot_hold_a_pull_for_ever(
    service: ImageService, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_LONGEST_WAIT_SECONDS", 0.05)
    proxy.rules.append(answers("/v2/", status=429, headers={"Retry-After": "86400"}))
    await refused(service, proxy, RegistryUnavailable, "failed 5 times, at last: .*429")


def rewritten(proxy: Proxy, change: Callable[[dict[str, Any]], Any]) -> Callable[[web.Request], Awaitable[web.Response | None]]:
    """The real manifest with something else in it, under a tag, where no digest protects it."""

    async def rule(request: web.Request) -> web.Response | None:
        if "/manifests/" not in request.path:
            return None
        document = json.loads((await proxy.fetch(request))[2])
        changed = change(document)
        body = changed if isinstance(changed, bytes) else json.dumps(document).encode()
        return web.Response(body=body, content_type=MANIFEST)

    return rule


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (lambda d: d["layers"][0].update(size=10**400), InvalidImage, "JSON|integer|size"),
        (lambda d: d["layers"][0].update(size=-1), InvalidImage, "the size of"),
        (lambda d: d["layers"][0].update(size=3), DigestMismatch, "more than 3 bytes"),
        (lambda d: d["layers"][0].update(digest="md5:1"), InvalidImage, "not a sha256 or sha512 digest"),
        (lambda d: d["layers"][0].update(digest="sha256:../../../../etc/passwd"), InvalidImage, "not a sha256"),
        (lambda d: d["layers"].extend(d["layers"] * 300), InvalidImage, "more than the 500"),
        (lambda d: d.update(layers={}), InvalidImage, "no list of layers"),
        (lambda d: d["layers"].pop(), InvalidImage, "the manifest has 2 layers, the configuration 3"),
        (lambda d: d["layers"].reverse(), DigestMismatch, "its content has the digest"),
        (lambda d: d.update(config=d["layers"][0]), InvalidImage, "JSON"),
        (lambda d: d.update(manifests=[]), InvalidImage, "both an index and a manifest"),
        (lambda d: d.pop("config") and None, InvalidImage, "config"),
        (lambda d: b"[" * 100_000, InvalidImage, "not JSON"),
        (lambda d: b'{"schemaVersion": 1, "fsLayers": [], "history": []}', InvalidImage, "schema 1, .*push it anew"),
    ],
)  # fmt: skip
async def test_a_manifest_that_lies_is_refused(
    service: ImageService, proxy: Proxy, change: Callable[[dict[str, Any]], Any], kind: type[ImageError], reason: str
) -> None:
    proxy.rules.append(rewritten(proxy, change))
    await refused(service, proxy, kind, reason)


async def test_media_types_are_not_believed(service: ImageService, proxy: Proxy) -> None:
    def change(document: dict[str, Any]) -> None:
        for layer in document["layers"]:
            layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+zstd"  # it is gzip

    proxy.rules.append(rewritten(proxy, change))
    assert (await service.pull(f"{proxy.address}/app:oci")).id


async def test_another_digest_in_the_header_changes_nothing(service: ImageService, proxy: Proxy) -> None:
    async def lie(request: web.Request) -> web.Response | None:
        status, headers, data = await proxy.fetch(request)
        return web.Response(status=status, headers={**headers, "Docker-Content-Digest": DIGEST}, body=data)

    image = await service.pull(f"{proxy.address}/app:oci")
    proxy.rules.append(lie)
    again = await service.pull(f"{proxy.address}/app:oci")
    assert again == image
    assert not any(DIGEST in name for name in again.digests)


async def test_a_tag_that_is_the_same_as_before_costs_one_request(service: ImageService, proxy: Proxy) -> None:
    image = await service.pull(f"{proxy.address}/app:oci")
    proxy.seen.clear()
    assert await service.pull(f"{proxy.address}/app:oci") == image
    assert [request.method for request in proxy.seen] == ["HEAD"]


async def test_cve_2020_15157_credentials_do_not_follow_the_addresses_of_a_manifest(
    service: ImageService, proxy: Proxy, tmp_path: Path
) -> None:
    elsewhere: list[web.Request] = []

    async def listen(request: web.Request) -> web.StreamResponse:
        elsewhere.append(request)
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    def change(document: dict[str, Any]) -> None:
        document["layers"][0]["urls"] = [f"http://{other}/steal"]
        document["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

    proxy.rules.append(rewritten(proxy, change))
    async with listening(listen) as other:
        with pytest.raises(InvalidImage, match="may not be distributed"):
            await service.pull(f"{proxy.address}/app:oci", auth=Auth("someone", "secret"))
        assert elsewhere == []


async def test_a_token_server_that_does_not_end_is_left(service: ImageService, proxy: Proxy) -> None:
    async def challenge(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return None
        realm = f'Bearer realm="http://{request.host}/token",service="x"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    proxy.rules += [challenge, endless("/token")]
    await refused(service, proxy, RegistryUnavailable, "sends more than 1048576 bytes")


async def test_what_speaks_no_http_is_told(service: ImageService) -> None:
    async def junk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 10)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(junk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(RegistryUnavailable, match="failed"):
            await service.pull(f"127.0.0.1:{port}/app:1")
    finally:
        server.close()


def served(config: dict[str, Any], layer: bytes, held_from: int | None = None) -> Callable[[web.Request], Awaitable[Any]]:
    """A registry with one image of one layer, in which nothing is what a tool would write. held_from: the layer's first bytes
    are sent, and the others never."""
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    document = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest]},
        **config,
    }
    stored = json.dumps(document).encode()
    described = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": len(stored)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {**described, "digest": f"sha256:{hashlib.sha256(stored).hexdigest()}"},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": len(layer)}],
    }

    async def rule(request: web.Request) -> web.StreamResponse | None:
        if "/manifests/" in request.path:
            return web.Response(body=json.dumps(manifest).encode(), content_type=MANIFEST)
        if "/blobs/" not in request.path:
            return None
        if not request.path.endswith(digest):
            return web.Response(body=stored)
        return await send(request, layer, held_from)

    return rule


def _nul() -> bytes:
    """A tar that begins with a file whose name has a NUL byte, which only an extended header can say."""
    return tar_of(header("a", pax_headers={"path": "a\0b"}), file("rest", os.urandom(4 << 20)))


def _checksum() -> bytes:
    whole = bytearray(tar_of(file("a"), file("rest", os.urandom(4 << 20))))
    whole[1024] ^= 1
    return bytes(whole)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (_nul, "'a\\\\x00b' cannot be unpacked: embedded null"),
        (_checksum, "its checksum is wrong"),
        (lambda: b"\x1f\x8b" + bytes(4 << 20), "cannot be decompressed"),
    ],
    ids=["NUL", "checksum", "gzip"],
)
async def test_a_failure_ends_the_wait_for_the_rest(
    service: ImageService, proxy: Proxy, layer: Callable[[], bytes], reason: str
) -> None:
    proxy.rules.append(served({}, layer(), held_from=3 << 20))
    for _ in range(2):
        async with asyncio.timeout(15):
            await refused(service, proxy, InvalidImage, reason)
        assert os.listdir(service.content.partial(DIGEST).parent) == [], "a broken layer is not gone on with"


async def test_a_layer_that_trickles_is_left(service: ImageService, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_SLOW_SECONDS", 0.2)

    async def trickle(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" not in request.path:
            return None
        response = web.StreamResponse(headers={"Content-Length": "100000000"})
        with suppress(ConnectionError):
            await response.prepare(request)
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        return response

    proxy.rules.append(trickle)
    await refused(service, proxy, RegistryUnavailable, "too slowly, less than 65536 bytes in 0.2 s")
    assert len(proxy.asked("GET", "/blobs/")) == 1


@dataclass
class Taking:
    """Answers the PATCH of an upload in some way; the blob is larger than what the kernel holds for a peer that does not read."""

    service: ImageService
    proxy: Proxy
    over: asyncio.Event
    """Ends what stalls: who does not read is not told that the client has left."""

    async def push(self, take: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        async def rule(request: web.Request) -> web.StreamResponse | None:
            if request.method == "HEAD":
                return web.Response(status=404)
            if request.method == "PATCH":
                return await take(request)
            return web.Response(status=202, headers={"Location": "/v2/app/blobs/uploads/1"})

        self.proxy.rules.append(rule)
        blob = Descriptor("application/octet-stream", DIGEST, 32 << 20)
        path = self.service.content.path(DIGEST)
        with path.open("wb") as file:
            file.truncate(blob.size)
        repository = self.service.registry.repository(parse(f"{self.proxy.address}/app:1"))
        try:
            async with asyncio.timeout(20):
                await repository.push_blob(blob, path, lambda _: None)
        finally:
            path.unlink()
            self.over.set()


@pytest.fixture
async def taking(service: ImageService, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Taking:
    monkeypatch.setattr(registry_module, "_SLOW_SECONDS", 0.5)
    monkeypatch.setattr(registry_module, "_ANSWER_SECONDS", 0.5)
    return Taking(service, proxy, asyncio.Event())


@pytest.mark.parametrize("how", ["not at all", "at a trickle"])
async def test_an_upload_that_is_not_taken_is_given_up(taking: Taking, how: str) -> None:
    async def take(request: web.Request) -> web.StreamResponse:
        while how == "at a trickle" and not taking.over.is_set():
            await request.content.read(1024)
            await asyncio.sleep(0.05)
        await taking.over.wait()
        if request.transport:
            request.transport.abort()  # type: ignore[attr-defined]
        return web.Response()

    with pytest.raises(
        RegistryUnavailable, match=f"content {DIGEST} to .*takes what is sent too slowly, less than 65536 bytes in 0.5 s"
    ):
        await taking.push(take)
    assert len(taking.proxy.asked("PATCH", "")) == 1


async def test_an_upload_that_is_taken_but_not_answered_is_given_up(taking: Taking) -> None:
    async def take(request: web.Request) -> web.StreamResponse:
        async for _ in request.content.iter_any():
            pass
        await taking.over.wait()
        return web.Response()

    with pytest.raises(RegistryUnavailable, match="failed 5 times, at last: it did not answer in time"):
        await taking.push(take)


async def test_an_upload_that_takes_long_but_goes_on_is_borne(taking: Taking) -> None:
    began = time.monotonic()

    async def take(request: web.Request) -> web.StreamResponse:
        count = 0
        async for chunk in request.content.iter_chunked(1 << 19):
            count += len(chunk)
            await asyncio.sleep(0.02)
        assert count == 32 << 20
        return web.Response(status=202, headers={"Location": "/v2/app/blobs/uploads/1"})

    await taking.push(take)
    assert time.monotonic() - began > 1, "longer than each of the limits"


async def test_an_answer_whose_head_trickles_is_left(
    service: ImageService, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_ANSWER_SECONDS", 0.3)

    async def trickle(request: web.Request) -> web.StreamResponse | None:
        assert request.transport
        request.transport.write(b"HTTP/1.1 200 OK\r\nX-Long: ")  # type: ignore[attr-defined]
        while not request.transport.is_closing():
            request.transport.write(b"a")  # type: ignore[attr-defined]
            await asyncio.sleep(0.02)
        return web.Response()

    proxy.rules.append(trickle)
    await refused(service, proxy, RegistryUnavailable, "failed 5 times, at last: it did not answer in time")

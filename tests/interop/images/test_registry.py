"""Images travel between highrt, docker-registry, skopeo and umoci, and a registry that fails is borne."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
from aiohttp import web

from highrt.images import registry as registry_module
from highrt.images.archive import load, save
from highrt.images.errors import (
    DigestMismatch,
    ImageNotFound,
    InvalidImage,
    InvalidReference,
    RegistryUnauthorized,
    RegistryUnavailable,
)
from highrt.images.model import Auth, Platform, Progress
from highrt.images.service import ImageService
from tests.interop.images.conftest import (
    DockerRegistry,
    Proxy,
    TokenServer,
    docker_config,
    free_port,
    listening,
    openssl_certificate,
    run,
)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-offs as in life, but a tenth as long."""
    monkeypatch.setattr(registry_module, "_FIRST_WAIT_SECONDS", 0.025)


def remote_digest(address: str, name: str) -> str:
    return run("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{address}/{name}").strip()


@pytest.mark.parametrize("tag", ["oci", "docker"])
async def test_what_skopeo_pushed_is_pulled_and_unpacked(
    service: ImageService, registry: DockerRegistry, tmp_path: Path, tag: str
) -> None:
    seen: list[Progress] = []
    name = f"{registry.address}/app:{tag}"
    image = await service.pull(name, progress=seen.append)
    assert image.tags == (name,)
    assert image.digests == (f"{registry.address}/app@{remote_digest(registry.address, f'app:{tag}')}",)
    assert image.config.cmd == ("/bin/sh",)
    assert "A=b" in image.config.env
    assert image.config.working_dir == "/bin"
    assert not image.pinned
    rootfs = await service.prepare(image, "k")
    target = tmp_path / "m"
    target.mkdir()
    rootfs.mount(target)
    try:
        assert sorted(os.listdir(target)) == ["bin"]
        assert (target / "bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()
    finally:
        rootfs.unmount(target)
    assert {progress.phase for progress in seen} >= {"resolving", "downloading", "unpacking", "done"}
    layers = {progress.layer for progress in seen if progress.phase == "downloading"}
    assert all(any(p.layer == layer and p.done_bytes == p.total_bytes for p in seen) for layer in layers)
    again = await service.pull(f"{registry.address}/app@{image.digests[0].partition('@')[2]}")
    assert again.id == image.id
    assert again.tags == (name,)


async def test_what_was_pulled_is_pushed_and_copied_by_skopeo_and_unpacked_by_umoci(
    service: ImageService, registry: DockerRegistry, tmp_path: Path
) -> None:
    image = await service.pull(f"{registry.address}/app:oci")
    for unnamed in (image.id, image.id[7:19]):
        with pytest.raises(InvalidReference, match="tag the image first"):
            await service.push(unnamed)
    digest = await service.push(image.id, destination=f"{registry.address}/pushed:1")
    assert digest == remote_digest(registry.address, "pushed:1")
    assert f"{registry.address}/pushed@{digest}" in (service.resolve(image.id) or image).digests
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{registry.address}/pushed:1", f"oci:{tmp_path}/oci:x")
    run("umoci", "unpack", "--image", f"{tmp_path}/oci:x", tmp_path / "bundle")
    assert sorted(os.listdir(tmp_path / "bundle/rootfs")) == ["bin"]


async def test_the_platform_of_an_index_is_pulled(service: ImageService, registry: DockerRegistry, tmp_path: Path) -> None:
    entries = []
    for tag, platform in (("docker", ("windows", "amd64")), ("oci", ("linux", Platform.host().architecture))):
        raw = run("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{registry.address}/app:{tag}").encode()
        entries.append(
            {
                "mediaType": json.loads(raw).get("mediaType", "application/vnd.oci.image.manifest.v1+json"),
                "size": len(raw),
                "digest": remote_digest(registry.address, f"app:{tag}"),
                "platform": {"os": platform[0], "architecture": platform[1]},
            }
        )
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    data = json.dumps(index)
    (tmp_path / "index").write_text(data)
    kind = f"Content-Type: {index['mediaType']}"
    url = f"http://{registry.address}/v2/app/manifests/many"
    run("curl", "-fsS", "-X", "PUT", "-H", kind, "--data-binary", f"@{tmp_path}/index", url)
    image = await service.pull(f"{registry.address}/app:many")
    assert image.digests == (f"{registry.address}/app@sha256:{hashlib.sha256(data.encode()).hexdigest()}",)
    assert image.platform == str(Platform.host())
    with pytest.raises(ImageNotFound, match=r"none for linux/s390x, only for linux/"):
        await service.pull(f"{registry.address}/app:many", platform="linux/s390x")


async def test_a_missing_image_is_told_with_its_name(service: ImageService, registry: DockerRegistry) -> None:
    for name in ("nothing:here", "app:nothing"):
        with pytest.raises(ImageNotFound, match=f"{registry.address}/{name}: not found.*404"):
            await service.pull(f"{registry.address}/{name}")


async def test_a_registry_that_is_not_there_is_told(service: ImageService) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(RegistryUnavailable, match=f"{address}/app:latest.*cannot connect to {address}: Connection refused"):
        await service.pull(f"{address}/app")


async def test_a_registry_that_was_down_may_come_back_with_tls(
    service: ImageService, layout: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    certificate, key = openssl_certificate(tmp_path)
    folder = tmp_path_factory.mktemp("back")
    plain = DockerRegistry(folder)
    name = f"{plain.address}/app:1"
    secure = DockerRegistry(folder, http=f", tls: {{certificate: '{certificate}', key: '{key}'}}", address=plain.address)
    try:
        plain.start()
        run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{name}")
        await service.pull(name)
        plain.stop()
        with pytest.raises(RegistryUnavailable, match="Connection refused"):
            await service.pull(name)
        secure.start()
        with pytest.raises(RegistryUnavailable, match="certificate"):
            await service.pull(name)
    finally:
        plain.stop()
        secure.stop()


async def test_the_same_pull_is_done_once(service: ImageService, proxy: Proxy) -> None:
    images = await asyncio.gather(*(service.pull(f"{proxy.address}/app:oci") for _ in range(5)))
    assert len({image.id for image in images}) == 1
    assert len(proxy.asked("GET", "/manifests/")) == 1
    blobs = [request.path for request in proxy.asked("GET", "/blobs/")]
    assert len(blobs) == len(set(blobs)) == 4


async def test_layers_that_two_images_share_are_downloaded_once(service: ImageService, proxy: Proxy) -> None:
    one, two = await asyncio.gather(service.pull(f"{proxy.address}/app:oci"), service.pull(f"{proxy.address}/app:docker"))
    assert one.id == two.id
    blobs = [request.path for request in proxy.asked("GET", "/blobs/")]
    assert len(blobs) == len(set(blobs))
    assert set((service.resolve(one.id) or one).tags) == {f"{proxy.address}/app:oci", f"{proxy.address}/app:docker"}


async def test_zstd_layers_are_unpacked(service: ImageService, registry: DockerRegistry, layout: str, tmp_path: Path) -> None:
    packed = f"oci:{tmp_path}/zstd:x"
    run("skopeo", "copy", "--format", "oci", "--dest-compress-format", "zstd", f"oci:{layout}", packed)
    run("skopeo", "copy", "--dest-tls-verify=false", packed, f"docker://{registry.address}/zstd:1")
    image = await service.pull(f"{registry.address}/zstd:1")
    layers = service.content.document(image.manifest.digest)["layers"]
    assert {layer["mediaType"].rpartition("+")[2] for layer in layers} == {"zstd"}
    rootfs = await service.prepare(image, "k")
    assert any((folder / "bin/busybox").exists() for folder in rootfs.lower)


async def test_a_pull_that_nobody_waits_for_ends_and_one_that_somebody_waits_for_goes_on(
    service: ImageService, proxy: Proxy
) -> None:
    asked, gate = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> None:
        if "/blobs/" in request.path:
            asked.set()
            await gate.wait()

    proxy.rules.append(hold)
    first = asyncio.create_task(service.pull(f"{proxy.address}/app:oci"))
    second = asyncio.create_task(service.pull(f"{proxy.address}/app:oci"))
    async with asyncio.timeout(10):
        await asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    assert (await second).config.cmd == ("/bin/sh",)


LARGE = 400_000


async def test_a_cut_download_goes_on_where_it_was_cut(service: ImageService, proxy: Proxy) -> None:
    cuts = 0

    async def cut(request: web.Request) -> web.StreamResponse | None:
        nonlocal cuts
        if "/blobs/" not in request.path or cuts >= 3:
            return None
        status, headers, data = await proxy.fetch(request)
        if len(data) < LARGE:
            return None
        cuts += 1
        response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:200_000])
        assert request.transport is not None
        request.transport.close()
        return response

    proxy.rules.append(cut)
    await service.pull(f"{proxy.address}/app:oci")
    assert cuts == 3
    ranges = [request.headers["Range"] for request in proxy.asked("GET", "/blobs/") if "Range" in request.headers]
    assert len(ranges) == 3, "each try goes on"
    assert sorted(int(text.removeprefix("bytes=").removesuffix("-")) for text in ranges)[0] > 0


async def test_a_registry_without_ranges_is_read_anew(service: ImageService, proxy: Proxy) -> None:
    cuts = 0

    async def cut(request: web.Request) -> web.StreamResponse | None:
        nonlocal cuts
        if "/blobs/" not in request.path:
            return None
        request = request.clone(headers={k: v for k, v in request.headers.items() if k != "Range"})
        _, headers, data = await proxy.fetch(request)
        if cuts or len(data) < LARGE:
            return web.Response(body=data)
        cuts += 1
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:200_000])
        assert request.transport is not None
        request.transport.close()
        return response

    proxy.rules.append(cut)
    await service.pull(f"{proxy.address}/app:oci")
    assert cuts == 1


async def test_a_pull_that_failed_is_gone_on_with_by_the_next_one(service: ImageService, proxy: Proxy) -> None:
    broken = True

    async def cut(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" not in request.path or not broken:
            return None
        if "Range" in request.headers:
            return web.Response(status=503)
        status, headers, data = await proxy.fetch(request)
        if len(data) < LARGE:
            return None
        response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:300_000])
        assert request.transport is not None
        request.transport.close()
        return response

    proxy.rules.append(cut)
    with pytest.raises(RegistryUnavailable, match="503"):
        await service.pull(f"{proxy.address}/app:oci")
    assert service.list() == []
    broken = False
    proxy.seen.clear()
    await service.pull(f"{proxy.address}/app:oci")
    assert any("Range" in request.headers for request in proxy.asked("GET", "/blobs/"))


@pytest.mark.parametrize("whole", [False, True], ids=["a part", "as many as the whole"])
async def test_wrong_bytes_of_an_earlier_download_are_no_hindrance(
    service: ImageService, proxy: Proxy, tmp_path: Path, whole: bool
) -> None:
    image = await service.pull(f"{proxy.address}/app:oci")
    layer = service.content.document(image.manifest.digest)["layers"][0]
    await service.remove(image.id)
    wrong = b"\0" * (layer["size"] if whole else 500)
    (tmp_path / "images/content/ingest" / layer["digest"].replace(":", "-")).write_bytes(wrong)
    await service.pull(f"{proxy.address}/app:oci")
    asked = [request.headers.get("Range") for request in proxy.asked("GET", layer["digest"])]
    assert asked == ([None, None] if whole else [None, "bytes=500-", None])


async def test_what_a_cut_pull_has_brought_is_still_there_after_a_restart(proxy: Proxy, tmp_path: Path) -> None:
    blobs: list[str] = []

    async def fail_the_third(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" in request.path and request.path not in blobs:
            blobs.append(request.path)
        return web.Response(status=500) if request.path in blobs[2:3] else None

    proxy.rules.append(fail_the_third)
    for _ in range(2):
        service = ImageService(tmp_path / "images")
        await service.open()
        try:
            if proxy.rules:
                with pytest.raises(RegistryUnavailable):
                    await service.pull(f"{proxy.address}/app:oci")
                proxy.rules.clear()
                proxy.seen.clear()
            else:
                await service.pull(f"{proxy.address}/app:oci")
        finally:
            await service.close()
    assert len(proxy.asked("GET", "/blobs/")) <= 2, "the others were kept"


@pytest.mark.parametrize("part", ["/blobs/", "/manifests/"])
async def test_content_of_another_digest_is_refused_and_not_kept(
    service: ImageService, proxy: Proxy, tmp_path: Path, part: str
) -> None:
    async def corrupt(request: web.Request) -> web.StreamResponse | None:
        if part not in request.path:
            return None
        status, headers, data = await proxy.fetch(request)
        return web.Response(status=status, headers=headers, body=data[:-1] + bytes([data[-1] ^ 1]))

    digest = remote_digest(proxy.upstream, "app:oci")
    proxy.rules.append(corrupt)
    with pytest.raises(DigestMismatch, match="refused"):
        await service.pull(f"{proxy.address}/app@{digest}")
    assert service.list() == []
    assert list((tmp_path / "images/content/ingest").iterdir()) == []
    kept = list((tmp_path / "images/content/blobs/sha256").iterdir())
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in kept)
    proxy.rules.clear()
    await service.pull(f"{proxy.address}/app@{digest}")


async def test_more_bytes_than_promised_are_refused(service: ImageService, proxy: Proxy) -> None:
    async def grow(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" not in request.path:
            return None
        return web.Response(body=(await proxy.fetch(request))[2] + b"more")

    proxy.rules.append(grow)
    with pytest.raises(DigestMismatch, match="more than"):
        await service.pull(f"{proxy.address}/app:oci")


async def test_a_page_instead_of_a_manifest_is_refused(service: ImageService, proxy: Proxy) -> None:
    async def page(request: web.Request) -> web.StreamResponse | None:
        return web.Response(text="<html>please log in</html>", content_type="text/html")

    proxy.rules.append(page)
    with pytest.raises(InvalidImage, match="not JSON"):
        await service.pull(f"{proxy.address}/app:oci")


async def test_failures_of_the_server_are_tried_again(service: ImageService, proxy: Proxy) -> None:
    answers = [503, 500, 429]

    async def fail(_: web.Request) -> web.StreamResponse | None:
        return web.Response(status=answers.pop(0), headers={"Retry-After": "0"}) if answers else None

    proxy.rules.append(fail)
    await service.pull(f"{proxy.address}/app:oci")
    assert answers == []


async def test_a_server_that_keeps_failing_is_given_up(service: ImageService, proxy: Proxy) -> None:
    async def fail(_: web.Request) -> web.StreamResponse | None:
        return web.json_response({"errors": [{"code": "UNKNOWN", "message": "disk on fire"}]}, status=500)

    proxy.rules.append(fail)
    with pytest.raises(RegistryUnavailable, match="disk on fire"):
        await service.pull(f"{proxy.address}/app:oci")
    assert len(proxy.seen) == 5


async def test_tokens_are_fetched_kept_and_scoped(service: ImageService, proxy: Proxy) -> None:
    server = TokenServer()
    proxy.rules.append(server.rule)
    auth = Auth(username="someone", password="secret")
    image = await service.pull(f"{proxy.address}/app:oci", auth=auth)
    assert [asked["scope"] for asked in server.asked] == ["repository:app:pull"], "one token for all requests"
    await service.push(image.id, destination=f"{proxy.address}/tokened:1", auth=auth)
    assert [asked["scope"] for asked in server.asked][1:] == ["repository:tokened:pull,push"]
    server.revoked |= set(server.tokens)
    await service.pull(f"{proxy.address}/app:docker", auth=auth)
    with pytest.raises(RegistryUnauthorized, match=r"token server.*401"):
        await service.pull(f"{proxy.address}/app:oci")
    with pytest.raises(RegistryUnauthorized, match="refused"):
        await service.pull(f"{proxy.address}/app:oci", auth=Auth(username="someone", password="wrong"))
    with pytest.raises(RegistryUnauthorized):
        await service.pull(f"{proxy.address}/app:oci", auth=Auth("someone", "secret", server_address="other.example"))


async def test_refresh_and_registry_tokens_are_used(service: ImageService, proxy: Proxy) -> None:
    server = TokenServer(tokens={"given": "repository:app:pull"})
    proxy.rules.append(server.rule)
    await service.pull(f"{proxy.address}/app:oci", auth=Auth(identity_token="refresh me"))
    assert server.asked[-1]["grant_type"] == "refresh_token"
    count = len(server.asked)
    await service.pull(f"{proxy.address}/app:docker", auth=Auth(registry_token="given"))
    assert len(server.asked) == count


async def test_a_redirect_to_another_host_does_not_carry_the_credentials(
    service: ImageService, proxy: Proxy, registry: DockerRegistry
) -> None:
    elsewhere: list[web.Request] = []

    async def storage(request: web.Request) -> web.StreamResponse:
        elsewhere.append(request)
        return await proxy.forward(request)

    server = TokenServer()

    async def redirect(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" in request.path and request.method == "GET":
            return web.Response(status=307, headers={"Location": f"http://{other}{request.path}"})
        return None

    proxy.rules += [server.rule, redirect]
    async with listening(storage) as other:
        await service.pull(f"{proxy.address}/app:oci", auth=Auth("someone", "secret"))
    assert len(elsewhere) == 4
    assert all("Authorization" not in request.headers for request in elsewhere)
    assert all("Authorization" in request.headers for request in proxy.asked("GET", "/blobs/"))


async def test_a_registry_with_a_password_over_tls(
    service: ImageService, layout: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    certificate, key = openssl_certificate(tmp_path)
    password = run("openssl", "rand", "-hex", "8").strip()
    (tmp_path / "htpasswd").write_text(f"someone:{bcrypt(password)}\n")
    locked = DockerRegistry(
        tmp_path_factory.mktemp("locked"),
        http=f", tls: {{certificate: '{certificate}', key: '{key}'}}",
        auth=f"auth: {{htpasswd: {{realm: here, path: {tmp_path}/htpasswd}}}}\n",
    )
    configured = tmp_path / "certs.d" / locked.address
    configured.mkdir(parents=True)
    (configured / "hosts.toml").write_text(f'server = "https://{locked.address}"\nca = "{certificate}"\n')
    trusting = ImageService(tmp_path / "trusting", tmp_path / "certs.d")
    await trusting.open()
    try:
        locked.start()
        credentials = docker_config(tmp_path, locked.address, "someone", password)
        copy = ("skopeo", "copy", "--dest-tls-verify=false", "--dest-authfile", credentials)
        run(*copy, f"oci:{layout}", f"docker://{locked.address}/app:1")
        name = f"{locked.address}/app:1"
        with pytest.raises(RegistryUnavailable, match="certificate"):
            await service.pull(name)
        with pytest.raises(RegistryUnauthorized, match="none were given"):
            await trusting.pull(name)
        with pytest.raises(RegistryUnauthorized, match="refused the credentials"):
            await trusting.pull(name, auth=Auth("someone", "wrong"))
        auth = Auth("someone", password, server_address=locked.address)
        image = await trusting.pull(name, auth=auth)
        await trusting.push(name, destination=f"{locked.address}/copy:1", auth=auth)
        with pytest.raises(RegistryUnauthorized):
            await trusting.pull(image.digests[0])
    finally:
        await trusting.close()
        locked.stop()


def bcrypt(password: str) -> str:
    """A bcrypt hash, as htpasswd -B makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import crypt
    hashed = crypt.crypt(password, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16))
    assert hashed.startswith("$2b$"), "the C library knows bcrypt"
    return hashed


async def test_a_registry_that_wants_a_client_certificate(
    service: ImageService, layout: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    certificate, key = openssl_certificate(tmp_path)
    tls = f", tls: {{certificate: '{certificate}', key: '{key}', clientcas: ['{certificate}']}}"
    strict = DockerRegistry(tmp_path_factory.mktemp("strict"), http=tls)
    configured = tmp_path / "certs.d" / strict.address
    configured.mkdir(parents=True)
    shutil.copy(certificate, configured / "mine.cert")
    shutil.copy(key, configured / "mine.key")
    (configured / "hosts.toml").write_text(
        f'server = "https://{strict.address}"\nskip_verify = true\nclient = [["mine.cert", "mine.key"]]\n'
    )
    known = ImageService(tmp_path / "known", tmp_path / "certs.d")
    await known.open()
    try:
        strict.start()
        copy = ("skopeo", "copy", "--dest-tls-verify=false", "--dest-cert-dir", configured)
        run(*copy, f"oci:{layout}", f"docker://{strict.address}/app:1")
        with pytest.raises(RegistryUnavailable):
            await service.pull(f"{strict.address}/app:1")
        await known.pull(f"{strict.address}/app:1")
    finally:
        await known.close()
        strict.stop()


async def test_mirrors_are_asked_first_and_the_registry_last(proxy: Proxy, registry: DockerRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "certs.d/reg.example"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'server = "http://{registry.address}"\n'
        f'[host."http://127.0.0.1:{free_port()}"]\n'
        f'[host."http://{proxy.address}"]\ncapabilities = ["pull", "resolve"]\n'
    )
    service = ImageService(tmp_path / "mirrored", tmp_path / "certs.d")
    await service.open()
    try:
        image = await service.pull("reg.example/app:oci", auth=Auth("someone", "secret"))
        assert image.tags == ("reg.example/app:oci",)
        assert proxy.asked("GET", "/blobs/")
        assert all(request.query["ns"] == "reg.example" for request in proxy.seen)
        assert all("Authorization" not in request.headers for request in proxy.seen)

        async def lacks(_: web.Request) -> web.StreamResponse | None:
            return web.Response(status=404)

        proxy.rules.append(lacks)
        assert "reg.example/app:docker" in (await service.pull("reg.example/app:docker")).tags
        proxy.seen.clear()
        await service.push("reg.example/app:oci", destination="reg.example/mirrored:1")
        assert proxy.seen == [], "a mirror that may not is not pushed to"
        assert remote_digest(registry.address, "mirrored:1") == image.manifest.digest
    finally:
        await service.close()


async def test_the_proxy_of_the_environment_is_asked(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "certs.d/reg.example"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text('server = "http://reg.example"\n')
    service = ImageService(tmp_path / "proxied", tmp_path / "certs.d")
    await service.open()
    try:
        with pytest.raises(RegistryUnavailable, match="not this machine"):
            await service.pull("reg.example/app:oci")
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        await service.pull("reg.example/app:oci")
        assert {request.host for request in proxy.seen} == {"reg.example"}
        monkeypatch.setenv("no_proxy", ".example")
        with pytest.raises(RegistryUnavailable, match="not this machine"):
            await service.pull("reg.example/app:docker")
    finally:
        await service.close()


async def test_a_private_digest_is_not_given_to_those_without_credentials(service: ImageService, proxy: Proxy) -> None:
    server = TokenServer()
    proxy.rules.append(server.rule)
    image = await service.pull(f"{proxy.address}/app:oci", auth=Auth("someone", "secret"))
    with pytest.raises(RegistryUnauthorized):
        await service.pull(image.digests[0])


async def test_docker_load_archives_of_skopeo_are_loaded_and_saved_ones_are_read_by_it(
    service: ImageService, layout: str, tmp_path: Path
) -> None:
    for form, option in (("docker-archive", ":app:1"), ("oci-archive", ":app")):
        archive = tmp_path / f"{form}.tar"
        run("skopeo", "copy", f"oci:{layout}", f"{form}:{archive}{option}")
        with archive.open("rb") as file:
            (image,) = await load(service, file, tag=None if form == "docker-archive" else "oci:2")
        assert image.pinned
        assert image.config.cmd == ("/bin/sh",)
    assert service.resolve("app:1") is not None
    with (tmp_path / "saved.tar").open("wb") as file:
        await save(service, ["app:1", "oci:2"], file)
    for form, name in (("docker-archive", "docker.io/library/app:1"), ("oci-archive", "2")):
        run("skopeo", "copy", f"{form}:{tmp_path}/saved.tar:{name}", f"oci:{tmp_path}/{form}:x")
        run("umoci", "unpack", "--image", f"{tmp_path}/{form}:x", tmp_path / f"bundle-{form}")
    # through a pipe, compressed
    with (
        subprocess.Popen(["gzip", "-c", tmp_path / "saved.tar"], stdout=subprocess.PIPE) as process,  # noqa: ASYNC220
    ):
        assert process.stdout is not None
        other = ImageService(tmp_path / "other")
        await other.open()
        try:
            loaded = await load(other, process.stdout)
            assert {tag for image in loaded for tag in image.tags} == {"docker.io/library/app:1", "docker.io/library/oci:2"}
        finally:
            await other.close()

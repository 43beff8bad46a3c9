"""What a registry has: lists in pages, referrers with and without the registry's help, and credentials that stay home."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from highrt.images import referrers, remote
from highrt.images import registry as registry_module
from highrt.images.errors import ImageNotFound, InvalidImage, RegistryUnauthorized, RegistryUnavailable
from highrt.images.model import OCI_INDEX, OCI_MANIFEST, Auth, Descriptor
from highrt.images.reference import parse
from highrt.images.service import ImageService
from tests.interop.images.conftest import DockerRegistry, Proxy, TokenServer, listening

SUBJECT = "sha256:" + "1" * 64
KINDS = ("application/spdx+json", "application/vnd.example.signature")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_FIRST_WAIT_SECONDS", 0.025)


async def collected(found: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in found]


async def names(found: AsyncIterator[list[str]]) -> list[str]:
    return [name for page in await collected(found) for name in page]


def paged(part: str, key: str, items: list[Any], link: str = "{path}?last={end}") -> Callable[[web.Request], Awaitable[Any]]:
    """A list, two items a page, as the distribution specification says it."""

    async def rule(request: web.Request) -> web.Response | None:
        if part not in request.path:
            return None
        start = int(request.query.get("last", 0))
        end = start + 2
        headers = {}
        if end < len(items):
            headers["Link"] = f'<{link.format(path=request.path, end=end, host=request.host)}>; rel="next"'
        return web.json_response({key: items[start:end]}, headers=headers)

    return rule


@pytest.mark.parametrize(
    "link",
    ["{path}?last={end}", "http://{host}{path}?last={end}", "?last={end}", "https://elsewhere.example{path}?last={end}"],
    ids=["path", "address", "query", "another host"],
)
async def test_tags_come_in_pages(service: ImageService, proxy: Proxy, link: str) -> None:
    tags = [f"v{number}" for number in range(7)]
    proxy.rules.append(paged("/tags/list", "tags", tags, link))
    assert await names(remote.tags(service.registry, f"{proxy.address}/app", None)) == tags
    assert len(proxy.seen) == 4


async def test_repositories_come_in_pages_and_want_a_scope_of_their_own(service: ImageService, proxy: Proxy) -> None:
    repositories = [f"team/app{number}" for number in range(5)]
    server = TokenServer()
    proxy.rules += [server.rule, paged("/_catalog", "repositories", repositories)]
    found = remote.repositories(service.registry, proxy.address, Auth("someone", "secret"))
    assert await names(found) == repositories
    assert {asked["scope"] for asked in server.asked} == {"registry:catalog:*"}
    with pytest.raises(RegistryUnauthorized):
        await names(remote.repositories(service.registry, proxy.address, None))


async def test_debians_registry_has_pages_too(service: ImageService, registry: DockerRegistry) -> None:
    wanted = [f"many/{number:03}" for number in range(105)]
    for name in wanted:
        (registry.folder / "data/docker/registry/v2/repositories" / name / "_layers").mkdir(parents=True)
    found = await names(remote.repositories(service.registry, registry.address, None))
    assert [name for name in found if name.startswith("many/")] == wanted, "it sends a hundred at once"


@pytest.mark.parametrize("link", ["{path}", "{path}?last=2"], ids=["itself", "circle"])
async def test_pages_that_do_not_end_are_left(service: ImageService, proxy: Proxy, link: str) -> None:
    proxy.rules.append(paged("/tags/list", "tags", ["a"] * 10, link))
    with pytest.raises(RegistryUnavailable, match="page after page without an end"):
        await names(remote.tags(service.registry, f"{proxy.address}/app", None))
    assert len(proxy.seen) <= 2


async def test_lists_of_something_else_are_refused(service: ImageService, proxy: Proxy) -> None:
    for wrong in (["\x1b[2J"], [1], "text", [None]):
        proxy.rules[:] = [paged("/tags/list", "tags", wrong)]  # type: ignore[arg-type]
        with pytest.raises(InvalidImage, match="tags that are none"):
            await names(remote.tags(service.registry, f"{proxy.address}/app", None))
    proxy.rules[:] = [paged("/referrers/", "manifests", [{"digest": SUBJECT, "size": 1, "mediaType": "\x1b[2J"}])]
    with pytest.raises(InvalidImage, match="no media types"):
        await collected(remote.referrers_of(service.registry, f"{proxy.address}/app@{SUBJECT}", "", None))


def referrer(number: int) -> dict[str, Any]:
    digest = f"sha256:{number:064}"
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": 10, "artifactType": KINDS[number % 2], "annotations": {"n": "1"}}


@pytest.mark.parametrize("heeded", [False, True], ids=["filter not heeded", "filter heeded"])
async def test_a_registry_that_knows_referrers_is_asked(service: ImageService, proxy: Proxy, heeded: bool) -> None:
    every = [referrer(number) for number in range(5)]

    async def rule(request: web.Request) -> web.Response | None:
        kind = request.query.get("artifactType")
        chosen = [item for item in every if not heeded or kind in (None, item["artifactType"])]
        return await paged(
            "/referrers/", "manifests", chosen, "{path}?last={end}" + f"&artifactType={quote(kind or '', safe='')}"
        )(request)

    proxy.rules.append(rule)
    name = f"{proxy.address}/app@{SUBJECT}"
    for kind in KINDS:
        found = await collected(remote.referrers_of(service.registry, name, kind, None))
        assert [item.to_json() for item in found] == [item for item in every if item["artifactType"] == kind]
    assert {request.query["artifactType"] for request in proxy.seen} == {*KINDS}
    assert not proxy.asked("GET", "/manifests/")


async def test_a_registry_that_notes_a_referrer_itself_gets_no_list(service: ImageService, proxy: Proxy) -> None:
    repository = service.registry.repository(parse(f"{proxy.address}/app:1"))
    put: list[str] = []

    async def rule(request: web.Request) -> web.Response | None:
        if request.method != "PUT":
            return None
        put.append(request.path.rpartition("/")[2])
        return web.Response(status=201, headers={"OCI-Subject": SUBJECT})

    proxy.rules.append(rule)
    manifest = about(SUBJECT)
    noted = await repository.push_manifest(manifest.descriptor, manifest.data, manifest.descriptor.digest)
    await referrers.note(repository, manifest, noted=noted)
    assert put == [manifest.descriptor.digest]


def about(subject: str, number: int = 0) -> Any:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": KINDS[0],
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": SUBJECT, "size": 2},
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 2},
        "annotations": {"number": str(number)},
    }
    return referrers.checked_manifest(json.dumps(document).encode(), OCI_MANIFEST, None, "it")


async def test_two_pushes_at_once_are_both_in_the_list(service: ImageService, proxy: Proxy) -> None:
    kept: dict[str, bytes] = {}

    async def keep(request: web.Request) -> web.Response | None:
        """Keeps lists, also of what it does not have."""
        name = request.path.rpartition("/")[2]
        if request.method == "PUT":
            kept[name] = await request.read()
            return web.Response(status=201)
        await asyncio.sleep(0.01)
        return web.Response(body=kept[name], content_type=OCI_INDEX) if name in kept else None

    proxy.rules.append(keep)
    repository = service.registry.repository(parse(f"{proxy.address}/busy:1"))
    both = [about(SUBJECT, number) for number in range(4)]
    await asyncio.gather(*(referrers.note(repository, manifest, noted="") for manifest in both))
    found = await collected(referrers.referrers(repository, SUBJECT))
    assert {item.descriptor.digest for item in found} == {manifest.descriptor.digest for manifest in both}
    assert all(item.artifact_type == KINDS[0] and "number" in item.annotations for item in found)


async def test_a_tag_that_is_no_list_is_left_as_it_is(service: ImageService, registry: DockerRegistry) -> None:
    image = await service.pull(f"{registry.address}/app:oci")
    tag = referrers.fallback_tag(SUBJECT)
    await service.push(image.id, destination=f"{registry.address}/taken:{tag}")
    repository = service.registry.repository(parse(f"{registry.address}/taken:1"))
    with pytest.raises(InvalidImage, match="is no index: it is left as it is"):
        await referrers.note(repository, about(SUBJECT), noted="")
    assert await repository.look(tag) == image.manifest.digest


def test_the_fallback_tag_is_cut_as_the_specification_says() -> None:
    assert referrers.fallback_tag(SUBJECT) == "sha256-" + "1" * 64
    assert referrers.fallback_tag("sha512:" + "2" * 128) == "sha512-" + "2" * 64


async def test_an_index_with_a_subject_is_known_by_its_own_type() -> None:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "artifactType": KINDS[1]}
    index = referrers.checked_manifest(json.dumps(document).encode(), OCI_INDEX, None, "it")
    assert referrers.Referrer.of(index).artifact_type == KINDS[1]


async def test_deleting_wants_a_scope_of_its_own(service: ImageService, proxy: Proxy) -> None:
    image = await service.pull(f"{proxy.upstream}/app:oci")
    await service.push(image.id, destination=f"{proxy.upstream}/deleted:1")
    server = TokenServer()
    proxy.rules.append(server.rule)
    auth = Auth("someone", "secret")
    deleted = await remote.delete(service.registry, f"{proxy.address}/deleted:1", auth)
    assert deleted.digest == image.manifest.digest
    assert server.asked[-1]["scope"] == "repository:deleted:pull,delete"
    with pytest.raises(ImageNotFound):
        await remote.delete(service.registry, f"{proxy.address}/deleted:1", auth)


async def test_an_upload_that_goes_on_at_another_host_does_not_carry_the_credentials(
    service: ImageService, proxy: Proxy, registry: DockerRegistry
) -> None:
    elsewhere: list[web.Request] = []

    async def storage(request: web.Request) -> web.StreamResponse:
        elsewhere.append(request)
        await request.read()
        status, place = (202, {"Location": str(request.url)}) if request.method == "PATCH" else (201, {})
        return web.Response(status=status, headers=place)

    server = TokenServer()

    async def begin(request: web.Request) -> web.StreamResponse | None:
        if request.method != "POST":
            return None
        return web.Response(status=202, headers={"Location": f"http://{other}/upload?state=x"})

    proxy.rules += [server.rule, begin]
    blob = Descriptor("application/octet-stream", "sha256:" + "2" * 64, 6)
    path = service.content.path(blob.digest)
    path.write_bytes(b"secret")
    repository = service.registry.repository(parse(f"{proxy.address}/app:1"), Auth("someone", "secret"))
    async with listening(storage) as other:
        await repository.push_blob(blob, path, lambda _: None)
    assert [request.method for request in elsewhere] == ["PATCH", "PUT"]
    assert all("Authorization" not in request.headers for request in elsewhere)
    assert "Authorization" in proxy.asked("POST", "/uploads/")[-1].headers

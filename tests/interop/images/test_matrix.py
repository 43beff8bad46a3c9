"""The matrix of peers and formats: an image by us is the same to them, and one by them the same to us, entry by entry.

docs/images.md has it as a table.
"""

import asyncio
import json
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from highrt.images.archive import load, save
from highrt.images.build import build
from highrt.images.model import Auth, Image
from highrt.images.service import ImageService
from tests.interop.images.conftest import DockerRegistry, openssl_certificate, run
from tests.interop.images.peers import CONFIG, PEERS, Access, Peer, Seen, change_tree, config_of, listing, make_tree
from tests.interop.images.test_peers import mounted
from tests.interop.images.test_registry import bcrypt
from tests.interop.images.token_server import SigningServer

FORMATS = ["docker-archive", "oci-archive", "oci"]
REGISTRIES = ["plain", "tls", "htpasswd", "token"]
CELLS = [(peer, form) for peer in PEERS for form in [*FORMATS, *REGISTRIES] if peer != "umoci" or form == "oci"]


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Access]]:
    """A docker-registry of each kind, and below `certs.d` what highrt has to know of it."""
    folder = tmp_path_factory.mktemp("registries")
    certificate, key = openssl_certificate(folder)
    shutil.copy(certificate, folder / "ca.crt")
    auth = Auth("someone", secrets.token_hex(8))
    (folder / "htpasswd").write_text(f"someone:{bcrypt(auth.password)}\n")
    tokens = SigningServer(certificate, key, auth.username, auth.password)
    made = {
        "plain": DockerRegistry(folder / "plain"),
        "tls": DockerRegistry(folder / "tls", http=f", tls: {{certificate: '{certificate}', key: '{key}'}}"),
        "htpasswd": DockerRegistry(folder / "htpass", auth=f"auth: {{htpasswd: {{realm: here, path: {folder}/htpasswd}}}}\n"),
        "token": DockerRegistry(folder / "token", auth=tokens.configuration),
    }
    try:
        for registry in made.values():
            registry.folder.mkdir()
            registry.start()
        trusted = folder / "certs.d" / made["tls"].address
        trusted.mkdir(parents=True)
        (trusted / "hosts.toml").write_text(f'server = "https://{made["tls"].address}"\nca = "{certificate}"\n')
        yield {
            kind: Access(registry.address, auth if kind in ("htpasswd", "token") else None, folder if kind == "tls" else None)
            for kind, registry in made.items()
        }
    finally:
        tokens.close()
        for registry in made.values():
            registry.stop()


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Peer, Seen]]]:
    """Each with the image that it has made."""
    found: dict[str, tuple[Peer, Seen]] = {}
    try:
        for name, kind in PEERS.items():
            peer = kind(tmp_path_factory.mktemp(name))
            found[name] = (peer, Seen({}, {}))
            found[name] = (peer, peer.make())
        yield found
    finally:
        for peer, _ in found.values():
            peer.close()


@asynccontextmanager
async def running(folder: Path, certificates: Path | None = None) -> AsyncIterator[ImageService]:
    service = ImageService(folder, certificates)
    await service.open()
    try:
        yield service
    finally:
        await service.close()


async def seen(service: ImageService, image: Image, folder: Path) -> Seen:
    with mounted(await service.prepare(image, "k"), folder) as root:
        tree = listing(root)
    await service.release("k")
    return Seen(config_of(service.content.document(image.id)), tree)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen]:
    """An image that highrt has made, as an archive, and how highrt sees it."""
    folder = tmp_path_factory.mktemp("ours")

    async def make() -> Seen:
        context = folder / "context"
        context.mkdir()
        make_tree(folder / "tree")
        run("tar", "--xattrs", "--xattrs-include=*", "-cf", context / "tree.tar", "-C", folder / "tree", ".")
        (context / "Containerfile").write_text(
            f"FROM scratch\nADD tree.tar /\nRUN change\nENV A=b\nWORKDIR /d\nUSER 7:8\nCMD {json.dumps(CONFIG['Cmd'])}\n"
        )

        async def change(step: object) -> int:
            change_tree(Path(step.rootfs))  # type: ignore[attr-defined]
            return 0

        async with running(folder / "images") as service:
            image = await build(service, context, tag="ours:1", run_step=change)
            with (folder / "ours.tar").open("wb") as file:
                await save(service, ["ours:1"], file)
            return await seen(service, image, folder / "m")

    return folder / "ours.tar", asyncio.run(make())


def the_same(one: Seen, other: Seen) -> None:
    assert one.config == other.config
    assert {*one.tree} == {*other.tree}
    assert one.tree == other.tree


def test_the_image_has_it_all(ours: tuple[Path, Seen], peers: dict[str, tuple[Peer, Seen]]) -> None:
    """What would not be in the images would not be compared."""
    for name, image in {"ours": ours[1], **{name: image for name, (_, image) in peers.items()}}.items():
        assert image.config == CONFIG, name
        tree = image.tree
        assert "security.capability" in tree["bin/busybox"][4], name  # type: ignore[operator]
        assert tree["d/f"][:3] == ("0o100644", 5, 70_000), name
        assert tree["d/f"][4] == {"user.note": b"\x01 note"}, name
        assert tree["d/f"][6] == 1_234_567_890, name
        assert tree["d/hard"][7] == "d/f", name
        assert tree["d/setuid"][0] == "0o106751", name
        assert {"gone", "gone/f"}.isdisjoint(tree), name
        assert tree["sticky"][0] == "0o40700", name


@pytest.mark.parametrize(("peer", "form"), CELLS)
async def test_theirs_is_read_by_us(
    peers: dict[str, tuple[Peer, Seen]], registries: dict[str, Access], tmp_path: Path, peer: str, form: str
) -> None:
    writer, theirs = peers[peer]
    async with AsyncExitStack() as stack:
        if form in REGISTRIES:
            access = registries[form]
            name = f"{access.address}/{peer}:1"
            certificates = access.certificate / "certs.d" if access.certificate else None
            service = await stack.enter_async_context(running(tmp_path / "images", certificates))
            writer.give(f"docker://{name}", access)
            image = await service.pull(name, auth=access.auth)
        else:
            service = await stack.enter_async_context(running(tmp_path / "images"))
            target = tmp_path / "theirs"
            writer.give(f"{form}:{target}" + {"docker-archive": "", "oci-archive": "", "oci": ":app"}[form], Access())
            (image,) = await read(service, target)
        the_same(await seen(service, image, tmp_path / "m"), theirs)


async def read(service: ImageService, written: Path) -> list[Image]:
    """Loads an archive, or a folder as one."""
    if written.is_dir():
        run("tar", "-cf", f"{written}.tar", "-C", written, ".")
        written = written.with_suffix(".tar")
    with written.open("rb") as file:
        return await load(service, file, tag="theirs:1")


@pytest.mark.parametrize(("peer", "form"), CELLS)
async def test_ours_is_read_by_them(
    ours: tuple[Path, Seen],
    peers: dict[str, tuple[Peer, Seen]],
    registries: dict[str, Access],
    tmp_path: Path,
    peer: str,
    form: str,
) -> None:
    reader, (archive, image) = peers[peer][0], ours
    if form in REGISTRIES:
        access = registries[form]
        place = f"docker://{access.address}/ours:{peer}"
        certificates = access.certificate / "certs.d" if access.certificate else None
        async with running(tmp_path / "images", certificates) as service:
            with archive.open("rb") as file:
                await load(service, file)
            await service.push("ours:1", destination=place.removeprefix("docker://"), auth=access.auth)
    elif form == "oci":
        access = Access()
        (tmp_path / "oci").mkdir()
        run("tar", "-xf", archive, "-C", tmp_path / "oci")
        place = f"oci:{tmp_path}/oci:1"
    else:
        access, place = Access(), f"{form}:{archive}"
    the_same(reader.take(place, access), image)

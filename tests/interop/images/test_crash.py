"""kill -9 at any moment of pulls, pushes, builds, removals and collections: no content is corrupt, nothing is left behind, and
what was answered is there.

STRATA_CRASH_SEED repeats what is done and the moments, as far as a seed can.
"""

import asyncio
import hashlib
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from highrt.images.service import ImageService
from strata.linux import mounts
from tests.interop.images.conftest import DockerRegistry, Proxy, run, send

CHECKOUT = Path(__file__).parents[3]
SEED = os.environ.get("STRATA_CRASH_SEED") or str(random.randrange(10**6))


@pytest.fixture
async def root(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "images"
    mounts.umount_below(str(tmp_path))


async def live_and_die(root: Path, registry: str, context: Path, seed: str, seconds: float) -> list[list[str]]:
    """One process's life. Returns what it has said."""
    command = ["-m", "tests.interop.images.crash_scenario", str(root), registry, str(context), seed]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    said = [await process.stdout.readline()]
    assert said == [b"open\n"]
    reading = asyncio.create_task(process.stdout.read())
    await asyncio.sleep(seconds)
    assert process.returncode is None, "it ended by itself: a client's call failed"
    process.kill()
    await process.wait()
    return [line.split() for line in (await reading).decode().splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize(
    "rounds",
    # a limit of the function's own would go before that of a case
    [pytest.param(20, marks=pytest.mark.timeout(300)), pytest.param(500, marks=[pytest.mark.long, pytest.mark.timeout(7200)])],
)
async def test_a_daemon_may_be_killed_at_any_moment(registry: DockerRegistry, root: Path, tmp_path: Path, rounds: int) -> None:
    print(f"STRATA_CRASH_SEED={SEED}")
    context = tmp_path / "context"
    context.mkdir()
    (context / "Containerfile").write_text(
        f'FROM {registry.address}/app:oci\nARG A\nCOPY data /data\nRUN ["/bin/busybox", "touch", "/made"]\n'
    )
    (context / "data").write_bytes(os.urandom(1 << 20))
    chance, has, answers = random.Random(SEED), set[str](), 0
    for number in range(rounds):
        for word, name in await live_and_die(root, registry.address, context, f"{SEED}-{number}", chance.uniform(0.1, 1.2)):
            answers += 1
            if word == "has":
                has.add(name)
            elif word == "going":
                has.discard(name)
            else:
                run("skopeo", "inspect", "--tls-verify=false", f"docker://{name}")
        if number % 5 == 4:
            await check(root, has)
    assert answers > rounds, "the clients did too little for this to mean anything"


async def check(root: Path, has: set[str]) -> None:
    """What was said is there and can be used, all content is what its digest says, and nothing else is left."""
    service = ImageService(root)
    await service.open()
    try:
        assert [mount.target for mount in mounts.mountinfo() if str(root) in mount.target] == []
        assert [*(root / "content/ingest").glob("new-*")] == []
        assert not (root / "steps").exists() or os.listdir(root / "steps") == []
        known = {str(row.id) for row in service.metadata.snapshots()}
        assert {*os.listdir(root / "snapshots")} == known
        assert [row.name for row in service.metadata.snapshots() if row.kind == "rootfs"] == []
        for digest in service.content.all():
            algorithm, _, digits = digest.partition(":")
            assert hashlib.new(algorithm, service.content.path(digest).read_bytes()).hexdigest() == digits
        for name in has:
            image = service.resolve(name)
            assert image, f"{name} was answered, and is not here"
            rootfs = await service.prepare(image, "check")
            assert any((layer / "made").exists() for layer in rootfs.lower)
            await service.release("check")
        for image in service.list():
            await service.remove(image.id)
        has.clear()
        # Cut pulls may be gone on with, and what they brought stays for a day.
        await service.collect()
        assert [*service.content.all()] == []
        assert os.listdir(root / "snapshots") == []
    finally:
        await service.close()


async def test_the_pull_of_a_killed_daemon_is_gone_on_with(proxy: Proxy, root: Path, tmp_path: Path) -> None:
    """Only what is missing is fetched again."""
    service = ImageService(root)
    await service.open()
    image = await service.pull(f"{proxy.address}/app:oci")
    layers = service.content.document(image.manifest.digest)["layers"]
    whole = {layer["digest"]: service.content.path(layer["digest"]).read_bytes() for layer in layers}
    await service.remove(image.id)
    await service.close()
    large = max(layers, key=lambda layer: int(layer["size"]))
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom highrt.images.service import ImageService\n"
        "async def main():\n    service = ImageService(Path(sys.argv[1]))\n    await service.open()\n"
        "    await service.pull(sys.argv[2])\nasyncio.run(main())\n"
    )

    async def hold(request: web.Request) -> web.StreamResponse | None:
        return await send(request, whole[large["digest"]], 300_000) if request.path.endswith(large["digest"]) else None

    proxy.rules.append(hold)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, root, f"{proxy.address}/app:oci", cwd=CHECKOUT)
    partial = root / "content/ingest" / large["digest"].replace(":", "-")
    others = [root / "content/blobs" / layer["digest"].replace(":", "/") for layer in layers if layer != large]
    async with asyncio.timeout(30):
        while not (partial.exists() and partial.stat().st_size and all(other.exists() for other in others)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    process.kill()
    await process.wait()
    there = partial.stat().st_size
    proxy.rules.clear()
    proxy.seen.clear()
    service = ImageService(root)
    await service.open()
    try:
        await service.pull(f"{proxy.address}/app:oci")
        (asked,) = proxy.asked("GET", "/blobs/")
        assert asked.path.endswith(large["digest"])
        assert asked.headers["Range"] == f"bytes={there}-"
    finally:
        await service.close()

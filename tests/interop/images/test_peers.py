"""What highrt builds, pushes and saves is the same to umoci, podman and containerd."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from highrt.images.archive import save
from highrt.images.build import build
from highrt.images.differences import differences
from highrt.images.model import Image
from highrt.images.service import ImageService
from highrt.images.steps import runtime_step
from strata.linux import mounts
from tests.conftest import wait_for
from tests.interop.images.conftest import DockerRegistry, run
from tests.interop.images.peers import listing

CONTAINERFILE = """
FROM scratch
COPY --from=host /bin/busybox /bin/busybox
SHELL ["/bin/busybox", "sh", "-c"]
RUN busybox --install -s /bin; mkdir -p /d/gone /d/kept /opaque /home/u; echo 1 > /d/f; ln /d/f /d/hard; echo old > /opaque/old
RUN rm -r /d/gone /opaque; mkdir -m 1770 /opaque; echo new > /opaque/new; chown 5:6 /d/f; mkfifo -m 600 /d/pipe
RUN mknod /d/null c 1 3
COPY --chown=7:8 --chmod=4755 setuid /home/u/
ENV A=b
CMD ["/bin/sh", "-c", "cat /opaque/new"]
"""


@pytest.fixture
async def image(service: ImageService, registry: DockerRegistry, tmp_path: Path) -> Image:
    """An image with whiteouts, an opaque directory, links, devices and owners, also in the registry as `made:1`."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Containerfile").write_text(CONTAINERFILE)
    (context / "setuid").write_text("s")
    tag = f"{registry.address}/made:1"
    step = runtime_step(runtime="runc")
    image = await build(service, context, tag=tag, build_contexts={"host": Path("/")}, run_step=step)
    await service.push(tag)
    return image


@contextlib.contextmanager
def mounted(rootfs: object, target: Path) -> Iterator[Path]:
    target.mkdir()
    rootfs.mount(target)  # type: ignore[attr-defined]
    try:
        yield target
    finally:
        rootfs.unmount(target)  # type: ignore[attr-defined]


async def test_umoci_unpacks_the_same_files(
    service: ImageService, image: Image, registry: DockerRegistry, tmp_path: Path
) -> None:
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{registry.address}/made:1", f"oci:{tmp_path}/oci:x")
    run("umoci", "unpack", "--image", f"{tmp_path}/oci:x", tmp_path / "bundle")
    with mounted(await service.prepare(image, "k"), tmp_path / "m") as root:
        ours = listing(root)
    assert ours == listing(tmp_path / "bundle/rootfs")
    assert "opaque/old" not in ours
    assert "d/gone" not in ours
    assert ours["d/f"][1:3] == (5, 6)


async def test_podman_pulls_and_mounts_the_same_files(
    service: ImageService, image: Image, registry: DockerRegistry, tmp_path: Path
) -> None:
    short = Path(tempfile.mkdtemp(prefix="pod"))  # podman refuses a long one
    podman = ("podman", "--root", tmp_path / "p", "--runroot", short, "--storage-driver", "vfs")
    name = f"{registry.address}/made:1"
    try:
        run(*podman, "pull", "--tls-verify=false", name)
        assert run(*podman, "image", "inspect", "--format", "{{.Id}} {{.Config.Env}} {{.Config.Cmd}}", name).split()[0] == (
            image.id.removeprefix("sha256:")
        )
        theirs = listing(Path(run(*podman, "image", "mount", name).strip()))
        with mounted(await service.prepare(image, "k"), tmp_path / "m") as root:
            assert listing(root) == theirs
        # its `diff`, too, of the topmost layer and of the image beside another one
        other = f"{registry.address}/app:oci"
        run(*podman, "pull", "--tls-verify=false", other)
        for base in (None, await service.pull(other)):
            theirs_too = run(*podman, "diff", name, *([other] if base else [])).splitlines()
            ours = [f"{kind} {os.fsdecode(path)}" for kind, path in await differences(service, image, base)]
            assert ours == sorted(theirs_too, key=lambda line: line[2:])
    finally:
        run(*podman, "image", "unmount", "--all")
        run(*podman, "rmi", "--all", "--force")
        for folder in (tmp_path / "p", short):
            mounts.umount_below(str(folder))
        shutil.rmtree(short)


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Path]:
    """The socket of a containerd of its own."""
    configuration = tmp_path / "containerd.toml"
    configuration.write_text(
        f'version = 2\nroot = "{tmp_path}/cd"\nstate = "{tmp_path}/cds"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\naddress = "{tmp_path}/c.sock"\n[ttrpc]\naddress = "{tmp_path}/t.sock"\n'
    )
    with (tmp_path / "containerd.log").open("wb") as log:
        process = subprocess.Popen(["containerd", "--config", configuration], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for((tmp_path / "c.sock").exists, seconds=20, what="containerd to answer")
        yield tmp_path / "c.sock"
    finally:
        process.terminate()
        process.wait(20)
        mounts.umount_below(str(tmp_path / "cds"))


async def test_containerd_imports_what_was_saved(service: ImageService, image: Image, containerd: Path, tmp_path: Path) -> None:
    with (tmp_path / "saved.tar").open("wb") as file:
        await save(service, [image.tags[0]], file)
    ctr = ("ctr", "--address", containerd)
    run(*ctr, "images", "import", "--snapshotter", "native", tmp_path / "saved.tar")
    assert f"{image.tags[0]} " in run(*ctr, "images", "ls")
    assert image.manifest.digest in run(*ctr, "images", "ls")
    run(*ctr, "images", "mount", "--snapshotter", "native", image.tags[0], make(tmp_path / "look"))
    try:
        with mounted(await service.prepare(image, "k"), tmp_path / "m") as root:
            assert listing(root) == listing(tmp_path / "look")
    finally:
        mounts.umount_below(str(tmp_path / "look"))


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder

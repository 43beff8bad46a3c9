"""Attackers that change a root file system or a volume while lowrt makes mounts in it.

Each race is also run against a runtime that checks a path and then uses it: there it is won, which shows that the attack is one.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.linux import mounts
from tests.integration.escapes.racing import Look, Tries, lowrts_way, many, outside, swapping

TRIES = [
    pytest.param(300, id="300"),
    pytest.param(10_000, id="10000", marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
]  # fmt: skip


class Scene:
    """A root with a volume in it that an attacker can write, and a folder of the host's that he cannot.

    In the volume `place` is a folder, or a link to the host's folder: whichever the attacker wants at the moment.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.volume, self.host = folder / "rootfs", folder / "volume", folder / "host"
        for path in (self.root / "vol", self.root / "proc", self.volume / "place/in", self.host / "in"):
            path.mkdir(parents=True)
        (self.volume / "link").symlink_to(self.host)
        (folder / "file").write_text("")
        self.file = folder / "file"

    @property
    def attack(self) -> Any:
        return swapping(self.volume / "place", self.volume / "link")

    def spec(self, *entries: dict[str, Any], **linux: Any) -> dict[str, Any]:
        volume = {"destination": "/vol", "source": str(self.volume), "options": ["rbind"]}
        return {"root": {}, "mounts": [volume, *entries], "linux": {"namespaces": [{"type": "mount"}], **linux}}

    def naive(self, *steps: Callable[[], object]) -> Callable[[], object]:
        """A runtime that binds the volume, and then does the steps."""

        def make() -> None:
            mounts.mount(str(self.volume), str(self.root / "vol"), "", mounts.BIND)
            for step in steps:
                step()

        return make

    def checked(self, path: str) -> str:
        """A path below the root after its links are resolved and found to stay inside: true at that moment."""
        real = os.path.realpath(f"{self.root}{path}")
        if not real.startswith(f"{self.root}/"):
            raise OSError(1, "outside of the root", path)
        return f"{self.root}{path}"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    assert sorted(os.listdir(tmp_path)) == ["file", "host", "rootfs", "volume"]


def until_won(make: Callable[[], object], look: Look, most: int = 3000) -> Tries:
    """Tries until one escapes."""
    tries = Tries()
    for _ in range(most // 50):
        tries = many(50, make, look)
        if tries.escapes:
            break
    return tries


@pytest.mark.parametrize("count", TRIES)
def test_a_mounts_place_is_swapped_for_a_link(scene: Scene, count: int) -> None:
    """CVE-2021-30465: runc resolved a mount's destination inside the root and then mounted on that path. Someone who could
    write a volume that is mounted in the container swapped a folder of it for a link in between: the mount landed on the host.
    """
    spec = scene.spec(
        {"destination": "/vol/place/in", "source": "tmpfs", "type": "tmpfs"},
        {
            "destination": "/vol/place/in/deeper",
            "source": str(scene.file.parent / "volume"),
            "options": ["bind", "ro", "rprivate"],
        },
    )
    look = outside(scene.root)
    with scene.attack:
        won = until_won(scene.naive(lambda: mounts.mount("tmpfs", scene.checked("/vol/place/in"), "tmpfs", 0)), look)
        tries = many(count, lowrts_way(spec, scene.root), look)
    assert won.escapes
    assert tries.escapes == []
    assert tries.made > count // 10


@pytest.mark.parametrize("count", TRIES)
def test_what_is_made_for_mounts_is_made_inside(scene: Scene, count: int) -> None:
    """CVE-2024-45310: runc made a missing mount point with MkdirAll on a path that it had checked before. With a folder of a
    shared volume swapped for a link meanwhile, the empty folders and files came to be on the host.
    """

    def make() -> None:
        name = f"new{os.getpid()}"  # each try has something to make
        spec = scene.spec(
            {"destination": f"/vol/place/{name}/folder", "source": "tmpfs", "type": "tmpfs"},
            {"destination": f"/vol/place/{name}.file", "source": str(scene.file), "options": ["bind"]},
            devices=[{"path": f"/vol/place/{name}.node", "type": "p"}],
        )
        spec["process"] = {"cwd": f"/vol/place/{name}.working/directory"}
        lowrts_way(spec, scene.root)()

    def naive() -> None:
        os.makedirs(scene.checked(f"/vol/place/new{os.getpid()}/folder"))

    def look(*_: object) -> list[str]:
        found = [name for name in os.listdir(scene.host) if name != "in"]
        for name in found:
            shutil.rmtree(scene.host / name)
        return found

    with scene.attack:
        won = until_won(scene.naive(naive), look)
        tries = many(count, make, look)
    assert won.escapes
    assert tries.escapes == []
    assert tries.made > count // 20
    assert os.listdir(scene.host) == ["in"]


@pytest.mark.parametrize("count", TRIES)
def test_proc_is_swapped_for_a_link(scene: Scene, count: int) -> None:
    """CVE-2019-19921 and CVE-2023-27561: with /proc of the image as a link into a volume, another container could move the
    procfs away after runc had mounted it: masks and read-only paths went to a folder of the attacker's, and the real one lay
    open beside it. Here the attacker can even rename the image's own /proc.
    """
    fake = scene.root / "fake"
    (fake / "sys").mkdir(parents=True)
    (fake / "keys").write_text("")
    (scene.root / "other").symlink_to("fake")
    proc = {"destination": "/proc", "source": "proc", "type": "proc"}
    spec = scene.spec(proc, maskedPaths=["/proc/keys"], readonlyPaths=["/proc/sys"])

    def look(_: set[int], made: bool) -> list[str]:
        """Every procfs below the root has its mask and its read-only path, whatever it is called by now."""
        # By place, not by number: one that ends in another namespace gives its number to a mask.
        found = mounts.mountinfo()
        masked = {mount.parent for mount in found if (mount.fstype, mount.root) == ("devtmpfs", "/null")}
        fixed = {
            mount.parent for mount in found if (mount.fstype, mount.root) == ("proc", "/sys") and mount.options.startswith("ro")
        }
        systems = [mount for mount in found if mount.fstype == "proc" and mount.target.startswith(f"{scene.root}/")]
        return (
            [f"open procfs {mount.id}" for mount in systems if mount.root == "/" and mount.id not in masked & fixed]
            if made
            else []
        )

    def naive() -> None:
        mounts.mount("proc", f"{scene.root}/proc", "proc", 0)
        mounts.mount("/dev/null", f"{scene.root}/proc/keys", "", mounts.BIND)
        mounts.mount(f"{scene.root}/proc/sys", f"{scene.root}/proc/sys", "", mounts.BIND)
        mounts.mount("", f"{scene.root}/proc/sys", "", mounts.BIND | mounts.REMOUNT | mounts.RDONLY)

    # In a namespace that is not its own the attacker can rename what is a mount point in another's.
    with swapping(scene.root / "proc", scene.root / "other"):
        won = until_won(naive, look)
        tries = many(count, lowrts_way(spec, scene.root), look)
    assert won.escapes
    assert tries.escapes == []
    assert tries.made > count // 10


@pytest.mark.parametrize("count", TRIES)
def test_the_null_device_is_swapped_for_a_link(scene: Scene, count: int) -> None:
    """CVE-2025-31133: runc masked files with a bind of the container's own /dev/null. An image or a racing container put a link
    in its place, so that a file of the attacker's choice was bound over the masked one, writable: /proc/sys/kernel/core_pattern
    over /proc/keys.
    """
    dev = scene.volume / "dev"
    dev.mkdir()
    os.mknod(dev / "null", 0o020666, os.makedev(1, 3))
    (dev / "evil").symlink_to(scene.file)
    (scene.root / "secret").write_text("")
    (scene.root / "dev").mkdir()
    entry = {"destination": "/dev", "source": str(dev), "options": ["bind"]}
    spec = scene.spec(entry, maskedPaths=["/secret"])
    null = os.stat("/dev/null")

    def look(*_: object) -> list[str]:
        found = os.stat(scene.root / "secret")
        return [] if found.st_rdev == null.st_rdev else [f"the mask is {oct(found.st_mode)}"]

    def naive() -> None:
        mounts.mount(str(dev), f"{scene.root}/dev", "", mounts.BIND)
        mounts.mount(f"{scene.root}/dev/null", f"{scene.root}/secret", "", mounts.BIND)

    with swapping(dev / "null", dev / "evil"):
        won = until_won(naive, look)
        tries = many(count, lowrts_way(spec, scene.root), look)
    assert won.escapes
    assert tries.escapes == []
    assert tries.made == count


@pytest.mark.parametrize("count", TRIES)
def test_masks_and_devices_stay_inside(scene: Scene, count: int) -> None:
    """The same race (CVE-2021-30465) on all else that lowrt does by path: masks, read-only paths, nodes, /dev itself."""
    (scene.volume / "place/secret").write_text("")
    (scene.host / "secret").write_text("")
    (scene.root / "dev").symlink_to("vol/place")
    spec = scene.spec(
        maskedPaths=["/vol/place/in", "/vol/place/secret"], readonlyPaths=["/vol/place"],
        devices=[{"path": "/vol/place/fifo", "type": "p", "uid": 5}],
    )  # fmt: skip
    look_for_mounts = outside(scene.root)

    def look(before: set[int], made: bool) -> list[str]:
        return look_for_mounts(before, made) + [name for name in os.listdir(scene.host) if name not in ("in", "secret")]

    with scene.attack:
        won = until_won(scene.naive(lambda: mounts.mount("/dev/null", scene.checked("/vol/place/secret"), "", mounts.BIND)), look)
        tries = many(count, lowrts_way(spec, scene.root), look)
    assert won.escapes
    assert tries.escapes == []
    assert tries.made > count // 20

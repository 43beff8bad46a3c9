"""strata.linux against the kernel: pinned namespaces, leftovers, sockets. (Cgroups: test_cgroups.)"""

import subprocess
from pathlib import Path

import pytest

from strata.linux import descriptors, mounts, namespaces

REPOSITORY = Path(__file__).parents[3]


def test_namespaces_live_as_long_as_they_are_pinned(tmp_path: Path) -> None:
    targets = {kind: str(tmp_path / kind) for kind in ("network", "ipc", "uts")}
    namespaces.pin_new(targets, {"net.ipv4.ip_forward": "1"}, "pinned")
    try:
        entered = ["nsenter", *(f"--{o}={targets[k]}" for o, k in (("net", "network"), ("ipc", "ipc"), ("uts", "uts")))]
        shown = subprocess.run(
            [*entered, "sh", "-c", "hostname; cat /proc/sys/net/ipv4/ip_forward; ip -o link show lo"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert shown.startswith("pinned\n1\n")
        assert "UP" in shown
    finally:
        for target in targets.values():
            namespaces.unpin(target)
    assert not any(mount.target.startswith(str(tmp_path)) for mount in mounts.mountinfo())
    assert list(tmp_path.iterdir()) == []
    namespaces.unpin(targets["uts"])  # again does nothing


def test_a_pinned_user_namespace_has_its_maps_and_owns_the_others(tmp_path: Path) -> None:
    targets = {kind: str(tmp_path / kind) for kind in ("user", "network", "ipc")}
    sysctls = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
    namespaces.pin_new(targets, sysctls, uid_map="0 200000 1000\n", gid_map="0 300000 1000\n")
    try:
        entered = ["nsenter", *(f"--{o}={targets[k]}" for o, k in (("user", "user"), ("net", "network"), ("ipc", "ipc")))]
        files = " ".join(f"/proc/{name}" for name in ("self/uid_map", "self/gid_map", "sys/net/ipv4/ip_forward"))
        shown = subprocess.run([*entered, "cat", *files.split()], capture_output=True, text=True, check=True).stdout
        assert shown.split() == ["0", "200000", "1000", "0", "300000", "1000", "1"]
        # only who owns the network namespace may change it
        subprocess.run([*entered, "ip", "link", "set", "lo", "down"], check=True)
    finally:
        for target in targets.values():
            namespaces.unpin(target)
    with pytest.raises(OSError, match="Invalid argument"):
        namespaces.pin_new({"user": str(tmp_path / "user")}, uid_map="nonsense\n", gid_map="0 0 1\n")
    assert list(tmp_path.iterdir()) == []


def test_pinning_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"sysctl net\.nosuch"):
        namespaces.pin_new({"network": str(tmp_path / "net")}, {"net.nosuch": "1"})
    assert not any(mount.target.startswith(str(tmp_path)) for mount in mounts.mountinfo())


def test_mounts_below_a_folder_go_together(tmp_path: Path) -> None:
    for name in ("one", "one/two"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        mounts.mount("tmpfs", str(folder), "tmpfs", 0)
        if name == "one":
            (folder / "two").mkdir()
    mounts.umount_below(str(tmp_path))
    assert not any(mount.target.startswith(str(tmp_path)) for mount in mounts.mountinfo())


def test_last_words_are_heard_of_one_who_did_not_listen() -> None:
    here, there = descriptors.pair()
    here.send(b"not read")
    there.send(b"last words")
    there.close()
    assert descriptors.receive(here) == (b"last words", [])
    assert descriptors.receive(here) == (b"", [])
    here.close()

"""`highrt save` and `load` with an OCI layout as a folder, which umoci and podman read and write, too."""

import json
import os
from pathlib import Path

from tests.integration.highrt.conftest import IMAGE, Daemon
from tests.interop.images.conftest import run


def test_a_layout_is_saved_and_loaded(daemon: Daemon, tmp_path: Path) -> None:
    daemon.out("tag", IMAGE, "kept:1")
    daemon.out("save", "--format", "oci-dir", "-o", str(tmp_path / "oci"), "kept:1")
    assert sorted(os.listdir(tmp_path / "oci")) == ["blobs", "index.json", "manifest.json", "oci-layout"]
    run("umoci", "unpack", "--image", f"{tmp_path}/oci:1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/busybox").stat().st_size
    run("umoci", "config", "--image", f"{tmp_path}/oci:1", "--config.env", "BY=umoci")
    daemon.out("rmi", "kept:1")
    loaded = daemon.out("load", "-i", str(tmp_path / "oci"))
    name = loaded.removeprefix("Loaded image: ")
    assert "BY=umoci" in json.loads(daemon.out("image", "inspect", name))[0]["Config"]["Env"]
    daemon.out("rmi", name)


def test_what_fails_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "oci"
    save = ("save", "--format", "oci-dir")
    assert (
        "no such image" in (said := daemon.command(*save, "-o", str(folder), "not:here", check=False).stderr)
        or "not here" in said
    )
    assert not folder.exists()
    assert "name the folder" in daemon.command(*save, IMAGE, check=False).stderr
    folder.mkdir()
    (folder / "mine").write_text("mine")
    assert "a new or an empty folder" in daemon.command(*save, "-o", str(folder), IMAGE, check=False).stderr
    assert os.listdir(folder) == ["mine"]
    assert "neither an index.json" in daemon.command("load", "-i", str(folder), check=False).stderr
    assert "does not exist" in daemon.command("load", "-i", f"{folder}/none", check=False).stderr
    full = daemon.command(*save, "-o", "/dev/full", IMAGE, check=False)
    assert "a new or an empty folder" in full.stderr
    assert "No space left" in daemon.command("save", "-o", "/dev/full", IMAGE, check=False).stderr

"""The files that a pod's containers share."""

from pathlib import Path

import pytest

from highrt.pods.sandbox import Sandbox


def test_names_come_and_go_and_what_a_container_writes_stays(tmp_path: Path) -> None:
    box = Sandbox(tmp_path, "pod")
    box.folder.mkdir(parents=True)
    hosts = box.folder / "hosts"
    hosts.write_text("127.0.0.1\tlocalhost")
    mounted = hosts.stat().st_ino
    box.show_names([])
    assert hosts.read_text() == "127.0.0.1\tlocalhost"
    box.show_names(["10.0.0.2\tweb", "10.0.0.3\tdb"])
    with hosts.open("a") as file:
        file.write("10.9.9.9\tby-hand\n")
    box.show_names(["10.0.0.2\tweb"])
    lines = [line for line in hosts.read_text().splitlines() if line[0] != "#"]
    assert lines == ["127.0.0.1\tlocalhost", "10.0.0.2\tweb", "10.9.9.9\tby-hand"]
    box.show_names([])
    assert hosts.read_text() == "127.0.0.1\tlocalhost\n10.9.9.9\tby-hand\n"
    assert hosts.stat().st_ino == mounted


def test_a_file_that_a_container_has_blown_up_is_not_read(tmp_path: Path) -> None:
    box = Sandbox(tmp_path, "pod")
    box.folder.mkdir(parents=True)
    (box.folder / "hosts").write_text("#" * (2 << 20))
    with pytest.raises(OSError, match="hosts"):
        box.show_names(["10.0.0.2\tweb"])

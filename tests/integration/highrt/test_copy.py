"""`highrt cp`, with containers that are made to lead it out of them."""

import io
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon


@pytest.fixture
def box(daemon: Daemon) -> Iterator[str]:
    """A running container's name."""
    name = f"c{time.monotonic_ns()}"
    daemon.out("run", "-d", "--name", name, "--network", "none", IMAGE, "sleep", "300")
    yield name
    daemon.command("rm", "-f", name)


def shell(daemon: Daemon, box: str, script: str) -> str:
    return daemon.out("exec", box, "sh", "-c", script)


@pytest.mark.parametrize("running", [True, False])
def test_files_and_folders_go_in_and_come_out(daemon: Daemon, box: str, tmp_path: Path, running: bool) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "file").write_text("content")
    (tree / "inner" / "tool").write_bytes(os.urandom(3 << 20))
    (tree / "inner" / "tool").chmod(0o755)
    (tree / "link").symlink_to("inner/tool")
    if not running:
        daemon.out("stop", "-t", "0", box)
    daemon.out("cp", str(tree), f"{box}:/srv")  # there is no /srv: it becomes that
    daemon.out("cp", str(tree), f"{box}:/srv")  # now there is: it goes into it
    daemon.out("cp", str(tree / "file"), f"{box}:/srv/renamed")
    out = tmp_path / "out"
    daemon.out("cp", f"{box}:/srv", str(out))
    assert (out / "file").read_text() == (out / "tree" / "file").read_text() == (out / "renamed").read_text() == "content"
    assert (out / "inner" / "tool").read_bytes() == (tree / "inner" / "tool").read_bytes()
    assert (out / "inner" / "tool").stat().st_mode & 0o777 == 0o755
    assert os.readlink(out / "link") == "inner/tool"
    if running:
        assert shell(daemon, box, "stat -c %u:%g /srv/file") == "0:0"


def test_a_tar_archive_on_standard_output_and_input(daemon: Daemon, box: str) -> None:
    shell(daemon, box, "mkdir -p /a/b; echo text > /a/b/c")
    argv = daemon.argv("cp", f"{box}:/a", "-")
    done = subprocess.run(argv, capture_output=True, check=True, timeout=30)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getnames() == ["a", "a/b", "a/b/c"]
    subprocess.run(daemon.argv("cp", "-", f"{box}:/tmp"), input=done.stdout, check=True, timeout=30)
    assert shell(daemon, box, "cat /tmp/a/b/c") == "text"


def test_an_archive_with_hard_links_and_without_its_folders(daemon: Daemon, box: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        file = tarfile.TarInfo("a/b/file")
        file.size = 4
        tar.addfile(file, io.BytesIO(b"text"))
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = tarfile.LNKTYPE, "a/b/file"
        tar.addfile(link)
    subprocess.run(daemon.argv("cp", "-", f"{box}:/tmp"), input=archive.getvalue(), check=True, timeout=30)
    assert shell(daemon, box, "cat /tmp/a/link; stat -c %h /tmp/a/b/file") == "text2"
    for name, target in (("../x", ""), ("x", "../../etc/passwd")):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = (tarfile.LNKTYPE, target) if target else (tarfile.REGTYPE, "")
            tar.addfile(entry)
        argv = daemon.argv("cp", "-", f"{box}:/tmp")
        done = subprocess.run(argv, input=archive.getvalue(), capture_output=True, check=False, timeout=30)
        assert b"leads out of the archive" in done.stderr


def test_mounts_are_seen_in_one_that_runs(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    name = daemon.out("run", "-d", "--network", "none", "-v", f"{tmp_path}/shared:/data", IMAGE, "sleep", "300")
    try:
        (tmp_path / "file").write_text("new")
        daemon.out("cp", str(tmp_path / "file"), f"{name}:/data/")
        assert (tmp_path / "shared" / "file").read_text() == "new"
    finally:
        daemon.command("rm", "-f", name)


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("BOX:/none", "OUT", "no such file or directory: /none"),
        ("BOX:/none/x", "OUT", "no such file or directory: /none"),
        ("/none-here", "BOX:/tmp", "no such file or directory"),
        ("/etc/hostname", "BOX:/none/there/", "no such file or directory"),
        ("/etc/hostname", "BOX:/etc/passwd/", "is no directory"),
        ("/etc/hostname", "no-such-box:/", "no-such-box"),
        ("/etc/hostname", "/tmp/x", "one of both must be"),
    ],
)
def test_what_cannot_be_copied_is_told(
    daemon: Daemon, box: str, tmp_path: Path, source: str, destination: str, words: str
) -> None:
    places = [text.replace("BOX", box).replace("OUT", str(tmp_path / "out")) for text in (source, destination)]
    done = daemon.command("cp", *places, check=False)
    assert done.returncode != 0
    assert words in done.stderr.lower()


def test_links_do_not_lead_out_of_the_container(daemon: Daemon, box: str, tmp_path: Path) -> None:
    """CVE-2018-15664: paths through links end in the container, on the way in and on the way out."""
    secret, victim = tmp_path / "secret", tmp_path / "victim"
    secret.write_text("of the host")
    victim.mkdir()
    shell(daemon, box, f"ln -s {tmp_path} /out; mkdir -p {tmp_path}/victim; echo inside > {tmp_path}/secret; ln -s {secret} /f")
    daemon.out("cp", f"{box}:/out/secret", str(tmp_path / "got"))
    assert (tmp_path / "got").read_text() == "inside\n"
    daemon.out("cp", "/etc/hostname", f"{box}:/out/victim/")
    assert list(victim.iterdir()) == []
    # A link where a file is to be is replaced, not written through; a folder is not put through one.
    (tmp_path / "f").write_text("written")
    daemon.out("cp", str(tmp_path / "f"), f"{box}:/")
    assert secret.read_text() == "of the host"
    assert shell(daemon, box, "cat /f") == "written"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    assert daemon.command("cp", str(tmp_path / "out"), f"{box}:/", check=False).returncode != 0
    assert not (tmp_path / "x").exists()


def test_a_container_that_swaps_folders_for_links_gets_nothing_of_the_hosts(daemon: Daemon, box: str, tmp_path: Path) -> None:
    """CVE-2018-15664 as it was found: renameat2(2) exchanges a folder and a link in a loop while `cp` goes through it."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "f").write_text("of the host")
    shell(daemon, box, f"mkdir -p /s/dir {hidden}; echo inside > /s/dir/f; echo inside > {hidden}/f; ln -s {hidden} /s/link")
    loop = "cd /s; while true; do mv dir t; mv link dir; mv t link; mv dir t; mv link dir; mv t link; done"
    daemon.out("exec", "-d", box, "sh", "-c", loop)
    seen = set()
    for number in range(25):
        target = tmp_path / f"got{number}"
        if daemon.command("cp", f"{box}:/s/dir/f", str(target), check=False).returncode == 0:
            seen.add(target.read_text())
        (tmp_path / "f").write_text("of a person")
        daemon.command("cp", str(tmp_path / "f"), f"{box}:/s/dir/f", check=False)
    assert seen <= {"inside\n", "of a person"}
    assert (hidden / "f").read_text() == "of the host"


def test_nothing_of_the_image_is_loaded_or_executed(daemon: Daemon, box: str, tmp_path: Path) -> None:
    """CVE-2019-14271: docker's helper changed its root and then loaded libnss of the image, as root."""
    marks = "/lib/x86_64-linux-gnu/libnss_files.so.2 /lib/libnss_files.so.2 /usr/bin/tar /bin/tar"
    shell(daemon, box, f"for f in {marks}; do mkdir -p $(dirname $f); printf '#!/bin/sh\\ntouch /owned' > $f; chmod 755 $f; done")
    daemon.out("cp", f"{box}:/etc/passwd", str(tmp_path / "passwd"))
    daemon.out("cp", str(tmp_path / "passwd"), f"{box}:/tmp/")
    assert shell(daemon, box, "ls /owned 2>/dev/null; echo done") == "done"


def test_pipes_and_what_has_no_end_are_left_out(daemon: Daemon, box: str, tmp_path: Path) -> None:
    shell(daemon, box, "mkdir /odd; mkfifo /odd/pipe; echo x > /odd/file; mknod /odd/null c 1 3 || true")
    daemon.out("cp", f"{box}:/odd", str(tmp_path / "odd"))
    assert [path.name for path in (tmp_path / "odd").iterdir()] == ["file"]


def test_a_container_can_be_started_while_one_copies(daemon: Daemon, box: str, tmp_path: Path) -> None:
    shell(daemon, box, "head -c 20000000 /dev/urandom > /big")
    daemon.out("stop", "-t", "0", box)
    copying = threading.Thread(target=lambda: daemon.out("cp", f"{box}:/big", str(tmp_path / "big")))
    copying.start()
    daemon.out("start", box)
    copying.join()
    assert (tmp_path / "big").stat().st_size == 20_000_000
    wait_for(lambda: shell(daemon, box, "wc -c < /big") == "20000000")

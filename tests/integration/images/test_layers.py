"""A layer is unpacked as the image specification says, and never outside of its folder."""

import contextlib
import gzip
import hashlib
import os
import stat
import struct
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from highrt.images.errors import DigestMismatch, InvalidImage
from highrt.images.layers import Blob, Limits, inherit, unpack
from highrt.images.packing import pack
from highrt.images.snapshots import remove_tree
from tests.conftest import wait_for
from tests.integration.images.conftest import file, header, tar_of, tree

Unpack = Callable[..., Path]
DIRECTORY, SYMLINK, HARDLINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep


CUT = gzip.compress(tar_of(file("f", b"x" * 9000)))[:60]


def attributes(path: Path) -> dict[str, bytes]:
    """The extended attributes of a file."""
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


@pytest.fixture
def apply(tmp_path: Path) -> Unpack:
    """Unpacks a tar into a new folder."""

    def apply(tar: bytes, *below: Path, name: str = "layer") -> Path:
        folder = tmp_path / name / "fs"
        folder.mkdir(parents=True)
        (tmp_path / "blob").write_bytes(tar)
        done = unpack(Blob(str(tmp_path / "blob")), str(folder), diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
        inherit(str(folder), [str(path) for path in below], root=not done.complete)
        return folder

    return apply


def test_files_keep_all_their_attributes(apply: Unpack) -> None:
    headers = {"SCHILY.xattr.user.note": "hi", "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
    folder = apply(
        tar_of(
            header("./", DIRECTORY, mode=0o751, uid=7),
            header("d/", DIRECTORY, mode=0o1777, uid=1000, gid=100, mtime=1_111_111_111),
            file("d/f", b"content", mode=0o4755, uid=5, gid=6, mtime=1_234_567_890.5, pax_headers=headers),
            header("d/hard", HARDLINK, linkname="d/f"),
            header("d/soft", SYMLINK, linkname="/etc/passwd", uid=9),
            header("d/pipe", tarfile.FIFOTYPE),
            header("d/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        )
    )
    f, d = (folder / "d/f").stat(), (folder / "d").stat()
    assert (folder / "d/f").read_bytes() == b"content"
    assert (stat.S_IMODE(f.st_mode), f.st_uid, f.st_gid, f.st_mtime_ns) == (0o4755, 5, 6, 1_234_567_890_500_000_000)
    assert (stat.S_IMODE(d.st_mode), d.st_uid, d.st_gid, d.st_mtime) == (0o1777, 1000, 100, 1_111_111_111)
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o751, 7)
    assert os.getxattr(folder / "d/f", "user.note") == b"hi"
    assert os.getxattr(folder / "d/f", "security.capability") == CAPABILITY
    assert (folder / "d/hard").samefile(folder / "d/f")
    assert os.readlink(folder / "d/soft") == "/etc/passwd"
    assert (folder / "d/soft").lstat().st_uid == 9
    assert stat.S_ISFIFO((folder / "d/pipe").stat().st_mode)
    assert (folder / "d/null").stat().st_rdev == os.makedev(1, 3)


@pytest.mark.parametrize(
    "entries",
    [
        (header("out", SYMLINK, linkname="OUTSIDE"), file("out/evil")),
        (header("out", SYMLINK, linkname="../../.."), file("out/evil")),
        (file("../evil"),),
        (file("a/../../../evil"),),
        (file("/evil"),),
        (header("out", SYMLINK, linkname="OUTSIDE"), header("out/evil", DIRECTORY)),
        (header("up", SYMLINK, linkname=".."), header("up2", SYMLINK, linkname="up/.."), file("up2/evil")),
    ],
    ids=["absolute link", "relative link", "dots", "dots inside", "absolute", "directory", "chained links"],
)
def test_nothing_is_written_outside(apply: Unpack, tmp_path: Path, entries: tuple[object, ...]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for entry in entries:
        one = entry[0] if isinstance(entry, tuple) else entry
        assert isinstance(one, tarfile.TarInfo)
        one.linkname = one.linkname.replace("OUTSIDE", str(outside))
    layer = apply(tar_of(*entries))  # type: ignore[arg-type]
    assert tree(outside) == []
    assert any(path.endswith("evil") for path in tree(layer)), "it is inside the root, as for a process that has it as its root"
    assert not (tmp_path / "evil").exists()
    assert not Path("/evil").exists()


NAMES = ["a", "b", "a/b", "../a", "a/../b", "/a", "b/a/c", "a/..", "../../x", "", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", ".wh..."]
TARGETS = ["..", "../..", "/", "a", "b", "../x", "../../canary", "a/b", "CANARY", "OUTSIDE"]
KINDS = [tarfile.REGTYPE, DIRECTORY, SYMLINK, HARDLINK, tarfile.FIFOTYPE, tarfile.CHRTYPE]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(KINDS), st.sampled_from(TARGETS)), max_size=12))
def test_no_archive_at_all_reaches_outside(entries: list[tuple[str, bytes, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder)
        root, canary = outside / "in/root", outside / "canary"
        root.mkdir(parents=True)
        canary.write_text("untouched")
        made = []
        for name, kind, target in entries:
            link = target.replace("CANARY", str(canary)).replace("OUTSIDE", folder)
            made.append((header(name, kind, linkname=link, mode=0o777), b"evil" if kind == tarfile.REGTYPE else b""))
        tar = tar_of(*made)
        (outside / "blob").write_bytes(tar)
        with contextlib.suppress(InvalidImage):
            unpack(Blob(str(outside / "blob")), str(root), diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
        assert sorted(os.listdir(outside)) == ["blob", "canary", "in"]
        assert {*os.listdir(outside / "in")} <= {"root", "implied"}
        found = canary.stat()
        assert (canary.read_text(), found.st_nlink, stat.S_IMODE(found.st_mode)) == ("untouched", 1, 0o644)


def test_a_hard_link_does_not_reach_outside(apply: Unpack, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    for target in (str(secret), "../secret", "link/secret"):
        link = header("link", SYMLINK, linkname=str(tmp_path))
        with pytest.raises(InvalidImage, match="cannot be unpacked"):
            apply(tar_of(link, header("stolen", HARDLINK, linkname=target)), name=f"n{len(target)}")
    assert secret.stat().st_nlink == 1


def test_an_entry_over_a_link_replaces_the_link_and_not_its_target(apply: Unpack, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("old")
    layer = apply(tar_of(header("f", SYMLINK, linkname=str(victim)), file("f", b"new")))
    assert victim.read_text() == "old"
    assert (layer / "f").read_bytes() == b"new"
    assert not (layer / "f").is_symlink()


def test_whiteouts_become_overlays(apply: Unpack) -> None:
    layer = apply(
        tar_of(
            header("d/", DIRECTORY),
            file("d/.wh.gone", b""),
            header("o/", DIRECTORY),
            file("o/kept"),
            file("o/.wh..wh..opq", b""),
            file(".wh.top", b""),
            file("own"),
            file(".wh.own", b""),
            file(".wh.again", b""),
            header("again/", DIRECTORY),
        )
    )
    for path in ("d/gone", "top"):
        found = (layer / path).lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == 0
    assert os.getxattr(layer / "o", "trusted.overlay.opaque") == b"y"
    assert (layer / "o/kept").exists()
    assert (layer / "own").read_bytes() == b"data", "a whiteout does not hide its own layer's file"
    assert os.getxattr(layer / "again", "trusted.overlay.opaque") == b"y", "what was hidden stays hidden"


def test_a_layer_cannot_set_overlays_attributes(apply: Unpack) -> None:
    evil = {"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.fine": "1"}
    layer = apply(tar_of(header("d/", DIRECTORY, pax_headers=evil)))
    assert os.listxattr(layer / "d") == ["user.fine"]


def test_a_directory_on_the_way_is_like_the_one_below(apply: Unpack) -> None:
    base = apply(tar_of(header("./", DIRECTORY, mode=0o700), header("tmp/", DIRECTORY, mode=0o1777, uid=3, mtime=5)), name="base")
    top = apply(tar_of(file("tmp/f"), file("new/f")), base, name="top")
    assert stat.S_IMODE((top / "tmp").stat().st_mode) == 0o1777
    assert (top / "tmp").stat().st_uid == 3
    assert stat.S_IMODE((top / "new").stat().st_mode) == 0o755
    assert stat.S_IMODE(top.stat().st_mode) == 0o700


def test_kinds_may_change_within_a_layer(apply: Unpack) -> None:
    layer = apply(
        tar_of(
            file("a"),
            header("a/", DIRECTORY),
            file("a/f"),
            header("b/", DIRECTORY),
            file("b/f"),
            file("b"),
            file("c"),
            file("c", b"2"),
        )
    )
    assert tree(layer) == ["a", "a/f", "b", "c"]
    assert (layer / "c").read_bytes() == b"2"


@pytest.mark.parametrize("compress", [lambda tar: tar, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_the_digest_is_that_of_the_tar(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    tar = tar_of(file("f")) + b"\0" * 5000  # padding counts
    (tmp_path / "blob").write_bytes(compress(tar))
    (tmp_path / "d").mkdir()
    found = unpack(Blob(str(tmp_path / "blob")), str(tmp_path / "d"), diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
    assert (found.bytes, found.inodes) == (4, 1)
    (tmp_path / "e").mkdir()
    with pytest.raises(DigestMismatch, match="refused"):
        unpack(Blob(str(tmp_path / "blob")), str(tmp_path / "e"), diff_id="sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "blob",
    [
        b"not a tar at all" * 100,
        gzip.compress(tar_of(file("f", b"x" * 9000)))[:60],
        gzip.compress(b"junk" * 500),
        b"\x28\xb5\x2f\xfdjunk",
    ],
    ids=["junk", "cut gzip", "no tar", "bad zstd"],
)
def test_what_is_no_layer_is_refused(tmp_path: Path, blob: bytes) -> None:
    (tmp_path / "blob").write_bytes(blob)
    (tmp_path / "d").mkdir()
    with pytest.raises((InvalidImage, DigestMismatch)):
        unpack(Blob(str(tmp_path / "blob")), str(tmp_path / "d"), diff_id="sha256:" + "0" * 64)


def test_packing_and_unpacking_gives_the_same_folder(apply: Unpack, tmp_path: Path) -> None:
    headers = {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
    first = apply(
        tar_of(
            header("d/", DIRECTORY, mode=0o700, uid=4),
            file("d/f", b"x" * 100_000, uid=1, gid=2, pax_headers=headers),
            header("d/hard", HARDLINK, linkname="d/f"),
            header("d/ünïcode" + "n" * 200, SYMLINK, linkname="t" * 200),
            file("d/.wh.gone", b""),
            header("o/", DIRECTORY),
            file("o/.wh..wh..opq", b""),
            header("dev", tarfile.CHRTYPE, devmajor=1, devminor=3),
        )
    )
    packed = pack(str(first), str(tmp_path / "packed"))
    again = pack(str(first), str(tmp_path / "packed again"))
    assert again == packed, "the same content gives the same blob"
    second = tmp_path / "second"
    second.mkdir()
    unpack(Blob(str(tmp_path / "packed")), str(second), diff_id=packed.diff_id)
    assert tree(second) == tree(first)
    assert packed.size == (tmp_path / "packed").stat().st_size
    for path in tree(first):
        one, two = (first / path).lstat(), (second / path).lstat()
        assert (one.st_mode, one.st_uid, one.st_gid, one.st_rdev, one.st_nlink) == (
            two.st_mode,
            two.st_uid,
            two.st_gid,
            two.st_rdev,
            two.st_nlink,
        ), path
        for name in os.listxattr(first / path, follow_symlinks=False):
            assert os.getxattr(second / path, name, follow_symlinks=False) == os.getxattr(
                first / path, name, follow_symlinks=False
            )


def test_a_folder_of_any_depth_is_packed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    inner = str(folder)
    for _ in range(1200):
        inner += "/d"
        os.mkdir(inner)
    try:
        assert pack(str(folder), str(tmp_path / "blob")).entries == 1200
    finally:
        remove_tree(folder)


def sparse(name: str, size: int) -> bytes:
    """A GNU sparse entry without any content."""
    entry = header(name, tarfile.GNUTYPE_SPARSE)
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_a_sparse_file_takes_no_more_than_it_has(apply: Unpack) -> None:
    layer = apply(sparse("holes", 1 << 42) + tar_of(file("after")))
    assert (layer / "holes").stat().st_size == 1 << 42
    assert (layer / "holes").stat().st_blocks == 0
    assert (layer / "after").exists()


def packed(tar: bytes, compress: Callable[[bytes], bytes], path: Path) -> tuple[Blob, str]:
    path.write_bytes(compress(tar))
    return Blob(str(path)), "sha256:" + hashlib.sha256(tar).hexdigest()


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(ratio_from=1 << 20), "more than 200 times its size"),
        (Limits(size=10 << 20), "more than 10485760 bytes unpacked"),
    ],
    ids=["ratio", "size"],
)
def test_a_bomb_is_left_before_it_fills_the_disk(
    tmp_path: Path, compress: Callable[[bytes], bytes], limits: Limits, reason: str
) -> None:
    blob, diff_id = packed(tar_of(file("zeros", bytes(100 << 20))), compress, tmp_path / "blob")
    (tmp_path / "d").mkdir()
    with pytest.raises(InvalidImage, match=reason):
        unpack(blob, str(tmp_path / "d"), diff_id=diff_id, limits=limits)
    assert (tmp_path / "d/zeros").stat().st_blocks * 512 < 20 << 20


def test_a_flood_of_entries_is_left(tmp_path: Path) -> None:
    blob, diff_id = packed(tar_of(*(header(f"d{n}", DIRECTORY) for n in range(200))), gzip.compress, tmp_path / "blob")
    (tmp_path / "d").mkdir()
    with pytest.raises(InvalidImage, match="more than 100 entries"):
        unpack(blob, str(tmp_path / "d"), diff_id=diff_id, limits=Limits(entries=100))
    assert len(os.listdir(tmp_path / "d")) == 100


def test_a_zstd_stream_cannot_ask_for_any_memory(tmp_path: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00"  # a window of 2 GiB
    blob, diff_id = packed(frame, lambda data: data, tmp_path / "blob")
    (tmp_path / "d").mkdir()
    with pytest.raises(InvalidImage, match="cannot be decompressed"):
        unpack(blob, str(tmp_path / "d"), diff_id=diff_id)


def raw_name(name: bytes) -> bytes:
    """An entry whose name comes from an extended header, so that it may be anything."""
    record = b" path=" + name + b"\n"
    length = len(record) + len(str(len(record) + 3))
    data = str(length).encode() + record
    entry = header("pax", tarfile.XHDTYPE)
    entry.size = len(data)
    return entry.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) + header("x").tobuf()


def test_names_may_be_any_bytes_but_nul(apply: Unpack) -> None:
    layer = apply(raw_name(b"line\nbreak\t\x1b[31m\xff"))
    assert [os.fsencode(name) for name in os.listdir(layer)] == [b"line\nbreak\t\x1b[31m\xff"]
    with pytest.raises(InvalidImage, match="null byte"):
        apply(raw_name(b"etc/passwd\0.txt"), name="nul")
    with pytest.raises(InvalidImage, match="name too long"):
        apply(raw_name(b"n" * 300), name="long")


def test_overlays_other_attributes_are_no_layers_to_set_either(apply: Unpack) -> None:
    names = ["trusted.overlay.opaque", "trusted.overlay.metacopy", "trusted.overlay.whiteout", "user.overlay.opaque", "user.mine"]
    layer = apply(tar_of(file("f", pax_headers={f"SCHILY.xattr.{name}": "y" for name in names})))
    assert os.listxattr(layer / "f") == ["user.mine"]


@pytest.mark.parametrize("name", [".wh...", ".wh.", "d/.wh...", ".wh./x", ".wh.a/b", "d/../.wh..wh..opq"])
def test_a_whiteout_hides_nothing_outside(apply: Unpack, tmp_path: Path, name: str) -> None:
    (tmp_path / "canary").write_text("x")
    with contextlib.suppress(InvalidImage):
        apply(tar_of(header("d", DIRECTORY), file(name, b"")))
    assert (tmp_path / "canary").read_text() == "x"
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "layer", "blob"}
    assert "trusted.overlay.opaque" not in os.listxattr(tmp_path)


def test_a_layer_is_unpacked_while_it_arrives(tmp_path: Path) -> None:
    contents = [os.urandom(200_000) for _ in range(20)]
    tar = tar_of(*(file(f"f{n}", data) for n, data in enumerate(contents)))
    data = gzip.compress(tar)
    partial, folder = tmp_path / "partial", tmp_path / "d"
    folder.mkdir()
    partial.touch()
    blob = Blob(str(tmp_path / "blob"), str(partial), len(data))
    with ThreadPoolExecutor() as pool, partial.open("ab", buffering=0) as out:
        done = pool.submit(unpack, blob, str(folder), diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
        out.write(data[: len(data) // 2])
        wait_for(lambda: len(os.listdir(folder)) > 3, what="the first files")
        assert not done.done()
        out.write(data[len(data) // 2 :])
        partial.rename(tmp_path / "blob")
        assert done.result(timeout=30).inodes == 20
    assert [(folder / f"f{n}").read_bytes() for n in range(20)] == contents

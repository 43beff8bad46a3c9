"""Builds: what each instruction does to files and configuration, the cache, stages, and errors with their lines."""

import asyncio
import gzip
import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from highrt.images.build import build
from highrt.images.errors import BuildError
from highrt.images.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Image
from highrt.images.service import ImageService
from highrt.images.steps import Step, runtime_step
from strata.linux import mounts
from tests.conftest import wait_for
from tests.integration.images.conftest import file as entry
from tests.integration.images.conftest import mounted, tar_of, tree

REPOSITORY = Path(__file__).parents[3]
Build = Callable[..., Awaitable[Image]]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def make(service: ImageService, context: Path, lines: list[str]) -> Build:
    """Builds a Containerfile's text in the context, with runc for RUN; `host` is a named context with a busybox."""

    async def make(text: str, **options: Any) -> Image:
        (context / "Containerfile").write_text(text)
        given = {"tag": "built", "progress": lines.append, "run_step": runtime_step(runtime="runc")}
        return await build(service, context, **{"build_contexts": {"host": Path("/")}, **given, **options})

    return make


@pytest.fixture
def files(service: ImageService, tmp_path: Path) -> Callable[[Image], Awaitable[Path]]:
    """An image's files: the upper folder that a container would see, copied out of its mount."""

    async def files(image: Image) -> Path:
        key = f"look {image.id}"
        out = tmp_path / image.id[-12:]
        with mounted(await service.prepare(image, key), tmp_path / "look") as root:
            subprocess.run(["cp", "-a", root, out], check=True)  # noqa: ASYNC221
        await service.release(key)
        return out

    return files


Files = Callable[[Image], Awaitable[Path]]


def printed(lines: list[str]) -> list[str]:
    """What the steps of a build printed, without the step's number and time."""
    return [match[1] for line in lines if (match := re.fullmatch(r"#\d+ \d+\.\d{3} (.*)", line))]


def cached(lines: list[str]) -> int:
    return sum(line.endswith(" CACHED") for line in lines)


async def test_copy_follows_the_rules_of_the_reference(make: Build, context: Path, files: Files) -> None:
    (context / "d/sub").mkdir(parents=True)
    (context / "d/sub/deep").write_text("deep")
    (context / "d/f").write_text("f")
    (context / "d/link").symlink_to("/etc/passwd")
    os.chmod(context / "d/f", 0o640)
    os.utime(context / "d/f", (1_000_000_000, 1_000_000_000))
    (context / "x.py").write_text("x")
    (context / "y.py").write_text("y")
    (context / "secret").write_text("s")
    (context / ".dockerignore").write_text("secret\n**/deep\n")
    root = await files(
        await make(
            "FROM scratch\n"
            "COPY d /tree\n"
            "COPY d/f /new/name\n"
            "COPY *.py d/f /into/\n"
            "WORKDIR /work\n"
            "COPY x.py .\n"
            "COPY --chown=12:34 --chmod=4711 x.py y/\n"
            "COPY d/f /l/\n"
        )
    )
    assert tree(root) == [
        "into", "into/f", "into/x.py", "into/y.py", "l", "l/f", "new", "new/name", "tree", "tree/f", "tree/link", "tree/sub",
        "work", "work/x.py", "work/y", "work/y/x.py",
    ]  # fmt: skip
    f, x = (root / "tree/f").stat(), (root / "work/y/x.py").stat()
    assert (f.st_mode & 0o7777, f.st_uid, f.st_mtime) == (0o640, 0, 1_000_000_000)
    assert (x.st_mode & 0o7777, x.st_uid, x.st_gid) == (0o4711, 12, 34)
    assert os.readlink(root / "tree/link") == "/etc/passwd"


async def test_neither_a_context_nor_an_image_leads_outside(
    make: Build, service: ImageService, context: Path, tmp_path: Path, files: Files
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    (context / "out").symlink_to(outside)
    (context / "f").write_text("f")
    for source in ("out/secret", "../outside/secret", f"{outside}/secret"):
        with pytest.raises(BuildError, match=r"line 2: .*is not in the context"):
            await make(f"FROM scratch\nCOPY {source} /x\n")
    # a base image whose link points out of it: the file lands in the image
    (context / "links").mkdir()
    (context / "links/way").symlink_to(outside)
    image = await make("FROM scratch\nCOPY links /\nCOPY f /way/f\n")
    assert sorted(os.listdir(outside)) == ["secret"]
    assert str(outside / "f").lstrip("/") in tree(await files(image))


@pytest.mark.parametrize("runtime", ["runc", "lowrt"])
async def test_run_executes_in_the_image_and_reaches_no_network(
    make: Build, files: Files, lines: list[str], runtime: str
) -> None:
    image = await make(
        "FROM scratch\n"
        "COPY --from=host /bin/busybox /bin/busybox\n"
        'SHELL ["/bin/busybox", "sh", "-c"]\n'
        "ARG WHO=world\n"
        "ENV GREETING=hello\n"
        "WORKDIR /w\n"
        "RUN echo $GREETING $WHO > f; busybox mkdir gone; busybox id -u; \\\n"
        "    busybox ip route | busybox wc -l; busybox ls /sys/class/net; \\\n"
        "    busybox ip addr show lo up | busybox grep -c 127.0.0.1\n"
        "RUN busybox rm -r gone; busybox touch other; busybox chown 5 other\n",
        build_args={"WHO": "you"},
        run_step=runtime_step(runtime=runtime),
    )
    root = await files(image)
    assert (root / "w/f").read_text() == "hello you\n"
    assert (root / "w/other").stat().st_uid == 5
    assert tree(root) == ["bin", "bin/busybox", "w", "w/f", "w/other"], "no mount points of the runtime, no deleted files"
    assert printed(lines)[-4:] == ["0", "0", "lo", "1"]


async def test_the_configuration_is_what_the_instructions_say(make: Build, service: ImageService) -> None:
    image = await make(
        "ARG V=3\n"
        "FROM scratch\n"
        "ARG V\n"
        "ARG OTHER=o\n"
        "ENV A=1 B='two words'\n"
        "ENV C=${A}$V PATH=/bin\n"
        "LABEL a.b=c d=$OTHER\n"
        "EXPOSE 80 53/udp\n"
        "VOLUME /data /more\n"
        "USER 5:6\n"
        "STOPSIGNAL SIGQUIT\n"
        'ENTRYPOINT ["/e"]\n'
        "CMD x y\n"
        "HEALTHCHECK --interval=5s CMD true\n"
        "MAINTAINER me\n"
    )
    config = image.config
    assert config.env == ("PATH=/bin", "A=1", "B=two words", "C=13")
    assert config.labels == {"a.b": "c", "d": "o"}
    assert config.exposed_ports == ("53/udp", "80/tcp")
    assert config.volumes == ("/data", "/more")
    assert (config.user, config.stop_signal) == ("5:6", "SIGQUIT")
    assert (config.entrypoint, config.cmd) == (("/e",), ("/bin/sh", "-c", "x y"))
    assert image.pinned
    assert service.content.document(image.id)["author"] == "me"


async def test_an_entry_point_forgets_the_command_of_the_base(make: Build) -> None:
    await make('FROM scratch\nCMD ["base"]\nLABEL x=1\n', tag="base")
    assert (await make('FROM base\nENTRYPOINT ["e"]\n')).config.cmd == ()
    assert (await make("FROM base\nUSER 1\n")).config.cmd == ("base",)


async def test_stages_are_built_when_they_are_needed(make: Build, context: Path, files: Files, lines: list[str]) -> None:
    (context / "f").write_text("f")
    text = (
        "FROM scratch AS first\nCOPY f /a\n"
        "FROM scratch AS unused\nCOPY not-there /\n"
        "FROM first AS second\nCOPY f /b\n"
        "FROM scratch\nCOPY --from=second /a /b /from/\nCOPY --from=0 /a /zero\n"
    )
    assert tree(await files(await make(text))) == ["from", "from/a", "from/b", "zero"]
    assert tree(await files(await make(text, target="second"))) == ["a", "b"]
    with pytest.raises(BuildError, match=r"no stage 'third'.*first, unused, second"):
        await make(text, target="third")
    image = await make("FROM scratch\nCOPY --from=built /a /from-image\n", tag="again")
    assert tree(await files(image)) == ["from-image"]


async def test_devices_and_pipes_are_copied_and_sockets_are_not(make: Build, context: Path, files: Files) -> None:
    os.mkfifo(context / "pipe")
    (context / "pipe").chmod(0o620)
    os.mknod(context / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(context / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 9))
    text = "FROM scratch AS first\nCOPY pipe null disk /dev/\nFROM scratch\nCOPY --from=first --chown=5 /dev /d\n"
    image = await make(text)
    found = {path.name: path.lstat() for path in (await files(image) / "d").iterdir()}
    kinds = {name: (stat.S_IFMT(status.st_mode), status.st_rdev, status.st_uid) for name, status in found.items()}
    assert kinds == {
        "pipe": (stat.S_IFIFO, 0, 5), "null": (stat.S_IFCHR, os.makedev(1, 3), 5), "disk": (stat.S_IFBLK, os.makedev(7, 9), 5),
    }  # fmt: skip
    assert stat.S_IMODE(found["pipe"].st_mode) == 0o620
    (context / "null").unlink()
    os.mknod(context / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    again = await make(text)
    assert ((await files(again)) / "d/null").stat().st_rdev == os.makedev(1, 5), "another device is a change"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(context / "socket"))
        with pytest.raises(BuildError, match="'socket' is a socket, which cannot be copied"):
            await make("FROM scratch\nCOPY socket /\n")


async def test_the_cache_is_used_until_something_changes(make: Build, context: Path, lines: list[str]) -> None:
    (context / "f").write_text("1")
    text = "FROM scratch\nCOPY f /f\nWORKDIR /w\nCOPY f /g\n"
    first = await make(text)
    lines.clear()
    assert (await make(text)).id == first.id
    assert cached(lines) == 3
    os.utime(context / "f", (1, 1))
    assert (await make(text)).id == first.id, "another time is no change"
    (context / "f").write_text("2")
    lines.clear()
    second = await make(text)
    assert second.id != first.id
    assert cached(lines) == 0
    lines.clear()
    await make(text, no_cache=True)
    assert cached(lines) == 0


async def test_a_build_can_be_repeated_to_the_byte(make: Build, context: Path) -> None:
    (context / "d").mkdir()
    (context / "d/f").write_text("1")
    text = "FROM scratch\nCOPY d /d\nWORKDIR /w/x\n"
    first = await make(text, build_args={"SOURCE_DATE_EPOCH": "1000000000"})
    again = await make(text, build_args={"SOURCE_DATE_EPOCH": "1000000000"}, no_cache=True)
    assert again.manifest == first.manifest
    assert first.created == "2001-09-09T01:46:40Z"


async def test_files_that_a_layer_deletes_are_whiteouts(make: Build, service: ImageService, files: Files) -> None:
    run = 'RUN ["/bin/busybox", "sh", "-c", "'
    image = await make(
        "FROM scratch\nCOPY --from=host /bin/busybox /bin/busybox\n"
        f'{run}busybox mkdir -p /d/e /k; busybox touch /d/e/f /d/g /k/old"]\n'
        f'{run}busybox rm -r /d/e /k; busybox mkdir /k; busybox touch /k/new"]\n'
    )
    blob = service.content.path(service.content.document(image.manifest.digest)["layers"][-1]["digest"])
    with tarfile.open(blob) as tar:
        assert tar.getnames() == ["d", "d/.wh.e", "k", "k/.wh..wh..opq", "k/new"]
    assert tree(await files(image)) == ["bin", "bin/busybox", "d", "d/g", "k", "k/new"]


async def test_add_unpacks_archives(make: Build, context: Path, files: Files) -> None:
    (context / "a.tar").write_bytes(tar_of(entry("x/y", b"1", uid=7), entry("../out", b"2")))
    subprocess.run(["tar", "-C", "/etc", "-cJf", context / "a.tar.xz", "hostname"], check=True)  # noqa: ASYNC221
    (context / "plain").write_text("no archive")
    root = await files(await make("FROM scratch\nADD a.tar a.tar.xz /dest/\nADD plain /plain\n"))
    assert tree(root) == ["dest", "dest/hostname", "dest/x", "dest/x/y", "out", "plain"]
    assert (root / "dest/x/y").stat().st_uid == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FROM scratch\nCOPY nothing /x\n", "line 2: COPY nothing /x: 'nothing' is not in the context"),
        ("FROM scratch\nCOPY a /x\n# c\nADD https://x.example/y /y\n", "line 4: ADD .*reaches no network"),
        ("FROM scratch\nCOPY a\n", "line 2: .*and then where they go"),
        ("FROM scratch\nCOPY a b /x\n", "line 2: .*end it with a slash"),
        ("FROM scratch\nCOPY a /x\nCOPY a /x/y\n", "line 3: .*is a file in the image"),
        ("FROM scratch\nCOPY --chown=nobody a /x\n", "line 2: .*no user 'nobody'"),
        ("FROM scratch\nCOPY --chmod=rwx a /x\n", "line 2: .*not an octal mode"),
        ("FROM scratch\nENV A\n", "line 2: .*KEY=VALUE"),
        ("FROM scratch\nENV A=${B\n", "line 2: .*brace"),
        ("FROM scratch\nEXPOSE http\n", "line 2: .*not a port"),
        ("FROM scratch\nRUN true\n", "line 2: RUN true: it ended with exit code"),
        ("FROM 127.0.0.1:1/nothing\n", "line 1: FROM .*127.0.0.1:1/nothing"),
        ("FROM UPPER\n", "line 1: FROM .*lower case"),
    ],
)
async def test_what_fails_is_told_with_its_line_and_leaves_nothing(
    make: Build, context: Path, tmp_path: Path, service: ImageService, text: str, reason: str
) -> None:
    (context / "a").write_text("a")
    (context / "b").write_text("b")
    with pytest.raises(BuildError, match=reason):
        await make(text)
    assert service.list() == []
    assert [mount for mount in mounts.mountinfo() if str(tmp_path) in mount.target] == []
    assert [row for row in service.metadata.snapshots() if row.kind == "rootfs"] == []


async def test_a_build_that_is_cut_off_ends_its_step(
    make: Build, service: ImageService, lines: list[str], tmp_path: Path
) -> None:
    task = asyncio.ensure_future(
        make(
            "FROM scratch\nCOPY --from=host /bin/busybox /busybox\n"
            'RUN ["/busybox", "sh", "-c", "echo begun; while :; do busybox sleep 1; done"]\n'
        )
    )
    async with asyncio.timeout(30):
        while "begun" not in printed(lines):  # noqa: ASYNC110 (the lines come from a callback)
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [mount for mount in mounts.mountinfo() if str(tmp_path) in mount.target] == []
    running = subprocess.run(["pgrep", "-f", "echo begun; while"], capture_output=True, text=True)  # noqa: ASYNC221
    assert running.stdout == ""


KILLED = """
import asyncio, sys
from pathlib import Path
from highrt.images.build import build
from highrt.images.service import ImageService

async def main():
    service = ImageService(Path(sys.argv[1]))
    await service.open()
    await build(service, Path(sys.argv[2]), build_contexts={"host": Path("/")}, progress=lambda line: print(line, flush=True))

asyncio.run(main())
"""


async def test_the_step_of_a_killed_daemon_is_ended_by_the_next_one(context: Path, tmp_path: Path) -> None:
    mark = f"{os.getpid()}123"  # sleeps that long, to be found again
    (context / "Containerfile").write_text(
        "FROM scratch\nCOPY --from=host /bin/busybox /busybox\n"
        f'RUN ["/busybox", "sh", "-c", "echo begun; busybox sleep {mark}; true"]\n'
    )
    command: list[str | Path] = [sys.executable, "-c", KILLED, tmp_path / "images", context]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        assert any(line.endswith(" begun\n") for line in process.stdout)
        process.kill()

    def running() -> list[str]:
        return subprocess.run(["pgrep", "-f", f"^busybox sleep {mark}"], capture_output=True, text=True).stdout.split()

    wait_for(running, what="the step to sleep")
    service = ImageService(tmp_path / "images")
    await service.open()
    try:
        wait_for(lambda: not running(), what="the step to end")
        assert [mount for mount in mounts.mountinfo() if str(tmp_path) in mount.target] == []
        assert list((tmp_path / "images/steps").iterdir()) == []
        assert [row for row in service.metadata.snapshots() if row.kind == "rootfs"] == []
    finally:
        await service.close()


async def test_the_image_hello_is_built_and_says_hello(service: ImageService, tmp_path: Path, lines: list[str]) -> None:
    step = runtime_step(runtime="runc")
    image = await build(
        service,
        REPOSITORY / "images/hello",
        tag="hello",
        build_contexts={"host": Path("/")},
        progress=lines.append,
        run_step=step,
    )
    with mounted(await service.prepare(image, "k"), tmp_path / "m") as root:
        command = ["/bin/sh", "-c", "/bin/hello & sleep 1; kill -TERM $!; wait $!"]
        code = await step(Step(root, command, image.config.env, output=lines.append))
        for applet in ("ls", "cat", "wget", "nc", "nslookup", "httpd", "ping", "stty", "tr", "sleep", "env", "ip"):
            assert os.path.lexists(root / "bin" / applet), applet
        assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert code == 0
    assert any(line.startswith("Hello from Strata") for line in lines)
    assert "Goodbye from Strata." in lines


async def test_images_build_stages_a_program_that_answers(service: ImageService, tmp_path: Path, lines: list[str]) -> None:
    # images/build is tried with a highrt that notes what it was called with, and keeps what was staged.
    copy = tmp_path / "repository"
    copy.mkdir()
    subprocess.run(["cp", "-a", REPOSITORY / "images", copy], check=True)  # noqa: ASYNC221
    command = copy / ".venv/bin/highrt"
    command.parent.mkdir(parents=True)
    command.write_text(
        "#!/usr/bin/python3\nimport json, shutil, sys\n"
        f"json.dump(sys.argv[1:], open('{tmp_path}/called', 'w'))\n"
        f"[shutil.copytree(a[8:], '{tmp_path}/staged', symlinks=True) for a in sys.argv if a.startswith('program=')]\n"
    )
    command.chmod(0o755)
    subprocess.run([copy / "images/build", "web", "--tag", "web:1", "--address", "unix:///s"], check=True)  # noqa: ASYNC221
    called = json.loads((tmp_path / "called").read_text())
    assert called[:5] == ["--address", "unix:///s", "build", "--tag", "web:1"]
    assert called[-1] == str(copy / "images/web")
    image = await build(service, copy / "images/web", tag="web:1", build_contexts={"program": tmp_path / "staged"})
    assert image.config.exposed_ports == ("80/tcp",)
    ask = (
        "import subprocess, sys, time, urllib.request, socket\n"
        "server = subprocess.Popen(['/usr/bin/python3', '-I', '/srv/server.py'], stdout=subprocess.PIPE, text=True)\n"
        "print(server.stdout.readline().strip())\n"
        "print(urllib.request.urlopen('http://127.0.0.1/').read().decode().strip())\n"
        "print(server.stdout.readline().strip())\n"
        "server.terminate()\n"
        "print('ended', server.wait(10))\n"
    )
    with mounted(await service.prepare(image, "k"), tmp_path / "m") as root:
        step = runtime_step(runtime="runc")
        command = ["/usr/bin/python3", "-I", "-c", ask]
        assert await step(Step(root, command, image.config.env, output=lines.append)) == 0, lines
    assert "serving on port 80 as build" in lines
    assert "hello from build" in lines
    assert any('"GET / HTTP/1.1" 200' in line for line in lines)
    assert lines[-1] == "ended 0"


async def test_what_names_no_stage_is_looked_for_in_a_registry(make: Build) -> None:
    with pytest.raises(BuildError, match=r"line 2: .*docker.io/library/nothing.*is not this machine"):
        await make("FROM scratch\nCOPY --from=nothing / /\n")


BUSYBOX = 'FROM scratch AS base\nCOPY --from=host /bin/busybox /bin/busybox\nSHELL ["/bin/busybox", "sh", "-ec"]\nENV PATH=/bin\n'
"""A stage with a shell; its commands are the applets of busybox."""


async def test_here_documents_are_scripts_and_files(make: Build, files: Files, lines: list[str]) -> None:
    image = await make(
        BUSYBOX + "ARG WHO=you\n"
        "RUN <<EOF\n"
        "  busybox echo one > /f\n"
        "  # a comment of the script\n"
        "  busybox echo $WHO >> /f\n"
        "EOF\n"
        "RUN <<-'EOF' busybox sh -s in >> /f && busybox echo end >> /f\n"
        "\tbusybox echo $1 $WHO\n"
        "\tEOF\n"
        "RUN <<EOF\n#!/bin/busybox sh\nbusybox echo script $0 >> /f\nEOF\n"
        'COPY --chmod=600 <<one.txt <<"two.txt" /to/\n'
        "hello $WHO, \\$WHO 'quoted'\none.txt\n"
        "hello $WHO\ntwo.txt\n"
        "COPY <<END /single\nalone\nEND\n",
        build_args={"WHO": "me"},
    )
    root = await files(image)
    assert (root / "f").read_text() == "one\nme\nin me\nend\nscript /dev/pipes/EOF\n"
    assert (root / "to/one.txt").read_text() == "hello me, $WHO 'quoted'\n"
    assert (root / "to/two.txt").read_text() == "hello $WHO\n"
    assert (root / "to/one.txt").stat().st_mode & 0o7777 == 0o600
    assert (root / "single").read_text() == "alone\n"
    assert tree(root) == ["bin", "bin/busybox", "f", "single", "to", "to/one.txt", "to/two.txt"]


async def test_a_cache_stays_from_build_to_build_and_is_in_no_layer(
    make: Build, service: ImageService, files: Files, lines: list[str]
) -> None:
    text = (
        BUSYBOX + "ARG N\nRUN --mount=type=cache,target=/var/cache/x,mode=0711,uid=5 busybox stat -c '%a %u' /var/cache/x; \\\n"
        "  busybox echo $N >> /var/cache/x/seen; busybox cat /var/cache/x/seen\n"
        "RUN --mount=type=cache,id=/var/cache/x,target=/other,ro busybox cat /other/seen; ! busybox touch /other/y\n"
    )
    await make(text, build_args={"N": "1"})
    assert printed(lines) == ["711 5", "1", "1", "touch: /other/y: Read-only file system"]
    lines.clear()
    image = await make(text, build_args={"N": "2"})
    assert printed(lines)[:5] == ["711 5", "1", "2", "1", "2"]
    assert tree(await files(image)) == ["bin", "bin/busybox"], "no mount points are left"
    assert await service.caches.prune() > 0
    assert service.caches.usage() == 0


async def test_a_secret_is_seen_by_one_step_only(make: Build, service: ImageService, files: Files, lines: list[str]) -> None:
    text = (
        BUSYBOX + "RUN --mount=type=secret,id=key busybox cat /run/secrets/key; busybox stat -c '%a %u' /run/secrets/key; \\\n"
        "  busybox grep -c ' /run/secrets/key tmpfs ' /proc/mounts\n"
        "RUN --mount=type=secret,id=key,target=/etc/key,mode=0444,uid=7 busybox stat -c '%a %u' /etc/key\n"
        'RUN --mount=type=secret,id=key,env=KEY busybox echo "$KEY"\n'
        "RUN --mount=type=secret,id=other busybox ls /run/secrets 2>&1 || busybox echo none\n"
    )
    image = await make(text, secrets={"key": b"sesame"})
    assert printed(lines)[:5] == ["sesame400 0", "1", "444 7", "sesame", "ls: /run/secrets: No such file or directory"]
    assert tree(await files(image)) == ["bin", "bin/busybox"]
    stored = b"".join(service.content.path(digest).read_bytes() for digest in service.content.all())
    assert b"sesame" not in stored + gzip_contents(service, image)
    with pytest.raises(BuildError, match=r"line 5: .*the secret 'key' was not given: build with --secret id=key"):
        await make(BUSYBOX + "RUN --mount=type=secret,id=key,required true\n")


def gzip_contents(service: ImageService, image: Image) -> bytes:
    """The tars of all layers."""
    layers = service.content.document(image.manifest.digest)["layers"]
    return b"".join(gzip.decompress(service.content.path(layer["digest"]).read_bytes()) for layer in layers)


async def test_bind_mounts_show_the_context_a_stage_or_nothing_that_is_ignored(
    make: Build, context: Path, files: Files, lines: list[str]
) -> None:
    (context / "src").mkdir()
    (context / "src/f").write_text("of the context")
    (context / "src/hidden").write_text("not for a build")
    text = (
        BUSYBOX + "RUN busybox echo of the stage > /made\n"
        "FROM base\n"
        "WORKDIR /w\n"
        "RUN --mount=target=. busybox find . -type f; ! busybox touch x\n"
        "RUN --mount=type=bind,source=src,target=/m,rw busybox touch /m/new; busybox cat /m/f > /out\n"
        "RUN --mount=from=base,source=/made,target=/got busybox cat /got >> /out\n"
        "RUN --mount=type=tmpfs,target=/t,size=1m busybox grep -o 'size=1024k' /proc/mounts\n"
    )
    image = await make(text)
    assert {"./src/hidden", "size=1024k"} <= {*printed(lines)}
    (context / ".dockerignore").write_text("**/hidden\n")
    lines.clear()
    image = await make(text)
    assert {line for line in printed(lines) if line.startswith("./")} == {"./.dockerignore", "./Containerfile", "./src/f"}
    root = await files(image)
    assert (root / "out").read_text() == "of the contextof the stage\n"
    assert tree(root) == ["bin", "bin/busybox", "made", "out", "w"]
    assert sorted(path.name for path in (context / "src").iterdir()) == ["f", "hidden"], "a writable mount is a copy"
    lines.clear()
    (context / "src/f").write_text("changed")
    assert (await make(text)).id != image.id, "the content of a bind mount is known to the cache"


async def test_a_linked_copy_does_not_depend_on_what_is_below(make: Build, context: Path, files: Files, lines: list[str]) -> None:
    (context / "f").write_text("f")
    (context / "d/tmp").mkdir(parents=True)
    (context / "d/tmp").chmod(0o1777)
    text = "FROM scratch\nCOPY d /x\nLABEL x=1\nCOPY --link f /x/tmp/deep/f\n"
    root = await files(await make(text))
    assert (root / "x/tmp").stat().st_mode & 0o7777 == 0o1777, "a folder on the way stays as it is below"
    assert (root / "x/tmp/deep/f").read_text() == "f"
    lines.clear()
    image = await make("FROM scratch\nCOPY f /other\nCOPY --link f /x/tmp/deep/f\n")
    assert cached(lines) == 1, "the layer is the one that was made on another base"
    assert tree(await files(image)) == ["other", "x", "x/tmp", "x/tmp/deep", "x/tmp/deep/f"]


async def test_triggers_run_in_the_image_that_is_built_on_theirs(
    make: Build, context: Path, files: Files, lines: list[str]
) -> None:
    (context / "f").write_text("f")
    base = await make("FROM scratch\nONBUILD COPY f /from-trigger\nONBUILD ENV A=b\nHEALTHCHECK NONE\n", tag="base:1")
    assert tree(await files(base)) == []
    image = await make("FROM base:1\nCOPY f /own\n")
    assert tree(await files(image)) == ["from-trigger", "own"]
    assert "A=b" in image.config.env
    again = await make("FROM built\nLABEL x=1\n", tag="again")
    assert tree(await files(again)) == ["from-trigger", "own"], "a trigger fires once"


async def test_a_health_check_is_kept_in_the_configuration(make: Build, service: ImageService) -> None:
    image = await make(
        "FROM scratch\nHEALTHCHECK --interval=1m30s --timeout=500ms --start-period=2s --retries=3 CMD wget localhost || exit 1\n"
    )
    assert service.content.document(image.id)["config"]["Healthcheck"] == {
        "Test": ["CMD-SHELL", "wget localhost || exit 1"],
        "Interval": 90_000_000_000,
        "Timeout": 500_000_000,
        "StartPeriod": 2_000_000_000,
        "Retries": 3,
    }
    image = await make('FROM built\nHEALTHCHECK CMD ["x", "y"]\n', tag="second")
    assert service.content.document(image.id)["config"]["Healthcheck"] == {"Test": ["CMD", "x", "y"]}


async def test_stages_that_do_not_need_each_other_are_built_at_the_same_time(make: Build, lines: list[str]) -> None:
    # each of two stages waits for the other, through a cache that both see
    wait = "RUN --mount=type=cache,id=meet,target=/c busybox touch /c/{0}; while [ ! -e /c/{1} ]; do busybox usleep 10000; done"
    text = BUSYBOX + f"FROM base AS a\n{wait.format('a', 'b')}\nFROM base AS b\n{wait.format('b', 'a')}\n"
    async with asyncio.timeout(60):
        await make(text + "FROM scratch\nCOPY --from=a /bin /a\nCOPY --from=b /bin /b\n")
    assert any(re.fullmatch(r"#\d+ \[a 2/2\] RUN --mount=.*", line) for line in lines)
    assert any(re.fullmatch(r"#\d+ DONE \d+\.\ds", line) for line in lines)


async def test_the_failure_of_one_stage_ends_the_others(make: Build, lines: list[str], tmp_path: Path) -> None:
    text = BUSYBOX + "FROM base AS slow\nRUN busybox sleep 300\nFROM base AS bad\nRUN busybox echo no; exit 3\n"
    async with asyncio.timeout(60):
        with pytest.raises(BuildError, match="line 8: RUN busybox echo no; exit 3: it ended with exit code 3"):
            await make(text + "FROM scratch\nCOPY --from=slow /bin /a\nCOPY --from=bad /bin /b\n")
    assert any(line.endswith("it ended with exit code 3") and " ERROR: " in line for line in lines)
    assert [mount for mount in mounts.mountinfo() if str(tmp_path) in mount.target] == []


# Published holes of builders, each with the attack mounted


async def test_cve_2024_23651_a_cache_whose_path_is_exchanged_leads_nowhere(
    make: Build, service: ImageService, tmp_path: Path, lines: list[str]
) -> None:
    # One step makes the path that another one mounts of the same cache a link to the host's files.
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the host")
    plant = f"busybox ln -s {outside} /c/sub; busybox ln -s ../../../../../../../../{outside} /c/up"
    text = BUSYBOX + f"RUN --mount=type=cache,id=shared,target=/c {plant}\n"
    for path in ("sub", "up"):
        with pytest.raises(BuildError, match="No such file or directory"):
            await make(text + f"RUN --mount=type=cache,id=shared,source={path},target=/m busybox cat /m/secret\n")
    assert printed(lines) == []
    # Exchanged between the moment at which it is looked up and that at which the runtime mounts it:
    real = runtime_step(runtime="runc")

    async def swapped(step: Step) -> int:
        if "look" in step.argv[-1]:
            (cache,) = [path for path in (tmp_path / "images/caches").iterdir() if (path / "sub/inside").exists()]
            (cache / "sub").rename(cache / "old")
            (cache / "sub").symlink_to(outside)
        return await real(step)

    await make(
        BUSYBOX + "RUN --mount=type=cache,id=race,target=/c busybox mkdir /c/sub; busybox touch /c/sub/inside\n"
        "RUN --mount=type=cache,id=race,source=sub,target=/m busybox echo look; busybox ls -A /m\n",
        run_step=swapped,
    )
    assert printed(lines) == ["look", "inside"]


async def test_cve_2024_23652_a_mount_point_that_becomes_a_link_deletes_nothing_outside(make: Build, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "empty").touch()
    # The step unmounts nothing, but it may exchange the folders on the way to a mount point that was made for it.
    await make(
        BUSYBOX + "RUN --mount=type=tmpfs,target=/a/b/empty busybox mv /a /moved; "
        f"busybox mkdir /a; busybox ln -s {outside} /a/b\n"
        f"RUN --mount=type=cache,target=/d/empty busybox mv /d /d2; busybox ln -s {outside} /d\n"
    )
    assert (outside / "empty").exists()


@pytest.mark.parametrize("flag", ["--security=insecure", "--network=host"])
async def test_cve_2024_23653_no_step_gets_more_than_a_container(make: Build, lines: list[str], flag: str) -> None:
    with pytest.raises(BuildError, match="a build reaches no network and has no privileges"):
        await make("# syntax=127.0.0.1:1/frontend\n" + BUSYBOX + f"RUN {flag} true\n")
    await make(
        "# syntax=127.0.0.1:1/frontend\n" + BUSYBOX + "RUN busybox grep -E 'Seccomp:|CapEff|CapBnd' /proc/self/status; "
        "! busybox mount -t tmpfs x /bin 2>/dev/null; ! busybox unshare -m true 2>/dev/null; ! busybox dmesg 2>/dev/null\n"
    )
    assert printed(lines) == ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "Seccomp:\t2"]


async def test_cve_2024_24557_a_foreign_image_is_no_cache(make: Build, service: ImageService, files: Files) -> None:
    text = BUSYBOX + "RUN busybox echo good > /result\n"
    base = await make(text.rpartition("RUN")[0], tag="base:1")
    document = service.content.document(base.id)
    # An image that says that its last layer is what the step made, on the same base.
    evil = tar_of(entry("result", b"evil\n"))
    layer = service.content.add(gzip.compress(evil, mtime=0), f"{OCI_LAYER}+gzip")
    document["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(evil).hexdigest())
    document["history"].append({"created_by": "RUN busybox echo good > /result", "comment": "highrt"})
    config = service.content.add(json.dumps(document).encode(), OCI_CONFIG)
    manifest = {**service.content.document(base.manifest.digest), "config": config.to_json()}
    manifest["layers"].append(layer.to_json())
    top = service.content.add(json.dumps(manifest).encode(), OCI_MANIFEST)
    service.record(config.digest, top, {"docker.io/library/poison:1": top.digest})
    assert (await files(await make(text, tag="docker.io/library/victim:1")) / "result").read_text() == "good\n"

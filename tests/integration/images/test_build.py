"""Builds: what each instruction does to files and configuration, the cache, stages, and errors with their lines."""

import asyncio
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from highrt.images.build import build
from highrt.images.errors import BuildError
from highrt.images.model import Image
from highrt.images.service import ImageService
from highrt.images.steps import runtime_step
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
        given = {"tag": "built", "progress": lines.append, "run_step": runtime_step(lines.append, runtime="runc")}
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
        run_step=runtime_step(lines.append, runtime=runtime),
    )
    root = await files(image)
    assert (root / "w/f").read_text() == "hello you\n"
    assert (root / "w/other").stat().st_uid == 5
    assert tree(root) == ["bin", "bin/busybox", "w", "w/f", "w/other"], "no mount points of the runtime, no deleted files"
    at = lines.index("0")
    assert lines[at : at + 4] == ["0", "0", "lo", "1"]


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


async def test_the_cache_is_used_until_something_changes(make: Build, context: Path, lines: list[str]) -> None:
    (context / "f").write_text("1")
    text = "FROM scratch\nCOPY f /f\nWORKDIR /w\nCOPY f /g\n"
    first = await make(text)
    lines.clear()
    assert (await make(text)).id == first.id
    assert lines.count("  cached") == 3
    os.utime(context / "f", (1, 1))
    assert (await make(text)).id == first.id, "another time is no change"
    (context / "f").write_text("2")
    lines.clear()
    second = await make(text)
    assert second.id != first.id
    assert "  cached" not in lines
    lines.clear()
    await make(text, no_cache=True)
    assert "  cached" not in lines


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
        while "begun" not in lines:  # noqa: ASYNC110 (the lines come from a callback)
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
        assert "begun\n" in process.stdout
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
    step = runtime_step(lines.append, runtime="runc")
    image = await build(
        service,
        REPOSITORY / "images/hello",
        tag="hello",
        build_contexts={"host": Path("/")},
        progress=lines.append,
        run_step=step,
    )
    with mounted(await service.prepare(image, "k"), tmp_path / "m") as root:
        code = await step(root, ["/bin/sh", "-c", "/bin/hello & sleep 1; kill -TERM $!; wait $!"], image.config.env, "/", "")
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
        step = runtime_step(lines.append, runtime="runc")
        assert await step(root, ["/usr/bin/python3", "-I", "-c", ask], image.config.env, "/", "") == 0, lines
    assert "serving on port 80 as build" in lines
    assert "hello from build" in lines
    assert any('"GET / HTTP/1.1" 200' in line for line in lines)
    assert lines[-1] == "ended 0"


async def test_what_names_no_stage_is_looked_for_in_a_registry(make: Build) -> None:
    with pytest.raises(BuildError, match=r"line 2: .*docker.io/library/nothing.*is not this machine"):
        await make("FROM scratch\nCOPY --from=nothing / /\n")

"""buildah with lowrt in runc's place: the steps of a build, and `buildah run`, with isolation oci."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.lowrt.conftest import IMAGE, LOWRT, NET_ADMIN, Done, capabilities, delete_containers, run, short_folder
from tests.stack.terminal import Terminal

HOW = ("--isolation", "oci", "--runtime", LOWRT, "--network", "none")


class Buildah:
    """buildah with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        storage = ("--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
        self._base = ["env", f"TMPDIR={folder}", "buildah", *storage]

    def __call__(self, *argv: object, check: bool = True, text: str | None = None) -> Done:
        return run(*self.argv(*argv), check=check, text=text, cwd=self.folder)

    def argv(self, *argv: object) -> list[str]:
        return [*self._base, *map(str, argv)]

    def build(self, steps: str, *options: object, check: bool = True) -> Done:
        """Builds from the image with further steps, in the folder."""
        (self.folder / "Containerfile").write_text(f"FROM {IMAGE}\n{steps}")
        return self("bud", *HOW, "--no-cache", *options, self.folder, check=check)


@pytest.fixture(scope="module")
def buildah(image_archive: Path) -> Iterator[Buildah]:
    with ExitStack() as stack:
        buildah = Buildah(stack.enter_context(short_folder()))
        stack.callback(buildah, "rm", "--all", check=False)
        stack.callback(delete_containers, buildah.folder)
        buildah("pull", f"docker-archive:{image_archive}:{IMAGE}")
        yield buildah


@pytest.fixture
def container(buildah: Buildah) -> Iterator[str]:
    name = buildah("from", "--pull-never", IMAGE).stdout.strip()
    yield name
    buildah("rm", name)


def test_steps_of_a_build_run_and_leave_what_they_made(buildah: Buildah) -> None:
    (buildah.folder / "copied").write_text("copied\n")
    steps = """
RUN echo made > /made && echo first $$
COPY copied /there
ENV A=b
RUN cat /made /there && echo $A
WORKDIR /new/folder
USER ada
RUN id && pwd
"""
    printed = buildah.build(steps, "--tag", "localhost/built:1").stdout
    for line in ("first 1", "made", "copied", "b", "uid=1000(ada) gid=1000(ada) groups=50(staff),1000(ada)", "/new/folder"):
        assert f"\n{line}\n" in printed
    name = buildah("from", "--pull-never", "localhost/built:1").stdout.strip()
    assert buildah("run", *HOW, name, "cat", "/made").stdout == "made\n"
    buildah("rm", name)


def test_steps_have_their_mounts(buildah: Buildah) -> None:
    given = buildah.folder / "given"
    given.mkdir()
    (given / "file").write_text("given\n")
    (buildah.folder / "secret").write_text("hush\n")
    steps = """
RUN --mount=type=bind,source=given,target=/given cat /given/file && ! touch /given/x
RUN --mount=type=tmpfs,target=/scratch grep ' /scratch tmpfs ' /proc/mounts && touch /scratch/x
RUN --mount=type=cache,target=/cache echo kept > /cache/file
RUN --mount=type=cache,target=/cache cat /cache/file
RUN --mount=type=secret,id=hush cat /run/secrets/hush
RUN test ! -e /scratch/x && test ! -e /run/secrets/hush
"""
    printed = buildah.build(steps, "--secret", f"id=hush,src={buildah.folder}/secret").stdout
    for line in ("given", "kept", "hush"):
        assert f"\n{line}\n" in printed


def test_a_build_has_limits_and_its_failed_step_fails_it(buildah: Buildah) -> None:
    steps = "RUN ulimit -n; cat /sys/fs/cgroup/memory/memory.limit_in_bytes; exit 6\n"
    done = buildah.build(steps, "--memory", "60m", "--ulimit", "nofile=300:300", check=False)
    assert f"\n300\n{60 << 20}\n" in done.stdout
    assert "exit status 6" in done.stderr
    assert done.returncode != 0


def test_a_build_in_a_user_namespace(buildah: Buildah) -> None:
    maps = ("--userns-uid-map", "0:100000:5000", "--userns-gid-map", "0:100000:5000")
    printed = buildah.build("RUN cat /proc/self/uid_map; id -u; touch /tmp/x; stat -c %u /tmp/x\n", *maps).stdout
    assert f"\n{0:10} {100000:10} {5000:10}\n0\n0\n" in printed


def test_run_gives_output_and_status(buildah: Buildah, container: str) -> None:
    done = buildah("run", *HOW, container, "sh", "-c", "echo out; echo err >&2; exit 5", check=False)
    assert (done.returncode, done.stdout) == (5, "out\n")
    assert "err\n" in done.stderr
    assert buildah("run", *HOW, container, "sort", text="b\na\n").stdout == "a\nb\n"
    missing = buildah("run", *HOW, container, "nosuch", check=False)
    assert missing.returncode != 0
    assert 'exec: "nosuch": executable file not found in $PATH' in missing.stderr


def test_run_as_it_is_told(buildah: Buildah, container: str) -> None:
    (buildah.folder / "volume").mkdir()
    options = (
        "--volume", f"{buildah.folder}/volume:/v:ro", "--mount", "type=tmpfs,destination=/scratch", "--user", "ada",
        "--workingdir", "/tmp", "--hostname", "hal", "--env", "A=b", "--cap-add", "CAP_NET_ADMIN",
    )  # fmt: skip
    script = "id -u; pwd; hostname; echo $A; touch /v/x || grep -c ' /scratch tmpfs' /proc/mounts; cat /proc/self/status"
    printed = buildah("run", *HOW, *options, container, "sh", "-c", script).stdout
    assert printed.splitlines()[:5] == ["1000", "/tmp", "hal", "b", "1"]
    assert capabilities(printed) & NET_ADMIN


def test_run_with_a_terminal(buildah: Buildah, container: str) -> None:
    # buildah sets the size when it has been handed the terminal: a little after the start, perhaps
    script = "trap 'exit 7' INT; tty; until stty size 2>/dev/null; do sleep 0.1; done; echo going; while :; do sleep 0.1; done"
    argv = buildah.argv("run", *HOW, "--terminal", container, "sh", "-c", script)
    with Terminal(argv, rows=35, columns=95) as terminal:
        terminal.expect("/dev/pts/[0-9]")
        terminal.expect("35 95")
        terminal.expect("going\r\n")
        terminal.send("\x03")
        assert terminal.wait() == 7

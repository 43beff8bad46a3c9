"""`highrt image`, `history` and `builder prune`."""

import json
from pathlib import Path

import pytest

from tests.integration.highrt.conftest import IMAGE, Daemon


def test_how_an_image_was_made(daemon: Daemon) -> None:
    context = daemon.folder / "made"
    context.mkdir()
    (context / "Containerfile").write_text(f"FROM {IMAGE}\nRUN echo a > /a\nENV B=c\nCOPY Containerfile /copied\n")
    daemon.out("build", "-q", "-t", "made:1", str(context))
    daemon.out("tag", "made:1", "made:2")
    lines = daemon.out("history", "made:1", "--format", "{{.CreatedBy}}").splitlines()
    assert lines[:3] == ["COPY Containerfile /copied", "ENV B=c", "RUN echo a > /a"]
    sizes = daemon.out("image", "history", "made:1", "--format", "{{.ID}} {{.Size}}").splitlines()
    assert sizes[1] == "<missing> 0B"
    assert not sizes[0].endswith(" 0B")
    layers = json.loads(daemon.out("image", "inspect", "made:1"))[0]["RootFS"]["Layers"]
    assert daemon.out("history", "-q", "--no-trunc", "made:1").split()[0] == layers[-1]
    tree = daemon.out("image", "tree", "made:1")
    assert tree.splitlines()[-1].startswith("└── ")
    assert tree.splitlines()[-1].endswith("top of docker.io/library/made:1, docker.io/library/made:2")
    assert any(line.endswith(f"top of docker.io/library/{IMAGE}") for line in tree.splitlines())
    daemon.out("image", "rm", "made:2")
    assert "made" in daemon.out("image", "ls", "--format", "{{.Repository}}").split()
    daemon.out("rmi", "made:1")


def test_what_an_image_has_changed(daemon: Daemon) -> None:
    context = daemon.folder / "changed"
    context.mkdir()
    (context / "Containerfile").write_text(f"FROM {IMAGE}\nRUN echo a > /a\nRUN rm /bin/vi && mkdir /d && echo b > /d/b\n")
    daemon.out("build", "-q", "-t", "changed:1", str(context))
    assert daemon.out("image", "diff", "changed:1").splitlines() == ["C /bin", "D /bin/vi", "A /d", "A /d/b"]
    assert daemon.out("image", "diff", "changed:1", IMAGE).splitlines()[0] == "A /a"
    assert daemon.out("image", "diff", IMAGE, IMAGE) == ""
    assert json.loads(daemon.out("image", "diff", "--format", "json", IMAGE, "changed:1")) == {
        "changed": ["/bin"], "added": ["/bin/vi"], "deleted": ["/a", "/d"],
    }  # fmt: skip
    assert "no such image here: nothing:1" in daemon.command("image", "diff", IMAGE, "nothing:1", check=False).stderr
    assert "only json" in daemon.command("image", "diff", "--format", "{{.}}", IMAGE, check=False).stderr
    daemon.out("rmi", "changed:1")


def test_prune_takes_what_nobody_uses(daemon: Daemon) -> None:
    context = daemon.folder / "unnamed"
    context.mkdir()
    (context / "Containerfile").write_text(f"FROM {IMAGE}\nRUN echo b > /b\n")
    unnamed = daemon.out("build", "-q", str(context))
    daemon.out("create", "--name", "user", unnamed, "true")
    assert daemon.out("image", "prune", "-f") == "", "a container uses it"
    daemon.out("rm", "user")
    assert daemon.out("image", "prune", "-f", "--filter", "until=1h") == "", "it is younger"
    assert "there is only until" in daemon.command("image", "prune", "-f", "--filter", "label=x", check=False).stderr
    assert daemon.out("image", "prune", "-f", "--filter", "until=2100-01-01T00:00:00Z") == f"removed image {unnamed}"
    assert daemon.out("images", "-q") != "", "what has a name stays"


def test_builds_begin_anew_after_a_prune(daemon: Daemon) -> None:
    context = daemon.folder / "cached"
    context.mkdir()
    run = "RUN --mount=type=cache,target=/cache echo x >> /cache/x && cat /cache/x > /x"
    (context / "Containerfile").write_text(f"FROM {IMAGE}\n{run}\n")
    build = ("build", "-t", "cached:1", str(context))
    daemon.out(*build)
    assert "CACHED" in daemon.command(*build).stderr
    assert daemon.out("builder", "prune", "-f") != "Total:\t0B"
    assert "CACHED" not in daemon.command(*build).stderr
    assert daemon.out("run", "--rm", "cached:1", "cat", "/x") == "x", "the cache mount's folder was empty"
    daemon.out("rmi", "cached:1")


def test_an_image_is_mounted_to_look_into(daemon: Daemon) -> None:
    context = daemon.folder / "mounted"
    context.mkdir()
    (context / "Containerfile").write_text(f"FROM {IMAGE}\nCOPY Containerfile /copied\n")
    built = daemon.out("build", "-q", "-t", "mounted:1", str(context))
    path = Path(daemon.out("image", "mount", "mounted:1"))
    assert (path / "copied").read_text() == (context / "Containerfile").read_text()
    with pytest.raises(OSError, match="Read-only"):
        (path / "new").write_text("x")
    assert daemon.out("image", "mount", "mounted:1") == str(path)
    assert daemon.out("image", "mount").split() == [built.removeprefix("sha256:")[:12], str(path)]
    assert "in use" in daemon.command("rmi", "mounted:1", check=False).stderr
    daemon.kill()
    daemon.start()
    assert daemon.out("image", "mount") == "", "it belonged to the daemon before"
    daemon.out("image", "mount", "mounted:1", IMAGE)
    assert daemon.out("image", "unmount", "mounted:1") == built
    assert not path.exists()
    assert "is not mounted" in daemon.command("image", "umount", "mounted:1", check=False).stderr
    daemon.out("image", "umount", IMAGE)
    daemon.out("rmi", "mounted:1")

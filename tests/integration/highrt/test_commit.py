"""`highrt commit`: an image of what a container has written."""

import io
import json
import tarfile

from tests.integration.highrt.conftest import IMAGE, Daemon


def test_what_a_container_has_written_and_was_given(daemon: Daemon) -> None:
    daemon.out(
        "run", "--name", "source", "-e", "COLOR=red", "-w", "/srv", "-v", "mine:/data", "-l", "kind=test", IMAGE,
        "sh", "-c", "echo kept > /srv/file; chmod 640 /srv/file; rm /etc/passwd; mkdir /etc/new; echo no > /data/file",
    )  # fmt: skip
    identity = daemon.out(
        "commit",
        "-a",
        "Ann",
        "-m",
        "a word",
        "-c",
        "ENV SHAPE=round",
        "-c",
        'CMD ["cat", "file"]',
        "-c",
        "WORKDIR ../srv",
        "source",
        "made:1",
    )
    document = json.loads(daemon.out("inspect", "--type", "image", "made:1"))[0]
    assert document["Id"] == identity
    config = document["Config"]
    assert {"COLOR=red", "SHAPE=round"} <= set(config["Env"])
    assert (config["Cmd"], config["WorkingDir"], config["Labels"]["kind"]) == (["cat", "file"], "/srv", "test")
    assert daemon.out("run", "--rm", "made:1") == "kept"
    assert daemon.out("run", "--rm", "made:1", "stat", "-c", "%a", "file") == "640"
    assert (
        daemon.out("run", "--rm", "made:1", "sh", "-c", "ls -d /etc/passwd /etc/new /data/file 2>/dev/null || true") == "/etc/new"
    )
    daemon.out("rm", "source")
    daemon.out("rmi", "made:1")


def test_a_running_container_stands_still_meanwhile_and_goes_on(daemon: Daemon) -> None:
    script = "while true; do echo >> /one; echo >> /two; done"
    container = daemon.out("run", "-d", IMAGE, "sh", "-c", script)
    identity = daemon.out("commit", container)
    assert daemon.out("inspect", "-f", "{{.State.Status}}", container) == "running"
    one, two = (int(daemon.out("run", "--rm", identity, "wc", "-l", name).split()[0]) for name in ("/one", "/two"))
    assert 0 <= one - two <= 1
    daemon.out("rm", "-f", container)


def test_nothing_of_what_is_mounted_everywhere_is_in_it(daemon: Daemon) -> None:
    daemon.out("run", "--name", "idle", "-v", "mine:/made/for/it", IMAGE, "true")
    daemon.out("commit", "idle", "idle:1")
    archive = daemon.folder / "idle.tar"
    daemon.out("save", "-o", str(archive), "idle:1")
    with tarfile.open(archive) as outer:
        manifest = json.load(outer.extractfile("manifest.json") or io.BytesIO())
        top = outer.extractfile(manifest[0]["Layers"][-1])
        with tarfile.open(fileobj=top) as layer:
            assert {entry.name for entry in layer} <= {"etc", "made", "made/for"}
    daemon.out("rm", "idle")
    daemon.out("rmi", "idle:1")


def test_what_cannot_be_is_refused_and_leaves_nothing(daemon: Daemon) -> None:
    daemon.out("create", "--name", "other", IMAGE, "true")
    before = daemon.out("images", "-q")

    def refused(*arguments: str) -> str:
        done = daemon.command("commit", *arguments, check=False)
        assert done.returncode != 0
        return done.stderr

    assert "only CMD" in refused("-c", "RUN true", "other")
    assert "not a repository name" in refused("other", "Not A Name")
    assert "nobody" in refused("nobody")
    assert daemon.out("images", "-q") == before
    daemon.out("rm", "other")

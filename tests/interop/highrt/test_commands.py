"""The commands of a person with real peers: Debian's docker-registry, skopeo, and runc as another runtime."""

import subprocess
from pathlib import Path

from tests.integration.highrt.conftest import IMAGE, Daemon
from tests.interop.images.conftest import DockerRegistry


def test_push_and_pull_by_tag_and_by_digest(daemon: Daemon, registry: DockerRegistry) -> None:
    name = f"{registry.address}/team/hello:1"
    daemon.out("tag", IMAGE, name)
    digest = daemon.out("push", "-q", name)
    assert digest.startswith("sha256:")
    theirs = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{name}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert theirs.stdout.strip() == digest
    by_digest = f"{registry.address}/team/hello@{digest}"
    daemon.out("rmi", name, IMAGE)  # the last names it had
    assert daemon.out("images", "-q") == ""
    done = daemon.command("run", "--rm", "--network", "none", by_digest, "echo", "by digest")
    assert done.stdout == "by digest\n"
    assert "pulling" in done.stderr
    daemon.out("tag", by_digest, IMAGE)
    pulled = daemon.command("pull", name)
    assert pulled.stdout.startswith("sha256:")
    daemon.out("rmi", name)
    missing = daemon.command("pull", f"{registry.address}/team/none:1", check=False)
    assert missing.returncode == 1
    assert "team/none:1" in missing.stderr


def test_skopeo_reads_what_save_wrote(daemon: Daemon, tmp_path: Path) -> None:
    archive = tmp_path / "hello.tar"
    daemon.out("save", "-o", str(archive), IMAGE)
    for transport in ("docker-archive", "oci-archive"):
        found = subprocess.run(["skopeo", "inspect", f"{transport}:{archive}"], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        assert '"Architecture"' in found.stdout


def test_runc_takes_lowrts_place(daemon: Daemon) -> None:
    # not crun too: Debian 12's refuses the hybrid cgroups of the test machines
    identifier = daemon.out("run", "-d", "--runtime", "runc", "--network", "none", IMAGE, "sleep", "100")
    try:
        done = daemon.command("exec", "-i", identifier, "sh", "-c", "cat; exit 9", stdin="typed", check=False)
        assert (done.stdout, done.returncode) == ("typed", 9)
        assert daemon.out("inspect", "-f", "{{.Pod.Handler}}", identifier) == "runc"
    finally:
        daemon.command("rm", "-f", identifier)
    command = ("sh", "-c", "echo x; exit 4")
    done = daemon.command("run", "--rm", "--runtime", "runc", "--network", "none", IMAGE, *command, check=False)
    assert (done.stdout, done.returncode) == ("x\n", 4)

"""`highrt registry` with a real registry: tags, repositories, referrers, and deleting."""

import hashlib
import json
import urllib.request
from pathlib import Path

import pytest

from tests.integration.highrt.conftest import IMAGE, Daemon
from tests.interop.images.conftest import DockerRegistry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SIGNATURE = "application/vnd.example.signature"


def push(daemon: Daemon, registry: DockerRegistry, *names: str) -> str:
    for name in names:
        digest = daemon.out("push", "-q", IMAGE, f"{registry.address}/{name}")
    return digest


def attach(registry: DockerRegistry, repository: str, subject: str) -> bytes:
    """Puts a signature beside an image by hand, as a client does that leaves the fallback tag to others."""
    url = f"http://{registry.address}/v2/{repository}"
    with urllib.request.urlopen(urllib.request.Request(f"{url}/manifests/{subject}", headers={"Accept": MANIFEST})) as answer:
        image = json.load(answer)
        size = int(answer.headers["Content-Length"])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": SIGNATURE,
        "config": image["config"],
        "layers": image["layers"],
        "subject": {"mediaType": MANIFEST, "digest": subject, "size": size},
    }
    data = json.dumps(manifest).encode()
    put(registry, f"{repository}/manifests/sha256:{hashlib.sha256(data).hexdigest()}", MANIFEST, data)
    return data


def put(registry: DockerRegistry, path: str, media_type: str, data: bytes) -> None:
    request = urllib.request.Request(
        f"http://{registry.address}/v2/{path}", data=data, method="PUT", headers={"Content-Type": media_type}
    )
    urllib.request.urlopen(request).close()


def test_tags_and_repositories(daemon: Daemon, registry: DockerRegistry) -> None:
    assert daemon.out("registry", "catalog", registry.address) == ""
    push(daemon, registry, "app:1", "app:2", "team/other:1")
    assert daemon.out("registry", "catalog", registry.address).split() == ["app", "team/other"]
    assert sorted(daemon.out("registry", "tags", f"{registry.address}/app").split()) == ["1", "2"]
    assert daemon.out("registry", "tags", "--format", "{{.Tag}}!", f"{registry.address}/team/other") == "1!"
    assert json.loads(daemon.out("registry", "catalog", "-o", "json", registry.address)) == [
        {"Registry": registry.address, "Repository": "app"},
        {"Registry": registry.address, "Repository": "team/other"},
    ]
    for arguments, why in (
        (("tags", f"{registry.address}/nothing"), "nothing: not found"),
        (("tags", f"{registry.address}/app:1"), "without a tag"),
        (("catalog", f"{registry.address}/app"), "is no registry"),
        (("catalog", "127.0.0.1:1"), "cannot connect"),
    ):
        assert why in daemon.command("registry", *arguments, check=False).stderr


def test_a_manifest_is_deleted_with_its_tags(daemon: Daemon, registry: DockerRegistry) -> None:
    digest = push(daemon, registry, "app:1", "app:2")
    name = f"{registry.address}/app"
    assert "Go on?" in daemon.command("registry", "delete", f"{name}:1", check=False, stdin="n\n").stdout
    assert daemon.out("registry", "delete", "-f", f"{name}:1") == f"{name}@{digest}"
    assert daemon.out("registry", "tags", name) == ""
    assert "not found" in daemon.command("registry", "delete", "-f", f"{name}:2", check=False).stderr
    assert "not found" in daemon.command("registry", "delete", "-f", f"{name}@{digest}", check=False).stderr


def test_a_registry_that_lets_nobody_delete_is_told(daemon: Daemon, tmp_path: Path) -> None:
    strict = DockerRegistry(tmp_path, deletes=False)
    strict.start()
    try:
        push(daemon, strict, "app:1")
        refused = daemon.command("registry", "delete", "-f", f"{strict.address}/app:1", check=False)
        assert "lets nobody delete" in refused.stderr
        assert daemon.out("registry", "tags", f"{strict.address}/app") == "1"
    finally:
        strict.stop()


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_what_refers_to_an_image(daemon: Daemon, registry: DockerRegistry, by: str) -> None:
    """Debian's registry knows no referrers: the list under the fallback tag is the clients'."""
    subject = push(daemon, registry, "app:1")
    image = f"{registry.address}/app" + {"tag": ":1", "digest": f"@{subject}"}[by]
    assert daemon.out("registry", "referrers", image) == "DIGEST   ARTIFACT TYPE   SIZE"
    signature = f"sha256:{hashlib.sha256(attach(registry, 'app', subject)).hexdigest()}"
    daemon.out("pull", "-q", f"{registry.address}/app@{signature}")
    for _ in range(2):
        daemon.out("push", "-q", f"{registry.address}/app@{signature}")
    assert sorted(daemon.out("registry", "tags", f"{registry.address}/app").split()) == ["1", subject.replace(":", "-")]
    (found,) = json.loads(daemon.out("registry", "referrers", "-o", "json", image))
    assert (found["Digest"], found["ArtifactType"], found["MediaType"]) == (signature, SIGNATURE, MANIFEST)
    assert signature in daemon.out("registry", "referrers", "--artifact-type", SIGNATURE, image)
    assert daemon.out("registry", "referrers", "--artifact-type", "other/type", "--format", "json", image) == ""
    daemon.out("registry", "delete", "-f", f"{registry.address}/app@{signature}")
    assert daemon.out("registry", "referrers", "--format", "json", image) == "", "the list forgets what is deleted"

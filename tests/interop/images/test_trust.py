"""Which images may be pulled: containers-policy.json, with signatures that skopeo made and its own verdict beside ours."""

import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from highrt.images.errors import ImageRefused, InvalidConfiguration
from highrt.images.service import ImageService
from highrt.images.trust import Places
from tests.interop.images.conftest import DockerRegistry, run

ACCEPT, REJECT = {"type": "insecureAcceptAnything"}, {"type": "reject"}


@dataclass
class Policed:
    """An image service that obeys a policy, and a registry whose `app:signed` Ann has signed."""

    service: ImageService
    folder: Path
    registry: str

    def policy(self, default: list[Any], scopes: dict[str, list[Any]] | None = None) -> None:
        content = {"default": default, "transports": {"docker": scopes or {}}}
        (self.folder / "policy.json").write_text(json.dumps(content))

    def signed_by(self, key: str, **more: Any) -> dict[str, Any]:
        return {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(self.folder / f"{key}.gpg"), **more}

    async def refused(self, name: str) -> str:
        """Why a pull is refused, by skopeo too."""
        with pytest.raises(ImageRefused) as refused:
            await self.service.pull(f"{self.registry}/{name}")
        assert not self.skopeo_takes(name)
        return str(refused.value)

    async def taken(self, name: str) -> None:
        await self.service.pull(f"{self.registry}/{name}")
        assert self.skopeo_takes(name)

    def skopeo_takes(self, name: str) -> bool:
        argv = [
            "skopeo", "--policy", self.folder / "policy.json", "--registries.d", self.folder / "registries.d", "copy", "-q",
            "--src-tls-verify=false", "--remove-signatures", f"docker://{self.registry}/{name}", f"dir:{self.folder}/copied",
        ]  # fmt: skip
        return (
            subprocess.run(argv, capture_output=True, env={**os.environ, "GNUPGHOME": str(self.folder / "gpg")}).returncode == 0
        )


@pytest.fixture
async def policed(
    registry: DockerRegistry, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Policed]:
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    try:
        for name in ("ann", "bob"):
            run("gpg", "--batch", "--passphrase", "", "--quick-generate-key", f"{name}@example.test", "ed25519", "sign", "never")
            armor = ["--armor"] if name == "ann" else []  # both forms of a key
            run("gpg", *armor, "--output", tmp_path / f"{name}.gpg", "--export", f"{name}@example.test")
        (tmp_path / "registries.d").mkdir()
        lookaside = f"file://{tmp_path}/signatures"
        configured = f"default-docker:\n  lookaside: {lookaside}\n  lookaside-staging: {lookaside}\n"
        (tmp_path / "registries.d" / "default.yaml").write_text(configured)
        run(
            "skopeo", "--insecure-policy", "--registries.d", tmp_path / "registries.d", "copy", "-q", "--dest-tls-verify=false",
            "--sign-by", "ann@example.test", f"oci:{layout}", f"docker://{registry.address}/app:signed",
        )  # fmt: skip
    finally:
        run("gpgconf", "--kill", "gpg-agent")
    places = Places(tmp_path / "policy.json", tmp_path / "registries.d")
    service = ImageService(tmp_path / "images", places=places)
    await service.open()
    yield Policed(service, tmp_path, registry.address)
    await service.close()


async def test_without_a_policy_everything_is_taken(policed: Policed) -> None:
    await policed.service.pull(f"{policed.registry}/app:oci")


async def test_the_most_special_scope_counts(policed: Policed) -> None:
    policed.policy([REJECT], {f"{policed.registry}/app": [ACCEPT], f"{policed.registry}/app:docker": [REJECT]})
    await policed.taken("app:oci")
    assert "rejects images of that name" in await policed.refused("app:docker")
    policed.policy([ACCEPT], {policed.registry: [REJECT]})
    assert "rejects" in await policed.refused("app:oci"), "also what is here already is not given again"
    policed.policy([REJECT], {"": [ACCEPT]})
    await policed.taken("app:docker")


async def test_wildcards_and_mistakes_count_as_with_skopeo(policed: Policed) -> None:
    policed.policy([ACCEPT], {"*.0.1": [ACCEPT], "*.0.0.1": [REJECT]})  # of a registry with a port
    assert "rejects" in await policed.refused("app:oci")
    policed.policy([ACCEPT], {policed.registry: [ACCEPT, REJECT]})
    assert "rejects" in await policed.refused("app:oci")
    for text in (
        '{"default": [{"type": "insecureAcceptAnything"}], "transport": {}}',
        '{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
        '{"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {"x": []}}}',
        '{"default": [{"type": "insecureAcceptAnything", "keyPath": "/k"}]}',
        '{"transports": {}}',
        "[" * 100_000,
    ):
        (policed.folder / "policy.json").write_text(text)
        with pytest.raises(InvalidConfiguration, match=r"policy\.json"):
            await policed.service.pull(f"{policed.registry}/app:oci")
        assert not policed.skopeo_takes("app:oci")


async def test_a_signature_by_the_right_key_lets_in(policed: Policed) -> None:
    policed.policy([policed.signed_by("ann")])
    await policed.taken("app:signed")
    policed.policy([policed.signed_by("ann")])
    assert "a signature is for the name" in await policed.refused("app:oci"), "another name of the same image"
    policed.policy([policed.signed_by("ann", signedIdentity={"type": "matchRepository"})])
    await policed.taken("app:oci")
    assert "there is none" in await policed.refused("app:docker")
    policed.policy([policed.signed_by("bob")])
    assert "by none of the keys" in await policed.refused("app:signed")
    both = {
        "type": "signedBy",
        "keyType": "GPGKeys",
        "keyPaths": [str(policed.folder / f"{name}.gpg") for name in ("bob", "ann")],
    }
    policed.policy([both])
    await policed.service.pull(f"{policed.registry}/app:signed")


async def test_a_signature_that_was_changed_lets_nothing_in(policed: Policed) -> None:
    policed.policy([policed.signed_by("ann")])
    file = next((policed.folder / "signatures").rglob("signature-1"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert "by none of the keys, or broken" in await policed.refused("app:signed")


async def test_what_cannot_be_checked_is_not_taken(policed: Policed) -> None:
    policed.policy([{"type": "sigstoreSigned", "keyPath": "/k"}])
    with pytest.raises(ImageRefused, match="sigstoreSigned"):
        await policed.service.pull(f"{policed.registry}/app:signed")
    policed.policy([policed.signed_by("nobody")])
    with pytest.raises(InvalidConfiguration, match="cannot be read"):
        await policed.service.pull(f"{policed.registry}/app:signed")
    (policed.folder / "policy.json").write_text("{")
    with pytest.raises(InvalidConfiguration, match=r"policy\.json"):
        await policed.service.pull(f"{policed.registry}/app:signed")
    assert policed.service.list() == []

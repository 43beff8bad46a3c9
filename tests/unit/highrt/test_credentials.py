"""The file of credentials is written whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from highrt.cli import credentials
from highrt.cli.connection import DaemonError
from strata.protocols import highrt_pb2 as api

ANN = api.Credentials(username="ann", password="secret")


def test_a_link_to_the_file_stays_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "auth.json").symlink_to("real.json")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    credentials.store("registry.test", ANN)
    assert (tmp_path / "auth.json").is_symlink()
    assert [*json.loads((tmp_path / "real.json").read_text())["auths"]] == ["registry.test"]


def test_what_cannot_be_written_leaves_no_secret_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(DaemonError, match="No space left"):
        credentials.store("registry.test", ANN)
    assert os.listdir(tmp_path) == []


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")

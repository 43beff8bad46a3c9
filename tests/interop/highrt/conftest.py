"""A daemon of ours and a real registry."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.highrt.conftest import daemon
from tests.interop.images.conftest import DockerRegistry

__all__ = ["daemon", "registry"]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    registry = DockerRegistry(tmp_path)
    registry.start()
    yield registry
    registry.stop()

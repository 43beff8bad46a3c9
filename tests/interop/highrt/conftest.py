"""A daemon of ours and a real registry."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.highrt.conftest import Daemon, near_daemon
from tests.interop.images.conftest import DockerRegistry

__all__ = ["near_daemon"]


@pytest.fixture(scope="module")
def daemon(near_daemon: Daemon) -> Daemon:
    """The registry is on the loopback of the test."""
    return near_daemon


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    registry = DockerRegistry(tmp_path)
    registry.start()
    yield registry
    registry.stop()

from collections.abc import Iterator

import pytest

from tests.integration.nodenet.harness import Cluster, Node, closing


@pytest.fixture
def node() -> Iterator[Node]:
    with closing(Node()) as node:
        yield node


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with closing(Cluster()) as cluster:
        yield cluster

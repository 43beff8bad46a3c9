"""The pods' metadata: what is written is read again, and files of an older schema are brought up to date."""

from pathlib import Path

import apsw
import pytest

from highrt.pods import metadata
from highrt.pods.errors import PodError
from highrt.pods.metadata import Metadata
from highrt.pods.model import Container, ContainerState, ContainerUser, Owner, Pod
from strata.protocols.cri_pb2 import ContainerConfig, ContainerMetadata, PodSandboxConfig


def _pod() -> Pod:
    return Pod("p" * 64, Owner.KUBELET, PodSandboxConfig(), "lowrt", True, 1, "/netns", ["10.0.0.2"])


def _container() -> Container:
    config = ContainerConfig(metadata=ContainerMetadata(name="c"))
    return Container("c" * 64, "p" * 64, Owner.KUBELET, config, "sha256:1", "r@sha256:1", ContainerState.CREATED, 2, cgroup="/c")


def test_containers_are_read_as_they_were_written(tmp_path: Path) -> None:
    container = _container()
    store = Metadata(tmp_path / "pods.db")
    store.reserve_pod(_pod(), "pod", "boot")
    store.add_container(container, "c/0")
    assert store.containers() == [container]
    container.user, container.state, container.exit_code = ContainerUser(1, 2, (2, 3)), ContainerState.EXITED, 4
    store.save_container(container)
    store.close()
    assert Metadata(tmp_path / "pods.db").containers() == [container]


def test_a_file_of_the_first_schema_is_upgraded_and_a_copy_of_it_kept(tmp_path: Path) -> None:
    path = tmp_path / "pods.db"
    old = apsw.Connection(str(path))
    old.execute(metadata._FIRST_SCHEMA)
    old.execute("PRAGMA user_version = 1")
    pod, container = _pod(), _container()
    old.execute(
        "INSERT INTO pods VALUES (?, 'pod', 'kubelet', 'lowrt', ?, 1, 1, 1, '/netns', '[]', 'boot')",
        (pod.id, pod.config.SerializeToString()),
    )
    old.execute(
        "INSERT INTO containers "
        "VALUES (?, ?, 'c/0', ?, 'sha256:1', 'r@sha256:1', 'created', 2, 0, 0, 0, '', '', '', 0, '/c', 15)",
        (container.id, pod.id, container.config.SerializeToString()),
    )
    old.close()
    store = Metadata(path)
    assert store.containers() == [container]
    store.close()
    copy = apsw.Connection(str(tmp_path / "pods.db.v1"))
    assert next(iter(copy.execute("PRAGMA user_version")))[0] == 1
    assert next(iter(copy.execute("SELECT count(*) FROM containers")))[0] == 1
    Metadata(path).close()  # and opened again without more ado


def test_a_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Metadata(tmp_path / "pods.db").close()
    newer = apsw.Connection(str(tmp_path / "pods.db"))
    newer.execute(f"PRAGMA user_version = {metadata.VERSION + 1}")
    newer.close()
    with pytest.raises(PodError, match="upgrade highrt"):
        Metadata(tmp_path / "pods.db")

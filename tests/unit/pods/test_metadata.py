"""Pods and containers on disk."""

from pathlib import Path

import apsw
import pytest

from highrt.pods import metadata as module
from highrt.pods.errors import PodError
from highrt.pods.metadata import Metadata, NameTaken
from highrt.pods.model import Container, ContainerState, ContainerUser, Owner, Pod
from strata.protocols.cri_pb2 import ContainerConfig, PodSandboxConfig


def make_pod(pod_id: str = "p1") -> Pod:
    config = PodSandboxConfig(hostname="h")
    return Pod(pod_id, Owner.PERSON, config, "lowrt", False, 5, "/ns", [])


def make_container(container_id: str = "c1") -> Container:
    return Container(
        container_id, "p1", Owner.PERSON, ContainerConfig(log_path="x"), "sha256:1", "ref", ContainerState.CREATED, 7
    )


def test_what_was_written_is_read_after_a_restart(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path / "db")
    pod, container = make_pod(), make_container()
    metadata.reserve_pod(pod, "name", "boot")
    assert metadata.pods() == [(pod, False, "boot")]
    pod.ready, pod.ips = True, ["10.0.0.1", "fd00::1"]
    metadata.save_pod(pod)
    metadata.add_container(container, "name/0")
    container.state, container.exit_code, container.reason = ContainerState.EXITED, 3, "Error"
    container.user = ContainerUser(1, 2, (2, 3))
    metadata.save_container(container)
    metadata.close()
    again = Metadata(tmp_path / "db")
    assert again.pods() == [(pod, True, "boot")]
    assert again.containers() == [container]
    again.remove_pod("p1")
    assert again.containers() == []
    again.close()


def test_a_name_is_given_once(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path / "db")
    metadata.reserve_pod(make_pod(), "name", "boot")
    with pytest.raises(NameTaken, match="p1"):
        metadata.reserve_pod(make_pod("p2"), "name", "boot")
    metadata.add_container(make_container(), "name/0")
    with pytest.raises(NameTaken, match="c1"):
        metadata.add_container(make_container("c2"), "name/0")
    metadata.remove_container("c1")
    metadata.add_container(make_container("c2"), "name/0")
    metadata.close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Metadata(tmp_path / "db").close()
    connection = apsw.Connection(str(tmp_path / "db"))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(PodError, match="newer highrt"):
        Metadata(tmp_path / "db")


def test_a_file_of_the_first_schema_is_upgraded_and_a_copy_of_it_kept(tmp_path: Path) -> None:
    old = apsw.Connection(str(tmp_path / "db"))
    old.execute(module._FIRST_SCHEMA)
    old.execute("PRAGMA user_version = 1")
    config = make_container().config.SerializeToString()
    old.execute("INSERT INTO pods VALUES ('p1', 'name', 'person', 'lowrt', x'', 1, 1, 1, '/ns', '[]', 'boot')")
    old.execute(
        "INSERT INTO containers "
        "VALUES ('c1', 'p1', 'name/0', ?, 'sha256:1', 'ref', 'created', 7, 0, 0, 0, '', '', '', 0, '', 15)",
        (config,),
    )
    old.close()
    for _ in range(2):  # the second time there is nothing to do
        metadata = Metadata(tmp_path / "db")
        assert metadata.containers() == [make_container()]
        metadata.close()
    copy = apsw.Connection(str(tmp_path / "db.v1"))
    assert next(iter(copy.execute("PRAGMA user_version")))[0] == 1
    assert next(iter(copy.execute("SELECT count(*) FROM containers")))[0] == 1
    copy.close()

"""Devices by name, as drivers define them (CDI)."""

import json
import os
from pathlib import Path

import pytest

from highrt.pods.errors import InvalidArgument
from strata.protocols.cri_pb2 import CDIDevice

from .conftest import Node, ended

HOOK = '#!/bin/sh\ncat > {folder}/state.json; echo "$1" > {folder}/said\n'


async def reopened(node: Node, *folders: Path) -> None:
    await node.manager.close()
    node.manager = node.new_manager(cdi_folders=folders)
    await node.manager.open()


def define(folder: Path, name: str, kind: str, devices: dict[str, object], edits: object = None) -> None:
    folder.mkdir(exist_ok=True)
    listed = [{"name": device, "containerEdits": own} for device, own in devices.items()]
    content = {"cdiVersion": "1.0.0", "kind": kind, "devices": listed, "containerEdits": edits or {}}
    (folder / name).write_text(json.dumps(content))


async def test_a_device_brings_all_that_it_wants(node: Node) -> None:
    (node.folder / "hook").write_text(HOOK.format(folder=node.folder))
    (node.folder / "hook").chmod(0o755)
    (node.folder / "library").write_text("code")
    own = {
        "env": ["CARD=first", "FROM=device"],
        "deviceNodes": [{"path": "/dev/card0", "hostPath": "/dev/fuse", "permissions": "r", "gid": 1234}],
    }
    common = {
        "mounts": [{"hostPath": str(node.folder / "library"), "containerPath": "/lib/card.so", "options": ["ro", "rbind"]}],
        "hooks": [{"hookName": "createRuntime", "path": str(node.folder / "hook"), "args": ["hook", "ready"]}],
        "additionalGids": [4321],
    }
    define(node.folder / "etc", "one.json", "test.example/card", {"all": {"env": ["CARD=old"]}})
    define(node.folder / "run", "two.json", "test.example/card", {"all": own}, common)
    (node.folder / "run/three.yaml").write_text(
        "cdiVersion: 0.8.0\nkind: test.example/other\ndevices: [{name: x, containerEdits: {env: [OTHER=yes]}}]\n"
    )
    (node.folder / "run/broken.json").write_text("{")
    await reopened(node, node.folder / "etc", node.folder / "run")
    pod = await node.manager.run_pod(node.pod())
    script = "echo $CARD $FROM $OTHER; cat /lib/card.so; echo; id -G; ls -ln /dev/card0; : < /dev/card0 && echo opened"
    config = node.container("sh", "-c", f"exec 2>&1; {script}; : > /dev/card0")
    config.CDI_devices.append(CDIDevice(name="test.example/card=all"))
    config.annotations["cdi.k8s.io/plugin"] = "test.example/other=x"
    container = await node.manager.create_container(pod.id, config)
    await node.manager.start_container(container.id)
    await ended(node.manager, container.id)
    lines = [line.partition(" F ")[2] for line in node.log()]
    assert lines[:3] == ["first device yes", "code", "0 4321"]
    device = lines[3].split()
    assert (device[0][0], device[3], device[4].rstrip(",")) == ("c", "1234", str(os.major(os.stat("/dev/fuse").st_rdev)))
    assert lines[4] == "opened"
    assert "Operation not permitted" in lines[5]  # the device is for reading alone
    assert (node.folder / "said").read_text() == "ready\n"
    assert json.loads((node.folder / "state.json").read_text())["id"] == container.id


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test.example/card=none", "in no file of"),
        ("test.example/card=twice", "as another file there does"),
        ("test.example/card=gone", "FileNotFoundError"),
        ("test.example/card=hook", "there is no hook 'afterwards'"),
    ],
)
async def test_a_device_that_cannot_be_had_is_told(node: Node, name: str, why: str) -> None:
    folder = node.folder / "cdi"
    devices = {
        "twice": {}, "gone": {"deviceNodes": [{"path": "/dev/not-there"}]},
        "hook": {"hooks": [{"hookName": "afterwards", "path": "/bin/true"}]},
    }  # fmt: skip
    define(folder, "one.json", "test.example/card", devices)
    define(folder, "two.json", "test.example/card", {"twice": {}})
    await reopened(node, folder)
    pod = await node.manager.run_pod(node.pod())
    config = node.container("true")
    config.CDI_devices.append(CDIDevice(name=name))
    with pytest.raises(InvalidArgument, match=why):
        await node.manager.create_container(pod.id, config)
    assert node.manager.containers() == []
    assert node.images.left() == []

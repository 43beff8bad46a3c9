"""Our plugins chained with Debian's containernetworking-plugins, in each direction."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodenet.conflist import render
from tests.integration.nodenet.harness import POD_CIDR, Namespace, Node, closing

REFERENCE = Path("/usr/lib/cni")
VERSION = "1.0.0"


class Chain:
    """A configuration list as a runtime runs it; each plugin is ours or the reference's executable."""

    def __init__(self, node: Node, reference: set[str]) -> None:
        self.node = node
        self.config = render([POD_CIDR], "strata0", node.folder / "networks")
        self.reference = reference
        self.bin = node.folder / "bin"
        self.bin.mkdir(exist_ok=True)
        if "host-local" in reference:
            for plugin in self.config["plugins"]:
                # Inside our process host-local is ours: the reference's gets another name to be run as an executable.
                if "ipam" in plugin and "bridge" not in reference:
                    plugin["ipam"]["type"] = "reference-host-local"
            (self.bin / "reference-host-local").symlink_to(REFERENCE / "host-local")
        elif "bridge" in reference:
            (self.bin / "host-local").symlink_to(Path(sys.executable).parent / "nodenet")

    def run(self, command: str, space: Namespace, ports: list[dict[str, Any]], previous: dict[str, Any] | None = None) -> Any:
        plugins = self.config["plugins"] if command != "DEL" else self.config["plugins"][::-1]
        result = previous
        for plugin in plugins:
            config = {"cniVersion": VERSION, "name": self.config["name"], **plugin}
            if "capabilities" in plugin:
                config["runtimeConfig"] = {"portMappings": ports}
            if result is not None:
                config["prevResult"] = result
            answer = self._one(command, config, space)
            if command == "ADD":
                result = answer
        return result

    def _one(self, command: str, config: dict[str, Any], space: Namespace) -> Any:
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "chained",
            "CNI_NETNS": space.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{self.bin}:{REFERENCE}",
        }
        if config["type"] in self.reference:
            done = self.node.inside(subprocess.run, [REFERENCE / config["type"]], input=json.dumps(config).encode(), env=environ,
                                    capture_output=True)  # fmt: skip
            assert done.returncode == 0, (command, config["type"], done.stdout, done.stderr)
            return json.loads(done.stdout or b"{}")
        answer = self.node.cni(command, config, "chained", space.path, environ["CNI_PATH"])
        assert isinstance(answer, dict), (command, config["type"], answer)
        return answer


@pytest.fixture
def space() -> Iterator[Namespace]:
    with closing(Namespace()) as space:
        yield space


@pytest.mark.parametrize(
    "reference",
    [{"portmap"}, {"host-local"}, {"bridge"}, {"bridge", "host-local"}, {"bridge", "portmap"}],
    ids=lambda s: "+".join(sorted(s)),
)
def test_a_chain_of_ours_and_theirs(node: Node, space: Namespace, reference: set[str]) -> None:
    chain = Chain(node, reference)
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    result = chain.run("ADD", space, ports)
    assert result["cniVersion"] == VERSION
    # The reference's portmap of this version fails a CHECK wherever there are ip6tables and no IPv6 address.
    if "portmap" not in reference:
        chain.run("CHECK", space, ports, result)
    space.serve_tcp(80, "pod")
    assert node.get_tcp(result["ips"][0]["address"].split("/")[0], 80).startswith("pod")
    assert node.get_tcp("192.0.2.1", 8080).startswith("pod")
    chain.run("DEL", space, ports, result)
    assert "eth0" not in space.shell("ip link")
    left = [name for name in os.listdir(node.folder / "networks" / "strata") if name[0].isdigit()]
    assert left == []


def test_what_one_made_the_other_deletes(node: Node, space: Namespace) -> None:
    ours, theirs = Chain(node, set()), Chain(node, {"bridge", "host-local"})
    for maker, remover in ((ours, theirs), (theirs, ours)):
        result = maker.run("ADD", space, [])
        remover.run("DEL", space, [], result)
        assert "eth0" not in space.shell("ip link")
        assert [name for name in os.listdir(node.folder / "networks" / "strata") if name[0].isdigit()] == []

"""Pods on the networks of podman's and of containerd's configuration lists, with their plugins and with ours in their place."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.protocols import cri_pb2 as cri
from tests.conftest import network_namespace, wait_for
from tests.integration.highrt.conftest import IMAGE, Daemon, started
from tests.integration.highrt.test_cri import Client

PLUGINS = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
PODMAN = Path("/etc/cni/net.d/87-podman-bridge.conflist")  # of Debian's podman
# As containerd's script/setup/install-cni makes it: two families, and the bridge's own pods behind NAT.
CONTAINERD = {
    "cniVersion": "1.0.0",
    "name": "containerd-net",
    "plugins": [
        {
            "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "promiscMode": True,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:db8:4860::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}  # fmt: skip
LISTS = {"podman": lambda: json.loads(PODMAN.read_text()), "containerd": lambda: CONTAINERD}
PORT = 18083


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    with network_namespace() as name:
        yield name


@pytest.fixture(scope="module", params=["with their plugins", "with ours"])
def daemon(request: pytest.FixtureRequest, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    types = ("bridge", "host-local", "portmap", "loopback") if request.param == "with their plugins" else ()
    config.write_text(json.dumps({"cni": dict.fromkeys(types, "")}))
    with started(namespace, ["--cni-bin-dir", PLUGINS, "--config", config]) as daemon:
        (daemon.folder / "cni").mkdir()
        yield daemon


def in_namespace(namespace: str, *command: str) -> str:
    argv = ["ip", "netns", "exec", namespace, *command]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.parametrize("whose", [*LISTS])
def test_a_pod_has_addresses_and_a_port_and_gives_them_back(daemon: Daemon, namespace: str, whose: str) -> None:
    conflist: dict[str, Any] = LISTS[whose]()
    for plugin in conflist["plugins"]:
        if "ipam" in plugin:
            plugin["ipam"]["dataDir"] = f"{daemon.folder}/ipam"
    for file in (daemon.folder / "cni").iterdir():
        file.unlink()
    (daemon.folder / "cni" / "1.conflist").write_text(json.dumps(conflist))  # read anew for each pod
    client = Client(daemon.address)
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", uid=whose, namespace="test"))
    config.port_mappings.add(container_port=80, host_port=PORT)
    pod_id = client.RunPodSandbox(cri.RunPodSandboxRequest(config=config)).pod_sandbox_id
    try:
        network = client.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id)).status.network
        assert network.ip.startswith("10.88.")
        assert bool(network.additional_ips) == (whose == "containerd")
        script = "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www"
        container = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="web"), image=cri.ImageSpec(image=IMAGE), command=["sh", "-c", script]
        )
        request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=config)
        identifier = client.CreateContainer(request).container_id
        client.StartContainer(cri.StartContainerRequest(container_id=identifier))
        hosts = [network.ip, *(f"[{each.ip}]" for each in network.additional_ips)]
        for url in [*(f"http://{host}/" for host in hosts), f"http://127.0.0.1:{PORT}/"]:
            wait_for(lambda url=url: in_namespace(namespace, "curl", "-s", "-g", "--max-time", "3", url) == "page", what=url)  # type: ignore[misc]
    finally:
        client.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
        client.channel.close()
        # both have the same addresses, and bridges stay
        in_namespace(namespace, "ip", "link", "delete", conflist["plugins"][0]["bridge"])
    assert in_namespace(namespace, "curl", "-s", "--max-time", "1", f"http://127.0.0.1:{PORT}/") == ""
    leases = daemon.folder / "ipam" / conflist["name"]
    assert not [path for path in leases.iterdir() if path.name[0].isdigit()]
    assert str(PORT) not in in_namespace(namespace, "iptables-save") + in_namespace(namespace, "nft", "list", "ruleset")

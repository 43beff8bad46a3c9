"""A pod with a network, from its first address to nothing left. Run in a network namespace of its own: no packet leaves it.

usage: unshare --net python -m tests.integration.pods.network_scenario nodenet|reference
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from highrt.pods.manager import PodManager
from strata.protocols.cri_pb2 import NamespaceMode, PodSandboxConfig

from .conftest import Node, ended

_SUBNET = "10.199.7"


def conflist(folder: Path) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": f"{_SUBNET}.0/24"}]], "dataDir": str(folder / "leases")}
    bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "ipMasq": False, "ipam": ipam}
    (folder / "cni").mkdir()
    config = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
    (folder / "cni" / "10-pods.conflist").write_text(json.dumps(config))


def pod_config(node: Node, name: str) -> PodSandboxConfig:
    config = node.pod(name, hostname=f"host-{name}")
    config.linux.security_context.namespace_options.network = NamespaceMode.POD
    config.linux.sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
    config.dns_config.servers.append("10.96.0.10")
    config.dns_config.searches.extend(["svc.cluster.local", "cluster.local"])
    return config


def leases(folder: Path) -> list[str]:
    names = [path.name for path in (folder / "leases").rglob("*") if path.is_file()]
    return [name for name in names if name.startswith(_SUBNET)]


async def scenario(node: Node) -> None:
    manager = node.manager
    ready, why = await manager.network_ready()
    assert not ready
    assert "no network configuration" in why
    conflist(node.folder)
    assert await manager.network_ready() == (True, "")
    pod = await manager.run_pod(pod_config(node, "one"))
    assert pod.ips[0].startswith(f"{_SUBNET}.")
    script = (
        "hostname; cat /etc/resolv.conf /etc/hosts; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; nc -l -p 80 -e echo hello"
    )
    container = await manager.create_container(pod.id, node.container("sh", "-c", script))
    await manager.start_container(container.id)
    await reach(manager, pod.id)
    await ended(manager, container.id)
    log = [line.removeprefix("stdout F ") for line in node.log()]
    assert log[0] == "host-one"
    assert log[1:4] == ["nameserver 10.96.0.10", "search svc.cluster.local cluster.local", "127.0.0.1\tlocalhost"]
    assert f"{pod.ips[0]}\thost-one" in log
    assert log[-1] == "0"
    other = await manager.run_pod(pod_config(node, "two"))
    assert other.ips != pod.ips
    stats = await manager.pod_stats(other.id)
    assert [interface.name for interface in stats.interfaces] == ["eth0"]
    manager = await node.reopen()
    assert manager.pod(pod.id).ips == pod.ips
    assert sorted(leases(node.folder)) == sorted(pod.ips + other.ips)
    # The configuration may go: what was attached by it is detached by what was kept of it.
    shutil.rmtree(node.folder / "cni")
    await manager.stop_pod(pod.id)
    assert pod.netns
    assert not os.path.exists(pod.netns)
    await manager.remove_pod(pod.id)
    await manager.remove_pod(other.id)
    assert leases(node.folder) == []
    assert manager.network.attached() == []
    links = Path("/proc/net/dev").read_text()
    assert "veth" not in links, links


async def reach(manager: PodManager, pod_id: str) -> None:
    """A connection to the pod's own localhost, as port-forward makes it."""
    for _ in range(100):
        try:
            sock = await manager.dial(pod_id, 80)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
            continue
        with sock:
            assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"hello\n"
        return
    raise AssertionError("the pod's port was never open")


async def main(plugins: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="pods-", dir="/tmp"))
    name = f"test-{os.urandom(4).hex()}"
    entries = dict.fromkeys(("bridge", "host-local"), "nodenet.cni.main:run") if plugins == "nodenet" else {}
    node = Node(folder, name, cni_entry=entries)
    try:
        await node.manager.open()
        await scenario(node)
    finally:
        await node.end()
    print("all well")


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    asyncio.run(main(sys.argv[1]))

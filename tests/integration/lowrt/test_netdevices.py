"""Network devices that a container takes over. Every runtime here is in a network namespace of its own, with its own devices."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# A pair of devices that leads nowhere, one of them up and with addresses of three kinds.
SETUP = """
ip link add ours type veth peer name other
ip link set ours address 02:11:22:33:44:55 mtu 1400
ip address add 192.0.2.7/24 broadcast 192.0.2.255 dev ours
ip -6 address add 2001:db8::7/64 dev ours nodad
ip address add 169.254.9.9/16 scope link dev ours
ip link set ours up
"""


@pytest.fixture
def namespace() -> Iterator[Path]:
    """A network namespace by name, for the container to join."""
    name = f"strata-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield Path(f"/run/netns/{name}")
    subprocess.run(["ip", "netns", "delete", name], check=True)


def run(runtime: Any, script: str, *, change: Any = None, after: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs a shell script in a container, of a runtime in a new network namespace. change: what else is in the configuration."""
    runtime.config["process"]["args"] = ["sh", "-c", script]
    if change:
        change(runtime.config)
    runtime.write()
    line = f'set -e\n{SETUP}\nstatus=0; "$@" || status=$?\n{after}\nexit $status'
    lowrt = [runtime.launcher, "--root", runtime.root, "run", "--bundle", runtime.bundle, runtime.id]
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", line, "sh", *lowrt],
        capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("user_namespace", [False, True])
def test_a_device_moves_with_its_lasting_addresses(runtime: Any, user_namespace: bool) -> None:
    runtime.config["linux"]["netDevices"] = {"ours": {}}
    if user_namespace:
        runtime.config["linux"]["namespaces"].append({"type": "user"})
        for name in ("uidMappings", "gidMappings"):
            runtime.config["linux"][name] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    done = run(runtime, "ip address show dev ours", after="ip link show ours 2>&1 || true")
    assert done.returncode == 0, done.stderr
    shown, left = done.stdout.split("Device ", 1)
    assert left.startswith('"ours" does not exist')
    assert "mtu 1400" in shown
    assert "link/ether 02:11:22:33:44:55" in shown
    assert "inet 192.0.2.7/24 brd 192.0.2.255 scope global ours" in shown
    assert "inet6 2001:db8::7/64 scope global" in shown
    assert "169.254.9.9" not in shown
    assert ",UP" in shown


def test_a_device_gets_another_name_also_one_that_the_runtime_has_already(runtime: Any) -> None:
    runtime.config["linux"]["netDevices"] = {"ours": {"name": "other"}}
    runtime.config["linux"]["sysctl"] = {"net.ipv4.conf.other.forwarding": "1"}
    done = run(runtime, "ip address show dev other; cat /proc/sys/net/ipv4/conf/other/forwarding")
    assert done.returncode == 0, done.stderr
    assert "inet 192.0.2.7/24 brd 192.0.2.255 scope global other" in done.stdout
    assert done.stdout.endswith("\n1\n")


def test_a_device_stays_in_a_namespace_that_outlives_the_container(runtime: Any, namespace: Path) -> None:
    next(e for e in runtime.config["linux"]["namespaces"] if e["type"] == "network")["path"] = str(namespace)
    runtime.config["linux"]["netDevices"] = {"ours": {"name": "eth5"}}
    done = run(runtime, "true", after=f"ip -netns {namespace.name} address show dev eth5")
    assert done.returncode == 0, done.stderr
    assert "inet 192.0.2.7/24" in done.stdout
    # The other end went with the runtime's namespace, and took this one along.
    assert os.path.exists(namespace)


def test_a_device_gets_a_number_that_is_free_and_keeps_its_addresses_where_its_index_is_taken(
    runtime: Any, namespace: Path
) -> None:
    # Its own index and the next ones belong to other devices there, as does the first of the names.
    taken = " ".join(f"{n}" for n in range(2, 12))
    subprocess.run(["ip", "-netns", namespace.name, "link", "add", "eth0", "index", "20", "type", "bridge"], check=True)
    for number in taken.split():
        command = ["ip", "-netns", namespace.name, "link", "add", f"b{number}", "index", number, "type", "bridge"]
        subprocess.run(command, check=True)
    next(e for e in runtime.config["linux"]["namespaces"] if e["type"] == "network")["path"] = str(namespace)
    runtime.config["linux"]["netDevices"] = {"ours": {"name": "eth%d"}}
    done = run(runtime, "ip address show dev eth1")
    assert done.returncode == 0, done.stderr
    assert "inet 192.0.2.7/24" in done.stdout
    assert ",UP" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["linux"].update(netDevices={"nosuch": {}}), "move netDevice nosuch: no such device"),
        (lambda c: c["linux"].update(netDevices={"ours": {"name": "lo"}}), "move netDevice ours: file exists"),
        (lambda c: c["linux"].update(netDevices={"ours": {"name": "x"}, "nosuch": {}}), "move netDevice nosuch: no such device"),
        (lambda c: c["process"].update(args=["/nosuch"]), 'exec: "/nosuch": stat /nosuch: no such file or directory'),
    ],
)
def test_after_a_create_that_fails_a_device_is_as_it_was(runtime: Any, change: Any, message: str) -> None:
    runtime.config["linux"]["netDevices"] = {"ours": {}}
    done = run(runtime, "true", change=change, after="ip address show dev ours")
    assert done.returncode == 1
    assert message in done.stderr
    assert runtime.call("list", "-q").stdout == ""
    assert "inet 192.0.2.7/24 brd 192.0.2.255 scope global ours" in done.stdout
    assert "inet6 2001:db8::7/64 scope global" in done.stdout
    assert ",UP" in done.stdout


def test_devices_need_a_network_namespace(runtime: Any) -> None:
    runtime.config["linux"]["netDevices"] = {"lo": {}}
    runtime.config["linux"]["namespaces"] = [e for e in runtime.config["linux"]["namespaces"] if e["type"] != "network"]
    assert "unable to move network devices without a NET namespace" in runtime.run("true").stderr

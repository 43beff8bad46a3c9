"""What all tests share: the option --long, waiting with a deadline, a network namespace, and a lane with cgroup v2 alone."""

import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the counts of rounds that take hours")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    long = [item for item in items if "long" in item.keywords]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if "long" not in item.keywords]


def wait_for(condition: Callable[[], T], *, seconds: float = 10.0, what: str = "") -> T:
    """Calls `condition` until what it returns is true, and returns that; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what or condition}: last result {result!r}")
        time.sleep(0.02)
    return result


@contextmanager
def network_namespace() -> Iterator[str]:
    """The name of a new network namespace, without an uplink, its loopback up."""
    name = f"test-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Lane:
    """A view of the machine's cgroups. Commands that begin with `prefix` see it; `tree` is where this process sees v2's tree."""

    def __init__(self, prefix: list[str], tree: Path) -> None:
        self.prefix, self.tree = prefix, tree


@pytest.fixture(scope="session")
def v2_lane() -> Iterator[Lane]:
    """Pure cgroup v2: on a machine with v1 hierarchies, a mount namespace in which a v2 tree takes their place."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        yield Lane([], root)
        return
    script = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && echo ready && read end"
    holder = subprocess.Popen(["unshare", "--mount", "sh", "-ec", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield Lane(["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"], root / "unified")
    finally:
        holder.kill()
        holder.communicate()

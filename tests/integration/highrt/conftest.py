"""A daemon of its own for each module: `highrt serve` with its own folders, socket and cgroups, and the image `hello`."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from grpclib.client import Channel

from strata.linux import cgroups, mounts
from strata.protocols.grpc import channel
from tests.conftest import network_namespace, wait_for

PROJECT = Path(__file__).parents[3]
IMAGE = "hello:test"


@dataclass
class Daemon:
    """`folder` is short: unix sockets' paths lie below it."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    prefix: list[str] = field(default_factory=list)
    """What the daemon's command is run by."""
    options: list[str | Path] = field(default_factory=list)
    """Further ones of `highrt serve`."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def address(self) -> str:
        return f"unix://{self.folder}/highrt.sock"

    def start(self) -> None:
        self.launch()
        wait_for(self._answers, seconds=20, what="the daemon to answer")

    def launch(self) -> None:
        """Starts it, and does not wait."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix, sys.executable, "-m", "highrt.cli.main", "serve", "--name", self.name, "--listen", self.address,
                    "--root", self.folder / "root", "--state", self.folder / "s", "--cni-conf-dir", self.folder / "cni",
                    *self.options,
                ],
                stdout=log,
                stderr=log,
                cwd=PROJECT,
            )  # fmt: skip

    def _answers(self) -> bool:
        assert self.process
        if self.process.poll() is not None:
            pytest.fail(f"the daemon ended: {self.log()}")
        return self.command("system", check=False).returncode == 0

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "highrt.cli.main", "--address", self.address, *arguments]

    def command(
        self, *arguments: str, check: bool = True, stdin: str | None = None, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Runs `highrt ARGUMENTS`."""
        done = subprocess.run(
            self.argv(*arguments),
            cwd=PROJECT,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),  # type: ignore[call-overload]
        )
        if check and done.returncode:
            pytest.fail(f"highrt {' '.join(arguments)}: status {done.returncode}: {done.stderr}\n{self.log()[-3000:]}")
        return done

    def out(self, *arguments: str) -> str:
        return self.command(*arguments).stdout.strip()

    def kill(self) -> None:
        """SIGKILL, as when the machine runs out of memory."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Removes all containers, ends the daemon, and what it made."""
        try:
            if self.process and self.process.poll() is None:
                for container in self.out("ps", "-aqk", "--no-trunc").split():
                    self.command("rm", "-f", container, check=False)
                self.process.terminate()
                self.process.wait(15)
        finally:
            if self.process:
                self.process.kill()
            group = cgroups.open_cgroup(f"/strata/{self.name}")
            group.kill()
            for part in ("pods", "monitors"):
                with contextlib.suppress(OSError):
                    cgroups.open_cgroup(f"/strata/{self.name}/{part}").remove()
            with contextlib.suppress(OSError):
                group.remove()
            # where a daemon could not be started again, its pods' mounts are still there
            mounts.umount_below(str(self.folder))
            shutil.rmtree(self.folder, ignore_errors=True)


def reboot(daemon: Daemon) -> None:
    """What a daemon finds after the machine was started anew: no process, cgroup or mount, and nothing in its state folder."""
    daemon.kill()
    group = cgroups.open_cgroup(f"/strata/{daemon.name}")
    group.kill()
    wait_for(lambda: not group.pids(recursive=True))
    for hierarchy in group.folders():
        for folder, _, _ in os.walk(hierarchy, topdown=False):
            os.rmdir(folder)
    mounts.umount_below(str(daemon.folder / "s"))
    shutil.rmtree(daemon.folder / "s")
    for kept in Path("/run/lowrt").glob("*/state.json"):
        with contextlib.suppress(FileNotFoundError):  # other tests' come and go
            if f"{daemon.folder}/" in kept.read_text():
                shutil.rmtree(kept.parent)
    with sqlite3.connect(daemon.folder / "root/pods.db") as database:
        database.execute("UPDATE pods SET boot_id = 'another'")
    (daemon.folder / "root/person/.boot").write_text("another")
    daemon.start()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with network_namespace() as namespace, started(namespace) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def near_daemon() -> Iterator[Daemon]:
    """A daemon in the test's own network namespace: what serves on either's loopback is reached by the other."""
    with started() as daemon:
        yield daemon


@contextlib.contextmanager
def started(namespace: str = "", options: Sequence[str | Path] = ()) -> Iterator[Daemon]:
    """A daemon with the image `hello:test`. namespace: the name of the network namespace that it is in, "" for the test's own.
    options: further ones of `highrt serve`."""
    # not `ip netns exec`: it mounts a /sys without the cgroups
    prefix = ["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="hrt", dir="/tmp")), prefix=prefix, options=[*options])
    daemon.folder.chmod(0o711)  # as /run is: roots of user namespaces reach their containers' roots through it
    try:
        daemon.start()
        subprocess.run(
            [PROJECT / "images" / "build", "hello", "--tag", IMAGE, "--address", daemon.address, "-q"],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        yield daemon
    finally:
        daemon.close()


@contextlib.contextmanager
def networked() -> Iterator[tuple[Daemon, str]]:
    """The same in a network namespace of its own, with a CNI bridge and published ports; and the namespace's name."""
    with network_namespace() as namespace, started(namespace) as daemon:
        configure(daemon)
        yield daemon, namespace


def configure(daemon: Daemon) -> None:
    """Gives its node a CNI network, a bridge."""
    subnet = {"subnet": "10.231.9.0/24"}
    ipam = {"type": "host-local", "ranges": [[subnet]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": f"{daemon.folder}/ipam"}
    bridge = {"type": "bridge", "bridge": "hrt0", "isGateway": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    conflist = {"cniVersion": "1.0.0", "name": "person", "plugins": [bridge, portmap]}
    (daemon.folder / "cni").mkdir()
    (daemon.folder / "cni" / "10-person.conflist").write_text(json.dumps(conflist))
    wait_for(lambda: daemon.out("system", "--format", "{{.networkReady}}") == "true", what="the network to be seen")


@pytest.fixture
async def link(daemon: Daemon) -> AsyncIterator[Channel]:
    """A gRPC channel to the daemon."""
    link = channel(daemon.address)
    yield link
    link.close()

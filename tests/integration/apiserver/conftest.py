"""The API server as a process on loopback, and the kubectls that people have: the installed one and Debian's."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

INSTALLED = "/usr/bin/kubectl"


@dataclass
class Kubectl:
    """kubectl against the server under test, with a home of its own."""

    program: str
    server: str
    home: Path
    namespace: str = "default"
    editor: str = "false"

    def argv(self, *argv: str) -> list[str]:
        return [self.program, "--server", self.server, "--namespace", self.namespace, *argv]

    def run(self, *argv: str, input: str | None = None, seconds: float = 30) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "HOME": str(self.home), "KUBECONFIG": "", "KUBE_EDITOR": self.editor}
        given: dict[str, Any] = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(self.argv(*argv), text=True, capture_output=True, timeout=seconds, env=environment, **given)

    def __call__(self, *argv: str, input: str | None = None) -> str:
        """What it printed; a failure fails the test with both outputs."""
        done = self.run(*argv, input=input)
        assert done.returncode == 0, f"kubectl {' '.join(argv)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fails(self, *argv: str, input: str | None = None) -> str:
        """What it complained of; the command must fail with 1, as kubectl does."""
        done = self.run(*argv, input=input)
        assert done.returncode == 1, f"kubectl {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stderr

    def differs(self, *argv: str, input: str) -> str:
        """The output of `kubectl diff`, which ends with 1 where there is a difference."""
        done = self.run("diff", *argv, input=input)
        assert done.returncode == 1, done.stderr
        return done.stdout

    def get(self, *argv: str) -> Any:
        return json.loads(self("get", *argv, "-o", "json"))


class Server:
    """`python -m controlplane.apiserver`, which can be killed and started again on the same data and port."""

    def __init__(self, data: Path) -> None:
        self._data, self.url = data, ""
        self.start()

    def start(self) -> None:
        listen = self.url.removeprefix("http://") or "127.0.0.1:0"
        argv = [sys.executable, "-m", "controlplane.apiserver", "--listen", listen, "--data-dir", str(self._data), "--insecure"]
        self._process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            if found := re.search(r"http://[\d.:]+", line):
                self.url = found[0]
                return
        pytest.fail(f"the API server did not start:\n{''.join(lines)}")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server for one test."""
    server = Server(tmp_path / "data")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kubectls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kubectl]]:
    """For each program a server, shared by the tests, in the order in which they are asked for."""
    servers: list[Server] = []

    class Lazily(dict[str, Kubectl]):
        def __missing__(self, program: str) -> Kubectl:
            servers.append(Server(tmp_path_factory.mktemp("server") / "data"))
            self[program] = Kubectl(program, servers[-1].url, tmp_path_factory.mktemp("home"))
            return self[program]

    found = Lazily()
    yield found
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def debians_kubectl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's own kubectl (1.20 in Debian 12), unpacked from its package."""
    folder = tmp_path_factory.mktemp("kubernetes-client")
    subprocess.run(["apt-get", "download", "kubernetes-client"], cwd=folder, check=True, capture_output=True, timeout=100)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True, timeout=60)
    return str(folder / "usr/bin/kubectl")


@pytest.fixture(params=["installed", "debian"])
def program(request: pytest.FixtureRequest) -> str:
    return INSTALLED if request.param == "installed" else str(request.getfixturevalue("debians_kubectl"))


@pytest.fixture
def kubectl(program: str, kubectls: dict[str, Kubectl]) -> Kubectl:
    """kubectl in a namespace of the test's own."""
    shared = kubectls[program]
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    shared("create", "namespace", namespace)
    return replace(shared, namespace=namespace)

"""`controlplane serve` as a process of its own on loopback, with TLS and all that guards it, and the installed kubectl."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from controlplane.pki import certificates
from controlplane.pki.certificates import Pair

KUBECTL = "/usr/bin/kubectl"
START_SECONDS = 30.0


@dataclass
class Kubectl:
    """kubectl as somebody: a kubeconfig, and flags that go with every call."""

    kubeconfig: Path
    flags: list[str] = field(default_factory=list)

    def run(self, *argv: str, input: str | None = None) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.kubeconfig.parent), "KUBECONFIG": str(self.kubeconfig)}
        command = [KUBECTL, *self.flags, *argv]
        given: dict[str, Any] = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(command, text=True, capture_output=True, timeout=30, env=environment, **given)

    def __call__(self, *argv: str, input: str | None = None) -> str:
        done = self.run(*argv, input=input)
        assert done.returncode == 0, f"kubectl {' '.join(argv)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fails(self, *argv: str, input: str | None = None) -> str:
        """What it complained of."""
        done = self.run(*argv, input=input)
        assert done.returncode != 0, f"kubectl {' '.join(argv)} should have failed:\n{done.stdout}"
        return done.stderr

    def get(self, *argv: str) -> Any:
        return json.loads(self("get", *argv, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> str:
        return self("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


@dataclass
class Answer:
    code: int
    body: Any
    headers: Any


class Server:
    """A control plane without scheduler and controllers: what it answers depends on nothing but the request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> None:
        argv = [sys.executable, "-m", "controlplane.cli", "serve", "--data-dir", str(self.folder), "--bind-address", "127.0.0.1",
                "--secure-port", str(self.port), "--advertise-address", "127.0.0.1", "--components", "apiserver",
                "--log-level", "debug", *flags]  # fmt: skip
        with (self.folder.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not (self.folder / "admin.kubeconfig").exists() or not self._answers():
            assert self.process.poll() is None, (self.folder.parent / "log").read_text()
            assert time.monotonic() < deadline, (self.folder.parent / "log").read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return self.request("/readyz").code == 200
        except OSError:
            return False

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def admin(self) -> Kubectl:
        return Kubectl(self.folder / "admin.kubeconfig")

    @property
    def ca(self) -> Pair:
        found = certificates.load(self.folder / "pki/ca.crt", self.folder / "pki/ca.key")
        assert found
        return found

    def user(self, name: str, *groups: str, ca: Pair | None = None) -> Kubectl:
        """kubectl with a client certificate, from the cluster's CA or another."""
        pair = certificates.issue(ca or self.ca, name, groups)
        path = self.folder.parent / f"{name.replace(':', '-')}-{os.urandom(3).hex()}.kubeconfig"
        stem = str(path)
        Path(f"{stem}.crt").write_bytes(pair.certificate_pem)
        Path(f"{stem}.key").write_bytes(pair.key_pem)
        return self._kubeconfig(path, {"client-certificate": f"{stem}.crt", "client-key": f"{stem}.key"})

    def bearer(self, token: str) -> Kubectl:
        return self._kubeconfig(self.folder.parent / f"token-{os.urandom(3).hex()}.kubeconfig", {"token": token})

    def _kubeconfig(self, path: Path, user: dict[str, str]) -> Kubectl:
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [
                {"name": "c", "cluster": {"server": self.url, "certificate-authority": str(self.folder / "pki/ca.crt")}}
            ],
            "users": [{"name": "u", "user": user}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(document))
        return Kubectl(path)

    def request(
        self, path: str, *, token: str = "", method: str = "GET", body: Any = None, headers: dict[str, str] | None = None,
        kubectl: Kubectl | None = None,
    ) -> Answer:  # fmt: skip
        """One HTTPS request; kubectl: whose client certificate to show."""
        context = ssl.create_default_context(cafile=str(self.folder / "pki/ca.crt"))
        if kubectl is not None:
            context.load_cert_chain(f"{kubectl.kubeconfig}.crt", f"{kubectl.kubeconfig}.key")
        sent = {"Content-Type": "application/json", **(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        sent |= {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.url + path, data, sent, method=method), context=context, timeout=10) as answer:
                return Answer(answer.status, _read(answer.read()), answer.headers)
        except HTTPError as error:
            with error:
                return Answer(error.code, _read(error.read()), error.headers)


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("security") / "data")
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.stop()


@pytest.fixture
def admin(server: Server) -> Kubectl:
    return server.admin


@pytest.fixture
def namespace(admin: Kubectl) -> str:
    """A namespace of the test's own, with the account that controllers would have made in it."""
    name = f"test-{os.urandom(4).hex()}"
    admin("create", "namespace", name)
    admin("create", "serviceaccount", "default", "-n", name)
    return name

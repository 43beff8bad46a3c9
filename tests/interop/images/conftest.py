"""Real peers: Debian's docker-registry on loopback, with skopeo and umoci as its other clients, and a proxy that misbehaves."""

import asyncio
import base64
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from highrt.images.hosts import is_loopback
from highrt.images.service import ImageService
from tests.conftest import wait_for


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run(*argv: str | Path) -> str:
    """A peer's command; a failure fails the test with what it printed."""
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class DockerRegistry:
    """A docker-registry process; address is host:port."""

    folder: Path
    http: str = ""
    auth: str = ""
    more: str = ""
    """Further parts of its configuration."""
    deletes: bool = True
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        configuration = self.folder / "config.yml"
        configuration.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder}/data}}, delete: {{enabled: {str(self.deletes).lower()}}}}}\n"
            f"http: {{addr: '{self.address}'{self.http}}}\n{self.auth}{self.more}"
        )
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", configuration], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._answers, what="docker-registry to answer")

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An OCI layout that umoci made, with an image `app` of three layers: busybox, a change, and a whiteout."""
    folder = tmp_path_factory.mktemp("layout")
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    (root / "gone").write_text("x")
    where = f"{folder}/oci"
    image = f"{where}:app"
    run("umoci", "init", "--layout", where)
    run("umoci", "new", "--image", image)
    run("umoci", "insert", "--image", image, root / "bin", "/bin")
    run("umoci", "insert", "--image", image, root / "gone", "/gone")
    run("umoci", "insert", "--image", image, "--whiteout", "/gone")
    run("umoci", "config", "--image", image, "--config.cmd", "/bin/sh", "--config.env", "A=b", "--config.workingdir", "/bin")
    return image


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, layout: str) -> Iterator[DockerRegistry]:
    """A registry without a password, in which `app:oci` and `app:docker` are."""
    registry = DockerRegistry(tmp_path_factory.mktemp("registry"))
    try:
        registry.start()
        for form in ("oci", "v2s2"):
            tag = {"oci": "oci", "v2s2": "docker"}[form]
            target = f"docker://{registry.address}/app:{tag}"
            run("skopeo", "copy", "--dest-tls-verify=false", "--format", form, f"oci:{layout}", target)
        yield registry
    finally:
        registry.stop()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[ImageService]:
    service = ImageService(tmp_path / "images")
    await service.open()
    yield service
    await service.close()


Rule = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Proxy:
    """Passes requests on to a registry, unless a rule answers them. It notes every request."""

    upstream: str
    rules: list[Rule] = field(default_factory=list)
    seen: list[web.Request] = field(default_factory=list)
    address: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        for rule in self.rules:
            if (answer := await rule(request)) is not None:
                return answer
        return await self.forward(request)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        status, headers, data = await self.fetch(request)
        return web.Response(status=status, headers=headers, body=data)

    async def fetch(self, request: web.Request) -> tuple[int, dict[str, str], bytes]:
        """The registry's own answer."""
        sent = {name: value for name, value in request.headers.items() if name != "Authorization"}
        url, body = f"http://{self.upstream}{request.path_qs}", await request.content.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=sent, data=body, allow_redirects=False) as response,
        ):
            hop = ("Transfer-Encoding", "Connection", "Content-Length" if request.method != "HEAD" else "")
            headers = {name: value for name, value in response.headers.items() if name not in hop}
            return response.status, headers, await response.read()

    def asked(self, method: str, part: str) -> list[web.Request]:
        return [request for request in self.seen if request.method == method and part in request.path]


async def send(request: web.Request, data: bytes, held_from: int | None) -> web.StreamResponse:
    """Answers with some bytes. held_from: the first ones are sent, and the others never: it waits until the client leaves."""
    response = web.StreamResponse(headers={"Content-Length": str(len(data))})
    with suppress(ConnectionError):
        await response.prepare(request)
        await response.write(data[:held_from])
        while held_from is not None and request.transport and not request.transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return response


@asynccontextmanager
async def listening(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """HOST:PORT, where a server answers by `handle`."""
    runner = web.ServerRunner(web.Server(handle))  # type: ignore[arg-type]
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield "{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(upstream: str) -> AsyncIterator[Proxy]:
    """A proxy of a registry, on a port of its own."""
    proxy = Proxy(upstream)
    async with listening(proxy.handle) as proxy.address:
        yield proxy


@pytest.fixture
async def proxy(registry: DockerRegistry) -> AsyncIterator[Proxy]:
    async with serving(registry.address) as proxy:
        yield proxy


@dataclass
class TokenServer:
    """A token server (distribution's token specification) for a proxy: it hands out tokens, and the proxy wants them."""

    user: str = "someone"
    password: str = "secret"
    refresh: str = "refresh me"
    asked: list[dict[str, str]] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    life: float = 300
    """Of tokens, in seconds; told_life is what they say themselves."""
    told_life: int = 300
    made: dict[str, float] = field(default_factory=dict)
    refused_late: int = 0
    """How often a token came that was good once."""

    async def rule(self, request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return await self._token(request)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        found = re.fullmatch(r"/v2/(_catalog|.+(?=/(?:blobs|manifests|tags|referrers)/))?.*", request.path)
        repository = (found and found[1]) or ""
        wanted = {"POST": "push", "PATCH": "push", "PUT": "push", "DELETE": "delete"}.get(request.method, "pull")
        scope, needed = self.tokens.get(token), f"repository:{repository}:"
        if repository in ("", "_catalog"):
            wanted, needed = ("*", "registry:catalog:") if repository else ("", "")
        if scope is not None and scope.startswith(needed) and wanted in scope and self._is_good(token):
            return None
        self.refused_late += token in self.tokens
        realm = f'Bearer realm="http://{request.host}/token",service="test",scope="{needed}{wanted}"'
        return web.json_response({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}, status=401,
                                 headers={"WWW-Authenticate": realm})  # fmt: skip

    def _is_good(self, token: str) -> bool:
        return token not in self.revoked and time.monotonic() - self.made.get(token, time.monotonic()) < self.life

    async def _token(self, request: web.Request) -> web.StreamResponse:
        fields = dict(request.query) if request.method == "GET" else {k: str(v) for k, v in (await request.post()).items()}
        self.asked.append(fields)
        header = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        known = request.headers.get("Authorization") == header or fields.get("refresh_token") == self.refresh
        if not known or fields.get("service") != "test":
            return web.json_response({}, status=401)
        token = secrets.token_urlsafe(8)
        self.tokens[token], self.made[token] = fields.get("scope", ""), time.monotonic()
        return web.json_response({"access_token": token, "expires_in": self.told_life})


def openssl_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test",
        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate,
    )  # fmt: skip
    return certificate, key


def docker_config(folder: Path, registry: str, user: str, password: str) -> Path:
    """A file of credentials for skopeo."""
    path = folder / "auth.json"
    path.write_text(json.dumps({"auths": {registry: {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}}}))
    os.chmod(path, 0o600)
    return path


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may look a name up: a typing error in an image's name would be a packet to a public registry."""
    real = socket.getaddrinfo

    def local(host: str | None, *arguments: Any, **options: Any) -> Any:
        if host and not is_loopback(host if ":" not in host else f"[{host}]"):
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not this machine")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local)

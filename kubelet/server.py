"""The kubelet's HTTPS server on port 10250: logs, exec, attach, port-forward, pods, statistics, health.

Every request is authenticated and authorized (`access`). Paths are those that API servers use.
"""

import asyncio
import ssl
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from kubelet import certificates, stats
from kubelet.access import Access
from kubelet.config import Config
from kubelet.containerlogs import LogOptions, read
from kubelet.containers import all_containers
from kubelet.context import Context
from kubelet.node import Node
from kubelet.pods import Pods
from kubelet.runtime import ContainerState, RuntimeCallError, RuntimeUnavailable
from kubelet.status import container_statuses
from strata.protocols import cri_pb2 as cri
from strata.protocols.splice import splice
from strata.telemetry import logs

log = logs.get("kubelet.server")

ALIVE_SECONDS = 0.3
"""How often a follower of a log asks whether its container still runs."""


class Server:
    """config: address, port, CA of client certificates. pods: where requests find their pod."""

    def __init__(self, config: Config, context: Context, pods: Pods) -> None:
        self._config, self._context, self._pods = config, context, pods
        self._access = Access(context.client, config.node_name)
        self._certificate = config.root / "pki/kubelet-server.pem"
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens. Raises OSError where the port is taken."""
        if not self._certificate.exists():
            own = certificates.self_signed(self._config.node_name, self._config.node_ip)
            certificates.write_private(self._self_signed, own)
            self._tls.load_cert_chain(self._self_signed)
        else:
            self._tls.load_cert_chain(self._certificate)
        if self._config.client_ca and self._config.client_ca.exists():
            self._tls.load_verify_locations(cafile=str(self._config.client_ca))
            self._tls.verify_mode = ssl.CERT_OPTIONAL
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/healthz/{check}", self._healthz),
                web.get("/pods", self._list),
                web.get("/pods/", self._list),
                web.get("/stats/summary", self._summary),
                web.get("/containerLogs/{namespace}/{pod}/{container}", self._logs),
                web.post("/run/{namespace}/{pod}/{container}", self._run),
                web.post("/run/{namespace}/{pod}/{uid}/{container}", self._run),
            ]
        )
        for method in ("GET", "POST"):
            for kind, handler in (("exec", self._exec), ("attach", self._attach)):
                app.router.add_route(method, f"/{kind}/{{namespace}}/{{pod}}/{{container}}", handler)
                app.router.add_route(method, f"/{kind}/{{namespace}}/{{pod}}/{{uid}}/{{container}}", handler)
            app.router.add_route(method, "/portForward/{namespace}/{pod}", self._port_forward)
            app.router.add_route(method, "/portForward/{namespace}/{pod}/{uid}", self._port_forward)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._config.address, self._config.port, ssl_context=self._tls).start()

    async def close(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    @property
    def _self_signed(self) -> Path:
        return self._config.root / "pki/kubelet-self-signed.pem"

    async def keep_certificates(self, node: Node) -> None:
        """Has the node's certificates issued and renewed, until it is cancelled; only where the node joined by certificate."""
        client_certificate = self._config.root / "pki/kubelet-client.pem"
        if not client_certificate.exists():
            return
        await node.registered.wait()
        client, name = self._context.client, self._config.node_name

        def changed() -> None:
            self._tls.load_cert_chain(self._certificate)

        async with asyncio.TaskGroup() as group:
            group.create_task(
                certificates.keep(
                    self._certificate, client, name, certificates.SERVING_SIGNER, address=self._config.node_ip, changed=changed
                )
            )
            group.create_task(certificates.keep(client_certificate, client, name, certificates.CLIENT_SIGNER))

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        await self._access.check(request)
        try:
            answer: web.StreamResponse = await handler(request)
        except RuntimeUnavailable as error:
            raise web.HTTPServiceUnavailable(text=f"the container runtime does not answer: {error.message}\n") from error
        except RuntimeCallError as error:
            raise web.HTTPInternalServerError(text=f"{error.call}: {error.message}\n") from error
        return answer

    # --- plain requests

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _list(self, request: web.Request) -> web.Response:
        items = [{"apiVersion": "v1", "kind": "Pod", **self._current(pod)} for pod in self._pods.all()]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

    def _current(self, pod: dict[str, Any]) -> dict[str, Any]:
        status = self._context.statuses.latest(pod["metadata"]["uid"])
        return {**pod, "status": {**(pod.get("status") or {}), **status}} if status else pod

    async def _summary(self, request: web.Request) -> web.Response:
        return web.json_response(await stats.summary(self._context, self._pods.all()))

    # --- logs

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        pod, name = self._pod(request), request.match_info["container"]
        options = _log_options(request)
        previous = request.query.get("previous", "").lower() in ("true", "1")
        container = await self._log_container(pod, name, previous=previous)
        path = Path(container.status.log_path)

        alive, asked_at = True, 0.0

        async def running() -> bool:
            nonlocal alive, asked_at
            if alive and time.monotonic() - asked_at > ALIVE_SECONDS:
                alive, asked_at = await self._context.runtime.is_running(container.id), time.monotonic()
            return alive

        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        begun = False
        try:
            async for piece in read(path, options, running):
                if not begun:
                    begun = True
                    await response.prepare(request)
                await response.write(piece)
        except FileNotFoundError as error:
            raise web.HTTPInternalServerError(
                text=f"failed to open the log of container {name!r}: {path} does not exist\n"
            ) from error
        if not begun:
            await response.prepare(request)
        await response.write_eof()
        return response

    async def _log_container(self, pod: dict[str, Any], name: str, *, previous: bool) -> ContainerState:
        pod_name = pod["metadata"]["name"]
        if not any(c["name"] == name for c in all_containers(pod)):
            raise web.HTTPNotFound(text=f"container {name} is not valid for pod {pod_name}\n")
        state = await self._context.runtime.pod_state(pod["metadata"]["uid"])
        history = state.of(name)
        if previous:
            ended = [c for c in (history if history and not history[0].running else history[1:]) if c.exited]
            if history and not history[0].running and len(history) > 1 and self._restarted(pod, name):
                ended = [c for c in history if c.exited]
            if not ended:
                raise web.HTTPBadRequest(text=f'previous terminated container "{name}" in pod "{pod_name}" not found')
            return ended[0]
        if not history or history[0].status.state == cri.CONTAINER_CREATED:
            waiting = self._waiting_reason(pod, name)
            if waiting in ("ErrImagePull", "ImagePullBackOff"):
                raise web.HTTPBadRequest(
                    text=f'container "{name}" in pod "{pod_name}" is waiting to start: trying and failing to pull image'
                )
            raise web.HTTPBadRequest(text=f'container "{name}" in pod "{pod_name}" is waiting to start: {waiting}')
        return history[0]

    def _restarted(self, pod: dict[str, Any], name: str) -> bool:
        return bool(self._waiting_reason(pod, name))

    def _waiting_reason(self, pod: dict[str, Any], name: str) -> str:
        status = self._current(pod).get("status") or {}
        for container in container_statuses(status):
            if container["name"] == name:
                return str(((container.get("state") or {}).get("waiting") or {}).get("reason") or "")
        return "ContainerCreating"

    # --- streams

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        _need_upgrade(request)
        container = await self._running(request)
        streams = _streams(request)
        command = request.query.getall("command", [])
        if not command:
            raise web.HTTPBadRequest(text="exec: a command is required: give it as one or more `command` parameters\n")
        answer = await self._context.runtime.call("Exec", cri.ExecRequest(container_id=container.id, cmd=command, **streams))
        return await self._splice(request, answer.url)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        _need_upgrade(request)
        container = await self._running(request)
        streams = _streams(request)
        spec = next(c for c in all_containers(self._pod(request)) if c["name"] == container.name)
        streams["tty"] = bool(spec.get("tty"))
        streams["stderr"] = streams["stderr"] and not streams["tty"]
        answer = await self._context.runtime.call("Attach", cri.AttachRequest(container_id=container.id, **streams))
        return await self._splice(request, answer.url)

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        _need_upgrade(request)
        pod = self._pod(request)
        state = await self._context.runtime.pod_state(pod["metadata"]["uid"])
        if state.ready_sandbox is None:
            raise web.HTTPNotFound(text=f"pod {pod['metadata']['name']} has no running sandbox\n")
        try:
            ports = [
                int(p) for value in request.query.getall("ports", []) + request.query.getall("port", []) for p in value.split(",")
            ]
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"port-forward: ports must be numbers: {error}\n") from error
        answer = await self._context.runtime.call(
            "PortForward", cri.PortForwardRequest(pod_sandbox_id=state.ready_sandbox.id, port=ports)
        )
        return await self._splice(request, answer.url)

    async def _splice(self, request: web.Request, url: str) -> web.StreamResponse:
        try:
            return await splice(request, url)
        except (OSError, TimeoutError) as error:
            raise web.HTTPBadGateway(text=f"the runtime's streaming server does not answer: {error}\n") from error

    async def _run(self, request: web.Request) -> web.Response:
        container = await self._running(request)
        command = request.query.getall("cmd", [])
        words = command[0].split() if len(command) == 1 else command
        code, output = await self._context.runtime.exec_sync(container.id, words, 120)
        return web.Response(body=output, status=200 if code == 0 else 500)

    # --- what requests are about

    def _pod(self, request: web.Request) -> dict[str, Any]:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        pod = self._pods.find(namespace, name, request.match_info.get("uid", ""))
        if pod is None:
            raise web.HTTPNotFound(text=f'pod "{namespace}/{name}" not found\n')
        return pod

    async def _running(self, request: web.Request) -> ContainerState:
        pod, name = self._pod(request), request.match_info["container"]
        state = await self._context.runtime.pod_state(pod["metadata"]["uid"])
        container = state.latest(name)
        if container is None:
            raise web.HTTPNotFound(text=f'container not found ("{name}")\n')
        if not container.running:
            raise web.HTTPNotFound(text=f'container not running ("{name}")\n')
        return container


def _need_upgrade(request: web.Request) -> None:
    if "upgrade" not in request.headers.get("Connection", "").lower() or "Upgrade" not in request.headers:
        raise web.HTTPBadRequest(text="Upgrade request required: this path is spoken over WebSocket or SPDY\n")


def _streams(request: web.Request) -> dict[str, bool]:
    """Which streams a client wants; the API server's names and the older ones of kubelets."""

    def on(*names: str) -> bool:
        return any(request.query.get(name, "").lower() in ("1", "true") for name in names)

    streams = {"stdin": on("stdin", "input"), "stdout": on("stdout", "output"), "stderr": on("stderr", "error"), "tty": on("tty")}
    if streams["tty"]:
        streams["stderr"] = False
    if not (streams["stdin"] or streams["stdout"] or streams["stderr"]):
        raise web.HTTPBadRequest(text="you must specify at least 1 of stdin, stdout, stderr\n")
    return streams


def _log_options(request: web.Request) -> LogOptions:
    query = request.query

    def number(name: str) -> int | None:
        text = query.get(name)
        if text is None or text == "":
            return None
        if not text.isdigit():
            raise web.HTTPUnprocessableEntity(text=f"{name}: {text!r} must be a number that is not negative\n")
        return int(text)

    def on(name: str) -> bool:
        return query.get(name, "").lower() in ("true", "1")

    since: float | None = None
    if (seconds := number("sinceSeconds")) is not None:
        since = time.time() - seconds
    elif query.get("sinceTime"):
        try:
            since = datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00")).timestamp()
        except ValueError as error:
            raise web.HTTPUnprocessableEntity(text=f"sinceTime: {query['sinceTime']!r} must be an RFC 3339 time\n") from error
    stream = query.get("stream", "All").lower()
    return LogOptions(
        follow=on("follow"),
        timestamps=on("timestamps"),
        tail_lines=number("tailLines"),
        limit_bytes=number("limitBytes"),
        since=since,
        stream="" if stream == "all" else stream,
    )

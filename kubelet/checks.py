"""One look at a container: an exec, httpGet, tcpSocket or grpc action, as probes and life cycle hooks have it."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError, StreamTerminatedError

from kubelet.runtime import Runtime, RuntimeCallError, RuntimeUnavailable

USER_AGENT = "kube-probe/1.36"
BODY_LIMIT_BYTES = 10 * 1024
REDIRECT_LIMIT = 10


@dataclass(frozen=True)
class Result:
    """ok: None where the check itself could not be made. text: what was seen, for the event."""

    ok: bool | None
    text: str = ""


async def check(
    action: dict[str, Any], container: dict[str, Any], container_id: str, pod_ip: str, runtime: Runtime, seconds: float
) -> Result:
    """Does the action once, within its timeout. Never raises but for cancellation."""
    try:
        if action.get("exec"):
            return await _exec(action["exec"], container_id, runtime, seconds)
        if action.get("httpGet"):
            return await http_get(action["httpGet"], container, pod_ip, seconds)
        if action.get("tcpSocket"):
            return await _tcp(action["tcpSocket"], container, pod_ip, seconds)
        if action.get("grpc"):
            return await _grpc(action["grpc"], pod_ip, seconds)
    except PortError as error:
        return Result(None, str(error))
    return Result(None, "the probe has no action")


class PortError(ValueError):
    """A port's name is not among the container's ports."""


def port_number(port: int | str, container: dict[str, Any]) -> int:
    """A port by number or by the name it has in the container. Raises PortError."""
    if isinstance(port, int) or str(port).isdigit():
        return int(port)
    for known in container.get("ports") or []:
        if known.get("name") == port:
            return int(known["containerPort"])
    raise PortError(f"couldn't find port: {port!r} among the ports of container {container['name']}")


async def _exec(action: dict[str, Any], container_id: str, runtime: Runtime, seconds: float) -> Result:
    command = list(action.get("command") or [])
    try:
        code, output = await runtime.exec_sync(container_id, command, seconds)
    except RuntimeUnavailable as error:
        timed_out = "deadline" in error.message.lower() or "no answer" in error.message
        return Result(False if timed_out else None, f"command timed out after {seconds:g}s" if timed_out else error.message)
    except RuntimeCallError as error:
        if "timed out" in error.message or "deadline" in error.message.lower():
            return Result(False, f"command timed out: {' '.join(command)!r} timed out after {seconds:g}s")
        return Result(None, error.message)
    return Result(code == 0, output[:BODY_LIMIT_BYTES].decode(errors="replace").strip())


async def http_get(action: dict[str, Any], container: dict[str, Any], pod_ip: str, seconds: float) -> Result:
    """An HTTP GET; any answer from 200 to 399 is a success. Raises PortError."""
    host = action.get("host") or pod_ip
    host = f"[{host}]" if ":" in host else host
    path = action.get("path") or "/"
    path = path if path.startswith("/") else "/" + path
    url = f"{(action.get('scheme') or 'HTTP').lower()}://{host}:{port_number(action['port'], container)}{path}"
    headers = {"User-Agent": USER_AGENT, "Accept": "*/*"}
    headers |= {h["name"]: h.get("value", "") for h in action.get("httpHeaders") or []}
    # Certificates are not verified: a probe asks whether the server answers, not who it is.
    connector = aiohttp.TCPConnector(ssl=_unverified(), force_close=True)
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with asyncio.timeout(seconds), aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            return await _get(session, url, headers)
    except TimeoutError:
        return Result(False, f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)')
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Result(False, f'Get "{url}": {_words(error)}')


async def _get(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> Result:
    """Follows redirects on the same host; one to another host is an answer like any (it must not lead the kubelet away)."""
    for _ in range(REDIRECT_LIMIT):
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            location = answer.headers.get("Location")
            if answer.status in (301, 302, 303, 307, 308) and location:
                target = urljoin(url, location)
                if urlsplit(target).hostname != urlsplit(url).hostname:
                    return Result(True, "Probe terminated redirects, Response body: ")
                url = target
                continue
            body = (await answer.content.read(BODY_LIMIT_BYTES)).decode(errors="replace")
            if 200 <= answer.status < 400:
                return Result(True, body)
            return Result(False, f"HTTP probe failed with statuscode: {answer.status}")
    return Result(False, f"stopped after {REDIRECT_LIMIT} redirects")


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _tcp(action: dict[str, Any], container: dict[str, Any], pod_ip: str, seconds: float) -> Result:
    host, port = action.get("host") or pod_ip, port_number(action["port"], container)
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except TimeoutError:
        return Result(False, f"dial tcp {host}:{port}: i/o timeout")
    except OSError as error:
        return Result(False, f"dial tcp {host}:{port}: {_words(error)}")
    return Result(True)


def _words(error: BaseException) -> str:
    text = str(error)
    if "refused" in text.lower() or "Connect call failed" in text:
        return "connect: connection refused"
    return text or type(error).__name__


class _HealthRequest:
    """grpc.health.v1.HealthCheckRequest, of which there is one field: the service's name."""

    def __init__(self, service: str = "") -> None:
        self.service = service

    def SerializeToString(self) -> bytes:
        name = self.service.encode()
        return b"\x0a" + bytes([len(name)]) + name if name else b""


class _HealthResponse:
    """grpc.health.v1.HealthCheckResponse: field 1 is the status, 1 means SERVING."""

    def __init__(self, serving: bool = False) -> None:
        self.serving = serving

    @classmethod
    def FromString(cls, data: bytes) -> "_HealthResponse":
        return cls(data[:2] == b"\x08\x01")


async def _grpc(action: dict[str, Any], pod_ip: str, seconds: float) -> Result:
    channel = Channel(pod_ip, int(action["port"]))
    request: Any = _HealthRequest(action.get("service") or "")
    response: Any = _HealthResponse
    try:
        method = UnaryUnaryMethod(channel, "/grpc.health.v1.Health/Check", _HealthRequest, response)
        answer = await method(request, timeout=seconds)
    except GRPCError as error:
        return Result(False, f"error: health rpc failed: {error.message or error.status.name}")
    except (OSError, StreamTerminatedError, TimeoutError) as error:
        return Result(False, f"timeout: failed to connect service {pod_ip}:{action['port']}: {_words(error)}")
    finally:
        channel.close()
    return Result(True) if answer.serving else Result(False, "service unhealthy (responded with a status other than SERVING)")

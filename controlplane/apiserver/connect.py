"""The way through the API server to kubelets, pods and services: log, exec, attach, portforward, proxy.

Bytes are passed on as they are: what an upgraded connection carries (WebSocket, SPDY) is between the client and the runtime.
"""

import ipaddress
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import ClientConnectorCertificateError, ClientError, ClientSession, ClientTimeout, TCPConnector, web

from controlplane.apiserver.request import Reader, StatusError, UserInfo
from controlplane.apiserver.resources import Object
from strata.protocols.splice import splice

KUBELET_PORT = 10250
_HOP = ("connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host", "content-length")
_UNREACHABLE = (OSError, ClientError, TimeoutError)


class Dialer:
    """Finds where a node, a pod or a Service is, without asking anything but the stored objects."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def node(self, name: str) -> tuple[str, int]:
        """A kubelet's address and port. Raises StatusError."""
        node = self._reader.get("", "nodes", name)
        if node is None:
            raise StatusError(404, "NotFound", f'nodes "{name}" not found', {"name": name, "kind": "nodes"})
        status = node.get("status") or {}
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port") or KUBELET_PORT
        found = {address["type"]: address["address"] for address in reversed(status.get("addresses") or ())}
        for kind in ("InternalIP", "ExternalIP", "Hostname"):
            if kind in found:
                return found[kind], port
        raise StatusError(503, "ServiceUnavailable", f'node "{name}" has no address yet')

    def pod(self, pod: Object, port: str) -> tuple[str, int]:
        """A pod's address and one of its ports, by number or name; the first one when it is not given."""
        address = (pod.get("status") or {}).get("podIP")
        if not address:
            raise StatusError(503, "ServiceUnavailable", f'pod "{pod["metadata"]["name"]}" has no address yet')
        ports = [p for c in pod["spec"]["containers"] for p in c.get("ports") or ()]
        if port.isdigit():
            return address, int(port)
        for declared in ports:
            if not port or declared.get("name") == port:
                return address, declared["containerPort"]
        if not port:
            return address, 80
        raise StatusError(400, "BadRequest", f"no port {port!r} in pod {pod['metadata']['name']!r}")

    def service(self, namespace: str, name: str, port: str) -> tuple[str, int]:
        """A ready endpoint of a Service's port, by number or name."""
        service = self._reader.get("", "services", name, namespace)
        if service is None:
            raise StatusError(404, "NotFound", f'services "{name}" not found', {"name": name, "kind": "services"})
        ports = service["spec"].get("ports") or []
        chosen = next((p for p in ports if not port or port in (p.get("name"), str(p["port"]))), None)
        if chosen is None:
            raise StatusError(503, "ServiceUnavailable", f"no service port {port!r} found for service {name!r}")
        for endpoint_slice in self._reader.list("discovery.k8s.io", "endpointslices", namespace):
            if (endpoint_slice["metadata"].get("labels") or {}).get("kubernetes.io/service-name") != name:
                continue
            for listed in endpoint_slice.get("ports") or ():
                if (listed.get("name") or "") != (chosen.get("name") or ""):
                    continue
                for endpoint in endpoint_slice.get("endpoints") or ():
                    if (endpoint.get("conditions") or {}).get("ready", True):
                        return endpoint["addresses"][0], listed["port"]
        raise StatusError(503, "ServiceUnavailable", f'no endpoints available for service "{name}"')


class Connect:
    """Answers the streaming subresources. The owner calls `close`."""

    def __init__(self, reader: Reader, ca_file: Path, certificate_file: Path, key_file: Path) -> None:
        self._dialer = Dialer(reader)
        self._certificate = (certificate_file, key_file)
        self._kubelet_tls = ssl.create_default_context(cafile=str(ca_file))
        self.reload()
        # Pods and services are anybody's programs: they are shown no certificate of ours, and theirs is known to nobody.
        self._anybodys_tls = ssl.create_default_context()
        self._anybodys_tls.check_hostname, self._anybodys_tls.verify_mode = False, ssl.CERT_NONE
        self._session: ClientSession | None = None

    def reload(self) -> None:
        """Reads the client certificate again, for connections from now on."""
        self._kubelet_tls.load_cert_chain(*self._certificate)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def connect(
        self, request: web.BaseRequest, user: UserInfo, resource: str, subresource: str, namespace: str, name: str, path: str,
        obj: Object,
    ) -> web.StreamResponse:  # fmt: skip
        """Passes one request on. Raises StatusError."""
        match resource, subresource:
            case "pods", "log":
                return await self._log(request, namespace, name, obj)
            case "pods", "exec" | "attach":
                return await self._stream(request, obj, subresource, self._container(request, obj))
            case "pods", "portforward":
                return await self._stream(request, obj, "portForward", "")
            case "nodes", "proxy":
                _, node, _ = _split(name)
                host, port = self._dialer.node(node)
                url = f"https://{_host(host)}:{port}/{_rest(request, 6)}"
                return await self._proxy(request, url, tls=self._kubelet_tls, node=node)
            case "pods", "proxy":
                scheme, _, wanted = _split(name)
                return await self._proxy_to(request, scheme, self._dialer.pod(obj, wanted))
            case "services", "proxy":
                scheme, service, wanted = _split(name)
                return await self._proxy_to(request, scheme, self._dialer.service(namespace, service, wanted))
        raise StatusError(404, "NotFound", "the server could not find the requested resource")

    async def _proxy_to(self, request: web.BaseRequest, scheme: str, target: tuple[str, int]) -> web.StreamResponse:
        host, port = target
        address = ipaddress.ip_address(host)
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            # Whoever writes Endpoints would reach what listens on this machine for itself.
            raise StatusError(400, "BadRequest", f"address {host} is not one that may be proxied to")
        tls = self._anybodys_tls if scheme == "https" else None
        return await self._proxy(request, f"{scheme}://{_host(host)}:{port}/{_rest(request, 8)}", tls=tls)

    def _kubelet(self, pod: Object) -> str:
        node = pod["spec"].get("nodeName")
        if not node:
            raise StatusError(400, "BadRequest", f"pod {pod['metadata']['name']} does not have a host assigned")
        host, port = self._dialer.node(node)
        return f"https://{_host(host)}:{port}"

    def _container(self, request: web.BaseRequest, pod: Object) -> str:
        """The container that the request names, the only one, or the one that the pod's annotation prefers."""
        name = pod["metadata"]["name"]
        spec = pod["spec"]
        groups = ("containers", "initContainers", "ephemeralContainers")
        names = [c["name"] for group in groups for c in spec.get(group) or ()]
        if wanted := request.query.get("container"):
            if wanted not in names:
                raise StatusError(400, "BadRequest", f"container {wanted} is not valid for pod {name}")
            return wanted
        ordinary = [c["name"] for c in spec.get("containers") or ()]
        if len(ordinary) == 1:
            return str(ordinary[0])
        preferred = (pod["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container")
        if preferred in ordinary:
            return str(preferred)
        raise StatusError(
            400, "BadRequest", f"a container name must be specified for pod {name}, choose one of: [{' '.join(ordinary)}]"
        )

    async def _stream(self, request: web.BaseRequest, pod: Object, kind: str, container: str) -> web.StreamResponse:
        metadata = pod["metadata"]
        parameters = [(key, value) for key, value in request.query.items() if key != "container"]
        # The API names streams as options of PodExecOptions, the kubelet as those of its own URL.
        names = {"stdin": "input", "stdout": "output", "stderr": "error"} if kind != "portForward" else {}
        query = urlencode(
            [(names.get(key, key), _flag(value) if key in names or key == "tty" else value) for key, value in parameters]
        )
        parts = [kind, metadata["namespace"], metadata["name"], container]
        url = "/".join([self._kubelet(pod), *(quote(part) for part in parts if part)]) + (f"?{query}" if query else "")
        try:
            return await splice(request, url, tls=self._kubelet_tls)
        except _UNREACHABLE as error:
            raise _bad_gateway(pod["spec"]["nodeName"], error) from error

    async def _log(self, request: web.BaseRequest, namespace: str, name: str, pod: Object) -> web.StreamResponse:
        container = self._container(request, pod)
        if not pod["spec"].get("nodeName"):
            return web.Response(content_type="text/plain")  # not scheduled: it has logged nothing
        left_out = ("container", "insecureSkipTLSVerifyBackend")
        query = urlencode([(key, value) for key, value in request.query.items() if key not in left_out])
        url = f"{self._kubelet(pod)}/containerLogs/{quote(namespace)}/{quote(name)}/{quote(container)}"
        return await self._proxy(request, url, tls=self._kubelet_tls, query=query, node=pod["spec"]["nodeName"], log=True)

    async def _proxy(
        self, request: web.BaseRequest, url: str, *, tls: ssl.SSLContext | None, query: str | None = None, node: str = "",
        log: bool = False,
    ) -> web.StreamResponse:  # fmt: skip
        """One HTTP request, its body and its answer streamed as they come. log: a refusal is told as a Status."""
        query = request.query_string if query is None else query
        url = f"{url}?{query}" if query else url
        if "upgrade" in request.headers.get("Connection", "").lower():
            try:
                return await splice(request, url, tls=tls)
            except _UNREACHABLE as error:
                raise _bad_gateway(node, error) from error
        if self._session is None:
            self._session = ClientSession(
                connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None, sock_connect=10), auto_decompress=False
            )
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP and k.lower() != "authorization"}
        body = request.content if request.can_read_body else None
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body, ssl=tls or False, allow_redirects=False
            ) as answer:
                if log and answer.status >= 400:
                    return await _failure_of(answer)
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except _UNREACHABLE as error:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError from None
            raise _bad_gateway(node, error) from error


async def _failure_of(answer: Any) -> web.StreamResponse:
    """What a kubelet refused, as the Status that clients of the API read."""
    text = (await answer.text()).strip()
    reason = {400: "BadRequest", 403: "Forbidden", 404: "NotFound"}.get(answer.status, "InternalError")
    raise StatusError(answer.status, reason, text or f"the kubelet answered {answer.status}")


def _bad_gateway(node: str, error: BaseException) -> StatusError:
    where = f"kubelet of node {node}" if node else "the target"
    if isinstance(error, ssl.SSLCertVerificationError | ClientConnectorCertificateError):
        why = "it has no certificate of the cluster's CA for its address; a new kubelet gets one when its request is approved"
        return StatusError(502, "BadGateway", f"cannot trust {where}: {why} (kubectl get csr): {error}")
    return StatusError(502, "BadGateway", f"cannot reach {where}: {error or type(error).__name__}")


def _rest(request: web.BaseRequest, parts: int) -> str:
    """What follows in the path, as the client wrote it: quoted, and with the slash at its end."""
    return "/".join(request.rel_url.raw_path.split("/")[parts:])


def _split(name: str) -> tuple[str, str, str]:
    """`[https:]NAME[:PORT]` as (scheme, name, port)."""
    scheme = "http"
    if name.startswith(("http:", "https:")):
        scheme, _, name = name.partition(":")
    name, _, port = name.partition(":")
    return scheme, name, port


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _flag(value: str) -> str:
    return "1" if value.lower() in ("1", "true") else "0"

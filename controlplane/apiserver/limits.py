"""How many requests are worked on at a time: more are told to come back, so that those inside are answered in time.

https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/ (--max-requests-inflight)
"""

import time

import orjson
from aiohttp import web

from controlplane.apiserver.request import StatusError
from controlplane.apiserver.server import CONNECT, Handler
from strata.telemetry import logs

log = logs.get("apiserver.requests")

MAX_READING, MAX_WRITING = 400, 200
_RETRY_SECONDS = 1
_READING = ("GET", "HEAD")


class Limits:
    """Wraps the server's handler. Watches, logs and other streams are not counted: they wait more than they work."""

    def __init__(self, handler: Handler, *, reading: int = MAX_READING, writing: int = MAX_WRITING) -> None:
        self._handler, self._room = handler, {True: reading, False: writing}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if _is_long(request):
            return await self._logged(request)
        reading = request.method in _READING
        if not self._room[reading]:
            return _too_many()
        self._room[reading] -= 1
        try:
            return await self._logged(request)
        finally:
            self._room[reading] += 1

    async def _logged(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.monotonic()
        status = 499  # the client went away
        try:
            answer = await self._handler(request)
            status = answer.status
            return answer
        finally:
            milliseconds = round((time.monotonic() - started) * 1000, 1)
            log.debug("answered", method=request.method, path=request.path, status=status, milliseconds=milliseconds)


def _is_long(request: web.BaseRequest) -> bool:
    if request.query.get("watch") in ("true", "1"):
        return True
    parts = request.path.split("/")  # /api/v1/nodes/NAME/SUBRESOURCE, /api/v1/namespaces/NS/pods/NAME/SUBRESOURCE
    at = 7 if parts[3:4] == ["namespaces"] else 5
    return bool(parts[at:]) and parts[at] in CONNECT


def _too_many() -> web.Response:
    details = {"retryAfterSeconds": _RETRY_SECONDS}
    error = StatusError(429, "TooManyRequests", "too many requests at a time, please try again later", details)
    headers = {"Content-Type": "application/json", "Retry-After": str(_RETRY_SECONDS)}
    return web.Response(body=orjson.dumps(error.status()), status=429, headers=headers)

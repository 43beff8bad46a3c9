"""A client of the API server under test, which speaks plain HTTP and shows everything that came back."""

import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from controlplane.apiserver.server import ApiServer

Json = dict[str, Any]


@dataclass
class Answer:
    """An HTTP answer: its code, its JSON (None where it is none), headers and bytes."""

    code: int
    body: Any
    headers: Any
    raw: bytes

    @property
    def message(self) -> str:
        return str(self.body["message"])

    @property
    def reason(self) -> str:
        return str(self.body["reason"])

    @property
    def warnings(self) -> list[str]:
        return list(self.headers.getall("Warning", []))


class Api:
    """Requests to the server under test."""

    def __init__(self, session: aiohttp.ClientSession, server: ApiServer) -> None:
        self.session, self.server = session, server

    async def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, **query: Any
    ) -> Answer:
        sent = {"Content-Type": "application/json", **(headers or {})} if body is not None else headers or {}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        params = {key: str(value) for key, value in query.items()}
        async with self.session.request(method, path, data=data, headers=sent, params=params) as response:
            raw = await response.read()
            try:
                parsed = json.loads(raw)
            except ValueError:
                parsed = None
            return Answer(response.status, parsed, response.headers, raw)

    async def get(self, path: str, **query: Any) -> Answer:
        return await self.request("GET", path, **query)

    async def create(self, path: str, obj: Json, **query: Any) -> Json:
        """Creates the object, which must succeed."""
        answer = await self.request("POST", path, obj, **query)
        assert answer.code == 201, answer.body
        return dict(answer.body)

    async def patch(self, path: str, body: Any, kind: str = "strategic-merge-patch+json", **query: Any) -> Answer:
        return await self.request("PATCH", path, body, headers={"Content-Type": f"application/{kind}"}, **query)

"""Authentication at a registry: the answer to its WWW-Authenticate challenge (distribution's docs on tokens, RFC 7235)."""

import json
import re
import ssl
import time
from base64 import b64encode
from dataclasses import dataclass

import aiohttp

from highrt.images.errors import RegistryUnauthorized, RegistryUnavailable
from highrt.images.locks import KeyedLocks
from highrt.images.model import Auth

_CLIENT_ID = "highrt"
_LARGEST_ANSWER = 1 << 20
_MINIMUM_LIFE_SECONDS = 60
"""What a token that does not say is worth (the token specification's own default)."""
_PARAMETER = re.compile(r'([a-zA-Z_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_CHALLENGE = re.compile(r"(?:^|,)\s*(basic|bearer)(?:\s|$|,)", re.IGNORECASE)


@dataclass(frozen=True)
class Challenge:
    """scheme: basic or bearer."""

    scheme: str
    parameters: dict[str, str]


def challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header that are understood here."""
    starts = list(_CHALLENGE.finditer(header))
    ends = [*(match.start() for match in starts[1:]), len(header)][: len(starts)]
    found = []
    for match, end in zip(starts, ends, strict=True):
        parameters = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(header[match.end() : end])}
        found.append(Challenge(match[1].lower(), parameters))
    return found


class Tokens:
    """Bearer tokens by where they came from, what they allow and who asked, for as long as they are good."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, str, str, Auth], tuple[str, float]] = {}
        self._locks = KeyedLocks()

    async def authorization(
        self, session: aiohttp.ClientSession, header: str, auth: Auth, scope: str, tls: ssl.SSLContext, *, fresh: bool
    ) -> str:
        """The Authorization header's value that answers a challenge.

        auth: empty for an anonymous pull. fresh: an earlier token was refused. Raises RegistryUnauthorized where no
        challenge can be answered with these credentials.
        """
        offered = {challenge.scheme: challenge for challenge in challenges(header)}
        if auth.registry_token and "bearer" in offered:
            return f"Bearer {auth.registry_token}"
        if bearer := offered.get("bearer"):
            return f"Bearer {await self._token(session, bearer, auth, scope, tls, fresh)}"
        if "basic" in offered:
            if not auth.username:
                raise RegistryUnauthorized("the registry wants a user name and a password, and none were given")
            return basic(auth)
        raise RegistryUnauthorized(f"the registry asks for an authentication that highrt does not know: {header!r}")

    async def _token(
        self, session: aiohttp.ClientSession, challenge: Challenge, auth: Auth, scope: str, tls: ssl.SSLContext, fresh: bool
    ) -> str:
        realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        if not realm.startswith(("https://", "http://")):
            raise RegistryUnauthorized(f"the registry names no usable token server: realm {realm!r}")
        scope = scope or challenge.parameters.get("scope", "")
        key = (realm, service, scope, auth)
        async with self._locks.hold(f"{realm} {service} {scope}"):
            if not fresh and key in self._tokens and self._tokens[key][1] > time.monotonic():
                return self._tokens[key][0]
            self._tokens[key] = await _fetch(session, realm, service, scope, auth, tls)
            return self._tokens[key][0]


async def _fetch(
    session: aiohttp.ClientSession, realm: str, service: str, scope: str, auth: Auth, tls: ssl.SSLContext
) -> tuple[str, float]:
    """A new token, and until when it is good (on the monotonic clock)."""
    fields = {"service": service, "scope": scope}
    try:
        if auth.identity_token:
            fields |= {"grant_type": "refresh_token", "refresh_token": auth.identity_token, "client_id": _CLIENT_ID}
            request = session.post(realm, data=fields, ssl=tls, allow_redirects=False)
        else:
            query = {name: value for name, value in fields.items() if value}
            headers = {"Authorization": basic(auth)} if auth.username else {}
            request = session.get(realm, params=query, headers=headers, ssl=tls, allow_redirects=False)
        async with request as response:
            if response.status in (400, 401, 403):
                raise RegistryUnauthorized(f"the token server {realm} refused: {response.status} {response.reason}")
            if response.status != 200:
                raise RegistryUnavailable(f"the token server {realm} answered {response.status} {response.reason}")
            answer = json.loads(await _read(response, realm))
    except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
        raise RegistryUnavailable(f"no token from {realm}: {error}") from None
    token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(token, str):
        raise RegistryUnavailable(f"the token server {realm} sent no token")
    life = answer.get("expires_in")
    seconds = life if isinstance(life, int | float) and life > 0 else _MINIMUM_LIFE_SECONDS
    return token, time.monotonic() + 0.9 * seconds


async def _read(response: aiohttp.ClientResponse, realm: str) -> bytes:
    data = b""
    while part := await response.content.read(_LARGEST_ANSWER):
        data += part
        if len(data) > _LARGEST_ANSWER:
            raise RegistryUnavailable(f"the token server {realm} sends more than {_LARGEST_ANSWER} bytes")
    return data


def basic(auth: Auth) -> str:
    """RFC 7617."""
    return "Basic " + b64encode(f"{auth.username}:{auth.password}".encode()).decode()

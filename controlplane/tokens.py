"""Bootstrap tokens: what a new node shows once, to ask for a certificate (KEP-130).

https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/
"""

import asyncio
import base64
import datetime
import secrets
import string
from dataclasses import dataclass

from strata.kubeclient import resources
from strata.kubeclient.client import Client

_LETTERS = string.ascii_lowercase + string.digits
_SIGNING_SECONDS = 15.0
_NAMESPACE, _TYPE = "kube-system", "bootstrap.kubernetes.io/token"


@dataclass(frozen=True)
class Token:
    id: str
    secret: str
    expires: datetime.datetime | None
    description: str

    @property
    def text(self) -> str:
        return f"{self.id}.{self.secret}"


async def create(client: Client, *, ttl_seconds: float, description: str = "") -> Token:
    """Makes a token, good for a while (0: for ever), and waits until cluster-info is signed for it.

    Without the signature, which the controllers make, no node can join. Raises TimeoutError where there is none yet.
    """
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ttl_seconds) if ttl_seconds else None
    token = Token(_random(6), _random(16), expires, description)
    data = {
        "token-id": token.id,
        "token-secret": token.secret,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
        "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        **({"expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ")} if expires else {}),
        **({"description": description} if description else {}),
    }
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    secret = {"metadata": {"name": f"bootstrap-token-{token.id}", "namespace": _NAMESPACE}, "type": _TYPE, "data": encoded}
    await client.create(resources.SECRETS, secret, _NAMESPACE)
    async with asyncio.timeout(_SIGNING_SECONDS):
        while not await _is_signed(client, token):  # noqa: ASYNC110 (another process signs)
            await asyncio.sleep(0.05)
    return token


async def _is_signed(client: Client, token: Token) -> bool:
    info = await client.get(resources.CONFIGMAPS, "cluster-info", "kube-public")
    return f"jws-kubeconfig-{token.id}" in (info.get("data") or {})


async def listed(client: Client) -> list[Token]:
    """All tokens."""
    found = await client.list(resources.SECRETS, _NAMESPACE, field_selector=f"type={_TYPE}")
    tokens = []
    for item in found["items"]:
        data = {key: base64.b64decode(value).decode() for key, value in (item.get("data") or {}).items()}
        expires = datetime.datetime.fromisoformat(data["expiration"]) if data.get("expiration") else None
        tokens.append(Token(data.get("token-id", ""), data.get("token-secret", ""), expires, data.get("description", "")))
    return tokens


async def delete(client: Client, token_id: str) -> None:
    """Takes a token back, by its ID or its whole text. Raises ApiError where there is none."""
    await client.delete(resources.SECRETS, f"bootstrap-token-{token_id.partition('.')[0]}", _NAMESPACE)


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))

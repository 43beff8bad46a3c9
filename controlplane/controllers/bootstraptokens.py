"""Bootstrap tokens: expired ones go, and cluster-info carries a signature by each that may sign.

A machine that is to join knows a token and nothing else. It reads kube-public/cluster-info, which everybody may, and trusts
it if it is signed with its token: a JWS (RFC 7515, HS256, detached content) over the kubeconfig in it, whose key is the
token's secret.
https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/
"""

import base64
import hashlib
import hmac
import time
from typing import Any

import orjson

from controlplane.controllers.frame import Context, Controller
from strata.kubeclient import times
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import CONFIGMAPS, SECRETS

Object = dict[str, Any]
_TYPE, _TOKENS_NAMESPACE = "bootstrap.kubernetes.io/token", "kube-system"
_INFO, _INFO_NAMESPACE = "cluster-info", "kube-public"
_KUBECONFIG, _SIGNATURE = "kubeconfig", "jws-kubeconfig-"


def field(secret: Object, name: str) -> str:
    """A field of a token's Secret; "" where it is not there or no text."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(name, "")).decode()
    except ValueError:
        return ""


def expires_in(secret: Object) -> float | None:
    """Seconds until the token expires; None where it never does. An expiration that cannot be read has passed."""
    text = field(secret, "expiration")
    if not text:
        return None
    try:
        return times.seconds(text) - time.time()
    except ValueError:
        return 0.0


def signature(content: str, token_id: str, secret: str) -> str:
    """The detached JWS of the content, with the token's secret as the key."""
    header = _encoded(orjson.dumps({"alg": "HS256", "kid": token_id}))
    digest = hmac.digest(secret.encode(), f"{header}.{_encoded(content.encode())}".encode(), hashlib.sha256)
    return f"{header}..{_encoded(digest)}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenCleaner(Controller[str]):
    """Deletes bootstrap tokens as they expire."""

    name = "tokencleaner"
    workers = 1

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.tokens = context.informers.of(SECRETS, _TOKENS_NAMESPACE, f"type={_TYPE}")
        self.on_change(self.tokens, lambda secret: self.queue.add(secret["metadata"]["name"]), deletions=False)

    async def sync(self, key: str) -> None:
        secret = self.tokens.get(key, _TOKENS_NAMESPACE)
        left = expires_in(secret) if secret else None
        if secret is None or left is None:
            return
        if left > 0:
            self.queue.add_after(key, left + 0.1)
            return
        try:
            await self.client.delete(SECRETS, key, _TOKENS_NAMESPACE, uid=secret["metadata"]["uid"])
        except ApiError as error:
            if not error.is_not_found:
                raise
        self.log.info("bootstrap token expired", token=field(secret, "token-id"))


class BootstrapSigner(Controller[str]):
    """Keeps cluster-info's signatures. It has one key only."""

    name = "bootstrapsigner"
    workers = 1

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.tokens = context.informers.of(SECRETS, _TOKENS_NAMESPACE, f"type={_TYPE}")
        self.infos = context.informers.of(CONFIGMAPS, _INFO_NAMESPACE, f"metadata.name={_INFO}")
        self.on_change(self.tokens, lambda _: self.queue.add(_INFO))
        self.on_change(self.infos, lambda _: self.queue.add(_INFO))

    async def sync(self, key: str) -> None:
        info = self.infos.get(_INFO, _INFO_NAMESPACE)
        if info is None:
            return
        data = info.get("data") or {}
        if not data.get(_KUBECONFIG):
            self.log.warning("cluster-info has no kubeconfig: nobody can join by token", configmap=f"{_INFO_NAMESPACE}/{_INFO}")
            return
        kept = {name: value for name, value in data.items() if not name.startswith(_SIGNATURE)}
        signed = {f"{_SIGNATURE}{token}": signature(data[_KUBECONFIG], token, secret) for token, secret in self._signing()}
        if data != {**kept, **signed}:
            await self.client.update(CONFIGMAPS, {**info, "data": {**kept, **signed}})

    def _signing(self) -> list[tuple[str, str]]:
        """(ID, secret) of the tokens that may sign."""
        found = []
        for secret in self.tokens:
            token_id, token_secret = field(secret, "token-id"), field(secret, "token-secret")
            left = expires_in(secret)
            may_sign = field(secret, "usage-bootstrap-signing") == "true" and (left is None or left > 0)
            if may_sign and token_id and token_secret and secret["metadata"]["name"] == f"bootstrap-token-{token_id}":
                found.append((token_id, token_secret))
        return sorted(found)

"""Service account tokens of pods (TokenRequest), kept until four fifths of their life are over."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from strata.kubeclient.client import Client

RENEW_AT = 0.8
LONGEST_SECONDS = 24 * 3600


@dataclass
class _Token:
    text: str
    renew_at: float


class Tokens:
    """Tokens by pod, audience and life time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._kept: dict[tuple[str, str, int], _Token] = {}

    async def get(self, pod: dict[str, Any], audience: str, expiration_seconds: int) -> str:
        """A token of the pod's service account, bound to the pod. Raises ApiError."""
        meta = pod["metadata"]
        key = (meta["uid"], audience, expiration_seconds)
        kept = self._kept.get(key)
        if kept is None or time.time() >= kept.renew_at:
            kept = self._kept[key] = await self._request(pod, audience, expiration_seconds)
        return kept.text

    def forget(self, uid: str) -> None:
        for key in [k for k in self._kept if k[0] == uid]:
            del self._kept[key]

    async def _request(self, pod: dict[str, Any], audience: str, expiration_seconds: int) -> _Token:
        meta = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        spec: dict[str, Any] = {
            "expirationSeconds": expiration_seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        }
        if audience:
            spec["audiences"] = [audience]
        answer = await self._client.request(
            "POST",
            f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token",
            body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        status = answer["status"]
        expires = datetime.fromisoformat(status["expirationTimestamp"].replace("Z", "+00:00")).timestamp()
        # A long-lived token is renewed once a day all the same.
        life = min((expires - time.time()) * RENEW_AT, LONGEST_SECONDS)
        return _Token(status["token"], time.time() + life)

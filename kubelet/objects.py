"""ConfigMaps and Secrets that pods refer to: fetched when asked for, kept for a short while.

A pod that starts wants them fresh, and its volumes are written anew about once a minute: a short memory saves the
requests of the many containers and volumes of one pod, and a change is seen within a minute.
"""

import asyncio
import time
from typing import Any

from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError

KEPT_SECONDS = 5.0


class NotThere(Exception):
    """The object does not exist. Its text is what Kubernetes users know from events."""


class Objects:
    """Gets ConfigMaps and Secrets by namespace and name."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._kept: dict[tuple[str, str, str], tuple[float, dict[str, Any] | None]] = {}
        self._locks: dict[tuple[str, str, str], asyncio.Lock] = {}

    async def config_map(self, namespace: str, name: str) -> dict[str, Any]:
        """Raises NotThere, ApiError."""
        return await self._get("configmap", resources.CONFIGMAPS, namespace, name)

    async def secret(self, namespace: str, name: str) -> dict[str, Any]:
        """Raises NotThere, ApiError."""
        return await self._get("secret", resources.SECRETS, namespace, name)

    async def _get(self, kind: str, resource: Any, namespace: str, name: str) -> dict[str, Any]:
        key = (kind, namespace, name)
        async with self._locks.setdefault(key, asyncio.Lock()):
            kept = self._kept.get(key)
            if kept is None or time.monotonic() - kept[0] > KEPT_SECONDS:
                try:
                    found: dict[str, Any] | None = await self._client.get(resource, name, namespace)
                except ApiError as error:
                    if not error.is_not_found:
                        raise
                    found = None
                kept = (time.monotonic(), found)
                # What does not exist is asked for again each time: the pod waits for it.
                if found is not None:
                    self._kept[key] = kept
        self._forget_old()
        if kept[1] is None:
            raise NotThere(f'{kind} "{name}" not found')
        return kept[1]

    def _forget_old(self) -> None:
        now = time.monotonic()
        for key in [k for k, (at, _) in self._kept.items() if now - at > KEPT_SECONDS]:
            del self._kept[key]
        for key in [k for k, lock in self._locks.items() if k not in self._kept and not lock.locked()]:
            del self._locks[key]

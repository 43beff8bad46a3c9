"""Writes pod statuses to the API: the newest of each pod, only when it differs, again and again until it is there."""

import asyncio
from typing import Any

from kubelet.status import CONDITIONS
from strata.kubeclient import resources
from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.telemetry import logs

log = logs.get("kubelet.status")

LONGEST_PAUSE_SECONDS = 5.0
_OWNED = (
    "phase",
    "reason",
    "message",
    "startTime",
    "hostIP",
    "podIP",
    "qosClass",
    "observedGeneration",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
)


class StatusWriter:
    """One writing task a pod, while there is something to write."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._wanted: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._written: dict[str, dict[str, Any]] = {}
        self._revisions: dict[str, int] = {}  # of our last write of each pod
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def latest(self, uid: str) -> dict[str, Any] | None:
        """The last status that was given, written or not."""
        wanted = self._wanted.get(uid)
        return wanted[1] if wanted else self._written.get(uid)

    def set(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        """Wants the pod's status to be this."""
        uid = pod["metadata"]["uid"]
        known = self._written.get(uid)
        if known is None:
            known = pod.get("status") or {}
        if uid not in self._wanted and not difference(known, status):
            return
        self._wanted[uid] = (pod, status)
        if uid not in self._tasks:
            self._tasks[uid] = asyncio.create_task(self._write(uid))

    def observe(self, pod: dict[str, Any]) -> None:
        """Looks at a pod as the API has it now: a status that somebody else has written over is written again.

        A controller does that (Ready is False while the node was silent), and the kubelet knows better.
        """
        uid = pod["metadata"]["uid"]
        status = self._written.get(uid)
        newer = int(pod["metadata"]["resourceVersion"]) > self._revisions.get(uid, 0)
        if status is None or uid in self._wanted or not newer:
            return
        known = pod.get("status") or {}
        if difference(known, status):
            self._written[uid] = known
            self.set(pod, status)

    async def synced(self, uid: str) -> None:
        """Waits until the last status given is written, or its pod is gone."""
        task = self._tasks.get(uid)
        if task:
            await asyncio.wait({task})

    def forget(self, uid: str) -> None:
        """Drops all of a pod that is gone from the API."""
        self._wanted.pop(uid, None)
        self._written.pop(uid, None)
        self._revisions.pop(uid, None)
        if task := self._tasks.pop(uid, None):
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, uid: str) -> None:
        pause = 0.1
        try:
            while wanted := self._wanted.get(uid):
                pod, status = wanted
                meta = pod["metadata"]
                known = self._written[uid] if uid in self._written else pod.get("status") or {}
                change = difference(known, status)
                try:
                    if change:
                        answer = await self._client.patch(
                            resources.PODS,
                            meta["name"],
                            {"metadata": {"uid": uid}, "status": change},
                            meta["namespace"],
                            kind="strategic",
                            subresource="status",
                        )
                        self._revisions[uid] = int(answer["metadata"]["resourceVersion"])
                except ApiError as error:
                    if error.is_not_found or error.is_conflict:  # gone, or another pod of that name
                        self._wanted.pop(uid, None)
                        return
                    log.warning("writing a pod's status failed, again soon", pod=uid, error=error.message)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                    continue
                pause = 0.1
                self._written[uid] = status
                if self._wanted.get(uid) is wanted:
                    del self._wanted[uid]
        finally:
            if self._tasks.get(uid) is asyncio.current_task():
                del self._tasks[uid]


def difference(known: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """A strategic merge patch that makes the known status the wanted one; empty where it is that already.

    Conditions merge by type, so those of others (readiness gates) stay. Addresses merge by IP: they are replaced as a whole.
    """
    change: dict[str, Any] = {}
    for key in _OWNED:
        if _plain(known.get(key)) != _plain(wanted.get(key)):
            change[key] = wanted.get(key)
    for key in ("podIPs", "hostIPs"):
        if (known.get(key) or []) != (wanted.get(key) or []):
            change[key] = [{"$patch": "replace"}, *(wanted.get(key) or [])]
    old = {c["type"]: c for c in known.get("conditions") or []}
    changed = [c for c in wanted.get("conditions") or [] if c["type"] in CONDITIONS and _plain(old.get(c["type"])) != _plain(c)]
    if changed:
        change["conditions"] = [{"reason": None, "message": None, **c} for c in changed]
    return change


def _plain(value: Any) -> Any:
    """The value without what means nothing: null, and the empty lastState that the API leaves as it is."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None and v != {}}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value

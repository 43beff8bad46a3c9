"""One of several works, the others wait: a Lease that its holder renews (coordination.k8s.io/v1).

Clocks are not compared across machines: a candidate takes over when it has itself seen the lease unchanged for the
lease's duration. The holder stops its work before that, when it could not renew for `renew_deadline` seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from strata.kubeclient.client import Client
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import LEASES
from strata.telemetry import logs

_log = logs.get("kubeclient.leader")


class LeaderElector:
    """A candidate for the lease NAMESPACE/NAME under an identity that no other has.

    Times are in seconds. Raises ValueError unless lease_duration > renew_deadline > retry_period > 0.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        identity: str,
        *,
        namespace: str = "kube-system",
        lease_duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry_period: float = 2.0,
    ) -> None:
        if not lease_duration > renew_deadline > retry_period > 0:
            raise ValueError("leader election: must be lease_duration > renew_deadline > retry_period > 0")
        self._client, self._name, self._identity, self._namespace = client, name, identity, namespace
        self._duration, self._deadline, self._retry = lease_duration, renew_deadline, retry_period
        self._seen: tuple[str, float] = ("", 0.0)
        self.is_leader = False

    async def run(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Waits to become the leader, then runs work; returns when work ends or the lease is lost (work is cancelled).

        The lease is given up at the end, so that another need not wait for it to run out.
        """
        while True:
            if await self._try():
                break
            await asyncio.sleep(self._retry)
        self.is_leader = True
        _log.info("became leader", lease=self._name, identity=self._identity)
        working = asyncio.ensure_future(work())
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.is_leader = False
            lost = renewing.done()
            for task in (working, renewing):
                task.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)
            if lost:
                _log.warning("lost the lease", lease=self._name, identity=self._identity)
            else:
                await self._release()
        if not working.cancelled():
            working.result()

    async def _renew(self) -> None:
        """Renews until it could not for the deadline."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while loop.time() - renewed < self._deadline:
            await asyncio.sleep(self._retry)
            try:
                async with asyncio.timeout(max(0.1, self._deadline - (loop.time() - renewed))):
                    if await self._try():
                        renewed = loop.time()
            except TimeoutError:
                continue

    async def _try(self) -> bool:
        """One attempt to take or renew the lease."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "renewTime": now,
        }
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
        except ApiError as error:
            if not error.is_not_found:
                _log.debug("lease not read", lease=self._name, error=error)
                return False
            first = {**mine, "acquireTime": now, "leaseTransitions": 0}
            metadata = {"name": self._name, "namespace": self._namespace}
            return await self._write(self._client.create(LEASES, {"metadata": metadata, "spec": first}))
        spec: dict[str, Any] = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        loop_time = asyncio.get_running_loop().time()
        if lease["metadata"]["resourceVersion"] != self._seen[0]:
            self._seen = (lease["metadata"]["resourceVersion"], loop_time)
        if holder and holder != self._identity and loop_time - self._seen[1] < float(spec.get("leaseDurationSeconds") or 0):
            return False
        if holder != self._identity:
            mine |= {"acquireTime": now, "leaseTransitions": (spec.get("leaseTransitions") or 0) + 1}
        return await self._write(self._client.update(LEASES, {**lease, "spec": {**spec, **mine}}))

    async def _write(self, writing: Awaitable[dict[str, Any]]) -> bool:
        try:
            await writing
        except ApiError as error:
            _log.debug("lease not taken", lease=self._name, error=error)
            return False
        return True

    async def _release(self) -> None:
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
            if lease["spec"].get("holderIdentity") == self._identity:
                spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.update(LEASES, {**lease, "spec": spec})
        except ApiError as error:
            _log.debug("lease not released", lease=self._name, error=error)

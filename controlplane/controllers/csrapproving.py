"""Approves the certificate requests of kubelets: those that join with a bootstrap token, and those that renew."""

from typing import Any

from controlplane.controllers import csrrules
from controlplane.controllers.frame import Context, Controller
from strata.kubeclient import times
from strata.kubeclient.errors import ApiError
from strata.kubeclient.resources import CSRS, NODES

Object = dict[str, Any]
_LIFETIMES = {"Approved": 3600.0, "Denied": 3600.0, "Failed": 3600.0, "": 86400.0}
"""Seconds that a request is kept, by what has become of it; an issued one as long as an approved one."""


def verdict(request: Object) -> str:
    """Approved, Denied, Failed, or "" where nobody has said anything yet."""
    types = {c["type"] for c in (request.get("status") or {}).get("conditions") or () if c.get("status", "True") == "True"}
    return next((type_ for type_ in ("Denied", "Failed", "Approved") if type_ in types), "")


class CsrApprovingController(Controller[str]):
    """Also deletes requests that are over."""

    name = "csrapproving"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.requests, self.nodes = self.informer(CSRS), self.informer(NODES)
        self.on_change(self.requests, lambda obj: self.queue.add(obj["metadata"]["name"]), deletions=False)
        self.nodes.add_handler(self._node, lambda _, new: self._node(new))

    def _node(self, node: Object) -> None:
        """A node has its addresses a moment after it has asked: its serving request is looked at again."""
        requester = f"system:node:{node['metadata']['name']}"
        for obj in self.requests:
            if not verdict(obj) and obj["spec"].get("username") == requester:
                self.queue.add(obj["metadata"]["name"])

    async def sync(self, key: str) -> None:
        obj = self.requests.get(key)
        if obj is None:
            return
        said = verdict(obj)
        left = times.seconds(obj["metadata"]["creationTimestamp"]) + _LIFETIMES[said] - times.seconds(times.now())
        if left <= 0:
            await self._delete(obj)
            return
        self.queue.add_after(key, left + 1)
        if said or obj["spec"]["signerName"] not in (csrrules.KUBELET_CLIENT, csrrules.KUBELET_SERVING):
            return
        try:
            request = csrrules.Request.of(obj)
        except csrrules.Refused:
            return
        if csrrules.may_approve_unasked(request, self.nodes.get(request.node)):
            await self._approve(obj, request)

    async def _approve(self, obj: Object, request: csrrules.Request) -> None:
        what = "client" if request.signer == csrrules.KUBELET_CLIENT else "serving"
        condition = {
            "type": "Approved",
            "status": "True",
            "reason": "AutoApproved",
            "message": f"Auto approving kubelet {what} certificate: the requester may have it.",
            "lastUpdateTime": times.now(),
            "lastTransitionTime": times.now(),
        }
        listed = [*((obj.get("status") or {}).get("conditions") or ()), condition]
        status = {**(obj.get("status") or {}), "conditions": listed}
        await self.client.update(CSRS, {**obj, "status": status}, subresource="approval")
        self.log.info("approved", request=obj["metadata"]["name"], signer=request.signer, node=request.node)

    async def _delete(self, obj: Object) -> None:
        try:
            await self.client.delete(CSRS, obj["metadata"]["name"], uid=obj["metadata"]["uid"])
        except ApiError as error:
            if not error.is_not_found:
                raise

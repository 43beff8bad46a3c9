"""Each node gets a range of addresses for its pods, cut from the cluster's (Node.spec.podCIDR)."""

import ipaddress

from controlplane.controllers.frame import Context, Controller
from strata.kubeclient.resources import NODES


class NodeIpamController(Controller[str]):
    """One worker only: what it hands out, it must not hand out twice. Raises ValueError for a cluster CIDR that is none."""

    name = "nodeipam"
    workers = 1

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.network = ipaddress.IPv4Network(self.settings.pod_cidr)
        self.mask = max(self.settings.node_mask, self.network.prefixlen)
        self.given: dict[str, ipaddress.IPv4Network] = {}
        self.events = context.recorder("cidrAllocator")
        self.nodes = self.informer(NODES)
        self.on_change(self.nodes, lambda node: self.queue.add(node["metadata"]["name"]))

    async def sync(self, key: str) -> None:
        node = self.nodes.get(key)
        if node is None:
            self.given.pop(key, None)
            return
        if node["spec"].get("podCIDR"):
            # What a node has, it has: also where it was given before the cluster's range was changed.
            self.given[key] = ipaddress.IPv4Network(node["spec"]["podCIDR"])
            return
        if key not in self.given:
            free = self._free()
            if free is None:
                self.events.event(node, "Normal", "CIDRNotAvailable", f"Node {key} status is now: CIDRNotAvailable")
                raise RuntimeError(f"no pod range is left for node {key} in {self.network}: use a larger --pod-cidr")
            self.given[key] = free
        cidr = str(self.given[key])
        change = {"metadata": {"uid": node["metadata"]["uid"]}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}
        await self.client.patch(NODES, key, change, kind="merge")
        self.log.info("node has its pod range", node=key, cidr=cidr)

    def _free(self) -> ipaddress.IPv4Network | None:
        used = list(self.given.values())
        used += [ipaddress.IPv4Network(n["spec"]["podCIDR"]) for n in self.nodes if n["spec"].get("podCIDR")]
        return next((net for net in self.network.subnets(new_prefix=self.mask) if not any(net.overlaps(u) for u in used)), None)

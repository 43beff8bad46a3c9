"""The loopback plugin: brings up lo in the pod's namespace."""

from nodenet.cni import netlink
from nodenet.cni.errors import CHECK_FAILED, CniError
from nodenet.cni.request import Request
from nodenet.cni.results import Result
from strata.linux import namespaces, rtnetlink


class Loopback:
    """The plugin as the spec calls it; it looks after `lo`, whatever CNI_IFNAME says."""

    def add(self, request: Request) -> Result:
        with netlink.namespace_of(request.netns) as namespace, netlink.inside(namespace):
            namespaces.loopback_up()
        if request.previous is not None:
            return request.previous
        return {
            "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": request.netns}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}],
        }

    def delete(self, request: Request) -> None:
        """Leaves lo up: it ends with its namespace."""

    def check(self, request: Request) -> None:
        with netlink.namespace_of(request.netns) as namespace, netlink.connect(namespace) as pod:
            lo = pod.link("lo")
            if lo is None or not lo.flags & rtnetlink.UP:
                raise CniError(CHECK_FAILED, "lo is not up in the container")

    def status(self, request: Request) -> None:
        """Needs nothing that could be missing."""

    def collect(self, request: Request) -> None:
        """Has nothing outside the pod's namespace."""

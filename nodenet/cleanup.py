"""Removes what nodenet and its CNI plugins made in this network namespace."""

import contextlib
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodenet import conflist, nft, routes
from nodenet.cni import masquerade, portmap
from nodenet.dns import server
from nodenet.proxy import proxy


def cleanup(cni_conf_dir: Path, bridge: str) -> None:
    """Rules, routes, the DNS address, the bridge and the CNI configuration; nothing happens where they are not.

    Raises NftError or OSError.
    """
    (cni_conf_dir / conflist.FILE).unlink(missing_ok=True)
    proxy.cleanup()
    routes.cleanup()
    server.set_addresses(set())
    nft.delete_table("ip", portmap.TABLE)
    for family in ("ip", "ip6"):
        nft.delete_table(family, masquerade.TABLE)
    with IPRoute() as ipr, contextlib.suppress(NetlinkError):
        ipr.link("del", ifname=bridge)

"""What leaves a bridge's subnets gets the node's address: one rule a node and family, with the subnets in a set.

A pod adds nothing: the rule is ensured when a bridge gets a subnet.
"""

import ipaddress
from collections.abc import Iterable

from nodenet import nft
from nodenet.cni.errors import INTERNAL, CniError
from nodenet.cni.ranges import Network

TABLE = "strata-cni"
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


def ensure(subnets: Iterable[Network]) -> None:
    """Adds the subnets to those that are masqueraded. Raises CniError."""
    script = "".join(_script(subnet) for subnet in subnets)
    try:
        nft.apply(script)
    except nft.NftError as error:
        raise CniError(INTERNAL, "failed to set up masquerading", str(error)) from error


def _script(subnet: Network) -> str:
    family, kind = ("ip", "ipv4_addr") if isinstance(subnet, ipaddress.IPv4Network) else ("ip6", "ipv6_addr")
    # Packets between two addresses of one subnet are bridged, not routed, unless bridge netfilter is on: then they pass here.
    return f"""
add table {family} {TABLE}
add set {family} {TABLE} subnets {{ type {kind}; flags interval; auto-merge; }}
add set {family} {TABLE} inside {{ type {kind} . {kind}; flags interval; }}
add element {family} {TABLE} subnets {{ {subnet} }}
add element {family} {TABLE} inside {{ {subnet} . {subnet} }}
add chain {family} {TABLE} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
flush chain {family} {TABLE} postrouting
add rule {family} {TABLE} postrouting {family} saddr . {family} daddr @inside return
add rule {family} {TABLE} postrouting {family} saddr @subnets {family} daddr != {_MULTICAST[subnet.version]} masquerade
"""

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


def ensure(subnets: Iterable[Network], *, exclusive: bool = False) -> None:
    """Adds the subnets to those that are masqueraded. exclusive: no other network has a part of them, and they can be forgotten.

    Raises CniError.
    """
    script = "".join(_script(subnet, "exclusive" if exclusive else "subnets") for subnet in subnets)
    try:
        nft.apply(script)
    except nft.NftError as error:
        raise CniError(INTERNAL, "failed to set up masquerading", str(error)) from error


def forget(subnets: Iterable[Network]) -> None:
    """Takes exclusive subnets out again. Raises CniError."""
    try:
        for subnet in subnets:
            table = f"{_family(subnet)[0]} {TABLE}"
            nft.delete_element(table, "exclusive", str(subnet))
            nft.delete_element(table, "inside", f"{subnet} . {subnet}")
    except nft.NftError as error:
        raise CniError(INTERNAL, "failed to end masquerading", str(error)) from error


def _family(subnet: Network) -> tuple[str, str]:
    """nft's names of the family, and of its addresses' type."""
    return ("ip", "ipv4_addr") if isinstance(subnet, ipaddress.IPv4Network) else ("ip6", "ipv6_addr")


def _script(subnet: Network, member_of: str) -> str:
    family, kind = _family(subnet)
    # What auto-merge has merged cannot be taken out again: so subnets that go are in a set of their own.
    # Packets between two addresses of one subnet are bridged, not routed, unless bridge netfilter is on: then they pass here.
    return f"""
add table {family} {TABLE}
add set {family} {TABLE} subnets {{ type {kind}; flags interval; auto-merge; }}
add set {family} {TABLE} exclusive {{ type {kind}; flags interval; }}
add set {family} {TABLE} inside {{ type {kind} . {kind}; flags interval; }}
add element {family} {TABLE} {member_of} {{ {subnet} }}
add element {family} {TABLE} inside {{ {subnet} . {subnet} }}
add chain {family} {TABLE} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
flush chain {family} {TABLE} postrouting
add rule {family} {TABLE} postrouting {family} saddr . {family} daddr @inside return
add rule {family} {TABLE} postrouting {family} saddr @subnets {family} daddr != {_MULTICAST[subnet.version]} masquerade
add rule {family} {TABLE} postrouting {family} saddr @exclusive {family} daddr != {_MULTICAST[subnet.version]} masquerade
"""

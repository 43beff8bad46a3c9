"""Bridges that belong to one network alone: nobody else's packets are routed into them, except to published ports.

One chain for all of them, in the table of the other rules of the plugins. Netfilter sees routed packets only: what two pods of
one bridge say to each other does not pass here.
"""

import re
from collections.abc import Iterable

from nodenet import nft
from nodenet.cni.errors import INTERNAL, INVALID_CONFIG, CniError
from nodenet.cni.masquerade import TABLE
from nodenet.cni.ranges import Network

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}")


def check_name(bridge: str) -> None:
    """Raises CniError for a name that must not go into a script."""
    if not _NAME.fullmatch(bridge):
        raise CniError(INVALID_CONFIG, f"bridge {bridge!r}: an exclusive bridge's name has letters, digits, '_', '.' and '-'")


def ensure(bridge: str, subnets: Iterable[Network], *, internal: bool = False) -> None:
    """Closes a bridge to others in the families of its subnets. internal: it has no way out, either. Raises CniError."""
    try:
        nft.apply("".join(_script(family, bridge, internal) for family in _families(subnets)))
    except nft.NftError as error:
        raise CniError(INTERNAL, "failed to keep the bridge apart from others", str(error)) from error


def forget(bridge: str, subnets: Iterable[Network]) -> None:
    """Takes away what `ensure` made for a bridge. Raises CniError."""
    try:
        for family in _families(subnets):
            for name in ("bridges", "internal"):
                nft.delete_element(f"{family} {TABLE}", name, f'"{bridge}"')
            nft.delete_element(f"{family} {TABLE}", "itself", f'"{bridge}" . "{bridge}"')
    except nft.NftError as error:
        raise CniError(INTERNAL, "failed to forget the bridge", str(error)) from error


def _families(subnets: Iterable[Network]) -> list[str]:
    return sorted({"ip" if subnet.version == 4 else "ip6" for subnet in subnets})


def _script(family: str, bridge: str, internal: bool) -> str:
    chain = f"{family} {TABLE} forward"
    closed = f'add element {family} {TABLE} internal {{ "{bridge}" }}' if internal else ""
    return f"""
add table {family} {TABLE}
add set {family} {TABLE} bridges {{ type ifname; }}
add set {family} {TABLE} internal {{ type ifname; }}
add set {family} {TABLE} itself {{ type ifname . ifname; }}
add element {family} {TABLE} bridges {{ "{bridge}" }}
add element {family} {TABLE} itself {{ "{bridge}" . "{bridge}" }}
{closed}
add chain {chain} {{ type filter hook forward priority filter; policy accept; }}
flush chain {chain}
add rule {chain} iifname . oifname @itself accept
add rule {chain} iifname @internal drop
add rule {chain} oifname @internal drop
add rule {chain} ct state established,related accept
add rule {chain} ct status dnat accept
add rule {chain} oifname @bridges drop
add rule {chain} iifname @bridges meta oifkind "bridge" drop
"""

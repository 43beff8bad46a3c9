"""One nftables table an address family: its fixed chains, and the script that leads from one state of it to the next."""

from collections.abc import Iterable, Mapping

from nodenet.network import ClusterNetwork
from nodenet.proxy.fragment import MARK, Fragment

TABLE = "strata-proxy"
_CHUNK = 500
"""Elements a command: a single line of tens of thousands makes nft slow."""


def family_name(family: int) -> str:
    return "ip" if family == 4 else "ip6"


def create(family: int, network: ClusterNetwork, fragment: Fragment) -> str:
    """The script that replaces the whole table, in one transaction, with the given rules."""
    ip = family_name(family)
    return f"add table {ip} {TABLE}\ndelete table {ip} {TABLE}\n{_frame(family, network)}{change(family, Fragment(), fragment)}"


def change(family: int, old: Fragment, new: Fragment) -> str:
    """The script that changes old rules into new ones; "" where they are the same.

    The order satisfies nft's references inside the transaction: what is pointed to comes first and goes last.
    """
    table = f"{family_name(family)} {TABLE}"
    lines = [f"add set {table} {name} {{ {text} }}" for name, text in new.sets.items() if name not in old.sets]
    changed = [name for name, rules in new.chains.items() if old.chains.get(name) != rules]
    gone = [name for name in old.chains if name not in new.chains]
    lines += [f"add chain {table} {name}" for name in changed if name not in old.chains]
    lines += [f"flush chain {table} {name}" for name in (*changed, *gone) if name in old.chains]
    for name in changed:
        lines += [f"add rule {table} {name} {rule}" for rule in new.chains[name]]
    for name in old.elements.keys() | new.elements.keys():
        before, after = old.elements.get(name, {}), new.elements.get(name, {})
        # An element's value cannot be changed in place.
        lines += _elements("delete", table, name, {k: "" for k, v in before.items() if after.get(k) != v})
        lines += _elements("add", table, name, {k: v for k, v in after.items() if before.get(k) != v})
    lines += [f"delete chain {table} {name}" for name in gone]
    lines += [f"delete set {table} {name}" for name in old.sets if name not in new.sets]
    return "".join(line + "\n" for line in lines)


def _elements(verb: str, table: str, name: str, elements: Mapping[str, str]) -> Iterable[str]:
    items = [f"{key} : {value}" if value else key for key, value in elements.items()]
    for start in range(0, len(items), _CHUNK):
        yield f"{verb} element {table} {name} {{ {', '.join(items[start : start + _CHUNK])} }}"


def _frame(family: int, network: ClusterNetwork) -> str:
    ip = family_name(family)
    kind = "ipv4_addr" if family == 4 else "ipv6_addr"
    not_loopback = "ip daddr != 127.0.0.0/8" if family == 4 else "ip6 daddr != ::1"
    pods = [str(item) for item in network.cluster if item.version == family]
    services = [str(item) for item in network.service if item.version == family]
    return f"""
table {ip} {TABLE} {{
  comment "Services of a Kubernetes cluster; made by nodenet"
  map service-ips {{ type {kind} . inet_proto . inet_service : verdict; }}
  map node-ports {{ type inet_proto . inet_service : verdict; }}
  map no-endpoints {{ type {kind} . inet_proto . inet_service : verdict; }}
  map no-endpoint-ports {{ type inet_proto . inet_service : verdict; }}
  set cluster-ips {{ type {kind}; }}
  set hairpin {{ type {kind} . {kind}; }}
  set cluster-cidrs {{ type {kind}; flags interval; {_initial(pods)} }}
  set service-cidrs {{ type {kind}; flags interval; {_initial(services)} }}

  chain services {{
    {ip} daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local {not_loopback} meta l4proto . th dport vmap @node-ports
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat
    meta mark and {MARK} == {MARK} meta mark set meta mark xor {MARK} ct status dnat masquerade fully-random
    ct status dnat {ip} saddr . {ip} daddr @hairpin masquerade fully-random
    ct status dnat {ip} saddr != @cluster-cidrs ct original {ip} daddr @cluster-ips masquerade fully-random
  }}

  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain no-endpoint {{
    {ip} daddr . meta l4proto . th dport vmap @no-endpoints
    fib daddr type local {not_loopback} meta l4proto . th dport vmap @no-endpoint-ports
  }}
  chain unknown-service {{
    fib daddr type local return
    {ip} daddr @service-cidrs goto refuse
    {ip} daddr @cluster-ips goto refuse
  }}
  chain filter-input {{ type filter hook input priority filter; ct state new jump no-endpoint; }}
  chain filter-forward {{ type filter hook forward priority filter; ct state new jump no-endpoint; jump unknown-service; }}
  chain filter-output {{ type filter hook output priority filter; ct state new jump no-endpoint; jump unknown-service; }}
}}
"""


def _initial(items: list[str]) -> str:
    return f"elements = {{ {', '.join(items)} }};" if items else ""

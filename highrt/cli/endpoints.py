"""`--network` and what belongs to it: the networks that a container is made with."""

from typing import Any

import click

from strata.protocols import highrt_pb2 as api

OPTIONS = (
    click.option("--network", "--net", multiple=True, metavar="NAME", help="A network that it joins, or host, or none."),
    click.option("--network-alias", "--net-alias", multiple=True, metavar="NAME", help="A further name on its first network."),
    click.option("--ip", default="", metavar="IPV4", help="Its address on its first network."),
    click.option("--ip6", default="", metavar="IPV6", help="Its IPv6 address on its first network."),
)


def endpoints(options: dict[str, Any]) -> list[api.Endpoint]:
    """What the options ask for; nothing where none of them is given. Raises click.BadParameter."""
    found = [endpoint(text) for text in options["network"]]
    if not found and (options["network_alias"] or options["ip"] or options["ip6"]):
        found = [api.Endpoint(network="bridge")]
    if found:
        found[0].aliases.extend(options["network_alias"])
        found[0].ip, found[0].ip6 = options["ip"] or found[0].ip, options["ip6"] or found[0].ip6
    return found


def endpoint(text: str) -> api.Endpoint:
    """`NAME`, or `name=NAME,alias=…,ip=…,ip6=…` as docker has it. Raises click.BadParameter."""
    if "=" not in text:
        return api.Endpoint(network=text)
    found = api.Endpoint()
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key == "name":
            found.network = value
        elif key == "alias":
            found.aliases.append(value)
        elif key == "ip":
            found.ip = value
        elif key == "ip6":
            found.ip6 = value
        else:
            raise click.BadParameter(f"--network {text}: {key!r} is not known; there are name, alias, ip and ip6")
    if not found.network:
        raise click.BadParameter(f"--network {text}: name=NAME is missing")
    return found

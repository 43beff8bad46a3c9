"""Results of ADD in the versions of the spec (section 5, "Success").

Inside, a result has the form of 1.1.0; older versions differ by the field `version` of each address (before 1.0.0).
"""

import ipaddress
from typing import Any

Result = dict[str, Any]


def render(result: Result, version: str) -> Result:
    """The result as `version` prints it."""
    rendered: Result = {"cniVersion": version}
    for key in ("interfaces", "ips", "routes"):
        if result.get(key):
            rendered[key] = [dict(item) for item in result[key]]
    if result.get("dns"):
        rendered["dns"] = result["dns"]
    before_1 = version.startswith("0.")
    for address in rendered.get("ips", ()):
        if before_1:
            address["version"] = str(ipaddress.ip_interface(address["address"]).version)
        else:
            address.pop("version", None)
    if version != "1.1.0":
        for interface in rendered.get("interfaces", ()):
            interface.pop("mtu", None)
    return rendered

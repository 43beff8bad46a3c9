"""The node's network configuration, made from a template when a kubelet tells the node's pod CIDRs (CRI, UpdateRuntimeConfig).

A template is a configuration list in which texts stand for what is not known yet: `{{.PodCIDR}}` for the first CIDR, and
`"{{.PodCIDRRanges}}"` and `"{{.Routes}}"`, as whole values, for host-local's `ranges` of all of them and its default routes.
"""

import json
import os
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from highrt.cni import configuration
from highrt.cni.errors import CniError

NAME = "10-highrt.conflist"
_DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}


def write(template: Path, folder: Path, cidrs: Sequence[str]) -> bool:
    """Writes the list into the configuration folder, whole or not at all. Returns whether that changed anything.

    cidrs: at least one. Raises CniError where the template is no configuration.
    """
    values = {
        "{{.PodCIDRRanges}}": [[{"subnet": cidr}] for cidr in cidrs],
        "{{.Routes}}": [{"dst": _DEFAULT_ROUTES[version]} for version in sorted({ip_network(cidr).version for cidr in cidrs})],
    }
    try:
        made = _filled(json.loads(template.read_text()), values, cidrs[0])
        configuration.parse(made)
    except (OSError, ValueError) as error:
        raise CniError(f"the template {template}: {error}") from None
    text = json.dumps(made, indent=2) + "\n"
    file = folder / NAME
    if file.exists() and file.read_text() == text:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{NAME}"
    with open(temporary, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(file)
    return True


def _filled(value: Any, values: dict[str, Any], first: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, values, first) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values, first) for each in value]
    if isinstance(value, str):
        return values[value] if value in values else value.replace("{{.PodCIDR}}", first)
    return value

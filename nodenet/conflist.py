"""The node's CNI configuration, from the ranges of addresses that the cluster gave to this node.

Its presence is what makes a container runtime report its network as ready.
"""

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodenet.routes import pod_cidrs
from strata.kubeclient import resources
from strata.kubeclient.informer import Informers
from strata.telemetry import logs

FILE = "10-strata.conflist"
DEFAULT_BRIDGE = "strata0"
_VERSION = "1.0.0"
_log = logs.get("nodenet.conflist")


def render(cidrs: list[str], bridge: str, data_dir: Path) -> dict[str, Any]:
    """The network configuration list: bridge with host-local, and portmap."""
    default = {4: "0.0.0.0/0", 6: "::/0"}
    return {
        "cniVersion": _VERSION,
        "name": "strata",
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge,
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(data_dir),
                    "ranges": [[{"subnet": cidr}] for cidr in cidrs],
                    "routes": [{"dst": default[6 if ":" in cidr else 4]} for cidr in cidrs],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def write(path: Path, config: dict[str, Any]) -> bool:
    """Writes the file atomically if it differs; returns whether it did. Raises OSError."""
    text = json.dumps(config, indent=2) + "\n"
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == text:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no runtime takes for a configuration.
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    os.replace(fresh, path)
    return True


@dataclass
class ConflistWriter:
    """Keeps the file as the Node's podCIDRs say; `run` until cancelled."""

    informers: Informers
    node: str
    folder: Path
    data_dir: Path
    bridge: str = DEFAULT_BRIDGE
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        nodes = self.informers.of(resources.NODES)
        nodes.add_handler(self._changed, lambda _, new: self._changed(new))
        await nodes.wait_synced()
        waiting = False
        while True:
            self._wake.clear()
            cidrs = pod_cidrs(nodes.get(self.node) or {})
            if cidrs:
                if write(self.folder / FILE, render(cidrs, self.bridge, self.data_dir)):
                    _log.info("wrote the CNI configuration", file=str(self.folder / FILE), subnets=",".join(cidrs))
            elif not waiting:
                waiting = True
                _log.info("waiting for the node's podCIDR", node=self.node)
            await self._wake.wait()

    def _changed(self, node: dict[str, Any]) -> None:
        if node["metadata"]["name"] == self.node:
            self._wake.set()

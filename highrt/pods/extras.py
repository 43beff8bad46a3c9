"""What a person may ask of a container, and CRI has no words for.

It is kept in the configurations as an annotation, which is believed of a person's only: a kubelet's users write annotations.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from highrt.pods.model import Owner

ANNOTATION = "strata.highrt/extras"
STOP_SECONDS = 10
INIT = Path(__file__).parent / "init"
"""The tiny init of `init.c`."""


@dataclass(frozen=True)
class NetworkChoice:
    """A network that a pod is attached to; the node's has the name "". addresses: those that are asked for. aliases: further
    names of its containers there."""

    name: str
    interface: str = "eth0"
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extras:
    """pids_limit: 0 is none. memory_reservation_bytes: which the kernel tries to leave it, 0 for none. log_bytes: how large a log
    file grows before it is moved away, 0 for without end; log_files: how many are kept. tmpfs: where → options. rlimits:
    RLIMIT_… → (soft, hard). hosts: name → address, of the pod. networks: the pod's, None for the node's. health: in place of the
    image's Healthcheck, in its form. shm_bytes: of the pod's /dev/shm, 0 for the default. stop_seconds, stop_signal: how a stop
    ends it. init: a tiny one runs the command, which passes signals on and reaps."""

    pids_limit: int = 0
    memory_reservation_bytes: int = 0
    log_bytes: int = 0
    log_files: int = 1
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    rlimits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    networks: Sequence[NetworkChoice] | None = None
    health: Mapping[str, Any] | None = None
    shm_bytes: int = 0
    stop_seconds: int = STOP_SECONDS
    stop_signal: str = ""
    init: bool = False

    def text(self) -> str:
        """The annotation's value."""
        return json.dumps(asdict(self))


def of(owner: Owner, annotations: Mapping[str, str]) -> Extras:
    """Those of a pod's or container's configuration."""
    text = annotations.get(ANNOTATION) if owner is Owner.PERSON else None
    if not text:
        return Extras()
    found = json.loads(text)
    networks = found.pop("networks", None)
    chosen = None if networks is None else [_choice(**item) for item in networks]
    return Extras(**found, networks=chosen)


def _choice(name: str, interface: str, aliases: Sequence[str], addresses: Sequence[str]) -> NetworkChoice:
    return NetworkChoice(name, interface, tuple(addresses), tuple(aliases))


def apply(built: dict[str, Any], extras: Extras) -> None:
    """Adds them to a container's config.json."""
    if extras.pids_limit > 0:
        built["linux"].setdefault("resources", {})["pids"] = {"limit": extras.pids_limit}
    if extras.memory_reservation_bytes > 0:
        memory = built["linux"].setdefault("resources", {}).setdefault("memory", {})
        memory["reservation"] = extras.memory_reservation_bytes
    for where, options in extras.tmpfs.items():
        asked = [option for option in options.split(",") if option]
        mount = {"destination": where, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec", *asked]}
        built["mounts"] = [other for other in built["mounts"] if other["destination"] != where] + [mount]
    if extras.rlimits:
        built["process"]["rlimits"] = [
            {"type": kind, "soft": soft, "hard": hard} for kind, (soft, hard) in extras.rlimits.items()
        ]
    if extras.init:
        built["mounts"].append({"destination": "/dev/init", "type": "bind", "source": str(INIT), "options": ["bind", "ro"]})
        built["process"]["args"] = ["/dev/init", *built["process"]["args"]]

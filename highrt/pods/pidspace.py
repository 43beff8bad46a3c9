"""A PID namespace that a pod's containers share: it needs a first process, a tiny static one that reaps (`init.c`).

It runs as a container of the pod's under the pod's own ID, without capabilities, in a read-only root that holds nothing else.
Runtimes that put a pod's containers into one sandbox want such a first container, too.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from highrt.pods import extras, spec, userns
from highrt.pods.errors import PodError
from highrt.pods.sandbox import Sandbox
from strata.linux import mounts, namespaces
from strata.protocols.cri_pb2 import NamespaceMode, PodSandboxConfig

_NOBODY = 65534


def shared(config: PodSandboxConfig) -> bool:
    """Whether the pod's containers may see each other's processes (CRI, NamespaceOption: POD)."""
    return config.linux.security_context.namespace_options.pid == NamespaceMode.POD


def make_bundle(box: Sandbox, state: Path, config: PodSandboxConfig, cgroup: str) -> Path:
    """The bundle of the first process. Raises PodError where the executable was not built, OSError."""
    if not extras.INIT.exists():
        raise PodError(f"{extras.INIT} is missing, which pods with a shared PID namespace or a sandbox need: run scripts/setup")
    root = state / "init-root"
    for name in ("proc", "dev"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if not (root / "init").exists():
        shutil.copy2(extras.INIT, root / ".init")
        (root / ".init").rename(root / "init")
    bundle = box.folder / "init"
    bundle.mkdir(mode=0o700, exist_ok=True)  # it is there where the pod is made anew
    mapping = userns.of_pod(config)
    shared_kinds = [{"type": kind, "path": path} for kind, path in box.namespaces(config).items()]
    built: dict[str, Any] = {
        "ociVersion": spec.SPEC_VERSION,
        "process": {
            "user": {"uid": _NOBODY, "gid": _NOBODY}, "args": ["/init"], "env": [], "cwd": "/", "capabilities": {},
            "noNewPrivileges": True, "oomScoreAdj": spec.oom_score_adj(-998),
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev", "ro"]},
            # or the runtime would make its devices in the root, which all pods share
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "mode=755", "size=64k"]},
        ],
        "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, *shared_kinds],
            **(mapping.oci() if mapping else {}),
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }  # fmt: skip
    (bundle / "config.json").write_text(json.dumps(built))
    return bundle


def pin(box: Sandbox, pid: int) -> None:
    """Keeps the namespace of the first process at a path."""
    target = Path(box.namespace("pid"))
    target.touch(mode=0o444)
    mounts.mount(namespaces.path_of(pid, "pid"), str(target), "", mounts.BIND)

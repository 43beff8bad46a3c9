"""What `verbose` adds to a status, as JSON: for people who look for the cause of something, by names that they know."""

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from highrt.pods.model import Container, ContainerState, Pod


def of_container(found: Container, pod: Pod, spec: dict[str, Any] | None) -> dict[str, str]:
    """spec: its config.json, None where that is gone (after a reboot)."""
    return _info(
        sandboxID=found.pod_id, pid=found.pid or 0, snapshotKey=found.id, snapshotter="overlayfs", runtimeHandler=pod.handler,
        cgroup=found.cgroup, config=_json(found.config), runtimeSpec=spec,
    )  # fmt: skip


def of_pod(found: Pod, members: list[Container], namespaces: dict[str, str], cni_result: Any) -> dict[str, str]:
    """namespaces: kind → path, of those that it has of its own. The PID is a container's: the pod itself has no process."""
    running = [each.pid for each in members if each.state is ContainerState.RUNNING]
    spec = {
        "linux": {
            "namespaces": [{"type": kind, "path": path} for kind, path in namespaces.items()],
            "cgroupsPath": found.config.linux.cgroup_parent,
        }
    }
    return _info(
        pid=running[0] if running else 0, netns=found.netns, netNamespaceClosed=not found.ready, runtimeHandler=found.handler,
        config=_json(found.config), runtimeSpec=spec, cniResult=cni_result,
    )  # fmt: skip


def of_image(chain_id: str, config: dict[str, Any]) -> dict[str, str]:
    """config: the image's own (image-spec, config.md)."""
    return _info(chainID=chain_id, imageSpec=config)


def _json(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _info(**values: Any) -> dict[str, str]:
    return {"info": json.dumps(values)}

"""/stats/summary: what the node and its pods use, as metrics collectors read it (kubelet's stats/v1alpha1)."""

import time
from typing import Any

from kubelet import machine
from kubelet.context import Context
from kubelet.runtime import CONTAINER_NAME, POD_UID
from kubelet.status import timestamp
from strata.protocols import cri_pb2 as cri


async def summary(context: Context, pods: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary. Raises RuntimeCallError."""
    answer = await context.runtime.call("ListContainerStats", cri.ListContainerStatsRequest())
    by_pod: dict[str, list[dict[str, Any]]] = {}
    for container in answer.stats:
        labels = container.attributes.labels
        by_pod.setdefault(labels.get(POD_UID, ""), []).append(_container(container, labels.get(CONTAINER_NAME, "")))
    memory, now = machine.memory(), timestamp(time.time())
    used = memory["MemTotal"] - memory["MemFree"]
    working = memory["MemTotal"] - memory["MemAvailable"]
    node = {
        "nodeName": context.node_name,
        "cpu": {"time": now, "usageCoreNanoSeconds": _cpu_nanoseconds()},
        "memory": {
            "time": now,
            "availableBytes": memory["MemAvailable"],
            "usageBytes": used,
            "workingSetBytes": working,
        },
    }
    return {"node": node, "pods": [_pod(pod, by_pod.get(pod["metadata"]["uid"], [])) for pod in pods]}


def _pod(pod: dict[str, Any], containers: list[dict[str, Any]]) -> dict[str, Any]:
    meta, now = pod["metadata"], timestamp(time.time())
    found: dict[str, Any] = {
        "podRef": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
        "startTime": (pod.get("status") or {}).get("startTime") or meta.get("creationTimestamp"),
        "containers": containers,
    }
    for kind, names in (
        ("cpu", ("usageNanoCores", "usageCoreNanoSeconds")),
        ("memory", ("usageBytes", "workingSetBytes", "rssBytes")),
    ):
        total = {name: sum(c.get(kind, {}).get(name, 0) for c in containers) for name in names}
        found[kind] = {"time": now, **total}
    return found


def _container(stats: Any, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "cpu": {
            "time": timestamp(stats.cpu.timestamp / 1e9),
            "usageNanoCores": stats.cpu.usage_nano_cores.value,
            "usageCoreNanoSeconds": stats.cpu.usage_core_nano_seconds.value,
        },
        "memory": {
            "time": timestamp(stats.memory.timestamp / 1e9),
            "usageBytes": stats.memory.usage_bytes.value,
            "workingSetBytes": stats.memory.working_set_bytes.value,
            "rssBytes": stats.memory.rss_bytes.value,
        },
        "rootfs": {
            "usedBytes": stats.writable_layer.used_bytes.value,
            "inodesUsed": stats.writable_layer.inodes_used.value,
        },
    }


def _cpu_nanoseconds() -> int:
    """What all CPUs together have worked since the boot (proc_stat(5): in hundredths of a second, idle and iowait left out)."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) * 10_000_000

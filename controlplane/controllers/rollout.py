"""The numbers of a rolling update: how many pods the new ReplicaSet and the old ones may have now.

https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#rolling-update-deployment
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """replicas: as many as are asked for; surge: how many more there may be; unavailable: how many of them may be missing."""

    replicas: int
    surge: int
    unavailable: int

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "Limits":
        """From a Deployment's spec. Percentages are of the replicas: surge rounded up, unavailable down."""
        replicas, strategy = spec.get("replicas", 1), spec.get("strategy") or {}
        if strategy.get("type") == "Recreate":
            return cls(replicas, 0, 0)
        rolling = strategy.get("rollingUpdate") or {}
        surge = scaled(rolling.get("maxSurge", "25%"), replicas, up=True)
        unavailable = min(scaled(rolling.get("maxUnavailable", "25%"), replicas, up=False), replicas)
        # With neither, nothing could ever move.
        return cls(replicas, surge, unavailable if surge or unavailable else min(1, replicas))

    @property
    def most(self) -> int:
        return self.replicas + self.surge if self.replicas else 0

    @property
    def least_available(self) -> int:
        return self.replicas - self.unavailable


def scaled(value: int | str, total: int, *, up: bool) -> int:
    """A number, or a percentage of the total."""
    if isinstance(value, str) and value.endswith("%"):
        part = int(value[:-1]) * total / 100
        return math.ceil(part) if up else math.floor(part)
    return int(value)


def wanted(replica_set: Object) -> int:
    return int(replica_set["spec"].get("replicas", 1))


def available(replica_set: Object) -> int:
    return int((replica_set.get("status") or {}).get("availableReplicas") or 0)


def new_size(limits: Limits, new: Object, olds: Sequence[Object]) -> int:
    """How many pods the new ReplicaSet may have now."""
    if wanted(new) >= limits.replicas:
        return limits.replicas
    total = wanted(new) + sum(wanted(old) for old in olds)
    return wanted(new) + max(0, min(limits.most - total, limits.replicas - wanted(new)))


def old_sizes(limits: Limits, new: Object, olds: Sequence[Object]) -> dict[str, int]:
    """How many pods each old ReplicaSet (by UID) keeps now. olds: the eldest first.

    First go those that are not available anyhow, then as many of the available ones as can be missed.
    """
    sizes = {old["metadata"]["uid"]: wanted(old) for old in olds}
    total = wanted(new) + sum(sizes.values())
    spare = total - limits.least_available - (wanted(new) - min(available(new), wanted(new)))
    if spare <= 0:
        return sizes
    for old in olds:
        uid = old["metadata"]["uid"]
        useless = min(spare, max(0, sizes[uid] - available(old)))
        sizes[uid] -= useless
        spare -= useless
    spare = min(spare, available(new) + sum(available(old) for old in olds) - limits.least_available)
    for old in olds:
        uid = old["metadata"]["uid"]
        gone = min(max(spare, 0), sizes[uid])
        sizes[uid] -= gone
        spare -= gone
    return sizes


def proportional_sizes(limits: Limits, sets: Sequence[Object], known_most: Mapping[str, int]) -> dict[str, int]:
    """The sizes after a change of the number of replicas in the middle of an update: each ReplicaSet grows or shrinks by its
    share. sets: the largest first. known_most: by UID, the most pods that were allowed as each was last sized."""
    sizes = {s["metadata"]["uid"]: wanted(s) for s in sets}
    total = sum(sizes.values())
    change = limits.most - total
    left = change
    for replica_set in sets:
        uid = replica_set["metadata"]["uid"]
        most = known_most.get(uid) or total or 1
        share = round(sizes[uid] * limits.most / most) - sizes[uid]
        share = min(share, left) if change > 0 else max(share, left)
        share = max(share, 0) if change > 0 else min(share, 0)
        sizes[uid] += share
        left -= share
    if sets and left:
        first = sets[0]["metadata"]["uid"]
        sizes[first] = max(0, sizes[first] + left)
    return sizes

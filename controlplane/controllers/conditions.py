"""Conditions in an object's status."""

from collections.abc import Iterable, Mapping
from typing import Any

from strata.kubeclient import times

Condition = dict[str, Any]


def find(obj: Mapping[str, Any], type: str) -> Condition | None:
    """The condition of a type in the object's status."""
    return next((c for c in (obj.get("status") or {}).get("conditions") or () if c["type"] == type), None)


def is_true(obj: Mapping[str, Any], type: str) -> bool:
    condition = find(obj, type)
    return condition is not None and condition["status"] == "True"


def with_condition(
    conditions: Iterable[Condition], type: str, status: str, reason: str, message: str, *, update_time: bool = False
) -> list[Condition]:
    """The conditions with this one set. lastTransitionTime moves only when the status changes.

    update_time: also keep lastUpdateTime (as apps/v1 has it), which moves when status or reason change.
    """
    kept, moment = list(conditions), times.now()
    old = next((c for c in kept if c["type"] == type), None)
    new: Condition = {"type": type, "status": status, "reason": reason, "message": message}
    same_status = old is not None and old["status"] == status
    new["lastTransitionTime"] = old["lastTransitionTime"] if old is not None and same_status else moment
    if update_time:
        same = old is not None and same_status and old.get("reason") == reason
        new["lastUpdateTime"] = old["lastUpdateTime"] if old is not None and same and "lastUpdateTime" in old else moment
    if old is None:
        return [*kept, new]
    return [new if c is old else c for c in kept]


def without(conditions: Iterable[Condition], type: str) -> list[Condition]:
    return [c for c in conditions if c["type"] != type]

"""Who owns which field: metadata.managedFields, and server-side apply with its conflicts.

Writes are tracked when they name a fieldManager, and all writes to an object whose fields have owners already; an object
that nobody has named himself for carries no managedFields, and its first apply finds its fields owned by
`before-first-apply`, as Kubernetes does for objects older than server-side apply.
https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.apiserver import errors
from controlplane.apiserver.fieldsets import FieldSet, Path, Typed, from_fields_v1, shown, to_fields_v1
from controlplane.apiserver.request import StatusError
from controlplane.apiserver.resources import Object

BEFORE_FIRST_APPLY = "before-first-apply"
_MAXIMUM_UPDATE_MANAGERS = 10
_ANCIENT = "ancient-changes"

_NOBODYS = {("f:apiVersion",), ("f:kind",), ("f:metadata",)} | {
    ("f:metadata", f"f:{name}")
    for name in (
        "name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "resourceVersion", "managedFields",
        "generateName", "deletionTimestamp", "deletionGracePeriodSeconds",
    )
}  # fmt: skip
"""Fields that the server sets: nobody owns them."""


@dataclass(frozen=True, slots=True)
class Manager:
    """Who wrote, and how: two entries of one name but different operation or subresource are two managers."""

    name: str
    operation: str  # Apply, Update
    api_version: str
    subresource: str = ""


@dataclass(slots=True)
class _Owned:
    fields: FieldSet
    time: str


Managers = dict[Manager, _Owned]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(metadata: Mapping[str, Any]) -> Managers:
    found: Managers = {}
    for entry in metadata.get("managedFields") or ():
        if not entry:
            continue
        if not isinstance(entry, dict) or entry.get("operation") not in ("Apply", "Update"):
            raise errors.bad_request("metadata.managedFields: an entry's operation must be `Apply` or `Update`")
        manager = Manager(entry.get("manager", ""), entry["operation"], entry.get("apiVersion", ""), entry.get("subresource", ""))
        found[manager] = _Owned(from_fields_v1(entry.get("fieldsV1") or {}), entry.get("time", ""))
    return found


def _write(obj: Object, managers: Managers) -> None:
    entries = []
    for manager, owned in sorted(managers.items(), key=lambda pair: (pair[0].operation, pair[1].time, pair[0].name)):
        if not owned.fields and manager.operation == "Update":
            continue
        entry = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
            "time": owned.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": to_fields_v1(owned.fields),
        }
        if manager.subresource:
            entry["subresource"] = manager.subresource
        entries.append(entry)
    if entries:
        obj["metadata"]["managedFields"] = entries
    else:
        obj["metadata"].pop("managedFields", None)


def _leaves(typed: Typed, obj: Object) -> dict[Path, Any]:
    return {path: value for path, value in typed.leaves(obj).items() if path[:2] not in _NOBODYS and path not in _NOBODYS}


def track_update(typed: Typed, new: Object, old: Object | None, manager: Manager, *, named: bool) -> None:
    """Writes down in `new` that a create or update made the manager the owner of what it changed.

    named: whether the client gave its name; if not, only objects that have owners already are tracked. `new` may carry
    managedFields that the client has changed: those are taken; an empty entry ([{}]) forgets all owners.
    """
    before = (old or {"metadata": {}})["metadata"].get("managedFields")
    given = new["metadata"].get("managedFields")
    if given == [{}]:
        del new["metadata"]["managedFields"]
        return
    managers = _read({"managedFields": given or before})
    if not named and not managers:
        new["metadata"].pop("managedFields", None)
        return
    was = _leaves(typed, old) if old else {}
    is_ = _leaves(typed, new)
    changed = frozenset(path for path, value in is_.items() if path not in was or was[path] != value)
    removed = was.keys() - is_.keys()
    for other, owned in managers.items():
        owned.fields -= removed if other == manager else removed | changed
    if changed:
        own = managers.setdefault(manager, _Owned(frozenset(), ""))
        if not changed <= own.fields or not own.time:
            own.time = _now()
        own.fields |= changed
    _limit(managers)
    _write(new, managers)


def _limit(managers: Managers) -> None:
    """Puts the oldest of too many updating managers together."""
    updaters = sorted((m for m in managers if m.operation == "Update"), key=lambda m: managers[m].time)
    for old in updaters[: max(0, len(updaters) - _MAXIMUM_UPDATE_MANAGERS)]:
        owned = managers.pop(old)
        ancient = managers.setdefault(Manager(_ANCIENT, "Update", old.api_version), _Owned(frozenset(), owned.time))
        ancient.fields |= owned.fields


def apply(typed: Typed, live: Object | None, applied: Object, manager: Manager, *, force: bool) -> Object:
    """The live object (None: there is none yet) with the applied configuration, and who owns its fields.

    Fields that the manager has applied before, does not apply now and nobody else owns are removed.
    Raises StatusError (Conflict) where another manager owns a field and wants another value, unless force is set: then
    it loses the field.
    """
    if (applied.get("metadata") or {}).get("managedFields"):
        raise errors.bad_request("metadata.managedFields must be nil")
    wanted = frozenset(_leaves(typed, applied))
    managers = _read(live["metadata"]) if live else {}
    if live and not managers:
        managers[Manager(BEFORE_FIRST_APPLY, "Update", manager.api_version)] = _Owned(frozenset(_leaves(typed, live)), _now())
    previous = managers.pop(manager, None)
    if live is None:
        merged: Object = applied
    else:
        merged = typed.merge(live, applied)
        others = frozenset[Path]().union(*(owned.fields for owned in managers.values()))
        if previous and (dropped := previous.fields - wanted - others):
            merged = typed.remove(merged, dropped, wanted | others)
        was, is_ = _leaves(typed, live), _leaves(typed, merged)
        changed = frozenset(path for path, value in is_.items() if path not in was or was[path] != value)
        conflicts = [(other, path) for other, owned in managers.items() for path in sorted(owned.fields & changed)]
        if conflicts and not force:
            raise _conflict_error(conflicts)
        for owned in managers.values():
            owned.fields -= changed | (was.keys() - is_.keys())
    time = previous.time if previous and previous.fields == wanted else _now()
    managers[manager] = _Owned(wanted, time)
    _write(merged, {other: owned for other, owned in managers.items() if owned.fields or other == manager})
    return merged


def _conflict_error(conflicts: list[tuple[Manager, Path]]) -> StatusError:
    def name(manager: Manager) -> str:
        text = f'"{manager.name}"'
        if manager.subresource:
            text += f' with subresource "{manager.subresource}"'
        if manager.operation == "Update":
            text += f" using {manager.api_version}"
        return text

    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {name(manager)}", "field": shown(path)}
        for manager, path in conflicts
    ]
    if len(conflicts) == 1:
        text = f"Apply failed with 1 conflict: conflict with {name(conflicts[0][0])}: {shown(conflicts[0][1])}"
    else:
        by_manager: dict[str, list[str]] = {}
        for manager, path in conflicts:
            by_manager.setdefault(name(manager), []).append(f"- {shown(path)}")
        listed = "\n".join("conflicts with {}:\n{}".format(who, "\n".join(paths)) for who, paths in sorted(by_manager.items()))
        text = f"Apply failed with {len(conflicts)} conflicts: {listed}"
    return StatusError(409, "Conflict", text, {"causes": causes})

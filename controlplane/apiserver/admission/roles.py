"""Roles and bindings: nobody hands out what they do not have."""

from typing import Any

from controlplane.apiserver.admission.refusal import forbidden
from controlplane.apiserver.auth.rbac import GROUP as RBAC_GROUP
from controlplane.apiserver.auth.rbac import Rbac, cluster_rules, covers
from controlplane.apiserver.request import AdmissionRequest, Attributes, Authorizer, Reader, StatusError

_EVERYTHING = [
    {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
    {"verbs": ["*"], "nonResourceURLs": ["*"]},
]


class Escalation:
    """Nobody writes a role, or binds one, that grants more than they have, unless they may `escalate` or `bind`."""

    def __init__(self, authorizer: Authorizer, rbac: Rbac, reader: Reader) -> None:
        self._authorizer, self._rbac, self._reader = authorizer, rbac, reader

    async def admit(self, request: AdmissionRequest) -> None:
        if request.group != RBAC_GROUP or request.operation not in ("CREATE", "UPDATE") or request.object is None:
            return
        if "system:masters" in request.user.groups:
            return
        if request.resource in ("roles", "clusterroles"):
            verb, rules = "escalate", request.object.get("rules") or []
            plural, name = request.resource, request.name
            if request.object.get("aggregationRule"):
                rules = _EVERYTHING  # it grows with every role that will ever have its labels
            if request.old and all(request.old.get(key) == request.object.get(key) for key in ("rules", "aggregationRule")):
                return
        else:
            verb, reference = "bind", request.object.get("roleRef") or {}
            plural, name = ("clusterroles" if reference.get("kind") == "ClusterRole" else "roles"), reference.get("name", "")
            rules = None
            if request.old and all(request.old.get(key) == request.object.get(key) for key in ("roleRef", "subjects")):
                return
        attributes = Attributes(request.user, verb, RBAC_GROUP, "v1", plural, "", request.namespace, name)
        if self._authorizer.authorize(attributes).allowed:
            return
        if rules is None:
            rules = self._rules_of(plural, name, request)
        own = self._rbac.rules_for(request.user, request.namespace)
        missing = [rule for rule in rules if not covers(own, rule, request.namespace, request.user)]
        if missing:
            raise forbidden(request, f'user "{request.user.name}" (groups={list(request.user.groups)}) is attempting to grant'
                            f" RBAC permissions not currently held: {missing}")  # fmt: skip

    def _rules_of(self, plural: str, name: str, request: AdmissionRequest) -> list[dict[str, Any]]:
        role = self._reader.get(RBAC_GROUP, plural, name, "" if plural == "clusterroles" else request.namespace)
        if role is None:
            # Bound first and made afterwards, it could grant whatever its maker has.
            message = f'{plural}.{RBAC_GROUP} "{name}" not found'
            raise StatusError(404, "NotFound", message, {"name": name, "group": RBAC_GROUP, "kind": plural})
        if plural == "roles":
            return role.get("rules") or []
        return cluster_rules(role, self._reader.list(RBAC_GROUP, "clusterroles"))

"""Questions about who somebody is and what they may do: answered, never stored (authentication.k8s.io, authorization.k8s.io)."""

from typing import Any

from controlplane.apiserver import errors
from controlplane.apiserver.request import Attributes, Authenticator, Authorizer, Reader, StatusError, UserInfo
from controlplane.apiserver.resources import Object
from controlplane.apiserver.verbs import Operation


class Reviews:
    def __init__(self, authenticator: Authenticator | None, authorizer: Authorizer | None, reader: Reader) -> None:
        self._authenticator, self._authorizer, self._reader = authenticator, authorizer, reader

    async def answer(self, operation: Operation, review: Object) -> Object:
        """The review with its status."""
        spec = review.get("spec") or {}
        match operation.resource.kind:
            case "TokenReview":
                status = self._token(spec)
            case "SelfSubjectReview":
                status = {"userInfo": _user(operation.user)}
            case "SelfSubjectAccessReview":
                status = self._access(operation.user, spec)
            case "SelfSubjectRulesReview":
                status = self._rules(operation.user, spec.get("namespace", ""))
            case _:
                extra = {key: tuple(values) for key, values in (spec.get("extra") or {}).items()}
                user = UserInfo(spec.get("user") or "", spec.get("uid") or "", tuple(spec.get("groups") or ()), extra)
                status = self._access(user, spec)
        kind = {"kind": operation.resource.kind, "apiVersion": operation.resource.api_version}
        return {**kind, "metadata": {"creationTimestamp": None}, "spec": spec, "status": status}

    def _token(self, spec: dict[str, Any]) -> dict[str, Any]:
        if self._authenticator is None:
            return {"authenticated": False, "error": "this server authenticates nobody"}
        # A service that asks without naming itself means what the API server itself would accept.
        asked = {"audiences": spec["audiences"]} if spec.get("audiences") else {}
        try:
            user, audiences = self._authenticator.review(spec.get("token") or "", **asked)
        except StatusError as error:
            return {"authenticated": False, "error": error.message}
        return {"authenticated": True, "user": _user(user), "audiences": list(audiences)}

    def _access(self, user: UserInfo, spec: dict[str, Any]) -> dict[str, Any]:
        resource, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
        if (resource is None) == (other is None):
            raise errors.bad_request("exactly one of nonResourceAttributes or resourceAttributes must be specified")
        if resource is not None:
            names = ("verb", "group", "version", "resource", "subresource", "namespace", "name")
            attributes = Attributes(user, **{name: resource.get(name) or "" for name in names})
        else:
            attributes = Attributes(user, (other or {}).get("verb") or "", path=(other or {}).get("path") or "")
        if "system:masters" in user.groups or self._authorizer is None:
            return {"allowed": True}
        decision = self._authorizer.authorize(attributes)
        return {"allowed": decision.allowed, **({"reason": decision.reason} if decision.reason else {})}

    def _rules(self, user: UserInfo, namespace: str) -> dict[str, Any]:
        rules_for = getattr(self._authorizer, "rules_for", None)
        if "system:masters" in user.groups or rules_for is None:
            everything = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
            return {
                "resourceRules": everything,
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": False,
            }
        rules = rules_for(user, namespace)
        return {
            "resourceRules": [rule for rule in rules if rule.get("resources")],
            "nonResourceRules": [rule for rule in rules if rule.get("nonResourceURLs")],
            "incomplete": False,
        }


def _user(user: UserInfo) -> dict[str, Any]:
    found: dict[str, Any] = {"username": user.name, "uid": user.uid, "groups": list(user.groups)}
    if user.extra:
        found["extra"] = {key: list(values) for key, values in user.extra.items()}
    return {key: value for key, value in found.items() if value}

"""Role-based access control (rbac.authorization.k8s.io/v1).

Roles and bindings are compiled to an index by subject, once for each state of them: a request then looks at the rules of its
user and groups only.
"""

from collections.abc import Iterable
from typing import Any

from controlplane.apiserver.cache import Cache
from controlplane.apiserver.request import Attributes, Decision, UserInfo
from strata.kubeclient.selectors import parse_label_selector

GROUP = "rbac.authorization.k8s.io"
_KINDS = ("clusterroles", "clusterrolebindings", "roles", "rolebindings")
Rule = dict[str, Any]


class Rbac:
    """An Authorizer over the roles and bindings in the cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._state: tuple[int, ...] = ()
        # subject → [(namespace, or "" for the whole cluster; rules; what to say)]
        self._grants: dict[tuple[str, str], list[tuple[str, list[Rule], str]]] = {}

    def authorize(self, attributes: Attributes) -> Decision:
        for namespace, rules, why in self._grants_of(attributes.user):
            if namespace and namespace != attributes.namespace:
                continue
            if any(allows(rule, attributes) for rule in rules):
                return Decision(True, why)
        return Decision(False)

    def rules_for(self, user: UserInfo, namespace: str) -> list[Rule]:
        """All rules that the user has in a namespace, for SelfSubjectRulesReview."""
        return [rule for where, rules, _ in self._grants_of(user) if not where or where == namespace for rule in rules]

    def _grants_of(self, user: UserInfo) -> Iterable[tuple[str, list[Rule], str]]:
        grants = self._index()
        yield from grants.get(("User", user.name), ())
        for group in user.groups:
            yield from grants.get(("Group", group), ())

    def _index(self) -> dict[tuple[str, str], list[tuple[str, list[Rule], str]]]:
        state = tuple(self._cache.version(GROUP, kind) for kind in _KINDS)
        if state != self._state:
            self._grants = self._compile()
            self._state = state
        return self._grants

    def _compile(self) -> dict[tuple[str, str], list[tuple[str, list[Rule], str]]]:
        cluster_roles = {role["metadata"]["name"]: role for role in self._cache.list(GROUP, "clusterroles")}
        rules = {name: cluster_rules(role, cluster_roles.values()) for name, role in cluster_roles.items()}
        roles = {
            (r["metadata"]["namespace"], r["metadata"]["name"]): r.get("rules") or [] for r in self._cache.list(GROUP, "roles")
        }
        grants: dict[tuple[str, str], list[tuple[str, list[Rule], str]]] = {}
        for plural in ("clusterrolebindings", "rolebindings"):
            for binding in self._cache.list(GROUP, plural):
                metadata, reference = binding["metadata"], binding["roleRef"]
                namespace = metadata.get("namespace", "") if plural == "rolebindings" else ""
                if reference["kind"] == "ClusterRole":
                    granted = rules.get(reference["name"])
                else:
                    granted = roles.get((namespace, reference["name"]))
                if not granted:
                    continue
                kind = "RoleBinding" if namespace else "ClusterRoleBinding"
                named = f"{metadata['name']}/{namespace}" if namespace else metadata["name"]
                why = f'RBAC: allowed by {kind} "{named}" of {reference["kind"]} "{reference["name"]}"'
                for subject in binding.get("subjects") or ():
                    grants.setdefault(_subject(subject, namespace), []).append((namespace, granted, why))
        return grants


def cluster_rules(role: dict[str, Any], roles: Iterable[dict[str, Any]], *, within: frozenset[str] = frozenset()) -> list[Rule]:
    """A ClusterRole's rules, those of the roles that it aggregates included.

    within: the names of the roles whose rules this is a part of; roles may select each other.
    """
    aggregation = role.get("aggregationRule")
    if not aggregation:
        return role.get("rules") or []
    within |= {role["metadata"]["name"]}
    selectors = [parse_label_selector(selector) for selector in aggregation.get("clusterRoleSelectors") or ()]
    found: list[Rule] = []
    for other in roles:
        metadata = other["metadata"]
        if metadata["name"] not in within and any(selector.matches(metadata.get("labels")) for selector in selectors):
            found += cluster_rules(other, roles, within=within)
    return found


def allows(rule: Rule, attributes: Attributes) -> bool:
    """Whether one rule grants the request (its namespace is the caller's concern)."""
    verbs = rule.get("verbs") or ()
    if "*" not in verbs and attributes.verb not in verbs:
        return False
    if not attributes.is_resource:
        return any(_path_matches(pattern, attributes.path) for pattern in rule.get("nonResourceURLs") or ())
    groups, resources = rule.get("apiGroups") or (), rule.get("resources") or ()
    if "*" not in groups and attributes.group not in groups:
        return False
    wanted = f"{attributes.resource}/{attributes.subresource}" if attributes.subresource else attributes.resource
    of_any = f"*/{attributes.subresource}" if attributes.subresource else "*"
    if not {"*", wanted, of_any} & set(resources):
        return False
    names = rule.get("resourceNames")
    return not names or attributes.name in names


def covers(rules: Iterable[Rule], wanted: Rule, namespace: str, user: UserInfo) -> bool:
    """Whether rules grant all that another rule does: nobody may hand out more than they have."""
    rules = list(rules)
    for verb in wanted.get("verbs") or ():
        for path in wanted.get("nonResourceURLs") or ():
            if not any(allows(rule, Attributes(user, verb, path=path)) for rule in rules):
                return False
        for group in wanted.get("apiGroups") or ():
            for resource in wanted.get("resources") or ():
                plural, _, subresource = resource.partition("/")
                for name in wanted.get("resourceNames") or ("",):
                    attributes = Attributes(user, verb, group, "", plural, subresource, namespace, name)
                    if not any(allows(rule, attributes) for rule in rules):
                        return False
    return True


def _path_matches(pattern: str, path: str) -> bool:
    return pattern in ("*", path) or (pattern.endswith("*") and path.startswith(pattern[:-1]))


def _subject(subject: dict[str, Any], namespace: str) -> tuple[str, str]:
    if subject["kind"] == "ServiceAccount":
        return "User", f"system:serviceaccount:{subject.get('namespace') or namespace}:{subject['name']}"
    return subject["kind"], subject["name"]

"""The default roles and their bindings, as a Kubernetes cluster has them, and those that Strata's own parts need.

https://kubernetes.io/docs/reference/access-authn-authz/rbac/#default-roles-and-role-bindings
"""

from typing import Any

Object = dict[str, Any]

_GROUP = "rbac.authorization.k8s.io"
_LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
_READ = "get list watch"
_WRITE = "create delete deletecollection patch update"
_ALL = f"{_READ} {_WRITE}"
_CSR = "certificates.k8s.io"


def rule(verbs: str, groups: str, resources: str, *, names: str = "") -> Object:
    """A rule; words are separated by blanks, the core group is written `core`."""
    found: Object = {
        "verbs": verbs.split(),
        "apiGroups": ["" if group == "core" else group for group in groups.split()],
        "resources": resources.split(),
    }
    return {**found, "resourceNames": names.split()} if names else found


def paths(verbs: str, urls: str) -> Object:
    return {"verbs": verbs.split(), "nonResourceURLs": urls.split()}


_VIEWED = [
    rule(_READ, "core", "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers"
         " replicationcontrollers/scale serviceaccounts services services/status bindings events limitranges namespaces/status"
         " pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status namespaces"),
    rule(_READ, "discovery.k8s.io", "endpointslices"),
    rule(_READ, "apps", "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status"
         " replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status"),
    rule(_READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
    rule(_READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
    rule(_READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
    rule(_READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
    rule(_READ, "events.k8s.io", "events"),
]  # fmt: skip
_EDITED = [
    rule(_READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
    rule("create", "core", "pods/attach pods/exec pods/portforward pods/proxy"),
    rule("impersonate", "core", "serviceaccounts"),
    rule(_WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy configmaps events persistentvolumeclaims"
         " replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy"),
    rule("create", "core", "pods/eviction serviceaccounts/token"),
    rule(_WRITE, "apps", "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale"
         " statefulsets statefulsets/scale"),
    rule(_WRITE, "autoscaling", "horizontalpodautoscalers"),
    rule(_WRITE, "batch", "cronjobs jobs"),
    rule(_WRITE, "policy", "poddisruptionbudgets"),
    rule(_WRITE, "networking.k8s.io", "ingresses networkpolicies"),
    rule(_ALL, "coordination.k8s.io", "leases"),
]  # fmt: skip
_ADMINISTERED = [
    rule("create", "authorization.k8s.io", "localsubjectaccessreviews"),
    rule(_ALL, _GROUP, "rolebindings roles"),
]
_DISCOVERY = "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/"
_NODENET = [
    rule(_READ, "core", "services endpoints nodes namespaces pods"),
    rule(_READ, "discovery.k8s.io", "endpointslices"),
    rule(_READ, "networking.k8s.io", "networkpolicies"),
    rule("create patch update", "core events.k8s.io", "events"),
    rule(_READ, "core", "configmaps", names="strata-network"),
]

CLUSTER_ROLES: dict[str, list[Object]] = {
    "cluster-admin": [rule("*", "*", "*"), paths("*", "*")],
    "system:discovery": [paths("get", _DISCOVERY)],
    "system:public-info-viewer": [paths("get", "/healthz /livez /readyz /version /version/")],
    "system:basic-user": [
        rule("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
        rule("create", "authentication.k8s.io", "selfsubjectreviews"),
    ],
    "system:monitoring": [paths("get", "/healthz /healthz/* /livez /livez/* /metrics /readyz /readyz/*")],
    "system:auth-delegator": [
        rule("create", "authentication.k8s.io", "tokenreviews"),
        rule("create", "authorization.k8s.io", "subjectaccessreviews"),
    ],
    "system:service-account-issuer-discovery": [
        paths("get", "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/")
    ],
    "system:node-bootstrapper": [rule("create get list watch", _CSR, "certificatesigningrequests")],
    "system:certificates.k8s.io:certificatesigningrequests:nodeclient": [
        rule("create", _CSR, "certificatesigningrequests/nodeclient")
    ],
    "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient": [
        rule("create", _CSR, "certificatesigningrequests/selfnodeclient")
    ],
    "system:kubelet-api-admin": [
        rule(_READ, "core", "nodes"),
        rule("proxy", "core", "nodes"),
        rule("*", "core", "nodes/log nodes/metrics nodes/proxy nodes/stats"),
    ],
    "system:node-proxier": [
        rule("list watch", "core", "services endpoints"),
        rule(_READ, "core", "nodes"),
        rule("create patch update", "core events.k8s.io", "events"),
        rule("list watch", "discovery.k8s.io", "endpointslices"),
    ],
    "system:kube-dns": [rule("list watch", "core", "endpoints services")],
    "system:kube-scheduler": [
        rule("create patch update", "core events.k8s.io", "events"),
        rule("create get list watch update patch", "coordination.k8s.io", "leases"),
        rule(_READ, "core", "nodes pods services replicationcontrollers persistentvolumeclaims persistentvolumes namespaces"),
        rule("delete", "core", "pods"),
        rule("create", "core", "bindings pods/binding"),
        rule("patch update", "core", "pods/status"),
        rule(_READ, "apps", "replicasets statefulsets"),
        rule(_READ, "policy", "poddisruptionbudgets"),
        rule(_READ, "storage.k8s.io", "storageclasses csinodes csidrivers csistoragecapacities"),
    ],
    # One process runs all controllers; the garbage and namespace collectors among them may delete whatever there is.
    "system:kube-controller-manager": [rule("*", "*", "*"), paths("get", "*")],
    "strata:nodenet": _NODENET,
    "system:aggregate-to-view": _VIEWED,
    "system:aggregate-to-edit": _EDITED,
    "system:aggregate-to-admin": _ADMINISTERED,
    "system:node": [],
}

_AGGREGATED = {"view": ["view"], "edit": ["edit", "view"], "admin": ["admin", "edit", "view"]}

CLUSTER_BINDINGS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("cluster-admin", "cluster-admin", [("Group", "system:masters")]),
    ("system:discovery", "system:discovery", [("Group", "system:authenticated")]),
    ("system:basic-user", "system:basic-user", [("Group", "system:authenticated")]),
    (
        "system:public-info-viewer",
        "system:public-info-viewer",
        [("Group", "system:authenticated"), ("Group", "system:unauthenticated")],
    ),
    ("system:monitoring", "system:monitoring", [("Group", "system:monitoring")]),
    (
        "system:service-account-issuer-discovery",
        "system:service-account-issuer-discovery",
        [("Group", "system:serviceaccounts")],
    ),
    ("system:node-proxier", "system:node-proxier", [("User", "system:kube-proxy")]),
    ("system:kube-scheduler", "system:kube-scheduler", [("User", "system:kube-scheduler")]),
    ("system:kube-controller-manager", "system:kube-controller-manager", [("User", "system:kube-controller-manager")]),
    ("strata:node-bootstrapper", "system:node-bootstrapper", [("Group", "system:bootstrappers")]),
    (
        "strata:node-autoapprove-bootstrap",
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        [("Group", "system:bootstrappers")],
    ),
    (
        "strata:node-autoapprove-certificate-rotation",
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        [("Group", "system:nodes")],
    ),
    ("strata:nodenet", "strata:nodenet", [("Group", "system:nodes")]),
]

# (namespace, name, rules, subjects): what is readable before, and right after, a node has joined.
ROLES: list[tuple[str, str, list[Object], list[tuple[str, str]]]] = [
    (
        "kube-public",
        "strata:cluster-info",
        [rule("get", "core", "configmaps", names="cluster-info")],
        [("User", "system:anonymous"), ("Group", "system:authenticated")],
    ),
    (
        "kube-system",
        "strata:kubelet-config",
        [rule("get", "core", "configmaps", names="kubelet-config")],
        [("Group", "system:nodes"), ("Group", "system:bootstrappers")],
    ),
    (
        "kube-system",
        "extension-apiserver-authentication-reader",
        [rule(_READ, "core", "configmaps", names="extension-apiserver-authentication")],
        [],
    ),
]


def objects() -> list[tuple[str, Object]]:
    """All of them, each with the path of its collection."""
    base = f"/apis/{_GROUP}/v1"
    found: list[tuple[str, Object]] = []
    for name, rules in CLUSTER_ROLES.items():
        labels = dict(_LABELS)
        if name.startswith("system:aggregate-to-"):
            labels[f"{_GROUP}/aggregate-to-{name.removeprefix('system:aggregate-to-')}"] = "true"
        found.append((f"{base}/clusterroles", {"metadata": {"name": name, "labels": labels}, "rules": rules}))
    for name, parts in _AGGREGATED.items():
        selectors = [{"matchLabels": {f"{_GROUP}/aggregate-to-{part}": "true"}} for part in parts]
        role = {"metadata": {"name": name, "labels": _LABELS}, "aggregationRule": {"clusterRoleSelectors": selectors}}
        rules = [r for part in parts for r in CLUSTER_ROLES[f"system:aggregate-to-{part}"]]
        found.append((f"{base}/clusterroles", {**role, "rules": rules}))
    for name, role_name, subjects in CLUSTER_BINDINGS:
        found.append((f"{base}/clusterrolebindings", _binding(name, "ClusterRole", role_name, subjects)))
    for namespace, name, rules, subjects in ROLES:
        in_namespace = f"{base}/namespaces/{namespace}"
        found.append((f"{in_namespace}/roles", {"metadata": {"name": name, "labels": _LABELS}, "rules": rules}))
        if subjects:
            found.append((f"{in_namespace}/rolebindings", _binding(name, "Role", name, subjects)))
    return found


def _binding(name: str, kind: str, role: str, subjects: list[tuple[str, str]]) -> Object:
    return {
        "metadata": {"name": name, "labels": _LABELS},
        "roleRef": {"apiGroup": _GROUP, "kind": kind, "name": role},
        "subjects": [{"apiGroup": _GROUP, "kind": subject, "name": who} for subject, who in subjects],
    }

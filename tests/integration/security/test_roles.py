"""What somebody may: RBAC with the default roles, and that nobody gives themselves more."""

import json

import pytest

from tests.integration.security.conftest import Kubectl, Server

RBAC = "rbac.authorization.k8s.io/v1"


def test_a_role_reaches_as_far_as_its_namespace(server: Server, admin: Kubectl, namespace: str) -> None:
    admin("create", "role", "reader", "--verb", "get,list", "--resource", "pods", "-n", namespace)
    admin("create", "rolebinding", "reader", "--role", "reader", "--user", "rob", "-n", namespace)
    rob = server.user("rob")
    assert "No resources found" in rob.run("get", "pods", "-n", namespace).stderr
    message = 'pods is forbidden: User "rob" cannot list resource "pods" in API group "" in the namespace "default"'
    assert message in rob.fails("get", "pods", "-n", "default")
    assert rob("auth", "can-i", "list", "pods", "-n", namespace).strip() == "yes"
    assert rob.run("auth", "can-i", "delete", "pods", "-n", namespace).stdout.strip() == "no"
    listed = rob("auth", "can-i", "--list", "-n", namespace)
    assert any(line.split() == ["pods", "[]", "[]", "[get", "list]"] for line in listed.splitlines()), listed
    admin("delete", "rolebinding", "reader", "-n", namespace)
    assert "forbidden" in rob.fails("get", "pods", "-n", namespace)


def test_names_in_a_rule(server: Server, admin: Kubectl, namespace: str) -> None:
    for name in ("one", "two"):
        admin("create", "configmap", name, "-n", namespace)
    flags = ("--verb", "get,list,watch,create", "--resource", "configmaps", "--resource-name", "one")
    admin("create", "role", "one", *flags, "-n", namespace)
    admin("create", "rolebinding", "one", "--role", "one", "--user", "una", "-n", namespace)
    una = server.user("una")
    una("get", "configmap", "one", "-n", namespace)
    una("get", "configmap", "-n", namespace, "--field-selector", "metadata.name=one")
    assert "forbidden" in una.fails("get", "configmap", "two", "-n", namespace)
    assert "forbidden" in una.fails("get", "configmap", "-n", namespace)
    # The name of what is made does not come from a selector in the URL.
    path = f"/api/v1/namespaces/{namespace}/configmaps?fieldSelector=metadata.name%3Done"
    made = server.request(path, kubectl=una, method="POST", body={"metadata": {"name": "three"}})
    assert made.code == 403


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("view", ["get pods", "get pods/log", "list deployments.apps", "watch services"],
         ["get secrets", "create pods", "create pods/exec", "get roles.rbac.authorization.k8s.io"]),
        ("edit", ["create pods", "delete deployments.apps", "create pods/exec", "get secrets"],
         ["create rolebindings.rbac.authorization.k8s.io", "get nodes", "update resourcequotas"]),
        ("admin", ["create rolebindings.rbac.authorization.k8s.io", "get secrets", "create pods"],
         ["get nodes", "create namespaces", "update resourcequotas", "escalate roles.rbac.authorization.k8s.io"]),
    ],
)  # fmt: skip
def test_the_roles_for_people(
    server: Server, admin: Kubectl, namespace: str, role: str, may: list[str], may_not: list[str]
) -> None:
    admin("create", "rolebinding", role, "--clusterrole", role, "--user", f"u-{role}", "-n", namespace)
    for wish, expected in [*((wish, True) for wish in may), *((wish, False) for wish in may_not)]:
        verb, _, what = wish.partition(" ")
        resource, _, group = what.partition(".")
        resource, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace}
        spec = {"user": f"u-{role}", "groups": ["system:authenticated"], "resourceAttributes": attributes}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = admin(
            "create", "--raw", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "-f", "-", input=json.dumps(review)
        )
        assert json.loads(answer)["status"]["allowed"] is expected, wish


def test_a_role_aggregates_by_label_and_even_in_a_circle(server: Server, admin: Kubectl, namespace: str) -> None:
    def role(name: str, selects: str, resource: str) -> dict[str, object]:
        found: dict[str, object] = {
            "apiVersion": RBAC,
            "kind": "ClusterRole",
            "metadata": {"name": name, "labels": {name: "yes"}},
        }
        expression = {"key": selects, "operator": "In", "values": ["yes", "y"]}
        if selects:
            return {**found, "aggregationRule": {"clusterRoleSelectors": [{"matchExpressions": [expression]}]}}
        return {**found, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]}

    a, b, leaf = f"a-{namespace}", f"b-{namespace}", f"leaf-{namespace}"
    admin.apply(role(a, b, ""), role(b, a, ""), role(leaf, "", "secrets"))
    admin("label", "clusterrole", leaf, f"{b}=yes")
    admin("create", "rolebinding", "agg", "--clusterrole", a, "--user", "agnes", "-n", namespace)
    assert server.user("agnes")("auth", "can-i", "get", "secrets", "-n", namespace).strip() == "yes"
    assert server.user("agnes").run("auth", "can-i", "list", "secrets", "-n", namespace).stdout.strip() == "no"
    admin("delete", "clusterrole", a, b, leaf)


class TestNobodyGivesWhatTheyDoNotHave:
    @pytest.fixture
    def chief(self, server: Server, admin: Kubectl, namespace: str) -> Kubectl:
        """The administrator of one namespace, who may also write cluster roles."""
        admin("create", "rolebinding", "chief", "--clusterrole", "admin", "--user", "chief", "-n", namespace)
        admin(
            "create", "clusterrole", f"writer-{namespace}", "--verb", "*", "--resource", "clusterroles.rbac.authorization.k8s.io"
        )
        # Without `escalate` and `bind`, which the star would be.
        rule = [{"verbs": ["create", "get", "update", "patch", "delete"], "apiGroups": [RBAC.partition("/")[0]],
                 "resources": ["clusterroles"]}]  # fmt: skip
        admin("patch", "clusterrole", f"writer-{namespace}", "--type", "merge", "-p", json.dumps({"rules": rule}))
        admin("create", "clusterrolebinding", f"writer-{namespace}", "--clusterrole", f"writer-{namespace}", "--user", "chief")
        kubectl = server.user("chief")
        kubectl.flags += ["-n", namespace]
        return kubectl

    def test_their_own_rights_they_may_hand_on(self, chief: Kubectl) -> None:
        chief("create", "role", "pods", "--verb", "get,delete", "--resource", "pods")
        chief("create", "rolebinding", "pods", "--role", "pods", "--user", "friend")
        chief("create", "rolebinding", "edit", "--clusterrole", "edit", "--user", "friend")

    def test_no_role_with_more(self, chief: Kubectl) -> None:
        complaint = chief.fails("create", "role", "more", "--verb", "*", "--resource", "*.*")
        assert "is attempting to grant RBAC permissions not currently held" in complaint

    def test_no_binding_of_more(self, chief: Kubectl) -> None:
        complaint = chief.fails("create", "rolebinding", "more", "--clusterrole", "cluster-admin", "--user", "chief")
        assert "is attempting to grant RBAC permissions not currently held" in complaint

    def test_no_binding_of_a_role_to_come(self, chief: Kubectl) -> None:
        complaint = chief.fails("create", "rolebinding", "more", "--clusterrole", "not-yet", "--user", "chief")
        assert 'clusterroles.rbac.authorization.k8s.io "not-yet" not found' in complaint

    def test_no_role_that_grows(self, chief: Kubectl, namespace: str) -> None:
        selector = {"matchLabels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}
        role = {"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": f"grow-{namespace}"},
                "aggregationRule": {"clusterRoleSelectors": [selector]}}  # fmt: skip
        complaint = chief.fails("create", "-f", "-", input=json.dumps(role))
        assert "is attempting to grant RBAC permissions not currently held" in complaint

    def test_a_label_may_be_put_on_a_strong_role(self, chief: Kubectl, admin: Kubectl, namespace: str) -> None:
        admin("create", "role", "strong", "--verb", "*", "--resource", "*.*", "-n", namespace)
        chief("label", "role", "strong", "mark=yes")


def test_the_default_roles_come_back_at_the_start(server: Server, admin: Kubectl) -> None:
    admin("delete", "clusterrole", "view")
    admin("patch", "clusterrole", "system:discovery", "--type", "merge", "-p", '{"rules":[]}')
    assert server.stop() == 0
    server.start()
    assert admin.get("clusterrole", "view")["aggregationRule"]
    assert admin.get("clusterrole", "system:discovery")["rules"]

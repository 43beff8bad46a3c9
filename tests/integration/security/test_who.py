"""Who somebody is: certificates, service account tokens, bootstrap tokens, anonymous, impersonation."""

import base64
import json
import time

import jwt
import pytest

from controlplane.pki import certificates
from tests.integration.security.conftest import Kubectl, Server

ISSUER = "https://kubernetes.default.svc.cluster.local"
BOOTSTRAP = {
    "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
    "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token,system:masters",
}  # fmt: skip


def who(kubectl: Kubectl) -> dict[str, object]:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    found: dict[str, object] = json.loads(kubectl("create", "--raw", path, "-f", "-", input=json.dumps(review)))["status"][
        "userInfo"
    ]
    return found


def token_request(namespace: str, account: str = "default", **spec: object) -> dict[str, object]:
    """The arguments of kubectl that ask for a token, also those of one that has no `create token` yet."""
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    return {"argv": ("create", "--raw", path, "-f", "-"), "input": json.dumps(request)}


def new_token(admin: Kubectl, namespace: str, **spec: object) -> str:
    """A token of the namespace's default account."""
    asked = token_request(namespace, **spec)
    token: str = json.loads(admin(*asked["argv"], input=asked["input"]))["status"]["token"]  # type: ignore[misc, arg-type]
    return token


def refusal(admin: Kubectl, namespace: str, account: str = "default", **spec: object) -> str:
    asked = token_request(namespace, account, **spec)
    return admin.fails(*asked["argv"], input=asked["input"])  # type: ignore[misc, arg-type]


def bound_to(kind: str, name: str) -> dict[str, str]:
    return {"apiVersion": "v1", "kind": kind, "name": name}


def test_the_admin_may_everything(admin: Kubectl) -> None:
    assert "yes" in admin("auth", "can-i", "*", "*")
    assert "namespace/kube-system" in admin("get", "namespaces", "-o", "name")


def test_a_certificate_says_user_and_groups(server: Server) -> None:
    found = who(server.user("jane", "painters", "ops"))
    assert found["username"] == "jane"
    assert set(found["groups"]) == {"painters", "ops", "system:authenticated"}  # type: ignore[call-overload]


def test_a_certificate_of_another_ca_is_refused(server: Server) -> None:
    stranger = server.user("kubernetes-admin", "system:masters", ca=certificates.make_ca("kubernetes"))
    assert "certificate" in stranger.fails("get", "nodes")


def test_a_serving_certificate_is_no_users(server: Server) -> None:
    """What a kubelet gets signed for its server must not speak for a user."""
    kubectl = server.user("placeholder")
    pair = certificates.issue(server.ca, "system:node:n1", ["system:nodes"], server_names=["n1"], client=False)
    for ending, content in ((".crt", pair.certificate_pem), (".key", pair.key_pem)):
        kubectl.kubeconfig.with_name(kubectl.kubeconfig.name + ending).write_bytes(content)
    assert "certificate" in kubectl.fails("get", "nodes")


def test_nobody_sees_versions_and_cluster_info_only(server: Server) -> None:
    assert server.request("/version").code == 200
    assert server.request("/api/v1/namespaces/kube-public/configmaps/cluster-info").code == 200
    refused = server.request("/api/v1/nodes")
    assert refused.code == 403
    assert refused.body["message"] == (
        'nodes is forbidden: User "system:anonymous" cannot list resource "nodes" in API group "" at the cluster scope'
    )
    assert server.request("/api").code == 403
    assert server.request("/metrics").body["message"] == 'forbidden: User "system:anonymous" cannot get path "/metrics"'


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "zzzzzz.0123456789abcdef", "eyJhbGciOiJub25lIn0.e30."])
def test_a_bad_token_is_401(server: Server, token: str) -> None:
    answer = server.request("/version", token=token)
    assert (answer.code, answer.body["reason"]) == (401, "Unauthorized")


class TestServiceAccounts:
    def test_a_token_speaks_for_its_account(self, server: Server, admin: Kubectl, namespace: str) -> None:
        token = new_token(admin, namespace, expirationSeconds=1800)
        found = who(server.bearer(token))
        assert found["username"] == f"system:serviceaccount:{namespace}:default"
        expected = {"system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"}
        assert set(found["groups"]) == expected  # type: ignore[call-overload]
        assert server.request(f"/api/v1/namespaces/{namespace}/secrets", token=token).code == 403
        claims = jwt.decode(token, options={"verify_signature": False})
        assert claims["iss"] == ISSUER
        assert claims["exp"] - claims["iat"] == 1800

    def test_it_ends_with_its_account(self, server: Server, admin: Kubectl, namespace: str) -> None:
        token = new_token(admin, namespace)
        assert server.request("/api", token=token).code == 200
        admin("delete", "serviceaccount", "default", "-n", namespace)
        assert server.request("/api", token=token).code == 401
        admin("create", "serviceaccount", "default", "-n", namespace)
        assert server.request("/api", token=token).code == 401, "another account of the same name"

    def test_it_ends_with_the_object_it_is_bound_to(self, server: Server, admin: Kubectl, namespace: str) -> None:
        admin("create", "secret", "generic", "life", "-n", namespace)
        token = new_token(admin, namespace, boundObjectRef=bound_to("Secret", "life"))
        assert server.request("/api", token=token).code == 200
        admin("delete", "secret", "life", "-n", namespace)
        assert server.request("/api", token=token).code == 401

    def test_a_token_for_others_is_none_for_the_api_server(self, server: Server, admin: Kubectl, namespace: str) -> None:
        token = new_token(admin, namespace, audiences=["vault"])
        assert server.request("/api", token=token).code == 401

    @pytest.mark.parametrize(
        ("of_token", "asked", "authenticated"),
        [("vault", ["vault", "other"], True), ("vault", ["other"], False), ("vault", [], False), ("", ["vault"], False),
         ("", [], True)],
    )  # fmt: skip
    def test_a_token_review_is_for_an_audience(
        self, admin: Kubectl, namespace: str, of_token: str, asked: list[str], authenticated: bool
    ) -> None:
        token = new_token(admin, namespace, **({"audiences": [of_token]} if of_token else {}))
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": asked}}
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        status = json.loads(admin("create", "--raw", path, "-f", "-", input=json.dumps(review)))["status"]
        assert status.get("authenticated", False) is authenticated
        if authenticated:
            assert status["audiences"] == ([of_token] if of_token else [ISSUER])

    def test_anybody_can_check_it_with_the_published_keys(self, server: Server, admin: Kubectl, namespace: str) -> None:
        token = new_token(admin, namespace)
        assert server.request("/.well-known/openid-configuration", token=token).body["issuer"] == ISSUER
        keys = jwt.PyJWKSet.from_dict(server.request("/openid/v1/jwks", token=token).body)
        key = keys[jwt.get_unverified_header(token)["kid"]]
        assert jwt.decode(token, key, audience=ISSUER)["sub"] == f"system:serviceaccount:{namespace}:default"

    def test_a_wish_that_cannot_be(self, server: Server, admin: Kubectl, namespace: str) -> None:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
        short = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 540}}
        answer = server.request(path, method="POST", body=short, kubectl=server.user("boss", "system:masters"))
        assert answer.code == 422
        assert "less than 10 minutes" in answer.body["message"]
        assert "not found" in refusal(admin, namespace, boundObjectRef=bound_to("Secret", "gone"))
        assert "not found" in refusal(admin, namespace, "nobody")


class TestBootstrapTokens:
    def make(self, admin: Kubectl, **changes: str) -> str:
        data = {**BOOTSTRAP, "token-id": f"t{time.monotonic_ns() % 36**3:05d}"[-6:], **changes}
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        admin.apply({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "data": encoded,
            "metadata": {"name": f"bootstrap-token-{data['token-id']}", "namespace": "kube-system"},
        })  # fmt: skip
        return f"{data['token-id']}.{data['token-secret']}"

    def test_it_is_a_bootstrapper_and_no_more(self, server: Server, admin: Kubectl) -> None:
        token = self.make(admin)
        found = who(server.bearer(token))
        assert found["username"] == f"system:bootstrap:{token[:6]}"
        expected = {"system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"}
        assert set(found["groups"]) == expected  # type: ignore[call-overload]
        assert "yes" in server.bearer(token)("auth", "can-i", "create", "certificatesigningrequests.certificates.k8s.io")
        assert server.request("/api/v1/namespaces/kube-system/secrets", token=token).code == 403

    @pytest.mark.parametrize("changes", [{"expiration": "2020-01-01T00:00:00Z"}, {"usage-bootstrap-authentication": "false"}])
    def test_one_that_is_over_or_for_something_else(self, server: Server, admin: Kubectl, changes: dict[str, str]) -> None:
        assert server.request("/api", token=self.make(admin, **changes)).code == 401

    def test_another_secret(self, server: Server, admin: Kubectl) -> None:
        token = self.make(admin)
        assert server.request("/api", token=token[:-1] + ("a" if token[-1] != "a" else "b")).code == 401


class TestImpersonation:
    def test_the_admin_may_be_anybody(self, admin: Kubectl) -> None:
        found = who(Kubectl(admin.kubeconfig, ["--as", "bob", "--as-group", "painters"]))
        assert found["username"] == "bob"
        assert set(found["groups"]) == {"painters", "system:authenticated"}  # type: ignore[call-overload]
        assert "no" in Kubectl(admin.kubeconfig, ["--as", "bob"]).run("auth", "can-i", "get", "pods").stdout

    def test_others_may_not(self, server: Server) -> None:
        jane = server.user("jane")
        headers = {"Impersonate-User": "kubernetes-admin", "Impersonate-Group": "system:masters"}
        answer = server.request("/api", kubectl=jane, headers=headers)
        assert answer.code == 403
        assert answer.body["message"] == (
            'users "kubernetes-admin" is forbidden: User "jane" cannot impersonate resource "users" in API group ""'
            " at the cluster scope"
        )

    def test_an_editor_may_be_the_accounts_of_the_namespace(self, server: Server, admin: Kubectl, namespace: str) -> None:
        admin("create", "rolebinding", "edit", "--clusterrole", "edit", "--user", "ed", "-n", namespace)
        ed = server.user("ed")
        ed.flags += ["--as", f"system:serviceaccount:{namespace}:default"]
        assert f"system:serviceaccounts:{namespace}" in who(ed)["groups"]  # type: ignore[operator]
        ed.flags[-1] = "system:serviceaccount:kube-system:default"
        # Not `get pods`: where kubectl has the discovery not cached, it hides why it was refused.
        assert "Forbidden" in ed.fails("get", "--raw", f"/api/v1/namespaces/{namespace}/pods")

    def test_groups_without_a_user(self, server: Server, admin: Kubectl, namespace: str) -> None:
        token = new_token(admin, namespace)
        answer = server.request("/api", token=token, headers={"Impersonate-Group": "system:masters"})
        assert answer.code == 400

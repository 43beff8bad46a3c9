"""scale, binding, eviction, approval, and the questions that are only answered."""

import base64

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.apiserver.client import Api
from tests.unit.apiserver.objects import DEPLOYMENTS, PODS, deployment, pod

WEB = f"{DEPLOYMENTS}/web"


async def test_scale_is_a_view_of_replicas(api: Api) -> None:
    made = await api.create(DEPLOYMENTS, deployment())
    scale = (await api.get(f"{WEB}/scale")).body
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 0, "selector": "app=web"}
    assert scale["metadata"]["uid"] == made["metadata"]["uid"]
    scale["spec"]["replicas"] = 5
    assert (await api.request("PUT", f"{WEB}/scale", scale)).body["spec"]["replicas"] == 5
    stale = await api.request("PUT", f"{WEB}/scale", scale)
    assert (stale.code, stale.reason) == (409, "Conflict")
    patched = await api.patch(f"{WEB}/scale", {"spec": {"replicas": 0}}, "merge-patch+json")
    assert patched.body["spec"]["replicas"] == 0
    assert (await api.get(WEB)).body["spec"]["replicas"] == 0
    wrong = await api.patch(f"{WEB}/scale", {"spec": {"replicas": -1}}, "merge-patch+json")
    assert (wrong.code, wrong.reason) == (422, "Invalid")


async def test_a_pod_is_bound_once(api: Api) -> None:
    made = await api.create(PODS, pod())
    binding = {
        "kind": "Binding",
        "apiVersion": "v1",
        "metadata": {"name": "web", "uid": made["metadata"]["uid"], "annotations": {"by": "scheduler"}},
        "target": {"kind": "Node", "name": "n1"},
    }
    foreign = {**binding, "metadata": {"name": "web", "uid": "another"}}
    assert (await api.request("POST", f"{PODS}/web/binding", foreign)).code == 409
    assert (await api.request("POST", f"{PODS}/web/binding", {**binding, "target": {}})).code == 422
    answer = await api.request("POST", f"{PODS}/web/binding", binding)
    assert (answer.code, answer.body["status"]) == (201, "Success")
    bound = (await api.get(f"{PODS}/web")).body
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["annotations"] == {"by": "scheduler"}
    (scheduled,) = (c for c in bound["status"]["conditions"] if c["type"] == "PodScheduled")
    assert scheduled["status"] == "True"
    again = await api.request("POST", f"{PODS}/web/binding", binding)
    assert again.code == 409
    assert 'pod web is already assigned to node "n1"' in again.message


async def test_an_eviction_asks_the_disruption_budgets(api: Api) -> None:
    await api.create(PODS, pod(labels={"app": "web"}))
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    await api.patch(f"{PODS}/web/status", {"status": {"phase": "Running"}})
    await api.create(
        budgets, {"metadata": {"name": "keep"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}}
    )
    eviction = {"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "web"}}
    held = await api.request("POST", f"{PODS}/web/eviction", eviction)
    assert (held.code, held.reason) == (429, "TooManyRequests")
    assert held.message == "Cannot evict pod as it would violate the pod's disruption budget."
    await api.patch(f"{budgets}/keep/status", {"status": {"disruptionsAllowed": 1}}, "merge-patch+json")
    dry = await api.request("POST", f"{PODS}/web/eviction", {**eviction, "deleteOptions": {"dryRun": ["All"]}})
    assert dry.code == 201
    assert (await api.get(f"{PODS}/web")).code == 200
    assert (await api.request("POST", f"{PODS}/web/eviction", eviction)).code == 201
    assert (await api.get(f"{PODS}/web")).code == 404
    assert (await api.get(f"{budgets}/keep")).body["status"]["disruptionsAllowed"] == 0


async def test_approval_and_status_of_a_csr_are_apart(api: Api) -> None:
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    encoded = base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode()
    spec = {"request": encoded, "signerName": "example.com/signer", "usages": ["client auth"]}
    made = await api.create(path, {"metadata": {"name": "c"}, "spec": spec})
    made["status"] = {"conditions": [{"type": "Approved", "status": "True", "reason": "test"}], "certificate": "LS0tLS0="}
    approved = (await api.request("PUT", f"{path}/c/approval", made)).body
    assert approved["status"]["conditions"][0]["type"] == "Approved"
    assert "certificate" not in approved["status"]
    changed = {**approved, "spec": {**spec, "signerName": "example.com/other"}}
    assert (await api.request("PUT", f"{path}/c", changed)).body["spec"]["signerName"] == "example.com/signer"


async def test_who_am_i_and_may_i(api: Api) -> None:
    me = (await api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", {}))["status"]["userInfo"]
    assert me["username"] == "system:admin"
    review = {"spec": {"resourceAttributes": {"verb": "create", "resource": "pods"}}}
    assert (await api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review))["status"]["allowed"] is True
    both = {"spec": {**review["spec"], "nonResourceAttributes": {"verb": "get", "path": "/"}}}
    assert (await api.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", both)).code == 400
    listed = await api.get("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
    assert listed.code == 405


async def test_ephemeral_containers_have_their_own_door(api: Api) -> None:
    await api.create(PODS, pod())
    added = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox"}]}}
    assert (await api.patch(f"{PODS}/web", added)).code == 422
    through = await api.patch(f"{PODS}/web/ephemeralcontainers", added)
    assert through.code == 200, through.body
    assert [c["name"] for c in through.body["spec"]["ephemeralContainers"]] == ["debug"]
    more = {"spec": {**added["spec"], "containers": [{"name": "main", "image": "other"}]}}
    kept = (await api.patch(f"{PODS}/web/ephemeralcontainers", more)).body
    assert kept["spec"]["containers"][0]["image"] == "nginx:1"

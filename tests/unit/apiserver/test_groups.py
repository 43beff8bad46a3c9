"""Every served kind, created, listed, watched, changed and deleted; and what is refused in the smaller ones."""

from typing import Any

import pytest

from controlplane.apiserver.resources import BUILT_IN, Resource
from tests.unit.apiserver.client import Api, Json
from tests.unit.apiserver.objects import deployment, pod

_TEMPLATE = deployment()["spec"]["template"]
_SELECTOR = {"matchLabels": {"app": "web"}}
_CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
_RULES = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
_ROLE_REF = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"}
_SUBJECTS = [{"kind": "ServiceAccount", "name": "s", "namespace": "default"}]
_POD = {"kind": "Pod", "name": "p", "namespace": "default"}
_TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
_BACKEND = {"service": {"name": "web", "port": {"number": 80}}}

EXAMPLES: dict[str, Json] = {
    "Pod": pod(),
    "Service": {"spec": {"ports": [{"port": 80}]}},
    "Event": {
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "R",
        "message": "m",
        "type": "Normal",
    },
    "ReplicationController": {"spec": {"template": _TEMPLATE}},
    "PersistentVolume": {
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/x"},
            "storageClassName": "s",
        }
    },
    "PersistentVolumeClaim": {"spec": _CLAIM},
    "LimitRange": {"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}},
    "ResourceQuota": {"spec": {"hard": {"pods": "3"}}},
    "PodTemplate": {"template": _TEMPLATE},
    "Deployment": {"spec": {"selector": _SELECTOR, "template": _TEMPLATE}},
    "ReplicaSet": {"spec": {"selector": _SELECTOR, "template": _TEMPLATE}},
    "StatefulSet": {"spec": {"selector": _SELECTOR, "template": _TEMPLATE, "serviceName": "web"}},
    "DaemonSet": {"spec": {"selector": _SELECTOR, "template": _TEMPLATE}},
    "ControllerRevision": {"revision": 1, "data": {"a": 1}},
    "Job": {"spec": {"template": {"spec": {**_TEMPLATE["spec"], "restartPolicy": "Never"}}}},
    "CronJob": {
        "spec": {
            "schedule": "*/5 1-3 * jan,Mar *",
            "jobTemplate": {"spec": {"template": {"spec": {**_TEMPLATE["spec"], "restartPolicy": "Never"}}}},
        }
    },
    "HorizontalPodAutoscaler": {"spec": {"scaleTargetRef": _TARGET, "maxReplicas": 3}},
    "PodDisruptionBudget": {"spec": {"maxUnavailable": "20%", "selector": _SELECTOR}},
    "Role": {"rules": _RULES},
    "ClusterRole": {"rules": _RULES},
    "RoleBinding": {"roleRef": _ROLE_REF, "subjects": _SUBJECTS},
    "ClusterRoleBinding": {"roleRef": _ROLE_REF, "subjects": _SUBJECTS},
    "EndpointSlice": {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]},
    "PriorityClass": {"value": 10},
    "NetworkPolicy": {"spec": {"podSelector": {}}},
    "Ingress": {"spec": {"defaultBackend": _BACKEND}},
    "IngressClass": {"spec": {"controller": "example.com/c"}},
    "StorageClass": {"provisioner": "example.com/p"},
    "CSIDriver": {"spec": {}},
    "CSINode": {"spec": {"drivers": []}},
    "CSIStorageCapacity": {"storageClassName": "s"},
    "VolumeAttachment": {"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}},
    "RuntimeClass": {"handler": "runsc"},
}


def example(resource: Resource) -> Json:
    obj: Json = {**EXAMPLES.get(resource.kind, {})}
    if resource.group == "events.k8s.io":
        obj = {
            "regarding": obj["involvedObject"],
            "note": "m",
            "reason": "R",
            "type": "Normal",
            "eventTime": "2024-01-01T00:00:00.000000Z",
            "action": "A",
            "reportingController": "c",
            "reportingInstance": "i",
        }
    return {"apiVersion": resource.api_version, "kind": resource.kind, **obj, "metadata": {"name": "example"}}


def collection(resource: Resource) -> str:
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    return f"{root}/namespaces/default/{resource.plural}" if resource.namespaced else f"{root}/{resource.plural}"


def _name(resource: Resource) -> str:
    return resource.qualified


STORED = [r for r in BUILT_IN if "list" in r.verbs and r.kind != "CertificateSigningRequest"]


@pytest.mark.parametrize("resource", STORED, ids=_name)
async def test_every_kind_lives_and_dies(api: Api, resource: Resource) -> None:
    path = collection(resource)
    made = (await api.request("POST", path, example(resource), fieldValidation="Strict", fieldManager="tester")).body
    assert made["metadata"].get("uid"), made
    assert (made["apiVersion"], made["kind"]) == (resource.api_version, resource.kind)
    again = await api.request("PUT", f"{path}/example", made, fieldValidation="Strict")
    assert (again.code, again.body) == (200, made), again.body
    labelled = await api.patch(f"{path}/example", {"metadata": {"labels": {"a": "b"}}})
    assert labelled.body["metadata"]["labels"]["a"] == "b"
    listed = (await api.get(path, labelSelector="a=b")).body
    assert (listed["kind"], [item["metadata"]["name"] for item in listed["items"]]) == (f"{resource.kind}List", ["example"])
    table = (await api.request("GET", path, headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})).body
    assert all(len(row["cells"]) == len(table["columnDefinitions"]) for row in table["rows"])
    applied = example(resource)
    applied["metadata"] = {"name": "example", "labels": {"a": "c"}}
    done = await api.request(
        "PATCH",
        f"{path}/example",
        applied,
        headers={"Content-Type": "application/apply-patch+yaml"},
        fieldManager="me",
        force="true",
    )
    assert done.code == 200, done.body
    assert done.body["metadata"]["labels"]["a"] == "c"
    if resource.status:
        status = await api.patch(f"{path}/example/status", {"metadata": {"annotations": {"s": "t"}}}, "merge-patch+json")
        assert status.code == 200, status.body
    assert (await api.request("DELETE", f"{path}/example")).code == 200
    if resource.kind != "Namespace":
        assert (await api.get(f"{path}/example")).code == 404


@pytest.mark.parametrize("resource", STORED, ids=_name)
async def test_what_every_kind_refuses(api: Api, resource: Resource) -> None:
    path = collection(resource)
    broken = example(resource)
    broken["metadata"]["name"] = "not/possible"
    answer = await api.request("POST", path, broken)
    assert (answer.code, answer.reason) == (422, "Invalid")
    typo = {**example(resource), "nosuchfield": 1}
    strict = await api.request("POST", path, typo, fieldValidation="Strict")
    assert 'strict decoding error: unknown field "nosuchfield"' in strict.message
    before = (await api.get(path)).body["items"]
    assert [item["metadata"]["name"] for item in before] == (["default"] if resource.kind == "Namespace" else [])


def changed(kind: str, **more: Any) -> Json:
    """An example with other fields in its spec, or (with a leading underscore) at its top."""
    obj = {**EXAMPLES.get(kind, {})}
    obj.update({key[1:]: value for key, value in more.items() if key.startswith("_")})
    spec = {key: value for key, value in more.items() if not key.startswith("_")}
    if spec:
        obj["spec"] = {**obj.get("spec", {}), **spec}
    return obj


@pytest.mark.parametrize(
    ("kind", "obj", "text"),
    [
        ("Role", changed("Role", _rules=[{"apiGroups": [""], "resources": ["pods"]}]), "verbs must contain at least one value"),
        ("Role", changed("Role", _rules=[{"verbs": ["get"], "nonResourceURLs": ["/x"]}]), "cannot apply to non-resource URLs"),
        ("ClusterRole", changed("ClusterRole", _rules=[{"verbs": ["get"]}]), "must supply at least one api group"),
        ("RoleBinding", changed("RoleBinding", _roleRef={"kind": "Role", "apiGroup": "x"}), "roleRef.name: Required value"),
        ("PriorityClass", changed("PriorityClass", _value=2_000_000_000), "maximum allowed value of a user defined priority"),
        (
            "PodDisruptionBudget",
            changed("PodDisruptionBudget", minAvailable=1),
            "minAvailable and maxUnavailable cannot be both set",
        ),
        ("PodDisruptionBudget", changed("PodDisruptionBudget", maxUnavailable="200%"), "must not be greater than 100%"),
        ("HorizontalPodAutoscaler", changed("HorizontalPodAutoscaler", maxReplicas=0), "must be greater than 0"),
        ("ResourceQuota", changed("ResourceQuota", hard={"pods": "many"}), "quantities must match the regular expression"),
        ("NetworkPolicy", changed("NetworkPolicy", policyTypes=["Sideways"]), 'Unsupported value: "Sideways"'),
        (
            "NetworkPolicy",
            changed("NetworkPolicy", ingress=[{"from": [{"ipBlock": {"cidr": "x"}}]}]),
            "a valid CIDR value",
        ),
        ("Ingress", {"spec": {}}, "either `defaultBackend` or `rules` must be specified"),
        ("Ingress", {"spec": {"rules": [{"http": {"paths": [{"backend": _BACKEND, "path": "/"}]}}]}}, "pathType"),
        ("EndpointSlice", changed("EndpointSlice", _endpoints=[{"addresses": ["x"]}]), "must be a valid IPv4 address"),
        ("EndpointSlice", changed("EndpointSlice", _addressType="IPv5"), 'Unsupported value: "IPv5"'),
        ("PersistentVolumeClaim", changed("PersistentVolumeClaim", accessModes=[]), "at least 1 access mode is required"),
        ("PersistentVolumeClaim", changed("PersistentVolumeClaim", resources={}), "spec.resources[storage]: Required value"),
        (
            "PersistentVolume",
            changed("PersistentVolume", nfs={"server": "s", "path": "/"}),
            "more than 1 volume type",
        ),
        ("StorageClass", {"provisioner": ""}, "provisioner: Required value"),
        ("RuntimeClass", {"handler": "Not A Label"}, "handler: Invalid value"),
        ("Lease", {"spec": {"leaseDurationSeconds": 0}}, "must be greater than 0"),
        (
            "Node",
            {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}] * 2}},
            "must be unique by key and effect pair",
        ),
        ("Event", changed("Event", _involvedObject={"namespace": "other"}), "does not match event.namespace"),
        ("Secret", {"type": "kubernetes.io/tls", "data": {"tls.crt": "YQ=="}}, "data[tls.key]: Required value"),
        ("Secret", {"type": "kubernetes.io/basic-auth"}, "data[username]: Required value"),
        ("CronJob", changed("CronJob", schedule="61 * * * *"), "spec.schedule: Invalid value"),
        ("CronJob", changed("CronJob", schedule="* * *"), "expected exactly 5 fields, found 3"),
        ("CronJob", changed("CronJob", timeZone="Mars/Olympus"), "unknown time zone Mars/Olympus"),
        ("Job", {"spec": {"template": _TEMPLATE}}, "spec.template.spec.restartPolicy: Required value"),
        (
            "ReplicationController",
            changed("ReplicationController", selector={"a": "b"}),
            "`selector` does not match template `labels`",
        ),
        (
            "CertificateSigningRequest",
            {"spec": {"request": "YQ==", "signerName": "nodomain", "usages": ["client auth"]}},
            "must be a fully qualified domain and path",
        ),
    ],
)
async def test_what_some_kinds_refuse(api: Api, kind: str, obj: Json, text: str) -> None:
    resource = next(r for r in BUILT_IN if r.kind == kind and r.group != "events.k8s.io")
    answer = await api.request("POST", collection(resource), {**obj, "metadata": {"name": "example"}})
    assert (answer.code, answer.reason) == (422, "Invalid"), answer.body
    assert text in answer.message
    assert (await api.get(f"{collection(resource)}/example")).code == 404


@pytest.mark.parametrize(
    ("kind", "patch", "text"),
    [
        ("RoleBinding", {"roleRef": {"name": "other"}}, "cannot change roleRef"),
        ("StorageClass", {"provisioner": "other"}, "updates to provisioner are forbidden"),
        ("RuntimeClass", {"handler": "other"}, "field is immutable"),
        ("PriorityClass", {"value": 11}, "may not be changed in an update"),
        ("EndpointSlice", {"addressType": "IPv6", "endpoints": []}, "field is immutable"),
        ("PersistentVolumeClaim", {"spec": {"accessModes": ["ReadOnlyMany"]}}, "spec is immutable after creation"),
        ("Job", {"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}, "field is immutable"),
        ("StatefulSet", {"spec": {"serviceName": "other"}}, "updates to statefulset spec for fields other than"),
    ],
)
async def test_what_stays_as_it_was(api: Api, kind: str, patch: Json, text: str) -> None:
    resource = next(r for r in BUILT_IN if r.kind == kind)
    made = await api.create(collection(resource), example(resource))
    answer = await api.patch(f"{collection(resource)}/example", patch, "merge-patch+json")
    assert (answer.code, answer.reason) == (422, "Invalid"), answer.body
    assert text in answer.message
    assert (await api.get(f"{collection(resource)}/example")).body == made


async def test_an_event_is_the_same_in_both_groups(api: Api) -> None:
    new = next(r for r in BUILT_IN if r.group == "events.k8s.io")
    await api.create(collection(new), example(new))
    old = (await api.get("/api/v1/namespaces/default/events/example")).body
    assert (old["apiVersion"], old["message"], old["involvedObject"]["name"]) == ("v1", "m", "p")
    noted = await api.patch(f"{collection(new)}/example", {"note": "more"}, "merge-patch+json")
    assert (noted.body["apiVersion"], noted.body["note"]) == ("events.k8s.io/v1", "more")
    operations = [{"op": "replace", "path": "/regarding/name", "value": "p"}]
    assert (await api.patch(f"{collection(new)}/example", operations, "json-patch+json")).body["regarding"]["name"] == "p"
    found = await api.get("/api/v1/namespaces/default/events", fieldSelector="involvedObject.name=p,reason=R")
    assert len(found.body["items"]) == 1

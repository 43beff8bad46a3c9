"""Decoding, defaults and validation, with the texts that Kubernetes' clients show."""

import base64
from typing import Any

import pytest

from tests.unit.apiserver.client import Api, Json
from tests.unit.apiserver.objects import CONFIG_MAPS, DEPLOYMENTS, PODS, SECRETS, config_map, deployment, pod


async def refused(api: Api, path: str, obj: Json) -> str:
    """The message of a create that is Invalid and leaves nothing."""
    answer = await api.request("POST", path, obj)
    assert (answer.code, answer.reason) == (422, "Invalid"), answer.body
    assert (await api.get(path)).body["items"] == []
    return answer.message


# --- decoding


async def test_unknown_fields_by_field_validation(api: Api) -> None:
    obj = pod()
    obj["spec"]["containers"][0]["imagee"] = "x"
    strict = await api.request("POST", PODS, obj, fieldValidation="Strict")
    assert strict.code == 400
    assert strict.message == (
        'Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.containers[0].imagee"'
    )
    warned = await api.request("POST", PODS, obj, fieldValidation="Warn", dryRun="All")
    assert warned.code == 201
    assert warned.warnings == ['299 - "unknown field \\"spec.containers[0].imagee\\""']
    ignored = await api.request("POST", PODS, obj, fieldValidation="Ignore")
    assert (ignored.code, ignored.warnings) == (201, [])
    assert "imagee" not in ignored.body["spec"]["containers"][0]
    wrong = await api.request("POST", PODS, obj, fieldValidation="Maybe")
    assert (wrong.code, wrong.reason) == (422, "Invalid")


async def test_duplicate_fields_by_field_validation(api: Api) -> None:
    body = b'{"metadata":{"name":"a"},"data":{"x":"1","y":"2","x":"3"}}'
    strict = await api.request("POST", CONFIG_MAPS, body, fieldValidation="Strict")
    assert strict.code == 400
    assert 'strict decoding error: duplicate field "data.x"' in strict.message
    warned = await api.request("POST", CONFIG_MAPS, body)
    assert warned.warnings == ['299 - "duplicate field \\"data.x\\""']
    assert warned.body["data"] == {"x": "3", "y": "2"}


async def test_duplicate_fields_in_yaml(api: Api) -> None:
    body = b"metadata: {name: a}\ndata:\n  x: '1'\n  x: '2'\n"
    answer = await api.request("POST", CONFIG_MAPS, body, headers={"Content-Type": "application/yaml"}, fieldValidation="Strict")
    assert answer.code == 400
    assert 'key "x" already set in map' in answer.message


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"replicas": "3"}, "json: cannot unmarshal string into Go struct field Deployment.spec.replicas of type int32"),
        ({"paused": 1}, "json: cannot unmarshal number into Go struct field Deployment.spec.paused of type bool"),
        ({"replicas": True}, "json: cannot unmarshal bool into Go struct field Deployment.spec.replicas of type int32"),
        ({"template": []}, "json: cannot unmarshal array into Go struct field Deployment.spec.template of type"),
    ],
)
async def test_a_wrong_type(api: Api, spec: Json, text: str) -> None:
    obj = deployment()
    obj["spec"] |= spec
    answer = await api.request("POST", DEPLOYMENTS, obj)
    assert (answer.code, answer.reason) == (400, "BadRequest")
    assert f'Deployment in version "v1" cannot be handled as a Deployment: {text}' in answer.message


async def test_null_is_nothing(api: Api) -> None:
    made = await api.create(PODS, pod(nodeSelector=None, volumes=None, hostNetwork=None))
    assert not {"nodeSelector", "volumes", "hostNetwork"} & made["spec"].keys()


async def test_yaml_is_read_as_json_is(api: Api) -> None:
    body = b"metadata:\n  name: a\n  annotations: {when: '2024-01-01'}\ndata: {a: 'yes'}\n"
    answer = await api.request("POST", CONFIG_MAPS, body, headers={"Content-Type": "application/yaml"})
    assert (answer.code, answer.body["data"]) == (201, {"a": "yes"})


# --- defaults


async def test_a_pod_gets_its_defaults(api: Api) -> None:
    spec = (await api.create(PODS, pod()))["spec"]
    assert {key: spec[key] for key in spec if key != "containers"} == {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "enableServiceLinks": True,
    }
    assert spec["containers"] == [
        {
            "name": "main",
            "image": "nginx:1",
            "resources": {},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
        }
    ]


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("a", "Always"),
        ("a:latest", "Always"),
        ("a:1", "IfNotPresent"),
        ("localhost:5000/a", "Always"),
        ("localhost:5000/a:2", "IfNotPresent"),
        ("a@sha256:" + "0" * 64, "IfNotPresent"),
    ],
)
async def test_pull_policy_by_tag(api: Api, image: str, policy: str) -> None:
    made = await api.create(PODS, pod(containers=[{"name": "a", "image": image}]))
    assert made["spec"]["containers"][0]["imagePullPolicy"] == policy


async def test_empty_texts_are_defaults_too(api: Api) -> None:
    made = await api.create(PODS, pod(restartPolicy="", dnsPolicy=""))
    assert (made["spec"]["restartPolicy"], made["spec"]["dnsPolicy"]) == ("Always", "ClusterFirst")


async def test_limits_are_requests_where_none_are_given(api: Api) -> None:
    resources = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}
    made = await api.create(PODS, pod(containers=[{"name": "a", "image": "b", "resources": resources}]))
    assert made["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}


@pytest.mark.parametrize(
    ("resources", "qos"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}, "Guaranteed"),
    ],
)
async def test_qos_class(api: Api, resources: Json, qos: str) -> None:
    made = await api.create(PODS, pod(containers=[{"name": "a", "image": "b", "resources": resources}]))
    assert made["status"]["qosClass"] == qos


async def test_probes_and_volumes_get_theirs(api: Api) -> None:
    container = {"name": "a", "image": "b", "livenessProbe": {"httpGet": {"port": 80}}}
    volumes = [{"name": "c", "configMap": {"name": "c"}}, {"name": "e"}]
    spec = (await api.create(PODS, pod(containers=[container], volumes=volumes)))["spec"]
    assert spec["containers"][0]["livenessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert spec["volumes"] == [{"name": "c", "configMap": {"name": "c", "defaultMode": 420}}, {"name": "e", "emptyDir": {}}]


async def test_a_job_selects_its_own_pods(api: Api) -> None:
    job = {"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never", **pod()["spec"]}}}}
    made = await api.create("/apis/batch/v1/namespaces/default/jobs", job)
    uid = made["metadata"]["uid"]
    assert made["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    assert made["spec"]["template"]["metadata"]["labels"] == {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": "j",
        "controller-uid": uid,
        "job-name": "j",
    }
    assert (made["spec"]["completions"], made["spec"]["parallelism"], made["spec"]["backoffLimit"]) == (1, 1, 6)


# --- validation


def _container(**more: Any) -> Json:
    return pod(containers=[{"name": "main", "image": "x", **more}])


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        (pod("Bad_Name"), 'metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of'),
        (pod(containers=[]), "spec.containers: Required value"),
        (pod(containers=[{"name": "a"}]), "spec.containers[0].image: Required value"),
        (pod(containers=[{"image": "a"}]), "spec.containers[0].name: Required value"),
        (pod(containers=[{"name": "a", "image": "a"}] * 2), 'spec.containers[1].name: Duplicate value: "a"'),
        (pod(restartPolicy="Sometimes"), 'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "'),
        (_container(ports=[{"containerPort": 0}]), "spec.containers[0].ports[0].containerPort"),
        (_container(ports=[{"containerPort": 70000}]), "Invalid value: 70000: must be between 1 and 65535, inclusive"),
        (_container(volumeMounts=[{"name": "v", "mountPath": "/v"}]), 'volumeMounts[0].name: Not found: "v"'),
        (_container(livenessProbe={}), "spec.containers[0].livenessProbe: Required value: must specify a handler type"),
        (_container(env=[{"name": "A=B", "value": "x"}]), "spec.containers[0].env[0].name: Invalid value"),
        (_container(resources={"limits": {"cpu": "lots"}}), "quantities must match the regular expression"),
        (
            _container(resources={"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
            'spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1',
        ),
        (pod(labels={"a b": "c"}), 'metadata.labels: Invalid value: "a b": name part must consist of alphanumeric characters'),
        (pod(labels={"a": "-"}), "a valid label must be an empty string or consist of alphanumeric characters"),
        (pod(terminationGracePeriodSeconds=-1), "must be greater than or equal to 0"),
    ],
)
async def test_a_pod_that_makes_no_sense(api: Api, obj: Json, text: str) -> None:
    message = await refused(api, PODS, obj)
    assert text in message
    assert message.startswith(f'Pod "{obj["metadata"]["name"]}" is invalid: ')


async def test_all_problems_are_told_at_once(api: Api) -> None:
    answer = await api.request("POST", PODS, pod(containers=[{"name": "A"}], restartPolicy="x"))
    assert answer.message.startswith('Pod "web" is invalid: [')
    causes = answer.body["details"]["causes"]
    assert {(cause["field"], cause["reason"]) for cause in causes} == {
        ("spec.containers[0].name", "FieldValueInvalid"),
        ("spec.containers[0].image", "FieldValueRequired"),
        ("spec.restartPolicy", "FieldValueNotSupported"),
    }


async def test_what_may_change_in_a_pod(api: Api) -> None:
    made = await api.create(PODS, pod())
    assert (await api.patch(f"{PODS}/web", {"spec": {"containers": [{"name": "main", "image": "nginx:2"}]}})).code == 200
    assert (await api.patch(f"{PODS}/web", {"spec": {"activeDeadlineSeconds": 100}})).code == 200
    fixed = await api.patch(f"{PODS}/web", {"spec": {"nodeName": "elsewhere"}})
    assert fixed.code == 422
    assert "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`" in fixed.message
    assert made["metadata"]["uid"] == (await api.get(f"{PODS}/web")).body["metadata"]["uid"]


async def test_a_workload_selects_its_template(api: Api) -> None:
    obj = deployment()
    obj["spec"]["selector"]["matchLabels"] = {"app": "another"}
    assert "`selector` does not match template `labels`" in await refused(api, DEPLOYMENTS, obj)
    none = deployment()
    del none["spec"]["selector"]
    assert "spec.selector: Required value" in await refused(api, DEPLOYMENTS, none)
    never = deployment()
    never["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    assert 'Unsupported value: "Never": supported values: "Always"' in await refused(api, DEPLOYMENTS, never)


async def test_a_selector_stays(api: Api) -> None:
    made = await api.create(DEPLOYMENTS, deployment())
    for labels in (made["spec"]["selector"]["matchLabels"], made["spec"]["template"]["metadata"]["labels"]):
        labels["more"] = "x"
    answer = await api.request("PUT", f"{DEPLOYMENTS}/web", made)
    assert answer.code == 422
    assert "field is immutable" in answer.message


# --- configuration


async def test_secrets_take_text(api: Api) -> None:
    made = await api.create(SECRETS, {"metadata": {"name": "s"}, "stringData": {"a": "text"}, "data": {"b": "Yg=="}})
    assert made["data"] == {"a": base64.b64encode(b"text").decode(), "b": "Yg=="}
    assert made["type"] == "Opaque"
    assert "stringData" not in made
    changed = await api.patch(f"{SECRETS}/s", {"type": "other"})
    assert (changed.code, "type: Invalid value" in changed.message) == (422, True)
    broken = await api.request("POST", SECRETS, {"metadata": {"name": "t"}, "data": {"a": "not base64!"}})
    assert broken.code == 400
    assert "illegal base64 data" in broken.message


async def test_immutable_configuration(api: Api) -> None:
    await api.create(CONFIG_MAPS, {**config_map(a="1"), "immutable": True})
    for patch in ({"data": {"a": "2"}}, {"immutable": False}, {"immutable": None}):
        answer = await api.patch(f"{CONFIG_MAPS}/settings", patch, "merge-patch+json")
        assert answer.code == 422
        assert "field is immutable when `immutable` is set" in answer.message
    assert (await api.patch(f"{CONFIG_MAPS}/settings", {"metadata": {"labels": {"a": "b"}}})).code == 200


async def test_keys_of_configuration(api: Api) -> None:
    assert "a valid config key must consist of" in await refused(api, CONFIG_MAPS, config_map(**{"a/b": "c"}))

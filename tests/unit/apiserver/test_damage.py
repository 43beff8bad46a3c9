"""Objects with damage in a random place: each is taken or refused with a reason, and never ends in an internal error."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.apiserver.resources import BUILT_IN, Resource
from tests.unit.apiserver.client import Api, Json
from tests.unit.apiserver.test_groups import collection, example

ROUNDS = 12
_KINDS = [r for r in BUILT_IN if "create" in r.verbs]
_ODD: list[Any] = [
    None,
    "",
    "x",
    "-",
    0,
    -1,
    2**40,
    1.5,
    True,
    [],
    {},
    [None],
    [[]],
    ["x"],
    [{}],
    {"x": "y"},
    {"": None},
    {"name": 1},
]
_STUFFED: Json = {
    "nodeName": "n",
    "selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
    "containers": [
        {
            "name": "main",
            "image": "x",
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [{"containerPort": 1, "hostPort": 1, "name": "p"}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "s"}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
            "livenessProbe": {"httpGet": {"port": 1}},
            "lifecycle": {"preStop": {"httpGet": {"port": "p"}}},
        }
    ],
    "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}, {"configMap": {"name": "c"}}]}}],
    "tolerations": [{"key": "a", "operator": "Exists"}],
}


def stuffed(resource: Resource) -> Json:
    """An example with more in it that can be damaged."""
    obj = copy.deepcopy(example(resource))
    for place in (obj.get("spec"), (obj.get("spec") or {}).get("template", {}).get("spec")):
        if place and "containers" in place:
            place.update(copy.deepcopy(_STUFFED))
    obj["metadata"] |= {"labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": [], "ownerReferences": []}
    return obj


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place of a tree: its container, and its key or index there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def damaged(obj: Json, chance: random.Random) -> Json:
    broken = copy.deepcopy(obj)
    for _ in range(chance.choice((1, 1, 2))):
        container, key = chance.choice(list(places(broken)))
        container[key] = copy.deepcopy(chance.choice(_ODD))
    return broken


@pytest.mark.parametrize("resource", _KINDS, ids=lambda resource: resource.qualified)
async def test_damage_is_refused_with_a_reason(api: Api, resource: Resource) -> None:
    chance = random.Random(resource.qualified)
    path, whole = collection(resource), stuffed(resource)
    await api.request("POST", path, {**example(resource), "metadata": {"name": "whole"}})
    for _ in range(ROUNDS):
        broken = damaged(whole, chance)
        told = json.dumps(broken)
        answers = [await api.request("POST", path, broken, dryRun="All")]
        if "update" in resource.verbs:
            answers.append(await api.request("PUT", f"{path}/whole", {**broken, "metadata": {"name": "whole"}}, dryRun="All"))
            for kind in ("strategic-merge-patch+json", "merge-patch+json"):
                patch = {key: value for key, value in broken.items() if key != "metadata"}
                answers.append(await api.patch(f"{path}/whole", patch, kind, dryRun="All"))
            answers.append(
                await api.patch(f"{path}/whole", broken, "apply-patch+yaml", fieldManager="m", force="true", dryRun="All")
            )
        for answer in answers:
            assert answer.code < 500, f"{answer.body}\n{told}"
            if answer.code >= 400:
                assert answer.body["status"] == "Failure", told
                assert answer.message, told

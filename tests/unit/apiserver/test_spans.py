"""One pod's spans make one tree, which begins at the write that created it."""

import json
from pathlib import Path

import pytest

from strata.telemetry import spans
from tests.unit.apiserver.client import Api, Json
from tests.unit.apiserver.objects import PODS, pod


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Switches spans on for one test."""
    monkeypatch.setattr(spans, "_file", None)
    monkeypatch.setattr(spans, "_service", "")
    spans.configure("apiserver", str(tmp_path / "spans"))
    return tmp_path / "spans"


def written(folder: Path) -> dict[str, Json]:
    lines = (folder / "apiserver.jsonl").read_text().splitlines()
    return {span["name"]: span for span in map(json.loads, lines)}


async def test_a_pods_tree_begins_at_its_creation(folder: Path, api: Api) -> None:
    made = await api.create(PODS, pod())
    binding = {"metadata": {"name": "web"}, "target": {"name": "n1"}}
    await api.request("POST", f"{PODS}/web/binding", binding)
    await api.patch(f"{PODS}/web/status", {"status": {"phase": "Running"}})
    found = written(folder)
    root = found["create pods"]
    assert made["metadata"]["annotations"][spans.ANNOTATION] == f"00-{root['traceId']}-{root['spanId']}-01"
    assert root["parentSpanId"] == ""
    for name in ("create pods/binding", "patch pods/status"):
        assert (found[name]["traceId"], found[name]["parentSpanId"]) == (root["traceId"], root["spanId"])
        assert found[name]["attributes"] == {"namespace": "default", "object": "web"}


async def test_a_clients_span_is_the_parent(folder: Path, api: Api) -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    await api.request("POST", PODS, pod(), headers={"traceparent": parent})
    span = written(folder)["create pods"]
    assert (span["traceId"], span["parentSpanId"]) == ("a" * 32, "b" * 16)


async def test_without_spans_a_pod_carries_no_trace(api: Api) -> None:
    assert "annotations" not in (await api.create(PODS, pod()))["metadata"]

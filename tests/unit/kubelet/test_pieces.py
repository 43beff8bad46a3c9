"""The pure parts, each by itself."""

import base64
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from kubelet import resources, security
from kubelet.access import subresources
from kubelet.admission import refuse
from kubelet.backoff import Backoff, duration
from kubelet.config import Config, ConfigError, parse
from kubelet.env import service_variables
from kubelet.expansion import expand, missing
from kubelet.fields import Facts, FieldError, field_value, resource_value
from kubelet.images import credentials_for, registry, valid
from kubelet.join import verify
from kubelet.machine import look
from kubelet.network import ClusterDns, dns_config, hosts_file
from kubelet.volumes import atomic
from strata.protocols import cri_pb2 as cri


def pod(**spec: Any) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": 'x"y'}}
    return {"metadata": metadata, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


def test_references_are_expanded_once_and_unknown_ones_stay() -> None:
    assert expand("$(A) $$(A) $(B) $ $(", {"A": "$(B)"}, {"B": "b"}) == "$(B) $(A) b $ $("
    assert missing("$(A)$(B)$$(C)", {"A": "x"}) == ["B"]


def test_pauses_double_and_are_forgotten() -> None:
    now = 0.0
    backoff = Backoff(10, 300, lambda: now)
    assert backoff.remaining("k", now) == 0
    backoff.next("k")
    assert backoff.remaining("k", now) == 10
    now = 11
    assert backoff.remaining("k", 0) == 0
    backoff.next("k")
    assert backoff.remaining("k", now) == 20
    for _ in range(10):
        backoff.next("k")
    assert backoff.pause("k") == 300
    now += 601
    backoff.next("k")
    assert backoff.pause("k") == 10
    assert [duration(s) for s in (10, 160, 300)] == ["10s", "2m40s", "5m0s"]


def test_fields_of_the_downward_api() -> None:
    facts = Facts("node", "10.0.0.9", ("10.0.0.1", "fd::1"), 2000, 1 << 30)
    assert field_value(pod(), "metadata.labels", facts) == 'a="x\\"y"\nb="2"'
    assert field_value(pod(), "metadata.labels['b']", facts) == "2"
    assert field_value(pod(), "status.podIPs", facts) == "10.0.0.1,fd::1"
    with pytest.raises(FieldError, match=r"unsupported fieldPath: spec\.nope"):
        field_value(pod(), "spec.nope", facts)
    limited = {"name": "c", "resources": {"limits": {"cpu": "1500m"}}}
    assert resource_value(limited, {"resource": "limits.cpu"}, facts) == "2"
    assert resource_value(limited, {"resource": "requests.cpu", "divisor": "1m"}, facts) == "1500"
    assert resource_value({"name": "c"}, {"resource": "limits.memory", "divisor": "1Mi"}, facts) == "1024"


def test_variables_of_services() -> None:
    def service(name: str, namespace: str, ip: str) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": ip, "ports": [{"name": "web", "port": 80}]},
        }

    services = [
        service("kubernetes", "default", "10.96.0.1"),
        service("my-db", "n", "10.96.0.5"),
        service("headless", "n", "None"),
    ]
    found = service_variables(services, "n", links=True)
    assert found["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert found["MY_DB_PORT_80_TCP"] == found["MY_DB_PORT"] == "tcp://10.96.0.5:80"
    assert found["MY_DB_SERVICE_PORT_WEB"] == "80"
    assert not any(name.startswith("HEADLESS") for name in found)
    assert not any(name.startswith("MY_DB") for name in service_variables(services, "n", links=False))


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        ([{}], "BestEffort"),
        ([{"requests": {"cpu": "1"}}], "Burstable"),
        ([{"limits": {"cpu": "1", "memory": "1Gi"}}], "Guaranteed"),
        ([{"limits": {"cpu": "1", "memory": "1Gi"}}, {}], "Burstable"),
        ([{"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}], "Burstable"),
    ],
)
def test_quality_of_service(containers: list[dict[str, Any]], expected: str) -> None:
    made = pod(containers=[{"name": f"c{i}", "resources": r} for i, r in enumerate(containers)])
    assert resources.qos_class(made) == expected


def test_what_cri_is_told_of_limits() -> None:
    container = {"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"memory": "512Mi"}}}
    told = resources.container_resources(pod(containers=[container]), container, 2 << 30)
    assert (told.cpu_shares, told.cpu_quota, told.cpu_period) == (512, 50_000, 100_000)
    assert (told.memory_limit_in_bytes, told.oom_score_adj) == (1 << 30, 750)
    bare = resources.container_resources(pod(), {"name": "c"}, 2 << 30)
    assert (bare.cpu_shares, bare.cpu_quota, bare.oom_score_adj) == (2, 0, 1000)


def test_a_pods_need_is_its_containers_or_its_largest_init_step() -> None:
    def needing(cpu: str, **more: Any) -> dict[str, Any]:
        return {"name": "x", "resources": {"requests": {"cpu": cpu}}, **more}

    made = pod(
        containers=[needing("100m"), needing("200m")], initContainers=[needing("50m", restartPolicy="Always"), needing("1")]
    )
    assert resources.pod_total(made, "requests", "cpu", resources.to_milli) == 1050


def test_the_resolver_of_a_pod_by_its_policy(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 9.9.9.9\nsearch example.org\noptions edns0\n")
    dns = ClusterDns(("10.96.0.10",), "cluster.local", str(tmp_path / "resolv.conf"))
    first = dns_config(pod(), dns)
    assert list(first.servers) == ["10.96.0.10"]
    assert list(first.searches) == ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org"]
    host = dns_config(pod(hostNetwork=True), dns)
    assert (list(host.servers), list(host.options)) == (["9.9.9.9"], ["edns0"])
    own = pod(
        dnsPolicy="None", dnsConfig={"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}
    )
    assert list(dns_config(own, dns).options) == ["ndots:2", "edns0"]


def test_the_hosts_file() -> None:
    text = hosts_file(pod(hostAliases=[{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]), ("10.0.0.1",), ClusterDns())
    assert "10.0.0.1\tp\n" in text
    assert text.endswith("1.2.3.4\ta\tb\n")


def test_security_contexts_are_merged() -> None:
    container = {"name": "c", "securityContext": {"runAsUser": 7, "capabilities": {"drop": ["ALL"]}}}
    made = pod(containers=[container], securityContext={"runAsUser": 5, "runAsGroup": 6, "fsGroup": 9, "runAsNonRoot": True})
    told = security.container_context(made, container, 0, "")
    assert (told.run_as_user.value, told.run_as_group.value, list(told.supplemental_groups)) == (7, 6, [9])
    assert list(told.capabilities.drop_capabilities) == ["ALL"]
    assert "/proc/kcore" in told.masked_paths
    nobody = {"name": "c"}
    root = pod(containers=[nobody], securityContext={"runAsNonRoot": True})
    with pytest.raises(security.NotAllowed, match="image will run as root"):
        security.container_context(root, nobody, 0, "")
    with pytest.raises(security.NotAllowed, match="non-numeric user"):
        security.container_context(root, nobody, None, "www")


def test_namespaces_that_pods_share() -> None:
    assert security.namespace_options(pod(hostNetwork=True)).network == cri.NODE
    assert security.namespace_options(pod(shareProcessNamespace=True)).pid == cri.POD
    assert security.namespace_options(pod()).pid == cri.CONTAINER


@pytest.mark.parametrize("reference", ["busybox", "a/b:1", "127.0.0.1:5000/x/y:v1", "r.io/x@sha256:" + "a" * 64, "localhost/x"])
def test_references_of_images(reference: str) -> None:
    assert valid(reference)


@pytest.mark.parametrize("reference", ["", "a b", "UPPER", "x:", "x@sha256:1", "x:tag:tag", "r.io/"])
def test_what_is_no_reference(reference: str) -> None:
    assert not valid(reference)


def test_credentials_are_for_their_registry_alone() -> None:
    auths = {"auths": {"https://r.io": {"auth": base64.b64encode(b"me:word").decode()}, "other.io": {"username": "x"}}}
    secret = {"data": {".dockerconfigjson": base64.b64encode(json.dumps(auths).encode()).decode()}}
    (found,) = credentials_for(secret, "r.io/a/b:1")
    assert (found.username, found.password) == ("me", "word")
    assert credentials_for(secret, "third.io/a") == []
    assert registry("library/x") == "docker.io"


def test_files_change_all_at_once_and_stay_inside(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    assert atomic.write(volume, {"a": atomic.File(b"1"), "d/b": atomic.File(b"2", 0o400)})
    assert not atomic.write(volume, {"a": atomic.File(b"1"), "d/b": atomic.File(b"2", 0o400)})
    before = (volume / "..data").resolve()
    assert atomic.write(volume, {"a": atomic.File(b"3")})
    assert (volume / "a").read_bytes() == b"3"
    assert not (volume / "d").is_symlink()
    assert not before.exists()
    for path in ("../x", "/x", "a/../../x", ""):
        with pytest.raises(ValueError, match="must be relative"):
            atomic.write(volume, {path: atomic.File(b"")})


def test_a_configuration_and_what_is_wrong_with_one() -> None:
    document = {"kind": "KubeletConfiguration", "clusterDNS": ["10.1.1.1"], "containerLogMaxSize": "1Mi", "fancy": 1}
    config, unknown = parse(document, Config(), source="f")
    assert (config.cluster_dns, config.log_max_bytes, unknown) == (("10.1.1.1",), 1 << 20, ["fancy"])
    with pytest.raises(ConfigError, match="f: maxPods"):
        parse({"maxPods": "many"}, Config(), source="f")
    with pytest.raises(ConfigError, match="node name"):
        Config(node_name="Bad_Name", node_ip="10.0.0.1").resolved()


def test_a_detached_signature_is_that_of_its_token() -> None:
    def encoded(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    header = encoded(json.dumps({"alg": "HS256", "kid": "abcdef"}).encode())
    mac = hmac.digest(b"secret", f"{header}.{encoded(b'content')}".encode(), "sha256")
    signature = f"{header}..{encoded(mac)}"
    assert verify("content", signature, "abcdef", "secret")
    assert not verify("contents", signature, "abcdef", "secret")
    assert not verify("content", signature, "abcdef", "other")
    none = encoded(json.dumps({"alg": "none", "kid": "abcdef"}).encode())
    assert not verify("content", f"{none}..{encoded(mac)}", "abcdef", "secret")


def test_the_node_refuses_what_does_not_fit(tmp_path: Path) -> None:
    machine = look(tmp_path)
    big = pod(containers=[{"name": "c", "resources": {"requests": {"memory": "100Ti"}}}])
    refused = refuse(big, [], machine, 10)
    assert refused is not None
    assert refused[0] == "OutOfmemory"
    assert refuse(pod(), [], machine, 10) is None
    port = pod(containers=[{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}])
    other = {**port, "metadata": {**port["metadata"], "uid": "other"}}
    assert refuse(port, [other], machine, 10) == (
        "NodePorts",
        "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
    )
    assert refuse(port, [port], machine, 10) is None


def test_paths_of_the_server_and_what_lets_one_use_them() -> None:
    assert subresources("/containerLogs/n/p/c") == ("proxy",)
    assert subresources("/stats/summary") == ("stats",)
    assert subresources("/healthz") == ("healthz", "proxy")

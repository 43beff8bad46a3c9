"""CNI's wire: versions, errors, and configurations that nobody should send."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodenet.cni.main import run
from nodenet.cni.results import render

ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_NETNS": "/nowhere"}


def error(environ: dict[str, str], config: Any) -> tuple[int, str]:
    status, output = run(environ, config if isinstance(config, bytes) else json.dumps(config).encode())
    assert status == 1
    body = json.loads(output)
    assert body["cniVersion"]
    return body["code"], body["msg"]


def test_version_lists_what_is_supported() -> None:
    status, output = run({"CNI_COMMAND": "VERSION"}, b'{"cniVersion": "1.0.0"}')
    assert status == 0
    assert json.loads(output) == {"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


@pytest.mark.parametrize(
    ("environ", "config", "code"),
    [
        ({}, {}, 4),
        ({"CNI_COMMAND": "MEND"}, {}, 4),
        (ENVIRON, b"not json", 6),
        (ENVIRON, b"[]", 6),
        (ENVIRON, b"[" * 100_000, 6),
        (ENVIRON, {"cniVersion": "0.2.0", "name": "n", "type": "bridge"}, 1),
        (ENVIRON, {"cniVersion": "1.0.0", "type": "bridge"}, 7),
        (ENVIRON, {"cniVersion": "1.0.0", "name": "a/b", "type": "bridge"}, 7),
        (ENVIRON, {"cniVersion": "1.0.0", "name": "n", "type": "teapot"}, 7),
        ({**ENVIRON, "CNI_CONTAINERID": "../x"}, {"cniVersion": "1.0.0", "name": "n", "type": "bridge"}, 4),
        ({**ENVIRON, "CNI_IFNAME": "much-too-long-a-name"}, {"cniVersion": "1.0.0", "name": "n", "type": "bridge"}, 4),
        ({**ENVIRON, "CNI_NETNS": ""}, {"cniVersion": "1.0.0", "name": "n", "type": "bridge"}, 4),
        ({**ENVIRON, "CNI_ARGS": "x"}, {"cniVersion": "1.0.0", "name": "n", "type": "bridge"}, 4),
        (ENVIRON, {"cniVersion": "1.0.0", "name": "n", "type": "bridge"}, 3),
        (ENVIRON, {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "isGateway": "yes"}, 7),
        (ENVIRON, {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "mtu": "big"}, 7),
        (ENVIRON, {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "vlan": 5}, 7),
        (ENVIRON, {"cniVersion": "1.0.0", "name": "n", "type": "portmap"}, 7),
        (
            ENVIRON,
            {
                "cniVersion": "1.0.0", "name": "n", "type": "portmap", "prevResult": {"ips": []},
                "runtimeConfig": {"portMappings": [{"hostPort": 99999, "containerPort": 1}]},
            },
            7,
        ),
        ({**ENVIRON, "CNI_NETNS": "/etc/hostname"}, {"cniVersion": "1.0.0", "name": "n", "type": "loopback"}, 3),
    ],
)  # fmt: skip
def test_errors_have_the_codes_of_the_specification(environ: dict[str, str], config: Any, code: int) -> None:
    assert error(environ, config)[0] == code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["type", "ips", "interfaces", "subnet", "portMappings"]), inner)
    ),
)


@given(JSON)
def test_whatever_comes_in_a_result_or_an_error_comes_out(value: Any) -> None:
    for kind in ("bridge", "portmap", "loopback"):
        config = {"cniVersion": "1.1.0", "name": "n", "type": kind, "ipam": value, "runtimeConfig": value, "prevResult": value}
        status, output = run(ENVIRON, json.dumps(config).encode())
        body = json.loads(output)
        assert body["cniVersion"]
        assert status == 0 or (body["code"] and body["msg"])


def test_results_have_the_form_of_their_version() -> None:
    result = {
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/ns"}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}, {"address": "fd00::2/64", "interface": 0}],
    }
    assert [item["version"] for item in render(result, "0.4.0")["ips"]] == ["4", "6"]
    assert "version" not in render(result, "1.0.0")["ips"][0]
    assert "mtu" not in render(result, "1.0.0")["interfaces"][0]
    assert render(result, "1.1.0")["interfaces"][0]["mtu"] == 1500
    assert render(result, "1.1.0")["cniVersion"] == "1.1.0"

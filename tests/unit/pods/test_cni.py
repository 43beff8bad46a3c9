"""CNI: which configuration holds, what plugins are told, and what is kept for the DEL."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from highrt.cni import configuration
from highrt.cni.errors import CniError, NotConfigured
from highrt.cni.network import Attachment, Interface, Network, PortMapping
from tests.conftest import wait_for

_PLUGIN = """#!{python} -S
import json, os, sys
request = json.load(sys.stdin)
name, command = os.path.basename(sys.argv[0]), os.environ["CNI_COMMAND"]
with open("{record}", "a") as out:
    out.write(json.dumps([name, command, request, dict(os.environ)]) + "\\n")
if os.path.exists("{record}.fail-" + name + command):
    print(json.dumps({{"cniVersion": "1.0.0", "code": 7, "msg": "it does not want", "details": "at all"}}))
    sys.exit(1)
if command == "ADD":
    result = request.get("prevResult") or {{"cniVersion": "1.0.0", "ips": []}}
    result["ips"].append({{"address": "10.1.2.%d/24" % (3 + len(result["ips"]))}})
    print(json.dumps(result))
"""


class Plugins:
    """Two executables that write down what they are told."""

    def __init__(self, folder: Path) -> None:
        self.record = folder / "calls"
        self.conf, self.bin, self.cache = folder / "conf", folder / "bin", folder / "cache"
        for path in (self.conf, self.bin):
            path.mkdir()
        for name in ("one", "two"):
            path = self.bin / name
            path.write_text(_PLUGIN.format(python=sys.executable, record=self.record))
            path.chmod(0o755)
        plugins = [{"type": "one", "capabilities": {"portMappings": True}}, {"type": "two"}]
        config = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}
        (self.conf / "10-net.conflist").write_text(json.dumps(config))
        self.network = Network(self.conf, [self.bin], {}, self.cache)

    def fail(self, name: str, command: str) -> None:
        Path(f"{self.record}.fail-{name}{command}").touch()

    def calls(self) -> list[tuple[str, str, dict[str, Any], dict[str, str]]]:
        found = [json.loads(line) for line in self.record.read_text().splitlines()]
        self.record.unlink()
        return [(name, command, request, environ) for name, command, request, environ in found]


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    return Plugins(tmp_path)


_POD = Attachment("pod1", "/ns/1", {"K8S_POD_NAME": "p"}, [PortMapping(80, 8080, "tcp")])


async def test_an_attachment_from_add_to_del(plugins: Plugins) -> None:
    assert await plugins.network.add(_POD) == ["10.1.2.3", "10.1.2.4"]
    one, two = plugins.calls()
    assert [(one[0], one[1]), (two[0], two[1])] == [("one", "ADD"), ("two", "ADD")]
    assert one[2] == {
        "type": "one", "cniVersion": "1.0.0", "name": "net",
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]},
    }  # fmt: skip
    assert two[2]["prevResult"] == {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}
    wanted = {"CNI_CONTAINERID": "pod1", "CNI_NETNS": "/ns/1", "CNI_IFNAME": "eth0", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=p"}
    assert wanted.items() <= one[3].items()
    await plugins.network.check(_POD)
    assert [call[:2] for call in plugins.calls()] == [("one", "CHECK"), ("two", "CHECK")]
    (plugins.conf / "10-net.conflist").unlink()
    await plugins.network.delete(Attachment("pod1", ""))
    two, one = plugins.calls()
    assert [(two[0], two[1]), (one[0], one[1])] == [("two", "DEL"), ("one", "DEL")]
    assert len(one[2]["prevResult"]["ips"]) == 2
    assert (one[3]["CNI_NETNS"], one[3]["CNI_ARGS"]) == ("", "IgnoreUnknown=1;K8S_POD_NAME=p")
    assert plugins.network.attached() == []
    await plugins.network.delete(_POD)


async def test_the_first_folder_that_has_a_plugin_counts(plugins: Plugins, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (plugins.bin / "two").rename(other / "two")
    (other / "one").write_text("not executable")
    network = Network(plugins.conf, [other, tmp_path / "missing", plugins.bin], {}, plugins.cache)
    await network.add(_POD)
    one, two = plugins.calls()
    assert one[3]["CNI_PATH"] == two[3]["CNI_PATH"] == f"{other}:{tmp_path / 'missing'}:{plugins.bin}"
    (other / "two").unlink()
    with pytest.raises(NotConfigured, match=f"no plugin two in {other} or .*{plugins.bin.name}"):
        await network.add(Attachment("pod2", "/ns/2"))


async def test_a_pod_on_several_networks_and_what_is_kept_of_it(plugins: Plugins, tmp_path: Path) -> None:
    second = Attachment("pod1", "/ns/1", interface="eth1", addresses=["10.1.2.3"])
    await plugins.network.add(_POD)
    await plugins.network.add(second)
    await plugins.network.add(Attachment("pod2", "/ns/2"))
    assert [call[3]["CNI_IFNAME"] for call in plugins.calls()] == ["eth0", "eth0", "eth1", "eth1", "eth0", "eth0"]
    (plugins.cache / ".pod3").write_text("what was being written when the daemon was killed")
    again = Network(plugins.conf, [plugins.bin], {}, plugins.cache)
    assert again.attached() == ["pod1", "pod2"]
    assert not (plugins.cache / ".pod3").exists()
    assert [(each.name, each.network, each.plain()) for each in again.interfaces("pod1")] == [
        ("eth0", "net", ["10.1.2.3", "10.1.2.4"]), ("eth1", "net", ["10.1.2.3", "10.1.2.4"]),
    ]  # fmt: skip
    await again.detach(Attachment("pod1", "", interface="eth0"))
    assert [each.name for each in again.interfaces("pod1")] == ["eth1"]
    await again.delete(Attachment("pod1", ""))
    assert again.attached() == ["pod2"]
    assert [(call[0], call[1], call[3]["CNI_IFNAME"]) for call in plugins.calls()] == [
        ("two", "DEL", "eth0"), ("one", "DEL", "eth0"), ("two", "DEL", "eth1"), ("one", "DEL", "eth1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("routes", "way"),
    [
        ([], ""),
        ([{"dst": "0.0.0.0/0"}], "10.0.0.1"),
        ([{"dst": "10.9.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.0.0.7"}], "10.0.0.7"),
    ],
)
def test_the_way_out_of_an_interface(routes: list[dict[str, str]], way: str) -> None:
    result = {"ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}], "routes": routes}
    found = Interface("eth0", "net", result)
    assert (found.way_out(4), found.way_out(6)) == (way, "")
    assert found.addresses(6) == [("fd00::2/64", "")]


async def test_an_add_that_fails_is_undone_and_told(plugins: Plugins) -> None:
    plugins.fail("two", "ADD")
    with pytest.raises(CniError, match=r"plugin two \(ADD\): it does not want: at all") as caught:
        await plugins.network.add(_POD)
    assert caught.value.code == 7
    assert [call[:2] for call in plugins.calls()] == [("one", "ADD"), ("two", "ADD"), ("two", "DEL"), ("one", "DEL")]
    assert plugins.network.attached() == []


async def test_a_del_that_fails_can_be_tried_again(plugins: Plugins) -> None:
    await plugins.network.add(_POD)
    plugins.fail("two", "DEL")
    with pytest.raises(CniError):
        await plugins.network.delete(_POD)
    assert plugins.network.attached() == ["pod1"]


def test_the_first_good_file_by_name_holds(plugins: Plugins) -> None:
    (plugins.conf / "00-broken.conflist").write_text("{")
    (plugins.conf / "01-other.conf").write_text(json.dumps({"cniVersion": "0.4.0", "name": "single", "type": "one"}))
    (plugins.conf / "02-note.txt").write_text("no configuration")
    found = configuration.load(plugins.conf)
    assert (found.name, found.version, len(found.plugins)) == ("single", "0.4.0", 1)


async def test_what_is_missing_is_said(plugins: Plugins, tmp_path: Path) -> None:
    with pytest.raises(NotConfigured, match="nowhere"):
        configuration.load(tmp_path / "nowhere")
    (plugins.bin / "two").unlink()
    ready, why = await plugins.network.status()
    assert not ready
    assert "no plugin two" in why
    bad_version = {"name": "x", "cniVersion": "new", "plugins": [{"type": "one"}]}
    for bad in ([], {"name": "x"}, {"name": "x", "plugins": []}, {"name": "x", "plugins": [{"type": "../sh"}]}, bad_version):
        with pytest.raises(ValueError, match=r"must|missing|needs"):
            configuration.parse(bad)


def _configure(of: Plugins, **changes: Any) -> None:
    file = of.conf / "10-net.conflist"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


async def test_plugins_are_asked_whether_they_are_ready_from_version_1_1_on(plugins: Plugins) -> None:
    assert await plugins.network.status() == (True, "")
    assert not plugins.record.exists()
    _configure(plugins, cniVersion="1.1.0")
    assert await plugins.network.status() == (True, "")
    assert [call[:2] for call in plugins.calls()] == [("one", "STATUS"), ("two", "STATUS")]
    plugins.fail("two", "STATUS")
    assert await plugins.network.status() == (False, "plugin two (STATUS): it does not want: at all")


async def test_what_belongs_to_no_attachment_is_collected_from_version_1_1_on(plugins: Plugins) -> None:
    await plugins.network.add(_POD)
    plugins.calls()
    await plugins.network.collect()
    assert not plugins.record.exists()
    _configure(plugins, cniVersion="1.1.0")
    await plugins.network.collect()
    one, two = plugins.calls()
    assert [one[:2], two[:2]] == [("one", "GC"), ("two", "GC")]
    assert one[2]["cni.dev/valid-attachments"] == [{"containerID": "pod1", "ifname": "eth0"}]
    assert one[3]["CNI_PATH"] == str(plugins.bin)
    plugins.fail("one", "GC")
    await plugins.network.collect()  # nothing depends on it
    _configure(plugins, cniVersion="1.1.0", disableGC=True)
    plugins.calls()
    await plugins.network.collect()
    assert not plugins.record.exists()


@pytest.mark.parametrize(
    ("offered", "spoken"),
    [(["0.4.0", "1.0.0", "1.1.0", "2.0.0"], "1.1.0"), (["0.4.0", "0.3.1"], "0.4.0"), (["9.0.0"], "1.0.0"), ("1.1.0", "1.0.0")],
)
def test_of_several_versions_the_newest_known_one_is_spoken(plugins: Plugins, offered: Any, spoken: str) -> None:
    _configure(plugins, cniVersions=offered)
    assert configuration.load(plugins.conf).version == spoken


async def test_plugins_get_what_they_have_the_capability_for(plugins: Plugins) -> None:
    wanted = dict.fromkeys(("portMappings", "bandwidth", "ipRanges", "dns", "unheard-of"), True)
    _configure(plugins, plugins=[{"type": "one", "capabilities": wanted}, {"type": "two"}])
    plugins.network.set_pod_cidrs(["10.1.0.0/24", "fd00::/64"])
    rates = {"ingressRate": 1000, "ingressBurst": 5}
    await plugins.network.add(Attachment("pod1", "/ns/1", {}, [], {"servers": ["10.0.0.1"]}, rates))
    one, two = plugins.calls()
    assert one[2]["runtimeConfig"] == {
        "bandwidth": rates, "dns": {"servers": ["10.0.0.1"]},
        "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
    }  # fmt: skip
    assert "runtimeConfig" not in two[2]
    plugins.network.set_pod_cidrs([])
    await plugins.network.delete(_POD)  # with what the ADD had
    assert plugins.calls()[1][2]["runtimeConfig"] == one[2]["runtimeConfig"]


async def test_a_plugin_that_hangs_is_ended_with_what_it_started(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("highrt.cni.plugins.TIMEOUT_SECONDS", 0.5)
    started = plugins.conf.parent / "started"
    (plugins.bin / "two").write_text(f"#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\nsleep 86 & echo $! > {started}; sleep 87\n")
    with pytest.raises(CniError, match="plugin two took longer than") as caught:
        await plugins.network.add(_POD)
    assert caught.value.code == 11
    assert plugins.network.attached() == []
    wait_for(lambda: not Path(f"/proc/{started.read_text().strip()}").exists(), what="the plugin's child to end")


async def test_a_helper_that_hangs_is_replaced(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("highrt.cni.plugins.TIMEOUT_SECONDS", 3.0)
    entry = "tests.unit.pods.cni_plugin:run"
    network = Network(plugins.conf, [plugins.bin], {"two": entry}, plugins.cache)
    slow = Attachment("pod1", "/ns/1", {"HANG": "yes"})
    try:
        with pytest.raises(CniError, match=f"{entry} took longer than") as caught:
            await network.add(slow)
        assert caught.value.code == 11
        assert await network.add(Attachment("pod2", "/ns/2")) == ["10.1.2.3", "10.9.9.9"]
        assert network.attached() == ["pod2"]
    finally:
        await network.close()


TEMPLATE = {
    "cniVersion": "1.0.0", "name": "made",
    "plugins": [{"type": "one", "ipam": {"subnet": "{{.PodCIDR}}", "ranges": "{{.PodCIDRRanges}}", "routes": "{{.Routes}}"}}],
}  # fmt: skip


async def test_a_configuration_is_made_of_the_template_and_follows_the_cidrs(plugins: Plugins) -> None:
    (plugins.conf / "10-net.conflist").unlink()
    template = plugins.conf.parent / "template"
    template.write_text(json.dumps(TEMPLATE))
    network = Network(plugins.conf, [plugins.bin], {}, plugins.cache, template)
    assert (await network.status())[0] is False
    for cidrs, routes in ((["10.1.0.0/24", "fd00::/64"], ["0.0.0.0/0", "::/0"]), (["fd01::/64"], ["::/0"])):
        network.set_pod_cidrs(cidrs)
        assert await network.status() == (True, "")
        made = configuration.load(plugins.conf)
        assert made.name == "made"
        assert made.plugins[0]["ipam"] == {
            "subnet": cidrs[0], "ranges": [[{"subnet": cidr}] for cidr in cidrs], "routes": [{"dst": route} for route in routes],
        }  # fmt: skip
    (plugins.conf / "99-other.conflist").write_text(json.dumps(TEMPLATE | {"name": "other"}))
    before = [path.read_text() for path in configuration.files(plugins.conf)]
    network.set_pod_cidrs(["10.2.0.0/24"])  # somebody else sees to the network now
    assert [path.read_text() for path in configuration.files(plugins.conf)] == before


def test_a_template_that_is_no_configuration_is_told(plugins: Plugins) -> None:
    (plugins.conf / "10-net.conflist").unlink()
    template = plugins.conf.parent / "template"
    network = Network(plugins.conf, [plugins.bin], {}, plugins.cache, template)
    for text in (None, "{", "{}"):
        if text is not None:
            template.write_text(text)
        with pytest.raises(CniError, match=str(template)):
            network.set_pod_cidrs(["10.1.0.0/24"])
    assert configuration.files(plugins.conf) == []

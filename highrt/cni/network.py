"""Attaching pods to the node's network and detaching them: ADD, CHECK and DEL over a list of plugins.

What was attached is cached on disk with the configuration it was attached by, until DEL has succeeded: a DEL must work after
the configuration has changed, and after a reboot (CNI specification, section 4, "Deleting", and the cached result).
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from highrt.cni import configuration, template
from highrt.cni.configuration import NetworkConfig
from highrt.cni.errors import CniError, NotConfigured
from highrt.cni.plugins import QUICK_SECONDS, Plugins
from strata.telemetry import logs
from strata.telemetry.spans import span

log = logs.get("highrt.cni")

INTERFACE = "eth0"
"""A pod's first interface."""

_DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}


@dataclass(frozen=True)
class PortMapping:
    """A port of the host's that leads to one of the pod's. protocol: tcp, udp or sctp. host_ip: "" for all."""

    host_port: int
    container_port: int
    protocol: str
    host_ip: str = ""


@dataclass(frozen=True)
class Attachment:
    """A pod to attach. netns: the namespace's path. arguments: CNI_ARGS. bandwidth: by the names of the capability (ingressRate
    and so on), in bits and bits a second. network: one of those that have a name, else the node's. interface: its name
    inside. addresses: those that are asked for."""

    container_id: str
    netns: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    port_mappings: Sequence[PortMapping] = ()
    dns: Mapping[str, list[str]] = field(default_factory=dict)
    bandwidth: Mapping[str, int] = field(default_factory=dict)
    network: str = ""
    interface: str = INTERFACE
    addresses: Sequence[str] = ()

    def capabilities(self) -> dict[str, Any]:
        """What plugins may ask for under `runtimeConfig` (CNI conventions, dynamic configuration)."""
        found: dict[str, Any] = {}
        if self.port_mappings:
            found["portMappings"] = [
                {"hostPort": m.host_port, "containerPort": m.container_port, "protocol": m.protocol}
                | ({"hostIP": m.host_ip} if m.host_ip else {})
                for m in self.port_mappings
            ]
        if self.dns:
            found["dns"] = dict(self.dns)
        if self.bandwidth:
            found["bandwidth"] = dict(self.bandwidth)
        if self.addresses:
            found["ips"] = [*self.addresses]
        return found


@dataclass(frozen=True)
class Interface:
    """An attachment as it is kept. network: the name in its configuration. result: the plugins', None while there is none."""

    name: str
    network: str
    result: Any

    def addresses(self, version: int) -> list[tuple[str, str]]:
        """Its addresses with their prefix length, of this version of IP, and the gateway of each ("" for none)."""
        ips = (self.result or {}).get("ips") or ()
        return [(str(ip["address"]), str(ip.get("gateway") or "")) for ip in ips if (":" in ip["address"]) == (version == 6)]

    def plain(self) -> list[str]:
        """All its addresses, without their prefix length."""
        return _addresses(self.result) if self.result else []

    def mac(self) -> str:
        """The inner end's hardware address, "" where the plugins did not tell it."""
        interfaces = (self.result or {}).get("interfaces") or ()
        return next((str(each.get("mac") or "") for each in interfaces if each.get("sandbox")), "")

    def way_out(self, version: int) -> str:
        """The gateway of its default route, "" where it has none."""
        for route in (self.result or {}).get("routes") or ():
            if route.get("dst") == _DEFAULT_ROUTES[version]:
                return str(route.get("gw") or next((gateway for _, gateway in self.addresses(version)), ""))
        return ""


class Network:
    """The node's pod network. `status` says whether it can be used yet."""

    def __init__(
        self, conf_dir: Path, bin_dirs: Sequence[Path], entries: Mapping[str, str], cache_dir: Path,
        template_file: Path | None = None, named_dir: Path | None = None,
    ) -> None:  # fmt: skip
        """bin_dirs, entries: see Plugins. cache_dir: see above.
        template_file: what a configuration is made from, see `template`. named_dir: has the configurations of further networks,
        as NAME.conflist."""
        self._conf_dir, self._cache_dir, self._named_dir, self._template = conf_dir, cache_dir, named_dir, template_file
        self.plugins = Plugins(bin_dirs, entries)
        self._pod_cidrs: list[str] = []

    async def close(self) -> None:
        await self.plugins.close()

    def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """The node's, as a kubelet told them: for plugins with the capability ipRanges, and for the template, unless somebody
        else has put a configuration there. Raises CniError where the template is no good."""
        self._pod_cidrs = list(cidrs)
        if self._template is None or not cidrs:
            return
        others = [file for file in configuration.files(self._conf_dir) if file.name != template.NAME]
        if not others and template.write(self._template, self._conf_dir, cidrs):
            log.info("network configuration made from the template", cidrs=",".join(cidrs))

    async def status(self) -> tuple[bool, str]:
        """Whether pods can be attached, and why not. Plugins are asked from version 1.1 on, which has STATUS."""
        try:
            config = self._load()
            if config.at_least("1.1.0"):
                for plugin in config.plugins:
                    request = _request(config, plugin, self._of_the_node(), None)
                    await self.plugins.run(plugin["type"], {"CNI_COMMAND": "STATUS"}, request, QUICK_SECONDS)
        except CniError as error:
            return False, str(error)
        return True, ""

    async def collect(self) -> None:
        """Has the plugins free what is of no attachment that is known here (GC, from version 1.1 on). What fails is told in the
        log: nothing depends on it."""
        try:
            await self._collect(self._load(), QUICK_SECONDS)
        except NotConfigured:
            return
        except CniError as error:
            log.warning("the network cannot be cleaned up", error=str(error))

    async def collect_named(self, name: str) -> None:
        """The same for a network with a name: where nobody is attached, all of it goes. Raises CniError."""
        await self._collect(self._load(name))

    def subnets(self) -> list[str]:
        """Where the node's network takes addresses from, as far as its configuration tells (host-local)."""
        try:
            plugins = self._load().plugins
        except NotConfigured:
            return []
        found = [*self._pod_cidrs]
        for ipam in (plugin.get("ipam") for plugin in plugins):
            if isinstance(ipam, dict):
                ranges = [item for group in ipam.get("ranges") or () for item in group]
                found += [item["subnet"] for item in (ipam, *ranges) if "subnet" in item]
        return found

    def uses(self, name: str) -> bool:
        """Whether anybody is attached to a network with a name, also one whose ADD or DEL is going on. Raises NotConfigured."""
        config = self._load(name)
        return any(self._network_of(*each) == config.name for each in self._attachments())

    async def _collect(self, config: NetworkConfig, seconds: float | None = None) -> None:
        if config.disable_gc or not config.at_least("1.1.0"):
            return
        kept = [
            {"containerID": pod, "ifname": interface}
            for pod, interface in self._attachments()
            if self._network_of(pod, interface) == config.name
        ]
        for plugin in config.plugins:
            request = _request(config, plugin, self._of_the_node(), None) | {"cni.dev/valid-attachments": kept}
            await self.plugins.run(plugin["type"], {"CNI_COMMAND": "GC"}, request, seconds)

    async def add(self, attachment: Attachment) -> list[str]:
        """Attaches a pod; its addresses, the primary one first. After an error nothing is left. Raises CniError."""
        config = self._load(attachment.network)
        with span("cni add", network=config.name):
            self._remember(attachment, config, None)
            result: Any = None
            try:
                for plugin in config.plugins:
                    request = _request(config, plugin, self._of_the_node() | attachment.capabilities(), result)
                    result = await self.plugins.run(plugin["type"], _environ("ADD", attachment), request) or result
                addresses = _addresses(result)
                self._remember(attachment, config, result)
            except BaseException:
                try:
                    await self.detach(attachment)
                except CniError as error:
                    log.warning("an attachment that failed cannot be undone now", pod=attachment.container_id, error=str(error))
                raise
            return addresses

    async def check(self, attachment: Attachment) -> None:
        """Whether the pod is still attached as it was. Raises CniError where it is not."""
        cached = self._recall(attachment.container_id, attachment.interface)
        if not cached or cached["result"] is None:
            raise CniError(f"pod {attachment.container_id} is not attached")
        config = configuration.parse(cached["config"])
        if config.disable_check or not config.at_least("0.4.0"):
            return
        for plugin in config.plugins:
            request = _request(config, plugin, cached["capabilities"], cached["result"])
            await self.plugins.run(plugin["type"], _environ("CHECK", attachment), request)

    async def delete(self, attachment: Attachment) -> None:
        """Detaches a pod from all networks; nothing happens for one that is not attached. Raises CniError; then it can be tried
        again. Of the attachment only the pod and its namespace count, which is "" where it has gone."""
        failure: CniError | None = None
        for interface in self.interfaces(attachment.container_id):
            try:
                await self.detach(replace(attachment, interface=interface.name))
            except CniError as error:
                failure = failure or error
        if failure:
            raise failure

    async def detach(self, attachment: Attachment) -> None:
        """Detaches one interface of a pod, as `delete` all."""
        cached = self._recall(attachment.container_id, attachment.interface)
        if not cached:
            return
        config = configuration.parse(cached["config"])
        gone = replace(attachment, arguments=cached["arguments"])
        with span("cni del", network=config.name):
            for plugin in reversed(config.plugins):
                result = cached["result"] if config.at_least("0.4.0") else None
                request = _request(config, plugin, cached["capabilities"], result)
                await self.plugins.run(plugin["type"], _environ("DEL", gone), request)
        self._cache_file(attachment.container_id, attachment.interface).unlink(missing_ok=True)
        names = self._kept.get(attachment.container_id, set())
        names.discard(attachment.interface)
        if not names:
            self._kept.pop(attachment.container_id, None)

    def result(self, container_id: str) -> Any:
        """What the plugins answered when the pod's first interface was made; None where it has none."""
        return next((interface.result for interface in self.interfaces(container_id)), None)

    def interfaces(self, container_id: str) -> list[Interface]:
        """A pod's interfaces, in the order of their numbers."""
        found = []
        for name in sorted(self._kept.get(container_id, ()), key=lambda name: (len(name), name)):
            if cached := self._recall(container_id, name):
                found.append(Interface(name, str(cached["config"].get("name", "")), cached["result"]))
        return found

    def inner_name(self, name: str) -> str:
        """By which name the plugins know a network with a name, or the node's (""). Raises NotConfigured."""
        return self._load(name).name

    def attached(self) -> list[str]:
        """The container IDs of all that have attachments which were not deleted yet."""
        return sorted(self._kept)

    def _attachments(self) -> list[tuple[str, str]]:
        """Container ID and interface of all attachments."""
        return [(pod, interface) for pod in self.attached() for interface in sorted(self._kept[pod])]

    @functools.cached_property
    def _kept(self) -> dict[str, set[str]]:
        """The names of the interfaces of each pod: the files of the cache, which are listed once. What a daemon that was killed
        had begun to write is removed."""
        kept: dict[str, set[str]] = {}
        for file in self._cache_dir.iterdir() if self._cache_dir.is_dir() else ():
            pod, _, interface = file.name.partition(".")
            if pod:
                kept.setdefault(pod, set()).add(interface or INTERFACE)
            else:
                file.unlink()
        return kept

    def _of_the_node(self) -> dict[str, Any]:
        return {"ipRanges": [[{"subnet": cidr}] for cidr in self._pod_cidrs]} if self._pod_cidrs else {}

    def _network_of(self, container_id: str, interface: str) -> str:
        cached = self._recall(container_id, interface) or {}
        return str(cached.get("config", {}).get("name", ""))

    def _load(self, name: str = "") -> NetworkConfig:
        config = configuration.named(self._named_dir, name) if name else configuration.load(self._conf_dir)
        for plugin in config.plugins:
            if not self.plugins.has(plugin["type"]):
                raise NotConfigured(f"network {config.name}: no plugin {plugin['type']} in {self.plugins.places}")
        return config

    def _remember(self, attachment: Attachment, config: NetworkConfig, result: Any) -> None:
        self._cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        entry = {
            "config": config.raw, "result": result, "arguments": dict(attachment.arguments),
            "capabilities": self._of_the_node() | attachment.capabilities(),
        }  # fmt: skip
        file = self._cache_file(attachment.container_id, attachment.interface)
        temporary = file.with_name(f".{file.name}")
        with open(temporary, "w") as out:
            out.write(json.dumps(entry))  # dump() would do without the encoder in C
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(file)
        self._kept.setdefault(attachment.container_id, set()).add(attachment.interface)

    def _recall(self, container_id: str, interface: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._cache_file(container_id, interface).read_text())
            return found
        except FileNotFoundError:
            return None

    def _cache_file(self, container_id: str, interface: str) -> Path:
        return self._cache_dir / (container_id if interface == INTERFACE else f"{container_id}.{interface}")


def _request(config: NetworkConfig, plugin: dict[str, Any], available: Mapping[str, Any], previous: Any) -> dict[str, Any]:
    """A plugin's own configuration, made of its part of the list (CNI specification, section 5)."""
    request = {key: value for key, value in plugin.items() if key != "capabilities"}
    request |= {"cniVersion": config.version, "name": config.name}
    wanted = {name: available[name] for name, on in (plugin.get("capabilities") or {}).items() if on and name in available}
    if wanted:
        request["runtimeConfig"] = wanted
    if previous is not None:
        request["prevResult"] = previous
    return request


def _environ(command: str, attachment: Attachment) -> dict[str, str]:
    arguments = {"IgnoreUnknown": "1", **attachment.arguments}
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.container_id,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": attachment.interface,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in arguments.items()),
    }


def _addresses(result: Any) -> list[str]:
    """The addresses in a result: all of version 0.3.0 on, or `ip4` and `ip6` before."""
    if not isinstance(result, dict):
        raise CniError("the plugins returned no result")
    found = [entry["address"] for entry in result.get("ips") or ()]
    found += [result[key]["ip"] for key in ("ip4", "ip6") if isinstance(result.get(key), dict)]
    if not found:
        raise CniError("the plugins gave the pod no address")
    return [str(address).partition("/")[0] for address in found]

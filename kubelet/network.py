"""What a pod is told of names: its host name, resolv.conf (dnsPolicy, dnsConfig) and /etc/hosts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.protocols import cri_pb2 as cri

MAX_HOSTNAME = 63
MAX_SEARCHES, MAX_NAMESERVERS = 32, 3


@dataclass(frozen=True)
class ClusterDns:
    """servers: addresses of the cluster's DNS; domain: its suffix; resolv_conf: the node's own file."""

    servers: tuple[str, ...] = ()
    domain: str = "cluster.local"
    resolv_conf: str = "/etc/resolv.conf"


def hostname(pod: dict[str, Any]) -> str:
    """The pod's host name: `spec.hostname`, or its name, cut to what a DNS label may have."""
    spec = pod["spec"]
    name = spec.get("hostnameOverride") or spec.get("hostname") or pod["metadata"]["name"]
    return str(name)[:MAX_HOSTNAME].rstrip("-.")


def domain(pod: dict[str, Any], dns: ClusterDns) -> str:
    """The pod's domain; empty without `spec.subdomain`."""
    subdomain = pod["spec"].get("subdomain")
    return f"{subdomain}.{pod['metadata']['namespace']}.svc.{dns.domain}" if subdomain and dns.domain else ""


def sandbox_hostname(pod: dict[str, Any], dns: ClusterDns) -> str:
    """What the sandbox is given: nothing on the host's network, the FQDN where setHostnameAsFQDN asks for it."""
    spec = pod["spec"]
    if spec.get("hostNetwork") and not spec.get("hostnameOverride"):
        return ""
    suffix = domain(pod, dns)
    return f"{hostname(pod)}.{suffix}" if spec.get("setHostnameAsFQDN") and suffix else hostname(pod)


def dns_config(pod: dict[str, Any], dns: ClusterDns) -> cri.DNSConfig:
    """resolv.conf of a pod, by its dnsPolicy, with dnsConfig added."""
    spec = pod["spec"]
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    if policy == "ClusterFirst" and spec.get("hostNetwork"):
        policy = "Default"
    servers, searches, options = [], [], []
    if policy == "None":
        pass
    elif policy in ("ClusterFirst", "ClusterFirstWithHostNet") and dns.servers:
        servers = list(dns.servers)
        _, inherited, _ = read_resolv_conf(dns.resolv_conf)
        if dns.domain:
            namespace = pod["metadata"]["namespace"]
            searches = [f"{namespace}.svc.{dns.domain}", f"svc.{dns.domain}", dns.domain]
        searches += [s for s in inherited if s not in searches]
        options = ["ndots:5"]
    else:
        servers, searches, options = read_resolv_conf(dns.resolv_conf)
    own = spec.get("dnsConfig") or {}
    servers += [s for s in own.get("nameservers") or [] if s not in servers]
    searches += [s for s in own.get("searches") or [] if s not in searches]
    for option in own.get("options") or []:
        text = f"{option['name']}:{option['value']}" if option.get("value") not in (None, "") else option["name"]
        options = [o for o in options if o.split(":")[0] != option["name"]] + [text]
    return cri.DNSConfig(servers=servers[:MAX_NAMESERVERS], searches=searches[:MAX_SEARCHES], options=options)


def read_resolv_conf(path: str) -> tuple[list[str], list[str], list[str]]:
    """Name servers, search list and options of a resolv.conf (resolv.conf(5)); empty lists where there is no file."""
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return servers, searches, options
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            searches = [w.rstrip(".") or "." for w in words[1:]]
        elif words[0] == "options":
            options = words[1:]
    return servers, searches, options


def hosts_file(pod: dict[str, Any], pod_ips: tuple[str, ...], dns: ClusterDns, host_file: str = "/etc/hosts") -> str:
    """The /etc/hosts that the kubelet manages for a pod."""
    spec = pod["spec"]
    if spec.get("hostNetwork"):
        lines = ["# Kubernetes-managed hosts file (host network).", *Path(host_file).read_text(errors="replace").splitlines()]
    else:
        lines = ["# Kubernetes-managed hosts file.", "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
        lines += ["fe00::0\tip6-localnet", "fe00::0\tip6-mcastprefix", "fe00::1\tip6-allnodes", "fe00::2\tip6-allrouters"]
        suffix, name = domain(pod, dns), hostname(pod)
        lines += [f"{ip}\t{name}.{suffix}\t{name}" if suffix else f"{ip}\t{name}" for ip in pod_ips]
    aliases = spec.get("hostAliases") or []
    if aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += ["\t".join([alias["ip"], *(alias.get("hostnames") or [])]) for alias in aliases]
    return "\n".join(lines) + "\n"

"""What `inspect` prints: JSON in the form that people know from docker."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from highrt.cni.network import Interface
from highrt.images.model import Image, ImageConfig
from highrt.person.health import Health
from highrt.pods import extras
from highrt.pods.model import Container, ContainerState, Pod
from strata.protocols import cri_pb2 as cri
from strata.protocols import highrt_pb2 as api

_PROPAGATIONS = {
    cri.MountPropagation.PROPAGATION_PRIVATE: "rprivate",
    cri.MountPropagation.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    cri.MountPropagation.PROPAGATION_BIDIRECTIONAL: "rshared",
}


def image(found: Image) -> dict[str, Any]:
    config = found.config
    return {
        "Id": found.id,
        "RepoTags": [*found.tags],
        "RepoDigests": [*found.digests],
        "Created": found.created,
        "Size": found.size_bytes,
        "Os": found.platform.split("/")[0],
        "Architecture": found.platform.partition("/")[2],
        "Config": {
            "User": config.user,
            "Env": [*config.env],
            "Entrypoint": [*config.entrypoint],
            "Cmd": [*config.cmd],
            "WorkingDir": config.working_dir,
            "Labels": dict(config.labels),
            "StopSignal": config.stop_signal,
            "Volumes": {key: {} for key in config.volumes},
            "ExposedPorts": {key: {} for key in config.exposed_ports},
            **_given(Healthcheck=dict(config.health_check)),
        },
        "RootFS": {"Type": "layers", "Layers": [*found.diff_ids]},
        "Pinned": found.pinned,
    }


def container(
    found: Container, pod: Pod, name: str, made_from: Image | None, volume_of: Callable[[str], str]
) -> dict[str, Any]:  # fmt: skip
    """made_from: its image, if that is still here. volume_of: a volume's name, of its folder; of another path, that."""
    running = found.state is ContainerState.RUNNING
    config = _whole_config(found, pod, made_from)
    argv = [*config["Entrypoint"], *config["Cmd"]]
    return {
        "Id": found.id,
        "Name": name,
        "Created": time_text(found.created_at_ns),
        "Path": argv[0] if argv else "",
        "Args": argv[1:],
        "State": {
            "Status": found.state.value,
            "Running": running,
            "Pid": (found.pid or 0) if running else 0,
            "ExitCode": found.exit_code or 0,
            "OOMKilled": found.reason == "OOMKilled",
            "Error": found.message,
            "Reason": found.reason,
            "StartedAt": time_text(found.started_at_ns),
            "FinishedAt": time_text(found.finished_at_ns),
        },
        "Image": found.image_id,
        "ImageName": config["Image"],
        "Config": config,
        "HostConfig": _host_config(found, pod),
        "Mounts": [_mount(mount, volume_of(mount.host_path)) for mount in found.config.mounts],
        "LogPath": found.log_path or "",
        "Pod": {"Id": pod.id, "Name": pod.config.metadata.name, "Owner": pod.owner.value, "Handler": pod.handler},
    }


def pod(found: Pod, told: api.Pod) -> dict[str, Any]:
    """A pod for several containers, in podman's form."""
    options = found.config.linux.security_context.namespace_options
    shared = ["ipc", *(["net", "uts"] if options.network != cri.NODE else []), *(["pid"] if options.pid == cri.POD else [])]
    return {
        "Id": found.id,
        "Name": told.name,
        "Created": time_text(found.created_at_ns),
        "State": told.status,
        "Hostname": found.config.hostname,
        "Labels": dict(told.labels),
        "SharedNamespaces": shared,
        "Networks": [*told.networks],
        "PortBindings": {
            f"{port.container_port}/{cri.Protocol.Name(port.protocol).lower()}": [
                {"HostIp": port.host_ip, "HostPort": str(port.host_port)}
            ]
            for port in found.config.port_mappings
        },
        "NumContainers": len(told.containers),
        "Containers": [{"Id": item.id, "Name": item.name, "State": item.state} for item in told.containers],
    }


def _whole_config(found: Container, pod: Pod, made_from: Image | None) -> dict[str, Any]:
    """The image's configuration with what was given over it."""
    config, given = found.config, image_config(found)
    own, more = made_from.config if made_from else ImageConfig(), extras.of(found.owner, config.annotations)
    env = dict(item.partition("=")[::2] for item in own.env)
    env.update({item.key: item.value.decode(errors="replace") for item in config.envs})
    return {
        "Hostname": pod.config.hostname,
        "User": given.get("User", own.user),
        "Env": [f"{key}={value}" for key, value in env.items()],
        "Entrypoint": given.get("Entrypoint", [*own.entrypoint]),
        "Cmd": given.get("Cmd", [*own.cmd]),
        "WorkingDir": given.get("WorkingDir", own.working_dir),
        "Image": config.image.user_specified_image or config.image.image,
        "Tty": config.tty,
        "OpenStdin": config.stdin,
        "Labels": {**own.labels, **config.labels},
        "ExposedPorts": {key: {} for key in own.exposed_ports},
        "Volumes": {key: {} for key in own.volumes},
        "StopSignal": more.stop_signal or own.stop_signal,
        **_given(Healthcheck={**own.health_check, **(more.health or {})}),
    }


def _given(**values: Any) -> dict[str, Any]:
    """Without what is empty: docker leaves that out."""
    return {key: value for key, value in values.items() if value}


def _host_config(found: Container, pod: Pod) -> dict[str, Any]:
    config, more = found.config, extras.of(found.owner, found.config.annotations)
    limits, security = config.linux.resources, config.linux.security_context
    return {
        "Memory": limits.memory_limit_in_bytes,
        "MemorySwap": limits.memory_swap_limit_in_bytes,
        "MemoryReservation": more.memory_reservation_bytes,
        "CpuQuota": limits.cpu_quota,
        "CpuPeriod": limits.cpu_period,
        "CpuShares": limits.cpu_shares,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "PidsLimit": more.pids_limit,
        "CgroupParent": pod.config.linux.cgroup_parent,
        "ShmSize": more.shm_bytes,
        "Privileged": security.privileged,
        "ReadonlyRootfs": security.readonly_rootfs,
        "CapAdd": [*security.capabilities.add_capabilities],
        "CapDrop": [*security.capabilities.drop_capabilities],
        "Init": more.init,
        "Tmpfs": dict(more.tmpfs),
        "Ulimits": [
            {"Name": kind.removeprefix("RLIMIT_").lower(), "Soft": soft, "Hard": hard}
            for kind, (soft, hard) in more.rlimits.items()
        ],
        "Binds": [f"{mount.host_path}:{mount.container_path}{':ro' if mount.readonly else ''}" for mount in config.mounts],
        "PortBindings": ports(pod),
    }


def _mount(mount: cri.Mount, source: str) -> dict[str, Any]:
    kind = {"Type": "bind"} if source == mount.host_path else {"Type": "volume", "Name": source, "Driver": "local"}
    return {
        **kind,
        "Source": mount.host_path,
        "Destination": mount.container_path,
        "Mode": "ro" if mount.readonly else "",
        "RW": not mount.readonly,
        "Propagation": _PROPAGATIONS[mount.propagation],
    }


def ports(pod: Pod) -> dict[str, Any]:
    """Where a pod's ports are published."""
    found: dict[str, Any] = {}
    for port in pod.config.port_mappings:
        key = f"{port.container_port}/{cri.Protocol.Name(port.protocol).lower()}"
        if port.host_port:
            found.setdefault(key, []).append({"HostIp": port.host_ip or "0.0.0.0", "HostPort": str(port.host_port)})
    return found


def health(found: Health) -> dict[str, Any]:
    results = [
        {"Start": time_text(start_ns), "End": time_text(end_ns), "ExitCode": code, "Output": output}
        for start_ns, end_ns, code, output in found.results
    ]
    return {"Status": found.status, "FailingStreak": found.failing, "Log": results}


def image_config(found: Container) -> dict[str, Any]:
    """What a container was given in place of its image's configuration, in the form of an image's."""
    config, given = found.config, dict[str, Any]()
    if config.command:
        given["Entrypoint"], given["Cmd"] = [*config.command], [*config.args]
    elif config.args:
        given["Cmd"] = [*config.args]
    given["Env"] = [f"{item.key}={item.value.decode(errors='replace')}" for item in config.envs if item.key != "TERM"]
    given["Labels"] = dict(config.labels)
    if config.working_dir:
        given["WorkingDir"] = config.working_dir
    security = config.linux.security_context
    if user := security.run_as_username or (str(security.run_as_user.value) if security.HasField("run_as_user") else ""):
        given["User"] = f"{user}:{security.run_as_group.value}" if security.HasField("run_as_group") else user
    return given


def network(found: api.Network) -> dict[str, Any]:
    pairs = zip(found.subnets, found.gateways, strict=True)
    return {
        "Name": found.name,
        "Id": found.id,
        "Created": time_text(found.created_at_ns),
        "Scope": "local",
        "Driver": found.driver,
        "EnableIPv6": any(":" in subnet for subnet in found.subnets),
        "IPAM": {"Driver": "default", "Config": [{"Subnet": subnet, "Gateway": gateway} for subnet, gateway in pairs]},
        "Internal": found.internal,
        "Bridge": found.bridge,
        "Containers": {
            member.id: {
                "Name": member.name,
                "EndpointID": member.endpoint_id,
                "MacAddress": member.mac,
                "IPv4Address": next((address for address in member.addresses if ":" not in address), ""),
                "IPv6Address": next((address for address in member.addresses if ":" in address), ""),
            }
            for member in found.members
            if member.running
        },
        "Labels": dict(found.labels),
    }


def interface(found: Interface | None) -> dict[str, Any]:
    """One of a container's interfaces; empty values where it has none, as one that does not run."""
    address, gateway = next(iter(found.addresses(4) if found else ()), ("", ""))
    address6, gateway6 = next(iter(found.addresses(6) if found else ()), ("", ""))
    return {
        "Gateway": gateway,
        "IPAddress": address.partition("/")[0],
        "IPPrefixLen": int(address.partition("/")[2] or 0),
        "IPv6Gateway": gateway6,
        "GlobalIPv6Address": address6.partition("/")[0],
        "GlobalIPv6PrefixLen": int(address6.partition("/")[2] or 0),
        "MacAddress": found.mac() if found else "",
    }


def text(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False)


def time_text(time_ns: int | None) -> str:
    """RFC 3339 with microseconds; empty for a time that has not come."""
    if not time_ns:
        return ""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

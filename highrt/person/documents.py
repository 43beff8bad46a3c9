"""What `inspect` prints: JSON in the form that people know from docker."""

import json
from datetime import UTC, datetime
from typing import Any

from highrt.cni.network import Interface
from highrt.images.model import Image
from highrt.person.health import Health
from highrt.pods.model import Container, ContainerState, Pod
from strata.protocols import highrt_pb2 as api


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
        },
        "RootFS": {"Type": "layers", "Layers": [*found.diff_ids]},
        "Pinned": found.pinned,
    }


def container(found: Container, pod: Pod, name: str) -> dict[str, Any]:
    config = found.config
    running = found.state is ContainerState.RUNNING
    return {
        "Id": found.id,
        "Name": name,
        "Created": time_text(found.created_at_ns),
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
        "ImageName": config.image.user_specified_image or config.image.image,
        "Config": {
            "Hostname": pod.config.hostname,
            "Env": [f"{item.key}={item.value.decode(errors='replace')}" for item in config.envs],
            "Entrypoint": [*config.command],
            "Cmd": [*config.args],
            "WorkingDir": config.working_dir,
            "Tty": config.tty,
            "OpenStdin": config.stdin,
            "Labels": dict(config.labels),
        },
        "HostConfig": {
            "Memory": config.linux.resources.memory_limit_in_bytes,
            "CpuQuota": config.linux.resources.cpu_quota,
            "CpuPeriod": config.linux.resources.cpu_period,
            "Privileged": config.linux.security_context.privileged,
            "ReadonlyRootfs": config.linux.security_context.readonly_rootfs,
        },
        "Mounts": [
            {"Source": mount.host_path, "Destination": mount.container_path, "RW": not mount.readonly} for mount in config.mounts
        ],
        "LogPath": found.log_path or "",
        "Pod": {"Id": pod.id, "Owner": pod.owner.value, "Handler": pod.handler},
    }


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

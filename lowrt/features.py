"""features (runtime-spec features.md) and spec: what this runtime can do, and a configuration to start from."""

import os

from lowrt import config, main
from strata.linux import capabilities, cgroups, mounts, namespaces, scheduler, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

_LIKE_RUNC = "1.4.0"  # whose command line and configuration this one follows
_DEFAULT_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
MASKED_PATHS = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"]  # fmt: skip
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def features() -> "Spec":
    """The features structure (runtime-spec features.md)."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": config.SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": sorted([*mounts.OPTIONS, *mounts.PROPAGATIONS, *mounts.RECURSIVE, "idmap", "ridmap", "tmpcopyup"]),
        "linux": {
            "namespaces": sorted(namespaces.KINDS),
            "capabilities": [name for name, number in capabilities.NUMBERS.items() if number <= capabilities.last()],
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": sorted(seccomp.OPERATORS),
                "archs": sorted(seccomp.ARCHITECTURES),
                "knownFlags": sorted(seccomp.FLAGS),
                "supportedFlags": sorted(seccomp.supported_flags()),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {"modes": sorted(scheduler.MEMORY_MODES), "flags": sorted(scheduler.MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": _annotations(),
        # What somebody who may annotate a container, but not configure it, should not be let set.
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
    }


def _annotations() -> dict[str, str]:
    found = {
        "strata.lowrt.version": main.VERSION,
        "org.opencontainers.runc.version": _LIKE_RUNC,
        "org.opencontainers.runc.checkpoint.enabled": "false",
    }
    if version := libseccomp_version():
        found["io.github.seccomp.libseccomp.version"] = version
    return found


def libseccomp_version() -> str:
    """The library's version; "" where it is missing."""
    from strata.linux import libseccomp

    try:
        return libseccomp.version()
    except OSError:
        return ""


def template(*, rootless: bool) -> "Spec":
    """A configuration that runs a shell from ./rootfs."""
    sets = dict.fromkeys(("bounding", "effective", "permitted"), _DEFAULT_CAPABILITIES)
    spec: Spec = {
        "ociVersion": config.SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": sets,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "lowrt",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _mount("/dev", "tmpfs", "nosuid strictatime mode=755 size=65536k", source="tmpfs"),
            _mount("/dev/pts", "devpts", "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"),
            _mount("/dev/shm", "tmpfs", "nosuid noexec nodev mode=1777 size=65536k", source="shm"),
            _mount("/dev/mqueue", "mqueue", "nosuid noexec nodev"),
            _mount("/sys", "sysfs", "nosuid noexec nodev ro"),
            _mount("/sys/fs/cgroup", "cgroup", "nosuid noexec nodev relatime ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
    }
    if cgroups.mode() == "v2":
        spec["linux"]["namespaces"].append({"type": "cgroup"})  # with v1 as well, the host's layout is seen anyway
    if rootless:
        _make_rootless(spec)
    return spec


def _make_rootless(spec: "Spec") -> None:
    """Without what a user without privileges cannot have: a network of its own, cgroups, other IDs than the own."""
    linux = spec["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "network"] + [{"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    del linux["resources"]
    for index, mount in enumerate(spec["mounts"]):
        if mount["destination"] == "/sys":  # a new sysfs needs a network namespace
            spec["mounts"][index] = _mount("/sys", "none", "rbind nosuid noexec nodev ro", source="/sys")
        elif "options" in mount:
            mount["options"] = [option for option in mount["options"] if not option.startswith(("gid=", "uid="))]


def _mount(destination: str, kind: str, options: str, source: str = "") -> "Spec":
    return {"destination": destination, "type": kind, "source": source or kind, "options": options.split()}

"""features (runtime-spec features.md) and spec: what this runtime can do, and a configuration to start from."""

from lowrt import config
from strata.linux import capabilities, mounts, namespaces, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

_DEFAULT_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
MASKED_PATHS = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"]  # fmt: skip
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def features() -> "Spec":
    """The features structure."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": config.SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": sorted([*mounts.OPTIONS, *mounts.PROPAGATIONS, *mounts.RECURSIVE]),
        "linux": {
            "namespaces": sorted(namespaces.KINDS),
            "capabilities": [name for name, number in capabilities.NUMBERS.items() if number <= capabilities.last()],
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": sorted(seccomp.OPERATORS),
                "archs": sorted(seccomp.ARCHITECTURES),
                "supportedFlags": sorted(seccomp.supported_flags()),
                "knownFlags": sorted(seccomp.FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
    }


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
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
    }
    if rootless:
        import os

        linux = spec["linux"]
        linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup", "user")]
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
        del linux["resources"]
        spec["mounts"] = [m for m in spec["mounts"] if m["type"] not in ("sysfs", "cgroup")]
        spec["mounts"].append(_mount("/sys", "none", "rbind nosuid noexec nodev ro", source="/sys"))
        for mount in spec["mounts"]:
            mount["options"] = [o for o in mount.get("options", ()) if o != "gid=5"]
    return spec


def _mount(destination: str, kind: str, options: str, source: str = "") -> "Spec":
    return {"destination": destination, "type": kind, "source": source or kind, "options": options.split()}

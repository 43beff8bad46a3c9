"""What the containers of a pod share, and where it lies: `STATE/pods/POD/` with namespaces, shm, and files for /etc.

There is no pause container: the namespaces are kept by bind mounts, in the host's mount namespace, and taken away here.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from highrt.pods import userns
from highrt.pods.errors import InvalidArgument
from strata.linux import mounts, namespaces
from strata.protocols.cri_pb2 import DNSConfig, NamespaceMode, PodSandboxConfig

_SHM_BYTES = 64 << 20
_HOSTS_BYTES = 1 << 20
_NAMES_BEGIN, _NAMES_END = b"# names of highrt's networks\n", b"# end of highrt's names\n"
_IPC_SYSCTLS = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")


class Sandbox:
    """A pod's folder. The methods are idempotent, so that what a killed daemon began can be finished or undone."""

    def __init__(self, state: Path, pod_id: str) -> None:
        self.folder = state / "pods" / pod_id
        self._namespaces = self.folder / "ns"

    def container(self, container_id: str) -> Path:
        """A container's folder: bundle (config.json, rootfs), exit record."""
        return self.folder / container_id

    def namespace(self, kind: str) -> str:
        return str(self._namespaces / kind)

    def namespaces(self, config: PodSandboxConfig) -> dict[str, str]:
        """The namespaces that the pod has of its own, kind → path. On the host's network a pod has its host name too."""
        options = config.linux.security_context.namespace_options
        kinds = ["user"] if userns.of_pod(config) else []
        if options.network != NamespaceMode.NODE:
            kinds += ["network", "uts"]
        if options.ipc != NamespaceMode.NODE:
            kinds.append("ipc")
        return {kind: self.namespace(kind) for kind in kinds}

    def make(self, config: PodSandboxConfig, shm_bytes: int = 0) -> None:
        """The folder, its files and the shared memory. shm_bytes: its size, 0 for the default. Raises OSError."""
        # For root only: what lies in containers' roots may be set-user-ID.
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._namespaces.mkdir(mode=0o700, exist_ok=True)
        if config.linux.security_context.namespace_options.ipc != NamespaceMode.NODE:
            shm = self.folder / "shm"
            shm.mkdir(exist_ok=True)
            flags = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC
            mounts.mount("shm", str(shm), "tmpfs", flags, f"mode=1777,size={shm_bytes or _SHM_BYTES}")
        self._write("resolv.conf", resolv_conf(config.dns_config))
        self._write("hostname", f"{hostname(config)}\n")
        self.write_hosts(config, [])
        if mapping := userns.of_pod(config):
            mapping.let_in(self.folder)
            for name in ("shm", "resolv.conf", "hostname", "hosts"):
                mapping.give(self.folder / name)

    def write_hosts(self, config: PodSandboxConfig, ips: list[str], more: Mapping[str, str] | None = None) -> None:
        """/etc/hosts for pods whose owner brings none; a kubelet mounts its own. more: name → address."""
        added = "".join(f"{address}\t{name}\n" for name, address in (more or {}).items())
        if config.linux.security_context.namespace_options.network == NamespaceMode.NODE:
            with contextlib.suppress(OSError):
                self._write("hosts", Path("/etc/hosts").read_text(errors="replace") + added)
                return
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
        lines += [f"{ip}\t{hostname(config)}" for ip in ips]
        self._write("hosts", "\n".join(lines) + "\n" + added)

    def show_names(self, lines: Sequence[str]) -> None:
        """Has these lines be the daemon's part of /etc/hosts, whatever else a container has written there. Raises OSError.

        The file is mounted, so it is changed in its place, by one write: who reads it finds the lines of before or these.
        """
        descriptor = os.open(self.folder / "hosts", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            old = os.read(descriptor, _HOSTS_BYTES)
            if len(old) == _HOSTS_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/etc/hosts")
            before, mark, rest = old.partition(_NAMES_BEGIN)
            after = rest.partition(_NAMES_END)[2] if mark else b""
            names = b"".join([_NAMES_BEGIN, *(line.encode() + b"\n" for line in lines), _NAMES_END]) if lines else b""
            cut = names and before and not before.endswith(b"\n")
            new = before + (b"\n" if cut else b"") + names + after
            if new != old:
                os.pwrite(descriptor, new.ljust(len(old), b"\n"), 0)
                os.ftruncate(descriptor, len(new))
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Takes the namespaces and mounts away; files stay. Raises OSError."""
        if self._namespaces.is_dir():
            for entry in list(self._namespaces.iterdir()):
                namespaces.unpin(str(entry))
        if self.folder.is_dir():
            mounts.umount_below(str(self.folder))

    def remove(self) -> None:
        """Takes everything away."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)


def hostname(config: PodSandboxConfig) -> str:
    """The pod's; on the host's network, the host's."""
    if config.linux.security_context.namespace_options.network == NamespaceMode.NODE or not config.hostname:
        return os.uname().nodename
    return config.hostname


def resolv_conf(config: DNSConfig) -> str:
    """The resolver's configuration; the host's where the pod brings none (resolv.conf(5))."""
    if not (config.servers or config.searches or config.options):
        try:
            return Path("/etc/resolv.conf").read_text(errors="replace")
        except OSError:
            return ""
    lines = [f"nameserver {server}" for server in config.servers]
    if config.searches:
        lines.append(f"search {' '.join(config.searches)}")
    if config.options:
        lines.append(f"options {' '.join(config.options)}")
    return "\n".join(lines) + "\n"


def check_sysctls(config: PodSandboxConfig) -> None:
    """Only those that belong to a namespace of the pod's: another would change the host. Raises InvalidArgument."""
    options = config.linux.security_context.namespace_options
    for name in config.linux.sysctls:
        dotted = name.replace("/", ".")
        if ".." in dotted or not all(c.isalnum() or c in "._-" for c in dotted):
            raise InvalidArgument(f"sysctl {name!r}: not a name")
        if dotted.startswith("net."):
            if options.network == NamespaceMode.NODE:
                raise InvalidArgument(f"sysctl {name!r}: not allowed on the host's network")
        elif dotted.startswith(_IPC_SYSCTLS):
            if options.ipc == NamespaceMode.NODE:
                raise InvalidArgument(f"sysctl {name!r}: not allowed with the host's IPC namespace")
        else:
            raise InvalidArgument(f"sysctl {name!r}: it belongs to no namespace of a pod, so it cannot be set for one")

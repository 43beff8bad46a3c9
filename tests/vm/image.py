"""The machine's disk: a Debian 12 from packages, made once and kept outside the repository.

It is found again by a hash of what it is made from. Every boot sees it as it was made: what a machine writes is thrown away.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("STRATA_TEST_CACHE", "/var/cache/strata-tests"))
_SIZE = "4G"  # sparse: a quarter of it is used
PACKAGES = (
    # the machine
    "linux-image-cloud-amd64 systemd-sysv udev dbus dbus-user-session libpam-systemd kmod iproute2 procps "
    # what Strata needs
    "python3 libseccomp2 busybox-static nftables ca-certificates "
    # peers and their parts
    "podman crun runc conmon netavark aardvark-dns uidmap fuse-overlayfs slirp4netns iptables "
    # tools of tests
    "apparmor gcc libc6-dev locales strace util-linux-extra"
)
USER = "ada"

_AGENT = """\
[Unit]
Description=Runs what the other end of the serial port asks for
RequiresMountsFor=/srv/strata
Wants=dev-virtio\\x2dports-strata.control.device dev-virtio\\x2dports-strata.output.device
After=dev-virtio\\x2dports-strata.control.device dev-virtio\\x2dports-strata.output.device

[Service]
ExecStart=/usr/bin/python3 -IS /srv/strata/tests/vm/agent.py
Delegate=yes
TasksMax=infinity
LimitNOFILE=524288

[Install]
WantedBy=multi-user.target
"""
# What the image has beside its packages: path, content.
FILES = {
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n::1 localhost\n",
    # A first boot would set up every unit anew; a known ID says it is none.
    "etc/machine-id": "5f1ec0de5f1ec0de5f1ec0de5f1ec0de\n",
    "etc/fstab": "/dev/vda / ext4 rw 0 0\n/dev/vdb /srv/strata ext4 rw 0 0\n",
    "etc/systemd/system/strata-agent.service": _AGENT,
    # Rootless containers with every limit, as podman's and runc's documentation tell an administrator to do it.
    "etc/systemd/system/user@.service.d/delegate.conf": "[Service]\nDelegate=cpu cpuset io memory pids\n",
}
# What costs time at the boot, or wakes up in the middle of a test.
_MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer "
    "podman-auto-update.timer podman-auto-update.service podman-restart.service podman.service getty@tty1.service "
    "serial-getty@ttyS0.service systemd-pstore.service systemd-timesyncd.service systemd-tmpfiles-clean.timer"
)
# The initial RAM disk holds what finds the root, and not a driver for every machine in the world.
_INITRAMFS = {"conf.d/strata": "MODULES=list\nCOMPRESS=gzip\n", "modules": "virtio_pci\nvirtio_blk\n"}


@dataclass(frozen=True)
class Image:
    disk: Path
    kernel: Path
    initrd: Path


def ensure() -> Image:
    """The image, built where it is not there yet (a minute or two). Raises subprocess.CalledProcessError."""
    key = hashlib.sha256(repr((PACKAGES, FILES, _MASKED, _INITRAMFS, USER, _SIZE)).encode()).hexdigest()[:16]
    folder = CACHE / f"vm-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            print(f"vm: building the machine's disk in {folder}", flush=True)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="building-") as building:
                _build(Path(building) / "root", Path(building) / "image")
                (Path(building) / "image").rename(folder)
    return Image(folder / "disk", folder / "kernel", folder / "initrd")


def _build(root: Path, result: Path) -> None:
    hooks = [f"echo '{text}' >$1/etc/initramfs-tools/{name}" for name, text in _INITRAMFS.items()]
    subprocess.run(
        [
            "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES.split())}",
            "--essential-hook=mkdir -p $1/etc/initramfs-tools/conf.d", *(f"--essential-hook={hook}" for hook in hooks),
            f"--customize-hook=chroot $1 useradd --create-home --shell /bin/bash {USER}",
            f"--customize-hook=chroot $1 systemctl --quiet mask {_MASKED}",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "bookworm", root,
        ],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "srv/strata").mkdir()
    wants = root / "etc/systemd/system/multi-user.target.wants"
    (wants / "strata-agent.service").symlink_to("/etc/systemd/system/strata-agent.service")
    result.mkdir()
    for name, pattern in (("kernel", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        shutil.copy(next((root / "boot").glob(pattern)), result / name)
    make_disk(root, result / "disk", _SIZE)


def make_disk(folder: Path, disk: Path, size: str) -> None:
    """A file system image with what a folder holds. Without a journal: what is written to it is thrown away."""
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1,root_owner=0:0", "-m", "0"]
    subprocess.run(
        ["mke2fs", *options, "-d", folder, disk, size], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )

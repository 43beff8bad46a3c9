"""Device nodes and links in the container's /dev (runtime-spec config-linux, Devices and Default Devices).

In a user namespace nobody can make a node: there the host's of the same path is bound, as runc has it, and where that is missing
or another one, a node that the parent makes in a file system of its own (`serve`; `init` asks for it).
"""

import os
import stat

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason, send_failure
from strata.linux import beneath, descriptors, mounts, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lowrt.rootfs import Rootfs

    Spec = dict[str, Any]

_DEFAULT = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


class Device:
    """A node to be made: its path in the container, what it shall be, and whose."""

    def __init__(self, path: str, kind: int, number: int, mode: int = 0o666, uid: int = 0, gid: int = 0) -> None:
        self.path, self.kind, self.number, self.mode, self.uid, self.gid = path, kind, number, mode, uid, gid

    def is_this(self, status: os.stat_result) -> bool:
        """Whether a node is this device."""
        return stat.S_IFMT(status.st_mode) == self.kind and (self.kind == stat.S_IFIFO or status.st_rdev == self.number)


def wanted(linux: "Spec") -> list[Device]:
    """The default devices and those of the configuration, which replace default ones of the same path.

    In a user namespace its root owns them all, as runc has it.
    """
    found = {f"/dev/{name}": Device(f"/dev/{name}", stat.S_IFCHR, os.makedev(*number)) for name, number in _DEFAULT.items()}
    for given in linux.get("devices") or ():
        path = beneath.clean(given["path"])
        found[path] = Device(
            path, _KINDS[given["type"]], os.makedev(given.get("major", 0), given.get("minor", 0)),
            stat.S_IMODE(given.get("fileMode", 0o666)), given.get("uid", 0), given.get("gid", 0),
        )  # fmt: skip
    found.pop("/dev/ptmx", None)  # always a link to that of the container's own devpts
    return list(found.values())


def make_all(root: "Rootfs") -> None:
    """Makes the nodes and links. The umask must be 0. Raises RuntimeFailure."""
    try:
        folder = root.make_folder("/dev")
        inherits = bool(os.fstat(folder).st_mode & stat.S_ISGID)
        for device in root.devices:
            if device.path.rpartition("/")[0] == "/dev":
                _make(root, device, folder, device.path[5:], inherits)
            else:
                parent, name = root.parent(device.path)
                _make(root, device, parent, name, True)
                os.close(parent)
    except OSError as error:
        raise RuntimeFailure(f"error creating device nodes: {reason(error)}") from None
    try:
        _link_all(folder)
    except OSError as error:
        raise RuntimeFailure(f"error setting up /dev symlinks: {reason(error)}") from None
    os.close(folder)


def _make(root: "Rootfs", device: Device, folder: int, name: str, inherits: bool) -> None:
    """Makes a node, by mknod or as a bind of the host's; inherits: the folder may give it another group than ours."""
    if root.in_user_namespace and device.kind != stat.S_IFIFO:
        _bind(root, device, folder, name)
        return
    try:
        os.mknod(name, device.kind | device.mode, device.number, dir_fd=folder)
    except FileExistsError:
        _expect(device, os.stat(name, dir_fd=folder, follow_symlinks=False))
    except PermissionError:
        _bind(root, device, folder, name)  # lowrt itself is in a user namespace, or may not make nodes
        return
    else:
        if not (inherits or device.uid or device.gid):
            return
    node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    _expect(device, os.fstat(node))  # by descriptor: a shared folder's other users may have put something else there
    os.chown(f"/proc/self/fd/{node}", device.uid, device.gid)
    os.chmod(f"/proc/self/fd/{node}", device.mode)
    os.close(node)


def _bind(root: "Rootfs", device: Device, folder: int, name: str) -> None:
    """Binds the host's node of that path, if it is this device, over a new file; else one that the parent makes."""
    try:
        place = os.open(name, os.O_CREAT | os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0, dir_fd=folder)
    except OSError as error:
        raise RuntimeFailure(f"error creating device nodes: create device inode {device.path}: {reason(error)}") from None
    tree = _host_node(root, device)
    syscalls.mount_setattr(tree, recursive=False, set_=mounts.attributes(mounts.NOSUID | mounts.NOEXEC)[0])
    mounts.move(tree, place)
    os.close(tree)
    os.close(place)


def _host_node(root: "Rootfs", device: Device) -> int:
    """A detached mount of the node."""
    try:
        tree = mounts.copy_tree(syscalls.AT_FDCWD, device.path, recursive=False)
    except FileNotFoundError:
        if not root.parent_makes_nodes:
            raise
        return root.ask_parent(b"n%d" % root.devices.index(device))
    found = os.fstat(tree)
    if root.parent_makes_nodes and not device.is_this(found):
        os.close(tree)
        return root.ask_parent(b"n%d" % root.devices.index(device))
    _expect(device, found)
    return tree


def serve(sync: descriptors.Socket, device: Device, linux: "Spec", folder: str) -> None:
    """Answers the container's first process: `n` with a detached mount of a new node, or `e` and what failed.

    A helper makes it, in a tmpfs over `folder` that only its own mount namespace sees.
    """
    from strata.linux import idmaps

    uid = idmaps.outside(linux.get("uidMappings") or [], device.uid)
    gid = idmaps.outside(linux.get("gidMappings") or [], device.gid)
    helper, helper_pidfd = syscalls.clone3(namespaces.NEWNS)
    if helper == 0:
        try:
            mounts.mount("", "/", "", mounts.PRIVATE | mounts.REC)
            mounts.mount("tmpfs", folder, "tmpfs", mounts.NOSUID | mounts.NOEXEC, "mode=755,size=4k")
            path = f"{folder}/node"
            os.mknod(path, device.kind, device.number)
            os.chown(path, uid, gid)
            os.chmod(path, device.mode)
            descriptors.send(sync, b"n", (mounts.copy_tree(syscalls.AT_FDCWD, path, recursive=False),))
        except BaseException as error:
            send_failure(sync, RuntimeFailure(f"error creating device nodes: make {device.path}: {reason(error)}"))
        finally:
            os._exit(0)
    os.close(helper_pidfd)
    os.waitpid(helper, 0)


def _expect(device: Device, found: os.stat_result) -> None:
    """Raises RuntimeFailure if a node is not the device: config-linux, Devices, wants an error then."""
    if device.is_this(found):
        return
    letter = {stat.S_IFCHR: "character device", stat.S_IFBLK: "block device", stat.S_IFIFO: "FIFO"}[device.kind]
    number = "" if device.kind == stat.S_IFIFO else f" {os.major(device.number)}:{os.minor(device.number)}"
    path = documents.dumps(device.path)
    raise RuntimeFailure(f"error creating device nodes: {path} exists and is not the {letter}{number}: file exists")


def _link_all(folder: int) -> None:
    links = {**_LINKS, "core": "/proc/kcore"} if os.path.exists("/proc/kcore") else _LINKS
    for name, target in links.items():
        try:
            os.symlink(target, name, dir_fd=folder)
        except FileExistsError:
            pass
    # A devpts instance has its own ptmx: the one of /dev must be that.
    try:
        os.symlink("pts/ptmx", "ptmx", dir_fd=folder)
    except FileExistsError:
        os.unlink("ptmx", dir_fd=folder)
        os.symlink("pts/ptmx", "ptmx", dir_fd=folder)

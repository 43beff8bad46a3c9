"""Sources of bind mounts that a container's first process cannot make itself: its parent does (`init` asks with `m`).

In a user namespace the process may not reach them, and may not map the IDs of a file system that is not its own. So a helper
with the parent's rights joins the mount namespace, copies the tree there (a copy from outside would not keep the flags that the
user namespace may not take off), gives it its ID map and sends its descriptor.
"""

import os

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason, send_failure
from strata.linux import descriptors, mounts, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lowrt.mounting import Mount

    Spec = dict[str, Any]


def serve(sync: descriptors.Socket, mount: "Mount", user_namespace: str, pidfd: int) -> None:
    """Answers the container's first process: `m` with a detached tree, or `e` and what failed.

    user_namespace: the file of the container's own one, "" where it has none.
    """
    helper, helper_pidfd = syscalls.clone3(0)
    if helper == 0:
        try:
            tree = _make_tree(mount, user_namespace, pidfd)
            descriptors.send(sync, b"m", (tree,))
        except BaseException as error:
            send_failure(sync, error)
        finally:
            os._exit(0)
    os.close(helper_pidfd)
    os.waitpid(helper, 0)


def _make_tree(mount: "Mount", user_namespace: str, pidfd: int) -> int:
    identity = _identity(mount, user_namespace) if mount.identity else -1
    syscalls.setns(pidfd, namespaces.NEWNS)
    try:
        tree = mounts.copy_tree(syscalls.AT_FDCWD, mount.source, recursive=bool(mount.flags & mounts.REC))
    except OSError as error:
        raise RuntimeFailure(f"open {mount.source}: {reason(OSError(error.errno, error.strerror))}") from None
    if identity >= 0:
        try:
            recursive = mount.identity == "ridmap"
            syscalls.mount_setattr(tree, recursive=recursive, set_=mounts.ATTRIBUTE_IDMAP, userns=identity)
        except OSError as error:
            hint = " (maybe the filesystem used doesn't support idmap mounts on this kernel?)" if error.errno == 22 else ""
            raise RuntimeFailure(f"failed to set MOUNT_ATTR_IDMAP on {mount.source}: {reason(error)}{hint}") from None
    return tree


def _identity(mount: "Mount", user_namespace: str) -> int:
    """The descriptor of a user namespace with the mount's ID maps: a new one, or the container's where it has no own ones."""
    entry = mount.entry
    if not entry.get("uidMappings"):
        return os.open(user_namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return namespaces.new_user_namespace(_map(entry["uidMappings"]), _map(entry["gidMappings"]))
    except OSError as error:
        source = documents.dumps(mount.source)
        raise RuntimeFailure(f"failed to create userns for {source} id-mapping: {reason(error)}") from None


def _map(mappings: "list[Spec]") -> str:
    return "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in mappings)

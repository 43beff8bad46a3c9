"""Who a container's process is: user and groups, by CRI's security context and the image, read from the image's own files."""

from dataclasses import dataclass

from highrt.images.errors import ImageError
from highrt.images.rooted import RootedTree
from highrt.images.users import User, find_user
from highrt.pods.errors import InvalidArgument
from strata.protocols.cri_pb2 import LinuxContainerSecurityContext, SupplementalGroupsPolicy

_LARGEST = 2**32 - 2


@dataclass(frozen=True)
class Identity:
    uid: int
    gid: int
    groups: list[int]
    home: str


def resolve(root: str, context: LinuxContainerSecurityContext, image_user: str) -> Identity:
    """root: the mounted root file system. image_user: `User` of the image's configuration.

    CRI's run_as_user or run_as_username replace the image's user, and run_as_group the group. Groups are those that the
    image's /etc/group gives the user (unless the policy is Strict), and CRI's supplemental ones. Raises InvalidArgument.
    """
    name = image_user
    if context.HasField("run_as_user"):
        name = str(context.run_as_user.value)
    elif context.run_as_username:
        name = context.run_as_username
    elif context.HasField("run_as_group"):
        if not image_user:
            raise InvalidArgument("run_as_group needs run_as_user or run_as_username too (CRI, LinuxContainerSecurityContext)")
        name = image_user.partition(":")[0]
    try:
        with RootedTree(root) as tree:
            found: User = find_user(tree, name)
    except ImageError as error:
        raise InvalidArgument(f"user {name!r}: {error}") from None
    gid = context.run_as_group.value if context.HasField("run_as_group") else found.gid
    strict = context.supplemental_groups_policy == SupplementalGroupsPolicy.Strict
    # The primary group is among the supplementary ones, or files could be denied to it and still be read (CVE-2022-36109).
    groups = [gid, *(() if strict else found.groups), *context.supplemental_groups]
    for number in (found.uid, *groups):
        if not 0 <= number <= _LARGEST:  # the kernel would take the lower bits, and -1 for "leave it as it is"
            raise InvalidArgument(f"user {name!r}: {number} is no ID of a user or group: they go from 0 to {_LARGEST}")
    return Identity(found.uid, gid, sorted(set(groups)), found.home)

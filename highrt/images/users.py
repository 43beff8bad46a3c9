"""Users by the names that a root file system's own /etc/passwd and /etc/group give them, read without leaving that root."""

import os
from dataclasses import dataclass

from highrt.images.errors import ImageError
from highrt.images.rooted import RootedTree

_LIMIT = 16 << 20


@dataclass(frozen=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def find_user(tree: RootedTree, text: str) -> User:
    """What USER and --chown mean: `user`, `uid`, `user:group`, `uid:gid`. Raises ImageError where there is no such user."""
    name, colon, group = (text or "0").partition(":")
    entries = [fields for fields in _table(tree, "/etc/passwd") if len(fields) >= 6 and fields[2].isdecimal()]
    entry = next((fields for fields in entries if name in (fields[0], fields[2])), None)
    if entry is None and not name.isdecimal():
        raise ImageError(f"there is no user {name!r} in the image's /etc/passwd")
    uid = int(entry[2]) if entry else int(name)
    gid = int(entry[3]) if entry and entry[3].isdecimal() else 0
    home = entry[5] if entry else "/"
    member_of: tuple[int, ...] = ()
    if colon:
        gid = find_group(tree, group)
    elif entry:
        groups = [fields for fields in _table(tree, "/etc/group") if len(fields) >= 4 and fields[2].isdecimal()]
        member_of = tuple(int(fields[2]) for fields in groups if entry[0] in fields[3].split(","))
    return User(uid, gid, member_of, home)


def find_group(tree: RootedTree, name: str) -> int:
    """The number of a group. Raises ImageError."""
    for fields in _table(tree, "/etc/group"):
        if len(fields) >= 3 and name == fields[0] and fields[2].isdecimal():
            return int(fields[2])
    if not name.isdecimal():
        raise ImageError(f"there is no group {name!r} in the image's /etc/group")
    return int(name)


def _table(tree: RootedTree, path: str) -> list[list[str]]:
    try:
        descriptor = tree.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(_LIMIT).decode(errors="replace")
    return [line.split(":") for line in text.splitlines()]

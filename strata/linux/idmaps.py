"""The IDs of a user namespace (user_namespaces(7)): which numbers inside are which outside.

A user without privileges may map only their own ID, to one inside; more with the help of newuidmap(1) and newgidmap(1), which
know from /etc/subuid and /etc/subgid what was given to them. Mappings are the OCI runtime specification's: objects with
containerID, hostID and size.
"""

import os

from strata.linux import namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Mappings = list[dict[str, int]]

_TOOL_OUTPUT_BYTES = 4096


def write(pid: int, uids: "Mappings", gids: "Mappings", environ: "Mapping[str, str]") -> None:
    """Maps the IDs of a process's new user namespace. environ: its PATH is where the tools are looked for.

    Raises OSError, with a tool's own words where one was needed.
    """
    alone = os.geteuid() != 0
    if alone and _is_single(gids, os.getegid()):
        # What the kernel asks for who may not change groups anyway: none are left behind by it either.
        _write(f"/proc/{pid}/setgroups", "deny")
    for kind, mappings in (("uid", uids), ("gid", gids)):
        try:
            _write(f"/proc/{pid}/{kind}_map", "".join(" ".join(map(str, line)) + "\n" for line in lines(mappings)))
        except PermissionError:
            if not alone:
                raise
            _map_by_tool(f"new{kind}map", pid, mappings, environ.get("PATH") or os.defpath)


def lines(mappings: "Mappings") -> list[tuple[int, int, int]]:
    """As the kernel has them: ID inside, ID outside, count."""
    return [(mapping.get("containerID", 0), mapping.get("hostID", 0), mapping.get("size", 0)) for mapping in mappings]


def maps(mappings: "Mappings", number: int) -> bool:
    """Whether an ID inside stands for one outside."""
    return any(inside <= number < inside + size for inside, _, size in lines(mappings))


def outside(mappings: "Mappings", number: int) -> int:
    """What an ID inside is outside; the same where nothing is mapped to it."""
    for inside, first, size in lines(mappings):
        if inside <= number < inside + size:
            return first + number - inside
    return number


def of_namespace(descriptor: int) -> "tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]":
    """The UIDs and GIDs that are mapped in a user namespace, as `lines` has them; IDs outside are this process's."""
    pid, pidfd = syscalls.clone3(0)
    if pid == 0:
        try:
            syscalls.setns(descriptor, namespaces.NEWUSER)
            os.kill(os.getpid(), 19)  # SIGSTOP: its files in /proc tell the parent what it is asked for
        finally:
            os._exit(1)
    try:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            pid = 0
            raise OSError(1, "cannot join the user namespace to read its ID maps")
        return _read(f"/proc/{pid}/uid_map"), _read(f"/proc/{pid}/gid_map")
    finally:
        if pid:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(pidfd)


def _is_single(mappings: "Mappings", own: int) -> bool:
    return len(mappings) == 1 and mappings[0].get("size") == 1 and mappings[0].get("hostID", 0) == own


def _read(path: str) -> list[tuple[int, int, int]]:
    with open(path, encoding="ascii") as file:
        return [(int(inside), int(outside), int(size)) for inside, outside, size in (line.split() for line in file)]


def _write(path: str, text: str) -> None:
    """In one write(2), as the kernel wants it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def _map_by_tool(name: str, pid: int, mappings: "Mappings", path: str) -> None:
    places = [f"{folder}/{name}" for folder in path.split(":") if folder]
    program = next((place for place in places if os.access(place, os.X_OK)), "")
    if not program:
        raise OSError(2, f"{name} is needed to map more than one's own ID, and is not in PATH (Debian's package uidmap)")
    read, write_ = os.pipe2(os.O_CLOEXEC)
    try:
        argv = [name, str(pid), *(str(number) for line in lines(mappings) for number in line)]
        tool = os.posix_spawn(
            program, argv, {}, file_actions=[(os.POSIX_SPAWN_DUP2, write_, 1), (os.POSIX_SPAWN_DUP2, write_, 2)]
        )
    finally:
        os.close(write_)
    try:
        said = b""
        while chunk := os.read(read, _TOOL_OUTPUT_BYTES):
            said = (said + chunk)[:_TOOL_OUTPUT_BYTES]
    finally:
        os.close(read)
    _, status = os.waitpid(tool, 0)
    if status:
        raise OSError(1, f"{name} refused: {said.decode(errors='replace').strip() or 'without a word'}")

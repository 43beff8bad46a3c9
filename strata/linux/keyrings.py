"""Session keyrings (session-keyring(7)): a process's own place for keys, so that it does not get at its caller's."""

from strata.linux import syscalls

# keyctl(2), and the permissions of add_key's manual (keyctl_setperm(3)).
_JOIN_SESSION, _SET_PERMISSIONS, _DESCRIBE = 1, 5, 6
_USER_SEARCH, _OTHER_SEARCH = 0x00080000, 0x00000008


def join_session(name: str) -> int:
    """Makes the session keyring of that name this process's; a new one where there is none. Returns its number."""
    return syscalls.keyctl(_JOIN_SESSION, name.encode() + b"\0")


def make_searchable(keyring: int, *, by_others: bool) -> None:
    """Lets later processes join it by its name: those of the same user, or (in a user namespace) any."""
    described = bytearray(512)
    length = syscalls.keyctl(_DESCRIBE, keyring, described, len(described))
    # type;uid;gid;permissions;name
    permissions = int(bytes(described[:length]).split(b";")[3], 16)
    syscalls.keyctl(_SET_PERMISSIONS, keyring, permissions | (_OTHER_SEARCH if by_others else _USER_SEARCH))

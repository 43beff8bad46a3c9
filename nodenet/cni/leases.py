"""Addresses handed out on this machine, one file each, in the reference plugin's layout.

    DATADIR/NETWORK/ADDRESS                "CONTAINER\\r\\nIFNAME"
    DATADIR/NETWORK/last_reserved_ip.N     where the search in range set N goes on
    DATADIR/NETWORK/lock                   flock(2), held for each change

A lease appears with its content or not at all: a process killed in between leaves at most a temporary file, which the next one
removes.
"""

import fcntl
import ipaddress
import os
from collections.abc import Collection, Iterator
from pathlib import Path

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_PENDING = ".pending"


class Leases:
    """The locked store of one network, used as a context manager. Raises OSError."""

    def __init__(self, data_dir: Path, network: str) -> None:
        self._folder = data_dir / network
        self._lock = -1

    def __enter__(self) -> "Leases":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._lock)
        self._lock = -1

    def reserve(self, address: IP, container_id: str, ifname: str) -> bool:
        """Takes an address; False where somebody has it."""
        pending = self._folder / _PENDING
        pending.write_text(f"{container_id}\r\n{ifname}")
        try:
            os.link(pending, self._folder / str(address))
        except FileExistsError:
            return False
        finally:
            pending.unlink()
        return True

    def last(self, range_set: int) -> IP | None:
        try:
            return ipaddress.ip_address((self._folder / f"last_reserved_ip.{range_set}").read_text().strip())
        except (FileNotFoundError, ValueError):
            return None

    def remember(self, range_set: int, address: IP) -> None:
        # Only a hint: a torn write is read as "none".
        (self._folder / f"last_reserved_ip.{range_set}").write_text(str(address))

    def taken(self) -> set[IP]:
        return {address for address, _ in self._entries()}

    def of(self, container_id: str, ifname: str) -> list[IP]:
        """The addresses of one attachment. A file without an interface name (an older layout) counts by its container."""
        return [
            address for address, owner in self._entries() if self._read(owner) in ((container_id, ifname), (container_id, ""))
        ]

    def release(self, container_id: str, ifname: str) -> None:
        for address in self.of(container_id, ifname):
            (self._folder / str(address)).unlink(missing_ok=True)

    def keep_only(self, attachments: Collection[tuple[str, str]]) -> None:
        """Frees the addresses of all other attachments, given as (container ID, interface name)."""
        for _, path in list(self._entries()):
            if self._read(path) not in attachments:
                path.unlink(missing_ok=True)

    def _entries(self) -> Iterator[tuple[IP, Path]]:
        for entry in os.scandir(self._folder):
            try:
                yield ipaddress.ip_address(entry.name), self._folder / entry.name
            except ValueError:
                continue

    def _read(self, path: Path) -> tuple[str, str]:
        with path.open(newline="") as file:  # as written: "\r\n" is the layout's separator
            container_id, _, ifname = file.read().strip().partition("\r\n")
        return container_id, ifname

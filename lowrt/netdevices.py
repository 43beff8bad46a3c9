"""Devices of the runtime's network namespace for the container's (config-linux.md, Network Devices); `init` asks with `d`.

The parent moves them, by a socket in either namespace, and gives each there what it has lost on its way: its addresses, and that
it is up. Where create fails they come back in the same way. From then on they go with the container's namespace: the kernel moves
devices of the machine to the first one, and removes others.
"""

import os

from lowrt.errors import RuntimeFailure, reason
from strata.linux import links, namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    Wanted = dict[str, dict[str, str]]


class Devices:
    """Those that were moved to the container whose first process is `pid`. The caller closes it. Raises OSError."""

    def __init__(self, pid: int) -> None:
        self._moved: list[tuple[str, int, bool, list[bytes]]] = []
        self._ours = links.Links()
        namespace = os.open(namespaces.path_of(pid, "network"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._theirs = links.Links(namespace)
        except BaseException:
            self._ours.close()
            raise
        finally:
            os.close(namespace)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    def move_all(self, wanted: "Wanted") -> None:
        """wanted: by the name here, `name` there if it is another. Raises RuntimeFailure; some may have been moved then."""
        for name, settings in wanted.items():
            try:
                index, was_up = self._ours.find(name)
                addresses = self._ours.addresses(index)
                index_there = self._theirs.free_index(index)
                self._moved.append((name, index_there, was_up, addresses))
                self._ours.move(index, settings.get("name") or name, self._theirs, index_there)
                _set_up(self._theirs, index_there, addresses)
            except OSError as error:
                raise RuntimeFailure(f"error creating network interfaces: move netDevice {name}: {reason(error)}") from None

    def take_back(self) -> str:
        """Moves them back; what could not be, as the end of a message, else ""."""
        remains = ""
        while self._moved:
            name, index, was_up, addresses = self._moved.pop()
            try:
                if self._ours.has(name):
                    continue  # it could not be moved
                index_here = self._ours.free_index(index)
                self._theirs.move(index, name, self._ours, index_here)
                _set_up(self._ours, index_here, addresses, up=was_up)
            except OSError as error:
                remains += f" (and the network device {name} is not as it was: {reason(error)})"
        return remains


def _set_up(there: links.Links, index: int, addresses: list[bytes], *, up: bool = True) -> None:
    for address in addresses:
        there.add_address(index, address)
    if up:
        there.set_up(index)

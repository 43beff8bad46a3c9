"""The plugins' entry for a process that makes many calls: all that a call needs is imported before the first one.

`nodenet.cni.main` imports late, for executables; netlink alone costs more than a whole ADD does afterwards.
"""

from nodenet.cni import bridge, hostlocal, loopback, portmap
from nodenet.cni.main import run

__all__ = ["bridge", "hostlocal", "loopback", "portmap", "run"]

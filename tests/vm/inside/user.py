"""A person without privileges who is logged in: a systemd manager of their own, and in it a unit that stands for their shell."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import wait_for
from tests.vm.image import USER
from tests.vm.inside.conftest import CGROUPS, systemctl

UID = 1000
MANAGER = CGROUPS / f"user.slice/user-{UID}.slice/user@{UID}.service"
_SHELL = MANAGER / "app.slice/shell.service"


def as_user(*command: str | Path) -> list[str | Path]:
    """A command of the user, in their shell's cgroup, with what a login gives it."""
    environment = [f"HOME=/home/{USER}", f"USER={USER}", f"XDG_RUNTIME_DIR=/run/user/{UID}", "PATH=/usr/bin:/usr/sbin"]
    become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups", "env", "-i", *environment]
    enter = f'[ ! -e {_SHELL} ] || echo $$ >{_SHELL}/cgroup.procs; exec "$@"'
    return ["sh", "-ec", enter, "sh", *become, *command]


@contextmanager
def login() -> Iterator[None]:
    """While it is entered, the user is logged in."""
    subprocess.run(["loginctl", "enable-linger", USER], check=True)
    try:
        wait_for(lambda: os.path.exists(f"/run/user/{UID}/bus"), seconds=60, what="the user's manager")
        start = ["systemd-run", "--user", "--quiet", "--unit=shell", "--property=Delegate=yes", "sleep", "infinity"]
        subprocess.run(as_user(*start), check=True, timeout=60)
        yield
    finally:
        subprocess.run(["loginctl", "disable-linger", USER], check=True)
        systemctl("stop", f"user@{UID}.service", f"user-{UID}.slice")

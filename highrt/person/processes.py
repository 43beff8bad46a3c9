"""The processes of a container, as `top` shows them (proc_pid_stat(5))."""

import os
import pwd
import time
from pathlib import Path

from strata.linux import cgroups
from strata.protocols import highrt_pb2 as api

_TICKS = os.sysconf("SC_CLK_TCK")


def of(cgroup: str) -> list[api.Process]:
    """Those of a cgroup and below it; who ends meanwhile is left out. User names are the host's."""
    found = []
    for pid in sorted(cgroups.open_cgroup(cgroup).pids(recursive=True)):
        try:
            found.append(_process(pid))
        except (OSError, ValueError):
            continue
    return found


def _process(pid: int) -> api.Process:
    folder = Path(f"/proc/{pid}")
    name, _, rest = (folder / "stat").read_text(errors="replace").rpartition(")")
    fields = rest.split()
    words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    command = b" ".join(words).decode(errors="replace") or f"[{name.partition('(')[2]}]"
    uid = folder.stat().st_uid
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / _TICKS
    major, minor = os.major(int(fields[4])), os.minor(int(fields[4]))
    return api.Process(
        user=user,
        pid=pid,
        ppid=int(fields[1]),
        started_at_ns=int(started * 1e9),
        tty=f"pts/{minor}" if major == 136 else "?",
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        command=command,
    )

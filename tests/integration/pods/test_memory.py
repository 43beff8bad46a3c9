"""How much memory the processes hold that are there for every node and every pod (docs/performance.md has the figures)."""

import re
from pathlib import Path

from strata.linux import cgroups

from .conftest import Node

MEGABYTE = 1 << 20


def memory_bytes(pid: int, *fields: str) -> int:
    """The sum of fields of /proc/PID/smaps_rollup."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(re.findall(rf"^{field}: +(\d+) kB", text, re.MULTILINE)[0]) * 1024 for field in fields)


async def test_a_spawner_and_a_monitor_that_has_worked_are_small(node: Node) -> None:
    """The monitor's own pages are what a pod costs; most of them are written to when it works."""
    container_id = await node.started("sh", "-c", "while true; do echo a line that goes to the log; sleep 0.01; done")
    monitors = [pid for pid in cgroups.open_cgroup(f"/strata/{node.name}/monitors").pids(recursive=True) if is_monitor(pid)]
    assert len(monitors) == 1
    for _ in range(60):
        assert (await node.manager.exec_sync(container_id, ["true"]))[2] == 0
    assert memory_bytes(monitors[0], "Private_Clean", "Private_Dirty") < 4 * MEGABYTE
    spawner = int(Path(f"/proc/{monitors[0]}/stat").read_text().rpartition(")")[2].split()[1])
    assert Path(f"/proc/{spawner}/comm").read_text() == "strata-spawner\n"
    assert memory_bytes(spawner, "Rss") < 12 * MEGABYTE


def is_monitor(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "strata-monitor\n"

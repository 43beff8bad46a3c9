"""What needs every capability, CAP_SYS_RESOURCE first: test machines often lack it."""

import subprocess
from pathlib import Path

from lowrt import features
from tests.vm.inside.conftest import BootedRuntime


def test_hard_limits_are_raised(runtime: BootedRuntime) -> None:
    hard = int(subprocess.run(["sh", "-c", "ulimit -Hn"], capture_output=True, text=True, check=True).stdout)
    runtime.config["process"]["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": hard + 1, "hard": hard + 2},
        {"type": "RLIMIT_MEMLOCK", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    printed = runtime.shell("cat /proc/self/limits")
    assert f"Max open files            {hard + 1}               {hard + 2} " in printed
    assert "Max locked memory         unlimited            unlimited " in printed


def test_a_container_may_be_made_less_likely_to_be_killed(runtime: BootedRuntime) -> None:
    runtime.config["process"]["oomScoreAdj"] = -500
    assert runtime.shell("cat /proc/self/oom_score_adj") == "-500\n"
    runtime.start("sleep", "100")
    assert runtime.inside("cat", "/proc/self/oom_score_adj") == "-500\n"


def test_every_capability_can_be_given(runtime: BootedRuntime) -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    names = features.features()["linux"]["capabilities"]
    for kind in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        runtime.config["process"]["capabilities"][kind] = names
    printed = runtime.shell("grep Cap /proc/self/status")
    assert [int(line.split()[1], 16) for line in printed.splitlines()] == [(1 << last + 1) - 1] * 5

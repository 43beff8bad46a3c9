"""What a container's process may do, and how it is limited and scheduled."""

from typing import Any


def hook(script: str, **fields: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **fields}


def test_a_start_hook_in_the_container_has_no_more_rights_than_its_program(runtime: Any) -> None:
    runtime.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    runtime.config["process"]["env"] += ["FROM=config"]
    runtime.config["hooks"] = {"startContainer": [hook("id -u; echo $FROM; grep -E 'CapEff|NoNew' /proc/self/status; exit 1")]}
    done = runtime.run("true")
    assert "error running startContainer hook #0: exit status 1, output: 1000\nconfig\n" in done.stderr
    assert "CapEff:\t0000000000000000\nNoNewPrivs:\t1" in done.stderr


def test_a_start_hook_in_the_container_is_filtered_as_its_program_is(runtime: Any) -> None:
    runtime.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL"}],
    }
    runtime.config["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    runtime.config["hooks"] = {"startContainer": [hook("mkdir /dev/shm/x; exit $?", env=["PATH=/bin"])]}
    assert "error running startContainer hook #0: exit status 159" in runtime.run("true").stderr
    runtime.config["hooks"] = {"startContainer": [hook("exec mkdir /dev/shm/x", env=["PATH=/bin"])]}
    assert "error running startContainer hook #0: signal: bad system call" in runtime.run("true").stderr

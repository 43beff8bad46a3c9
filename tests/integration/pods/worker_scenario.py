"""A loop with workers whose runtime does as it is told, in a process of its own: a loop waits for all children.

usage: python -m tests.integration.pods.worker_scenario FILE. Writes there, as JSON, what came of each kind of work.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from highrt.monitor import main, rehearsal
from highrt.monitor.loop import Loop
from highrt.monitor.worker import Workers
from strata.linux import syscalls

_PR_SET_CHILD_SUBREAPER = 36


def runtime(argv: Sequence[str], fds: tuple[int, int, int], environ: Mapping[str, str], *, for_parent: bool = False) -> int:
    if argv[0] == "wait":
        os.read(fds[0], 1)
    elif argv[0] == "pid":
        return os.getpid() % 199 if for_parent else 255
    elif argv[0] == "hang":
        time.sleep(600)
    elif argv[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif argv[0] == "raise":
        raise LookupError("there is no such thing")
    elif argv[0] == "fork":
        if (pid := os.fork()) == 0:
            os._exit(7)
        os.write(fds[1], b"%d" % pid)
    elif argv[0] == "descriptors":
        os.write(fds[1], json.dumps(sorted(os.listdir("/proc/self/fd"))).encode())
    return int(environ.get("STATUS", "0"))


def do(what: str, *, status: int = 0, keep: bool = False) -> tuple[int, str, str]:
    """The status and text of the answer, and what was written to stdout."""
    read, write = os.pipe2(os.O_CLOEXEC)
    answers: list[tuple[int, str]] = []

    def done(status: int, trouble: str) -> None:
        answers.append((status, trouble))
        loop.stop()

    workers.do("runtime", [[what], {"STATUS": str(status)}], done, (read, write, write), keep=keep)
    loop.run()
    os.close(write)
    written = os.read(read, 65536).decode()
    os.close(read)
    ((status, trouble),) = answers
    return status, trouble, written


def at_once_with_one_that_waits() -> list[int]:
    """The statuses of three execs in the order of their ends: the first waits for the second, and the third comes after them."""
    read, write = os.pipe2(os.O_CLOEXEC)
    ends: list[int] = []

    def ended(status: int, trouble: str) -> None:
        ends.append(status)
        loop.stop()

    for what in ("wait", "pid"):
        workers.do_alone("exec", [[what], {}], ended, (read, write, write))
    loop.run()
    os.write(write, b"x")
    loop.run()
    workers.do_alone("exec", [["pid"], {}], ended, (read, write, write))
    loop.run()
    os.close(read)
    os.close(write)
    return ends


def adopted(pid: int) -> int:
    """The exit code of a process that a worker has left to this one."""
    found: list[int] = []

    def ended(status: int) -> None:
        found.append(status >> 8)
        loop.stop()

    loop.on_exit(pid, ended)
    loop.run()
    return found[0]


def faulty(error: BaseException) -> None:
    raise error


syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)
before = set(sys.modules)
main.prepare()
open_before = len(os.listdir("/proc/self/fd"))
troubles = rehearsal.play(os.path.dirname(sys.argv[1]))
left_open = len(os.listdir("/proc/self/fd")) - open_before
imported = sorted(set(sys.modules) - before)
loop = Loop(faulty)
workers = Workers(loop, runtime, limit=1.0, ahead=True)
kept = workers._kept
result = {"imported": imported, "troubles": troubles, "left open": left_open}
result["plain"] = do("plain", keep=True)
result["same worker"] = workers._kept is kept
os.kill(workers._kept.pid, signal.SIGKILL)
os.waitid(os.P_PID, workers._kept.pid, os.WEXITED | os.WNOWAIT)
result["status after a worker was killed while it waited"] = do("plain", status=3)
result["execs"] = at_once_with_one_that_waits()
result["raise"], result["die"] = do("raise"), do("die")
start = time.monotonic()
result["hang"], result["seconds"] = do("hang"), time.monotonic() - start
loop.runtime_starts()
result["adopted"] = adopted(int(do("fork")[2]))
loop.runtime_ended()
result["descriptors"] = len(json.loads(do("descriptors")[2]))
Path(sys.argv[1]).write_text(json.dumps(result))

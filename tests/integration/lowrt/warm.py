"""lowrt in process, as highrt's monitors have it: forked from highrt's spawner, which runs from a read-only view of its file.

`python -m tests.integration.lowrt.warm ARGUMENTS` does one command of lowrt so, with a spawner of its own.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from strata.linux import descriptors, syscalls

CHECKOUT = Path(__file__).parents[3]
_INTERPRETER = os.path.realpath("/usr/bin/python3")


class Spawner:
    """wrapped: a command line to start the spawner with, for strace."""

    def __init__(self, *wrapped: str | Path) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        view = syscalls.open_tree(syscalls.AT_FDCWD, _INTERPRETER, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
        syscalls.mount_setattr(view, recursive=False, set_=1)
        module = f"{__name__ if __name__ != '__main__' else 'tests.integration.lowrt.warm'}_monitor:run"
        script = [CHECKOUT / "highrt/spawner/__main__.py", "--entry", "lowrt.main:run", "--monitor", module]
        python = [f"/proc/{os.getpid()}/fd/{view}", "-ISXutf8", *script, "--socket", str(theirs.fileno())]
        self._process = subprocess.Popen([*wrapped, *python], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._version = self._ours.recv(16)
        os.close(view)
        assert self._version, "the spawner does not start"
        self._spare = self._fork()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _fork(self) -> socket.socket:
        """The connection to a process that waits for a command."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._ours, [self._version], [theirs.fileno()])
            assert len(self._ours.recv(16)) == 5
        return ours

    def run(self, argv: list[str], fds: tuple[int, int, int]) -> int:
        """The exit status of a command, done by the process that waits; the next one is forked afterwards."""
        status = self.ask(argv, fds)
        self.replenish()
        return status

    def ask(self, argv: list[str], fds: tuple[int, int, int]) -> int:
        """The same, and no process waits any more. The one that has done it ends with the connection, in `replenish`: the end
        of a process takes a millisecond, and often of the same CPU."""
        descriptors.send(self._spare, "\0".join(argv).encode(), fds)
        answer = self._spare.recv(16)
        assert answer, "the process has died"
        return int(answer)

    def replenish(self) -> None:
        """Has a process forked that waits for the next command."""
        self._spare.close()
        self._spare = self._fork()

    def call(self, *argv: str | Path, stdin: "int | IO[str]" = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        """The same, with what it printed."""
        words = [str(word) for word in argv]
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        given = null if stdin == subprocess.DEVNULL else stdin if isinstance(stdin, int) else stdin.fileno()
        # Files: a pipe would be held open by a container that runs on.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            status = self.run(words, (given, out.fileno(), err.fileno()))
            os.close(null)
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def close(self) -> None:
        self._spare.close()
        self._ours.close()
        self._process.wait(10)


def main() -> int:
    spawner = Spawner()
    done = spawner.call(*sys.argv[1:])
    spawner.close()
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

"""lowrt as a command. The launcher starts this file as `python3 -IS lowrt/__main__.py ARGUMENTS`, or wakes it from a snapshot."""

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

if __name__ == "__main__":
    gc.disable()  # a command is over before there is anything to collect
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lowrt import main as command  # noqa: E402


def main() -> "NoReturn":
    if _is_exposed():
        sys.exit("lowrt: a container could overwrite the file that this process runs: start lowrt by its launcher")
    _forget_the_interpreters_locale()
    status = command.run(sys.argv[1:], (0, 1, 2), os.environ)
    # Past the interpreter's own tidying up, which costs milliseconds and has nothing to do here.
    os._exit(status)


def _forget_the_interpreters_locale() -> None:
    """In the C locale the interpreter sets LC_CTYPE (PEP 538), but hooks have the environment of who called."""
    if os.environ.get("LC_CTYPE") in ("C.UTF-8", "C.utf8", "UTF-8"):
        with open("/proc/self/environ", "rb") as file:
            given = file.read()
        if not given.startswith(b"LC_CTYPE=") and b"\0LC_CTYPE=" not in given:
            del os.environ["LC_CTYPE"]


def _is_exposed() -> bool:
    """Whether a container of root could write to this process's file, but for the launcher's view of it (CVE-2019-5736)."""
    if os.geteuid() != 0 or os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
        return False
    return command.puts_processes_inside(sys.argv[1:])


if __name__ == "__main__":
    main()

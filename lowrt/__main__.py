"""lowrt as a command. The launcher starts this file as `python3 -IS lowrt/__main__.py ARGUMENTS`, or `loader` imports it."""

import gc
import os
import sys

gc.disable()  # a command is over before there is anything to collect
if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lowrt import main  # noqa: E402

_WCLONE = -0x80000000  # __WCLONE of waitpid(2), as a C int

if os.geteuid() == 0 and not os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
    # CVE-2019-5736: the launcher runs the interpreter from a read-only view.
    sys.exit("lowrt: a container could overwrite this interpreter's file: start lowrt by its launcher")
status = main.run(sys.argv[1:], (0, 1, 2), os.environ)
try:
    os.waitpid(-1, _WCLONE)  # the process with which the launcher has woken the cgroups
except ChildProcessError:
    pass
# Past the interpreter's own tidying up, which costs milliseconds and has nothing to do here.
os._exit(status)

"""The program that `snapshot` saves: all of lowrt, imported, and asleep. Each process that wakes from it is a command.

It tells the files that it was made from on stdout, a line each, and what it imported must not have looked at anything else of
this machine, nor at who runs it: what wakes is somebody else, later.
"""

import gc
import os
import sys

gc.disable()
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PACKAGES = ("lowrt", "strata/linux", "strata/linux/cgroups")
_EARLY = ("fcntl", "math", "resource", "select", "stat", "struct", "termios", "time", "tty")
"""What is imported late where somebody has to wait for it: here nobody waits."""


def main() -> None:
    sys.path.insert(0, _ROOT)
    from importlib import import_module

    for package in _PACKAGES:
        for file in sorted(os.listdir(f"{_ROOT}/{package}")):
            stem, dot, kind = file.partition(".")
            if dot and kind == "py":
                import_module(f"{package.replace('/', '.')}.{stem}")
    for name in _EARLY:
        import_module(name)
    from lowrt import __main__, features
    from lowrt import main as command
    from lowrt.boot import _sleep

    features.libseccomp_version()  # loads the library, where there is one
    command.practise()
    for module in list(sys.modules.values()):
        if origin := getattr(module, "__file__", None):
            os.write(1, f"{origin}\n".encode())
    arguments, environment = _sleep.sleep()
    sys.argv = [os.fsdecode(argument) for argument in arguments]
    # os.environ has no public way to be read anew. Its dictionary has bytes on a POSIX system.
    os.environ._data = dict(entry.partition(b"=")[::2] for entry in environment)  # type: ignore[attr-defined]
    __main__.main()


if __name__ == "__main__":
    main()

"""How the command starts quickly: from a snapshot of itself, taken with the interpreter started and all modules imported.

launcher.c      lowrt/launcher, the command: a read-only view of its own file, then the snapshot's process woken, or where
                there is no fit snapshot, `python3 -IS lowrt/__main__.py`
snapshot.h, .c  the file's form; waking: mapping the saved memory, going on where it slept
snapshot.py     takes the snapshot (scripts/setup): runs sleeper.py under ptrace and saves it
sleeper.py      the program that is saved: imports all of lowrt, sleeps, and when it wakes runs lowrt's main
_sleep.c        the sleep itself
"""

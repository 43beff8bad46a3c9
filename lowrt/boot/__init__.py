"""How the command starts quickly: the launcher (C), and the bundle of compiled modules that it hands to the interpreter.

    launcher.c   lowrt/launcher: a read-only view of the interpreter's file, cgroup v1 woken, then python3 -IS BUNDLE ARGUMENTS
    loader.py    the bundle's program: imports from the bundle, and then `lowrt.__main__`
    bundle.py    builds it (scripts/setup)

Without a bundle the launcher starts `lowrt/__main__.py`, a few milliseconds slower. Nothing imports this folder.
"""

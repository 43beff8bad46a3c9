"""The commands' flags, as runc has them, and how a command line is read.

By hand: argparse and click cost more than a whole container. The rules are those of the library that runc uses: one dash or two,
`--flag value` or `--flag=value`, flags before and after arguments, `--` ends them; after the container's ID `exec`, `kill` and
`ps` take everything as it is.
"""

from lowrt.errors import UsageFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What a flag takes: nothing (or =true, =false), a text, a number; a * where it may be given again.
SWITCH, TEXT, NUMBER, TEXTS, NUMBERS = "", "=", "#", "=*", "#*"

GLOBAL = {"debug": SWITCH, "log": TEXT, "log-format": TEXT, "root": TEXT, "systemd-cgroup": SWITCH, "rootless": TEXT,
          "criu": TEXT, "help": SWITCH, "version": SWITCH}  # fmt: skip
_CREATE = {"bundle": TEXT, "console-socket": TEXT, "pidfd-socket": TEXT, "pid-file": TEXT, "no-pivot": SWITCH,
           "no-new-keyring": SWITCH, "preserve-fds": NUMBER}  # fmt: skip
COMMANDS: "dict[str, dict[str, str]]" = {
    "completion": {},
    "create": _CREATE,
    "delete": {"force": SWITCH},
    "events": {"interval": TEXT, "stats": SWITCH},
    "exec": {"console-socket": TEXT, "pidfd-socket": TEXT, "cwd": TEXT, "env": TEXTS, "tty": SWITCH, "user": TEXT,
             "additional-gids": NUMBERS, "process": TEXT, "detach": SWITCH, "pid-file": TEXT, "process-label": TEXT,
             "apparmor": TEXT, "no-new-privs": SWITCH, "cap": TEXTS, "preserve-fds": NUMBER, "cgroup": TEXTS,
             "ignore-paused": SWITCH},
    "features": {},
    "kill": {"all": SWITCH},
    "list": {"format": TEXT, "quiet": SWITCH},
    "pause": {},
    "ps": {"format": TEXT},
    "resume": {},
    "run": {**_CREATE, "detach": SWITCH, "keep": SWITCH, "no-subreaper": SWITCH},
    "spec": {"bundle": TEXT, "rootless": SWITCH},
    "start": {},
    "state": {},
    "update": {"resources": TEXT, "blkio-weight": TEXT, "cpu-period": TEXT, "cpu-quota": TEXT, "cpu-burst": TEXT,
               "cpu-share": TEXT, "cpu-rt-period": TEXT, "cpu-rt-runtime": TEXT, "cpuset-cpus": TEXT, "cpuset-mems": TEXT,
               "memory": TEXT, "cpu-idle": TEXT, "memory-reservation": TEXT, "memory-swap": TEXT, "pids-limit": TEXT,
               "kernel-memory": TEXT, "kernel-memory-tcp": TEXT, "l3-cache-schema": TEXT, "mem-bw-schema": TEXT},
}  # fmt: skip
SHORT: "dict[str, dict[str, str]]" = {
    "": {"v": "version"},
    "create": {"b": "bundle"},
    "run": {"b": "bundle", "d": "detach"},
    "exec": {"p": "process", "e": "env", "t": "tty", "u": "user", "g": "additional-gids", "d": "detach", "c": "cap"},
    "list": {"f": "format", "q": "quiet"},
    "ps": {"f": "format"},
    "kill": {"a": "all"},
    "delete": {"f": "force"},
    "update": {"r": "resources"},
    "spec": {"b": "bundle"},
}
# After the first argument these take all that follows as arguments: a program's, a signal, ps's own.
_STOP_AT_FIRST = ("", "exec", "kill", "ps")


def parse(command: str, argv: list[str]) -> "tuple[dict[str, Any], list[str]]":
    """The flags' values and the arguments of a command ("" for what stands before it). Raises UsageFailure."""
    flags = COMMANDS[command] if command else GLOBAL
    short = SHORT.get(command) or {}
    values: dict[str, Any] = {}
    arguments: list[str] = []
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if word == "--":
            return values, arguments + argv[index:]
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            if command in _STOP_AT_FIRST:
                return values, arguments + argv[index:]
            continue
        given, equals, text = (word[2:] if word.startswith("--") else word[1:]).partition("=")
        name = short.get(given, given)
        if name in ("help", "h"):
            values["help"] = True
            continue
        kind = flags.get(name)
        if kind is None:
            raise UsageFailure(command, f"flag provided but not defined: -{given}")
        if kind == SWITCH:
            values[name] = _truth(command, given, text) if equals else True
            continue
        if not equals:
            if index == len(argv):
                raise UsageFailure(command, f"flag needs an argument: {word}")
            text = argv[index]
            index += 1
        value = _number(command, given, text) if kind[0] == NUMBER else text
        if kind.endswith("*"):
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return values, arguments


def _truth(command: str, name: str, text: str) -> bool:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise UsageFailure(command, f'invalid value "{text}" for flag -{name}: must be true or false')


def _number(command: str, name: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise UsageFailure(command, f'invalid value "{text}" for flag -{name}: must be a number')
    return number


def true_false_auto(name: str, values: "dict[str, Any]") -> bool | None:
    """The value of a flag that may be `auto`: None. Raises UsageFailure."""
    text = values.get(name) or "auto"
    return None if text.lower() == "auto" else _truth("", name, text)

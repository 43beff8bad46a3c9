"""What --help prints: the layout is the one of runc's, so that its parts are found where people look for them."""

from lowrt import flags

_ABOUT = "Open Container Initiative runtime"
_ID = "<container-id>"
# By command: what follows its flags, what it does in a line, and what else there is to know.
_COMMANDS = {
    "checkpoint": (_ID, "save the state of a container (not supported: lowrt refuses it)", ""),
    "completion": ("", "print the completions for bash: source <(lowrt completion)", ""),
    "create": (
        _ID,
        "create a container",
        "Makes a container from a bundle: a folder with config.json and a root file system. All is set up, and the\n"
        "program waits until `lowrt start` lets it run. ID is the container's name, unique on this machine.",
    ),
    "delete": (
        _ID,
        "delete what is held for a container",
        "Takes away the cgroup and the state of a container that has stopped, or that was never started.",
    ),
    "events": (_ID, "show what a container uses, and its kills for want of memory, as JSON", ""),
    "exec": (
        f"{_ID} <program> [argument...]  or  -p process.json {_ID}",
        "run another program in a container",
        "The program gets the container's namespaces, cgroup, limits and environment, changed by the flags. What follows\n"
        "the program's name is the program's. Without --detach lowrt waits and ends with the program's exit status;\n"
        "255 means that the program could not be started.",
    ),
    "features": ("", "show what this runtime can do, as JSON", "The OCI runtime specification defines its form (features.md)."),
    "kill": (
        f"{_ID} [signal]",
        "send a signal (SIGTERM) to a container's first process",
        "The signal is a number or a name, with or without SIG.",
    ),
    "list": ("", "list the containers", "Those of the root folder that --root names."),
    "pause": (_ID, "suspend all processes of a container", ""),
    "ps": (
        f"{_ID} [ps options]",
        "show the processes of a container",
        "Options after the ID are given to ps(1) in place of -ef.",
    ),
    "restore": (_ID, "bring back a saved container (not supported: lowrt refuses it)", ""),
    "resume": (_ID, "let a paused container go on", ""),
    "run": (
        _ID,
        "create and start a container",
        "Like `lowrt create` and `lowrt start`. Without --detach lowrt waits, ends with the program's exit status, and\n"
        "deletes the container.",
    ),
    "spec": (
        "",
        "write a config.json to start from",
        "It runs a shell from the folder rootfs. Edit process.args and what else is to differ:\n\n"
        "   mkdir -p hello/rootfs && cd hello\n"
        "   cp /bin/busybox rootfs/          # one that needs no libraries\n"
        "   lowrt spec\n"
        "   sed -i 's|\"sh\"|\"/busybox\", \"sh\"|' config.json\n"
        "   lowrt run one",
    ),
    "start": (_ID, "let the program of a created container run", ""),
    "state": (_ID, "output the state of a container", "As JSON, in the form that the OCI runtime specification defines."),
    "update": (_ID, "change the limits of a container", "Sizes are bytes, and may end in k, m, g or t."),
}  # fmt: skip

_GLOBAL_TEXTS = {
    "debug": "log what is being done",
    "log": "write the log to this file (default: stderr)",
    "log-format": 'form of the log, "text" or "json" (default: "text")',
    "root": "folder of the containers' state, on a tmpfs",
    "systemd-cgroup": 'let systemd make the cgroups; cgroupsPath is then "slice:prefix:name"',
    "rootless": 'ignore missing permission for cgroups: "true", "false" or "auto" (default: "auto")',
    "criu": "ignored",
    "help": "show help",
    "version": "print the version",
}
_FLAG_TEXTS = {
    "additional-gids": "one more group of the process; may be given again",
    "all": "no error when the container has stopped",
    "apparmor": "AppArmor profile of the process",
    "blkio-weight": "weight of I/O, 10 to 1000",
    "bundle": "the bundle's folder (default: the current one)",
    "interval": "time between two reports of use (default: 5s)",
    "stats": "show the use once",
    "kernel-memory": "ignored",
    "kernel-memory-tcp": "ignored",
    "l3-cache-schema": "Intel RDT: refused where it is not enabled",
    "mem-bw-schema": "Intel RDT: refused where it is not enabled",
    "cap": "one more capability of the process; may be given again",
    "cgroup": "cgroup below the container's to run in",
    "console-socket": "unix socket that takes the descriptor of the terminal's master",
    "cpu-burst": "CPU time in µs that may be saved up for later",
    "cpu-idle": "1: only CPU time that nobody else wants",
    "cpu-period": "period of the CPU limit in µs; 0: the system's default",
    "cpu-quota": "CPU time in µs a period",
    "cpu-rt-period": "period of the realtime limit in µs; 0: the system's default",
    "cpu-rt-runtime": "realtime CPU time in µs a period",
    "cpu-share": "share of CPU time, relative to others",
    "cpuset-cpus": "CPUs to use",
    "cpuset-mems": "memory nodes to use",
    "cwd": "working directory in the container",
    "detach": "do not wait for the program",
    "env": "set NAME=VALUE in the environment; may be given again",
    "force": "kill it where it runs still; no error where it does not exist",
    "format": 'form of the output, "table" or "json" (default: "table")',
    "help": "show help",
    "ignore-paused": "also in a paused container",
    "keep": "do not delete the container when it has ended",
    "memory": "limit of memory",
    "memory-reservation": "memory to keep even when it is scarce",
    "memory-swap": "limit of memory and swap together; -1: no limit",
    "no-new-keyring": "keep the caller's session keyring",
    "no-new-privs": "the process gains no privileges by its execve",
    "no-pivot": "no pivot_root; for a root file system on a ramdisk",
    "no-subreaper": "ignored: lowrt needs no subreaper",
    "pid-file": "file to write the process's ID to",
    "pidfd-socket": "unix socket that takes a descriptor of the process",
    "pids-limit": "limit of processes",
    "preserve-fds": "pass this many descriptors after stderr (and $LISTEN_FDS) to the program",
    "process": "file with the process as JSON",
    "process-label": "SELinux label of the process",
    "quiet": "container IDs only",
    "resources": "file with resources as JSON; - reads them from stdin",
    "rootless": "for a user without privileges",
    "tty": "give it a terminal",
    "user": "user and group, as UID[:GID]",
}  # fmt: skip
_VALUES = {flags.TEXT: "value", flags.NUMBER: "number", flags.TEXTS: "value", flags.NUMBERS: "number"}


def known(command: str) -> bool:
    """Whether there is help on the command."""
    return command in _COMMANDS


def of(command: str, root: str) -> str:
    """The help on a command, or on lowrt where it is "". root: the folder of state where none is given."""
    if not command:
        return _whole(root)
    arguments, about, more = _COMMANDS[command]
    parts = [
        _part("NAME", f"lowrt {command} - {about}"),
        _part("USAGE", f"lowrt {command} [options] {arguments}".rstrip()),
        *([_part("DESCRIPTION", more)] if more else []),
        _part("OPTIONS", _options({**(flags.COMMANDS.get(command) or {}), "help": ""}, command, _FLAG_TEXTS)),
    ]
    return "\n".join(parts)


def _whole(root: str) -> str:
    width = max(map(len, _COMMANDS))
    texts = {**_GLOBAL_TEXTS, "root": f"{_GLOBAL_TEXTS['root']} (default: {root})"}
    parts = [
        _part("NAME", f"lowrt - {_ABOUT}"),
        _part("USAGE", "lowrt [global options] command [options] [arguments]"),
        _part("COMMANDS", "\n".join(f"{name:<{width}}  {about}" for name, (_, about, _) in _COMMANDS.items())),
        _part("GLOBAL OPTIONS", _options(flags.GLOBAL, "", texts)),
    ]
    return "\n".join(parts) + "\n`lowrt command --help` says more about a command.\n"


def _part(title: str, text: str) -> str:
    return f"{title}:\n" + "".join(f"   {line}".rstrip() + "\n" for line in text.split("\n"))


def _options(kinds: "dict[str, str]", command: str, texts: "dict[str, str]") -> str:
    letters = {name: letter for letter, name in flags.SHORT.get(command, {}).items()} | {"help": "h"}
    rows = []
    for name, kind in kinds.items():
        value = f" {_VALUES[kind]}" if kind else ""
        rows.append((f"--{name}{value}" + (f", -{letters[name]}{value}" if name in letters else ""), texts[name]))
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {text}" for left, text in rows)

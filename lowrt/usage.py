"""What --help prints."""

from lowrt.main import DEFAULT_ROOT

_COMMANDS = {
    "create": ("create [--bundle DIR] ID", "make a container from a bundle; its program waits for start"),
    "start": ("start ID", "let a created container's program run"),
    "run": ("run [--bundle DIR] [--detach] ID", "create and start; without --detach, wait and exit as the program does"),
    "exec": ("exec [--tty] [--env K=V] [--cwd DIR] ID PROGRAM [ARG...]", "run another program in a container"),
    "state": ("state ID", "print a container's state as JSON"),
    "list": ("list [--format table|json] [--quiet]", "list the containers"),
    "ps": ("ps [--format table|json] ID [ps options]", "list a container's processes"),
    "kill": ("kill [--all] ID [SIGNAL]", "send a signal (TERM) to a container's first process"),
    "delete": ("delete [--force] ID", "remove a stopped container; --force kills it first"),
    "pause": ("pause ID", "freeze a container's processes"),
    "resume": ("resume ID", "thaw them"),
    "events": ("events [--stats] [--interval 5s] ID", "print what a container uses, and kills for want of memory, as JSON"),
    "update": ("update [--memory BYTES] [--cpu-quota US] [-r FILE] ... ID", "change a container's limits"),
    "spec": ("spec [--bundle DIR] [--rootless]", "write a config.json to start from"),
    "features": ("features", "print what this runtime can do as JSON"),
}

_FLAG_TEXTS = {
    "bundle": "the bundle's folder (.)",
    "console-socket": "a unix socket that takes the terminal's descriptor",
    "pid-file": "where to write the process's PID",
    "no-pivot": "change the root without pivot_root, for a root on a ramfs",
    "no-new-keyring": "keep the caller's session keyring",
    "preserve-fds": "how many descriptors after 2 the program gets",
    "detach": "do not wait for the program",
    "keep": "do not delete the container when it has ended",
    "no-subreaper": "accepted, and without effect here",
    "process": "a file with the process as JSON",
    "cwd": "the working directory in the container",
    "env": "set a variable (again for more)",
    "tty": "give it a terminal",
    "user": "UID or UID:GID",
    "additional-gids": "a further group (again for more)",
    "cap": "add a capability (again for more)",
    "no-new-privs": "set no_new_privs",
    "cgroup": "a cgroup below the container's",
    "ignore-paused": "also in a paused container",
    "apparmor": "an AppArmor profile",
    "process-label": "an SELinux label",
    "format": "table or json",
    "quiet": "IDs only",
    "all": "all processes of the container",
    "force": "also a running one; no error when it does not exist",
    "rootless": "for a user without privileges",
    "resources": "a JSON file of resources, - for standard input",
    "interval": "time between two reports of use (5s)",
    "stats": "print the use once",
    "memory": "limit in bytes (50m, 1G), -1 for none",
    "memory-reservation": "the soft limit",
    "memory-swap": "limit of memory and swap together, -1 for none",
    "kernel-memory": "accepted, and without effect",
    "kernel-memory-tcp": "accepted, and without effect",
    "cpu-quota": "microseconds of CPU in each period, -1 for no limit",
    "cpu-period": "the period in microseconds",
    "cpu-burst": "microseconds that may be saved up",
    "cpu-share": "weight beside other containers (1024)",
    "cpu-rt-period": "the period of realtime scheduling, in microseconds",
    "cpu-rt-runtime": "microseconds of it in each period",
    "cpu-idle": "1: runs only when nothing else wants to",
    "cpuset-cpus": "CPUs that may be used, like 0-2,5",
    "cpuset-mems": "memory nodes that may be used",
    "blkio-weight": "weight of block I/O, 10 to 1000",
    "pids-limit": "how many processes and threads, -1 for no limit",
    "l3-cache-schema": "Intel RDT: refused where it is not enabled",
    "mem-bw-schema": "Intel RDT: refused where it is not enabled",
}


def of(command: str) -> str:
    """The help of a command; of lowrt itself for an unknown one."""
    from lowrt import main

    if command not in _COMMANDS:
        lines = ["lowrt - an OCI runtime", "", "usage: lowrt [global options] COMMAND [options] ID", "", "commands:"]
        lines += [f"  {name:<10} {text}" for name, (_, text) in _COMMANDS.items()]
        lines += [
            "",
            "global options:",
            f"  --root DIR          where containers' state is kept ({DEFAULT_ROOT})",
            "  --log FILE          also write errors to a file",
            "  --log-format FORM   text or json",
            "  --debug             accepted",
            "  --version, --help",
            "",
            "lowrt COMMAND --help says more.",
        ]
        return "\n".join(lines) + "\n"
    form, text = _COMMANDS[command]
    lines = [f"usage: lowrt {form}", "", text]
    flags = main._FLAGS[command]
    if flags:
        short = {long: letter for letter, long in main._SHORT.get(command, {}).items()}
        lines += ["", "options:"]
        for name, kind in flags.items():
            left = f"-{short[name]}, --{name}" if name in short else f"--{name}"
            lines.append(f"  {left + (' VALUE' if kind else ''):<28} {_FLAG_TEXTS.get(name, '')}".rstrip())
    return "\n".join(lines) + "\n"

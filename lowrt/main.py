"""The command line of lowrt: runc's, with its flags, exit statuses and messages.

`run` parses by hand: argparse and click cost more than a whole container. What only some commands need is imported by them.
"""

import os

from lowrt.errors import RuntimeFailure, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

DEFAULT_ROOT = "/run/lowrt"

# Flags by command: the name without dashes → whether it takes a value. `*` after the value: it may be given again.
_GLOBAL = {"root": "=", "log": "=", "log-format": "=", "debug": "", "systemd-cgroup": "", "rootless": "=", "criu": "=",
           "version": "", "help": ""}  # fmt: skip
_CREATE = {"bundle": "=", "console-socket": "=", "pid-file": "=", "no-pivot": "", "no-new-keyring": "", "preserve-fds": "="}
_UPDATE = {"resources": "=", "blkio-weight": "=", "cpu-period": "=", "cpu-quota": "=", "cpu-burst": "=", "cpu-share": "=",
           "cpu-rt-period": "=", "cpu-rt-runtime": "=", "cpuset-cpus": "=", "cpuset-mems": "=", "memory": "=",
           "memory-reservation": "=", "memory-swap": "=", "pids-limit": "=", "cpu-idle": "=", "kernel-memory": "=",
           "kernel-memory-tcp": "=", "l3-cache-schema": "=", "mem-bw-schema": "="}  # fmt: skip
_FLAGS: "dict[str, dict[str, str]]" = {
    "create": _CREATE,
    "run": {**_CREATE, "detach": "", "keep": "", "no-subreaper": ""},
    "start": {},
    "exec": {"process": "=", "console-socket": "=", "pid-file": "=", "cwd": "=", "env": "=*", "tty": "", "user": "=",
             "additional-gids": "=*", "detach": "", "process-label": "=", "apparmor": "=", "no-new-privs": "", "cap": "=*",
             "preserve-fds": "=", "cgroup": "=*", "ignore-paused": ""},
    "state": {},
    "list": {"format": "=", "quiet": ""},
    "ps": {"format": "="},
    "kill": {"all": ""},
    "delete": {"force": ""},
    "pause": {},
    "resume": {},
    "update": _UPDATE,
    "events": {"interval": "=", "stats": ""},
    "spec": {"bundle": "=", "rootless": ""},
    "features": {},
}  # fmt: skip
_SHORT: "dict[str, dict[str, str]]" = {
    "": {"v": "version", "h": "help"},
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


class Call:
    """One command on its way: what was asked, and the three descriptors of who asked."""

    def __init__(self, fds: tuple[int, int, int], environ: "Mapping[str, str]") -> None:
        self.fds, self.environ = fds, environ
        self.root, self.log, self.log_format = DEFAULT_ROOT, "", "text"
        self.systemd_cgroup = False
        self.rootless: bool | None = None
        self.command = ""
        self.values: dict[str, Any] = {}
        self.arguments: list[str] = []

    def say(self, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        while data:
            data = data[os.write(self.fds[1], data) :]

    def one_id(self) -> str:
        """The only argument, a container's ID."""
        if len(self.arguments) != 1:
            raise RuntimeFailure(f"{self.command} needs exactly one argument, the container's ID (lowrt {self.command} --help)")
        return self.arguments[0]

    def number(self, name: str) -> int:
        text = self.values.get(name) or "0"
        try:
            return int(text)
        except ValueError:
            raise RuntimeFailure(f"--{name} {text}: must be a number") from None


def run(argv: "Sequence[str]", fds: tuple[int, int, int], environ: "Mapping[str, str]") -> int:
    """Does what the command line says and returns the exit status.

    argv: the arguments after the command's name. fds: what stdin, stdout and stderr are, for the container and for this
    call's own output. environ: the caller's environment. The calling process is left as it was found, but for the
    container's first process, which is its child.
    """
    call = Call(fds, environ)
    try:
        if environ.get("STRATA_SPANS"):
            return _traced(call, argv)
        return _run(call, argv)
    except RuntimeFailure as failure:
        _report(call, str(failure))
        return failure.status
    except BrokenPipeError:
        return 1
    except OSError as error:
        _report(call, f"{call.command}: {reason(error)}")
        return 1


def rehearse() -> None:
    """Parses and checks a configuration, as a create will. For a process that was forked ahead of need: the pages that this
    writes to are its own afterwards, and need not be copied when somebody waits."""
    from lowrt import config, documents, features, process

    spec = documents.loads(documents.dumps(features.template(rootless=False)))
    config.check(spec)
    process.Process(spec["process"], spec["linux"], None, 0)


def _run(call: Call, argv: "Sequence[str]") -> int:
    rest = _parse(call, list(argv), _GLOBAL, "")
    given = call.values
    call.root = given.get("root") or DEFAULT_ROOT
    call.log, call.log_format = given.get("log") or "", given.get("log-format") or "text"
    if call.log_format not in ("text", "json"):
        raise RuntimeFailure(f"--log-format {call.log_format}: must be text or json")
    call.systemd_cgroup, call.rootless = bool(given.get("systemd-cgroup")), _true_false_auto(given.get("rootless") or "auto")
    if given.get("version"):
        from lowrt import config

        call.say(f"lowrt version 0.1.0\nspec: {config.SPEC_VERSION}\n")
        return 0
    if given.get("help") or not rest or rest[0] == "help":
        from lowrt import usage

        call.say(usage.of(rest[1] if len(rest) > 1 else ""))
        return 0
    call.command = rest[0]
    if call.command in ("checkpoint", "restore"):
        raise RuntimeFailure(f"{call.command}: not supported by this runtime yet")
    flags = _FLAGS.get(call.command)
    if flags is None:
        raise RuntimeFailure(f"no command {call.command!r}: see lowrt --help")
    call.values = {}
    # What follows exec's container is the program's own line, and ps's the program ps's.
    stop_after = 1 if call.command in ("exec", "ps") else None
    call.arguments = _parse(call, rest[1:], {**flags, "help": ""}, call.command, stop_after=stop_after)
    if call.values.get("help"):
        from lowrt import usage

        call.say(usage.of(call.command))
        return 0
    return _COMMANDS[call.command](call)


def _traced(call: Call, argv: "Sequence[str]") -> int:
    """The same with a span around it, child of TRACEPARENT."""
    from strata.telemetry import spans

    if not spans.enabled():
        spans.configure("lowrt", call.environ["STRATA_SPANS"])
    words = [word for word in argv if word in _FLAGS]
    with spans.span(f"lowrt {words[0] if words else '?'}", parent=call.environ.get(spans.ENVIRONMENT_KEY)):
        return _run(call, argv)


def _parse(call: Call, argv: list[str], flags: "dict[str, str]", command: str, stop_after: int | None = None) -> list[str]:
    """Fills call.values and returns the arguments. Flags of a command may stand between its arguments, but for exec's."""
    arguments: list[str] = []
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if word == "--":
            return arguments + argv[index:]
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            if command == "" or (stop_after is not None and len(arguments) >= stop_after):
                return arguments + argv[index:]
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = _SHORT.get(command, {}).get(name, "help" if name == "h" else name)
        kind = flags.get(name)
        if kind is None:
            where = f"lowrt {command}".strip()
            raise RuntimeFailure(f"{where}: flag provided but not defined: {word.partition('=')[0]} (see {where} --help)")
        if kind == "":
            call.values[name] = value.lower() not in ("false", "0") if equals else True
            continue
        if not equals:
            if index == len(argv):
                raise RuntimeFailure(f"flag needs an argument: {word}")
            value = argv[index]
            index += 1
        if kind == "=*":
            call.values.setdefault(name, []).append(value)
        else:
            call.values[name] = value
    return arguments


# --- the commands


def _create_options(call: Call) -> "Any":
    from lowrt import create

    options, given = create.Options(), call.values
    options.bundle = given.get("bundle") or "."
    options.console_socket, options.pid_file = given.get("console-socket") or "", given.get("pid-file") or ""
    options.no_pivot, options.no_new_keyring = bool(given.get("no-pivot")), bool(given.get("no-new-keyring"))
    options.detach, options.keep = bool(given.get("detach")), bool(given.get("keep"))
    options.preserve_fds = call.number("preserve-fds")
    options.systemd_cgroup, options.rootless = call.systemd_cgroup, call.rootless
    return options


def _true_false_auto(text: str) -> bool | None:
    if text == "auto":
        return None
    if text.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise RuntimeFailure(f"--rootless {text}: must be true, false or auto")
    return text.lower() in ("true", "1", "t")


def _create(call: Call) -> int:
    from lowrt import config, create

    container_id, options = call.one_id(), _create_options(call)
    made = create.create(call.root, container_id, options, call.fds, call.environ)
    _warn(call, config.warnings(made.spec))
    os.close(made.pidfd)
    if made.master >= 0:
        os.close(made.master)
        from lowrt import lifecycle

        lifecycle.delete(call.root, container_id, force=True)
        raise RuntimeFailure("cannot allocate tty if runc will detach without setting console socket: use --console-socket")
    return 0


def _run_container(call: Call) -> int:
    from lowrt import create

    container_id, options = call.one_id(), _create_options(call)
    options.run = True
    made = create.create(call.root, container_id, options, call.fds, call.environ)
    try:
        if options.detach and made.master >= 0:
            raise RuntimeFailure("cannot allocate tty if runc will detach without setting console socket: use --console-socket")
        from lowrt import config

        _warn(call, config.warnings(made.spec))
        made.start()
    except BaseException:
        _delete(call.root, container_id)
        raise
    if options.detach:
        os.close(made.pidfd)
        return 0
    from lowrt import foreground, lifecycle

    status = foreground.wait_for_end(made.container.pid, made.pidfd, made.master, call.fds)
    os.close(made.pidfd)
    if not options.keep:
        lifecycle.delete_ended(made.container)
    return status


def _delete(root: str, container_id: str) -> None:
    from lowrt import lifecycle

    lifecycle.delete(root, container_id, force=True)


def _start(call: Call) -> int:
    from lowrt import start, state

    container = state.Container.open(call.root, call.one_id(), locked=True)
    try:
        start.start(container)
    finally:
        container.unlock()
    return 0


def _exec(call: Call) -> int:
    from lowrt import execute, state

    if not call.arguments:
        raise RuntimeFailure("exec needs the container's ID and the program (lowrt exec --help)")
    given, options = call.values, execute.Options()
    for name in ("apparmor", "process-label"):
        if given.get(name):
            raise RuntimeFailure(f"--{name}: not supported by this runtime yet")
    options.process_file, options.console_socket = given.get("process") or "", given.get("console-socket") or ""
    options.pid_file, options.cwd = given.get("pid-file") or "", given.get("cwd") or ""
    options.user, options.cgroups = given.get("user") or "", given.get("cgroup") or []
    options.detach, options.terminal = bool(given.get("detach")), bool(given.get("tty"))
    options.ignore_paused = bool(given.get("ignore-paused"))
    options.no_new_privileges = given.get("no-new-privs")
    options.preserve_fds = call.number("preserve-fds")
    options.warn = lambda texts: _warn(call, texts)
    options.environment, options.capabilities = given.get("env") or [], given.get("cap") or []
    try:
        options.additional_gids = [int(text) for text in given.get("additional-gids") or ()]
    except ValueError:
        raise RuntimeFailure("--additional-gids: must be numbers") from None
    container = state.Container.open(call.root, call.arguments[0])
    return execute.execute(container, call.arguments[1:], options, call.fds)


def _state(call: Call) -> int:
    from lowrt import documents, state

    call.say(documents.dumps(state.Container.open(call.root, call.one_id()).public()) + "\n")
    return 0


def _list(call: Call) -> int:
    from lowrt import lifecycle

    call.say(lifecycle.list_all(call.root, _format(call), quiet=bool(call.values.get("quiet"))))
    return 0


def _ps(call: Call) -> int:
    from lowrt import lifecycle, state

    if not call.arguments:
        raise RuntimeFailure("ps needs the container's ID (lowrt ps --help)")
    container = state.Container.open(call.root, call.arguments[0])
    call.say(lifecycle.ps(container, _format(call), call.arguments[1:]))
    return 0


def _format(call: Call) -> str:
    format_: str = call.values.get("format") or "table"
    if format_ not in ("table", "json"):
        raise RuntimeFailure(f"--format {format_}: must be table or json")
    return format_


def _kill(call: Call) -> int:
    from lowrt import lifecycle, state

    if not 1 <= len(call.arguments) <= 2:
        raise RuntimeFailure("kill needs the container's ID, and takes a signal (lowrt kill --help)")
    number = lifecycle.signal_number(call.arguments[1] if len(call.arguments) > 1 else "SIGTERM")
    lifecycle.kill(state.Container.open(call.root, call.arguments[0]), number, everybody=bool(call.values.get("all")))
    return 0


def _delete_command(call: Call) -> int:
    from lowrt import lifecycle, state

    container_id = call.one_id()
    state.check_id(container_id)
    lifecycle.delete(call.root, container_id, force=bool(call.values.get("force")))
    return 0


def _pause(call: Call) -> int:
    from lowrt import lifecycle, state

    container = state.Container.open(call.root, call.one_id(), locked=True)
    try:
        lifecycle.pause(container)
    finally:
        container.unlock()
    return 0


def _resume(call: Call) -> int:
    from lowrt import lifecycle, state

    container = state.Container.open(call.root, call.one_id(), locked=True)
    try:
        lifecycle.resume(container)
    finally:
        container.unlock()
    return 0


def _update(call: Call) -> int:
    from lowrt import lifecycle, resources, state

    changed = resources.from_flags(call.values, call.fds[0])
    _warn(call, resources.warnings(changed))
    container = state.Container.open(call.root, call.one_id(), locked=True)
    try:
        lifecycle.update(container, changed)
    finally:
        container.unlock()
    return 0


def _events(call: Call) -> int:
    from lowrt import events, state

    interval = events.seconds(call.values.get("interval") or "5s")
    container = state.Container.open(call.root, call.one_id())
    events.report(container, call.say, lambda text: _warn(call, [text]), interval, once=bool(call.values.get("stats")))
    return 0


def _spec(call: Call) -> int:
    import json

    from lowrt import features

    path = f"{call.values.get('bundle') or '.'}/config.json"
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(features.template(rootless=bool(call.values.get("rootless"))), indent="\t") + "\n")
    except FileExistsError:
        raise RuntimeFailure("File config.json exists. Remove it first") from None
    return 0


def _features(call: Call) -> int:
    import json

    from lowrt import features

    call.say(json.dumps(features.features(), indent=4) + "\n")
    return 0


_COMMANDS: "dict[str, Callable[[Call], int]]" = {
    "create": _create, "run": _run_container, "start": _start, "exec": _exec, "state": _state, "list": _list, "ps": _ps,
    "kill": _kill, "delete": _delete_command, "pause": _pause, "resume": _resume, "update": _update, "events": _events,
    "spec": _spec, "features": _features,
}  # fmt: skip


# --- what goes wrong


def _report(call: Call, message: str) -> None:
    """Writes an error to the log (callers like containerd read it from there) and to stderr."""
    _log(call, "error", message)
    try:
        os.write(call.fds[2], f"lowrt: {message}\n".encode(errors="surrogateescape"))
    except OSError:
        pass


def _warn(call: Call, texts: "Sequence[str]") -> None:
    """Says what is no failure: to the log, or to stderr where there is none."""
    for text in texts:
        if call.log:
            _log(call, "warning", text)
        else:
            os.write(call.fds[2], f"lowrt: warning: {text}\n".encode(errors="surrogateescape"))


def _log(call: Call, level: str, message: str) -> None:
    if not call.log:
        return
    import time

    from lowrt import documents

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if call.log_format == "json":
        line = documents.dumps({"level": level, "msg": message, "time": now})
    else:
        line = f'time="{now}" level={level} msg={documents.dumps(message)}'
    try:
        descriptor = os.open(call.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)
    except OSError:
        pass  # the log is a courtesy; stderr has the message too

"""The command line of lowrt: runc's, with its flags, exit statuses and messages.

`flags` reads the line, `log` takes what goes wrong; what only some commands need is imported by them.
"""

import os

from lowrt import flags, log
from lowrt.errors import RuntimeFailure, UsageFailure, reason, reason_in_step, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

VERSION = "0.1.0"
DEFAULT_ROOT = "/run/lowrt"
# The statuses that runc's callers know: exec's own failures are told apart from a program's by 255.
_FAILED, _NO_SUCH_COMMAND, _EXEC_FAILED = 1, 3, 255
# Commands whose errors say first that they failed.
_NAMED_IN_ERRORS = {"create": "lowrt create failed: ", "run": "lowrt run failed: ", "exec": "exec failed: "}
_REFUSED = ("checkpoint", "restore")
_ROUNDS = 10


class Call:
    """One command on its way: what was asked, and the three descriptors of who asked."""

    def __init__(self, fds: tuple[int, int, int], environ: "Mapping[str, str]") -> None:
        self.fds, self.environ = fds, environ
        self.for_parent = False
        self.root, self.root_given = DEFAULT_ROOT, False
        self.systemd_cgroup = False
        self.rootless: bool | None = None
        self.command = ""
        self.values: dict[str, Any] = {}
        self.arguments: list[str] = []

    def say(self, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        while data:
            data = data[os.write(self.fds[1], data) :]

    def complain(self, text: str) -> None:
        """A line on stderr about what is no failure."""
        os.write(self.fds[2], f"{text}\n".encode(errors="surrogateescape"))

    def need_arguments(self, least: int, most: int | None) -> None:
        """Raises UsageFailure unless there are as many. most: None for no limit."""
        if least == most and len(self.arguments) != least:
            how = f"exactly {least}"
        elif len(self.arguments) < least:
            how = f"a minimum of {least}"
        elif most is not None and len(self.arguments) > most:
            how = f"a maximum of {most}"
        else:
            return
        raise UsageFailure(self.command, f'"{self.command}" requires {how} argument(s)')

    def container_id(self) -> str:
        if not self.arguments[0]:
            raise RuntimeFailure("container id cannot be empty")
        return self.arguments[0]

    def one_id(self) -> str:
        """The only argument, a container's ID."""
        self.need_arguments(1, 1)
        return self.container_id()

    def format(self) -> str:
        """The form of the output that is asked for, `table` or `json`."""
        wanted: str = self.values.get("format", "table")
        if wanted not in ("table", "json"):
            raise RuntimeFailure("invalid format option")
        return wanted


def run(argv: "Sequence[str]", fds: tuple[int, int, int], environ: "Mapping[str, str]", *, for_parent: bool = False) -> int:
    """Does what the command line says and returns the exit status.

    argv: the arguments after the command's name. fds: what stdin, stdout and stderr are, for the container and for this
    call's own output. environ: the caller's environment. The calling process is left as it was found, but for the
    container's first process, which is its child. for_parent: what a detached exec starts is its parent's.
    """
    call = Call(fds, environ)
    call.for_parent = for_parent
    log.start(fds[2])
    try:
        if environ.get("STRATA_SPANS"):
            return _traced(call, argv)
        return _run(call, argv)
    except UsageFailure as failure:
        return _report_usage(call, failure)
    except RuntimeFailure as failure:
        return _report(call, str(failure))
    except BrokenPipeError:
        return _FAILED
    except OSError as error:
        return _report(call, reason_in_step(error))
    except Exception as error:
        _log_trace()
        return _report(call, f"an error in lowrt itself, {type(error).__name__}: {error} (--debug logs where)")
    finally:
        log.close()


def puts_processes_inside(argv: "Sequence[str]") -> bool:
    """Whether the command line is one that starts a process in a container."""
    try:
        _, rest = flags.parse("", list(argv))
    except UsageFailure:
        return False
    return "".join(rest[:1]) in ("create", "run", "exec")


def practise() -> None:
    """For a process that others are forked from: parses and checks a command line and a configuration, and plays a container's
    first process, as often as the interpreter wants before it replaces a function's instructions by special ones (PEP 659)."""
    from lowrt import config, documents, features, rehearsal

    for _ in range(_ROUNDS):
        flags.parse("run", flags.parse("", ["--root", "/r", "run", "--bundle", "/b", "c"])[1][1:])
        config.check(documents.loads_once(documents.dumps(features.template(rootless=False))))
    try:
        rehearsal.play(_ROUNDS)
    except OSError:
        pass  # not allowed here: containers take a little longer then


def rehearse() -> None:
    """For a process that will make a container later: what can be done before it knows which is done now."""
    from lowrt import prefork

    prefork.prepare()


def _run(call: Call, argv: "Sequence[str]") -> int:
    given, rest = flags.parse("", list(argv))
    call.root, call.root_given = _root(call.environ, given.get("root"))
    if given.get("version"):
        call.say(_version())
        return 0
    if given.get("help") or not rest or rest[0] in ("help", "h"):
        return _help(call, "".join(rest[1:2]))
    log.open_(given.get("log", ""), given.get("log-format", ""), debugging=bool(given.get("debug")))
    call.command = rest[0]
    if call.command in _REFUSED:  # also with --help: whether that succeeds tells podman whether it may checkpoint
        raise RuntimeFailure(f"{call.command}: not supported by this runtime")
    if call.command not in _COMMANDS:
        return _help(call, call.command)
    call.systemd_cgroup, call.rootless = bool(given.get("systemd-cgroup")), flags.true_false_auto("rootless", given)
    call.values, call.arguments = flags.parse(call.command, rest[1:])
    if call.values.get("help"):
        return _help(call, call.command)
    if log.debugging():
        log.debug(f"lowrt {VERSION}, root {call.root}: {' '.join(rest)}")
    step(call.command)
    status = _COMMANDS[call.command](call)
    log.debug(f"{call.command} ends with status {status}")
    return status


def _root(environ: "Mapping[str, str]", given: str | None) -> tuple[str, bool]:
    """The folder of the containers' state, and whether it was asked for."""
    if given is not None:
        root = os.path.abspath(given)
        if root == "/":
            raise RuntimeFailure("Option --root argument should not be set to /")
        return root, True
    folder = environ.get("XDG_RUNTIME_DIR")
    if not folder or not _is_users_own(environ):
        return DEFAULT_ROOT, False
    root = f"{folder}/lowrt"
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        os.chmod(root, 0o1700)  # with the sticky bit nobody tidies it up (XDG Base Directory Specification)
    except OSError as error:
        raise RuntimeFailure(f"the path in $XDG_RUNTIME_DIR must be writable by the user: {reason(error)}") from None
    return root, False


def _is_users_own(environ: "Mapping[str, str]") -> bool:
    """Whether XDG_RUNTIME_DIR counts: not for the machine's root, whose containers are to be found under /run."""
    if os.geteuid() != 0:
        return True
    from strata.linux import namespaces

    return not namespaces.in_first_user_namespace() and environ.get("USER") != "root"


def _version() -> str:
    import sys

    from lowrt import config, features

    lines = [f"lowrt version {VERSION}", f"spec: {config.SPEC_VERSION}", f"python: {sys.version.split()[0]}"]
    if seccomp := features.libseccomp_version():
        lines.append(f"libseccomp: {seccomp}")
    return "\n".join(lines) + "\n"


def _help(call: Call, command: str) -> int:
    from lowrt import usage

    if command and not usage.known(command):
        log.error(f"No help topic for '{command}' (lowrt --help lists the commands)")
        return _NO_SUCH_COMMAND
    call.say(usage.of(command, call.root))
    return 0


def _traced(call: Call, argv: "Sequence[str]") -> int:
    """The same with a span around it, child of TRACEPARENT."""
    from strata.telemetry import spans

    if not spans.enabled():
        spans.configure("lowrt", call.environ["STRATA_SPANS"])
    words = [word for word in argv if word in _COMMANDS]
    with spans.span(f"lowrt {words[0] if words else '?'}", parent=call.environ.get(spans.ENVIRONMENT_KEY)):
        return _run(call, argv)


# --- what goes wrong


def _report(call: Call, message: str) -> int:
    """Says what failed; the exit status."""
    prefix = _NAMED_IN_ERRORS.get(call.command, "")
    log.error(message if message.startswith(prefix) else prefix + message)
    return _EXEC_FAILED if call.command == "exec" else _FAILED


def _report_usage(call: Call, failure: UsageFailure) -> int:
    """The help goes to stdout, as runc's does."""
    from lowrt import usage

    call.say(f"Incorrect Usage: {failure}\n\n{usage.of(failure.command, call.root)}")
    log.error(str(failure))
    return _FAILED


def _log_trace() -> None:
    if log.debugging():
        import traceback

        log.debug(traceback.format_exc())


# --- the commands


def _create_options(call: Call) -> "Any":
    from lowrt import create

    options, given = create.Options(), call.values
    options.bundle = given.get("bundle") or "."
    options.console_socket, options.pid_file = given.get("console-socket") or "", given.get("pid-file") or ""
    options.pidfd_socket = given.get("pidfd-socket") or ""
    options.no_pivot, options.no_new_keyring = bool(given.get("no-pivot")), bool(given.get("no-new-keyring"))
    options.detach, options.keep = bool(given.get("detach")), bool(given.get("keep"))
    options.preserve_fds = given.get("preserve-fds", 0)
    options.systemd_cgroup, options.rootless = call.systemd_cgroup, call.rootless
    return options


def _create(call: Call) -> int:
    from lowrt import create

    container_id, options = call.one_id(), _create_options(call)
    options.detach = True
    made = create.create(call.root, container_id, options, call.fds, call.environ)
    log.warnings(made.warnings())
    os.close(made.pidfd)
    return 0


def _run_container(call: Call) -> int:
    from lowrt import create

    container_id, options = call.one_id(), _create_options(call)
    options.run = True
    made = create.create(call.root, container_id, options, call.fds, call.environ)
    try:
        log.warnings(made.warnings())
        made.start()
    except BaseException:
        from lowrt import lifecycle

        lifecycle.delete(call.root, container_id, force=True)
        os.close(made.pidfd)
        os.waitpid(made.container.pid, 0)
        raise
    if options.detach:
        if made.notifier:
            made.notifier.wait(made.pidfd, made.container.pid)
        os.close(made.pidfd)
        return 0
    from lowrt import foreground, lifecycle

    status = foreground.wait_for_end(made.container.pid, made.pidfd, made.master, call.fds, made.notifier)
    os.close(made.pidfd)
    if not options.keep:
        lifecycle.delete_ended(made.container)
    return status


def _start(call: Call) -> int:
    from lowrt import start, state

    with state.Container.open(call.root, call.one_id(), locked=True) as container:
        start.start(container, call.environ.get("NOTIFY_SOCKET", ""))
    return 0


def _exec(call: Call) -> int:
    from lowrt import execute, state

    call.need_arguments(1, None)
    given, options = call.values, execute.Options()
    options.apparmor, options.selinux_label = given.get("apparmor") or "", given.get("process-label") or ""
    options.process_file, options.console_socket = given.get("process") or "", given.get("console-socket") or ""
    options.pidfd_socket = given.get("pidfd-socket") or ""
    options.pid_file, options.cwd = given.get("pid-file") or "", given.get("cwd") or ""
    options.user, options.cgroups = given.get("user") or "", given.get("cgroup") or []
    options.detach, options.terminal = bool(given.get("detach")), bool(given.get("tty"))
    options.ignore_paused = bool(given.get("ignore-paused"))
    options.for_parent = call.for_parent and options.detach
    options.no_new_privileges = given.get("no-new-privs")
    options.preserve_fds = given.get("preserve-fds", 0)
    options.environment, options.capabilities = given.get("env") or [], given.get("cap") or []
    options.additional_gids = given.get("additional-gids") or []
    container = state.Container.open(call.root, call.container_id())
    return execute.execute(container, call.arguments[1:], options, call.fds)


def _state(call: Call) -> int:
    from lowrt import documents, state

    call.say(documents.pretty(state.Container.open(call.root, call.one_id()).public(), "  ") + "\n")
    return 0


def _list(call: Call) -> int:
    from lowrt import lifecycle

    call.need_arguments(0, 0)
    if call.root_given and not os.path.isdir(call.root):
        raise RuntimeFailure(f"open {call.root}: no such file or directory")
    call.say(lifecycle.list_all(call.root, call.format(), quiet=bool(call.values.get("quiet")), complain=call.complain))
    return 0


def _ps(call: Call) -> int:
    from lowrt import lifecycle, state

    call.need_arguments(1, None)
    container = state.Container.open(call.root, call.container_id())
    call.say(lifecycle.ps(container, call.format(), call.arguments[1:]))
    return 0


def _kill(call: Call) -> int:
    from lowrt import lifecycle, state

    call.need_arguments(1, None)
    call.need_arguments(0, 2)
    container = state.Container.open(call.root, call.container_id())
    number = lifecycle.signal_number("".join(call.arguments[1:]) or "SIGTERM")
    lifecycle.kill(container, number, everybody=bool(call.values.get("all")))
    return 0


def _delete(call: Call) -> int:
    from lowrt import lifecycle, state

    container_id = call.one_id()
    state.check_id(container_id)
    lifecycle.delete(call.root, container_id, force=bool(call.values.get("force")))
    return 0


def _pause(call: Call) -> int:
    from lowrt import lifecycle, state

    with state.Container.open(call.root, call.one_id(), locked=True) as container:
        lifecycle.pause(container)
    return 0


def _resume(call: Call) -> int:
    from lowrt import lifecycle, state

    with state.Container.open(call.root, call.one_id(), locked=True) as container:
        lifecycle.resume(container)
    return 0


def _update(call: Call) -> int:
    from lowrt import lifecycle, resources, state

    changed = resources.from_flags(call.values, call.fds[0])
    log.warnings(resources.warnings(changed))
    with state.Container.open(call.root, call.one_id(), locked=True) as container:
        lifecycle.update(container, changed)
    return 0


def _events(call: Call) -> int:
    from lowrt import events, state

    interval = events.seconds(call.values.get("interval") or "5s")
    container = state.Container.open(call.root, call.one_id())
    events.report(container, call.say, log.warning, interval, once=bool(call.values.get("stats")))
    return 0


def _spec(call: Call) -> int:
    from lowrt import documents, features

    call.need_arguments(0, 0)
    content = documents.pretty(features.template(rootless=bool(call.values.get("rootless"))), "\t") + "\n"
    try:
        with open(os.path.join(call.values.get("bundle") or "", "config.json"), "x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise RuntimeFailure("File config.json exists. Remove it first") from None
    return 0


def _features(call: Call) -> int:
    from lowrt import documents, features

    call.need_arguments(0, 0)
    call.say(documents.pretty(features.features(), "    ") + "\n")
    return 0


def _completion(call: Call) -> int:
    from lowrt import completion

    call.need_arguments(0, 0)
    call.say(completion.script())
    return 0


_COMMANDS: "dict[str, Callable[[Call], int]]" = {
    "create": _create, "run": _run_container, "start": _start, "exec": _exec, "state": _state, "list": _list, "ps": _ps,
    "kill": _kill, "delete": _delete, "pause": _pause, "resume": _resume, "update": _update, "events": _events,
    "spec": _spec, "features": _features, "completion": _completion,
}  # fmt: skip

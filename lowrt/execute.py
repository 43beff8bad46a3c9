"""exec: another process in a running container.

A helper joins the container's cgroup and namespaces; the PID namespace last, by cloning the process that becomes the program.
That one holds only what the program may hold, and is this command's (or the monitor's) child, not the helper's.

The helper lives in this command's memory, which waits meanwhile: to copy it would be a third of an exec. It is no more in the
container's reach for that: the container does not see it, and it cannot be traced by those who have rights in the container only.
"""

import os

from lowrt import config, documents, foreground, log, process, start, state, terminal
from lowrt.errors import RuntimeFailure, reason, reason_in_step, received_failure, send_failure, step
from strata.linux import cgroups, descriptors, namespaces, pidfds, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = dict[str, Any]

_STOPPED = "cannot exec in a stopped container"


class Options:
    """The flags of exec."""

    process_file = console_socket = pidfd_socket = pid_file = cwd = user = ""
    apparmor = selinux_label = ""
    detach = terminal = ignore_paused = False
    no_new_privileges: bool | None = None
    preserve_fds = 0
    for_parent = False
    """Whether the process becomes the child of this process's parent, which waits for it. Only with `detach`."""

    def __init__(self) -> None:
        self.environment: list[str] = []
        self.additional_gids: list[int] = []
        self.capabilities: list[str] = []
        self.cgroups: list[str] = []


def execute(container: state.Container, arguments: list[str], options: Options, fds: tuple[int, int, int]) -> int:
    """Runs a program in the container. Returns its exit status, or 0 at once when detached. Raises RuntimeFailure."""
    container.lock(shared=True)  # until the program runs: nobody deletes or pauses the container meanwhile
    try:
        pid, pidfd, master = _begin(container, arguments, options, fds)
    finally:
        container.unlock()
    try:
        return 0 if options.detach else foreground.wait_for_end(pid, pidfd, master, fds)
    finally:
        os.close(pidfd)


def _begin(
    container: state.Container, arguments: list[str], options: Options, fds: tuple[int, int, int]
) -> tuple[int, int, int]:  # fmt: skip
    """Until the program runs: its PID, its pidfd and the terminal's master (-1: there is none here), which the caller owns."""
    target, status = _open_first(container, options)
    sync, child_sync = descriptors.pair()
    pid, pidfd, master = 0, -1, -1
    handed_out: dict[str, int] = {}
    try:
        program, settings = _prepare(container, arguments, options)
        below = sub_cgroups(options.cgroups)
        if status == "created" and os.geteuid() != 0 and "user" in container.values["namespaces"]:
            handed_out = start.ask_for_namespaces(container)
        if status == "paused":
            container.unlock()  # it goes on when somebody resumes the container, who must be able to lock it
        helper = _Helper(container, target, handed_out, program, settings, child_sync, fds, below)
        step("make the process that joins the container's namespaces")
        helper.help(for_parent=options.for_parent)
        child_sync.close()
        step("join the container's namespaces")
        pid, master, failure = _converse(sync, options)
        if failure:
            raise failure
        pidfd = pidfds.open_pidfd(pid)
        log.debug(f"container {container.id}: process {pid}")
        if options.pidfd_socket:
            terminal.hand_over(options.pidfd_socket, b"setns", pidfd)
        if options.pid_file:
            state.write_pid_file(options.pid_file, pid)
        sync.send(b"k")
        if not start.wait_for_exec(container, sync, pid, "running"):
            raise RuntimeFailure("the process died before its program could be started")
    except BaseException as error:
        if pid:
            if pidfd >= 0:
                os.close(pidfd)
            process.end(pid)
        if master >= 0:
            os.close(master)
        if isinstance(error, OSError | RuntimeFailure):
            ending = pidfds.is_ending(container.pid, container.values["startTime"])
            raise RuntimeFailure(reason_in_step(error) + (" (the container has stopped meanwhile)" if ending else "")) from None
        raise
    finally:
        for descriptor in (target, *handed_out.values()):
            os.close(descriptor)
        sync.close()
        child_sync.close()
    return pid, pidfd, master


def _open_first(container: state.Container, options: Options) -> tuple[int, str]:
    """The pidfd of the container's first process, which the caller owns, and the container's status: one to exec in."""
    step("look how the container is")
    try:
        target = pidfds.open_pidfd(container.pid)
    except ProcessLookupError:
        raise RuntimeFailure(_STOPPED) from None
    status = container.status()
    if status == "stopped":
        failure = _STOPPED
    elif status == "paused" and not options.ignore_paused:
        failure = "cannot exec in a paused container (use --ignore-paused to override)"
    else:
        return target, status
    os.close(target)
    raise RuntimeFailure(failure)


def _prepare(container: state.Container, arguments: list[str], options: Options) -> "tuple[process.Process, Spec]":
    """The process to run, checked, and what the specification has of it."""
    settings = _settings(container, arguments, options)
    config.check_process(settings)
    terminal.check_socket(bool(settings.get("terminal")), options.console_socket, detach=options.detach)
    profile = process.seccomp_profile(container.values.get("seccomp"))
    process.check_preserved(options.preserve_fds)
    program = process.Process(settings, container.values, profile.flags if profile else None, options.preserve_fds)
    if profile:
        program.take_filter(profile.compile(os.path.dirname(container.folder)))
    if in_user_namespace := "user" in container.values["namespaces"]:
        program.may_set_groups = process.may_set_groups(container.pid)
    log.warnings(config.capability_warnings(settings, in_user_namespace=in_user_namespace))
    return program, settings


def _settings(container: state.Container, arguments: list[str], options: Options) -> "Spec":
    """The process to run: the file's, or the container's own changed by the flags."""
    if options.process_file:
        try:
            with open(options.process_file, encoding="utf-8") as file:
                given: Spec = documents.loads(file.read())
        except (OSError, ValueError) as error:
            raise RuntimeFailure(f"read the process from {options.process_file}: {reason(error)}") from None
        config.fit_process(given)
        return _with_defaults(given, container.values.get("process") or {})
    if not arguments:
        raise RuntimeFailure("exec args cannot be empty: give the program after the container's ID, or a process with --process")
    settings: Spec = dict(container.values.get("process") or {"cwd": "/"})
    settings["args"] = arguments
    settings["terminal"] = options.terminal
    settings.pop("consoleSize", None)
    settings["env"] = [*(settings.get("env") or ()), *options.environment]
    if options.cwd:
        settings["cwd"] = options.cwd
    if options.apparmor:
        settings["apparmorProfile"] = options.apparmor
    if options.selinux_label:
        settings["selinuxLabel"] = options.selinux_label
    if options.no_new_privileges is not None:
        settings["noNewPrivileges"] = options.no_new_privileges
    user = dict(settings.get("user") or {})
    if options.user:
        uid, _, gid = options.user.partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise RuntimeFailure(f"--user {options.user}: give numbers, UID or UID:GID")
        user["uid"] = int(uid)
        if gid:
            user["gid"] = int(gid)
    user["additionalGids"] = [*(user.get("additionalGids") or ()), *options.additional_gids]
    settings["user"] = user
    if options.capabilities:
        sets = dict(settings.get("capabilities") or {})
        # Nothing can be ambient that is not inheritable, so where nothing is inheritable nothing is tried (as runc has it).
        for kind in ("bounding", "effective", "permitted", *(("ambient",) if sets.get("inheritable") else ())):
            sets[kind] = [*(sets.get(kind) or ()), *options.capabilities]
        settings["capabilities"] = sets
    return settings


def _with_defaults(given: "Spec", container: "Spec") -> "Spec":
    """A process of its own file has the container's attributes where it says nothing, as in runc: less confined it never is."""
    if "capabilities" not in given and "capabilities" in container:
        given["capabilities"] = container["capabilities"]
    for name in ("apparmorProfile", "selinuxLabel", "rlimits", "scheduler", "ioPriority", "execCPUAffinity"):
        if not given.get(name) and container.get(name):
            given[name] = container[name]
    umask = (container.get("user") or {}).get("umask")
    if umask is not None:
        given.setdefault("user", {}).setdefault("umask", umask)
    return given


def sub_cgroups(given: list[str]) -> dict[str, str]:
    """Controller → path below the container's cgroup, "" for all of them, of --cgroup's PATH or CONTROLLER,…:PATH."""
    paths: dict[str, str] = {}
    for text in given:
        controllers, colon, path = text.partition(":")
        if not colon:
            if len(given) > 1:
                raise RuntimeFailure(f"invalid --cgroup argument: {text} (missing <controller>: prefix)")
            return {"": text}
        for controller in controllers.split(","):
            if not controller:
                raise RuntimeFailure(f"invalid --cgroup argument: {text} (empty <controller> prefix)")
            if controller in paths:
                raise RuntimeFailure(f"invalid --cgroup argument(s): controller {controller} specified multiple times")
            paths[controller] = path
    return paths


class _Helper:
    """The process that joins the container's namespaces, and does there what can be done by a process that the container does not
    see. It has the program's cgroup, limits and OOM score, which are handed on.

    The process that it clones is seen, and could be taken over by one that may trace: so it gets nothing that the container has
    not got as well.
    """

    def __init__(
        self, container: state.Container, target: int, handed_out: dict[str, int], program: "process.Process", settings: "Spec",
        sync: descriptors.Socket, fds: tuple[int, int, int], below: dict[str, str],
    ) -> None:  # fmt: skip
        """target: the pidfd of the container's first process. handed_out: its namespaces, where that is of no use. below: as of
        `sub_cgroups`. sync: takes what it and the process say."""
        self._container, self._target, self._handed_out = container, target, handed_out
        self._program, self._settings, self._sync, self._fds, self._below = program, settings, sync, fds, below
        self._group = container.cgroup()

    def help(self, *, for_parent: bool) -> None:
        """Until it has ended. What it could not do it says to `sync`. for_parent: as of Options. Raises OSError and
        RuntimeFailure."""
        joined = self._open_to_join()
        try:
            into = self._group.open_for_exec(self._below)
        except ValueError as error:
            raise RuntimeFailure(str(error)) from None
        try:
            if into >= 0:
                try:
                    # What is left of v1, if it is that, is to be had too: else all of it is joined in the other way.
                    self._clone(into, joined if joined or not self._group.joins_itself else None, for_parent=for_parent)
                    return
                except OSError:
                    pass  # the container has divided its group, see Cgroup.follow
            self._clone(-1, joined if joined and not self._group.takes_clones else None, for_parent=for_parent)
        finally:
            for descriptor in (*joined, *([into] if into >= 0 else [])):
                os.close(descriptor)

    def _open_to_join(self) -> list[int]:
        """What it joins the cgroup by. Where that cannot be had it is moved there, which tells why."""
        try:
            return self._group.open_to_join(self._below) if self._group.joins_itself else []
        except (OSError, ValueError):
            return []

    def _clone(self, into: int, joined: list[int] | None, *, for_parent: bool) -> None:
        """into: the descriptor of the cgroup that it is cloned into, or -1. joined: those that it joins the rest by; None: it is
        to be moved."""
        flags = syscalls.CLONE_PARENT if for_parent else 0
        # A time namespace is not joined by a process that shares its memory (time_namespaces(7)).
        if syscalls.SHARES_MEMORY and "time" not in self._container.values["namespaces"]:
            syscalls.play(flags, lambda: self._live(joined), cgroup=into)
            return
        pid, pidfd = syscalls.clone3(flags, cgroup=into)
        if pid == 0:
            try:
                self._live(joined)
            finally:
                os._exit(0)
        pidfds.wait_gone(pidfd, None)
        os.close(pidfd)
        if not for_parent:
            os.waitpid(pid, 0)

    # --- in the helper, where no object must be changed that the command goes on to use: descriptors are closed by their numbers

    def _live(self, joined: list[int] | None) -> None:
        program, settings, sync = self._program, self._settings, self._sync
        try:
            process.close_others(
                (*self._fds, sync.fileno(), self._target, *self._handed_out.values(), *(joined or ())), program
            )  # fmt: skip
            step("join the container's cgroup")
            self._join_cgroup(joined)
            program.raise_limits(0)
            program.adjust_oom_score("self")
            step("join the container's namespaces")
            process.hide()
            program.start_on_its_cpus()
            proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if program.needs_proc else -1
            self._join()
            if proc < 0:
                _take_keyring(self._container.values)
            if settings.get("terminal"):
                step("make a terminal (a devpts mount on /dev/pts is needed)")
                multiplexer = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
                console = terminal.Console(multiplexer, settings.get("consoleSize"))
                descriptors.send(sync, b"c", (console.master,))
                console.become_stdio(program.uid)
            else:
                process.take_stdio(self._fds)
                step("take stdin, stdout and stderr")
                process.own_stdio(program.uid)
            step("prepare the process")
            program.go_on_its_cpus()
            program.enter_folder()
            program.confine()
            process.close_others((sync.fileno(), *([proc] if proc >= 0 else [])), program)
            pid, _ = syscalls.clone3(syscalls.CLONE_PARENT)
            if pid == 0:
                _become(program, sync, proc, self._container.values, has_terminal=bool(settings.get("terminal")))
            sync.send(b"p%d" % pid)
        except BaseException as error:
            send_failure(sync, error)

    def _join_cgroup(self, joined: list[int] | None) -> None:
        """The process inherits it, and is not for a moment outside the container's limits."""
        if joined is None:
            try:
                self._group.follow(os.getpid(), self._container.pid, self._below)
            except (OSError, ValueError) as error:
                raise RuntimeFailure(f"error adding pid {os.getpid()} to cgroups: {reason(error)}") from None
            return
        cgroups.join_opened(joined)
        for descriptor in joined:
            os.close(descriptor)

    def _join(self) -> None:
        """Joins the namespaces of the container's first process; that of PIDs for the children only."""
        flags = 0
        for kind in self._container.values["namespaces"]:
            flags |= namespaces.KINDS[kind][0]
        root = -1 if flags & namespaces.NEWNS else self._open_root()
        handed_out = self._handed_out
        if handed_out:
            for kind in sorted(handed_out, key="user".__ne__):  # that of users gives the rights for the others
                if kind != "pid":
                    syscalls.setns(handed_out[kind], namespaces.KINDS[kind][0])
        else:
            syscalls.setns(self._target, flags & ~namespaces.NEWPID)
        if flags & namespaces.NEWUSER:
            # The caller's user has no number in there: what it makes (a terminal) could be given to nobody.
            syscalls.setresgid(0)
            syscalls.setresuid(0)
            process.hide()  # the change of user may have undone it (fs.suid_dumpable)
        if root >= 0:
            os.fchdir(root)
            os.chroot(".")
            os.close(root)
        if flags & namespaces.NEWPID:
            syscalls.setns(handed_out.get("pid", self._target), namespaces.NEWPID)

    def _open_root(self) -> int:
        """The root folder of a container that has no mount namespace to join."""
        root = os.open(f"/proc/{self._container.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if pidfds.wait_gone(self._target, 0):  # then it may be another process's
            raise RuntimeFailure(_STOPPED)
        return root


def _take_keyring(values: "Spec") -> None:
    if values.get("keyring"):
        process.take_keyring(values["keyring"], by_others="user" in values["namespaces"])


def _become(
    program: "process.Process", sync: descriptors.Socket, proc: int, values: "Spec", *, has_terminal: bool
) -> None:  # fmt: skip
    """In the new process: what must be done by itself, then the program. Never returns.

    proc: a descriptor of the machine's /proc where something of it is needed, else -1. values: the container's state.
    """
    try:
        step("prepare the process")
        process.die_with_parent(True)
        process.reset_signals()
        os.setsid()
        if proc >= 0:
            program.open_attributes(proc)
            os.close(proc)
            _take_keyring(values)  # labelled by the attributes
        if has_terminal:
            terminal.take_control(0)
        program.apply_attributes()
        program.check_program()
        step("wait for the runtime")
        sync.send(b"r")
        if descriptors.receive(sync)[0] != b"k":
            os._exit(1)
        process.die_with_parent(False)
        program.become(sync)
    except BaseException as error:
        send_failure(sync, error)
    finally:
        os._exit(1)


def _converse(sync: descriptors.Socket, options: Options) -> "tuple[int, int, RuntimeFailure | None]":
    """Until the process is ready, or it is clear that it will not be: its PID as seen here (0 for none), the terminal's master
    where it stays here (else -1), and what failed.

    Two speak, the helper and the process, so `r` or `e` may come before `p`.
    """
    pid, master, ready = 0, -1, False
    failure: RuntimeFailure | None = None
    while not pid or not (ready or failure):
        message, received = descriptors.receive(sync)
        letter = message[:1]
        if letter == b"p":
            pid = int(message[1:])
        elif letter == b"r":
            ready = True
        elif letter == b"c" and options.console_socket:
            try:
                terminal.hand_over(options.console_socket, b"/dev/ptmx", received[0])
            except RuntimeFailure as error:
                failure = error
            finally:
                os.close(received[0])
        elif letter == b"c":
            master = received[0]
            terminal.leave_line_ends(master)
        else:
            failure = failure or received_failure(message or b"e" + b"the process that joins the container has died")
            if not message:
                break
    return pid, master, failure

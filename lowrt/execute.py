"""exec: another process in a running container.

A helper joins the container's namespaces; the PID namespace last, by cloning the process that becomes the program. That one
holds only what the program may hold, and is this command's (or the monitor's) child, not the helper's.
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
        helper, helper_pidfd = _start_helper(
            container, target, handed_out, program, settings, sync, child_sync, fds, below
        )  # fmt: skip
        if status == "paused":
            container.unlock()  # it goes on when somebody resumes the container, who must be able to lock it
        try:
            child_sync.close()
            step("join the container's namespaces")
            pid, master, failure = _converse(sync, options)
        finally:
            os.waitpid(helper, 0)
            os.close(helper_pidfd)
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


def _clone_helper(group: "cgroups.Cgroup", below: dict[str, str]) -> tuple[int, int, bool]:
    """The helper's PID and pidfd (0 in the helper), and whether it was cloned into the container's cgroup."""
    try:
        into = group.open_for_exec(below)
    except ValueError as error:
        raise RuntimeFailure(str(error)) from None
    if into >= 0:
        try:
            return *syscalls.clone3(0, cgroup=into), True
        except OSError:
            pass  # the container has divided its group, see Cgroup.follow
        finally:
            os.close(into)
    return *syscalls.clone3(0), False


def _start_helper(
    container: state.Container,
    target: int,
    handed_out: dict[str, int],
    program: "process.Process",
    settings: "Spec",
    sync: descriptors.Socket,
    child_sync: descriptors.Socket,
    fds: tuple[int, int, int],
    below: dict[str, str],
) -> tuple[int, int]:
    """The process that joins the namespaces and clones the program's inside: its PID and pidfd. It has the program's cgroup,
    limits and OOM score, which are handed on."""
    group = container.cgroup()
    step("make the process that joins the container's namespaces")
    opened = _open_to_join(group, below)
    try:
        helper, helper_pidfd, inside = _clone_helper(group, below)
        if helper == 0:
            _help(program, settings, target, handed_out, child_sync, fds, container, opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    try:
        if group.joins_itself:
            inside = bool(opened) and (inside or not group.takes_clones)
        if not inside:
            _join_cgroup(group, helper, container.pid, below)
        program.raise_limits(helper)
        program.adjust_oom_score(helper)
        sync.send(b"g")
    except BaseException:
        os.close(helper_pidfd)
        process.end(helper)  # it waits for a word that will not come
        raise
    return helper, helper_pidfd


def _open_to_join(group: "cgroups.Cgroup", below: dict[str, str]) -> list[int]:
    """What the helper joins by itself. Where that cannot be had it is moved, which tells why."""
    try:
        return group.open_to_join(below) if group.joins_itself else []
    except (OSError, ValueError):
        return []


def _join_cgroup(group: "cgroups.Cgroup", helper: int, leader: int, below: dict[str, str]) -> None:
    """Moves the helper in: the process inherits it, and is not for a moment outside the container's limits."""
    try:
        group.follow(helper, leader, below)
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"error adding pid {helper} to cgroups: {reason(error)}") from None


def _open_root(container: state.Container, target: int) -> int:
    """The root folder of a container that has no mount namespace to join. target: the pidfd of its first process."""
    root = os.open(f"/proc/{container.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if pidfds.wait_gone(target, 0):  # then it may be another process's
        raise RuntimeFailure(_STOPPED)
    return root


def _help(
    program: "process.Process", settings: "Spec", target: int, handed_out: dict[str, int], sync: descriptors.Socket,
    fds: tuple[int, int, int], container: state.Container, groups: list[int],
) -> None:  # fmt: skip
    """In the helper: joins the container's namespaces, and does there what can be done by a process that the container does not
    see. Never returns. target: the pidfd of the container's first process. handed_out: its namespaces, where that is of no use.
    groups: what it joins the cgroup by.

    The process that it clones is seen, and could be taken over by one that may trace: so it gets nothing that the container has
    not got as well.
    """
    try:
        process.close_others((*fds, sync.fileno(), target, *handed_out.values(), *groups), program)
        step("join the container's cgroup")
        cgroups.join_opened(groups)
        for descriptor in groups:
            os.close(descriptor)
        if descriptors.receive(sync)[0] != b"g":
            os._exit(1)
        step("join the container's namespaces")
        process.hide()
        program.start_on_its_cpus()
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if program.needs_proc else -1
        _join(container, target, handed_out)
        if proc < 0:
            _take_keyring(container.values)
        if settings.get("terminal"):
            step("make a terminal (a devpts mount on /dev/pts is needed)")
            multiplexer = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            console = terminal.Console(multiplexer, settings.get("consoleSize"))
            descriptors.send(sync, b"c", (console.master,))
            console.become_stdio(program.uid)
        else:
            process.take_stdio(fds)
            step("take stdin, stdout and stderr")
            process.own_stdio(program.uid)
        step("prepare the process")
        program.go_on_its_cpus()
        program.enter_folder()
        program.confine()
        process.close_others((sync.fileno(), *([proc] if proc >= 0 else [])), program)
        pid, _ = syscalls.clone3(syscalls.CLONE_PARENT)
        if pid == 0:
            _become(program, sync, proc, container.values, has_terminal=bool(settings.get("terminal")))
        sync.send(b"p%d" % pid)
    except BaseException as error:
        send_failure(sync, error)
    finally:
        os._exit(0)


def _join(container: state.Container, target: int, handed_out: dict[str, int]) -> None:
    """Joins the namespaces of the container's first process, a pidfd; that of PIDs for the children only."""
    flags = 0
    for kind in container.values["namespaces"]:
        flags |= namespaces.KINDS[kind][0]
    root = -1 if flags & namespaces.NEWNS else _open_root(container, target)
    if handed_out:
        for kind in sorted(handed_out, key="user".__ne__):  # that of users gives the rights for the others
            if kind != "pid":
                syscalls.setns(handed_out[kind], namespaces.KINDS[kind][0])
    else:
        syscalls.setns(target, flags & ~namespaces.NEWPID)
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
        syscalls.setns(handed_out.get("pid", target), namespaces.NEWPID)


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

"""The container's first process, from clone to exec (the child's side; `create` is the parent's).

It speaks with its parent over a pair of sockets, one letter a message. The parent says `g` (go: the container's ID is its own,
the maps of its user namespace are set), `j` (join your cgroup), `f` with the seccomp filter's program and `k` (its hooks have
run); the child says `p` with its PID, where not its parent has cloned it, then `m` (make me the source of this mount; the answer
is `m` or `e`), `n` (likewise the node of a device), `d` (move the network devices; the answer is `d`), `h` (the root is made: run
your hooks), `c` with the terminal, `r` (ready, waiting for start) and `e` with what failed. From then on it waits: at the start
socket in the container's folder, or, for a `run`, for the parent's `s`, which may be there already. At the start socket an exec
may ask with `n` for the container's namespaces.
"""

import _socket
import os

from lowrt import config, hooks, process, rootfs, sysctls, terminal
from lowrt.errors import RuntimeFailure, reason, received_text, send_failure, step
from strata.linux import cgroups, descriptors, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Spec = dict[str, Any]


_MOST_GROUPS = 64  # v1's hierarchies, and more than there are


class Plan:
    """What a first process is made of, in plain values: another process can be told of it (`prefork`)."""

    def __init__(
        self, spec: "Spec", rootfs: str, cgroup_folders: list[str], bundle: str, process: "Spec | None", preserve_fds: int,
        filter_flags: int | None, state: "Spec", pivot: bool, keyring: str,
    ) -> None:  # fmt: skip
        """rootfs: the root's path, without links. cgroup_folders: its cgroup in each hierarchy. bundle: where relative
        sources begin. process: the spec's, with what the caller adds to its environment. filter_flags: those of its seccomp
        filter, None without one. state: what hooks are told. keyring: "" for the caller's."""
        self.spec, self.rootfs, self.cgroup_folders, self.bundle = spec, rootfs, cgroup_folders, bundle
        self.process, self.preserve_fds, self.filter_flags = process, preserve_fds, filter_flags
        self.state, self.pivot, self.keyring = state, pivot, keyring
        self.linux: Spec = spec.get("linux") or {}

    def values(self) -> "tuple[Any, ...]":
        """What the same is made of again."""
        return (
            self.spec, self.rootfs, self.cgroup_folders, self.bundle, self.process, self.preserve_fds, self.filter_flags,
            self.state, self.pivot, self.keyring,
        )  # fmt: skip


class Init:
    """What the child needs, all made before the clone. Raises RuntimeFailure for what cannot be honoured.

    entered: the flags of namespaces that it is in from the beginning, made by the process that clones it.
    """

    sync: descriptors.Socket

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.entered = 0
        self._spec, self._linux = plan.spec, plan.linux
        self.has_user_namespace = config.has_namespace(plan.linux, "user")
        self.program: process.Process | None = None
        if plan.process:
            self.program = process.Process(plan.process, plan.linux, plan.filter_flags, plan.preserve_fds)
        self.root = rootfs.Rootfs(plan.spec, plan.rootfs, plan.cgroup_folders, plan.bundle)
        self._start: descriptors.Socket | None = None
        self._joined: dict[str, int] = {}
        self._heard: dict[bytes, tuple[bytes, list[int]]] = {}  # words of its parent's that came before their time
        # A parent without rights can write the ID maps only while /proc/PID is its own, which that of a hidden process is not.
        self.mapped_by_user = self._new("user") and os.geteuid() != 0
        self._joined_early: list[str] = []
        # And nobody without rights can join the namespaces of a hidden process by its /proc or pidfd: it hands them out itself.
        self._hands_out_namespaces = self.has_user_namespace and os.geteuid() != 0
        self._namespaces: dict[str, int] = {}
        self._enter_time: Callable[[], None] | None = None
        if self._new("time"):
            from strata.linux import timens

            offsets = {
                clock: (given.get("secs", 0), given.get("nanosecs", 0))
                for clock, given in (self._linux.get("timeOffsets") or {}).items()
            }
            self._enter_time = lambda: timens.enter_new(offsets)

    def take(self, sync: descriptors.Socket, named: dict[str, int]) -> None:
        """Takes the descriptors that it works with: sync, to its parent, and those that `named` has named."""
        named = dict(named)
        self.sync, self._fds = sync, (named.pop("stdin"), named.pop("stdout"), named.pop("stderr"))
        if "start" in named:
            self._start = descriptors.Socket(fileno=named.pop("start"))
        self._joined = named

    def join_early(self) -> None:
        """Joins what the parent of this process must join: the user namespace and, for its children, the PID namespace.

        Before that, while it still has its caller's rights, all that belongs to others than the user namespace: what belongs to
        that one refuses now, and is joined by the process itself, from inside. The mount namespace is joined last.
        """
        for kind, descriptor in self._joined.items():
            if kind in ("user", "mount") or not self.has_user_namespace:
                continue
            step(f"join the {kind} namespace")
            try:
                syscalls.setns(descriptor, namespaces.KINDS[kind][0])
                self._joined_early.append(kind)
            except PermissionError:
                pass
        for kind in ("user", "pid"):
            if kind in self._joined and kind not in self._joined_early:
                step(f"join the {kind} namespace")
                syscalls.setns(self._joined[kind], namespaces.KINDS[kind][0])
                self._joined_early.append(kind)

    def main(self) -> None:
        """Runs in the child, and never returns."""
        try:
            self.live()
        except BaseException as error:
            send_failure(self._report, error)
        finally:
            os._exit(1)

    def live(self) -> None:
        """All of its life, until it is the program. Raises what goes wrong."""
        self._report = self.sync
        self._set_up()
        self._report = self._wait_for_start()
        if self.program is None:
            raise RuntimeFailure("container has no process to start: config.json has no process")
        program = self.program
        # As runc runs these hooks: with no more rights than the program, and in its environment.
        program.become(self._report, lambda: self._run_hooks("startContainer", "created", "", program.environment))

    def _wait_for_start(self) -> descriptors.Socket:
        """The connection that takes `x` before the exec, or `e` and what failed. Its end, when exec closes it, says that the
        program runs."""
        if self._start is None:
            self._hear(b"s")
            return self.sync
        self.sync.close()
        process.end_by_signals()
        while True:
            descriptor, _ = self._start._accept()  # type: ignore[attr-defined]
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)
            message, _ = descriptors.receive(connection)
            if message == b"s":
                return connection
            if message == b"n" and self._namespaces:
                descriptors.send(connection, " ".join(self._namespaces).encode(), tuple(self._namespaces.values()))
            connection.close()

    def _set_up(self) -> None:
        step("prepare the container's first process")
        if not self.mapped_by_user:
            process.hide()  # at once: there may be others in its PID namespace
        process.die_with_parent(True)
        process.reset_signals()
        kept = (*self._fds, *self._joined.values(), self.sync.fileno(), *([self._start.fileno()] if self._start else []))
        process.close_others(kept, self.program)
        self._hear(b"g")
        if self._enter_time:
            step("make the time namespace")
            self._enter_time()
        if self.has_user_namespace:
            # The caller's user has no number in there: what it makes could be given to nobody.
            step("become root of the user namespace")
            syscalls.setresgid(0)
            syscalls.setresuid(0)
            process.hide()  # the change of user may have undone it (fs.suid_dumpable)
            process.die_with_parent(True)  # and has undone this
            # Made only now, so that what the kernel makes with them (/dev/mqueue, /proc/net) belongs to the namespace's root.
            syscalls.unshare(late_namespaces(self._linux))
        program = self.program
        if program and self.has_user_namespace:
            program.may_set_groups = process.may_set_groups("self")
        if program and program.needs_proc:
            proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            program.open_attributes(proc)
            os.close(proc)
        step("make a session")
        os.setsid()
        for kind, descriptor in self._joined.items():
            if kind not in self._joined_early:
                step(f"join the {kind} namespace")
                syscalls.setns(descriptor, namespaces.KINDS[kind][0])
        if self._new("network") and not self.entered & namespaces.NEWNET:
            step("bring up lo")
            namespaces.loopback_up()
        if self.plan.keyring:
            process.take_keyring(self.plan.keyring, by_others=self.has_user_namespace)
        if hostname := self._spec.get("hostname"):
            step(f"set the host name {hostname!r}")
            syscalls.sethostname(hostname)
        if domainname := self._spec.get("domainname"):
            step(f"set the domain name {domainname!r}")
            syscalls.setdomainname(domainname)
        if self._linux.get("netDevices"):
            step("take the network devices")
            self._ask(b"d")
        sysctls.write_all(self._linux.get("sysctl") or {})
        self.root.ask_parent = lambda request: self._ask(request)[0]
        step("prepare the root file system")
        self.root.prepare()
        step("wait for the runtime to set the cgroup")
        _, groups = self._hear(b"j")
        try:
            cgroups.join_opened(groups)
        except OSError as error:
            raise RuntimeFailure(f"unable to apply cgroup configuration: {reason(error)}") from None
        for descriptor in groups:
            os.close(descriptor)
        if self._new("cgroup"):
            step("make the cgroup namespace")
            syscalls.unshare(namespaces.NEWCGROUP)  # its root is the cgroup that the process is in
        self.root.mount_cgroups()
        settings = self._spec.get("process") or {}
        console = self._make_console(settings) if settings.get("terminal") else None
        if any((self._spec.get("hooks") or {}).get(kind) for kind in ("prestart", "createRuntime")):
            step("wait for the runtime's hooks")
            self.sync.send(b"h")
            self._hear(b"k")
        self._run_hooks("createContainer", "creating", self.root.path, {})
        self.root.restrict()
        if self._hands_out_namespaces and self._start:
            step("open the container's namespaces")
            for entry in self._linux["namespaces"]:
                self._namespaces[entry["type"]] = os.open(namespaces.path_of("self", entry["type"]), os.O_RDONLY | os.O_CLOEXEC)
        step(f"make {self.root.path} the root")
        self.root.enter(pivot=self.plan.pivot)
        step("take the terminal" if console else "take stdin, stdout and stderr")
        if console:
            descriptors.send(self.sync, b"c", (console.master,))
            os.close(console.master)
            console.become_stdio(program.uid if program else 0)
            terminal.take_control(0)
        else:
            process.take_stdio(self._fds)
            process.own_stdio(program.uid if program else 0)
        if program:
            step("prepare the program's process")
            program.apply_attributes()
            program.check_program()
            if program.awaits_filter:
                program.take_filter(self._hear(b"f")[0])
        step("wait for the start")
        process.allow_all_cpus()  # it had its own until now, see prefork; those of its cgroup only, in any case
        process.die_with_parent(False)
        self.sync.send(b"r")

    def _make_console(self, settings: "Spec") -> terminal.Console:
        """The terminal, from the container's own devpts, and its slave as /dev/console."""
        try:
            console = terminal.Console(self.root.open_multiplexer(), settings.get("consoleSize"))
            self.root.bind_console(console.slave)
        except OSError as error:
            raise RuntimeFailure(f"cannot make a terminal (a devpts mount on /dev/pts is needed): {reason(error)}") from None
        return console

    def _ask(self, request: bytes) -> list[int]:
        """Has the parent do what this process may not; the descriptors that come of it. Raises RuntimeFailure."""
        self.sync.send(request)
        return self._hear(request[:1])[1]

    def _hear(self, letter: bytes) -> tuple[bytes, list[int]]:
        """Waits for a word of the parent's; what comes with it. Raises RuntimeFailure where the parent says what has failed."""
        while letter not in self._heard:
            message, received = descriptors.receive(self.sync, max_descriptors=_MOST_GROUPS)
            if message[:1] == b"e":
                raise RuntimeFailure(received_text(message))
            if not message:
                os._exit(1)  # the parent is gone, or has given up
            self._heard[message[:1]] = message[1:], received
        return self._heard.pop(letter)

    def _new(self, kind: str) -> bool:
        return config.namespace_path(self._linux, kind) == ""

    def _run_hooks(self, kind: str, status: str, folder: str, environment: dict[str, str]) -> None:
        """Those of the container's side; their state has the process's ID as they see it."""
        state = {**self.plan.state, "status": status, "pid": os.getpid()}
        hooks.run_all(self._spec, kind, state, folder, environment=environment)


def named(fds: tuple[int, int, int], start: descriptors.Socket | None, joined: dict[str, int]) -> dict[str, int]:
    """The descriptors that a first process works with: stdin, stdout and stderr, the socket at which it waits for its start (None
    where it waits for its parent's word), and the namespaces that it joins, by kind."""
    return {
        **dict(zip(("stdin", "stdout", "stderr"), fds, strict=True)),
        **({"start": start.fileno()} if start else {}),
        **joined,
    }  # fmt: skip


def late_namespaces(linux: "Spec") -> int:
    """The flags of the namespaces that the first process makes itself, once it is root of a user namespace."""
    if not config.has_namespace(linux, "user"):
        return 0
    kinds = (("ipc", namespaces.NEWIPC), ("network", namespaces.NEWNET))
    return sum(flag for kind, flag in kinds if config.namespace_path(linux, kind) == "")

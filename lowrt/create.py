"""create, start and run: the parent's side of a container's making (`init` is the child's).

What is made is noted before it is made, so that delete finds it after this process was killed: the folder, then the cgroup's
path in it, then the process in the cgroup.
"""

import _socket
import os
import time

from lowrt import config, devices, documents, hooks, init, log, prefork, process, rootfs, start, state, terminal
from lowrt.errors import RuntimeFailure, reason, reason_in_step, received_failure, send_failure, step
from strata.linux import cgroups, descriptors, namespaces, pidfds, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from lowrt import netdevices
    from lowrt.notify import Notifier

    Spec = dict[str, Any]

_SEQPACKET = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
# What every container may use (config-linux, Default Devices), whatever the rules before say: to make any node, terminals,
# /dev/net/tun, and the devices of these paths, unless the configuration has others there.
_DEFAULT_DEVICES = [
    *({"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")),
    *({"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
      for major, minor in ((136, -1), (5, 2), (10, 200))),
]  # fmt: skip
_DEFAULT_NODES = {
    path: {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
    for path, major, minor in (("/dev/null", 1, 3), ("/dev/random", 1, 8), ("/dev/full", 1, 7), ("/dev/tty", 5, 0),
                               ("/dev/zero", 1, 5), ("/dev/urandom", 1, 9))
}  # fmt: skip


class Options:
    """The flags of create and run."""

    bundle = "."
    console_socket = pidfd_socket = pid_file = ""
    no_pivot = no_new_keyring = detach = keep = systemd_cgroup = False
    rootless: bool | None = None
    run = False  # start follows at once, by the same caller
    preserve_fds = 0


class Created:
    """A container whose first process waits for start. The caller owns pidfd, master (-1: no terminal here) and, with
    `Options.run`, sync: the connection to that process, where it waits for `s`, or has found it already."""

    def __init__(
        self, container: state.Container, spec: "Spec", pidfd: int, master: int, sync: descriptors.Socket | None,
        notifier: "Notifier | None", *, started: bool = False,
    ) -> None:  # fmt: skip
        self.container, self.spec, self.pidfd, self.master, self._sync = container, spec, pidfd, master, sync
        self._started = started
        self.notifier = notifier

    def warnings(self) -> list[str]:
        """What is no failure, but may surprise."""
        found = config.warnings(self.spec)
        if not self.container.values["privatePid"] and not self.container.cgroup().folders():
            found.append(
                "Creating a rootless container with no cgroup and no private pid namespace. Such configuration is strongly "
                "discouraged: not all of its processes can be found to be killed"
            )
        return found

    def start(self) -> None:
        """Lets the program go, and returns when it runs. Raises RuntimeFailure."""
        if self._sync is None:
            start.start(self.container)
            return
        try:
            if not self._started:
                self._sync.send(b"s")
            start.wait_until_it_runs(self.container, self._sync)
        finally:
            self._sync.close()
        start.run_poststart_hooks(self.container)


def create(root: str, container_id: str, options: Options, fds: tuple[int, int, int], environ: "Mapping[str, str]") -> Created:
    """Makes a container up to the point where `start` lets its program go. Raises RuntimeFailure, having undone everything."""
    forked = prefork.take()
    try:
        spec = config.read(options.bundle)
        linux = spec.get("linux") or {}
        if forked:
            forked.begin(_new_namespaces(spec) if not config.namespace_path(linux, "user") else 0)
        config.check_rest(spec)
        step("look what there is for the container")
        terminal.check_socket(bool((spec.get("process") or {}).get("terminal")), options.console_socket, detach=options.detach)
        if options.no_pivot and linux.get("rootfsPropagation") in ("private", "rprivate"):
            raise RuntimeFailure("rootfsPropagation of [r]private is not safe without pivot_root")
        bundle = os.path.realpath(options.bundle)
        return _create(_Making(root, container_id, bundle, spec, options, fds, environ, forked))
    finally:
        if forked:
            forked.close()


def _create(making: "_Making") -> Created:
    try:
        return making.make()
    except BaseException as error:
        why = str(error) if isinstance(error, RuntimeFailure) else f"unable to create container: {reason_in_step(error)}"
        if making.was_killed_for_memory():
            why = "container init was OOM-killed (memory limit too low?)"
        remains = making.undo()
        if isinstance(error, (OSError, RuntimeFailure)):
            raise RuntimeFailure(why + remains) from None
        raise
    finally:
        making.close()


def listening_descriptors(environ: "Mapping[str, str]") -> int:
    """How many descriptors after 2 are sockets for the program (sd_listen_fds(3)): none where another process is meant."""
    count = environ.get("LISTEN_FDS", "")
    return int(count) if count.isdecimal() and environ.get("LISTEN_PID") == str(os.getpid()) else 0


class _Making:
    """One create on its way, and what must be undone should it fail."""

    def __init__(
        self, root: str, container_id: str, bundle: str, spec: "Spec", options: Options,
        fds: tuple[int, int, int], environ: "Mapping[str, str]", forked: prefork.Forked | None,
    ) -> None:  # fmt: skip
        """forked: makes the first process, where it can."""
        self._root_folder, self._bundle, self._spec, self._options = root, bundle, spec, options
        self._linux: Spec = spec.get("linux") or {}
        self._fds, self._environ = fds, environ
        root_path = spec["root"]["path"]
        self._rootfs = os.path.realpath(os.path.join(bundle, root_path))
        if not os.path.isdir(self._rootfs):
            raise RuntimeFailure(f"root.path {root_path!r}: no such directory ({self._rootfs})")
        self._resources: Spec = self._linux.get("resources") or {}
        rootless = is_rootless(options.rootless)
        self._cgroup = cgroup(spec, container_id, systemd=options.systemd_cgroup, rootless=rootless)
        # A user without rights in the hierarchies does without, where no place in them is asked for.
        self._lenient = rootless and not self._linux.get("cgroupsPath")
        self._pid, self._pidfd, self._master = 0, -1, -1
        self._open: list[int] = []
        self._sockets: list[descriptors.Socket] = []
        self._own_folder = self._own_cgroup = False
        self._profile = process.seccomp_profile(self._linux.get("seccomp"))
        self.container = state.Container(root, container_id)
        self._notify: Any = None
        self._notifier: Notifier | None = None
        self._net_devices: netdevices.Devices | None = None
        self._maker, self._helper = "", 0  # who makes the first process, where that is another one, and its PID if it is a child
        self._forked = forked
        if environ.get("NOTIFY_SOCKET") and spec.get("process"):
            from lowrt import notify

            self._notify = notify
            self._spec = {**spec, "mounts": [*(spec.get("mounts") or ()), notify.mount(self.container)]}

    def make(self) -> Created:
        """Up to the point where the container's first process waits for start.

        As much as possible is done while that process is busy with its own part: its state's folder is made while it comes
        up, the cgroup (of v1; on v2 it is cloned right into it) while it makes its mounts, and state.json before it is ready.
        """
        container, options = self.container, self._options
        joined = self._open_namespaces()
        step("prepare the container's first process")
        self._sync, child_sync = descriptors.pair()
        listener = None if options.run else _socket.socket(_socket.AF_UNIX, _SEQPACKET)
        self._sockets += [self._sync, child_sync, *([listener] if listener else [])]
        plan = self._plan()
        if self._forked:
            self._forked.tell(plan)
        into = -1
        if self._cgroup.takes_clones:
            self._claim()
            into = self._open_cgroup()
        cloned = into >= 0 and not self._cgroup.joins_itself  # right into the only group that there is
        goes_on = self._own_folder and not config.has_namespace(self._linux, "user")
        if goes_on:  # what it need not wait for it is told now
            _send(self._sync, b"g")
            if cloned:
                _send(self._sync, b"j")
        child = self._clone(plan, child_sync, init.named(self._fds, listener, joined), into)
        child_sync.close()
        if not self._own_folder:
            self._claim()
        groups = None
        if self._maker and (cloned or self._cgroup.joins_itself):
            groups = self._set_up_cgroup(cloned=cloned)  # while the other process makes the first one
        self._learn_pid()
        if log.debugging():
            log.debug(f"container {container.id}: process {self._pid}, cgroup {' '.join(self._cgroup.folders())}")
        if child.program:
            child.program.adjust_oom_score(self._pid)
            child.program.raise_limits(self._pid)
        step("let the container's first process go on")
        if child.has_user_namespace:
            self._write_maps()
        if not goes_on:
            _send(self._sync, b"g")
        if listener:
            step("listen for the start")
            self._listen(listener)
        if groups is None:
            groups = self._set_up_cgroup(cloned=cloned)
        step("give the cgroup to the container's user")
        self._give_cgroup_away()
        if not (goes_on and cloned):
            _send(self._sync, b"j", groups)
        if self._profile:
            step("compile the seccomp filter")
            _send(self._sync, b"f" + self._profile.compile(self._root_folder))
        step("ask when the container's first process was started")
        self._prepare_state()
        starts = options.run and not (self._spec.get("hooks") or options.pid_file or options.pidfd_socket)
        if starts:  # nobody else is told when it is ready, so it need not wait for that
            container.publish()
            _send(self._sync, b"s")
        if self._forked:
            self._forked.close()
        step("wait for the container's first process")
        self._converse(child.root)
        if not starts:
            container.publish()
        log.debug(f"container {container.id}: created")
        if options.pidfd_socket:
            terminal.hand_over(options.pidfd_socket, b"standard", self._pidfd)
        if options.pid_file:
            state.write_pid_file(options.pid_file, self._pid)
        container.unlock()
        if listener:
            return Created(container, self._spec, self._pidfd, self._master, None, self._notifier)
        self._sockets.remove(self._sync)
        return Created(container, self._spec, self._pidfd, self._master, self._sync, self._notifier, started=starts)

    # --- steps

    def _plan(self) -> init.Plan:
        process_ = self._spec.get("process")
        preserve, process_ = self._preserved_descriptors(process_)
        filter_flags = self._profile.flags if self._profile else None
        keyring = "" if self._options.no_new_keyring else f"_ses.{self.container.id}"
        return init.Plan(
            self._spec, self._rootfs, self._cgroup.folders(), self._bundle, process_, preserve, filter_flags,
            self._hook_state("creating", 0), not self._options.no_pivot, keyring,
        )  # fmt: skip

    def _claim(self) -> None:
        """Makes the state's folder, and notes the cgroup before anything is in it, for a delete that finds no more than that."""
        step("make the folder of the container's state")
        self.container.make()
        self._own_folder = True
        if self._notify:
            self._notify.make_folder(self.container)
            if self._options.run:
                self._notifier = self._notify.Notifier(self.container, self._environ[self._notify.VARIABLE])
        if not config.has_namespace(self._linux, "mount"):
            from lowrt import hostroot

            hostroot.note(self.container, self._rootfs)
        step("look whether the cgroup is free")
        group = self._cgroup
        if group.exists():
            if found := group.pids(recursive=True):
                raise RuntimeFailure(f"container's cgroup is not empty: {len(found)} process(es) found")
            if group.frozen():
                raise RuntimeFailure("container's cgroup unexpectedly frozen")
        self.container.note("making", documents.dumps(group.remember()))
        self._own_cgroup = True

    def _open_cgroup(self) -> int:
        """Makes the cgroup; its descriptor to clone the first process into, or -1 where this user may make none."""
        try:
            into = self._cgroup.create_for_clone(self._limits(), lenient=self._lenient)
        except OSError as error:
            raise RuntimeFailure(f"unable to apply cgroup configuration: {reason(error)}") from None
        if into >= 0:
            self._open.append(into)
        return into

    def _set_up_cgroup(self, *, cloned: bool) -> list[int]:
        """Sets the cgroup's limits, and makes the rest of it. The descriptors that the first process joins it by."""
        step("set up the cgroup")
        group = self._cgroup
        try:
            if group.joins_itself:
                group.prepare(self._limits(), lenient=self._lenient)
                opened = group.open_to_join(lenient=self._lenient)
                self._open += opened
                return opened
            if cloned:
                group.apply(self._limits())
            else:
                group.take(self._pid, self._limits(), lenient=self._lenient)
        except OSError as error:
            self._learn_pid()
            if not pidfds.wait_gone(self._pidfd, 0):
                raise RuntimeFailure(f"unable to apply cgroup configuration: {reason(error)}") from None
            # The child failed first: what it said is the reason.
        return []

    def _limits(self) -> "Spec":
        nodes = {device.get("path") for device in self._linux.get("devices") or ()}
        defaults = [rule for path, rule in _DEFAULT_NODES.items() if path not in nodes]
        return {**self._resources, "devices": [*(self._resources.get("devices") or ()), *_DEFAULT_DEVICES, *defaults]}

    def _give_cgroup_away(self) -> None:
        """Makes the cgroup the program's user's, where he has a namespace of it and can write in its mount (Cgroup ownership)."""
        mappings = self._linux.get("uidMappings")
        if not mappings or config.namespace_path(self._linux, "cgroup") != "":
            return
        if not any(mount.get("type") == "cgroup" and os.path.normpath(mount["destination"]) == "/sys/fs/cgroup"
                   and "ro" not in (mount.get("options") or ()) for mount in self._spec.get("mounts") or ()):  # fmt: skip
            return
        uid = ((self._spec.get("process") or {}).get("user") or {}).get("uid", 0)
        from strata.linux import idmaps

        if idmaps.maps(mappings, uid):
            self._cgroup.delegate(idmaps.outside(mappings, uid))

    def _open_namespaces(self) -> dict[str, int]:
        joined = {}
        for entry in self._linux.get("namespaces") or ():
            if path := entry.get("path"):
                try:
                    joined[entry["type"]] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise RuntimeFailure(f"cannot join the {entry['type']} namespace: {reason(error)}") from None
                self._open.append(joined[entry["type"]])
        if "user" in joined:
            self._check_maps(joined["user"])
        return joined

    def _listen(self, listener: descriptors.Socket) -> None:
        """The start socket gets its address. The child has it already, and accepts once its part is done."""
        # By a descriptor of its folder: the whole path may be longer than an address can be.
        folder = os.open(self.container.folder, os.O_PATH | os.O_CLOEXEC)
        mask = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{state.START_SOCKET}")
        finally:
            os.umask(mask)
            os.close(folder)
        listener.listen(1)
        listener.close()

    def _preserved_descriptors(self, process_: "Spec | None") -> "tuple[int, Spec | None]":
        """The count after 2 that the program gets; socket activation adds its own (sd_listen_fds(3))."""
        if not process_:
            return 0, None
        more = [self._notify.environment] if self._notify else []
        if listening := listening_descriptors(self._environ):
            more += [f"LISTEN_FDS={listening}", "LISTEN_PID=1"]
        count = listening + self._options.preserve_fds
        process.check_preserved(count)
        return count, {**process_, "env": [*(process_.get("env") or ()), *more]}

    def _clone(self, plan: init.Plan, sync: descriptors.Socket, named: dict[str, int], into: int) -> init.Init:
        """Makes the container's first process, or has another process make it, and `_maker` says which.

        sync: what it says is heard at `self._sync`. named: what else it works with. into: the descriptor of a cgroup that it
        starts in, or -1. The process as it was planned, for what this one does for it.
        """
        step("make the container's first process")
        if self._forked and self._forked.go(sync, named, into):
            self._maker = "the process that was forked ahead"
            return init.Init(plan)
        child = init.Init(plan)
        flags, joined = _new_namespaces(self._spec), named.keys() & namespaces.KINDS.keys()
        if "pid" in joined or "user" in joined or (joined and flags & namespaces.NEWUSER):
            self._clone_inside(child, sync, named, flags, into)
            return child
        self._pid, self._pidfd = syscalls.clone3(flags, cgroup=into)
        if self._pid == 0:
            child.take(sync, named)
            child.main()
        return child

    def _clone_inside(self, child: "init.Init", sync: descriptors.Socket, named: dict[str, int], flags: int, into: int) -> None:
        """Has a helper make the container's first process, which joins namespaces: a PID namespace can be joined for children
        only, and some of the others only by who is not yet in the container's user namespace.
        """
        helper, helper_pidfd = syscalls.clone3(0, cgroup=into)
        if helper == 0:
            try:
                if not child.mapped_by_user:
                    process.hide()  # and so what it clones: others may be in its PID namespace
                child.take(sync, named)
                child.join_early()
                pid, _ = syscalls.clone3(flags | syscalls.CLONE_PARENT)
                if pid == 0:
                    child.main()
                sync.send(b"p%d" % pid)
            except BaseException as error:
                send_failure(sync, error)
            finally:
                os._exit(0)
        os.close(helper_pidfd)
        self._maker, self._helper = "the process that joins namespaces", helper

    def _learn_pid(self) -> None:
        """The first process was made by another one; it is this one's child all the same. Raises RuntimeFailure."""
        maker, self._maker = self._maker, ""
        if not maker:
            return
        try:
            message, _ = descriptors.receive(self._sync)  # its end, if that one dies: nobody else has the other side
            if message[:1] != b"p":
                raise received_failure(message or f"e{maker} has died".encode())
            self._pid = int(message[1:])
            self._pidfd = pidfds.open_pidfd(self._pid)
        finally:
            if self._helper:
                os.waitpid(self._helper, 0)

    def _user_namespace(self) -> str:
        """The file of the container's own user namespace, "" where it has none."""
        path = config.namespace_path(self._linux, "user")
        return "" if path is None else path or namespaces.path_of(self._pid, "user")

    def _write_maps(self) -> None:
        if config.namespace_path(self._linux, "user") != "":
            return
        from strata.linux import idmaps

        try:
            idmaps.write(self._pid, self._linux["uidMappings"], self._linux["gidMappings"], self._environ)
        except OSError as error:
            raise RuntimeFailure(f"cannot map the IDs of the user namespace: {reason(error)}") from None

    def _check_maps(self, descriptor: int) -> None:
        """Mappings beside the path of a user namespace are those that it has, or somebody is mistaken (containerd gives both)."""
        uids, gids = self._linux.get("uidMappings"), self._linux.get("gidMappings")
        if uids is None and gids is None:
            return
        from strata.linux import idmaps

        actual = tuple(map(sorted, idmaps.of_namespace(descriptor)))
        if actual != (sorted(idmaps.lines(uids or [])), sorted(idmaps.lines(gids or []))):
            raise RuntimeFailure(
                "user namespaces enabled, but both namespace path and non-matching mapping specified -- you may only provide one"
            )

    def _converse(self, root: "rootfs.Rootfs") -> None:
        while True:
            message, received = descriptors.receive(self._sync)
            letter = message[:1]
            if letter == b"h":
                creating = self._hook_state("creating", self._pid)
                for kind in ("prestart", "createRuntime"):
                    hooks.run_all(self._spec, kind, creating, self._bundle)
                self._sync.send(b"k")
            elif letter == b"m":
                from lowrt import sources

                sources.serve(self._sync, root.mounts[int(message[1:])], self._user_namespace(), self._pidfd)
            elif letter == b"n":
                devices.serve(self._sync, root.devices[int(message[1:])], self._linux, self.container.folder)
            elif letter == b"d":
                self._move_network_devices()
                self._sync.send(b"d")
            elif letter == b"c":
                self._hand_out_console(received[0])
            elif letter == b"r":
                return
            elif letter == b"e":
                raise received_failure(message, "error during container init: ")
            else:
                raise RuntimeFailure("container init died before it was set up")

    def _move_network_devices(self) -> None:
        from lowrt import netdevices

        step("reach the container's network namespace")
        self._net_devices = netdevices.Devices(self._pid)
        self._net_devices.move_all(self._linux["netDevices"])
        step("wait for the container's first process")

    def _hand_out_console(self, master: int) -> None:
        if self._options.console_socket:
            try:
                terminal.hand_over(self._options.console_socket, b"/dev/ptmx", master)
            finally:
                os.close(master)
        else:
            terminal.leave_line_ends(master)
            self._master = master

    def _prepare_state(self) -> None:
        spec = self._spec
        self.container.values = {
            "ociVersion": spec["ociVersion"],
            "pid": self._pid,
            "startTime": pidfds.start_time(self._pid),
            "cgroup": self._cgroup.remember(),
            "resources": self._resources,
            "privatePid": config.namespace_path(self._linux, "pid") == "",
            "bundle": self._bundle,
            "rootfs": self._rootfs,
            "created": rfc3339(time.time_ns()),
            "annotations": spec.get("annotations"),
            "owner": "",
            "namespaces": [entry["type"] for entry in self._linux.get("namespaces") or ()],
            "process": spec.get("process"),
            "seccomp": self._linux.get("seccomp"),
            "keyring": "" if self._options.no_new_keyring else f"_ses.{self.container.id}",
            **{name: self._linux[name] for name in ("personality", "memoryPolicy") if name in self._linux},
            "hooks": spec.get("hooks"),
        }
        self.container.prepare()

    def _hook_state(self, status: str, pid: int) -> "Spec":
        return hooks.state(self.container.id, self._spec["ociVersion"], status, pid, self._bundle, self._spec.get("annotations"))

    # --- the end of it, one way or the other

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel killed in the cgroup: then that is the reason for all that failed after it."""
        try:
            return self._own_cgroup and bool(self._cgroup.oom_kill_count())
        except OSError:
            return False  # a group that cannot be made cannot be read either, and undoing must go on

    def undo(self) -> str:
        """Takes back what was made; what could not be taken back, as the end of a message, else ""."""
        remains = self._net_devices.take_back() if self._net_devices else ""
        try:
            self._learn_pid()
        except (OSError, RuntimeFailure):
            pass  # there is none
        if self._pid:
            process.end(self._pid)
        for descriptor in (self._pidfd, self._master):
            if descriptor >= 0:
                os.close(descriptor)
        if self._own_cgroup:
            try:
                self._cgroup.undo()
            except OSError as error:
                # The state's folder stays too, for the note in it: `delete --force` can try again.
                self.container.unlock()
                return f"{remains} (and its cgroup stays: {reason(error)}; lowrt delete --force {self.container.id} removes it)"
        if self._own_folder:
            try:
                if not config.has_namespace(self._linux, "mount"):
                    from lowrt import hostroot

                    hostroot.take_away(self.container)
                self.container.remove_folder()
            except OSError as error:
                self.container.unlock()
                remains += f" (and {self.container.folder} stays: {reason(error)})"
        return remains

    def close(self) -> None:
        if self._net_devices:
            self._net_devices.close()
        for descriptor in self._open:
            os.close(descriptor)
        for sock in self._sockets:
            sock.close()


def _new_namespaces(spec: "Spec") -> int:
    """The flags of those that the first process has from its beginning."""
    linux, flags = spec.get("linux") or {}, 0
    for entry in linux.get("namespaces") or ():
        if not entry.get("path") and entry["type"] not in ("cgroup", "time"):  # the process enters these itself
            flags |= namespaces.KINDS[entry["type"]][0]
    return flags & ~init.late_namespaces(linux)


def cgroup(spec: "Spec", container_id: str, *, systemd: bool, rootless: bool) -> cgroups.Cgroup:
    """The container's cgroup (config-linux, Cgroups Path): absolute as given, relative beside or below this process's own.

    systemd: a unit's, of the path slice:prefix:name; for a rootless user of his own service manager.
    """
    given = (spec.get("linux") or {}).get("cgroupsPath") or ""
    try:
        if systemd:
            from strata.linux.cgroups import systemd as service_manager

            return service_manager.unit(given, container_id, spec.get("annotations") or {}, user=rootless)
        # `..` leads nowhere above the hierarchy's root, as in any path.
        clean = os.path.normpath(f"/{given}" if given else f"/{container_id}")
        return cgroups.open_cgroup(clean) if given.startswith("/") else cgroups.below_own(clean)
    except (ValueError, OSError) as error:
        raise RuntimeFailure(reason(error)) from None


def is_rootless(asked: bool | None) -> bool:
    """Whether cgroups are those of a user without rights. asked: what --rootless says, None for auto."""
    if asked is not None:
        return asked
    if os.geteuid() != 0:
        return True
    return not namespaces.in_first_user_namespace()


def rfc3339(nanoseconds: int) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9))
    return f"{whole}.{nanoseconds % 10**9:09d}Z"


def _send(sync: descriptors.Socket, letter: bytes, opened: "list[int] | tuple[()]" = ()) -> None:
    """Tells the first process to go on. If it has failed already it does not listen: what it said is read later."""
    try:
        descriptors.send(sync, letter, tuple(opened))
    except (BrokenPipeError, ConnectionResetError):
        pass

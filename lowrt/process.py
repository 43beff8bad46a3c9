"""From a process in its namespaces to the program it shall be: user, limits, capabilities, seccomp, exec.

Runs inside the container's root, for the container's first process (`init`) and for exec (`execute`). So it imports nothing
then, and opens no path but those that the configuration names. What may fail is worded as runc words it: users know these texts.
"""

import _signal  # type: ignore[import-not-found]  # the signal module costs 6 ms
import errno
import os
import resource
import stat

from lowrt import log, state
from lowrt.errors import RuntimeFailure, reason, step
from strata.linux import capabilities, descriptors, keyrings, mounts, rlimits, seccomp, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lowrt import attributes
    from lowrt.notification import Courier

    Spec = dict[str, Any]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PASSWD_LIMIT_BYTES = 1 << 20
_FIRST_BYTES = 4096  # where an ELF file's program headers and the name of its loader stand
_ALL_CPUS = b"\xff" * 1024  # more than the kernel can be built for; it takes those that there are


def hide() -> None:
    """Nothing in the container may look into this process before its exec (ptrace, /proc/PID/mem; CVE-2016-9962)."""
    syscalls.prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent(on: bool) -> None:
    """Whether this process is killed when the one that made it dies."""
    syscalls.prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL if on else 0)


def end(pid: int) -> None:
    """Kills a child of this process that nobody has waited for yet (so the number is still its own), and waits for it."""
    try:
        os.kill(pid, _signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def reset_signals() -> None:
    """Undoes what Python and our caller did to signals: exec would hand ignored and blocked ones on."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT, _signal.SIGTERM, _signal.SIGCHLD, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


class Profile:
    """A seccomp profile that was checked. flags: see `seccomp.Filter`. Raises RuntimeFailure for one that makes no sense."""

    def __init__(self, profile: "Spec") -> None:
        self._profile = profile
        try:
            self.flags = seccomp.checked_flags(profile)
        except ValueError as error:
            raise RuntimeFailure(f"unable to init seccomp: {reason(error)}") from None
        log.debug(f"seccomp filter flags: {self.flags}")
        if seccomp.notifies(self.flags):
            from lowrt import notification

            notification.check_listener(profile)

    def compile(self, root: str) -> bytes:
        """The filter's program; compiled ones are kept below the root of states. Raises RuntimeFailure."""
        try:
            return seccomp.compile_program(self._profile, f"{root}/{state.SECCOMP_CACHE}")
        except (ValueError, OSError) as error:
            raise RuntimeFailure(f"unable to init seccomp: {reason(error)}") from None


def seccomp_profile(profile: "Spec | None") -> Profile | None:
    """None for an empty one. Raises RuntimeFailure."""
    return None if not profile or seccomp.is_empty(profile) else Profile(profile)


def end_by_signals() -> None:
    """Lets signals that end other processes end this one too, until its exec. The kernel spares the first process of a PID
    namespace those that it does not handle; who kills a container that was not started yet waits for its end."""
    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2):
        _signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    os._exit(128 + number)


class Process:
    """The program to become. Everything that needs preparation outside is prepared in the constructor."""

    _courier: "Courier | None" = None
    _is_in_cwd = _is_confined = False

    def __init__(self, process: "Spec", linux: "Spec", filter_flags: int | None, preserve_fds: int) -> None:
        """process: what the specification has of it. linux: the container's `linux` object, or what its state keeps of it.
        filter_flags: those of the seccomp filter that it gets later, by `take_filter`; None for none."""
        self.arguments: list[str] = process["args"]
        self.environment = dict(pair.partition("=")[::2] for pair in process.get("env") or ())
        self.cwd: str = process["cwd"]
        user = process.get("user") or {}
        self.uid, self.gid = user.get("uid", 0), user.get("gid", 0)
        self._groups: list[int] = user.get("additionalGids") or []
        self._umask: int = user.get("umask", 0o022)
        self._no_new_privileges = bool(process.get("noNewPrivileges"))
        self._filter_flags = filter_flags
        self._filter: seccomp.Filter | None = None
        if filter_flags is not None and seccomp.notifies(filter_flags):
            from lowrt.notification import Courier

            self._make_courier = Courier
        self.preserve_fds = preserve_fds
        self._limits = [
            (rlimits.NUMBERS[limit["type"]], limit["type"], _rlimit(limit["soft"]), _rlimit(limit["hard"]))
            for limit in process.get("rlimits") or ()
        ]
        # Without a word about them they stay as they are, as in runc.
        self._capabilities = capabilities.Sets(process["capabilities"]) if "capabilities" in process else None
        self._oom_score_adjustment: int | None = process.get("oomScoreAdj")
        self.may_set_groups = True
        self._attributes = _attributes(process, linux)
        self._cpus: tuple[bytes, bytes] = (b"", b"")
        if "execCPUAffinity" in process:
            from lowrt import attributes

            self._cpus = attributes.affinity(process["execCPUAffinity"])

    @property
    def awaits_filter(self) -> bool:
        return self._filter_flags is not None

    def take_filter(self, program: bytes) -> None:
        """Takes the filter's program, before `become` loads it."""
        assert self._filter_flags is not None
        self._filter = seccomp.Filter(program, self._filter_flags)

    def adjust_oom_score(self, pid: int | str) -> None:
        """Tells the kernel how readily to kill a process, or "self", when memory is short (proc_pid_oom_score_adj(5)).

        Raises RuntimeFailure.
        """
        adjustment = self._oom_score_adjustment
        if adjustment is None:
            return
        try:
            descriptor = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"%d" % adjustment)
            finally:
                os.close(descriptor)
        except OSError as error:
            hint = " (lowering it needs CAP_SYS_RESOURCE)" if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise RuntimeFailure(f"failed to set oomScoreAdj to {adjustment}: {error_text(error)}{hint}") from None

    def raise_limits(self, pid: int) -> None:
        """Raises hard limits of a process that is to become this program, by a process outside of its user namespace.

        Inside it nobody may. Soft limits are left for `become`: the process still has work to do.
        """
        for number, name, _, hard in self._limits:
            ours = resource.getrlimit(number)
            if ours[1] != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > ours[1]):
                try:
                    resource.prlimit(pid, number, (ours[0], hard))
                except (OSError, ValueError) as error:
                    raise RuntimeFailure(f"error setting rlimit type {name}: {_limit_reason(error)}") from None

    def open_attributes(self, proc: int) -> None:
        """Opens what `apply_attributes` needs of the machine's /proc (a descriptor of it)."""
        if self._attributes:
            self._attributes.open(proc)

    def apply_attributes(self) -> None:
        """Sets how this process is scheduled, and the like. Raises RuntimeFailure."""
        if self._attributes:
            self._attributes.apply()

    def start_on_its_cpus(self) -> None:
        """For exec: the CPUs that the process begins on (config.md, execCPUAffinity)."""
        if self._cpus[0]:
            _set_affinity("initial", self._cpus[0])

    def go_on_its_cpus(self) -> None:
        """For exec: the CPUs that the program runs on; all where nothing is said about them."""
        if self._cpus[1]:
            _set_affinity("final", self._cpus[1])
        elif not self._cpus[0]:
            allow_all_cpus()

    @property
    def needs_proc(self) -> bool:
        """Whether `open_attributes` opens anything."""
        return self._attributes is not None and self._attributes.has_labels

    def enter_folder(self) -> None:
        """Goes to the working directory by this process's rights, if that is possible; `check_program` tries again, and says why
        it is not."""
        self._read_home()
        try:
            os.chdir(self.cwd)
        except OSError:
            return
        self._check_cwd()
        self._is_in_cwd = True

    def confine(self) -> None:
        """Gives up what the program shall not have, for a process that clones the program's and is not seen by the container.

        Two things need rights in the clone itself, which therefore keeps them for that long: to load a filter without
        no_new_privs it has CAP_SYS_ADMIN, to set its rarer attributes everything.
        """
        if self._attributes or not self._capabilities:
            return
        self._capabilities.leave_out()
        self._let_clone()
        self._change_user(capabilities.SYS_ADMIN if self.awaits_filter and not self._no_new_privileges else 0)
        self._is_confined = True

    def check_program(self) -> None:
        """Goes to the working directory and looks whether the program is there. Raises RuntimeFailure."""
        step("look for the program")
        self._read_home()
        try:
            os.chdir(self.cwd)
        except PermissionError:
            return  # perhaps the user may; `become` tries again
        except OSError as error:
            raise RuntimeFailure(f'chdir to cwd ("{self.cwd}") set in config.json failed: {reason(error)}') from None
        self._check_cwd()
        self._is_in_cwd = True
        self._first_bytes = _read_first(self._find_program())

    def become(self, report: descriptors.Socket, last: "Callable[[], None] | None" = None) -> None:
        """Sets everything and executes the program.

        report: takes `x` when only the exec is left to fail. last: what to do before that, confined as the program will be.
        """
        step("prepare the program's process")
        os.umask(self._umask)
        self._mark_descriptors()  # before any filter: close_range(2) is newer than many profiles
        if self._filter and seccomp.notifies(self._filter.flags):
            self._courier = self._make_courier(report)
        self._set_limits()
        if self._capabilities and not self._is_confined:
            self._capabilities.leave_out()
        if not self._no_new_privileges:
            self._load_filter()  # needs CAP_SYS_ADMIN, so before the capabilities go
        if not self._is_confined:
            self._change_user()
        elif self._capabilities and self._filter and not self._no_new_privileges:
            self._capabilities.take()
        self._chdir_as_user()
        path = self._find_program()
        if self._no_new_privileges:
            step("set no_new_privs")
            syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
            self._load_filter()
        step("tell the runtime that all is ready")
        if last:
            last()
        os.write(report.fileno(), b"x")  # a filter that lets nothing but the program's own calls through has write(2)
        try:
            os.execve(path, self.arguments, self.environment)
        except OSError as error:
            failure = RuntimeFailure(f"exec {path}: {error_text(error)}")
            failure.evidence = b"%d %b" % (error.errno or 0, self._first_bytes)
            raise failure from None

    def _mark_descriptors(self) -> None:
        """All but what is to be preserved is closed by exec."""
        syscalls.close_on_exec_from(3 + self.preserve_fds)
        for number in range(3, 3 + self.preserve_fds):
            try:
                os.set_inheritable(number, True)
            except OSError:
                pass  # not open

    def _set_limits(self) -> None:
        for number, name, soft, hard in self._limits:
            try:
                resource.setrlimit(number, (soft, hard))
            except (OSError, ValueError) as error:
                raise RuntimeFailure(f"error setting rlimit type {name}: {_limit_reason(error)}") from None

    def _let_clone(self) -> None:
        """The user may have as many processes as the program's own limit says, not as this process's does."""
        number = rlimits.NUMBERS["RLIMIT_NPROC"]
        if any(limited == number for limited, *_ in self._limits):
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (hard, hard))

    def _load_filter(self) -> None:
        step("load the seccomp filter")
        if self._filter and self._courier:
            self._courier.load(self._filter)
        elif self._filter:
            self._filter.load()

    def _change_user(self, spared: int = 0) -> None:
        """spared: the bits of capabilities that are kept for now."""
        step("take the capabilities away that the program shall not have")
        if self._capabilities:
            self._capabilities.bound()
        capabilities.keep_through_setuid(True)
        step(f"become user {self.uid}")
        if self.may_set_groups:
            syscalls.setgroups(self._groups)
        try:
            syscalls.setresgid(self.gid)
        except OSError as error:
            raise RuntimeFailure(_unmapped("gid", self.gid, error)) from None
        try:
            syscalls.setresuid(self.uid)
        except OSError as error:
            raise RuntimeFailure(_unmapped("uid", self.uid, error)) from None
        hide()  # the change of user may have undone it (fs.suid_dumpable)
        capabilities.keep_through_setuid(False)
        if self._capabilities:
            try:
                self._capabilities.take(spared)
            except OSError as error:
                raise RuntimeFailure(f"unable to apply caps: can't apply capabilities: {reason(error)}") from None

    def _chdir_as_user(self) -> None:
        """Where the runtime could go, the user is: a folder may be open to one and closed to the other."""
        if not self._is_in_cwd:
            try:
                os.chdir(self.cwd)
            except OSError as error:
                raise RuntimeFailure(f'chdir to cwd ("{self.cwd}") set in config.json failed: {reason(error)}') from None
            self._check_cwd()

    @staticmethod
    def _check_cwd() -> None:
        """A directory that is not below the root has no name here: a descriptor of the host's leaked (CVE-2024-21626)."""
        try:
            inside = syscalls.getcwd().startswith(b"/")
        except FileNotFoundError:  # it was removed
            inside = False
        if not inside:
            raise RuntimeFailure("current working directory is outside of container mount namespace root")

    def _find_program(self) -> str:
        """The path of the program, by the container's PATH. Raises RuntimeFailure as runc words it."""
        name = self.arguments[0]
        if "/" in name:
            try:
                status = os.stat(name)
            except OSError as error:
                raise RuntimeFailure(f"exec: {quoted(name)}: stat {name}: {error_text(error)}") from None
            if stat.S_ISDIR(status.st_mode):
                raise RuntimeFailure(f"exec: {quoted(name)}: is a directory")
            if not status.st_mode & 0o111:
                raise RuntimeFailure(f"exec: {quoted(name)}: permission denied")
            return name
        for folder in self.environment.get("PATH", "").split(":"):
            path = f"{folder or '.'}/{name}"
            try:
                status = os.stat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
                return path
        raise RuntimeFailure(f"exec: {quoted(name)}: executable file not found in $PATH")

    def _read_home(self) -> None:
        """HOME, where the configuration has none, from the container's own /etc/passwd."""
        if self.environment.get("HOME"):
            return
        self.environment["HOME"] = "/"
        try:
            file = syscalls.openat2(-100, "/etc/passwd", os.O_RDONLY | os.O_NONBLOCK, syscalls.RESOLVE_NO_MAGICLINKS)
        except OSError:
            return
        try:
            # A link to /proc/self/environ would hand out the caller's environment.
            if not stat.S_ISREG(os.fstat(file).st_mode) or mounts.filesystem(file) == mounts.PROC_MAGIC:
                return
            content = os.read(file, _PASSWD_LIMIT_BYTES)
        except OSError:
            return
        finally:
            os.close(file)
        for line in content.split(b"\n"):
            fields = line.split(b":")
            if len(fields) >= 6 and fields[2] == b"%d" % self.uid:
                self.environment["HOME"] = os.fsdecode(fields[5]) or "/"
                return


def _read_first(path: str) -> bytes:
    """A program's first bytes, which tell why the kernel would not take it (`diagnosis`); none where it is no file or private.

    Read before any filter is on, and before the user changes: after a failed exec there might be no way to.
    """
    try:
        file = syscalls.openat2(-100, path, os.O_RDONLY | os.O_NONBLOCK, syscalls.RESOLVE_NO_MAGICLINKS)
    except OSError:
        return b""
    try:
        return os.read(file, _FIRST_BYTES) if stat.S_ISREG(os.fstat(file).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(file)


def quoted(name: str) -> str:
    """In double quotes, what cannot be seen (a carriage return of a Windows file) as an escape."""
    return f'"{name}"' if name.isprintable() else f'"{repr(name)[1:-1]}"'


def check_preserved(count: int) -> None:
    """Raises RuntimeFailure unless the caller has handed over this many descriptors after stderr.

    One of our own that had the number would be handed on, and with it the way to the host (CVE-2024-21626). Ours all end at an
    exec; what came with the exec of this command does not.
    """
    for number in range(3, 3 + count):
        try:
            given = os.get_inheritable(number)
        except OSError:
            given = False
        if not given:
            raise RuntimeFailure(f"unable to stat preserved-fd {number - 3} (of {count}): no such file or directory")


def close_others(keep: tuple[int, ...], program: Process | None) -> None:
    """Closes what a fork has brought along from the caller: its locks, sockets and logs are none of the container's."""
    count = program.preserve_fds if program else 0
    descriptors.close_all_above((0, 1, 2, *range(3, 3 + count), *keep))


def own_stdio(uid: int) -> None:
    """Gives stdin, stdout and stderr to the user, so that /dev/stdout can be opened again; what cannot be given stays."""
    for number in (0, 1, 2):
        try:
            status = os.fstat(number)
            if _is_null(status):
                _replace_null(number)
            elif status.st_uid != uid:
                os.fchown(number, uid, -1)
        except OSError:
            continue


def _is_null(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def _replace_null(number: int) -> None:
    """Puts the container's own null device in the place of the host's, whose mode root in the container could change."""
    own = os.open("/dev/null", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if _is_null(os.fstat(own)):
        os.set_blocking(own, True)
        os.dup2(own, number)
    os.close(own)


def take_stdio(fds: tuple[int, int, int]) -> None:
    """Makes the caller's descriptors 0, 1 and 2."""
    moved = [os.dup(descriptor) if descriptor < 3 else descriptor for descriptor in fds]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number)


def error_text(error: OSError) -> str:
    text = os.strerror(error.errno or errno.EIO)
    return text[:1].lower() + text[1:]


def allow_all_cpus() -> None:
    """Undoes what the caller (taskset, a service manager) chose for itself; the cgroup's cpuset holds all the same."""
    try:
        syscalls.sched_setaffinity(_ALL_CPUS)
    except OSError:
        pass  # it stays as it was, which is no more than what it had


def _set_affinity(which: str, mask: bytes) -> None:
    try:
        syscalls.sched_setaffinity(mask)
    except OSError as error:
        raise RuntimeFailure(f"error setting {which} CPU affinity: {reason(error)}") from None


def take_keyring(name: str, *, by_others: bool) -> None:
    """Joins the container's session keyring, so that the caller's is out of reach. by_others: whoever joins it later may be
    another user. Raises RuntimeFailure."""
    try:
        keyring = keyrings.join_session(name)
        keyrings.make_searchable(keyring, by_others=by_others)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # without keys in the kernel nobody has any
            raise RuntimeFailure(f"unable to join session keyring: {reason(error)}") from None


def may_set_groups(pid: int | str) -> bool:
    """Whether setgroups(2) is open to a process: a user namespace may have it denied, and its processes keep their groups.

    /proc must be the machine's.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/setgroups", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return os.read(descriptor, 16).strip() != b"deny"
    finally:
        os.close(descriptor)


def _attributes(process: "Spec", linux: "Spec") -> "attributes.Attributes | None":
    of_process, of_linux = {"scheduler", "ioPriority", "apparmorProfile", "selinuxLabel"}, {"personality", "memoryPolicy"}
    if not (of_process & process.keys() or of_linux & linux.keys()):
        return None
    from lowrt import attributes

    return attributes.Attributes(process, linux)


def _unmapped(kind: str, number: int, error: OSError) -> str:
    if error.errno == errno.EINVAL:
        return f"cannot set{kind} to unmapped {kind} {number} in user namespace"
    return f"set{kind} {number}: {reason(error)}"


def _rlimit(value: int) -> int:
    return resource.RLIM_INFINITY if value >= 2**63 else value


def _limit_reason(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError) or error.errno == errno.EPERM:
        return "operation not permitted (raising a hard limit needs CAP_SYS_RESOURCE)"
    return reason(error)

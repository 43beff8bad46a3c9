"""What is done to containers that are there: kill, delete, pause, resume, update, ps, list."""

import _signal  # type: ignore[import-not-found]
import os

from lowrt import documents, hooks, log, state
from lowrt.errors import RuntimeFailure, reason, reason_in_step, step
from strata.linux import cgroups, namespaces, pidfds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def signal_number(text: str) -> int:
    """A signal by number or name, with or without SIG; 0 only asks whether it could be sent. Raises RuntimeFailure."""
    if text.isdecimal():
        number = int(text)
    else:
        name, plus, more = text.upper().removeprefix("SIG").partition("+")
        number = int(getattr(_signal, f"SIG{name}", 0)) if name.isalnum() else 0
        if plus:  # RTMIN+3
            number = number + int(more) if name == "RTMIN" and more.isdecimal() else 0
        if not number:
            raise RuntimeFailure(f'unknown signal "{text}"')
    if not 0 <= number < _signal.NSIG:
        raise RuntimeFailure(f'unknown signal "{text}"')
    return number


def kill(container: state.Container, number: int, *, everybody: bool = False) -> None:
    """Sends a signal to the container's first process, or to all of its cgroup; with SIGKILL also where they share its fate
    by no PID namespace of their own. everybody: no error where nothing runs any more."""
    group = container.cgroup()
    if number == _signal.SIGKILL and (everybody or not container.values["privatePid"]):
        if not everybody and not container.is_alive() and not group.pids(recursive=True):
            raise RuntimeFailure("container not running")
        group.kill()
        return
    if everybody:
        for pid in group.pids(recursive=True):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return
    if not _signal_first(container, number):
        raise RuntimeFailure("container not running")
    if number == _signal.SIGKILL and group.frozen():
        group.thaw()  # a frozen process dies only when it thaws


def _signal_first(container: state.Container, number: int) -> bool:
    step(f"send a signal to process {container.pid}")
    try:
        pidfd = pidfds.open_pidfd(container.pid)
    except ProcessLookupError:
        return False
    try:
        return container.is_alive() and pidfds.send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def delete(root: str, container_id: str, *, force: bool) -> None:
    """Removes what is left of a container, with force also a running one, and what a killed create has left in any case."""
    container = state.Container(root, container_id)
    try:
        if not container.try_lock(wait=not force):
            # A start or exec that waits for a program that does not come ends when its process does.
            _kill_at_once(root, container_id)
            container.try_lock(wait=True)
        try:
            container.read()
        except state.NotThere:
            _remove_remains(container)
            raise
        except RuntimeFailure:
            if not force:
                raise
            _remove_remains(container)
            return
        status = container.status()
        if status == "created" or (status != "stopped" and force):
            _end(container)
        elif status != "stopped":
            raise RuntimeFailure(f"cannot delete container {container_id} that is not stopped: {status}")
        _remove(container)
    except state.NotThere:
        if not force:
            raise
    except OSError as error:
        raise RuntimeFailure(f"cannot delete container {container_id}: {reason_in_step(error)}") from None
    finally:
        container.unlock()


def _kill_at_once(root: str, container_id: str) -> None:
    """Kills a container that somebody else has locked; nothing happens where it is not there (yet)."""
    try:
        kill(state.Container.open(root, container_id), _signal.SIGKILL)
    except RuntimeFailure:
        pass


def delete_ended(container: state.Container) -> None:
    """Removes what is left of a container whose first process has ended and was waited for by the caller."""
    try:
        container.lock()
        _remove(container)
    except state.NotThere:
        pass  # somebody was quicker
    except OSError as error:
        raise RuntimeFailure(f"cannot delete container {container.id}: {reason_in_step(error)}") from None
    finally:
        container.unlock()


def _remove(container: state.Container) -> None:
    step("remove the cgroup")
    container.cgroup().destroy()
    if "mount" not in container.values["namespaces"]:
        _take_host_mounts_away(container)
    container.remove_folder()
    log.debug(f"container {container.id}: deleted")
    if hook_values := container.values.get("hooks"):
        stopped = hooks.state_of(container, "stopped", 0)
        # The container is gone, whatever they say (runtime.md, Lifecycle).
        hooks.run_all({"hooks": hook_values}, "poststop", stopped, container.values["bundle"], complain=log.warning)


def _end(container: state.Container) -> None:
    """Kills and waits, as long as it takes the kernel to tear the processes down (10 s at most)."""
    pidfd = -1
    step(f"kill process {container.pid}")
    try:
        pidfd = pidfds.open_pidfd(container.pid)
        container.cgroup().kill()
        pidfds.send_signal(pidfd, _signal.SIGKILL)
        if not pidfds.wait_gone(pidfd, 1.0):
            _bring_home(container)
        if not pidfds.wait_gone(pidfd, 9.0):
            raise RuntimeFailure(f"container {container.id}: its process {container.pid} does not die")
    except ProcessLookupError:
        pass
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _bring_home(container: state.Container) -> None:
    """Moves the container's processes into its own cgroup, where they thaw: somebody has moved them to another, and on cgroup v1
    what is frozen does not die. Those of its own PID namespace are found; others are not waited for."""
    group, own = container.cgroup(), _pid_namespace(container.pid)
    for name in os.listdir("/proc") if container.values["privatePid"] else [str(container.pid)]:
        if not own or not name.isdigit() or _pid_namespace(name) != own:
            continue
        try:
            group.add(int(name))
        except OSError as error:  # it has gone, or must stay; then the container does not die, and that is told
            log.debug(f"container {container.id}: move process {name} to its cgroup: {reason(error)}")


def _pid_namespace(pid: int | str) -> str:
    try:
        return os.readlink(namespaces.path_of(pid, "pid"))
    except OSError:
        return ""  # it has gone


def _remove_remains(container: state.Container) -> None:
    """Takes away what a create that was killed has left, or a container whose state is damaged. Only locked."""
    step("remove the cgroup")
    if remembered := container.noted("making"):  # else it was killed before there was a group
        cgroups.restore(documents.loads(remembered)).destroy()
    _take_host_mounts_away(container)
    container.remove_folder()


def _take_host_mounts_away(container: state.Container) -> None:
    from lowrt import hostroot

    hostroot.take_away(container)


def pause(container: state.Container) -> None:
    """Freezes its processes. The caller holds the lock: a delete could not kill what is frozen meanwhile."""
    if container.status() not in ("created", "running"):
        raise RuntimeFailure("container not running")
    _change_freezer(container, "pause", container.cgroup().freeze)
    if pidfds.has_fatal_signal(container.pid):  # on v1 it would not die; whoever kills it later finds it frozen, and thaws it
        container.cgroup().thaw()
        raise RuntimeFailure("container not running")


def resume(container: state.Container) -> None:
    """Thaws its processes. The caller holds the lock."""
    if container.status() != "paused":
        raise RuntimeFailure("container not paused")
    _change_freezer(container, "resume", container.cgroup().thaw)


def _change_freezer(container: state.Container, verb: str, change: "Callable[[], None]") -> None:
    try:
        change()
    except OSError as error:
        raise RuntimeFailure(f"{verb} container {container.id}: {reason(error)}") from None


def update(container: state.Container, changed: "dict[str, Any]") -> None:
    """Changes the limits that are given (config-linux, Control groups), and remembers them. The caller holds the lock."""
    if container.status() == "stopped":
        raise RuntimeFailure("container not running")
    from lowrt import resources

    group, old = container.cgroup(), container.values.get("resources") or {}
    whole, now = resources.merge(old, changed)
    try:
        group.apply(now)
    except OSError as error:
        try:
            group.apply({name: old[name] for name in now if name in old})
        except OSError:
            pass  # the first failure is the one to tell
        raise RuntimeFailure(f"update container {container.id}: {reason(error)}") from None
    container.values["resources"] = whole
    container.prepare()
    container.publish()


def ps(container: state.Container, format_: str, arguments: list[str]) -> str:
    """The container's processes: PIDs as JSON, or ps's lines about them."""
    pids = container.cgroup().pids(recursive=True)
    if format_ == "json":
        return documents.dumps(pids or None) + "\n"
    import subprocess

    command = ["ps", *(arguments or ["-ef"])]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeFailure(f"exit status {done.returncode}: {done.stdout.strip()}")
    header, *rows = done.stdout.splitlines()
    if "PID" not in header.split():
        raise RuntimeFailure("couldn't find PID field in ps output")
    column = header.split().index("PID")
    wanted = {str(pid) for pid in pids}
    kept = [row for row in rows if len(row.split()) > column and row.split()[column] in wanted]
    return "\n".join([header, *kept]) + "\n"


def list_all(root: str, format_: str, *, quiet: bool, complain: "Callable[[str], None]") -> str:
    """All containers under a root. complain: takes a line for each entry that is none; the others are listed all the same."""
    found = []
    for container_id in state.all_ids(root):
        try:
            container = state.Container.open(root, container_id)
            found.append({**container.public(), "owner": _user_name(os.stat(container.folder).st_uid)})
        except (RuntimeFailure, OSError, LookupError, TypeError, ValueError) as error:
            complain(f"load container {container_id}: {reason(error)}")
    if quiet:
        return "".join(f"{values['id']}\n" for values in found)
    if format_ == "json":
        return documents.dumps(found or None) + "\n"
    rows: list[tuple[str, ...]] = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    rows += [tuple(str(values[name.lower()]) for name in rows[0]) for values in found]
    widths = [max(12, *(len(row[i]) + 3 for row in rows)) for i in range(len(rows[0]))]
    return "".join("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows)


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"

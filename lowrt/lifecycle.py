"""What is done to containers that are there: kill, delete, pause, resume, update, ps, list."""

import _signal  # type: ignore[import-not-found]
import os

from lowrt import documents, hooks, state
from lowrt.errors import RuntimeFailure, reason
from strata.linux import cgroups, pidfds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def signal_number(text: str) -> int:
    """A signal by number or name, with or without SIG. Raises RuntimeFailure."""
    number = 0
    if text.isdigit():
        number = int(text)
    else:
        name = text.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        number = int(getattr(_signal, name, 0)) if name[3:].isalnum() else 0
    if not 0 < number < _signal.NSIG:
        raise RuntimeFailure(f"unknown signal {text!r}")
    return number


def kill(container: state.Container, number: int, *, everybody: bool = False) -> None:
    """Sends a signal to the container's first process, or to all of its cgroup."""
    group = cgroups.open_cgroup(container.values["cgroup"])
    if everybody:
        if number == _signal.SIGKILL:
            group.kill()
            return
        for pid in group.pids(recursive=True):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return
    if not _signal_first(container, number):
        raise RuntimeFailure("container not running")
    if number == _signal.SIGKILL:
        # A frozen process dies only when it thaws; one that shares its PID namespace takes nobody along.
        if group.frozen():
            group.thaw()
        if "pid" not in container.values["namespaces"]:
            group.kill()


def _signal_first(container: state.Container, number: int) -> bool:
    try:
        pidfd = pidfds.open_pidfd(container.pid)
    except ProcessLookupError:
        return False
    try:
        return container.is_alive() and pidfds.send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def delete(root: str, container_id: str, *, force: bool) -> None:
    """Removes what is left of a container, and with force a running one."""
    try:
        container = state.Container.open(root, container_id, locked=True)
    except RuntimeFailure:
        if force and not _delete_half_made(root, container_id):
            return
        if force:
            return
        raise
    try:
        status = container.status()
        if status == "created" or (status != "stopped" and force):
            _end(container)
        elif status != "stopped":
            raise RuntimeFailure(f"cannot delete container {container_id} that is not stopped: {status}")
        _remove(container)
    except OSError as error:
        raise RuntimeFailure(f"cannot delete container {container_id}: {reason(error)}") from None
    finally:
        container.unlock()


def delete_ended(container: state.Container) -> None:
    """Removes what is left of a container whose first process has ended and was waited for by the caller."""
    container.lock()
    try:
        _remove(container)
    except OSError as error:
        raise RuntimeFailure(f"cannot delete container {container.id}: {reason(error)}") from None
    finally:
        container.unlock()


def _remove(container: state.Container) -> None:
    cgroups.open_cgroup(container.values["cgroup"]).destroy()
    container.remove_folder()
    if hook_values := container.values.get("hooks"):
        stopped = hooks.state(
            container.id, container.values["ociVersion"], "stopped", 0, container.values["bundle"],
            container.values.get("annotations"),
        )  # fmt: skip
        hooks.run_all({"hooks": hook_values}, "poststop", stopped)


def _end(container: state.Container) -> None:
    """Kills and waits, as long as it takes the kernel to tear the processes down (10 s at most)."""
    pidfd = -1
    try:
        pidfd = pidfds.open_pidfd(container.pid)
        cgroups.open_cgroup(container.values["cgroup"]).kill()
        pidfds.send_signal(pidfd, _signal.SIGKILL)
        if not pidfds.wait_gone(pidfd, 10.0):
            raise RuntimeFailure(f"container {container.id}: its process {container.pid} does not die")
    except ProcessLookupError:
        pass
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _delete_half_made(root: str, container_id: str) -> bool:
    """Takes away what a create that was killed has left; False where there is nothing."""
    container = state.Container(root, container_id)
    if not os.path.isdir(container.folder):
        return False
    try:
        with open(f"{container.folder}/making", encoding="utf-8") as file:
            cgroups.open_cgroup(file.read()).destroy()
    except FileNotFoundError:
        pass
    container.remove_folder()
    return True


def pause(container: state.Container) -> None:
    if container.status() not in ("created", "running"):
        raise RuntimeFailure(f"container not running: {container.status()}")
    cgroups.open_cgroup(container.values["cgroup"]).freeze()


def resume(container: state.Container) -> None:
    if container.status() != "paused":
        raise RuntimeFailure("container not paused")
    cgroups.open_cgroup(container.values["cgroup"]).thaw()


def update(container: state.Container, resources: "dict[str, Any]") -> None:
    """Changes the limits that are given (config-linux, Control groups)."""
    if container.status() == "stopped":
        raise RuntimeFailure("container not running")
    try:
        cgroups.open_cgroup(container.values["cgroup"]).apply(resources)
    except OSError as error:
        raise RuntimeFailure(f"update container {container.id}: {reason(error)}") from None


def ps(container: state.Container, format_: str, arguments: list[str]) -> str:
    """The container's processes: PIDs as JSON, or ps's lines about them."""
    pids = cgroups.open_cgroup(container.values["cgroup"]).pids(recursive=True)
    if format_ == "json":
        return documents.dumps(pids) + "\n"
    import subprocess

    lines = subprocess.run(["ps", *(arguments or ["-ef"])], capture_output=True, text=True, check=False)
    if lines.returncode:
        raise RuntimeFailure(f"ps: {lines.stderr.strip()}")
    header, *rows = lines.stdout.splitlines()
    if "PID" not in header.split():
        raise RuntimeFailure("ps: its output has no PID column: leave the option away that hides it")
    column = header.split().index("PID")
    wanted = {str(pid) for pid in pids}
    kept = [row for row in rows if len(row.split()) > column and row.split()[column] in wanted]
    return "\n".join([header, *kept]) + "\n"


def list_all(root: str, format_: str, *, quiet: bool) -> str:
    """All containers under a root."""
    found = []
    for container_id in state.all_ids(root):
        try:
            found.append(state.Container.open(root, container_id).public())
        except RuntimeFailure:
            continue  # deleted meanwhile
    if quiet:
        return "".join(f"{values['id']}\n" for values in found)
    if format_ == "json":
        return documents.dumps(found or None) + "\n"
    rows: list[tuple[str, ...]] = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    names = ("id", "pid", "status", "bundle", "created", "owner")
    rows += [tuple(str(values[name] or ("0" if name == "pid" else "root")) for name in names) for values in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows)

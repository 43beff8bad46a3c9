"""Hooks (config.md, POSIX-platform Hooks): programs that run at points of a container's life, with its state on stdin.

`run_all` may run inside a container's root (createContainer, startContainer), so it imports nothing and starts programs by
fork and exec itself.
"""

import _signal  # type: ignore[import-not-found]  # the signal module costs 6 ms
import os
import select

from lowrt import documents
from lowrt.errors import RuntimeFailure, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from lowrt.state import Container


def state(
    container_id: str, version: str, status: str, pid: int, bundle: str, annotations: "dict[str, Any] | None"
) -> "dict[str, Any]":  # fmt: skip
    """The state that hooks read (runtime.md, State)."""
    values: dict[str, Any] = {"ociVersion": version, "id": container_id, "status": status, "bundle": bundle}
    if pid:
        values["pid"] = pid
    if annotations:
        values["annotations"] = annotations
    return values


def state_of(container: "Container", status: str, pid: int) -> "dict[str, Any]":
    """The same of a container that is there."""
    values = container.values
    return state(container.id, values["ociVersion"], status, pid, values["bundle"], values.get("annotations"))


def run_all(
    spec: "dict[str, Any]", kind: str, state: "dict[str, Any]", folder: str, *,
    environment: "Mapping[str, str] | None" = None, complain: "Callable[[str], None] | None" = None,
) -> None:  # fmt: skip
    """Runs the hooks of one kind in order. Raises RuntimeFailure, with what the hook printed, at the first that fails.

    folder: where they begin to work; "" for where this process is. environment: of the hooks that name none of their own;
    None for this process's. complain: takes the text of a failure, and the next hooks are run all the same.
    """
    text = documents.dumps(state).encode()
    for index, hook in enumerate((spec.get("hooks") or {}).get(kind) or ()):
        try:
            _run(hook, f"{kind} hook #{index}", text, folder, os.environ if environment is None else environment)
        except RuntimeFailure as failure:
            if complain is None:
                raise
            complain(str(failure))


def _run(hook: "dict[str, Any]", name: str, state: bytes, folder: str, environment: "Mapping[str, str]") -> None:
    arguments = hook.get("args") or [hook["path"]]
    if "env" in hook:
        environment = dict(pair.partition("=")[::2] for pair in hook["env"] or ())
    state_read, state_write = os.pipe2(os.O_CLOEXEC)
    output_read, output_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(hook["path"], arguments, environment, folder, state_read, output_write)
    os.close(state_read)
    os.close(output_write)
    printed = b""
    try:
        _write_all(state_write, state)
        printed, in_time = _read_until_end(output_read, hook.get("timeout"))
    finally:
        os.close(output_read)
    if not in_time:
        os.killpg(pid, _signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    text = printed.decode(errors="replace").strip()
    if not in_time:
        raise RuntimeFailure(f"error running {name}: {hook['path']} ran past its timeout of {hook['timeout']} s")
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        how = f"exit status {code}" if code >= 0 else f"signal: {(_signal.strsignal(-code) or str(-code)).lower()}"
        raise RuntimeFailure(f"error running {name}: {how}" + (f", output: {text}" if text else ""))


def _become(
    path: str, arguments: list[str], environment: "Mapping[str, str]", folder: str, stdin: int, output: int
) -> None:  # fmt: skip
    """In the child: the hook's program, in a process group of its own."""
    try:
        os.setsid()
        if folder:
            os.chdir(folder)
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
        os.execve(path, arguments, environment)
    except BaseException as error:
        os.write(2, f"{path}: {reason(error)}".encode())
    finally:
        os._exit(127)


def _write_all(descriptor: int, data: bytes) -> None:
    """A hook need not read its state, so nobody at the other end is no failure."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        pass
    finally:
        os.close(descriptor)


def _read_until_end(descriptor: int, timeout_seconds: float | None) -> tuple[bytes, bool]:
    """What the hook printed, at most the last 16 kB, and whether it ended in time (None waits for ever)."""
    import time

    deadline = time.monotonic() + timeout_seconds if timeout_seconds else None
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    printed = b""
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
        if not poll.poll(left):
            return printed, False
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return printed, True
        printed = (printed + chunk)[-16384:]

"""Running one plugin: as an executable, or in a warm helper where its type is mapped to a dotted name."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from highrt.cni.errors import CniError
from highrt.monitor import wire
from strata.telemetry import logs

log = logs.get("highrt.cni")

TIMEOUT_SECONDS = 60.0
QUICK_SECONDS = 5.0
"""For what somebody waits for who has asked for no pod: whether the network is ready, and a daemon's start."""
_HELPER_SECONDS = 20.0
"""All pods wait for a helper that hangs, and what runs in one is our own: it takes milliseconds."""
_TRY_AGAIN_LATER = 11


class Helper:
    """One warm process. It is started at the first call, and again after it died."""

    def __init__(self, entry: str) -> None:
        self._entry = entry
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._one_at_a_time = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def warm(self) -> None:
        """Starts it before it is needed."""
        async with self._one_at_a_time:
            await self._ensure()

    async def call(self, environ: Mapping[str, str], stdin: str, seconds: float) -> tuple[int, str, str]:
        """Exit status, stdout and stderr. Raises CniError where the helper dies twice or takes too long."""
        seconds = min(seconds, _HELPER_SECONDS)
        request = wire.frame({"environ": dict(environ), "stdin": stdin})
        async with self._one_at_a_time:
            for attempt in (1, 2):
                await self._ensure()
                try:
                    async with asyncio.timeout(seconds):
                        answer = await self._converse(request)
                    return int(answer["status"]), str(answer["stdout"]), str(answer["stderr"])
                except TimeoutError:
                    await self._end()
                    raise CniError(f"{self._entry} took longer than {seconds:.0f} s", _TRY_AGAIN_LATER) from None
                except (OSError, EOFError) as error:
                    log.warning("the CNI helper died", entry=self._entry, attempt=attempt, error=str(error))
                    await self._end()
                except BaseException:  # cancelled: what it would answer is no longer wanted
                    await self._end()
                    raise
        raise CniError(f"the process that calls {self._entry} dies")

    async def close(self) -> None:
        await self._end()

    async def _ensure(self) -> None:
        if self._process and self._process.returncode is None:
            return
        await self._end()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "highrt.cni.helper", self._entry, str(theirs.fileno()),
                pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[2], stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        finally:
            theirs.close()

    async def _converse(self, request: bytes) -> dict[str, Any]:
        loop, sock, decoder = asyncio.get_running_loop(), self._socket, wire.Decoder()
        if sock is None:
            raise EOFError("not started")
        await loop.sock_sendall(sock, request)
        while True:
            data = await loop.sock_recv(sock, 65536)
            if not data:
                raise EOFError("it closed its socket")
            for answer in decoder.feed(data):
                return answer

    async def _end(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process:
            await _kill(process)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Ends a process, and what it started: it leads a process group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


class Plugins:
    """All plugins of a node, by type."""

    def __init__(self, bin_dirs: Sequence[Path], entries: Mapping[str, str]) -> None:
        """entries: type → dotted name, for plugins that run in a helper. Others are executables, in the first folder of bin_dirs
        that has them."""
        self.bin_dirs, self._entries = bin_dirs, dict(entries)
        self._helpers = {entry: Helper(entry) for entry in set(entries.values())}

    def has(self, kind: str) -> bool:
        return kind in self._entries or self._find(kind) is not None

    @property
    def places(self) -> str:
        """Where executables are looked for, in words."""
        return " or ".join(map(str, self.bin_dirs))

    def _find(self, kind: str) -> Path | None:
        paths = (folder / kind for folder in self.bin_dirs)
        return next((path for path in paths if os.access(path, os.X_OK)), None)

    async def warm(self) -> None:
        for helper in self._helpers.values():
            await helper.warm()

    async def close(self) -> None:
        for helper in self._helpers.values():
            await helper.close()

    async def run(self, kind: str, environ: Mapping[str, str], config: dict[str, Any], seconds: float | None = None) -> Any:
        """The plugin's result, None where it printed nothing. seconds: how long it may take, TIMEOUT_SECONDS where it is None.
        Raises CniError with the plugin's own message."""
        limit = TIMEOUT_SECONDS if seconds is None else seconds
        stdin = json.dumps(config)
        environ = {**environ, "CNI_PATH": ":".join(map(str, self.bin_dirs))}
        entry = self._entries.get(kind)
        if entry:
            status, output, trouble = await self._helpers[entry].call(environ, stdin, limit)
        else:
            status, output, trouble = await self._execute(kind, environ, stdin, limit)
        try:
            result = json.loads(output) if output.strip() else None
        except ValueError:
            raise CniError(f"plugin {kind} printed no JSON: {output[:200]!r}") from None
        if status == 0:
            return result
        error = result if isinstance(result, dict) else {}
        text = error.get("msg") or trouble.strip() or f"it failed with status {status} and said nothing"
        details = f": {error['details']}" if error.get("details") else ""
        raise CniError(f"plugin {kind} ({environ.get('CNI_COMMAND')}): {text}{details}", int(error.get("code") or 0))

    async def _execute(self, kind: str, environ: Mapping[str, str], stdin: str, seconds: float) -> tuple[int, str, str]:
        path = self._find(kind)
        if path is None:
            raise CniError(f"plugin {kind}: not found in {self.places}")
        try:
            process = await asyncio.create_subprocess_exec(
                path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **environ}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise CniError(f"plugin {kind}: cannot run {path}: {error.strerror}") from None
        try:
            async with asyncio.timeout(seconds):
                output, trouble = await process.communicate(stdin.encode())
        except TimeoutError:
            raise CniError(f"plugin {kind} took longer than {seconds:.0f} s", _TRY_AGAIN_LATER) from None
        finally:
            if process.returncode is None:
                await _kill(process)
        return process.returncode or 0, output.decode(errors="replace"), trouble.decode(errors="replace")

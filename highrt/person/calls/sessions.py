"""The calls that talk with a container's processes: exec, attach and logs."""

import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

from highrt.cri.calls import require, streaming, worded
from highrt.person import chunks, loglines
from highrt.person.calls.parts import Parts
from highrt.person.peer import GrpcPeer
from highrt.pods.errors import FailedPrecondition
from highrt.pods.model import ContainerState, Stdio
from highrt.streaming.commands import AttachedContainer, ExecutedCommand
from highrt.streaming.relay import ClientGone, Running, relay
from strata.protocols import highrt_pb2 as api


class SessionCalls(Parts):
    """A part of PersonService."""

    @streaming
    async def Logs(self, request: api.LogsRequest) -> AsyncGenerator[api.LogLine, None]:
        container = self._containers.find(request.container)
        if not container.log_path:
            raise FailedPrecondition(f"container {container.id} has no log")

        def runs() -> bool:
            try:
                state = self._pods.container(container.id).state
            except LookupError:
                return False
            late = 0 < request.until_ns < time.time_ns()
            return state in (ContainerState.CREATED, ContainerState.RUNNING) and not late

        tail = request.tail if request.HasField("tail") else None
        follow = runs if request.follow else None
        if request.until_ns:
            everything = loglines.read(Path(container.log_path), follow=follow, since_ns=request.since_ns)
            lines = loglines.before(everything, request.until_ns, tail)
        else:
            lines = loglines.read(Path(container.log_path), follow=follow, tail=tail, since_ns=request.since_ns)
        async for line in lines:
            yield api.LogLine(time_ns=line.time_ns, stream=line.stream, data=line.data)

    async def Exec(self, stream: Any) -> None:
        start = await chunks.first(stream)
        with worded():
            container = self._running(start.container)
            require(start.argv, "exec: name a command")

            async def begin(stdio: Stdio) -> Running:
                session = await self._pods.exec(
                    container.id,
                    list(start.argv),
                    stdio,
                    terminal=start.tty,
                    env=dict(item.partition("=")[::2] for item in start.env),
                    cwd=start.working_dir or None,
                    user=start.user or None,
                )
                words = " ".join(start.argv)
                for action in ("exec_create", "exec_start"):
                    self._events.note_container(container, f"{action}: {words}", execID=session.id)
                return ExecutedCommand(session)

            if start.detach:
                await begin(Stdio(None, None, None))
                await stream.send_message(api.Output(started=True))
                return
            peer = GrpcPeer(stream)
            with suppress(ClientGone):
                code = await relay(peer, begin, stdin=start.stdin, stderr=not start.tty, started=peer.started)
                self._events.note_container(container, "exec_die", exitCode=str(code or 0))
                await stream.send_message(api.Output(exit_code=code or 0))

    async def Attach(self, stream: Any) -> None:
        start = await chunks.first(stream)
        with worded():
            container = self._containers.find(start.container)
            if not start.start:
                self._running(start.container)

            async def begin(stdio: Stdio) -> Running:
                if not start.start:
                    return AttachedContainer(await self._pods.attach(container.id, stdio))
                async with self._containers.starting(container):
                    session = await self._pods.attach(container.id, stdio)
                    try:
                        await self._pods.start_container(container.id)
                    except BaseException:
                        await session.detach()
                        raise
                    return AttachedContainer(session)

            peer = GrpcPeer(stream)
            with suppress(ClientGone), self._containers.session(container.id):
                await relay(peer, begin, stdin=start.stdin, stderr=not container.config.tty, started=peer.started)
                code = await self._containers.exit_code(container.id)
                await stream.send_message(api.Output(exit_code=code))

"""Exec and attach of the pod manager, as what a relay runs."""

from highrt.pods.sessions import AttachSession, ExecSession


class ExecutedCommand:
    """An exec. When its client is gone it is killed: nobody else can end it."""

    def __init__(self, session: ExecSession) -> None:
        self._session = session

    async def resize(self, width: int, height: int) -> None:
        await self._session.resize(width, height)

    async def wait(self) -> int | None:
        return await self._session.wait()

    async def end(self) -> None:
        await self._session.kill()


class AttachedContainer:
    """An attach. The container runs on without its client."""

    def __init__(self, session: AttachSession) -> None:
        self._session = session

    async def resize(self, width: int, height: int) -> None:
        await self._session.resize(width, height)

    async def wait(self) -> int | None:
        await self._session.wait()
        return None

    async def end(self) -> None:
        await self._session.detach()

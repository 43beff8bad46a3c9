"""An API server on loopback, in this process, with a store of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from controlplane.apiserver.schema import Schemas
from controlplane.apiserver.server import ApiServer
from controlplane.store.sqlite import SqliteStore
from tests.unit.apiserver.client import Api


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    return Schemas.load()


@pytest.fixture
async def api(tmp_path: Path, schemas: Schemas) -> AsyncIterator[Api]:
    store = await SqliteStore.open(tmp_path / "store.sqlite")
    server = ApiServer(store, schemas=schemas)
    await server.start()
    runner = web.ServerRunner(web.Server(server.handler(), access_log=None, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        await Api(session, server).create("/api/v1/namespaces", {"metadata": {"name": "default"}})
        yield Api(session, server)
    await runner.cleanup()
    await server.stop()
    await store.close()

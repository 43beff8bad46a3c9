"""A door for developers: the API server over plain HTTP, without authentication, on loopback.

python -m controlplane.apiserver --listen 127.0.0.1:8001 --data-dir DIR --insecure
"""

import asyncio
from pathlib import Path

import click
import uvloop
from aiohttp import web

from controlplane.apiserver.server import ApiServer
from controlplane.store.sqlite import SqliteStore
from strata.telemetry import logs


@click.command()
@click.option("--listen", default="127.0.0.1:8001", show_default=True, help="address and port (0: any); loopback only")
@click.option("--data-dir", type=click.Path(path_type=Path), required=True)
@click.option("--insecure", is_flag=True, required=True, help="say that you know that everybody may do everything")
def main(listen: str, data_dir: Path, insecure: bool) -> None:
    """Serve the API without TLS and without asking who it is."""
    host, _, port = listen.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise click.UsageError(f"--listen {listen}: this server has no authentication and stays on loopback")
    logs.configure()
    uvloop.run(_serve(host, int(port), data_dir))


async def _serve(host: str, port: int, data_dir: Path) -> None:
    store = await SqliteStore.open(data_dir / "store.sqlite")
    api = ApiServer(store)
    await api.start()
    runner = web.ServerRunner(web.Server(api.handler(), access_log=None, handler_cancellation=True))
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
        if api.reader.get("", "namespaces", name) is None:
            await api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    logs.get("apiserver").info("serving", address=f"http://{host}:{runner.addresses[0][1]}")
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        await api.stop()
        await store.close()


if __name__ == "__main__":
    main()

"""`controlplane serve`: the API server's process, and the controllers' process that it starts and watches."""

import asyncio
import fcntl
import ipaddress
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import prctl
from aiohttp import web

from controlplane import bootstrap
from controlplane.apiserver import strategies
from controlplane.apiserver.admission import plugins
from controlplane.apiserver.auth.authenticators import Authenticators
from controlplane.apiserver.auth.nodes import NodeAuthorizer
from controlplane.apiserver.auth.rbac import Rbac
from controlplane.apiserver.auth.serviceaccounts import ServiceAccounts
from controlplane.apiserver.connect import Connect
from controlplane.apiserver.limits import Limits
from controlplane.apiserver.server import ApiServer
from controlplane.pki.authority import ADMIN_GROUP, Authority
from controlplane.pki.tls import server_context
from controlplane.store.sqlite import SqliteStore
from strata.telemetry import logs

log = logs.get("controlplane")

COMPONENTS = ("apiserver", "scheduler", "controllers")
_RENEWAL_SECONDS = 12 * 3600
_SHUTDOWN_SECONDS = 5.0


class ServeError(Exception):
    """Why the control plane cannot run, for people."""


@dataclass(frozen=True)
class Options:
    """The flags of `controlplane serve`."""

    data_dir: Path
    bind_address: str
    secure_port: int
    advertise_address: str
    service_cidr: ipaddress.IPv4Network
    pod_cidr: ipaddress.IPv4Network
    tls_sans: Sequence[str] = ()
    components: Sequence[str] = COMPONENTS
    log_level: str = "info"
    log_format: str = "text"

    @property
    def server_names(self) -> list[str]:
        """What the serving certificate is for: all the names by which the API server is known."""
        service = [".".join(["kubernetes", "default", "svc", "cluster", "local"][:n]) for n in (1, 2, 3, 5)]
        addresses = [str(self.service_cidr[1]), self.advertise_address, "127.0.0.1"]
        return list(dict.fromkeys([*service, "localhost", *addresses, *self.tls_sans]))


@dataclass
class _Running:
    """What `serve` has begun, to be ended in the reverse order."""

    tasks: list["asyncio.Task[None]"] = field(default_factory=list)


async def serve(options: Options) -> None:
    """Runs until it is cancelled. Raises ServeError."""
    options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    claim = _claim(options.data_dir)
    authority = Authority(options.data_dir / "pki")
    authority.renew(options.server_names)
    cluster = bootstrap.Cluster(
        options.advertise_address, options.secure_port, options.service_cidr, options.pod_cidr, authority.ca.certificate_pem
    )
    store = await SqliteStore.open(options.data_dir / "store.sqlite")
    running = _Running()
    connect: Connect | None = None
    runner: web.ServerRunner | None = None
    try:
        api, connect = _api_server(options, authority, store)
        await api.start()
        await bootstrap.bootstrap(api, cluster)
        tls = server_context(authority.folder / "apiserver.crt", authority.folder / "apiserver.key", authority.ca_file)
        web_server = web.Server(Limits(api.handler()).handle, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(web_server, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            site = web.TCPSite(
                runner, options.bind_address, options.secure_port, ssl_context=tls, shutdown_timeout=_SHUTDOWN_SECONDS
            )
            await site.start()
        except OSError as error:
            raise ServeError(f"cannot listen on {options.bind_address}:{options.secure_port}: {error.strerror}") from error
        _write_admin_kubeconfig(options, authority, cluster)
        log.info("serving", address=cluster.server, kubeconfig=options.data_dir / "admin.kubeconfig")
        running.tasks.append(asyncio.create_task(_renew(options, authority, cluster, tls, connect)))
        if set(options.components) & {"scheduler", "controllers"}:
            running.tasks.append(asyncio.create_task(_watch_controllers(options, authority, cluster)))
        await asyncio.Event().wait()
    finally:
        for task in running.tasks:
            task.cancel()
        await asyncio.gather(*running.tasks, return_exceptions=True)
        if runner is not None:
            await runner.cleanup()
        if connect is not None:
            await connect.close()
        await store.close()
        os.close(claim)


def _api_server(options: Options, authority: Authority, store: SqliteStore) -> tuple[ApiServer, Connect]:
    """The API server with everything that guards it; they know each other through the cache that it serves from."""
    api = ApiServer(store, context=lambda reader: strategies.Context(reader, service_cidr=options.service_cidr))
    rbac = Rbac(api.reader)
    authorizer = NodeAuthorizer(api.reader, rbac)
    accounts = ServiceAccounts(authority.folder, api.reader)
    folder = authority.folder
    connect = Connect(api.reader, authority.ca_file, folder / "kubelet-client.crt", folder / "kubelet-client.key")
    api.secure(
        authenticator=Authenticators(api.reader, accounts),
        authorizer=authorizer,
        admission=plugins(api.reader, authorizer, rbac),
        tokens=accounts,
        connect=connect,
        documents={"/.well-known/openid-configuration": accounts.discovery, "/openid/v1/jwks": accounts.key_set},
    )
    return api, connect


def _write_admin_kubeconfig(options: Options, authority: Authority, cluster: bootstrap.Cluster) -> None:
    authority.write_kubeconfig(options.data_dir / "admin.kubeconfig", cluster.server, "kubernetes-admin", [ADMIN_GROUP])


async def _renew(
    options: Options, authority: Authority, cluster: bootstrap.Cluster, tls: ssl.SSLContext, connect: Connect
) -> None:
    """Renews certificates while the server runs: new connections get the new ones."""
    while True:
        await asyncio.sleep(_RENEWAL_SECONDS)
        await asyncio.to_thread(_write_admin_kubeconfig, options, authority, cluster)
        if await asyncio.to_thread(authority.renew, options.server_names):
            tls.load_cert_chain(authority.folder / "apiserver.crt", authority.folder / "apiserver.key")
            connect.reload()
            log.info("renewed the API server's certificates")


async def _watch_controllers(options: Options, authority: Authority, cluster: bootstrap.Cluster) -> None:
    """Runs the scheduler and the controllers in a process of their own, and starts it again, with a back-off, when it ends."""
    kubeconfig = options.data_dir / "controllers.kubeconfig"
    argv = [
        sys.executable, "-m", "controlplane.controllers", "--kubeconfig", str(kubeconfig),
        "--cluster-signing-cert", str(authority.ca_file), "--cluster-signing-key", str(authority.folder / "ca.key"),
        "--root-ca", str(authority.ca_file), "--pod-cidr", str(options.pod_cidr), "--service-cidr", str(options.service_cidr),
        "--log-format", options.log_format, "--log-level", options.log_level,
    ]  # fmt: skip
    pause = 0.5
    loop = asyncio.get_running_loop()
    while True:
        # Not system:masters: what they do is checked and can be seen in the roles.
        authority.write_kubeconfig(kubeconfig, cluster.server, "system:kube-controller-manager", [])
        started = loop.time()
        process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL, preexec_fn=_die_with_parent)
        try:
            status = await _until_it_ends_or_its_certificate_is_old(process, kubeconfig, authority, cluster)
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(_SHUTDOWN_SECONDS):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()
        if status is None:
            log.info("the certificate of scheduler and controllers is renewed, starting them again")
            continue
        pause = 0.5 if loop.time() - started > 60 else min(pause * 2, 30.0)
        log.error("scheduler and controllers have ended, starting them again", status=status, in_seconds=pause)
        await asyncio.sleep(pause)


async def _until_it_ends_or_its_certificate_is_old(
    process: asyncio.subprocess.Process, kubeconfig: Path, authority: Authority, cluster: bootstrap.Cluster
) -> int | None:
    """The exit status; None where the process runs on and is to be started anew with another certificate."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(_RENEWAL_SECONDS):
                return await process.wait()
        if not authority.is_good_kubeconfig(kubeconfig, cluster.server):
            return None


def _die_with_parent() -> None:
    prctl.set_pdeathsig(signal.SIGTERM)


def _claim(folder: Path) -> int:
    """One server a data folder: a lock that ends with the process. Raises ServeError."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ServeError(f"{folder} is in use by another control plane: stop it first") from None
    return descriptor


async def until_signal(options: Options) -> None:
    """`serve` until SIGTERM or SIGINT."""
    task = asyncio.create_task(serve(options))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


def read_cluster(data_dir: Path) -> dict[str, object]:
    """What `token create` must know of a control plane: its kubeconfig. Raises ServeError."""
    import yaml

    path = data_dir / "admin.kubeconfig"
    try:
        found: dict[str, object] = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ServeError(f"{path}: {error.strerror}. Is this the folder of a control plane that runs (--data-dir)?") from error
    return orjson.loads(orjson.dumps(found))  # type: ignore[no-any-return]

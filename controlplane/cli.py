"""The command `controlplane`."""

import asyncio
import hashlib
import ipaddress
import os
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")
DEFAULT_DATA_DIR = "/var/lib/strata/default/controlplane"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_data_dir = click.option(
    "--data-dir", type=click.Path(path_type=Path), default=DEFAULT_DATA_DIR, show_default=True, help="The control plane's folder."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option("0.1.0", message="controlplane %(version)s (Kubernetes v1.36)")
def main() -> None:
    """A lightweight Kubernetes control plane: API server, scheduler and controllers on an embedded store."""


@main.command()
@_data_dir
@click.option("--bind-address", default="0.0.0.0", show_default=True, help="The address to listen on.")
@click.option("--secure-port", default=6443, show_default=True, type=click.IntRange(1, 65535), help="The port, HTTPS.")
@click.option("--advertise-address", help="The address that nodes and pods reach the server at [default: the default route's].")
@click.option(
    "--tls-san", "tls_sans", multiple=True, help="Further names and addresses of the server's certificate (commas allowed)."
)
@click.option("--service-cidr", default="10.96.0.0/16", show_default=True, help="The range of the Services' addresses.")
@click.option("--pod-cidr", default="10.244.0.0/16", show_default=True, help="The range that each node gets a /24 of.")
@click.option("--store", type=click.Choice(["sqlite", "etcd"]), default="sqlite", show_default=True)
@click.option("--etcd-servers", help="The servers of --store etcd, separated by commas.")
@click.option("--components", default="apiserver,scheduler,controllers", show_default=True, help="What to run.")
@click.option("--pid-file", type=click.Path(path_type=Path), help="Where to write the process's PID.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def serve(
    data_dir: Path, bind_address: str, secure_port: int, advertise_address: str | None, tls_sans: tuple[str, ...],
    service_cidr: str, pod_cidr: str, store: str, etcd_servers: str | None, components: str, pid_file: Path | None,
    log_level: str, log_format: str,
) -> None:  # fmt: skip
    """Run the control plane. Writes DIR/admin.kubeconfig for kubectl."""
    if store == "etcd" or etcd_servers:
        raise click.UsageError("--store etcd: not supported yet; leave it away for the embedded store")
    wanted = [component for component in components.split(",") if component]
    from controlplane import serve as serving
    from strata.telemetry import logs, spans

    unknown = set(wanted) - set(serving.COMPONENTS)
    if unknown or "apiserver" not in wanted:
        raise click.UsageError(f"--components {components}: apiserver, and any of scheduler, controllers")
    logs.configure(level=log_level, format=log_format)
    spans.configure("apiserver")
    options = serving.Options(
        data_dir=data_dir.absolute(),
        bind_address=bind_address,
        secure_port=secure_port,
        advertise_address=_address(advertise_address),
        service_cidr=_network("--service-cidr", service_cidr, 24),
        pod_cidr=_network("--pod-cidr", pod_cidr, 24),
        tls_sans=[name for given in tls_sans for name in given.split(",") if name],
        components=wanted,
        log_level=log_level,
        log_format=log_format,
    )
    if pid_file:
        pid_file.parent.mkdir(parents=True, exist_ok=True)
        pid_file.write_text(f"{os.getpid()}\n")
    import uvloop

    try:
        uvloop.run(serving.until_signal(options))
    except (serving.ServeError, OSError, ValueError) as error:
        raise click.ClickException(f"the control plane cannot start: {error}") from error


@main.group()
def token() -> None:
    """Bootstrap tokens, with which nodes join."""


@token.command("create")
@_data_dir
@click.option("--ttl", default="24h", show_default=True, help="How long it is good: 90s, 30m, 24h, 7d; 0 for ever.")
@click.option("--description", default="", help="What it is for.")
def token_create(data_dir: Path, ttl: str, description: str) -> None:
    """Make a token and print the whole command with which a node joins."""
    from controlplane import tokens

    seconds = _seconds(ttl)
    made = _with_client(data_dir, lambda client: tokens.create(client, ttl_seconds=seconds, description=description))
    from controlplane.serve import read_cluster

    cluster: Any = read_cluster(data_dir)["clusters"]
    server = cluster[0]["cluster"]["server"]
    click.echo(f"kubelet join {server} --token {made.text} --discovery-token-ca-cert-hash {_ca_hash(data_dir)}")


@token.command("list")
@_data_dir
def token_list(data_dir: Path) -> None:
    """List the tokens."""
    from controlplane import tokens

    click.echo(f"{'TOKEN':<25}{'TTL':<12}{'EXPIRES':<27}DESCRIPTION")
    for one in _with_client(data_dir, tokens.listed):
        left = f"{max(int(one.expires.timestamp() - time.time()), 0)}s" if one.expires else "<forever>"
        expires = one.expires.isoformat() if one.expires else "<never>"
        click.echo(f"{one.text:<25}{left:<12}{expires:<27}{one.description}")


@token.command("delete")
@_data_dir
@click.argument("token_id")
def token_delete(data_dir: Path, token_id: str) -> None:
    """Take a token back."""
    from controlplane import tokens

    _with_client(data_dir, lambda client: tokens.delete(client, token_id))
    click.echo(f"bootstrap token {token_id.partition('.')[0]!r} deleted")


def _with_client(data_dir: Path, call: "Callable[[Any], Awaitable[T]]") -> T:
    from strata.kubeclient.client import Client
    from strata.kubeclient.errors import ApiError, KubeconfigError

    async def run() -> T:
        client = Client.from_kubeconfig(data_dir / "admin.kubeconfig", user_agent="controlplane")
        try:
            return await call(client)
        finally:
            await client.close()

    try:
        return asyncio.run(run())
    except KubeconfigError as error:
        raise click.ClickException(f"{error}. Is --data-dir the folder of a control plane?") from error
    except ApiError as error:
        raise click.ClickException(error.message) from error
    except TimeoutError as error:
        why = "the token is made, but the controllers have not signed cluster-info for it"
        raise click.ClickException(f"{why}: do they run? See the log of `controlplane serve`.") from error
    except OSError as error:
        raise click.ClickException(f"the control plane does not answer: {error}. Does it run?") from error


def _ca_hash(data_dir: Path) -> str:
    """`sha256:HEX` of the public key of the cluster's CA, as kubeadm writes it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    certificate = x509.load_pem_x509_certificate((data_dir / "pki/ca.crt").read_bytes())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return "sha256:" + hashlib.sha256(certificate.public_key().public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _address(given: str | None) -> str:
    if given is None:
        # No packet is sent: connecting a datagram socket only asks for the route.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))
                return str(probe.getsockname()[0])
            except OSError:
                raise click.UsageError("this machine has no default route: give --advertise-address") from None
    try:
        return str(ipaddress.ip_address(given))
    except ValueError:
        raise click.UsageError(f"--advertise-address {given}: must be an IP address") from None


def _network(flag: str, given: str, longest: int) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(given)
    except ValueError as error:
        raise click.UsageError(f"{flag} {given}: {error}") from None
    if network.prefixlen > longest:
        raise click.UsageError(f"{flag} {given}: must be a /{longest} or larger")
    return network


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smhd]?)", text)
    if not match:
        raise click.UsageError(f"--ttl {text}: write 90s, 30m, 24h, 7d or 0")
    return int(match[1]) * _UNITS[match[2] or "s"]


if __name__ == "__main__":
    sys.exit(main())

"""The `kubelet` command: `run` against any Kubernetes API server, `join` a cluster by a token and run."""

import asyncio
import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from kubelet import VERSION
from kubelet.config import DEFAULT_ENDPOINT, DEFAULT_ROOT, Config, ConfigError, load
from strata.telemetry import logs, spans


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message="Kubernetes %(version)s")
def main() -> None:
    """The node agent: makes the pods of this node run."""


def _common(command: Any) -> Any:
    for option in (
        click.option("--root-dir", "root", type=click.Path(path_type=Path), default=DEFAULT_ROOT, show_default=True,
                     help="Where volumes and certificates are kept."),
        click.option("--container-runtime-endpoint", "endpoint", help=f"CRI's socket [default: {DEFAULT_ENDPOINT}]"),
        click.option("--node-ip", help="The node's address [default: that of the default route]."),
        click.option("--config", "config_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
                     help="A KubeletConfiguration (kubelet.config.k8s.io/v1beta1)."),
        click.option("--port", type=int, help="The HTTPS server's port [default: 10250]."),
        click.option("--cluster-dns", multiple=True, help="Address of the cluster's DNS; may be given again."),
        click.option("--cluster-domain", help="Suffix of the cluster's names [default: cluster.local]."),
        click.option("--resolv-conf", help="The node's resolver configuration [default: /etc/resolv.conf]."),
        click.option("--cgroup-root", help="The cgroup below which kubepods is made [default: /]."),
        click.option("--pod-log-dir", "pod_logs", type=click.Path(path_type=Path), help="Logs [default: /var/log/pods]."),
        click.option("--max-pods", type=int, help="How many pods the node takes [default: 110]."),
        click.option("--pid-file", type=click.Path(path_type=Path), help="Where to write the process's PID."),
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@click.option("--kubeconfig", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--hostname-override", "node_name", help="The node's name [default: the host name].")
@_common
def run(kubeconfig: Path, node_name: str | None, **options: Any) -> None:
    """Run the node agent against the API server that a kubeconfig names."""
    _begin(options)
    _execute(_configuration(options, kubeconfig=kubeconfig, node_name=node_name))


@main.command()
@click.argument("server")
@click.option("--token", required=True, help="A bootstrap token, ID.SECRET.")
@click.option("--discovery-token-ca-cert-hash", "ca_hash", required=True, help="sha256:HEX of the cluster CA's public key.")
@click.option("--node-name", help="The node's name [default: the host name].")
@_common
def join(server: str, token: str, ca_hash: str, node_name: str | None, **options: Any) -> None:
    """Join this machine to the cluster of SERVER (https://HOST:PORT), then run the node agent.

    `controlplane token create` prints the whole command. On a machine that has joined already it just runs.
    """
    import kubelet.join as joining

    _begin(options)
    root = options["root"].absolute()
    base = _configuration(options, kubeconfig=root / "kubeconfig", node_name=node_name)
    try:
        name = base.resolved().node_name
        asyncio.run(joining.join(server, token, ca_hash, name, root))
    except (joining.JoinError, ConfigError) as error:
        raise click.ClickException(str(error)) from error
    _execute(_configuration(options, kubeconfig=root / "kubeconfig", node_name=node_name))


def _begin(options: dict[str, Any]) -> None:
    logs.configure(level=options.pop("log_level"), format=options.pop("log_format"))
    spans.configure("kubelet")
    if os.geteuid() != 0:
        raise click.ClickException("the kubelet needs root (mounts, cgroups): run it with sudo")
    if pid_file := options.pop("pid_file"):
        pid_file.parent.mkdir(parents=True, exist_ok=True)
        pid_file.write_text(f"{os.getpid()}\n")
        atexit.register(_remove_pid, pid_file)


def _remove_pid(file: Path) -> None:
    """Takes away the PID file at the end, unless another kubelet has written its own by then."""
    if file.exists() and file.read_text().strip() == str(os.getpid()):
        file.unlink()


def _configuration(options: dict[str, Any], *, kubeconfig: Path, node_name: str | None) -> Config:
    """Flags over `--config` (or what the join read from the cluster) over defaults."""
    flags = dict(options)
    config_file = flags.pop("config_file")
    root = flags.pop("root").absolute()
    flags["cluster_dns"] = tuple(flags["cluster_dns"]) or None
    base = Config(root=root)
    joined = root / "config.yaml"
    ca = root / "pki/ca.crt"
    try:
        for file in [joined] if config_file is None and joined.exists() else [config_file] if config_file else []:
            base, unknown = load(file, base)
            if unknown:
                logs.get("kubelet").warning(
                    "fields of the configuration that mean nothing here", file=file, fields=",".join(unknown)
                )
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    if base.client_ca is None and ca.exists():
        base = base.with_flags(client_ca=ca)
    return base.with_flags(root=root, kubeconfig=kubeconfig, node_name=node_name, **flags)


def _execute(config: Config) -> None:
    """Runs until SIGTERM or SIGINT."""
    import uvloop

    from kubelet import agent
    from strata.kubeclient.errors import KubeconfigError

    async def serve() -> None:
        task = asyncio.create_task(agent.run(config))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            logs.get("kubelet").info("kubelet stopped, its pods run on")

    try:
        uvloop.run(serve())
    except (ConfigError, KubeconfigError, OSError) as error:
        raise click.ClickException(f"the kubelet cannot start: {error}") from error


if __name__ == "__main__":
    sys.exit(main())

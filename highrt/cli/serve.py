"""`highrt serve`: the daemon."""

from pathlib import Path
from typing import Any

import click

from highrt.defaults import CNI_BIN_DIRS, DEFAULT_ADDRESS, DEFAULT_ROOT, DEFAULT_STATE

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--root", type=_PATH, default=DEFAULT_ROOT, show_default=True, help="Images, metadata and volumes.")
@click.option("--state", type=_PATH, default=DEFAULT_STATE, show_default=True, help="What a reboot may forget.")
@click.option("--listen", default=DEFAULT_ADDRESS, show_default=True, help="The socket for CRI and for the other commands.")
@click.option("--config", type=_PATH, help="A YAML file with runtimes and CNI plugins.")
@click.option("--cni-conf-dir", type=_PATH, default="/etc/cni/net.d", show_default=True, help="CNI configuration lists.")
@click.option(
    "--cni-bin-dir",
    type=_PATH,
    multiple=True,
    default=CNI_BIN_DIRS,
    show_default=True,
    help="CNI executables; may be given again: the first folder that has a plugin counts.",
)
@click.option("--registry-config", type=_PATH, help="containerd's certs.d: mirrors and CAs of registries.")
@click.option("--name", default="default", show_default=True, help="The stack's name; cgroups are made below /strata/NAME.")
@click.option("--pid-file", type=_PATH, help="Write the process's number here.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def serve(**options: Any) -> None:
    """Run the daemon: CRI for a kubelet, and what the other commands ask for."""
    # the daemon's imports are heavy, and no client needs them
    from highrt.daemon import Options, main

    main(Options(**options))

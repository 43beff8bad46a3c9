"""The command line of the controllers' process."""

import click

from controlplane.controllers.main import main

_FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.option("--kubeconfig", type=_FILE, required=True, help="how to reach the API server, and as whom")
@click.option("--root-ca", "root_ca_file", type=_FILE, help="the CA that every namespace's kube-root-ca.crt holds")
@click.option("--cluster-signing-cert", "ca_cert_file", type=_FILE, help="the CA that signs certificate requests")
@click.option("--cluster-signing-key", "ca_key_file", type=_FILE, help="its key")
@click.option("--pod-cidr", default="10.244.0.0/16", show_default=True, help="what the nodes' pod ranges are cut from")
@click.option("--service-cidr", default="10.96.0.0/16", show_default=True)
@click.option("--node-monitor-grace-period", "node_grace_seconds", default=40.0, show_default=True,
              help="seconds that a node may be silent before its state is Unknown")  # fmt: skip
@click.option("--leader-elect", is_flag=True, help="wait for the lease kube-system/strata-controllers")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
def command(kubeconfig: str, log_format: str, log_level: str, **options: object) -> None:
    """Run the scheduler and the controllers."""
    main(kubeconfig, log_format=log_format, log_level=log_level, **options)


if __name__ == "__main__":
    command()

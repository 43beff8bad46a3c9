"""The command `nodenet`.

`nodenet cni`, and any link to the command that is named after a plugin, is a CNI executable: it goes past everything that a
daemon needs.
"""

import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Entry of the console script."""
    from nodenet.cni import main as cni

    if os.path.basename(sys.argv[0]) in cni.PLUGINS or sys.argv[1:2] == ["cni"]:
        sys.exit(cni.main())
    _commands()()


def _commands() -> Any:
    import click

    from nodenet.conflist import DEFAULT_BRIDGE

    directory = click.Path(path_type=Path)
    common = [
        click.option("--kubeconfig", type=directory, required=True, help="how to reach the cluster; read again when it changes"),
        click.option("--node-name", required=True, help="this node's name in the cluster"),
        click.option("--cluster-cidr", default="", help="the pods' addresses [default: from kube-system/strata-network]"),
        click.option("--service-cidr", default="", help="the Services' addresses [default: from kube-system/strata-network]"),
        click.option("--cluster-domain", default="", help="[default: from kube-system/strata-network, else cluster.local]"),
        click.option("--pid-file", type=directory, help="write this process's ID here"),
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True),
    ]
    cni = [
        click.option("--cni-conf-dir", type=directory, default="/etc/cni/net.d", show_default=True),
        click.option("--bridge", default=DEFAULT_BRIDGE, show_default=True, help="the pods' bridge"),
    ]
    state = [click.option("--state-dir", type=directory, default="/var/lib/strata/default/nodenet", show_default=True)]
    dns = [
        click.option("--dns-listen", multiple=True, metavar="ADDRESS[:PORT]", help="listen here too; may be given again"),
        click.option("--forward", multiple=True, metavar="ADDRESS[#PORT]", help="ask this server for names outside the cluster "
                     "[default: those of resolv.conf; `none` for none]"),
        click.option("--resolv-conf", type=directory, default="/etc/resolv.conf", show_default=True),
    ]  # fmt: skip

    def with_options(function: Any, options: list[Any]) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    def group() -> None:
        """The network of one Kubernetes node: Service proxy, cluster DNS, routes, and CNI plugins (`nodenet cni`)."""

    def daemon(name: str, parts: tuple[str, ...], text: str, options: list[Any]) -> None:
        def run(**given: Any) -> None:
            _serve(parts, **given)

        run.__doc__ = text
        group.command(name)(with_options(run, [*common, *options]))

    from nodenet.serve import PARTS

    daemon("serve", PARTS, "Serve everything a node needs: CNI configuration, routes, Services, DNS.", [*cni, *state, *dns])
    daemon("proxy", ("proxy",), "Only the Services' rules.", [])
    daemon("dns", ("dns",), "Only the cluster's DNS.", dns)
    daemon("routes", ("routes",), "Only the routes to other nodes' pods, and masquerading.", [])

    def clean(cni_conf_dir: Path, bridge: str) -> None:
        """Remove all that nodenet made in this network namespace: rules, routes, bridge, CNI configuration."""
        from nodenet.cleanup import cleanup
        from nodenet.nft import NftError

        try:
            cleanup(cni_conf_dir, bridge)
        except (NftError, OSError) as error:
            raise click.ClickException(str(error)) from error

    group.command("cleanup")(with_options(clean, cni))
    return group


def _serve(parts: tuple[str, ...], **given: Any) -> None:
    import asyncio

    import click

    from nodenet.network import NetworkError
    from nodenet.serve import Options, serve
    from strata.kubeclient.errors import KubeconfigError
    from strata.telemetry import logs, spans

    logs.configure(level=given["log_level"], format=given["log_format"])
    spans.configure("nodenet")
    forward = list(given.get("forward") or ())
    extra = {key: given[key] for key in ("cni_conf_dir", "state_dir", "bridge", "resolv_conf") if key in given}
    options = Options(
        kubeconfig=given["kubeconfig"],
        node=given["node_name"],
        parts=parts,
        cluster_cidr=given["cluster_cidr"],
        service_cidr=given["service_cidr"],
        cluster_domain=given["cluster_domain"],
        dns_listen=[_listen(text) for text in given.get("dns_listen") or ()],
        forward=[server for server in forward if server != "none"] if forward else None,
        **extra,
    )
    pid_file: Path | None = given["pid_file"]
    if pid_file:
        pid_file.write_text(f"{os.getpid()}\n")
    try:
        asyncio.run(serve(options))
    except* (NetworkError, KubeconfigError) as errors:
        raise click.ClickException("; ".join(str(error) for error in errors.exceptions)) from None
    finally:
        if pid_file:
            pid_file.unlink(missing_ok=True)


def _listen(text: str) -> tuple[str, int]:
    import ipaddress

    import click

    host, colon, port = text.rpartition(":") if text.count(":") == 1 or text.startswith("[") else (text, "", "53")
    try:
        return str(ipaddress.ip_address(host.strip("[]") if colon else text.strip("[]"))), int(port)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no ADDRESS or ADDRESS:PORT", param_hint="--dns-listen") from None


if __name__ == "__main__":
    main()

"""The command group `highrt`."""

import click

from highrt.cli import containers, copy, image, images, login, networks, pods, registry, system
from highrt.cli.run import create, run
from highrt.cli.serve import serve
from highrt.defaults import DEFAULT_ADDRESS


class _Group(click.Group):
    """Commands in the order in which people meet them, not in the alphabet's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands]


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--address", envvar="HIGHRT_ADDRESS", default=DEFAULT_ADDRESS, show_default=True, help="The daemon's socket.")
@click.version_option(package_name="strata", prog_name="highrt", message="%(prog)s %(version)s")
def main(address: str) -> None:
    """Images and containers, without any Kubernetes.

    The commands are those of docker, podman and nerdctl. They talk to a daemon (highrt serve), which is started where none
    runs.
    """


for command in (
    run,
    create,
    *containers.COMMANDS,
    *copy.COMMANDS,
    containers.container,
    *images.COMMANDS,
    *image.COMMANDS,
    *registry.COMMANDS,
    *login.COMMANDS,
    networks.network,
    pods.pod,
    *system.COMMANDS,
    serve,
):
    main.add_command(command)


if __name__ == "__main__":
    main()

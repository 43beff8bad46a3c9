"""The limits that `run`, `create` and `update` have in common."""

import re
from typing import Any

import click

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(?:i?[bB])?")
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}

OPTIONS = (
    click.option("-m", "--memory", default="", metavar="SIZE", help="Memory limit, like 512m."),
    click.option("--memory-swap", default="", metavar="SIZE", help="Limit of memory and swap together; -1 is none."),
    click.option("--cpus", type=click.FloatRange(min=0.01), help="CPU limit, like 1.5."),
    click.option("-c", "--cpu-shares", type=click.IntRange(min=2), default=None, help="Weight against other containers."),
    click.option("--cpuset-cpus", default="", metavar="LIST", help="CPUs it may use, like 0-2,5."),
    click.option("--cpuset-mems", default="", metavar="LIST", help="Memory nodes it may use."),
    click.option("--pids-limit", type=int, default=0, help="Most processes it may have; -1 is without end."),
)


def memory_bytes(text: str) -> int:
    """`512m`, `1g`, `1.5GiB`, or a number of bytes. Raises click.BadParameter."""
    if not text:
        return 0
    if not (match := _SIZE.fullmatch(text)):
        raise click.BadParameter(f"{text!r} is not a size: write a number with b, k, m or g, like 512m")
    return int(float(match.group(1)) * _UNITS[match.group(2).lower()])


def limits(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a CreateRequest or UpdateRequest, 0 or "" for what is not asked for. Raises click.BadParameter."""
    return {
        "memory_bytes": memory_bytes(options["memory"]),
        "memory_swap_bytes": -1 if options["memory_swap"] == "-1" else memory_bytes(options["memory_swap"]),
        "cpu_millis": round((options["cpus"] or 0) * 1000),
        "cpu_shares": options["cpu_shares"] or 0,
        "cpuset_cpus": options["cpuset_cpus"],
        "cpuset_mems": options["cpuset_mems"],
        "pids_limit": options["pids_limit"],
    }

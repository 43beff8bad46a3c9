"""`ps --filter`: which containers are meant."""

import re
from collections.abc import Callable, Sequence

import click

from highrt.cli.options import has_label
from strata.protocols import highrt_pb2 as api

Meets = Callable[[api.Container, str], bool]


def chosen(found: Sequence[api.Container], filters: Sequence[api.Filter], known: Sequence[api.Container]) -> list[api.Container]:
    """Those that meet all keys, and of each key one of its values, as docker has it. known: all, for `before` and `since`.

    Raises click.BadParameter.
    """
    wanted: dict[str, list[str]] = {}
    for item in filters:
        if item.key not in (*_KEYS, "before", "since"):
            raise click.BadParameter(
                f"--filter {item.key}: not known; there are {', '.join(sorted((*_KEYS, 'before', 'since')))}"
            )
        wanted.setdefault(item.key, []).append(item.value)
    for key in _TIMES:
        for name in wanted.pop(key, ()):
            other = next((item for item in known if item.name == name or item.id.startswith(name)), None)
            if other is None:
                raise click.BadParameter(f"--filter {key}={name}: there is no such container")
            found = [
                item for item in found
                if (item.created_at_ns < other.created_at_ns if key == "before" else item.created_at_ns > other.created_at_ns)
            ]  # fmt: skip
    return [item for item in found if all(any(_KEYS[key](item, value) for value in values) for key, values in wanted.items())]


def _is_named(item: api.Container, value: str) -> bool:
    try:
        return re.search(value, item.name) is not None
    except re.error as error:
        raise click.BadParameter(f"--filter name={value}: no regular expression: {error}") from None


def _is_of(item: api.Container, image: str) -> bool:
    name = item.image.removesuffix(":latest")
    return image in (item.image, name, name.partition(":")[0]) or item.image_id.removeprefix("sha256:").startswith(
        image.removeprefix("sha256:")
    )


_KEYS: dict[str, Meets] = {
    "id": lambda item, value: item.id.startswith(value),
    "name": _is_named,
    "label": lambda item, value: has_label(item.labels, value),
    "status": lambda item, value: item.state == value,
    "ancestor": _is_of,
    "exited": lambda item, value: item.state == "exited" and str(item.exit_code) == value,
    "health": lambda item, value: (item.health or "none") == value,
    "volume": lambda item, value: value in item.mounts,
    "pod": lambda item, value: value == item.pod_name or item.pod_id.startswith(value),
    "network": lambda item, value: value in item.networks,
}
_TIMES = ("before", "since")

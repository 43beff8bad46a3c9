"""An image of what a container has written: `highrt commit`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from highrt.images.containerfile import parse_instruction
from highrt.images.draft import Draft, configure, pack
from highrt.images.errors import BuildError
from highrt.images.model import Image
from highrt.images.reference import parse
from highrt.images.service import ImageService

_CHANGES = ("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")


async def commit(
    service: ImageService,
    image: Image,
    upper: Path,
    *,
    name: str = "",
    config: Mapping[str, Any],
    changes: Sequence[str] = (),
    author: str = "",
    message: str = "",
    without: Sequence[str] = (),
) -> Image:
    """Makes an image of another one and the upper folder on it, and pins it.

    config: what the container has changed of the image's configuration, in its form. changes: instructions of a Containerfile
    that only configure. without: paths in the folder that are left out. Raises BuildError, InvalidReference, OSError.
    """
    stored = parse(name).stored if name else None
    draft = Draft.of(service, image)
    draft.set_env(dict(item.split("=", 1) for item in config.get("Env", ())))
    draft.config["Labels"] = {**(draft.config.get("Labels") or {}), **config.get("Labels", {})}
    draft.config |= {key: value for key, value in config.items() if key not in ("Env", "Labels")}
    for change in changes:
        instruction = parse_instruction(change, 1)
        if instruction.name not in _CHANGES:
            raise BuildError(f"--change {change!r}: only {', '.join(_CHANGES)} can be changed")
        if instruction.name == "WORKDIR":  # a build would make the folder, too
            before = draft.config.get("WorkingDir") or "/"
            draft.config["WorkingDir"] = os.path.normpath(os.path.join("/", before, instruction.text))
        else:
            configure(instruction, draft)
    async with service.working():
        step = await pack(service, upper, without=without)
        assert step is not None
        draft.add(step, message or "commit")
        draft.author = author or draft.author
        return draft.commit(service, stored)

"""What test_crash.py kills: a process that pulls, pushes, builds, removes and collects images, several at a time.

`python -m tests.interop.images.crash_scenario ROOT REGISTRY CONTEXT SEED`. It writes a line when an answer has come, `has NAME`
or `pushed NAME`, and `going NAME` before a removal begins.
"""

import asyncio
import contextlib
import random
import sys
from pathlib import Path

from highrt.images.build import build
from highrt.images.errors import ImageNotFound
from highrt.images.service import ImageService

_AT_ONCE = 4


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


async def client(service: ImageService, registry: str, context: Path, chance: random.Random, number: int) -> None:
    """Does one thing after the other with names of its own, and with `app`, which all pull."""
    mine = f"{registry}/built{number}:1"
    while True:
        match chance.choice(("pull", "build", "push", "remove", "remove app")):
            case "pull":
                name = f"{registry}/app:{chance.choice(('oci', 'docker'))}"
                await service.pull(name)
            case "build":
                await build(service, context, tag=mine, build_args={"A": str(chance.random())})
                say("has", mine)
            case "push":
                with contextlib.suppress(ImageNotFound):
                    await service.push(mine)
                    say("pushed", mine)
            case "remove":
                say("going", mine)
                with contextlib.suppress(ImageNotFound):
                    await service.remove(mine)
            case "remove app":
                with contextlib.suppress(ImageNotFound):
                    await service.remove(f"{registry}/app:oci")


async def main(root: str, registry: str, context: str, seed: str) -> None:
    service = ImageService(Path(root))
    await service.open()
    say("open")
    clients = (client(service, registry, Path(context), random.Random(f"{seed}-{n}"), n) for n in range(_AT_ONCE))
    await asyncio.gather(*clients)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""A daemon that makes and removes pods until it is killed. It says on stdout what it has brought to run.

usage: python -m tests.integration.pods.crash_scenario FOLDER NAME
"""

import asyncio
import sys
from pathlib import Path

from .conftest import Node


async def main(folder: Path, name: str) -> None:
    node = Node(folder, name)
    manager = node.manager
    await manager.open()
    number = len(manager.pods()) * 1000
    while True:
        number += 1
        pod = await manager.run_pod(node.pod(f"pod-{number}"))
        container = await manager.create_container(pod.id, node.container("sleep", "600", name=f"c{number}"))
        await manager.start_container(container.id)
        print(pod.id, container.id, flush=True)
        await manager.exec_sync(container.id, ["true"])
        if number % 2:
            print("removing", pod.id, flush=True)
            await manager.remove_pod(pod.id)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

"""One part's fault ends neither the others nor, after a pause, itself."""

import asyncio

from nodenet.serve import _keep


async def test_a_part_that_fails_is_started_again() -> None:
    runs: list[int] = []
    again = asyncio.Event()

    async def job() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise ValueError("what nobody thought of")
        again.set()
        await asyncio.Event().wait()

    keeper = asyncio.create_task(_keep("part", job))
    await asyncio.wait_for(again.wait(), 5)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert runs == [0, 1]
    assert keeper.cancelled()

"""The store on SQLite against its interface, against a model, and against a kill in the midst of writes."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.store import Compacted, Conflict, Event
from controlplane.store import sqlite as sqlite_store
from controlplane.store.sqlite import SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.sqlite")
    yield opened
    await opened.close()


async def test_a_new_key_must_not_exist(store: SqliteStore) -> None:
    first = await store.txn("/core/pods/a/b", 0, b"one")
    with pytest.raises(Conflict) as raised:
        await store.txn("/core/pods/a/b", 0, b"two")
    assert raised.value.current is not None
    assert (raised.value.current.value, raised.value.current.revision) == (b"one", first)


async def test_a_write_expects_the_revision_it_read(store: SqliteStore) -> None:
    first = await store.txn("/k/x/", 0, b"one")
    second = await store.txn("/k/x/", first, b"two")
    assert second > first
    with pytest.raises(Conflict):
        await store.txn("/k/x/", first, b"three")
    third = await store.txn("/k/x/", None, b"four")
    assert third == second + 1


async def test_deleting_what_is_not_there_is_a_conflict(store: SqliteStore) -> None:
    with pytest.raises(Conflict) as raised:
        await store.txn("/k/x/", None, None)
    assert raised.value.current is None


async def test_range_pages_in_the_order_of_keys(store: SqliteStore) -> None:
    for name in ("c", "a", "b", "d"):
        await store.txn(f"/k/{name}", 0, name.encode())
    await store.txn("/kk/z", 0, b"another prefix")
    page = await store.range("/k/", limit=3)
    assert [item.key for item in page.items] == ["/k/a", "/k/b", "/k/c"]
    assert (page.remaining, page.revision) == (1, store.revision)
    rest = await store.range("/k/", limit=3, after=page.items[-1].key)
    assert [(item.key, item.value) for item in rest.items] == [("/k/d", b"d")]
    assert rest.remaining == 0


async def test_subscribers_see_a_write_before_its_writer_does(store: SqliteStore) -> None:
    seen: list[int] = []
    store.subscribe(lambda events: seen.extend(event.revision for event in events))
    revisions = await asyncio.gather(*(store.txn(f"/k/{n}", 0, b"v") for n in range(50)))
    assert seen == sorted(revisions)
    assert await store.txn("/k/1", None, b"w") == seen[-1]


async def test_one_of_many_racing_writers_wins(store: SqliteStore) -> None:
    start = await store.txn("/k/x/", 0, b"0")
    answers = await asyncio.gather(*(store.txn("/k/x/", start, b"%d" % n) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 19


async def test_history_resumes_with_previous_values(store: SqliteStore) -> None:
    first = await store.txn("/k/x/", 0, b"one")
    second = await store.txn("/k/x/", first, b"two")
    third = await store.txn("/k/x/", second, None)
    events = await store.history(second)
    assert [(e.revision, e.value, e.previous, e.previous_revision) for e in events] == [
        (second, b"two", b"one", first),
        (third, None, b"two", second),
    ]


async def test_compaction_keeps_what_is_current(store: SqliteStore) -> None:
    kept = await store.txn("/k/kept", 0, b"kept")
    revision = await store.txn("/k/x/", 0, b"0")
    for n in range(1, 250):
        revision = await store.txn("/k/x/", revision, b"%d" % n)
    gone = await store.txn("/k/gone", 0, b"gone")
    last = await store.txn("/k/gone", gone, None)
    await store.compact(last)
    with pytest.raises(Compacted) as raised:
        await store.history(kept)
    assert raised.value.oldest == last + 1
    found = {item.key: item.value for item in (await store.range("/k/")).items}
    assert found == {"/k/kept": b"kept", "/k/x/": b"249"}
    after = await store.txn("/k/x/", revision, b"on")
    assert [(e.revision, e.previous) for e in await store.history(last + 1)] == [(after, b"249")]


async def test_compaction_gives_the_space_back(store: SqliteStore, tmp_path: Path) -> None:
    revision = 0
    for _ in range(300):
        revision = await store.txn("/k/x/", revision or 0, b"x" * 100)
    await store.compact(revision)
    with sqlite3.connect(tmp_path / "store.sqlite") as connection:
        (rows,) = connection.execute("SELECT count(*) FROM log").fetchone()
    assert rows == 1


async def test_a_key_lives_as_long_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted = asyncio.Event()
    monkeypatch.setattr(sqlite_store, "TTL_SWEEP_SECONDS", 0.05)
    again = await SqliteStore.open(tmp_path / "store.sqlite")
    again.subscribe(lambda events: deleted.set() if any(event.value is None for event in events) else None)
    try:
        await again.txn("/k/short", 0, b"v", ttl_seconds=1)
        renewed = await again.txn("/k/renewed", 0, b"v", ttl_seconds=1)
        await again.txn("/k/renewed", renewed, b"w", ttl_seconds=60)
        await again.txn("/k/stays", 0, b"v")
        async with asyncio.timeout(5):
            await deleted.wait()
        left = [item.key for item in (await again.range("/k/")).items]
        assert left == ["/k/renewed", "/k/stays"]
    finally:
        await again.close()


async def test_time_runs_while_nobody_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await SqliteStore.open(tmp_path / "s")
    await first.txn("/k/short", 0, b"v", ttl_seconds=1)
    kept = await first.txn("/k/kept", 0, b"v", ttl_seconds=1)
    await first.txn("/k/kept", kept, b"without a time")
    await first.close()
    await asyncio.sleep(1.1)
    monkeypatch.setattr(sqlite_store, "TTL_SWEEP_SECONDS", 0.05)
    deleted = asyncio.Event()
    again = await SqliteStore.open(tmp_path / "s")
    again.subscribe(lambda events: deleted.set())
    try:
        async with asyncio.timeout(5):
            await deleted.wait()
        await asyncio.sleep(0.2)
        assert [item.key for item in (await again.range("/k/")).items] == ["/k/kept"]
        with sqlite3.connect(tmp_path / "s") as connection:
            assert connection.execute("SELECT count(*) FROM ttl").fetchone() == (0,)
    finally:
        await again.close()


async def test_it_opens_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = await SqliteStore.open(path)
    revision = await store.txn("/k/x/", 0, b"one")
    await store.close()
    again = await SqliteStore.open(path)
    try:
        assert again.revision == revision
        assert (await again.range("/k/")).items[0].value == b"one"
        assert await again.txn("/k/y", 0, b"two") == revision + 1
    finally:
        await again.close()


async def test_newer_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = await SqliteStore.open(path)
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name IN ('schema', 'oldest_reader')")
    with pytest.raises(ValueError, match="newer version of Strata"):
        await SqliteStore.open(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() == (99,)


_WRITER = """
import asyncio, sys
from pathlib import Path
from controlplane.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    async def client(n):
        for i in range(10**6):
            revision = await store.txn(f"/k/{n}/{i}", 0, b"%d" % i)
            sys.stdout.write(f"/k/{n}/{i} {revision}\\n")
            sys.stdout.flush()
    await asyncio.gather(*(client(n) for n in range(8)))

asyncio.run(main())
"""


def _write_until_killed(path: Path, acknowledgements: int) -> dict[str, int]:
    """The keys and revisions that a writer got answers for before it was killed."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(acknowledgements)]
        writer.send_signal(signal.SIGKILL)
        lines += [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    return {key: int(revision) for key, revision in (line.split() for line in lines)}


@pytest.mark.parametrize("acknowledgements", [1, 200, 500])
async def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path, acknowledgements: int) -> None:
    acknowledged = _write_until_killed(tmp_path / "s", acknowledgements)
    assert len(acknowledged) >= acknowledgements
    store = await SqliteStore.open(tmp_path / "s")
    try:
        found = {item.key: item.revision for item in (await store.range("/k/")).items}
        assert {key: found.get(key) for key in acknowledged} == acknowledged
        assert await store.txn("/k/after", 0, b"v") > max(found.values())
    finally:
        await store.close()


Step = tuple[str, str, bytes | None]
_keys = st.sampled_from([f"/k/{name}" for name in "abcd"])
_steps = st.lists(
    st.tuples(_keys, st.sampled_from(["any", "absent", "current", "stale"]), st.one_of(st.none(), st.binary(max_size=4)))
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_steps)
def test_it_does_what_a_dictionary_would(tmp_path_factory: pytest.TempPathFactory, steps: Sequence[Step]) -> None:
    asyncio.run(_compare_with_model(tmp_path_factory.mktemp("model") / "s", steps))


async def _compare_with_model(path: Path, steps: Sequence[Step]) -> None:
    store = await SqliteStore.open(path)
    events: list[Event] = []
    store.subscribe(events.extend)
    model: dict[str, tuple[bytes, int]] = {}
    revision = store.revision
    try:
        for key, expectation, value in steps:
            current = model.get(key, (b"", 0))[1]
            expected = {"any": None, "absent": 0, "current": current, "stale": current + 1000}[expectation]
            allowed = expected in (None, current) and not (value is None and not current)
            try:
                written = await store.txn(key, expected, value)
            except Conflict:
                assert not allowed
                continue
            assert allowed
            revision += 1
            assert written == revision
            if value is None:
                del model[key]
            else:
                model[key] = (value, revision)
        found = await store.range("/k/")
        assert {item.key: (item.value, item.revision) for item in found.items} == model
        assert [event.revision for event in events] == list(range(revision - len(events) + 1, revision + 1))
        assert await store.history(events[0].revision if events else revision + 1) == events
    finally:
        await store.close()

"""The store in one SQLite file.

Two tables: `log` has every write by revision, with its value; `current` has each live key's revision, without the value
(MEASURED: values in it halve the rate). All writes go through one thread with one connection: it takes what is queued,
applies it in one transaction, and one fsync answers all of them (group commit). Reads have a connection of their own.

A write is seen by the subscribers, then answered, in the order of revisions: whoever got an answer finds its write in
every cache.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import apsw

from controlplane.store import Compacted, Conflict, Event, Item, RangeResult
from strata.telemetry import logs

log = logs.get("store")

SCHEMA_VERSION = 1
OLDEST_READER = 1
"""The oldest schema version whose code may open a file written by this one."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE log (
  revision INTEGER PRIMARY KEY, key TEXT NOT NULL, previous INTEGER NOT NULL, created INTEGER NOT NULL, value BLOB
);
CREATE TABLE current (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE ttl (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
"""

COMPACTION_STEP = 100
"""Revisions removed in one transaction: a longer one would hold up writers."""

TTL_SWEEP_SECONDS = 10.0


@dataclass(slots=True)
class _Write:
    key: str
    expected: int | None
    value: bytes | None
    ttl_seconds: int
    answer: "asyncio.Future[int]"


class SqliteStore:
    """See `controlplane.store.Store`. Open it with `await SqliteStore.open(path)`, and `close` it."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._writer = _connect(path)
        _migrate(self._writer, path)
        self._reader = _connect(path)
        self._revision = _meta(self._writer, "revision")
        self._subscribers: list[Callable[[Sequence[Event]], None]] = []
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._read_pool = ThreadPoolExecutor(1, "store-reader")
        self._thread = threading.Thread(target=self._write_forever, name="store-writer", daemon=True)
        self._thread.start()
        self._sweeper = loop.create_task(self._sweep())

    @classmethod
    async def open(cls, path: Path) -> "SqliteStore":
        """Opens the file, made if it is not there.

        Raises ValueError for data of a newer version that this one must not touch, and apsw.Error where it is no store.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path, asyncio.get_running_loop())

    @property
    def revision(self) -> int:
        return self._revision

    async def txn(self, key: str, expected_revision: int | None, value: bytes | None, *, ttl_seconds: int = 0) -> int:
        answer: asyncio.Future[int] = self._loop.create_future()
        self._queue.put(_Write(key, expected_revision, value, ttl_seconds, answer))
        return await answer

    async def range(self, prefix: str, *, limit: int = 0, after: str = "") -> RangeResult:
        return await self._loop.run_in_executor(self._read_pool, self._range, prefix, limit, after)

    async def history(self, from_revision: int) -> list[Event]:
        return await self._loop.run_in_executor(self._read_pool, self._history, from_revision)

    def subscribe(self, callback: Callable[[Sequence[Event]], None]) -> None:
        self._subscribers.append(callback)

    async def compact(self, revision: int) -> None:
        revision = min(revision, self._revision)
        lowest = await self._loop.run_in_executor(self._read_pool, lambda: _meta(self._reader, "compacted"))
        while lowest < revision:
            lowest = min(lowest + COMPACTION_STEP, revision)
            await self._loop.run_in_executor(self._read_pool, self._compact_to, lowest)

    async def close(self) -> None:
        self._sweeper.cancel()
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        self._read_pool.shutdown()
        self._reader.close()
        self._writer.close()

    # --- the writer's thread

    def _write_forever(self) -> None:
        running = True
        while running:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            running = None not in batch
            writes = [write for write in batch if write is not None]
            if writes:
                try:
                    outcome = self._commit(writes)
                except apsw.Error as error:  # a full disk, say: nothing of the batch happened
                    log.error("could not write", error=error, writes=len(writes))
                    outcome = [], [error for _ in writes]
                self._loop.call_soon_threadsafe(self._publish, writes, *outcome)

    def _commit(self, writes: Sequence[_Write]) -> tuple[list[Event], list[int | Exception]]:
        """One transaction for all; a write whose expectation fails leaves the others alone."""
        events: list[Event] = []
        answers: list[int | Exception] = []
        revision = self._revision_on_disk()
        with self._writer:
            run = self._writer.execute
            for write in writes:
                row = run("SELECT revision, created FROM current WHERE key = ?", (write.key,)).get
                there, created = row or (0, 0)
                unexpected = write.expected is not None and write.expected != there
                if unexpected or (write.value is None and not there):
                    answers.append(Conflict(write.key, self._item(write.key, there, created)))
                    continue
                revision += 1
                previous = run("SELECT value FROM log WHERE revision = ?", (there,)).get if there else None
                created = created or revision
                run("INSERT INTO log VALUES (?, ?, ?, ?, ?)", (revision, write.key, there, created, write.value))
                if write.value is None:
                    run("DELETE FROM current WHERE key = ?", (write.key,))
                else:
                    run("INSERT OR REPLACE INTO current VALUES (?, ?, ?)", (write.key, revision, created))
                if write.ttl_seconds and write.value is not None:
                    expires = time.time() + write.ttl_seconds
                    run("INSERT OR REPLACE INTO ttl VALUES (?, ?, ?)", (write.key, revision, expires))
                elif there:
                    run("DELETE FROM ttl WHERE key = ?", (write.key,))
                events.append(Event(revision, write.key, write.value, previous, there))
                answers.append(revision)
            if events:
                run("UPDATE meta SET value = ? WHERE name = 'revision'", (revision,))
        return events, answers

    def _revision_on_disk(self) -> int:
        return _meta(self._writer, "revision")

    def _item(self, key: str, revision: int, created: int) -> Item | None:
        if not revision:
            return None
        value: Any = self._writer.execute("SELECT value FROM log WHERE revision = ?", (revision,)).get
        return Item(key, value, revision, created)

    def _publish(self, writes: Sequence[_Write], events: Sequence[Event], answers: Sequence[int | Exception]) -> None:
        if events:
            self._revision = events[-1].revision
            for subscriber in self._subscribers:
                subscriber(events)
        for write, answer in zip(writes, answers, strict=True):
            if write.answer.done():  # whoever asked has gone away
                continue
            if isinstance(answer, int):
                write.answer.set_result(answer)
            else:
                write.answer.set_exception(answer)

    # --- the reader's thread

    def _range(self, prefix: str, limit: int, after: str) -> RangeResult:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        start = max(prefix, after)
        where = "FROM current WHERE key >= ? AND key < ?" + (" AND key > ?" if after else "")
        bounds = (start, end, after) if after else (start, end)
        with self._reader:  # one snapshot for the items, their number and the revision
            columns = "SELECT key, (SELECT value FROM log WHERE revision = current.revision), revision, created"
            rows = self._reader.execute(f"{columns} {where} ORDER BY key LIMIT ?", (*bounds, limit or -1)).fetchall()
            total: Any = self._reader.execute(f"SELECT count(*) {where}", bounds).get if limit else len(rows)
            revision = _meta(self._reader, "revision")
        return RangeResult([Item(*cast(Any, row)) for row in rows], revision, total - len(rows))

    def _history(self, from_revision: int) -> list[Event]:
        with self._reader:
            compacted = _meta(self._reader, "compacted")
            if from_revision <= compacted:
                raise Compacted(compacted + 1)
            rows = self._reader.execute(
                "SELECT l.revision, l.key, l.value, p.value, l.previous FROM log l "
                "LEFT JOIN log p ON p.revision = l.previous WHERE l.revision >= ? ORDER BY l.revision",
                (from_revision,),
            ).fetchall()
        return [Event(*cast(Any, row)) for row in rows]

    def _compact_to(self, revision: int) -> None:
        with self._reader:
            low = _meta(self._reader, "compacted")
            # A row stays as long as it is a key's current value; a tombstone is nobody's.
            self._reader.execute(
                "DELETE FROM log WHERE revision > ? AND revision <= ? AND revision NOT IN "
                "(SELECT revision FROM current WHERE revision > ? AND revision <= ?)",
                (low, revision, low, revision),
            )
            # What was current below `low` may have been replaced since.
            self._reader.execute(
                "DELETE FROM log WHERE revision IN (SELECT previous FROM log WHERE revision > ? AND revision <= ?)",
                (low, revision),
            )
            self._reader.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (revision,))

    # --- time to live

    async def _sweep(self) -> None:
        """Deletes keys whose time has come."""
        while True:
            await asyncio.sleep(TTL_SWEEP_SECONDS)
            try:
                for key, revision in await self._loop.run_in_executor(self._read_pool, self._expired):
                    with suppress(Conflict):  # written again meanwhile: the new write has its own time
                        await self.txn(key, revision, None)
            except apsw.Error as error:
                log.warning("could not sweep expired keys", error=error)

    def _expired(self) -> list[tuple[str, int]]:
        with self._reader:
            now = time.time()
            # Their rows go with the keys, in one transaction: a kill in between must not make them immortal.
            rows = self._reader.execute("SELECT key, revision FROM ttl WHERE expires <= ?", (now,)).fetchall()
        return cast(list[tuple[str, int]], rows)


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 1000")
    return connection


def _meta(connection: apsw.Connection, name: str) -> int:
    value: int = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).get
    return value


def _migrate(connection: apsw.Connection, path: Path) -> None:
    """Brings a new file to this schema; refuses one that a newer version has written and this one may not read."""
    with connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").get:
            connection.execute(_SCHEMA)
            rows = [("schema", SCHEMA_VERSION), ("oldest_reader", OLDEST_READER), ("revision", 1), ("compacted", 0)]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        oldest = _meta(connection, "oldest_reader")
    if oldest > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written by a newer version of Strata (schema {_meta(connection, 'schema')}); this one reads "
            f"up to {SCHEMA_VERSION}: start the newer version, or give another --data-dir"
        )

"""The inbox: an effect and its record in one transaction, on a PostgreSQL that the tests start."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from itertools import count

import anyio
import anyio.to_thread
import asyncpg
import psycopg
import psycopg.rows
import pytest

from streamq import RedisBroker, current_delivery, task
from streamq.errors import ConfigurationError
from streamq.handlers.inbox import Entry, Inbox
from tests.at_work import assert_nothing_left, burst
from tests.crew import Crew, say

_numbers = count(1)


@pytest.fixture
def inbox(postgres):
    """An inbox in a table of its own, and a table for effects beside it."""
    name = f"inbox_{os.getpid()}_{next(_numbers)}"
    inbox = Inbox(name)
    postgres.query(inbox.ddl)
    postgres.query(f"CREATE TABLE {name}_effects (id serial, what text, by text)")
    yield inbox
    postgres.query(f"DROP TABLE {name}, {name}_effects")


@pytest.fixture
def connect(postgres):
    """Connections that end with the test."""
    opened = []

    def connect(**options):
        opened.append(psycopg.connect(postgres.url, **options))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def effects(postgres, inbox):
    return [what for (what,) in postgres.query(f"SELECT what FROM {inbox.table}_effects ORDER BY id")]


def blocked(postgres, connection):
    """Wait until a connection waits for another's transaction."""
    end = time.monotonic() + 20
    while not postgres.query(
        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", connection.info.backend_pid
    ):
        assert time.monotonic() < end, "it never waited"
        time.sleep(0.005)


class Rival:
    """A claim of a key in another thread; `entry` waits for its answer."""

    def __init__(self, inbox, connection, key):
        self._answers = []
        self._thread = threading.Thread(target=self._claim, args=(inbox, connection, key), daemon=True)
        self._thread.start()

    def _claim(self, inbox, connection, key):
        try:
            self._answers.append(inbox.claim(connection.cursor(), key))
            connection.commit()
        except psycopg.Error as error:
            self._answers.append(error)

    @property
    def entry(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self._answers[0]


# --- one after the other -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_claim_returns_what_was_recorded(inbox, connect):
    """The first claim makes the effect. After its commit every other claim gets its result."""
    connection = connect()
    with connection, connection.cursor() as cursor:
        assert inbox.claim(cursor, "k") == Entry("k", done=False)
        inbox.record(cursor, "k", {"paid": 7, "by": ["é"]})
    cursor = connect().cursor()
    assert inbox.claim(cursor, "k") == Entry("k", done=True, result={"paid": 7, "by": ["é"]})
    assert inbox.claim(cursor, "other") == Entry("other", done=False)


def test_an_effect_without_a_result_is_done_too(inbox, connect):
    """The committed row counts, also without a recorded result."""
    connection = connect()
    inbox.claim(connection.cursor(), "k")
    connection.commit()
    assert inbox.claim(connect().cursor(), "k") == Entry("k", done=True, result=None)


def test_what_is_rolled_back_was_never_claimed(inbox, connect, postgres):
    """Effect and record go together."""
    connection = connect()
    cursor = connection.cursor()
    inbox.claim(cursor, "k")
    cursor.execute(f"INSERT INTO {inbox.table}_effects (what) VALUES ('k')")
    inbox.record(cursor, "k", 1)
    connection.rollback()
    assert effects(postgres, inbox) == []
    assert not inbox.claim(cursor, "k").done


def test_rows_may_be_dicts(inbox, connect):
    """A connection's row factory is the caller's business."""
    connection = connect(row_factory=psycopg.rows.dict_row)
    cursor = connection.cursor()
    inbox.claim(cursor, "k")
    inbox.record(cursor, "k", [1])
    assert inbox.claim(cursor, "k").result == [1]
    assert inbox.prune(cursor, 60) == 0


def test_a_key_is_data(inbox, connect):
    """No key is taken for SQL."""
    cursor = connect().cursor()
    for key in ("'; DROP TABLE x; --", "%s", "{0}", "$1"):
        assert not inbox.claim(cursor, key).done
        inbox.record(cursor, key, key)
        assert inbox.claim(cursor, key).result == key


def test_pruning_goes_by_age(inbox, connect, postgres):
    """Rows older than the given age are deleted, and their keys are free again."""
    with connect() as connection:
        for key in ("old", "young"):
            inbox.claim(connection.cursor(), key)
    postgres.query(f"UPDATE {inbox.table} SET at = now() - interval '2 days' WHERE key = 'old'")
    with connect() as connection, connection.cursor() as cursor:
        assert inbox.prune(cursor, 86_400) == 1
        assert inbox.prune(cursor, 86_400) == 0
        assert not inbox.claim(cursor, "old").done
        assert inbox.claim(cursor, "young").done
        with pytest.raises(ConfigurationError, match="older_than"):
            inbox.prune(cursor, -1)


# --- rivals ------------------------------------------------------------------------------------------


def test_a_rival_waits_for_the_commit(inbox, connect, postgres):
    """Two transactions claim one key: the second waits, and gets the result of the first."""
    first, second = connect(), connect()
    inbox.claim(first.cursor(), "k")
    rival = Rival(inbox, second, "k")
    blocked(postgres, second)
    inbox.record(first.cursor(), "k", "first")
    first.commit()
    assert rival.entry == Entry("k", done=True, result="first")


def test_a_rival_has_the_effect_if_the_first_is_rolled_back(inbox, connect, postgres):
    """There is no record without its effect."""
    first, second = connect(), connect()
    inbox.claim(first.cursor(), "k")
    rival = Rival(inbox, second, "k")
    blocked(postgres, second)
    first.rollback()
    assert rival.entry == Entry("k", done=False)


def test_a_rival_has_the_effect_if_the_first_is_gone(inbox, connect, postgres):
    """A transaction ends with its connection."""
    first, second = connect(), connect()
    inbox.claim(first.cursor(), "k")
    rival = Rival(inbox, second, "k")
    blocked(postgres, second)
    postgres.query("SELECT pg_terminate_backend(%s)", first.info.backend_pid)
    assert rival.entry == Entry("k", done=False)


def test_under_repeatable_read_the_rival_fails_and_is_retried(inbox, connect, postgres):
    """A snapshot that is older than the first's commit cannot see its row: PostgreSQL refuses to go on."""
    first, second = connect(), connect()
    second.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    second.execute("SELECT 1")
    inbox.claim(first.cursor(), "k")
    rival = Rival(inbox, second, "k")
    blocked(postgres, second)
    first.commit()
    assert isinstance(rival.entry, psycopg.errors.SerializationFailure)
    second.rollback()
    assert inbox.claim(second.cursor(), "k").done


# --- misuse --------------------------------------------------------------------------------------------


def test_a_claim_of_its_own_transaction_is_refused(inbox, connect):
    """In autocommit mode a crash behind the claim would lose the effect."""
    connection = connect(autocommit=True)
    with pytest.raises(ConfigurationError, match="before its effect"):
        inbox.claim(connection.cursor(), "k")
    with connection.transaction():
        assert not inbox.claim(connection.cursor(), "k").done
    with connection.transaction():
        assert inbox.claim(connection.cursor(), "k").done


def test_what_cannot_be_used_is_refused(inbox, connect):
    """Names, keys, and results that are not JSON."""
    cursor = connect().cursor()
    for table in ("", "a b", 'a"b', "a;b", "a.b.c"):
        with pytest.raises(ConfigurationError, match="table="):
            Inbox(table)
    assert "other.inbox" in Inbox("other.inbox").ddl
    for key in ("", None, 7):
        with pytest.raises(ConfigurationError, match="key="):
            inbox.claim(cursor, key)
    with pytest.raises(ConfigurationError, match="not claimed"):
        inbox.record(cursor, "k", 1)
    inbox.claim(cursor, "k")
    with pytest.raises(TypeError):
        inbox.record(cursor, "k", object())


# --- async drivers, under asyncio: neither runs under trio ----------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_async_drivers(inbox, postgres, driver, anyio_backend):
    """Claim, record, rival, rollback and prune, as with a DB-API cursor."""
    if driver == "psycopg":
        first = await psycopg.AsyncConnection.connect(postgres.url, autocommit=True)
        second = await psycopg.AsyncConnection.connect(postgres.url, autocommit=True)
        hands = first.cursor(), second.cursor()
    else:
        hands = first, second = [await asyncpg.connect(postgres.url) for _ in range(2)]
    one, two = hands
    told = []

    async def rival():
        async with second.transaction():
            told.append(await inbox.aclaim(two, "k"))

    try:
        with pytest.raises(ConfigurationError, match="before its effect"):
            await inbox.aclaim(one, "k")
        async with anyio.create_task_group() as group, first.transaction():
            assert await inbox.aclaim(one, "k") == Entry("k", done=False)
            group.start_soon(rival)
            await anyio.wait_all_tasks_blocked()
            assert told == []
            await inbox.arecord(one, "k", {"n": 1})
        assert told == [Entry("k", done=True, result={"n": 1})]
        with pytest.raises(ConfigurationError, match="not claimed"):
            await inbox.arecord(one, "other", 1)
        assert await inbox.aprune(one, 0) == 1
        with contextlib.suppress(ZeroDivisionError):
            async with first.transaction():
                assert not (await inbox.aclaim(one, "k")).done
                raise ZeroDivisionError
        async with second.transaction():
            assert not (await inbox.aclaim(two, "k")).done
    finally:
        await first.close()
        await second.close()


# --- in handlers, under asyncio and under trio ------------------------------------------------------------


@task(validate=False, retries=0)
def pay(table: str, url: str, key: str) -> str:
    """Have an effect in one transaction with its record, in a thread of the worker."""
    inbox = Inbox(table)
    me = current_delivery()
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        entry = inbox.claim(cursor, key)
        if entry.done:
            say_if_asked(f"recorded {entry.result}")
            return entry.result
        cursor.execute(f"INSERT INTO {table}_effects (what, by) VALUES (%s, %s)", (key, me.task_id))
        inbox.record(cursor, key, me.task_id)
        hang(me, "effect")
    say_if_asked(f"committed {me.task_id}")
    hang(me, "committed")
    return me.task_id


def say_if_asked(line):
    if "CREW_LOG" in os.environ:
        say(line)


def hang(delivery, where):
    """Stay here for ever if this is the worker to be killed: no worker has died of this delivery before."""
    if os.environ.get("INBOX_HANG") == where and not delivery.crashed_workers:
        say(f"at {where}")
        threading.Event().wait()


TASKS = [pay]


@pytest.mark.slow
async def test_rival_runs_have_one_effect_and_one_result(inbox, postgres, server, anyio_backend):
    """Twenty tasks of one key at once: one row of effect, and all of them get the same result."""
    async with RedisBroker(server.url) as broker:
        wanted = pay.options(result_ttl=60)
        handles = await broker.enqueue_many([wanted.call(inbox.table, postgres.url, "k") for _ in range(20)])
        await burst(broker, pay, concurrency=8)
        results = [await handle.result(10) for handle in handles]
    assert effects(postgres, inbox) == ["k"]
    assert set(results) & {handle.task_id for handle in handles}
    assert len(set(results)) == 1
    assert_nothing_left(server)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["effect", "committed"])
async def test_a_worker_killed_around_the_commit(
    inbox, postgres, anyio_backend, shared_server, tmp_path, monkeypatch, where
):
    """SIGKILL after the effect and before the commit, or after it and before the ack: exactly one row of effect."""
    server = shared_server("valkey" if anyio_backend == "asyncio" else "redis")
    monkeypatch.setenv("INBOX_HANG", where)
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(pay.options(result_ttl=60), inbox.table, postgres.url, "k")
        with Crew("tests.handlers.test_inbox", server, tmp_path, backend=anyio_backend) as crew:
            victim = crew.start("victim")
            await anyio.to_thread.run_sync(crew.until, f"at {where}")
            assert effects(postgres, inbox) == ([] if where == "effect" else ["k"])
            victim.kill()
            victim.wait()
            crew.start("heir")
            assert await handle.result(30) == handle.task_id
            heard = crew.lines("recorded")
    assert effects(postgres, inbox) == ["k"]
    assert heard == ([] if where == "effect" else [f"recorded {handle.task_id}"])

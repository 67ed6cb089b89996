"""An inbox in the PostgreSQL of the application: an effect and its record are committed together, or neither is.

A claim inserts a row for its key, in the transaction of the effect. A second claim of the same key waits in the
database until that transaction ends. If it was committed, the second claim finds the row. If it was rolled back, the
second claim inserts the row itself. When a process dies, the database rolls its transaction back. So no lease and no
token is needed.

This module knows no driver and imports none. Each operation is a generator: it yields a statement, and is sent the
first row of the answer. `_run` and `_run_async` execute it, through a DB-API cursor (psycopg), an async cursor of
psycopg, or a connection of asyncpg.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from streamq.diagnostics.safe_text import repr_of
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import ConfigurationError, StreamqError
from streamq.wire import bounds
from streamq.wire.message import dumps

_TABLE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")
_TRIES: Final = 3  # a row that refused the insert may be pruned before it is read
_IDLE: Final = 0  # libpq's PQTRANS_IDLE: the connection is in no transaction

_DDL: Final = """\
CREATE TABLE IF NOT EXISTS {table} (
    key text PRIMARY KEY,
    result text,
    at timestamptz NOT NULL DEFAULT now()
)"""
_CLAIM: Final = "INSERT INTO {table} (key) VALUES ({0}) ON CONFLICT (key) DO NOTHING RETURNING key"
_READ: Final = "SELECT result FROM {table} WHERE key = {0}"
_RECORD: Final = "UPDATE {table} SET result = {0} WHERE key = {1} RETURNING key"
_PRUNE: Final = """\
WITH gone AS (DELETE FROM {table} WHERE at < now() - make_interval(secs => {0}) RETURNING key)
SELECT count(*) FROM gone"""

Statements: TypeAlias = Generator[tuple[str, list[Any]], Any, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """The answer to a claim. If `done`, the effect is committed already, and `result` is what was recorded."""

    key: str
    done: bool
    result: Any = None


@dataclass(frozen=True, slots=True)
class Inbox:
    """The inbox in one table, given as `name` or `schema.name`.

    Raises ConfigurationError for a name that would need quotes.
    """

    table: str = "streamq_inbox"

    def __post_init__(self) -> None:
        if not (isinstance(self.table, str) and _TABLE.fullmatch(self.table)):
            raise ConfigurationError(
                f"table={repr_of(self.table)} cannot be used: give name or schema.name, without quotes"
            )

    @property
    def ddl(self) -> str:
        """The statement that creates the table if it is missing."""
        return _DDL.format(table=self.table)

    # --- with a DB-API cursor ------------------------------------------------------------------

    def claim(self, cursor: Any, key: str) -> Entry:
        """Claim a key in the transaction of the cursor. The driver begins one if there is none.

        Waits while another transaction has the key. If the entry is not `done`, make the effect in this same
        transaction.

        Raises ConfigurationError if the connection is in autocommit mode and in no transaction, or if the key is not a
        text.
        """
        _check(cursor.connection)
        return _run(cursor, self._claim(key))  # type: ignore[no-any-return]

    def record(self, cursor: Any, key: str, result: Any) -> None:
        """Keep a result with the key, in the transaction that claimed it.

        Raises TypeError if the result is not JSON, ConfigurationError if the key was not claimed. Let the transaction
        be rolled back then.
        """
        _run(cursor, self._record(key, result))

    def prune(self, cursor: Any, older_than: float) -> int:
        """Delete the rows that were claimed more than `older_than` seconds ago. Return how many there were."""
        return _run(cursor, self._prune(older_than))  # type: ignore[no-any-return]

    # --- with an async cursor of psycopg, or a connection of asyncpg -----------------------------

    async def aclaim(self, cursor: Any, key: str) -> Entry:
        """Claim a key, as `claim` does."""
        _check(cursor if _is_asyncpg(cursor) else cursor.connection)
        return await _run_async(cursor, self._claim(key))  # type: ignore[no-any-return]

    async def arecord(self, cursor: Any, key: str, result: Any) -> None:
        """Keep a result, as `record` does."""
        await _run_async(cursor, self._record(key, result))

    async def aprune(self, cursor: Any, older_than: float) -> int:
        """Delete old rows, as `prune` does."""
        return await _run_async(cursor, self._prune(older_than))  # type: ignore[no-any-return]

    # --- the operations --------------------------------------------------------------------------

    def _claim(self, key: str) -> Statements:
        if not isinstance(key, str) or not key:
            raise ConfigurationError(f"key={repr_of(key)} cannot be used: give a text that is not empty")
        for _ in range(_TRIES):
            if (yield self._sql(_CLAIM, key)) is not None:
                return Entry(key, done=False)
            row = yield self._sql(_READ, key)
            if row is not None:
                result = _first(row)
                return Entry(key, done=True, result=None if result is None else orjson.loads(result))
        raise StreamqError(
            f"the inbox row of {key!r} was pruned {_TRIES} times while it was claimed: prune with a longer older_than"
        )

    def _record(self, key: str, result: Any) -> Statements:
        if (yield self._sql(_RECORD, dumps(result).decode(), key)) is None:
            raise ConfigurationError(f"the key {key!r} was not claimed: claim it first, in the same transaction")

    def _prune(self, older_than: float) -> Statements:
        older_than = bounds.OLDER_THAN.check(older_than)
        return _first((yield self._sql(_PRUNE, float(older_than))))

    def _sql(self, statement: str, *values: Any) -> tuple[str, list[Any]]:
        return statement.replace("{table}", self.table), list(values)


def _run(cursor: Any, statements: Statements) -> Any:
    """Execute an operation through a DB-API cursor, and return its result."""
    row = None
    while True:
        try:
            statement, values = statements.send(row)
        except StopIteration as end:
            return end.value
        cursor.execute(_with_placeholders(statement, values, "%s"), values)
        row = cursor.fetchone()


async def _run_async(cursor: Any, statements: Statements) -> Any:
    """Execute an operation through an async cursor of psycopg, or a connection of asyncpg."""
    row = None
    while True:
        try:
            statement, values = statements.send(row)
        except StopIteration as end:
            return end.value
        if _is_asyncpg(cursor):
            row = await cursor.fetchrow(_with_placeholders(statement, values, "${}"), *values)
        else:
            await cursor.execute(_with_placeholders(statement, values, "%s"), values)
            row = await cursor.fetchone()


def _with_placeholders(statement: str, values: list[Any], placeholder: str) -> str:
    """Return a statement with the placeholders of the driver for its values."""
    return statement.format(*(placeholder.format(at) for at in range(1, len(values) + 1)))


def _is_asyncpg(cursor: Any) -> bool:
    return hasattr(cursor, "fetchrow")


def _first(row: Any) -> Any:
    """Return the first column of a row: a driver returns tuples, or mappings if it was configured so."""
    return next(iter(row.values())) if isinstance(row, Mapping) else row[0]


def _check(connection: Any) -> None:
    """Refuse a claim that would be committed before its effect: a crash between the two would lose the effect."""
    in_transaction = getattr(connection, "is_in_transaction", None)
    if in_transaction is not None:  # asyncpg commits each statement outside a transaction
        commits_alone = not in_transaction()
    else:
        commits_alone = bool(getattr(connection, "autocommit", False)) and connection.info.transaction_status == _IDLE
    if commits_alone:
        raise ConfigurationError(
            f"{repr_of(connection)} would commit the claim before its effect: use 'with connection.transaction():'"
        )


name_remedies(Inbox, "inbox")

"""An inbox in the caller's own PostgreSQL: an effect and its record are committed together, or neither is.

Whoever claims a key inserts a row for it into the transaction that has the effect. A rival's insert waits
in the database until that transaction has ended: it finds the row if it was committed, and has the effect itself
if it was rolled back. A process that dies takes its transaction with it, and no lease and no token is needed.

It knows no driver and imports none. Each question is a generator that yields SQL and is sent the first row; what is
below asks it through a DB-API cursor (psycopg), an async cursor of psycopg, or a connection of asyncpg.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from streamq.errors import ConfigurationError, StreamqError, check_number
from streamq.wire.message import dumps

_TABLE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")
_TRIES: Final = 3  # a row that was in the way may be pruned before it is read
_IDLE: Final = 0  # libpq's PQTRANS_IDLE: a connection outside a transaction

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

Question: TypeAlias = Generator[tuple[str, list[Any]], Any, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a claim: the row is ours, or it is `done` and has the `result` that was recorded."""

    key: str
    done: bool
    result: Any = None


@dataclass(frozen=True, slots=True)
class Inbox:
    """The inbox in one table; `table` may name its schema as well.

    Raises ConfigurationError for a name that would need quotes.
    """

    table: str = "streamq_inbox"

    def __post_init__(self) -> None:
        if not _TABLE.fullmatch(self.table):
            raise ConfigurationError(f"table={self.table!r} cannot be used: give name or schema.name, without quotes")

    @property
    def ddl(self) -> str:
        """The statement that makes the table, where it is missing."""
        return _DDL.format(table=self.table)

    # --- with a DB-API cursor ------------------------------------------------------------------

    def claim(self, cursor: Any, key: str) -> Entry:
        """Claim a key in the transaction of the cursor, which begins one unless it commits each statement.

        Waits while another transaction has it. If the entry is not `done`, have the effect in this same transaction.

        Raises ConfigurationError if the connection is in autocommit mode and in no transaction.
        """
        _check(cursor.connection)
        return _asked(cursor, self._claim(key))  # type: ignore[no-any-return]

    def record(self, cursor: Any, key: str, result: Any) -> None:
        """Keep a result with the key, in the transaction that claimed it.

        Raises TypeError if it is not JSON, and ConfigurationError if nobody claimed the key: let the transaction
        be rolled back then.
        """
        _asked(cursor, self._record(key, result))

    def prune(self, cursor: Any, older_than: float) -> int:
        """Delete what was claimed more than `older_than` seconds ago, and return how many rows that was."""
        return _asked(cursor, self._prune(older_than))  # type: ignore[no-any-return]

    # --- with an async cursor of psycopg, or a connection of asyncpg -----------------------------

    async def aclaim(self, cursor: Any, key: str) -> Entry:
        """As `claim`."""
        _check(cursor if _is_asyncpg(cursor) else cursor.connection)
        return await _asked_async(cursor, self._claim(key))  # type: ignore[no-any-return]

    async def arecord(self, cursor: Any, key: str, result: Any) -> None:
        """As `record`."""
        await _asked_async(cursor, self._record(key, result))

    async def aprune(self, cursor: Any, older_than: float) -> int:
        """As `prune`."""
        return await _asked_async(cursor, self._prune(older_than))  # type: ignore[no-any-return]

    # --- the questions ---------------------------------------------------------------------------

    def _claim(self, key: str) -> Question:
        if not isinstance(key, str) or not key:
            raise ConfigurationError(f"key={key!r} cannot be used: give a text that is not empty")
        for _ in range(_TRIES):
            if (yield self._sql(_CLAIM, key)) is not None:
                return Entry(key, done=False)
            row = yield self._sql(_READ, key)
            if row is not None:
                result = _first(row)
                return Entry(key, done=True, result=None if result is None else orjson.loads(result))
        raise StreamqError(f"the inbox row of {key!r} came and went {_TRIES} times: prune with a longer older_than")

    def _record(self, key: str, result: Any) -> Question:
        if (yield self._sql(_RECORD, dumps(result).decode(), key)) is None:
            raise ConfigurationError(f"the key {key!r} was not claimed: claim it first, in the same transaction")

    def _prune(self, older_than: float) -> Question:
        check_number("older_than", older_than, 0.0)
        return _first((yield self._sql(_PRUNE, float(older_than))))

    def _sql(self, statement: str, *values: Any) -> tuple[str, list[Any]]:
        return statement.replace("{table}", self.table), list(values)


def _asked(cursor: Any, question: Question) -> Any:
    """Carry a question out through a DB-API cursor, and return its answer."""
    row = None
    while True:
        try:
            statement, values = question.send(row)
        except StopIteration as answer:
            return answer.value
        cursor.execute(_marked(statement, values, "%s"), values)
        row = cursor.fetchone()


async def _asked_async(cursor: Any, question: Question) -> Any:
    row = None
    while True:
        try:
            statement, values = question.send(row)
        except StopIteration as answer:
            return answer.value
        if _is_asyncpg(cursor):
            row = await cursor.fetchrow(_marked(statement, values, "${}"), *values)
        else:
            await cursor.execute(_marked(statement, values, "%s"), values)
            row = await cursor.fetchone()


def _marked(statement: str, values: list[Any], mark: str) -> str:
    """Return a statement with the driver's marks where its values go."""
    return statement.format(*(mark.format(at) for at in range(1, len(values) + 1)))


def _is_asyncpg(cursor: Any) -> bool:
    return hasattr(cursor, "fetchrow")


def _first(row: Any) -> Any:
    """Return the first column of a row, whatever the driver was told to make of rows."""
    return next(iter(row.values())) if isinstance(row, Mapping) else row[0]


def _check(connection: Any) -> None:
    """Refuse a claim that would be committed before its effect: a crash between the two would lose the effect."""
    in_transaction = getattr(connection, "is_in_transaction", None)
    if in_transaction is not None:  # asyncpg commits each statement, unless told otherwise
        alone = not in_transaction()
    else:
        alone = bool(getattr(connection, "autocommit", False)) and connection.info.transaction_status == _IDLE
    if alone:
        raise ConfigurationError(
            f"{connection!r} would commit the claim before its effect: use 'with connection.transaction():'"
        )

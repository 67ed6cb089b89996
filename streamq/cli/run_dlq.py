"""Runs `streamq dlq`: reads the dead letter stream and prints its entries.

This module reads the stream itself, because operators want every field of an entry, known or not.
Replaying and purging go through `DeadLetterQueue`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio
import click
import orjson
import redis.exceptions

from streamq.broker import RedisBroker
from streamq.cli.options import ServerOptions
from streamq.cli.run_command import run
from streamq.cli.usage_errors import CommandLineError
from streamq.client.client import Client
from streamq.tasks.retry_policy import Backoff

_PAGE_SIZE: Final = 500  # entries of one read
_BLOCK_SECONDS: Final = 5.0  # seconds of one blocking read
_OUTAGE_BACKOFF: Final = Backoff(base=0.2, factor=2.0, cap=3.0, jitter=False)
_JSON_FIELDS: Final = ("args", "kwargs", "headers")
_NUMBER_FIELDS: Final = ("attempts", "starts", "retries", "priority")

DeadLetterFields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Selects dead letters by task name and reason. None matches any."""

    task: str | None = None
    reason: str | None = None

    def __contains__(self, entry: DeadLetterFields) -> bool:
        return self.task in (None, entry.get("task")) and self.reason in (None, entry.get("reason"))


# --- commands ----------------------------------------------------------------------------------


def ls(server: ServerOptions, filter_: DeadLetterFilter, *, count: int, as_json: bool) -> None:
    """Print the newest dead letters, newest first."""
    broker = server.broker()

    async def main() -> tuple[list[DeadLetterFields], int]:
        async with broker:
            entries = [entry async for entry in _first(read_newest_first(broker, filter_), count)]
            return entries, int(await broker.client.command("XLEN", broker.keys.dead))

    entries, total = run(main)
    if as_json:
        _print_json(entries)
        return
    if entries:
        click.echo(_HEADER)
    for entry in entries:
        click.echo(_row(entry))
    summary = f"{broker.keys.dead} holds {total} dead letter{'s' * (total != 1)}"
    click.echo(summary if len(entries) == total else f"{summary}, {len(entries)} shown", err=True)


def tail(server: ServerOptions, filter_: DeadLetterFilter, *, since: str | None, as_json: bool) -> None:
    """Print new dead letters as they arrive, until interrupted."""
    broker = server.broker()

    async def main() -> None:
        async with broker:
            newest = await _newest_id(broker.client, broker.keys.dead)  # raises if the server is not there
            if not as_json:
                click.echo(_HEADER)
            async for entry in _follow(broker, newest if since is None else since):
                if entry in filter_:
                    _print_json([entry]) if as_json else click.echo(_row(entry))
                    sys.stdout.flush()

    run(main)


def show(server: ServerOptions, id_: str, *, as_json: bool) -> None:
    """Print all fields of one dead letter. Raises CommandLineError if there is none."""
    broker = server.broker()

    async def main() -> DeadLetterFields | None:
        async with broker:
            async for entry in read_newest_first(broker, DeadLetterFilter()):
                if id_ in (entry.get("task_id"), entry["entry_id"]):
                    return entry
        return None

    entry = run(main)
    if entry is None:
        raise CommandLineError(f"no dead letter has the task id {id_!r}; list them with 'streamq dlq ls'")
    if as_json:
        _print_json([entry])
        return
    traceback = str(entry.pop("traceback", ""))
    for name, value in entry.items():
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        click.echo(f"{name:<12} {safe(text)}")
    if traceback:
        click.echo(f"\n{safe(traceback, lines=True).rstrip()}")


def replay(
    server: ServerOptions, ids: Sequence[str], filter_: DeadLetterFilter, *, retries: int | None, as_json: bool
) -> None:
    """Replay dead letters, oldest first."""
    from streamq.dead_letter import DeadLetterQueue  # noqa: PLC0415 - not needed to read

    broker = server.broker()

    async def main() -> list[dict[str, str]]:
        async with broker:
            task_ids = list(ids)
            if not task_ids:
                task_ids = [entry["task_id"] async for entry in read_newest_first(broker, filter_)][::-1]
            queue = DeadLetterQueue(broker=broker)
            return [
                {"task_id": one, "new_task_id": await queue.replay(task_id=one, retries=retries)} for one in task_ids
            ]

    replayed = run(main)
    for pair in replayed:
        click.echo(orjson.dumps(pair) if as_json else pair["new_task_id"])
    if not as_json:
        click.echo(f"{len(replayed)} replayed", err=True)


def purge(server: ServerOptions, *, as_json: bool) -> None:
    """Remove all dead letters."""
    from streamq.dead_letter import DeadLetterQueue  # noqa: PLC0415 - not needed to read

    broker = server.broker()

    async def main() -> int:
        async with broker:
            return await DeadLetterQueue(broker=broker).purge()

    removed = run(main)
    click.echo(orjson.dumps({"removed": removed}) if as_json else f"{removed} removed")


# --- reading -----------------------------------------------------------------------------------


async def read_newest_first(broker: RedisBroker, filter_: DeadLetterFilter) -> AsyncIterator[DeadLetterFields]:
    """Yield the dead letters that match the filter, newest first."""
    last = "+"
    while True:
        rows = await broker.client.command("XREVRANGE", broker.keys.dead, last, "-", "COUNT", _PAGE_SIZE)
        for entry_id, flat in rows:
            if (entry := _decoded(entry_id, flat)) in filter_:
                yield entry
        if len(rows) < _PAGE_SIZE:
            return
        last = f"({rows[-1][0].decode()}"


async def _first(entries: AsyncIterator[DeadLetterFields], count: int) -> AsyncIterator[DeadLetterFields]:
    async for entry in entries:
        yield entry
        count -= 1
        if count <= 0:
            return


async def _follow(broker: RedisBroker, last: str) -> AsyncIterator[DeadLetterFields]:
    """Yield entries after the entry id `last`, without end. If the connection is lost, wait and read on."""
    client, key = broker.client, broker.keys.dead
    failures = 0
    async with client.blocking() as connection:
        while True:
            command = ("XREAD", "COUNT", _PAGE_SIZE, "BLOCK", round(_BLOCK_SECONDS * 1000), "STREAMS", key, last)
            try:
                reply = await connection.read(command, block=_BLOCK_SECONDS, on_late_reply=lambda _: None)
            except redis.exceptions.ConnectionError as error:
                failures += 1
                if failures == 1:
                    click.echo(f"streamq: {error}; waiting for the server", err=True)
                await anyio.sleep(_OUTAGE_BACKOFF.ceiling(min(failures, 8)))
                continue
            failures = 0
            for _, rows in reply or ():
                for entry_id, flat in rows:
                    last = entry_id.decode()
                    yield _decoded(entry_id, flat)


async def _newest_id(client: Client, key: str) -> str:
    """Return the id of the newest entry. With it, unlike with `$`, XREAD misses nothing between two reads."""
    rows = await client.command("XREVRANGE", key, "+", "-", "COUNT", 1)
    return rows[0][0].decode() if rows else "0-0"


def _decoded(entry_id: bytes, flat: list[bytes]) -> DeadLetterFields:
    texts = [part.decode(errors="backslashreplace") for part in flat]
    entry: DeadLetterFields = {"entry_id": entry_id.decode(), **dict(zip(texts[::2], texts[1::2], strict=False))}
    for name in (*_JSON_FIELDS, *_NUMBER_FIELDS):
        try:
            entry[name] = orjson.loads(entry[name])
        except (KeyError, orjson.JSONDecodeError):
            continue  # absent, or not JSON: it stays text
    return entry


# --- printing ------------------------------------------------------------------------------------

_HEADER: Final = f"{'DIED AT (UTC)':<19}  {'TASK ID':<20}  {'TASK':<20}  {'REASON':<17}  {'RUNS':>4}  ERROR"


def _row(entry: DeadLetterFields) -> str:
    died = str(entry.get("died_at", ""))[:19].replace("T", " ")
    error = f"{entry.get('error_type', '')}: {entry.get('error', '')}".strip(": ")
    text = (
        f"{died:<19}  {entry.get('task_id', ''):<20}  {entry.get('task', ''):<20}  {entry.get('reason', ''):<17}  "
        f"{entry.get('attempts', ''):>4}  {error}"
    )
    text = safe(text)
    return text[: shutil.get_terminal_size().columns] if sys.stdout.isatty() else text


def safe(text: str, *, lines: bool = False) -> str:
    """Return a text without control characters: an error message of a task must not control the terminal."""
    kept = "\n\t" if lines else ""
    return "".join(char if char.isprintable() or char in kept else repr(char)[1:-1] for char in text)


def _print_json(entries: Sequence[DeadLetterFields]) -> None:
    for entry in entries:
        click.echo(orjson.dumps(entry))

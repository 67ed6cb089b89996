"""Carries out `streamq dlq`: reads the dead letter stream as it lies there, and prints it.

Reading is done here and not through `DeadLetterQueue`, because operators look at every field
that an entry has, in both directions and while it grows. Replaying and purging are its work.
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
from streamq.cli.options import Where
from streamq.cli.run_command import run
from streamq.cli.usage_errors import Problem
from streamq.client.client import Client
from streamq.tasks.retry_policy import Backoff

_PAGE: Final = 500  # entries of one read
_BLOCK: Final = 5.0  # seconds of one blocking read
_OUTAGE: Final = Backoff(base=0.2, factor=2.0, cap=3.0, jitter=False)
_AS_JSON: Final = ("args", "kwargs", "headers")
_NUMBERS: Final = ("attempts", "starts", "retries", "priority")

Letter = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters are meant; None takes any."""

    task: str | None = None
    reason: str | None = None

    def __contains__(self, letter: Letter) -> bool:
        return self.task in (None, letter.get("task")) and self.reason in (None, letter.get("reason"))


# --- commands ----------------------------------------------------------------------------------


def ls(where: Where, wanted: Wanted, *, count: int, as_json: bool) -> None:
    """Print the newest dead letters, newest first."""
    broker = where.broker()

    async def main() -> tuple[list[Letter], int]:
        async with broker:
            letters = [letter async for letter in _some(newest_first(broker, wanted), count)]
            return letters, int(await broker.client.command("XLEN", broker.keys.dead))

    letters, total = run(main)
    if as_json:
        _print_json(letters)
        return
    if letters:
        click.echo(_HEAD)
    for letter in letters:
        click.echo(_line(letter))
    where_from = f"{broker.keys.dead} holds {total} dead letter{'s' * (total != 1)}"
    click.echo(where_from if len(letters) == total else f"{where_from}, {len(letters)} shown", err=True)


def tail(where: Where, wanted: Wanted, *, since: str | None, as_json: bool) -> None:
    """Print dead letters as they come, until interrupted."""
    broker = where.broker()

    async def main() -> None:
        async with broker:
            newest = await _end(broker.client, broker.keys.dead)  # and so the server is there
            if not as_json:
                click.echo(_HEAD)
            async for letter in _followed(broker, newest if since is None else since):
                if letter in wanted:
                    _print_json([letter]) if as_json else click.echo(_line(letter))
                    sys.stdout.flush()

    run(main)


def show(where: Where, identity: str, *, as_json: bool) -> None:
    """Print one dead letter whole. Raises Problem if there is none."""
    broker = where.broker()

    async def main() -> Letter | None:
        async with broker:
            async for letter in newest_first(broker, Wanted()):
                if identity in (letter.get("task_id"), letter["entry_id"]):
                    return letter
        return None

    letter = run(main)
    if letter is None:
        raise Problem(f"no dead letter has the task id {identity!r}; list them with 'streamq dlq ls'")
    if as_json:
        _print_json([letter])
        return
    trace = str(letter.pop("traceback", ""))
    for name, value in letter.items():
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        click.echo(f"{name:<12} {safe(text)}")
    if trace:
        click.echo(f"\n{safe(trace, lines=True).rstrip()}")


def replay(where: Where, ids: Sequence[str], wanted: Wanted, *, retries: int | None, as_json: bool) -> None:
    """Send dead letters again, the oldest first."""
    from streamq.dead_letter import DeadLetterQueue  # noqa: PLC0415 - not needed to read

    broker = where.broker()

    async def main() -> list[dict[str, str]]:
        async with broker:
            chosen = list(ids)
            if not chosen:
                chosen = [letter["task_id"] async for letter in newest_first(broker, wanted)][::-1]
            queue = DeadLetterQueue(broker=broker)
            return [{"task_id": one, "new_task_id": await queue.replay(task_id=one, retries=retries)} for one in chosen]

    done = run(main)
    for pair in done:
        click.echo(orjson.dumps(pair) if as_json else pair["new_task_id"])
    if not as_json:
        click.echo(f"{len(done)} sent again", err=True)


def purge(where: Where, *, as_json: bool) -> None:
    """Remove all dead letters."""
    from streamq.dead_letter import DeadLetterQueue  # noqa: PLC0415 - not needed to read

    broker = where.broker()

    async def main() -> int:
        async with broker:
            return await DeadLetterQueue(broker=broker).purge()

    removed = run(main)
    click.echo(orjson.dumps({"removed": removed}) if as_json else f"{removed} removed")


# --- reading -----------------------------------------------------------------------------------


async def newest_first(broker: RedisBroker, wanted: Wanted) -> AsyncIterator[Letter]:
    """Yield the dead letters that are wanted, the newest first."""
    last = "+"
    while True:
        rows = await broker.client.command("XREVRANGE", broker.keys.dead, last, "-", "COUNT", _PAGE)
        for entry_id, flat in rows:
            if (letter := _letter(entry_id, flat)) in wanted:
                yield letter
        if len(rows) < _PAGE:
            return
        last = f"({rows[-1][0].decode()}"


async def _some(letters: AsyncIterator[Letter], count: int) -> AsyncIterator[Letter]:
    async for letter in letters:
        yield letter
        count -= 1
        if count <= 0:
            return


async def _followed(broker: RedisBroker, last: str) -> AsyncIterator[Letter]:
    """Yield what comes into the stream after the entry `last`, for ever; an outage is waited for."""
    client, key = broker.client, broker.keys.dead
    failures = 0
    async with client.blocking() as connection:
        while True:
            command = ("XREAD", "COUNT", _PAGE, "BLOCK", round(_BLOCK * 1000), "STREAMS", key, last)
            try:
                reply = await connection.read(command, block=_BLOCK, on_stranded=lambda _: None)
            except redis.exceptions.ConnectionError as error:
                failures += 1
                if failures == 1:
                    click.echo(f"streamq: {error}; waiting for the server", err=True)
                await anyio.sleep(_OUTAGE.ceiling(min(failures, 8)))
                continue
            failures = 0
            for _, rows in reply or ():
                for entry_id, flat in rows:
                    last = entry_id.decode()
                    yield _letter(entry_id, flat)


async def _end(client: Client, key: str) -> str:
    """Return the id of the newest entry: reading on from there misses nothing between two reads."""
    rows = await client.command("XREVRANGE", key, "+", "-", "COUNT", 1)
    return rows[0][0].decode() if rows else "0-0"


def _letter(entry_id: bytes, flat: list[bytes]) -> Letter:
    texts = [part.decode(errors="backslashreplace") for part in flat]
    letter: Letter = {"entry_id": entry_id.decode(), **dict(zip(texts[::2], texts[1::2], strict=False))}
    for name in (*_AS_JSON, *_NUMBERS):
        try:
            letter[name] = orjson.loads(letter[name])
        except (KeyError, orjson.JSONDecodeError):
            continue  # not there, or not ours to understand: it stays text
    return letter


# --- printing ------------------------------------------------------------------------------------

_HEAD: Final = f"{'DIED AT (UTC)':<19}  {'TASK ID':<20}  {'TASK':<20}  {'REASON':<17}  {'RUNS':>4}  ERROR"


def _line(letter: Letter) -> str:
    died = str(letter.get("died_at", ""))[:19].replace("T", " ")
    error = f"{letter.get('error_type', '')}: {letter.get('error', '')}".strip(": ")
    text = (
        f"{died:<19}  {letter.get('task_id', ''):<20}  {letter.get('task', ''):<20}  {letter.get('reason', ''):<17}  "
        f"{letter.get('attempts', ''):>4}  {error}"
    )
    text = safe(text)
    return text[: shutil.get_terminal_size().columns] if sys.stdout.isatty() else text


def safe(text: str, *, lines: bool = False) -> str:
    """Return a text that cannot drive a terminal: what a task said is not ours to trust."""
    kept = "\n\t" if lines else ""
    return "".join(char if char.isprintable() or char in kept else repr(char)[1:-1] for char in text)


def _print_json(letters: Sequence[Letter]) -> None:
    for letter in letters:
        click.echo(orjson.dumps(letter))

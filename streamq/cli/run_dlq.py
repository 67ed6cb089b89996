"""Runs `streamq dlq`: prints the entries of the dead letter stream, with every field, known or not.

Replaying and removing go through `DeadLetterQueue`; many at once: `run_dlq_bulk.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from streamq.broker import RedisBroker
from streamq.cli import output
from streamq.cli.read_dead_letters import DeadLetterFields, FieldFilter, follow, newest_id, read_newest_first
from streamq.cli.run_command import run
from streamq.cli.server_options import ServerOptions
from streamq.cli.usage_errors import CommandLineError
from streamq.errors import BrokerUnavailableError, DeadLetterNotFoundError, OutcomeUnknownError, StreamqError
from streamq.wire.bounds import ATTEMPT
from streamq.wire.command_line import in_quotes, streamq_command
from streamq.wire.message import entry_ms, iso
from streamq.wire.printable import json_line, printable
from streamq.wire.stored_numbers import stored_count

_LONGEST_VALUE: Final = 1 << 20  # characters of a field that `show` prints

# --- commands ----------------------------------------------------------------------------------


def ls(server: ServerOptions, filter_: FieldFilter, *, count: int, as_json: bool) -> None:
    """Print the newest dead letters, newest first."""
    broker = server.lasting_broker()

    async def main() -> tuple[list[DeadLetterFields], int]:
        async with broker:
            entries = [entry async for entry in _first(read_newest_first(broker, filter_), count)]
            return entries, int(await broker.store.one(("XLEN", broker.keys.dead)))

    entries, total = run(main)
    if as_json:
        for entry in entries:
            output.result_json(entry)
        return
    if entries:
        output.result(HEADER, cut=True)
    for entry in entries:
        output.result(row(entry), cut=True)
    summary = f"{broker.keys.dead} holds {total} dead letter{'s' * (total != 1)}"
    output.note(summary if len(entries) == total else f"{summary}, {len(entries)} shown")


def tail(server: ServerOptions, filter_: FieldFilter, *, since: str | float | None, as_json: bool) -> None:
    """Print new dead letters as they arrive, until interrupted."""
    broker = server.lasting_broker()

    async def main() -> None:
        async with broker:
            newest = await newest_id(broker.store, broker.keys.dead)  # raises if the server is not there
            if not as_json:
                output.result(HEADER, cut=True)
            begin = newest if since is None else await _start_id(broker, since)
            async for entry in follow(broker, begin, filter_):
                output.result_json(entry) if as_json else output.result(row(entry), cut=True)
                output.flush()

    run(main)


async def _start_id(broker: RedisBroker, since: str | float) -> str:
    """Return the entry id after which to start: `since` itself, or the one of that many seconds ago."""
    if isinstance(since, str):
        return since
    await broker.store.compare_clocks()
    return f"{max(0, round((broker.store.clock.now() - since) * 1000))}-0"


def show(server: ServerOptions, id_: str, filter_: FieldFilter, *, as_json: bool) -> None:
    """Print all fields of one dead letter. Raises CommandLineError if there is none."""
    broker = server.lasting_broker()

    async def main() -> DeadLetterFields | None:
        async with broker:
            async for entry in read_newest_first(broker, filter_):
                if id_ in (entry.get("task_id"), entry["entry_id"]):
                    return entry
        return None

    entry = run(main)
    if entry is None:
        raise CommandLineError(str(_not_found(broker, id_)))
    if as_json:
        output.result_json(entry)
        return
    traceback = str(entry.pop("traceback", ""))
    for name, value in entry.items():
        text = value if isinstance(value, str) else json_line(value)
        output.result(f"{printable(name):<12} {text}", limit=_LONGEST_VALUE)
    if traceback:
        output.block(f"\n{traceback}", limit=_LONGEST_VALUE)


def replay(server: ServerOptions, ids: Sequence[str], *, retries: int | None, as_json: bool) -> int:
    """Replay the newest dead letter of each id, and print each at once. Return the exit code."""
    from streamq.dead_letter import DeadLetterQueue  # noqa: PLC0415 - not needed to read

    broker = server.lasting_broker()
    replayed = passed_over = 0

    async def main() -> None:
        nonlocal replayed, passed_over
        async with broker:
            queue = DeadLetterQueue(broker=broker)
            async for dead_letter in queue.select(ids):
                try:
                    if isinstance(dead_letter, str):
                        raise _not_found(broker, dead_letter)
                    new_id = await queue.replay_entry(dead_letter, retries=retries)
                except (BrokerUnavailableError, OutcomeUnknownError):
                    raise
                except StreamqError as error:
                    passed_over += 1
                    output.note(f"streamq: {error}")
                    continue
                replayed += 1
                pair = {"task_id": dead_letter.task_id, "new_task_id": new_id}
                output.result_json(pair) if as_json else output.result(new_id)
                output.flush()

    run(main)
    if not as_json:
        output.note(f"{replayed} replayed")
    return output.passed_over(passed_over, "passed over")


def rm(server: ServerOptions, ids: Sequence[str], *, as_json: bool) -> int:
    """Remove the newest dead letter of each id, and print which were there. Return the exit code."""
    from streamq.dead_letter import DeadLetterQueue  # noqa: PLC0415 - not needed to read

    broker = server.lasting_broker()

    async def main() -> bool:
        every = True
        async with broker:
            found = [one async for one in DeadLetterQueue(broker=broker).select(ids)]
            for id_, letter in zip(dict.fromkeys(ids), found, strict=True):
                removed = not isinstance(letter, str) and bool(
                    await broker.store.one(("XDEL", broker.keys.dead, letter.entry_id))
                )
                every &= removed
                pair = {"id": id_, "removed": removed}
                output.result_json(pair) if as_json else output.result(
                    f"{id_}: {'removed' if removed else 'not found'}"
                )
                output.flush()
        return every

    return int(not run(main))


def _not_found(broker: RedisBroker, id_: str) -> DeadLetterNotFoundError:
    return DeadLetterNotFoundError(id_, in_quotes(streamq_command(broker.keys, "dlq", "ls")))


async def _first(entries: AsyncIterator[DeadLetterFields], count: int) -> AsyncIterator[DeadLetterFields]:
    async for entry in entries:
        yield entry
        count -= 1
        if count <= 0:
            return


# --- printing ------------------------------------------------------------------------------------

HEADER: Final = f"{'DIED AT (UTC)':<19}  {'TASK ID':<20}  {'TASK':<20}  {'REASON':<17}  {'RUNS':>4}  ERROR"
_LONGEST_CELL: Final = 200  # characters of one value in a row


def row(entry: DeadLetterFields) -> str:
    """Return one dead letter as a row below `HEADER`."""

    def cell(name: str) -> str:
        value = entry.get(name, "")
        return printable(value if isinstance(value, str) else json_line(value), _LONGEST_CELL)

    entry_id = entry["entry_id"]
    died = (cell("died_at") or iso(entry_ms(entry_id.encode()) / 1000))[:19].replace("T", " ")
    error = f"{cell('error_type')}: {cell('error')}".strip(": ")
    known = stored_count(entry.get("attempts"), int(ATTEMPT.highest))
    runs = "?" if known is None else str(known)
    id_ = cell("task_id") or entry_id
    return f"{died:<19}  {id_:<20}  {cell('task'):<20}  {cell('reason'):<17}  {runs:>4}  {error}"

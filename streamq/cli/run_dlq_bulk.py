"""Runs the commands of `streamq dlq` that concern many dead letters at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final

import click

from streamq.broker import RedisBroker
from streamq.cli import output
from streamq.cli.read_dead_letters import decoded
from streamq.cli.run_command import run
from streamq.cli.run_dlq import HEADER, row
from streamq.cli.server_options import ServerOptions
from streamq.dead_letter import (
    DeadLetterFilter,
    DeadLetterOperation,
    DeadLetterQueue,
    DeadLetterStats,
    LetterOutcome,
    OperationProgress,
    Redaction,
)
from streamq.tasks.outcome import Reason
from streamq.tasks.task import Task
from streamq.wire.command_line import streamq_command

_PIECE: Final = 10_000  # letters of one call of stats
_LONGEST_CELL: Final = 60  # characters of a name in a table


def search(
    server: ServerOptions, filter_: DeadLetterFilter, redact: Redaction | None, *, count: int, after: str | None,
    examine: int, as_json: bool,
) -> None:  # fmt: skip
    """Print the newest dead letters that match, and how far the search has looked."""
    broker = server.lasting_broker()
    found, examined = 0, 0
    at = after

    async def main() -> None:
        nonlocal found, examined, at
        async with broker:
            queue = DeadLetterQueue(broker=broker)
            while True:
                result = await queue.search(filter_, count=count - found, after=at, examine=examine - examined)
                if result.letters and not found and not as_json:
                    output.result(HEADER, cut=True)
                for letter in result.letters:
                    fields = decoded(letter.entry_id.encode(), redact.flat(letter.flat) if redact else letter.flat)
                    output.result_json(fields) if as_json else output.result(row(fields), cut=True)
                found, examined, at = found + len(result.letters), examined + result.examined, result.after
                output.flush()
                if at is None or found >= count or examined >= examine:
                    return

    run(main)
    if as_json:
        output.result_json({"examined": examined, "found": found, "after": at})
        return
    rest = "" if at is None else f"; go on with --after {at}"
    output.note(f"{_counted(examined)} looked at, {found:,} found{rest}")


def stats(server: ServerOptions, filter_: DeadLetterFilter, *, as_json: bool) -> None:
    """Print how many dead letters there are of each task, type of error and reason."""
    broker = server.lasting_broker()

    async def main() -> DeadLetterStats:
        async with broker:
            queue = DeadLetterQueue(broker=broker)
            found = await queue.stats(filter_, examine=_PIECE)
            while found.after is not None:
                found = await queue.stats(filter_, before=found, examine=_PIECE)
            return found

    found = run(main)
    if found.groups and not as_json:
        output.result(
            f"{'COUNT':>7}  {'FIRST (UTC)':<19}  {'LAST (UTC)':<19}  {'REASON':<17}  {'EXAMPLE':<20}  TASK: ERROR"
        )
    for one in found.groups:
        first, last = (f"{time:%Y-%m-%d %H:%M:%S}" for time in (one.first, one.last))
        if as_json:
            output.result_json({
                "task": one.task_name, "error_type": one.error_type, "reason": one.reason, "count": one.count,
                "first": one.first.isoformat(), "last": one.last.isoformat(), "example": one.example,
            })  # fmt: skip
        else:
            what = f"{one.task_name[:_LONGEST_CELL]}: {one.error_type[:_LONGEST_CELL]}"
            output.result(
                f"{one.count:>7}  {first}  {last}  {one.reason[:17]:<17}  {one.example:<20}  {what}", cut=True
            )
    others = f"; {found.other:,} of other kinds" if found.other else ""
    output.note(f"{_counted(found.matched)} of {found.examined:,} counted{others}")


def replay(
    server: ServerOptions, filter_: DeadLetterFilter, values: Mapping[str, Any], *, retries: int | None,
    limit: int | None, rate: float | None, dry_run: bool, as_json: bool,
) -> int:  # fmt: skip
    """Replay the dead letters that match in one operation. Return the exit code."""
    broker, tasks = server.lasting_broker(), _tasks(server)
    runner = _Runner(broker, tasks, as_json=as_json)

    async def main() -> None:
        async with broker:
            await runner.run(await DeadLetterQueue(broker=broker).start(
                "replay", filter_, limit=limit, rate=rate, retries=retries, set_arguments=values, dry_run=dry_run
            ))  # fmt: skip

    runner.call(main)
    return runner.summary()


def purge(
    server: ServerOptions, filter_: DeadLetterFilter, *, limit: int | None, rate: float | None, dry_run: bool,
    ask: bool, as_json: bool,
) -> int:  # fmt: skip
    """Remove the dead letters that match in one operation. Return the exit code."""
    broker = server.lasting_broker()
    runner = _Runner(broker, (), as_json=as_json)
    counted: DeadLetterOperation | None = None

    async def count() -> DeadLetterOperation:
        async with broker:
            operation = await DeadLetterQueue(broker=broker).start(
                "purge", filter_, limit=limit, rate=None, dry_run=True
            )
            await runner.run(operation)
            return operation

    async def main() -> None:
        async with broker:
            queue = DeadLetterQueue(broker=broker)
            begun = await (counted.confirm() if counted else queue.start("purge", filter_, limit=limit, rate=rate))
            await runner.run(begun)

    if ask or dry_run:
        counted = run(count)
    if counted is not None and not dry_run:
        which = f" with {filter_}" if filter_ else ""
        click.confirm(f"Remove {_counted(counted.progress.done)}{which}?", abort=True, err=True)
    if not dry_run:
        runner.call(main)
    return runner.summary()


def resume(server: ServerOptions, operation_id: str, *, as_json: bool) -> int:
    """Go on with an operation. Return the exit code of the whole."""
    broker, tasks = server.lasting_broker(), _tasks(server)
    runner = _Runner(broker, tasks, as_json=as_json)

    async def main() -> None:
        async with broker:
            await runner.run(await DeadLetterQueue(broker=broker).operation(operation_id))

    runner.call(main)
    return runner.summary()


def stop(server: ServerOptions, operation_id: str, *, as_json: bool) -> None:
    """Stop an operation, and print how far it is."""
    broker = server.lasting_broker()

    async def main() -> OperationProgress:
        async with broker:
            return await (await DeadLetterQueue(broker=broker).operation(operation_id)).stop()

    progress = run(main)
    output.result_json(_as_json(progress)) if as_json else output.result(_line(progress))


def operations(server: ServerOptions, *, as_json: bool) -> None:
    """Print the operations that are kept, and how far each is."""
    broker = server.lasting_broker()

    async def main() -> list[OperationProgress]:
        async with broker:
            return await DeadLetterQueue(broker=broker).operations()

    for one in run(main):
        output.result_json(_as_json(one)) if as_json else output.result(_line(one))


def export(server: ServerOptions, filter_: DeadLetterFilter, redact: Redaction | None) -> None:
    """Print the dead letters that match as lines of JSON."""
    broker = server.lasting_broker()
    count = 0

    async def main() -> None:
        nonlocal count
        async with broker, aclosing(DeadLetterQueue(broker=broker).export(filter_, redact=redact)) as lines:
            async for line in lines:
                output.result_line(line)
                count += 1
                if count % 100 == 0:
                    output.flush()

    run(main)
    output.flush()
    output.note(f"{_counted(count)} exported")


def import_lines(server: ServerOptions, lines: Iterable[bytes], *, as_json: bool) -> int:
    """Add the dead letters of these lines. Return the exit code."""
    broker = server.lasting_broker()
    added = passed_over = 0

    async def main() -> None:
        nonlocal added, passed_over
        async with broker, aclosing(DeadLetterQueue(broker=broker).import_lines(lines)) as found:
            async for one in found:
                if one.error is not None:
                    passed_over += 1
                    output.note(f"streamq: {one.error}")
                    continue
                added += 1
                if as_json:
                    output.result_json({"line": one.line, "entry_id": one.entry_id})

    try:
        run(main)
    finally:
        output.note(f"{_counted(added)} imported")
    return output.passed_over(passed_over, "passed over")


# --- operations ----------------------------------------------------------------------------------


class _Runner:
    """Runs one operation, prints what becomes of each letter, and says at the end what was done."""

    def __init__(self, broker: RedisBroker, tasks: Iterable[Task[Any, Any]], *, as_json: bool) -> None:
        self._broker = broker
        self._tasks = tasks
        self._as_json = as_json
        self._operation: DeadLetterOperation | None = None
        self._crashed = 0  # letters that had crashed their workers

    def __repr__(self) -> str:
        return f"<_Runner of {self._operation!r}>"

    def call(self, main: Any) -> None:
        """Run a function. If it does not come to its end, say how to go on with its operation."""
        try:
            run(main)
        except BaseException:
            operation = self._operation
            if operation is not None and not operation.dry_run and operation.progress.state != "finished":
                again = streamq_command(self._broker.keys, "dlq", "resume", operation.id)
                output.note(f"streamq: {operation.progress.done:,} letters are done; to go on: {again}")
            raise

    async def run(self, operation: DeadLetterOperation) -> None:
        """Run an operation, and print each letter that was replayed or passed over."""
        self._operation = operation
        async with aclosing(operation.run(tasks=self._tasks)) as outcomes:
            async for one in outcomes:
                self._print(one, operation)

    def _print(self, one: LetterOutcome, operation: DeadLetterOperation) -> None:
        if one.error is not None:
            output.note(f"streamq: {one.error}")
        elif operation.progress.kind == "replay":
            self._crashed += one.letter.reason == Reason.CRASH_LOOP and operation.progress.filter.reason is None
            pair = {"task_id": one.letter.task_id, "new_task_id": one.new_task_id or None}
            output.result_json(pair) if self._as_json else output.result(one.new_task_id or one.letter.task_id)
            output.flush()

    def summary(self) -> int:
        """Say what was done, and return the exit code: 1 if a letter was passed over, or the operation was stopped."""
        operation = self._operation
        if operation is None:
            return 0
        now, would = operation.progress, "would be " if operation.dry_run else ""
        if now.kind == "purge":
            key = "would_be_removed" if operation.dry_run else "removed"
            output.result_json({key: now.done}) if self._as_json else output.result(f"{now.done} {would}removed")
        elif not self._as_json:
            output.note(f"{now.done} {would}replayed")
        if self._crashed and not operation.dry_run:
            output.note(
                f"streamq: {self._crashed} of them had crashed their workers (crash_loop), and may crash max_crashes "
                "more each; to leave such letters where they are, choose with --reason, such as --reason "
                "retries_exhausted"
            )
        code = output.passed_over(now.passed_over, "passed over")
        if now.state == "stopped":
            again = streamq_command(self._broker.keys, "dlq", "resume", now.id)
            output.note(f"streamq: it was stopped; to go on: {again}")
            return 1
        return code


def _tasks(server: ServerOptions) -> Iterable[Task[Any, Any]]:
    loaded = server.loaded_app()
    return loaded.tasks if loaded is not None else ()


def _as_json(one: OperationProgress) -> dict[str, Any]:
    return {
        "id": one.id, "kind": one.kind, "state": one.state, "filter": str(one.filter), "examined": one.examined,
        "done": one.done, "passed_over": one.passed_over, "total": one.total, "limit": one.limit, "rate": one.rate,
        "retries": one.retries, "set": one.set_arguments, "edited": one.edited, "started_by": one.started_by,
        "started_at": one.started_at.isoformat(), "changed_at": one.changed_at.isoformat(),
        "after": one.after, "last_error": one.last_error,
    }  # fmt: skip


def _line(one: OperationProgress) -> str:
    return (
        f"{one.id}  {one.kind} {one.state}, last step {one.changed_at:%Y-%m-%d %H:%M:%S} UTC: {one.done:,} done, "
        f"{one.passed_over:,} passed over, {one.examined:,} of {one.total:,} looked at; filter: {one.filter}"
    )


def _counted(count: int) -> str:
    return f"{count:,} dead letter{'s' * (count != 1)}"

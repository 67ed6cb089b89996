"""The dead letters of a queue, for a thread: each call blocks, and is that of `DeadLetterQueue` otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, overload

from streamq.broker import RedisBroker
from streamq.dead_letter.editing import Edit
from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.filter import DeadLetterFilter
from streamq.dead_letter.lines import Imported
from streamq.dead_letter.operation import DeadLetterOperation, LetterOutcome
from streamq.dead_letter.progress import Kind, OperationProgress
from streamq.dead_letter.queue import DeadLetterQueue
from streamq.dead_letter.redaction import Redaction
from streamq.dead_letter.searching import DeadLetterStats, SearchResult
from streamq.sync.drive import iterate, refuse_in_event_loop, run_now
from streamq.tasks.task import Task
from streamq.wire.dead_letter_fields import DeadLetterBound

_ALL: Final = DeadLetterFilter()
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class SyncDeadLetterQueue:
    """Reads, replays and removes dead letters. Made by `SyncBroker.dead_letter_queue`.

    Each method raises what that of `streamq.dead_letter.DeadLetterQueue` raises.
    """

    def __init__(self, broker: RedisBroker, *, max_size: int | None, max_age: float | timedelta | None) -> None:
        self._queue = DeadLetterQueue(broker=broker, max_size=max_size, max_age=max_age)

    def __repr__(self) -> str:
        return f"<Sync{repr(self._queue)[1:]}"

    @property
    def bound(self) -> DeadLetterBound:
        """How much the stream keeps."""
        return self._queue.bound

    def size(self) -> int:
        """Return the number of dead letters."""
        refuse_in_event_loop()
        return run_now(self._queue.size())

    def peek(
        self, count: int = 20, *, after: str | None = None, oldest_first: bool = False,
        task_name: str | None = None, reason: str | None = None, error_type: str | None = None,
    ) -> list[DeadLetterEntry]:  # fmt: skip
        """Return up to `count` dead letters, newest first. They stay in the stream. `after` gets the next page."""
        refuse_in_event_loop()
        return run_now(self._queue.peek(
            count, after=after, oldest_first=oldest_first, task_name=task_name, reason=reason, error_type=error_type
        ))  # fmt: skip

    def search(
        self, matching: DeadLetterFilter = _ALL, *, count: int = 20, after: str | None = None,
        oldest_first: bool = False, examine: int = 10_000,
    ) -> SearchResult:  # fmt: skip
        """Return up to `count` dead letters that match, newest first, and how far this call has looked."""
        refuse_in_event_loop()
        return run_now(
            self._queue.search(matching, count=count, after=after, oldest_first=oldest_first, examine=examine)
        )

    def stats(
        self, matching: DeadLetterFilter = _ALL, *, before: DeadLetterStats | None = None, examine: int = 10_000
    ) -> DeadLetterStats:
        """Return the dead letters that match, counted by task, type of error and reason. `before` goes on."""
        refuse_in_event_loop()
        return run_now(self._queue.stats(matching, before=before, examine=examine))

    def find(self, task_id: str) -> DeadLetterEntry:
        """Return the newest dead letter of a task, or that of an entry id. Raises DeadLetterNotFoundError."""
        refuse_in_event_loop()
        return run_now(self._queue.find(task_id))

    def tail(self, *, after: str | None = None) -> Iterator[DeadLetterEntry]:
        """Yield new dead letters as they arrive, or all `after` an entry id, without end. Blocks for each."""
        return iterate(self._queue.tail(after=after))

    @overload
    def replay(self, *, task_id: str, retries: int | None = None) -> str: ...
    @overload
    def replay(
        self, *, task_name: str | None = None, reason: str | None = None, error_type: str | None = None,
        limit: int | None = None, retries: int | None = None,
    ) -> list[str]: ...  # fmt: skip
    def replay(
        self, *, task_id: str | None = None, task_name: str | None = None, reason: str | None = None,
        error_type: str | None = None, limit: int | None = None, retries: int | None = None,
    ) -> str | list[str]:  # fmt: skip
        """Enqueue dead letters again, each in one atomic step, and return their new task ids.

        `task_id` replays one task; without it, all that match, at most `limit`. See `DeadLetterQueue.replay`.
        """
        refuse_in_event_loop()
        if task_id is not None and limit is None and not (task_name or reason or error_type):
            return run_now(self._queue.replay(task_id=task_id, retries=retries))
        given = {"task_id": task_id} if task_id is not None else {}  # refused there, with what to do
        return run_now(self._queue.replay(
            task_name=task_name, reason=reason, error_type=error_type, limit=limit, retries=retries, **given
        ))  # fmt: skip

    def purge(
        self, *, older_than: float | timedelta | None = None, task_name: str | None = None,
        reason: str | None = None, error_type: str | None = None,
    ) -> int:  # fmt: skip
        """Remove all dead letters, or those that match, and return how many were removed."""
        refuse_in_event_loop()
        return run_now(self._queue.purge(
            older_than=older_than, task_name=task_name, reason=reason, error_type=error_type
        ))  # fmt: skip

    def start(
        self, kind: Kind, matching: DeadLetterFilter = _ALL, *, limit: int | None = None, rate: float | None = None,
        retries: int | None = None, set_arguments: Mapping[str, Any] = _NOTHING, edits: bool = False,
        dry_run: bool = False,
    ) -> SyncDeadLetterOperation:  # fmt: skip
        """Begin to "replay" or "purge" the letters that match. `run` of the result carries it out."""
        refuse_in_event_loop()
        return SyncDeadLetterOperation(run_now(self._queue.start(
            kind, matching, limit=limit, rate=rate, retries=retries, set_arguments=set_arguments, edits=edits,
            dry_run=dry_run,
        )))  # fmt: skip

    def operation(self, operation_id: str) -> SyncDeadLetterOperation:
        """Return an operation that was begun, to stop or resume it. Raises OperationNotFoundError."""
        refuse_in_event_loop()
        return SyncDeadLetterOperation(run_now(self._queue.operation(operation_id)))

    def operations(self) -> list[OperationProgress]:
        """Return the operations of the last days and how far each is, the newest first: 100 at most."""
        refuse_in_event_loop()
        return run_now(self._queue.operations())

    def export(self, matching: DeadLetterFilter = _ALL, *, redact: Redaction | None = None) -> Iterator[bytes]:
        """Yield the dead letters that match and are there now, each as a line of JSON, oldest first."""
        return iterate(self._queue.export(matching, redact=redact))

    def import_lines(self, lines: Iterable[bytes | str]) -> Iterator[Imported]:
        """Add dead letters that `export` has written, and yield what became of each line."""
        return iterate(self._queue.import_lines(lines))


class SyncDeadLetterOperation:
    """An operation over dead letters. Made by `SyncDeadLetterQueue.start` and `SyncDeadLetterQueue.operation`.

    Each method raises what that of `streamq.dead_letter.DeadLetterOperation` raises.
    """

    def __init__(self, operation: DeadLetterOperation) -> None:
        self._operation = operation

    def __repr__(self) -> str:
        return f"<Sync{repr(self._operation)[1:]}"

    @property
    def id(self) -> str:
        """The id with which `SyncDeadLetterQueue.operation` finds it again."""
        return self._operation.id

    @property
    def progress(self) -> OperationProgress:
        """How far it was when this object last heard of it."""
        return self._operation.progress

    def refresh(self) -> OperationProgress:
        """Return how far it is by now."""
        refuse_in_event_loop()
        return run_now(self._operation.refresh())

    def stop(self) -> OperationProgress:
        """Have it stop before its next letter, whichever process runs it, and return how far it is."""
        refuse_in_event_loop()
        return run_now(self._operation.stop())

    def confirm(self) -> SyncDeadLetterOperation:
        """Return what a dry run stands for, begun."""
        refuse_in_event_loop()
        return SyncDeadLetterOperation(run_now(self._operation.confirm()))

    def run(self, *, edit: Edit | None = None, tasks: Iterable[Task[Any, Any]] = ()) -> Iterator[LetterOutcome]:
        """Carry it out, from where it is, and yield what becomes of each letter that matches, oldest first."""
        return iterate(self._operation.run(edit=edit, tasks=tasks))

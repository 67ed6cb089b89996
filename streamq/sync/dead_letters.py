"""The dead letters of a queue, for a thread: each call blocks, and is that of `DeadLetterQueue` otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import overload

from streamq.broker import RedisBroker
from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.queue import DeadLetterQueue
from streamq.sync.drive import iterate, refuse_in_event_loop, run_now
from streamq.wire.dead_letter_fields import DeadLetterBound


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

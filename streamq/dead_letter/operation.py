"""One operation over many dead letters: replay, edit and replay, or purge. It can be stopped, killed and resumed.

It goes through the stream once, oldest first, up to the letter that was the newest when it began. A letter moves in one
atomic step, which also notes how far the operation is. So a letter is moved exactly once, whatever is killed and
however often it is resumed. Each step names the place from which it goes on: after a step that was refused, those that
were sent behind it do nothing, so nothing is skipped. Of two processes that run one operation, one goes on.

It costs one step a letter, in pipelines of up to `PAGE` steps, and one read for each page.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Any, Final

from streamq.broker import RedisBroker
from streamq.client import Command
from streamq.dead_letter.editing import ArgumentEditor, Edit
from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.groups import with_existing_groups
from streamq.dead_letter.pages import PAGE, PageReader
from streamq.dead_letter.progress import ERROR_KEPT, KEPT, MOST, OperationProgress, State
from streamq.dead_letter.replaying import Replay, checked_replay, stream_of
from streamq.dead_letter.selection import order
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import (
    BrokerError,
    ConfigurationError,
    DeadLetterNotFoundError,
    OperationNotFoundError,
    OperationTakenError,
    StreamqError,
)
from streamq.queue.store import Store
from streamq.scripts import step
from streamq.tasks.task import Task
from streamq.wire.message import utf8

_OWN_CAUSES: Final = frozenset({"WRONGTYPE", "ERR", "CLOSED"})  # codes of what the server refuses about one letter
_BATCHES_A_SECOND: Final = 10  # at least, of an operation with a rate


@dataclass(frozen=True, slots=True)
class LetterOutcome:
    """What an operation did with one dead letter.

    `new_task_id` is that of its replay, empty if it was removed, or in a dry run. `error` says why it was passed over.
    """

    letter: DeadLetterEntry
    new_task_id: str = ""
    error: StreamqError | None = None


class DeadLetterOperation:
    """An operation over dead letters, made by `DeadLetterQueue.start` and `DeadLetterQueue.operation`.

    `progress` is how far it was when this object last heard of it. With `dry_run` it changes nothing.
    """

    def __init__(self, broker: RedisBroker, progress: OperationProgress, *, dry_run: bool = False) -> None:
        self._broker = broker
        self.progress = self._first = progress
        self.dry_run = dry_run

    def __repr__(self) -> str:
        now = self.progress
        return f"<DeadLetterOperation {now.id} {now.kind} {now.state} done={now.done} passed_over={now.passed_over}>"

    @property
    def id(self) -> str:
        """The id with which `DeadLetterQueue.operation` finds it again."""
        return self.progress.id

    @property
    def _key(self) -> str:
        return self._broker.keys.operation(self.id)

    async def refresh(self) -> OperationProgress:
        """Return how far it is by now. Raises OperationNotFoundError if it is not kept any more."""
        if not self.dry_run:
            self.progress = await read_progress(self._broker.store, self.id)
        return self.progress

    async def confirm(self) -> DeadLetterOperation:
        """Return what a dry run stands for, begun: over the letters that were there when that began, and no newer ones.

        Raises ConfigurationError for an operation that is none, BrokerError if the server cannot be used.
        """
        if not self.dry_run:
            raise ConfigurationError(f"the operation {self.id} is no dry run: run it")
        await begin(self._broker.store, self._first)
        return DeadLetterOperation(self._broker, self._first)

    async def stop(self) -> OperationProgress:
        """Have it stop before its next letter, whichever process runs it, and return how far it is.

        `run` goes on with it. Raises OperationNotFoundError if it is not kept any more.
        """
        if not self.dry_run:
            await self._change("running", "stopped")
        return await self.refresh()

    async def run(
        self, *, edit: Edit | None = None, tasks: Iterable[Task[Any, Any]] = ()
    ) -> AsyncGenerator[LetterOutcome, None]:
        """Carry it out, from where it is, and yield what becomes of each letter that matches, oldest first.

        It ends when all letters were looked at, at its limit, or when it is stopped. A letter that cannot be replayed
        stays and is yielded with its error. `edit` is given each letter and returns its new arguments, as
        `(args, kwargs)`; give it again to an operation that began with one. What `edit` raises passes the letter over.
        The new arguments of these `tasks` are checked as an enqueue checks them.

        Raises OperationTakenError if another process goes on with it, BrokerError if the server cannot be used: what is
        done is noted, so run it again later. Close the iterator if you leave it before its end (`contextlib.aclosing`).
        """
        now = await self.refresh()
        if now.edited and edit is None:
            raise ConfigurationError(f"the operation {now.id} edits by a function: give edit=")
        if edit is not None and not now.edited:
            raise ConfigurationError("edit= is no part of this operation: give edits=True when it begins")
        if now.state == "stopped" and not self.dry_run:
            await self._change("stopped", "running")
            now = await self.refresh()
        if now.state == "finished":
            return
        editor = ArgumentEditor(now.set_arguments, edit, tasks, max_payload=self._broker.max_payload)
        steps = _Steps(self, editor)
        reader = PageReader(self._broker.store, after=now.after)
        while not reader.ended and self.progress.left != 0 and order(self.progress.after) < order(now.last):
            page = [one for one in await reader.next() if order(one.entry_id) <= order(now.last)]
            async with aclosing(steps.take(page)) as outcomes:
                async for outcome in outcomes:
                    if not isinstance(outcome.error, DeadLetterNotFoundError):  # another client took it first
                        yield outcome
            if steps.stopped:
                await self.refresh()
                return
        await self._finish()

    async def _finish(self) -> None:
        """Note that it has finished, unless somebody else has gone on with it."""
        if self.dry_run:
            self.progress = replace(self.progress, state="finished")
            return
        await self._change("running", "finished", place=self.progress.after)
        await self.refresh()

    async def _change(self, before: State, after: State, *, place: str = "") -> None:
        keys = [self._key, self._broker.keys.dead]
        await self._broker.store.one(step("operation_state")(keys, before, after, KEPT, place))


name_remedies(DeadLetterOperation, "operation")


class _Steps:
    """The steps of one run. `stopped` becomes true when somebody has stopped the operation."""

    def __init__(self, operation: DeadLetterOperation, editor: ArgumentEditor) -> None:
        self._operation = operation
        self._editor = editor
        self._store: Store = operation._broker.store  # noqa: SLF001 - one thing in two classes
        self._key: str = operation._key  # noqa: SLF001
        self._matches = operation.progress.filter.matcher()
        self._most = PAGE  # steps of the next batch: fewer after one that was refused
        self._rate = None if operation.dry_run else operation.progress.rate
        self._tally = _Tally()
        self._due = self._store.clock.elapsed()
        self.stopped = False

    def __repr__(self) -> str:
        return f"<_Steps of {self._operation!r}>"

    async def take(self, page: Sequence[DeadLetterEntry]) -> AsyncGenerator[LetterOutcome, None]:
        """Go through one page, and yield what becomes of each letter that matches."""
        matched = [(at, one) for at, one in enumerate(page, 1) if self._matches is None or self._matches(one)]
        come = 0  # letters of this page that are behind
        if self._operation.progress.kind == "replay" and matched:
            letters = await with_existing_groups(self._store, [one for _, one in matched], self._stream_of)
            matched = [(at, letter) for (at, _), letter in zip(matched, letters, strict=True)]
        while matched and self._operation.progress.left != 0:
            await self._pace()
            batch = matched[: self._batch_size()]
            purges = self._operation.progress.kind == "purge"
            outcomes = await (self._purge(batch, come) if purges else self._replay(batch, come))
            for outcome in outcomes:
                yield outcome
            if self.stopped:
                return
            if outcomes:
                come = matched[len(outcomes) - 1][0]
                matched = matched[len(outcomes) :]
        if page and come < len(page) and not matched:
            await self._advance(page[-1].entry_id, len(page) - come)

    def _stream_of(self, letter: DeadLetterEntry) -> str | None:
        return stream_of(self._store, letter)

    def _batch_size(self) -> int:
        most, left = self._most, self._operation.progress.left
        if self._rate is not None:
            most = min(most, max(1, ceil(self._rate / _BATCHES_A_SECOND)))
        return most if left is None else min(most, left)

    async def _pace(self) -> None:
        """Wait until the next batch is due."""
        if self._rate is not None and (early := self._due - self._store.clock.elapsed()) > 0:
            await self._store.client.pause(early)

    def _note_moved(self, count: int) -> None:
        if self._rate is not None:
            self._due = max(self._due, self._store.clock.elapsed() - 1.0) + count / self._rate

    # --- removing ------------------------------------------------------------------------------

    async def _purge(self, batch: Sequence[tuple[int, DeadLetterEntry]], come: int) -> list[LetterOutcome]:
        ids = [letter.entry_id for _, letter in batch]
        await self._advance(ids[-1], batch[-1][0] - come, remove=ids)
        self._note_moved(len(ids))
        return [] if self.stopped else [LetterOutcome(letter) for _, letter in batch]

    async def _advance(
        self, to: str, examined: int, *, remove: Sequence[str] = (), error: StreamqError | None = None
    ) -> None:
        """Go on to a place in one step; remove letters on the way, or pass one over."""
        now, passed, removed = self._operation.progress, int(error is not None), len(remove)
        if not self._operation.dry_run:
            why = "" if error is None else utf8(str(error)[:ERROR_KEPT])
            reply = await self._store.one(step("operation_advance")(
                [self._key, self._store.keys.dead], now.after, to, examined, passed, KEPT, why, *remove
            ))  # fmt: skip
            removed = reply[0]
            if len(reply) > 1 and await self._is_over(reply[1]):
                return
        self._operation.progress = now.went_on(to, examined=examined, done=removed, passed_over=passed)

    # --- replaying -----------------------------------------------------------------------------

    async def _replay(self, batch: Sequence[tuple[int, DeadLetterEntry]], come: int) -> list[LetterOutcome]:
        """Replay some letters, and return what became of them: of all, or of those before one that was refused."""
        tried = [self._tried(letter) for _, letter in batch]
        examined = [at - before for before, at in pairwise((come, *(at for at, _ in batch)))]
        if self._operation.dry_run:
            for one, count in zip(tried, examined, strict=True):
                self._tally.note(one, count, moved=isinstance(one, Replay))
            self._flush()
            return [LetterOutcome(one.letter) if isinstance(one, Replay) else one for one in tried]
        commands: list[Command] = []
        come_from = self._operation.progress.after
        for one, count in zip(tried, examined, strict=True):
            commands.append(self._command(one, come_from, count))
            come_from = one.letter.entry_id
        outcomes: list[LetterOutcome] = []
        replies = await self._store.attempt(commands)
        for one, count, command, reply in zip(tried, examined, commands, replies, strict=True):
            if isinstance(reply, BrokerError):
                self._flush()
                outcomes += await self._refused(one.letter, count, reply, command)
                break
            outcome = await self._read(one, count, reply)
            if outcome is None:
                break
            outcomes.append(outcome)
        else:
            self._most = min(PAGE, 2 * self._most)
        self._flush()
        self._note_moved(sum(one.error is None for one in outcomes))
        return outcomes

    def _flush(self) -> None:
        """Note in the progress of the operation what has happened since the last time."""
        tally, self._tally = self._tally, _Tally()
        if tally.to:
            self._operation.progress = self._operation.progress.went_on(
                tally.to, examined=tally.examined, done=tally.done, passed_over=tally.passed_over
            )

    def _tried(self, letter: DeadLetterEntry) -> Replay | LetterOutcome:
        """Return the replay of a letter, or why it cannot be replayed."""
        try:
            edited = self._editor.edited(letter) if self._editor else letter
            return checked_replay(self._store, edited, self._operation.progress.retries)
        except StreamqError as error:
            return LetterOutcome(letter, error=error)

    def _command(self, one: Replay | LetterOutcome, come_from: str, examined: int) -> Command:
        if isinstance(one, Replay):
            return one.command_in(self._store, self._key, come_from=come_from, examined=examined, kept=KEPT)
        why = utf8(str(one.error)[:ERROR_KEPT])
        keys = [self._key, self._store.keys.dead]
        return step("operation_advance")(keys, come_from, one.letter.entry_id, examined, 1, KEPT, why)

    async def _read(self, one: Replay | LetterOutcome, examined: int, reply: Sequence[Any]) -> LetterOutcome | None:
        """Return the outcome of a step; None if the operation may not go on."""
        if isinstance(one, LetterOutcome):
            if len(reply) > 1 and await self._is_over(reply[1]):
                return None
            self._tally.note(one, examined, moved=False)
            return one
        entry, holder, *why = reply
        if why and await self._is_over(why[0]):
            return None
        error: StreamqError | None = None
        if holder:
            error = one.held(holder)
        elif not entry:
            error = DeadLetterNotFoundError(one.letter.entry_id)
        outcome = LetterOutcome(one.letter, one.task_id if entry else "", error)
        self._tally.note(outcome if holder else one, examined, moved=bool(entry))
        return outcome

    async def _refused(
        self, letter: DeadLetterEntry, examined: int, error: BrokerError, command: Command
    ) -> list[LetterOutcome]:
        """Pass over a letter that the server refuses to replay for a reason of its own. Raises any other error."""
        explained = await self._store.explain(error, command)
        if error.code not in _OWN_CAUSES:
            raise explained
        self._most = 1  # the next may be refused, too: what was sent behind it would be sent again
        await self._advance(letter.entry_id, examined, error=explained)
        return [] if self.stopped else [LetterOutcome(letter, error=explained)]

    async def _is_over(self, why: bytes) -> bool:
        """Note that the operation may not go on for now: it was stopped, or a step before this one did not run yet.

        Scripts that the server did not know are sent again, behind the others. Raises OperationTakenError if another
        process goes on with it, OperationNotFoundError if it is not kept any more.
        """
        self._flush()
        if why == b"moved":
            there = await read_progress(self._store, self._operation.id)
            if there.after != self._operation.progress.after:
                raise OperationTakenError(self._operation.id)
        elif why == b"gone":
            raise OperationNotFoundError(self._operation.id)
        else:
            self.stopped = True
        return True


@dataclass(slots=True)
class _Tally:
    """What the steps of one batch have done."""

    to: str = ""
    examined: int = 0
    done: int = 0
    passed_over: int = 0

    def note(self, one: Replay | LetterOutcome, examined: int, *, moved: bool) -> None:
        """Note that the operation has come to a letter, and whether it moved or was passed over."""
        self.to = one.letter.entry_id
        self.examined += examined
        self.done += moved
        self.passed_over += isinstance(one, LetterOutcome)


# --- what is kept -----------------------------------------------------------------------------


async def begin(store: Store, progress: OperationProgress) -> None:
    """Note an operation. Raises BrokerError if the server refuses it."""
    keys = [store.keys.operation(progress.id), store.keys.operations, store.keys.dead]
    await store.one(step("operation_begin")(keys, progress.id, KEPT, MOST, *progress.fields()))


async def read_progress(store: Store, id_: str) -> OperationProgress:
    """Return an operation. Raises OperationNotFoundError if it is not there, BrokerError if it cannot be read."""
    if not (flat := await store.one(("HGETALL", store.keys.operation(id_)))):
        raise OperationNotFoundError(id_)
    return OperationProgress.of(id_, flat)


async def list_operations(store: Store) -> list[OperationProgress]:
    """Return the operations that are kept, the newest first, without those that cannot be read."""
    ids = [str(one, "utf-8", "backslashreplace") for one in await store.one(("ZRANGE", store.keys.operations, 0, -1))]
    replies = await store.attempt([("HGETALL", store.keys.operation(id_)) for id_ in ids]) if ids else []
    found: list[OperationProgress] = []
    for id_, reply in zip(ids, replies, strict=True):
        if isinstance(reply, BrokerError) or not reply:
            continue
        try:
            found.append(OperationProgress.of(id_, reply))
        except BrokerError:
            continue
    return sorted(found, key=lambda one: one.started_at, reverse=True)


def this_process() -> str:
    """Return who begins an operation: the host and the process."""
    return f"{socket.gethostname()[:200]} {os.getpid()}"

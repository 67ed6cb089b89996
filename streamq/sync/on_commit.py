"""Sends tasks when a transaction of a database has committed, and not at all if it is rolled back.

So no worker looks for a row that is not there yet, and no mail is sent for an order that was never made. A call is
checked as it is registered: what cannot be sent is an error before the commit. Django and SQLAlchemy are asked for
their events; neither is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, ParamSpec, TypeVar, Unpack, overload

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError
from streamq.sync.drive import refuse_in_event_loop, run_now
from streamq.sync.open_broker import BlockingBroker
from streamq.tasks.options import OptionValues
from streamq.tasks.task import Call, Task, TaskRef

P = ParamSpec("P")
R = TypeVar("R")

Calls = Sequence[Call[Any]]
_PENDING: Final = "streamq.on_commit"  # the name of ours in `Session.info`


class OnCommit:
    """Sends when the transaction has committed. Made by `SyncBroker.on_django_commit` and `.on_session_commit`.

    Each method returns None: there is no task yet. Give a task an id of your own if you need one
    (`task.options(task_id=...)`).
    """

    def __init__(self, broker: BlockingBroker, later: Callable[[Calls], None]) -> None:
        self._broker = broker
        self._later = later

    def __repr__(self) -> str:
        return f"<OnCommit of {self._broker!r}>"

    @overload
    def enqueue(self, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def enqueue(self, call: Call[R], /, **options: Unpack[OptionValues]) -> None: ...
    @overload
    def enqueue(self, task: str | TaskRef, /, *args: Any, **kwargs: Any) -> None: ...
    def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> None:
        """Send one task after the commit. Arguments as for `SyncBroker.enqueue`.

        Raises at once what makes the task unfit to be sent: ArgumentsError, EncodingError, PayloadTooLargeError or
        ConfigurationError; SyncCallError in a running event loop.
        """
        self._later([self._broker.check(self._broker.call_of(task, args, kwargs))])

    def enqueue_many(self, calls: Iterable[Call[Any]]) -> None:
        """Send many tasks after the commit, in one round trip. Raises as `enqueue`, and then none is registered."""
        if checked := [self._broker.check(call) for call in calls]:
            self._later(checked)


def on_django_commit(broker: BlockingBroker, *, using: str | None, robust: bool) -> OnCommit:
    """Return what sends after the commit of Django's transaction. See `SyncBroker.on_django_commit`."""
    from django.db import transaction  # noqa: PLC0415 - only a program on Django has it

    def later(calls: Calls) -> None:
        def send_tasks() -> None:  # no partial: Django logs the __qualname__ of what fails
            _send(broker, calls)

        refuse_in_event_loop()
        transaction.on_commit(send_tasks, using=using, robust=robust)

    return OnCommit(broker, later)


def on_session_commit(broker: BlockingBroker, session: Any) -> OnCommit:
    """Return what sends after the commit of a session of SQLAlchemy. See `SyncBroker.on_session_commit`."""
    from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415 - only a program on SQLAlchemy has it

    def later(calls: Calls) -> None:
        refuse_in_event_loop()
        found: Any = session() if isinstance(session, scoped_session) else session
        pending = found.info.get(_PENDING)
        if pending is None:
            pending = found.info[_PENDING] = _PendingCalls(found)
        pending.add(found, broker, calls)

    if not isinstance(session, Session | scoped_session):
        raise ConfigurationError(
            f"{repr_of(session)} is no Session of SQLAlchemy: give a Session or a scoped_session. After the commit of "
            "an AsyncSession, await RedisBroker.enqueue"
        )
    return OnCommit(broker, later)


def _send(broker: BlockingBroker, calls: Calls) -> None:
    refuse_in_event_loop()
    run_now(broker.enqueue_many(calls))


class _PendingCalls:
    """What one session sends when its outermost transaction has committed, by the transaction that it belongs to.

    A transaction is a SessionTransaction: the outermost one, or a savepoint in it. It ends once, and before that it was
    committed or not. What belongs to a savepoint that was released belongs to the transaction around it. Nothing is
    sent before the end of the outermost one: an error in the midst of a commit would break its session.
    """

    def __init__(self, session: Any) -> None:
        from sqlalchemy import event  # noqa: PLC0415

        self._calls: list[tuple[Any, BlockingBroker, Calls]] = []
        self._committed: Any = None  # the transaction that was committed last, and has not ended
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_transaction_end", self._after_end)

    def __repr__(self) -> str:
        return f"<_PendingCalls: {len(self._calls)}>"

    def add(self, session: Any, broker: BlockingBroker, calls: Calls) -> None:
        """Register calls with the innermost transaction of a session, which begins if there is none."""
        if not session.in_transaction():
            session.begin()
        self._calls.append((_innermost(session), broker, calls))

    def _after_commit(self, session: Any) -> None:
        self._committed = _innermost(session)

    def _after_end(self, session: Any, transaction: Any) -> None:  # noqa: ARG002 - what SQLAlchemy calls it with
        committed, outer = self._committed is transaction, transaction.parent
        if committed:
            self._committed = None
        if outer is None:
            ended, self._calls = self._calls, []
            if committed:
                _send_all(ended)
        elif committed:
            self._calls = [(outer if of is transaction else of, broker, calls) for of, broker, calls in self._calls]
        else:
            self._calls = [one for one in self._calls if one[0] is not transaction]


def _innermost(session: Any) -> Any:
    return session.get_nested_transaction() or session.get_transaction()


def _send_all(ended: Sequence[tuple[Any, BlockingBroker, Calls]]) -> None:
    """Send all that a transaction has registered: one round trip for each broker."""
    by_broker: dict[BlockingBroker, list[Call[Any]]] = {}
    for _, broker, calls in ended:
        by_broker.setdefault(broker, []).extend(calls)
    for broker, together in by_broker.items():
        _send(broker, together)

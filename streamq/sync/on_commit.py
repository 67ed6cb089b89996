"""Sends tasks when a transaction of a database has committed, and not at all if it is rolled back.

So no worker looks for a row that is not there yet, and no mail is sent for an order that was never made. A call is
checked as it is registered: what cannot be sent is an error before the commit. Django and SQLAlchemy are asked for
their events; neither is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec, TypeVar, Unpack, overload

from streamq.diagnostics.safe_text import repr_of
from streamq.errors import BrokerUnavailableError, ConfigurationError
from streamq.sync.drive import refuse_in_event_loop, run_now
from streamq.sync.open_broker import BlockingBroker
from streamq.tasks.options import OptionValues
from streamq.tasks.task import Call, Task, TaskRef
from streamq.wire.workflow import Flow

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Start:
    """A workflow to be started."""

    flow: Flow[Any]
    workflow_id: str | None


Sends = Sequence[Call[Any] | _Start]
_PENDING: Final = "streamq.on_commit"  # the name of ours in `Session.info`


class OnCommit:
    """Sends when the transaction has committed. Made by `SyncBroker.on_django_commit` and `.on_session_commit`.

    Each method returns None: there is no task yet. Give a task an id of your own if you need one
    (`task.options(task_id=...)`).
    """

    def __init__(self, broker: BlockingBroker, later: Callable[[Sends], None]) -> None:
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
        self._later([self._frozen(self._broker.call_of(task, args, kwargs))])

    def enqueue_many(self, calls: Iterable[Call[Any]]) -> None:
        """Send many tasks after the commit, in one round trip. Raises as `enqueue`, and then none is registered."""
        if checked := [self._frozen(call) for call in calls]:
            self._later(checked)

    def start(self, flow: Flow[Any], /, *, workflow_id: str | None = None) -> None:
        """Start a workflow after the commit. Arguments as for `SyncBroker.start`; raises as `enqueue`.

        Also ConfigurationError, at once, for a flow that cannot be started. Its handle: `SyncBroker.workflow(id)`.
        """
        self._broker.check_flow(flow, workflow_id)
        self._later([_Start(_copied(flow), workflow_id)])

    def _frozen(self, call: Call[R]) -> Call[R]:
        """Check a call, and return it with copies of its arguments: later changes do not count."""
        checked = self._broker.check(call)
        return replace(checked, args=_copied(checked.args), kwargs=_copied(checked.kwargs))


def on_django_commit(broker: BlockingBroker, *, using: str | None, robust: bool) -> OnCommit:
    """Return what sends after the commit of Django's transaction. See `SyncBroker.on_django_commit`."""
    from django.db import transaction  # noqa: PLC0415 - only a program on Django has it

    def later(sends: Sends) -> None:
        def send_tasks() -> None:  # no partial: Django logs the __qualname__ of what fails
            _send(broker, sends)

        refuse_in_event_loop()
        transaction.on_commit(send_tasks, using=using, robust=robust)

    return OnCommit(broker, later)


def on_session_commit(broker: BlockingBroker, session: Any) -> OnCommit:
    """Return what sends after the commit of a session of SQLAlchemy. See `SyncBroker.on_session_commit`."""
    from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415 - only a program on SQLAlchemy has it

    def later(sends: Sends) -> None:
        refuse_in_event_loop()
        found: Any = session() if isinstance(session, scoped_session) else session
        if found.in_transaction() and not _innermost(found).is_active:
            raise ConfigurationError(
                f"the transaction of {repr_of(found)} is over: it has been committed, or waits for its rollback. After "
                "the commit (in a listener of after_commit, say) send with broker.enqueue"
            )
        pending = found.info.get(_PENDING)
        if pending is None:
            pending = found.info[_PENDING] = _PendingSends(found)
        pending.add(found, broker, sends)

    if not isinstance(session, Session | scoped_session):
        raise ConfigurationError(
            f"{repr_of(session)} is no Session of SQLAlchemy: give a Session or a scoped_session. After the commit of "
            "an AsyncSession, await RedisBroker.enqueue"
        )
    return OnCommit(broker, later)


def _send(broker: BlockingBroker, sends: Sends) -> None:
    """Send the calls in one round trip, and start the workflows, one after the other. Raises the first error, at last.

    The data are committed: what is refused for one is no reason to leave out the others.
    """
    refuse_in_event_loop()
    errors: list[Exception] = []
    for command in _commands(broker, sends):
        try:
            run_now(command)
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)
            if isinstance(error, BrokerUnavailableError):  # each of the others would wait as long
                break
    if errors:
        raise errors[0]


def _commands(broker: BlockingBroker, sends: Sends) -> Iterator[Coroutine[Any, Any, Any]]:
    calls = [one for one in sends if isinstance(one, Call)]
    if broker.middleware.wraps_enqueues or any(call.task.middleware for call in calls):
        for call in calls:  # it may refuse one: then none of those that go with it would be sent
            yield broker.enqueue(call)
    elif calls:
        yield broker.enqueue_many(calls)
    for one in sends:
        if isinstance(one, _Start):
            yield broker.start(one.flow, workflow_id=one.workflow_id)


def _copied(value: R) -> R:
    with suppress(Exception):  # what cannot be copied is sent as it is then
        return deepcopy(value)
    return value


class _PendingSends:
    """What one session sends when its outermost transaction has committed, by the transaction that it belongs to.

    A transaction is a SessionTransaction: the outermost one, or a savepoint in it. It ends once, and before that it was
    committed or not. What belongs to a savepoint that was released belongs to the transaction around it. Nothing is
    sent before the end of the outermost one: an error in the midst of a commit would break its session.
    """

    def __init__(self, session: Any) -> None:
        from sqlalchemy import event  # noqa: PLC0415

        self._sends: list[tuple[Any, BlockingBroker, Sends]] = []
        self._committed: Any = None  # the transaction that was committed last, and has not ended
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_transaction_end", self._after_end)

    def __repr__(self) -> str:
        return f"<_PendingSends: {len(self._sends)}>"

    def add(self, session: Any, broker: BlockingBroker, sends: Sends) -> None:
        """Register calls with the innermost transaction of a session, which begins if there is none."""
        if not session.in_transaction():
            session.begin()
        self._sends.append((_innermost(session), broker, sends))

    def _after_commit(self, session: Any) -> None:
        self._committed = _innermost(session)

    def _after_end(self, session: Any, transaction: Any) -> None:  # noqa: ARG002 - what SQLAlchemy calls it with
        committed, outer = self._committed is transaction, transaction.parent
        if committed:
            self._committed = None
        if outer is None:
            ended, self._sends = self._sends, []
            if committed:
                _send_all(ended)
        elif committed:
            self._sends = [(outer if of is transaction else of, broker, sends) for of, broker, sends in self._sends]
        else:
            self._sends = [one for one in self._sends if one[0] is not transaction]


def _innermost(session: Any) -> Any:
    return session.get_nested_transaction() or session.get_transaction()


def _send_all(ended: Sequence[tuple[Any, BlockingBroker, Sends]]) -> None:
    """Send all that a transaction has registered, for each broker. Raises the first error, at last."""
    by_broker: dict[BlockingBroker, list[Call[Any] | _Start]] = {}
    for _, broker, sends in ended:
        by_broker.setdefault(broker, []).extend(sends)
    errors: list[Exception] = []
    for broker, together in by_broker.items():
        try:
            _send(broker, together)
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)
    if errors:
        raise errors[0]

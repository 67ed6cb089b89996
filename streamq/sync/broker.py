"""`SyncBroker`: the door to the queue for programs without an event loop. It sends tasks and waits for their results.

It holds a `RedisBroker` whose coroutines never suspend, and runs them in the thread that calls (see `drive`). So what
it sends, and what it raises, is what a `RedisBroker` sends and raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack, overload

from streamq.broker import DEFAULT_URL, RedisBroker
from streamq.errors import ConfigurationError
from streamq.middleware.chain import MiddlewareChain
from streamq.queue.delayed import Scheduled
from streamq.queue.gather import as_completed
from streamq.queue.schedules import Schedule
from streamq.sync.commands import SyncCommands
from streamq.sync.dead_letters import SyncDeadLetterQueue
from streamq.sync.drive import iterate, refuse_in_event_loop, run_now
from streamq.sync.gathering import Gathers, own_handle
from streamq.sync.handle import SyncHandle, SyncWorkflow, SyncWorkflowHandle
from streamq.sync.monitor import SyncQueueMonitor
from streamq.sync.on_commit import OnCommit, on_django_commit, on_session_commit
from streamq.sync.open_broker import BlockingBroker
from streamq.tasks.cron import Cron
from streamq.tasks.options import OptionValues
from streamq.tasks.task import Call, Task, TaskRef
from streamq.wire.dead_letter_fields import DeadLetterBound
from streamq.wire.keys import Keys
from streamq.wire.message import MAX_PAYLOAD
from streamq.wire.signing import SigningKeys
from streamq.wire.tiers import Tier
from streamq.wire.workflow import Flow

P = ParamSpec("P")
R = TypeVar("R")


class SyncBroker(Gathers):
    """The queue, as a program without an event loop sees it: Flask, Django, scripts, handlers in threads.

    Make one per program, as a global say. It opens at its first call. Any thread may use it, and so may the child of a
    fork, which connects anew. `close` it at the end, or use `with SyncBroker(url) as broker:`.

    Arguments as for `RedisBroker`. A `memory://` without a name ends with the broker, and is this process's alone.

    Each method raises what the method of that name raises there, and SyncCallError in a running event loop.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, queue_name: str | None = None, namespace: str | None = None,
        group: str = "workers", tiers: Iterable[Tier] | None = None, max_payload: int = MAX_PAYLOAD,
        connect_timeout: float | None = None, reply_timeout: float | None = None,
        dead_letters: DeadLetterBound | None = None, middleware: MiddlewareChain | None = None,
        signing: SigningKeys | None = None,
    ) -> None:  # fmt: skip
        self._broker = BlockingBroker(
            url, queue_name=queue_name, namespace=namespace, group=group, tiers=tiers, max_payload=max_payload,
            connect_timeout=connect_timeout, reply_timeout=reply_timeout, dead_letters=dead_letters,
            middleware=middleware, signing=signing,
        )  # fmt: skip

    def __repr__(self) -> str:
        return repr(self._broker)

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection. A thread that waits gets BrokerUnavailableError or OutcomeUnknownError.

        Later calls raise NotOpenError. May be called again, and in any thread.
        """
        self._broker.close()

    def _opened(self) -> BlockingBroker:
        refuse_in_event_loop()
        broker = self._broker
        if broker._producer is None:  # noqa: SLF001 - it is made for this
            broker.open()
        return broker

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self._broker.url

    @property
    def keys(self) -> Keys:
        """The names of its keys in Redis."""
        return self._broker.keys

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Its priority tiers."""
        return self._broker.tiers

    @property
    def middleware(self) -> MiddlewareChain:
        """What wraps every enqueue. It must await `send_next` alone."""
        return self._broker.middleware

    @property
    def client(self) -> SyncCommands:
        """redis-py's command methods, for commands of your own: `broker.client.get("key")`. They block."""
        return SyncCommands(self._opened().sync_client)

    # --- sending ---------------------------------------------------------------------------------

    @overload
    def enqueue(self, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncHandle[R]: ...
    @overload
    def enqueue(self, call: Call[R], /, **options: Unpack[OptionValues]) -> SyncHandle[R]: ...
    @overload
    def enqueue(self, task: str | TaskRef, /, *args: Any, **kwargs: Any) -> SyncHandle[Any]: ...
    def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> SyncHandle[Any]:
        """Send one task, and return its handle when the server has it. One round trip. See `RedisBroker.enqueue`.

        After an OutcomeUnknownError, send it again with the same `task_id` (`task.options(task_id=...)`): for an hour
        it is accepted once.
        """
        return SyncHandle(self._opened().enqueue_now(task, args, kwargs))

    @overload
    def enqueue_many(self, calls: Iterable[Call[R]]) -> list[SyncHandle[R]]: ...
    @overload
    def enqueue_many(self, calls: Iterable[Call[Any]]) -> list[SyncHandle[Any]]: ...
    def enqueue_many(self, calls: Iterable[Call[Any]]) -> list[SyncHandle[Any]]:
        """Send many tasks in one round trip, and return their handles in the same order.

        If one of them cannot be sent, none is.
        """
        return [SyncHandle(handle) for handle in run_now(self._opened().enqueue_many(calls))]

    def start(self, flow: Flow[R], /, *, workflow_id: str | None = None) -> SyncWorkflow[R]:
        """Start a workflow: send its first steps, all or none, in one round trip. See `RedisBroker.start`."""
        return SyncWorkflow(run_now(self._opened().start(flow, workflow_id=workflow_id)))

    def check(self, call: Call[R]) -> Call[R]:
        """Check a call without sending it, and return it as it would be sent.

        Raises ArgumentsError, EncodingError, PayloadTooLargeError or ConfigurationError.
        """
        return self._opened().check(call)

    # --- sending after a commit ------------------------------------------------------------------

    def on_django_commit(self, *, using: str | None = None, robust: bool = False) -> OnCommit:
        """Return what sends when Django's transaction has committed: `.enqueue`, `.enqueue_many`, `.start`.

        As `django.db.transaction.on_commit`: at once if there is no transaction, and never if it is rolled back.
        `using` is the alias of the database. An error of sending is raised after the commit, or logged if `robust`.
        """
        self._opened()
        return on_django_commit(self._broker, using=using, robust=robust)

    def on_session_commit(self, session: Any, /) -> OnCommit:
        """Return what sends when the outermost transaction of a SQLAlchemy session has committed.

        `session` is a Session or a scoped_session. Its transaction begins if there is none. What was registered in a
        savepoint that is rolled back is not sent. All calls go in one round trip; `commit` raises an error of sending,
        and the data are committed then. Raises ConfigurationError for what is no session.
        """
        self._opened()
        return on_session_commit(self._broker, session)

    # --- tasks that were sent --------------------------------------------------------------------

    @overload
    def handle(self, task_id: str, *, task: Task[..., R], tier: str | None = None) -> SyncHandle[R]: ...
    @overload
    def handle(self, task_id: str, *, tier: str | None = None) -> SyncHandle[Any]: ...
    def handle(self, task_id: str, *, task: Task[..., Any] | None = None, tier: str | None = None) -> SyncHandle[Any]:
        """Return the handle of a task by its id, without a round trip. The task need not exist.

        With `task`, `result()` gives what that task returns; without it, the JSON as it is.
        """
        if task is None:
            return SyncHandle(self._opened().handle(task_id, tier=tier))
        return SyncHandle(self._opened().handle(task_id, task=task, tier=tier))

    def cancel(self, task_id: str, *, tier: str | None = None) -> bool:
        """Withdraw a task by its id if it was not delivered yet. A task that runs is asked to stop.

        Returns whether one of the two was done.
        """
        return run_now(self._opened().cancel(task_id, tier=tier))

    def workflow(self, workflow_id: str, /) -> SyncWorkflowHandle:
        """Return the handle of a whole workflow by its id, without a round trip. It need not exist."""
        return SyncWorkflowHandle(self._opened().workflow(workflow_id))

    def scheduled(self, *, limit: int | None = None, tier: str | None = None) -> Iterator[Scheduled]:
        """Yield the delayed tasks, retries included, soonest first: of all tiers or of one, at most `limit`."""
        return iterate(self._opened().scheduled(limit=limit, tier=tier))

    def is_duplicate(self, task_id: str, ttl: float = 3600.0) -> bool:
        """Return whether this was called for the same id within the last `ttl` seconds. Records the call."""
        return run_now(self._opened().is_duplicate(task_id, ttl))

    def as_completed(
        self, *handles: SyncHandle[R], timeout: float | timedelta | None = None
    ) -> Iterator[SyncHandle[R]]:
        """Yield the handles of these tasks as the tasks end. `handle.result()` then needs no round trip.

        `timeout` is in seconds, for all tasks together. Raises what `streamq.as_completed` raises.
        """
        self._opened()
        own = [own_handle(handle) for handle in handles]
        return map(SyncHandle, iterate(as_completed(*own, timeout=timeout)))

    # --- schedules ---------------------------------------------------------------------------------

    def schedule(self, name: str, cron: Cron | str, call: Call[Any] | Task[Any, Any] | str, /) -> None:
        """Store a schedule: the workers send this call at each tick of `cron`. Replaces the schedule of that name."""
        run_now(self._opened().schedule(name, cron, call))

    def schedules(self) -> list[Schedule]:
        """Return all schedules, stored and declared, by the time of their next ticks."""
        return run_now(self._opened().schedules())

    def unschedule(self, name: str) -> bool:
        """Remove a schedule. Tasks that it sent stay. Returns whether there was one."""
        return run_now(self._opened().unschedule(name))

    # --- operating ---------------------------------------------------------------------------------

    def dead_letter_queue(
        self, *, max_size: int | None = None, max_age: float | timedelta | None = None
    ) -> SyncDeadLetterQueue:
        """Return the dead letters of this queue. Arguments as for `streamq.dead_letter.DeadLetterQueue`."""
        return SyncDeadLetterQueue(self._opened(), max_size=max_size, max_age=max_age)

    def monitor(self, *, window: float | timedelta = 60.0) -> SyncQueueMonitor:
        """Return what reads the figures of this queue. Argument as for `streamq.monitoring.QueueMonitor`."""
        return SyncQueueMonitor(self._opened(), window=window)


def broker_for_workers(broker: SyncBroker) -> RedisBroker:
    """Return what the workers of its queue open: a `RedisBroker` with the settings of a `SyncBroker`.

    Raises ConfigurationError if nobody but this SyncBroker can have its data.
    """
    if broker.url.partition("://")[2].strip("/") == "" and broker.url.lower().startswith(("memory:", "embedded:")):
        raise ConfigurationError(
            f"a SyncBroker of {broker.url} has a server of its own, which no worker and no command can reach: give it "
            "the URL of a server or embedded:///path/to/data; for a worker in its process memory://name goes, too"
        )
    return broker._broker.for_workers()  # noqa: SLF001 - it is made for this

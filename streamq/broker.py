"""`RedisBroker`: the door of a program to the queue. It sends tasks, and it yields deliveries to a loop of your own.

It holds the parts of one open queue (connection, store, producer) and passes each call to the part that does it:
`middleware/producer.py` sends, `queue/schedules.py` keeps schedules, `consumer/manual_consumer.py` consumes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack, overload
from weakref import WeakValueDictionary

import anyio.abc

from streamq.client import Client, Resources, refuse_in_loading_process
from streamq.clock import SYSTEM, Clock, ServerClock
from streamq.consumer.consumer_name import consumer_name
from streamq.consumer.manual_consumer import ManualConsumer
from streamq.diagnostics.safe_text import repr_of
from streamq.diagnostics.unawaited import name_remedies
from streamq.errors import ConfigurationError, NotHeldError, NotOpenError
from streamq.handlers.context import current_store, nothing_here
from streamq.middleware.chain import MiddlewareChain, as_chain
from streamq.middleware.producer import Producer
from streamq.queue import schedules as known
from streamq.queue.delayed import Scheduled, scheduled
from streamq.queue.results import Handle
from streamq.queue.schedules import Schedule, ScheduleDefinition
from streamq.queue.sending import MessageBuilder
from streamq.queue.server_url import ServerUrl
from streamq.queue.store import Store
from streamq.queue.waiters import Waiters, WaitsForKeys
from streamq.queue.workflow_handle import WorkflowHandle
from streamq.queue.workflow_start import Workflow
from streamq.tasks.cron import Cron
from streamq.tasks.options import OptionValues
from streamq.tasks.outcome import Ack, DeadLetter, Reason, Release, failure_of
from streamq.tasks.task import Call, Task, TaskRef, check_calls
from streamq.wire import bounds
from streamq.wire.argument_types import check_type
from streamq.wire.dead_letter_fields import DeadLetterBound
from streamq.wire.delivery import Delivery
from streamq.wire.keys import Keys
from streamq.wire.message import MAX_PAYLOAD, milliseconds
from streamq.wire.names import check_name
from streamq.wire.signing import SigningKeys
from streamq.wire.tiers import DEFAULT_TIERS, Tier, check_tiers
from streamq.wire.workflow import Flow

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_URL = "redis://localhost:6379"


class RedisBroker:
    """The queue, as a program sees it: `async with RedisBroker(url) as broker:`.

    - `url` is `redis://`, `rediss://`, `valkey://`, `valkeys://` or `unix://`, or an embedded server: `memory://`,
      `memory://name`, `embedded://` or `embedded:///path/to/data`.
    - `queue_name` makes it a broker of one stream alone. Give `queue_name` or `tiers`, not both.
    - `namespace` is the prefix of every key, `group` the consumer group, `tiers` the priority tiers.
    - `max_payload` (bytes) limits the size of a message. `connect_timeout` (s) and `reply_timeout` (s) go
      before those of the URL; the defaults are 5 and 10.
    - `dead_letters` is how much the dead letter stream keeps.
    - `middleware` wraps every enqueue of this broker and every run of its workers, as the outermost chain.
    - `signing` are the keys with which every message is signed and checked. Without them nothing is.
    - `clock` is for tests and simulations. The workers of the broker use it, too.

    Raises ConfigurationError for a value that cannot be used.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, queue_name: str | None = None, namespace: str | None = None,
        group: str = "workers", tiers: Iterable[Tier] | None = None, max_payload: int = MAX_PAYLOAD,
        connect_timeout: float | None = None, reply_timeout: float | None = None,
        dead_letters: DeadLetterBound | None = None, clock: Clock = SYSTEM, middleware: MiddlewareChain | None = None,
        signing: SigningKeys | None = None,
    ) -> None:  # fmt: skip
        if queue_name is not None:
            if tiers is not None:
                raise ConfigurationError(f"queue_name={repr_of(queue_name)} and tiers: give one of them")
            check_name("stream", queue_name, what="queue_name")
            prefix, _, name = queue_name.rpartition(":")
            namespace = namespace if namespace is not None else prefix or queue_name
            tiers = [Tier(name, stream=queue_name)]
        self.url = check_type("url", url, str, "the URL of a server, as text")
        self.clock = check_type("clock", clock, Clock, "a streamq.clock.Clock")
        self.server_clock = ServerClock(clock)
        self.middleware = as_chain(middleware)
        self.tiers = check_tiers(DEFAULT_TIERS if tiers is None else tiers)
        self.keys = Keys.of("queue" if namespace is None else namespace, group, self.tiers)
        check_type("dead_letters", dead_letters, DeadLetterBound | None, "a DeadLetterBound")
        self.dead_letters = dead_letters or DeadLetterBound()
        self.max_payload = bounds.MAX_PAYLOAD.check(max_payload)
        self.signing = check_type("signing", signing, SigningKeys | None, "SigningKeys")
        self._server = ServerUrl(url)
        self.timeouts: tuple[float | None, float | None] = (
            None if connect_timeout is None else bounds.CONNECT_TIMEOUT.check(connect_timeout),
            None if reply_timeout is None else bounds.REPLY_TIMEOUT.check(reply_timeout),
        )
        self._builder = MessageBuilder(
            self.keys, self.tiers, max_payload=max_payload, now=self.server_clock.now_to_send
        )
        self._store: Store | None = None
        self._waiters: WaitsForKeys | None = None
        self._producer: Producer | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self._resources: Resources | None = None
        self._opened_by = 0  # the id of a task
        self._consumers: set[ManualConsumer] = set()  # those of the loops over `consume` that go on

    def __repr__(self) -> str:
        state = "closed" if self._store is None else "open"
        return f"<RedisBroker {self._server!r} namespace={self.keys.namespace} group={self.keys.group} {state}>"

    # --- open and close ------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._resources is not None:
            raise ConfigurationError(
                f"{self!r} is open already: open it once, and use it in the event loop and the thread that opened it; "
                "elsewhere, open another RedisBroker, or call this one through a portal (anyio.from_thread)"
            )
        refuse_in_loading_process("a broker")
        resources = self._resources = Resources()
        self._opened_by = anyio.get_current_task().id
        try:
            client, self._group = await self._server.connect(resources, *self.timeouts)
        except BaseException as error:
            self._resources = None
            await resources.close(error)
            raise
        self._store = store = self._store_over(client)
        self._waiters = waiters = Waiters(store, self._group)
        self._producer = Producer(self._builder, self.middleware, store, waiters)
        _open_brokers[id(client)] = self
        return self

    def _store_over(self, client: Client) -> Store:
        return Store(
            client, self.keys, self.tiers, bound=lambda: self.dead_letters, clock=self.server_clock,
            max_payload=self.max_payload, signing=self.signing,
        )  # fmt: skip

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (wrong := self._left_elsewhere()) is not None:
            if error is None:
                raise wrong
            return  # the error of the block counts; the broker is left where it was opened
        resources, self._resources = self._resources, None
        if self._waiters is not None:
            self._waiters.close()
        self._store = self._waiters = self._producer = self._group = None
        if resources is not None:
            await resources.close(error)

    def _left_elsewhere(self) -> Exception | None:
        """Return the error of leaving this where it was not opened: its task group belongs to that task."""
        owner = None if self._store is None else self._store.client.owner
        if owner is None or owner.was_forked:
            return None
        if not owner.is_here:
            return owner.error()
        if anyio.get_current_task().id == self._opened_by:
            return None
        return ConfigurationError(
            f"{self!r} was opened by another task, and stays open: open and leave it in one task; for a fixture of "
            "pytest-asyncio see streamq.testing.own_task, and docs/testing-your-tasks.md (fixtures of your own)"
        )

    @property
    def store(self) -> Store:
        """The queue's commands. Raises NotOpenError outside `async with`."""
        if self._store is None:
            raise NotOpenError(repr(self))
        return self._store

    @property
    def client(self) -> Client:
        """redis-py's command methods, on the connection of the broker. Raises NotOpenError outside `async with`."""
        return self.store.client

    # --- sending ---------------------------------------------------------------------------------

    @overload
    async def enqueue(self, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    async def enqueue(self, call: Call[R], /, **options: Unpack[OptionValues]) -> Handle[R]: ...
    @overload
    async def enqueue(self, task: str | TaskRef, /, *args: Any, **kwargs: Any) -> Handle[Any]: ...
    async def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Send one task, and return its handle when the server has it. One round trip.

        `task` is a task, the name of a task whose code is elsewhere, or a call (`task.call(...)`), which has its
        arguments already. Options (`Options`) are given by `task.options(...)`; for a name and a call, which have no
        parameters, by keyword arguments, too.

        Raises ArgumentsError, EncodingError or PayloadTooLargeError for a message that cannot be sent,
        BrokerUnavailableError if nothing was sent, BrokerError if the server refused it, OutcomeUnknownError if the
        connection was lost before the reply, and NotDurableError if the server has the task, but not as `durable` asks.
        """
        call = self._builder.make_call(task, args, kwargs)
        producer = self._open_producer()
        if not (self.middleware.wraps_enqueues or call.task.middleware):
            return await producer.send(call)
        return await producer.send_through(call)

    @overload
    async def enqueue_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]: ...
    @overload
    async def enqueue_many(self, calls: Iterable[Call[Any]]) -> list[Handle[Any]]: ...
    async def enqueue_many(self, calls: Iterable[Call[Any]]) -> list[Handle[Any]]:
        """Send many tasks in one round trip, and return their handles in the same order.

        If one of them cannot be sent, none is. Raises what `enqueue` raises, and ConfigurationError for what is no call
        (`task.call(...)`).
        """
        try:
            given = list(calls)
        except TypeError:
            check_calls(calls)  # raises, unless the error is that of an iterator
            raise
        if any(call.__class__ is not Call for call in given):  # a call of isinstance for each would be dear
            check_calls(given)
        return await self._open_producer().send_all_through(given)

    async def start(self, flow: Flow[R], /, *, workflow_id: str | None = None) -> Workflow[R]:
        """Start a workflow: send its first steps, all or none, in one round trip. They carry all later steps.

        With a `workflow_id` a start can be repeated: within 1 h a workflow of one id is started once. The steps have
        the ids `<workflow_id>.1`, `<workflow_id>.2` and so on, in the order of the flow, unless they have a `task_id`.

        Raises what `enqueue` raises, and ConfigurationError for a flow that cannot be started.
        """
        return await self._open_producer().start(flow, workflow_id)

    def _open_producer(self) -> Producer:
        if self._producer is None:
            raise NotOpenError(repr(self))
        return self._producer

    # --- tasks that were sent --------------------------------------------------------------------

    @overload
    def handle(self, task_id: str, *, task: Task[..., R], tier: str | None = None) -> Handle[R]: ...
    @overload
    def handle(self, task_id: str, *, tier: str | None = None) -> Handle[Any]: ...
    def handle(self, task_id: str, *, task: Task[..., R] | None = None, tier: str | None = None) -> Handle[Any]:
        """Return the handle of a task by its id, without a round trip. The task need not exist.

        With `task`, `result()` gives what that task returns; without it, the JSON as it is. Its methods look for the
        task in `tier` first, and then in all others. Raises ConfigurationError for an unknown tier, for what is no
        task, and for a text that no task can have as its id.
        """
        if self._waiters is None:
            raise NotOpenError(repr(self))
        check_name("task_id", task_id)
        first = 0 if tier is None else self._builder.tier_of(tier)
        name = "" if task is None else check_type("task", task, Task, "a task, made with @task").name
        return Handle(task_id, name, first, "", False, True, self.store, self._waiters, _task=task)

    async def cancel(self, task_id: str, *, tier: str | None = None) -> bool:
        """Withdraw a task by its id if it was not delivered yet. A task that runs is asked to stop.

        Returns whether one of the two was done. Without the handle that `enqueue` returned, the streams are searched
        from their beginning, 500 entries in one step.
        """
        return await self.handle(task_id, tier=tier).cancel()

    def workflow(self, workflow_id: str, /) -> WorkflowHandle:
        """Return the handle of a whole workflow by its id, without a round trip. It need not exist.

        Raises ConfigurationError for a text that no workflow can have as its id.
        """
        return self._open_producer().workflow(workflow_id)

    def scheduled(self, *, limit: int | None = None, tier: str | None = None) -> AsyncGenerator[Scheduled, None]:
        """Yield the delayed tasks, retries included, soonest first: of all tiers or of one, at most `limit`.

        Reads them page by page, so it may miss tasks that are sent or become due meanwhile. Raises ConfigurationError
        for an unknown tier.
        """
        tiers = range(len(self.tiers)) if tier is None else [self._builder.tier_of(tier)]
        return scheduled(self.store, tiers, None if limit is None else bounds.SCHEDULED.check(limit))

    async def is_duplicate(self, task_id: str, ttl: float = 3600.0) -> bool:
        """Return whether this method was called for the same id within the last `ttl` seconds. Records the call.

        For handlers that must not act twice. It records the start of the work and not its end: if a handler crashes
        after the call, its next run gets True.
        """
        check_name("key", task_id, what="task_id")
        kept = milliseconds(bounds.SEEN_TTL.check(ttl))
        reply = await self.store.one(("SET", self.keys.seen(task_id), "1", "NX", "PX", kept))
        return reply is None

    # --- schedules ---------------------------------------------------------------------------------

    async def schedule(self, name: str, cron: Cron | str, call: Call[Any] | Task[Any, Any] | str, /) -> None:
        """Store a schedule: the workers send this call at each tick of `cron`. Replaces the schedule of that name.

        Every worker ticks it, also one that does not know the task. If `cron` and its time zone did not change, the
        next tick stays as it was.

        Raises ConfigurationError for a value that cannot be used and for a name that `@task(cron=...)` declares,
        MissingExtraError without the extra `cron`, and what `enqueue` raises for the call.
        """
        await known.store_schedule(self.store, known.stored_definition(self._builder, name, cron, call))

    async def schedules(self) -> list[Schedule]:
        """Return all schedules, stored and declared, by the time of their next ticks."""
        return await known.list_schedules(self.store)

    async def unschedule(self, name: str) -> bool:
        """Remove a schedule. Tasks that it sent stay. Returns whether there was one.

        A schedule that `@task(cron=...)` declares comes back while there are workers that have it in their code.
        """
        return await known.unregister(self.store, check_type("name", name, str, "the name of a schedule, as text"))

    def declared(self, tasks: Iterable[Task[Any, Any]]) -> list[ScheduleDefinition]:
        """Return the schedules that tasks declare.

        Raises ConfigurationError if a tick could not be sent, MissingExtraError without the extra `cron`.
        """
        return known.declared_definitions(self._builder, tasks)

    # --- consuming without a worker --------------------------------------------------------------

    async def consume(
        self, *, name: str | None = None, visibility_timeout: float = 30.0
    ) -> AsyncGenerator[Delivery, None]:
        """Yield deliveries, fairly over the tiers, until the loop is left.

        The broker holds each delivery and renews its lease in the background until `ack`, `nack` or the end of the
        loop. At the end it releases all that is not acknowledged. Entries that are no messages are dead-lettered.
        `contextlib.aclosing` closes the iterator at a known place; the end of the broker's block closes it at the
        latest. `visibility_timeout` is in seconds, `name` is the name of the consumer.
        """
        if self._group is None:
            raise NotOpenError(repr(self))
        self.client.owner.check()
        visibility_timeout = bounds.VISIBILITY_TIMEOUT.check(visibility_timeout)
        consumer = ManualConsumer(self.store, name=consumer_name(name), visibility_timeout=visibility_timeout)
        # Its loops run in the task group of the broker: a generator that is left half way must not own a cancel scope.
        await self._group.start(consumer.serve)
        self._consumers.add(consumer)
        try:
            while True:
                yield (await consumer.next()).copy()
        finally:
            self._consumers.discard(consumer)
            consumer.stop()

    async def ack(self, task_id: str) -> None:
        """Acknowledge a delivery that `consume` yielded: its work is done.

        Returns when the server has it. Raises NotHeldError if this broker does not hold the delivery, and
        ConfigurationError for what is no id.
        """
        consumer, delivery = self._take(task_id)
        await consumer.settle(delivery, Ack())

    async def nack(self, task_id: str, *, error: BaseException | None = None) -> None:
        """Release a delivery that `consume` yielded, for any consumer at once. With an `error` it is dead-lettered.

        Raises NotHeldError if this broker does not hold the delivery, and ConfigurationError for what is no id, or no
        exception: the delivery stays held.
        """
        check_type("error", error, BaseException | None, "an exception, as in error=ValueError('no such customer')")
        consumer, delivery = self._take(task_id)
        await consumer.settle(delivery, Release() if error is None else DeadLetter(Reason.REJECTED, failure_of(error)))

    def _take(self, task_id: str) -> tuple[ManualConsumer, Delivery]:
        """Return a held delivery and its consumer, and hold it no longer."""
        check_type("task_id", task_id, str, "the id of a delivery, as text: delivery.task_id")
        if self._consumers:
            self.client.owner.check()
        for consumer in self._consumers:
            if (delivery := consumer.unsettled.pop(task_id, None)) is not None:
                return consumer, delivery
        raise NotHeldError(task_id)


name_remedies(RedisBroker, "broker")
_open_brokers: WeakValueDictionary[int, RedisBroker] = WeakValueDictionary()  # by the id of the client, which it holds


def current_broker() -> RedisBroker:
    """Return the broker of the worker whose handler calls this, to send from a task.

    In a thread: `anyio.from_thread.run(lambda: broker.enqueue(send, "x"))`. Raises LookupError elsewhere.
    """
    if (broker := _open_brokers.get(id(current_store().client))) is None:
        raise nothing_here("the broker of this handler's worker was closed")
    return broker

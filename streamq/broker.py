"""`RedisBroker`: where tasks are sent, and where a loop by hand takes them from.

It puts the parts together (address, connection, keys, tiers, store) and turns a task and its
arguments into a message. The commands themselves are the store's.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

import anyio
import anyio.abc

from streamq.client import Address, Client, Command, Shelter
from streamq.clock import SYSTEM, Clock
from streamq.consumer.manual import Hands
from streamq.errors import ConfigurationError, NotHeldError, NotOpenError, OutcomeUnknownError, check_number
from streamq.middleware.chain import MiddlewareChain, SendNext
from streamq.middleware.enqueue_many import SendAll, Together
from streamq.queue.acceptance import Accepted
from streamq.queue.delayed import Scheduled, scheduled
from streamq.queue.results import Handle, Waiters
from streamq.queue.schedules import Definition, Schedule, declared_by, define, listed, store_schedule, unregister
from streamq.queue.sending import Outgoing, Sender, new_task_id
from streamq.queue.store import DeadLetterBound, Store
from streamq.queue.workflow_start import Plan, Workflow
from streamq.tasks.cron import Cron
from streamq.tasks.outcome import Ack, DeadLetter, Reason, Release, failure_of
from streamq.tasks.task import Call, Durable, Task, TaskRef
from streamq.wire.delivery import Delivery
from streamq.wire.flow import Flow
from streamq.wire.keys import Keys
from streamq.wire.message import MAX_PAYLOAD
from streamq.wire.tiers import DEFAULT_TIERS, Tier, check_tiers

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_URL = "redis://localhost:6379"


class RedisBroker:
    """The queue, as a program sees it: `async with RedisBroker(url) as broker:`.

    `url` is `redis://`, `rediss://`, `valkey://`, `valkeys://`, `unix://`, or one of the embedded servers:
    `memory://`, `memory://name`, `embedded://`, `embedded:///path/to/data`. `queue_name` makes
    it a broker of one stream alone. `tiers` are the priority tiers, `namespace` the prefix of
    every key, `group` the consumer group. `max_payload` (bytes) bounds a message. Timeouts are
    in seconds. `middleware` wraps every enqueue, and every run of the broker's workers, outermost.
    `clock` is for tests and simulations; the workers of a broker go by it too.

    Raises ConfigurationError for a value that cannot be used.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, queue_name: str | None = None, namespace: str | None = None,
        group: str = "workers", tiers: Iterable[Tier] | None = None, max_payload: int = MAX_PAYLOAD,
        connect_timeout: float = 5.0, reply_timeout: float = 10.0, dead_letters: DeadLetterBound | None = None,
        clock: Clock = SYSTEM, middleware: MiddlewareChain | None = None,
    ) -> None:  # fmt: skip
        if queue_name is not None:
            if tiers is not None:
                raise ConfigurationError(f"queue_name={queue_name!r} and tiers: give one of them")
            prefix, _, name = queue_name.rpartition(":")
            namespace = namespace or prefix or queue_name
            tiers = [Tier(name, stream=queue_name)]
        self.url = url
        self.clock = clock
        self.middleware = middleware if middleware is not None else MiddlewareChain()
        self._wrapped: dict[tuple[int, int], tuple[tuple[Any, ...], MiddlewareChain, SendNext]] = {}
        self.tiers = check_tiers(DEFAULT_TIERS if tiers is None else tiers)
        self.keys = Keys.of(namespace or "queue", group, self.tiers)
        self.dead_letters = dead_letters or DeadLetterBound()
        self._timeouts = (connect_timeout, reply_timeout)
        self._scheme = url.partition("://")[0]
        self._address = Address.parse("unix:///memory" if self._scheme in ("memory", "embedded") else url)
        self._store: Store | None = None
        self._waiters: Waiters | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self._stack: AsyncExitStack | None = None
        self._hands: set[Hands] = set()
        self.max_payload = max_payload
        self._sender = Sender(self.keys, self.tiers, limit=max_payload, now=clock.now)

    def __repr__(self) -> str:
        where = self.url if self._scheme in ("memory", "embedded") else repr(self._address)
        state = "closed" if self._store is None else "open"
        return f"<RedisBroker {where} namespace={self.keys.namespace} group={self.keys.group} {state}>"

    # --- open and close ------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise ConfigurationError(f"{self!r} is open already: open a broker once")
        stack = AsyncExitStack()
        await stack.__aenter__()
        try:
            await stack.enter_async_context(self._opened())
        except BaseException:
            await stack.aclose()
            raise
        self._stack = stack
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        stack, self._stack = self._stack, None
        return await stack.__aexit__(kind, error, trace) if stack is not None else None

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        failed: BaseException | None = None
        async with AsyncExitStack() as stack:
            # What uses the client (`_group`) must end before it, what an embedded server runs on after it.
            serving = await stack.enter_async_context(Shelter())
            address, dial = await self._server(stack, serving)
            connect_timeout, reply_timeout = self._timeouts
            client = Client(
                address, dial=dial, connect_timeout=connect_timeout, reply_timeout=reply_timeout, client_name="streamq"
            )
            await stack.enter_async_context(client)
            self._group = await stack.enter_async_context(_task_group())
            self._store = Store(
                client, self.keys, self.tiers, bound=lambda: self.dead_letters, clock=self.clock,
                max_payload=self.max_payload,
            )  # fmt: skip
            self._waiters = Waiters(self._store, self._group)
            try:
                yield
            except BaseException as error:  # raised below: a task group would wrap it
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
                failed = error
            finally:
                self._store = self._waiters = self._group = None
        if failed is not None:
            raise failed

    async def _server(self, stack: AsyncExitStack, serving: Shelter) -> tuple[Address, Any]:
        """Return where to connect, and how; an embedded server is started first."""
        if self._scheme == "memory":
            from streamq.embedded import MemoryServer  # noqa: PLC0415 - an extra

            name = self.url.partition("://")[2].strip("/")
            server = MemoryServer.named(name) if name else MemoryServer()
            return self._address, server.dialer(serving)
        if self._scheme == "embedded":
            from streamq.embedded import EmbeddedServer  # noqa: PLC0415 - an extra

            embedded = EmbeddedServer(self.url.partition("://")[2] or None)
            await stack.enter_async_context(embedded)
            return Address.parse(embedded.url), None
        return self._address, None

    @property
    def store(self) -> Store:
        """The queue's commands. Raises NotOpenError outside `async with`."""
        if self._store is None:
            raise NotOpenError(repr(self))
        return self._store

    @property
    def client(self) -> Client:
        """redis-py's command methods on the broker's own connection."""
        return self.store.client

    # --- sending ---------------------------------------------------------------------------------

    @overload
    async def enqueue(self, task: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    async def enqueue(self, task: str | TaskRef, /, *args: Any, **kwargs: Any) -> Handle[Any]: ...
    async def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Send one task and return its handle once the server has it: one round trip.

        `task` is a task, or the name of one whose code is elsewhere. Keyword arguments that
        are names of options (`Options`) are options, unless the task has a parameter of that
        name; `task.options(...)` leaves no doubt.

        Raises ArgumentsError, EncodingError or PayloadTooLargeError for what cannot be sent,
        BrokerUnavailableError if nothing was sent, BrokerError if the server refused it,
        OutcomeUnknownError if the connection was lost before the reply, and NotDurableError if
        the server has it and what `durable` asks for was not confirmed.
        """
        call = self._sender.called(task, args, kwargs)
        if not (self.middleware.wraps_enqueues or call.task.middleware):
            return await self._send(call)
        return await self._around(call)[2](call)

    async def enqueue_many(self, calls: Iterable[Call[Any]]) -> list[Handle[Any]]:
        """Send many tasks in one round trip, and return their handles in the same order.

        Nothing is sent if one of them cannot be. Raises what `enqueue` raises.
        """
        return await self._through(list(calls), self._send_all)

    async def _through(self, calls: Sequence[Call[Any]], send_all: SendAll) -> list[Handle[Any]]:
        """Send calls together, each through its own middleware."""
        if not (self.middleware.wraps_enqueues or any(call.task.middleware for call in calls)):
            return await send_all(calls)
        together = Together(send_all, len(calls))
        return await together.run([
            partial(self._around(call)[1].around_enqueue(partial(together.send, place)), call)
            for place, call in enumerate(calls)
        ])  # fmt: skip

    async def start(self, flow: Flow[R], /, *, workflow_id: str | None = None) -> Workflow[R]:
        """Start a workflow: send its first steps, all or none, in one round trip. They carry all others.

        A `workflow_id` of your own makes it repeatable: within 1 h a workflow of one id is started once. The steps
        have the ids `<workflow_id>.1` and so on, in the order they were written in, where they have none of their own.

        Raises what `enqueue` raises; ConfigurationError for a flow that cannot be started.
        """
        plan = Plan(flow, self._sender.called)
        chosen = workflow_id if workflow_id is not None else new_task_id()

        async def send_all(calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
            return await self._start(plan, calls, chosen, guarded=workflow_id is not None)

        handles = await self._through(plan.calls, send_all)
        return Workflow(chosen, all(handle.fresh for handle in handles), tuple(handles), plan.ends)

    async def _start(
        self, plan: Plan, calls: Sequence[Call[Any]], workflow_id: str, *, guarded: bool
    ) -> list[Handle[Any]]:
        store = self.store
        ready = plan.ready(self._sender, store, calls, workflow_id, guarded=guarded)
        try:
            (accepted,) = await self._sent([ready.command], ready.durable)
        except OutcomeUnknownError as error:
            error.task_id = workflow_id
            raise
        return [
            self._handle(Outgoing(call, tier, task_id, ()), accepted._replace(task_id=task_id))
            for call, tier, task_id in ready.steps
        ]

    def _around(self, call: Call[Any]) -> tuple[tuple[Any, ...], MiddlewareChain, SendNext]:
        """Return a task's own middleware, that joined to ours, and what sends through all of it: made once per task."""
        own = call.task.middleware
        # By identity: what options are given to a task makes another one of it, with the same middleware.
        key = (id(own), len(self.middleware))
        known = self._wrapped.get(key)
        if known is None:
            links = self.middleware.joined(own)
            known = self._wrapped[key] = (own, links, links.around_enqueue(self._send))
        return known

    async def _send(self, call: Call[Any]) -> Handle[Any]:
        outgoing = self._sender.prepare(self.store, call)
        try:
            wish: Durable | None = call.task.sending.durable
            (accepted,) = await self._sent((outgoing.command,), () if wish is None else (wish,))
        except OutcomeUnknownError as error:
            error.task_id = outgoing.call.task.sending.task_id
            raise
        return self._handle(outgoing, accepted)

    async def _send_all(self, calls: Sequence[Call[Any]]) -> list[Handle[Any]]:
        store = self.store
        outgoing = self._sender.prepare_all(store, calls)
        if not outgoing:
            return []
        durable: list[Durable] = [wish for call in calls if (wish := call.task.sending.durable) is not None]
        accepted = await self._sent([one.command for one in outgoing], durable)
        return [self._handle(one, done) for one, done in zip(outgoing, accepted, strict=True)]

    async def _sent(self, commands: Sequence[Command], durable: Sequence[Durable]) -> Iterator[Accepted]:
        if durable:
            return await self.store.enqueue_durably(commands, durable)
        return await self.store.enqueue(commands)

    def _handle(self, outgoing: Outgoing, accepted: Accepted) -> Handle[Any]:
        if self._waiters is None:
            raise NotOpenError(repr(self))
        task = outgoing.call.task
        keeps = isinstance(task, TaskRef) or task.result_ttl is not None or task.sending.result_ttl is not None
        return Handle(
            accepted.task_id or outgoing.task_id, task.name, outgoing.tier, accepted.entry_id, accepted.fresh, keeps,
            self.store, self._waiters, None, accepted.replaced, accepted.since,
        )  # fmt: skip

    # --- what was sent ---------------------------------------------------------------------------

    def handle(self, task_id: str, *, tier: str | None = None) -> Handle[Any]:
        """Return the handle of a task that was sent before, by its id. No round trip: nobody says that it is there.

        It is looked for in `tier` first, and then in all others. Raises ConfigurationError for an unknown tier.
        """
        if self._waiters is None:
            raise NotOpenError(repr(self))
        at = 0 if tier is None else self._sender.tier_of(tier)
        return Handle(task_id, "", at, "", False, True, self.store, self._waiters)

    async def cancel(self, task_id: str, *, tier: str | None = None) -> bool:
        """Withdraw a task by its id if it was not delivered yet; a running one is told to stop.

        Returns whether it was withdrawn, or told. Without its handle the streams are looked through from their
        beginning, 500 entries in one step.
        """
        return await self.handle(task_id, tier=tier).cancel()

    def scheduled(self, *, limit: int | None = None, tier: str | None = None) -> AsyncGenerator[Scheduled, None]:
        """Yield the tasks that are delayed, retries included, soonest first: of all tiers or one, at most `limit`.

        Brings them by pages; what is sent or becomes due meanwhile may be missed. Raises ConfigurationError for an
        unknown tier.
        """
        tiers = range(len(self.tiers)) if tier is None else [self._sender.tier_of(tier)]
        return scheduled(self.store, tiers, limit)

    # --- what recurs -------------------------------------------------------------------------------

    async def schedule(self, name: str, cron: Cron | str, call: Call[Any] | Task[Any, Any] | str, /) -> None:
        """Have a call sent again and again, by whatever workers run; replaces the schedule of that name.

        What is stored needs no worker that knows it. Its next tick stays if `cron` and its time zone do.

        Raises ConfigurationError for what cannot be used and for a name that `@task(cron=...)` declares,
        MissingExtraError without the extra `cron`, and what `enqueue` raises for the call.
        """
        cron = Cron(cron) if isinstance(cron, str) else cron
        if not isinstance(call, Call):
            call = self._sender.called(call, cron.args, cron.kwargs)
        elif cron.args or cron.kwargs:
            raise ConfigurationError(f"{cron!r} and {call!r} both have arguments: give them to one")
        wanted = define(self._sender, self._streams, name, cron, call, declared=False)
        await store_schedule(self.store, wanted)

    async def schedules(self) -> list[Schedule]:
        """Return all schedules, stored and declared, by the time of their next ticks."""
        return await listed(self.store)

    async def unschedule(self, name: str) -> bool:
        """Forget a schedule; what was sent stays. Returns whether there was one.

        One that `@task(cron=...)` declares comes back while there are workers whose code has it.
        """
        return await unregister(self.store, name)

    def declared(self, tasks: Iterable[Task[Any, Any]]) -> list[Definition]:
        """Return the schedules that tasks declare. Raises MissingExtraError without the extra `cron`."""
        return declared_by(self._sender, self._streams, tasks)

    @property
    def _streams(self) -> list[str]:
        return [keys.stream for keys in self.keys.tiers]

    async def is_duplicate(self, task_id: str, ttl: float = 3600.0) -> bool:
        """Return whether this was asked for the same id within `ttl` seconds before, and note it.

        For handlers that must not act twice. It notes the start of the work, not its end: a
        handler that crashes after asking is told "duplicate" when it runs again.
        """
        reply = await self.store.one(("SET", self.keys.seen(task_id), "1", "NX", "PX", max(1, round(ttl * 1000))))
        return reply is None

    # --- taking, by hand -----------------------------------------------------------------------

    async def consume(
        self, *, name: str | None = None, visibility_timeout: float = 30.0
    ) -> AsyncGenerator[Delivery, None]:
        """Yield deliveries, fairly over the tiers, for as long as the loop goes on.

        Each is held, its lease renewed in the background, until `ack`, `nack` or the end of the
        loop, which hands back what is not acknowledged. Entries that are no messages go to the
        dead letters. Close the iterator (`contextlib.aclosing`) to hand back early; at the latest
        the end of the broker's block does.
        """
        if self._group is None:
            raise NotOpenError(repr(self))
        check_number("visibility_timeout", visibility_timeout, 0.1)
        hands = Hands(self.store, name=consumer_name(name), visibility_timeout=visibility_timeout)
        # Its loops live in the broker's task group: a generator that is left half way must not
        # own a cancel scope.
        await self._group.start(hands.serve)
        self._hands.add(hands)
        try:
            while True:
                yield await hands.next()
        finally:
            self._hands.discard(hands)
            hands.stop()

    async def ack(self, task_id: str) -> None:
        """Acknowledge a delivery that `consume` gave: its work is done.

        Returns once the server has it. Raises NotHeldError if it is not held here.
        """
        hands, delivery = self._take_back(task_id)
        await hands.settle(delivery, Ack())

    async def nack(self, task_id: str, *, error: BaseException | None = None) -> None:
        """Give back a delivery that `consume` gave: at once, or to the dead letters with an error."""
        hands, delivery = self._take_back(task_id)
        outcome = Release() if error is None else DeadLetter(Reason.REJECTED, failure_of(error))
        await hands.settle(delivery, outcome)

    def _take_back(self, task_id: str) -> tuple[Hands, Delivery]:
        for hands in self._hands:
            if (delivery := hands.taken.pop(task_id, None)) is not None:
                return hands, delivery
        raise NotHeldError(task_id)


@asynccontextmanager
async def _task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group whose tasks end with it."""
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


def consumer_name(given: str | None = None) -> str:
    """Return a consumer's name: the one given, or host, process and a random part."""
    return given or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

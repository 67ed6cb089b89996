"""From a task to the one call that runs a delivery of it: its handler, its limits, its middleware.

Put together once per task and not once per message. Waiting in middleware, for others' threads and for
a batch is not timed: a timeout is the handler's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio

from streamq.consumer.batching import Batches
from streamq.consumer.threads import Threads
from streamq.errors import TaskTimeoutError
from streamq.middleware import Context, MiddlewareChain
from streamq.queue.store import Store
from streamq.tasks.arguments import encode_extra
from streamq.tasks.batch import BatchTask
from streamq.tasks.task import Task
from streamq.wire.delivery import Delivery
from streamq.wire.side_effects import DEDUP_UNTIL

Runnable = Callable[[Delivery, Sequence[Any], dict[str, Any]], Awaitable[Any]]


class Prepared:
    """A task made ready to run: its handler, its limits and its middleware in one call."""

    __slots__ = ("_bare", "_store", "_threads", "batches", "call", "default", "limit", "result_ttl", "task")

    def __init__(self, task: Task[Any, Any], chain: MiddlewareChain, threads: Threads, store: Store) -> None:
        self.task = task
        self.result_ttl = task.result_ttl
        self._store = store
        self.default = encode_extra if task.arguments.converter is not None else None
        self._threads = threads
        self.batches: Batches | None = None
        if isinstance(task, BatchTask):
            ready = threads.room if task.run_in == "thread" else None
            self.batches = Batches(task, self._handle(), store, ready=ready)
        # The timeout (s) that the runner itself keeps: of a handler with nothing around it. None where it does not.
        in_loop = self.batches is None and task.run_in == "loop"
        self.limit = task.timeout if in_loop and not chain.wraps_runs else None
        self._bare = self._alone() if self.batches is None else self._together(self.batches)
        self.call: Runnable = self._wrapped(chain) if chain.wraps_runs else self._bare

    def _alone(self) -> Runnable:
        """Return the shortest way: no middleware, so no context either."""
        task, store, invoke = self.task, self._store, self._invoke()
        timeout = task.timeout
        threads = self._threads if task.run_in == "thread" else None

        def plainly(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Awaitable[Any]:
            return invoke(args, kwargs) if delivery.plain else call(delivery, args, kwargs)

        def timed_outside(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Awaitable[Any]:
            # What runs alone is waited for before its settlement goes, in a scope that must not be cancelled.
            return invoke(args, kwargs) if delivery.plain and not delivery.alone else call(delivery, args, kwargs)

        async def call(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            limit = timeout
            if not delivery.plain:
                if DEDUP_UNTIL in delivery.fields:
                    await store.started(delivery)
                if b"timeout" in delivery.fields:
                    limit = delivery.timeout or None
            if threads is not None:
                await threads.room()  # not timed: others' threads that do not end are not its fault
            return await (invoke(args, kwargs) if limit is None else _within(limit, task.name, invoke(args, kwargs)))

        if self.limit is not None:
            return timed_outside
        return plainly if timeout is None and threads is None else call

    def _together(self, batches: Batches) -> Runnable:
        """Return the way into a batch: the timeout is that of its handler, and no one's who waits for more."""
        task, store = self.task, self._store
        timeout, arguments, converter = task.timeout, task.arguments, task.arguments.converter

        async def call(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            if DEDUP_UNTIL in delivery.fields:
                await store.started(delivery)
            limit = delivery.timeout or None if b"timeout" in delivery.fields else timeout
            if converter is not None:
                args, _ = converter(args, kwargs)
            else:
                arguments.bind(args, kwargs)
            return await batches.run(delivery, args[0], limit)

        return call

    def _handle(self) -> Callable[[list[Any]], Awaitable[Any]]:
        """Return what runs the handler of a batch, with its items."""
        function, threads = self.task.function, self._threads

        async def in_thread(items: list[Any]) -> Any:
            return await threads.run(partial(function, items))

        async def in_process(items: list[Any]) -> Any:
            return await _in_process(function, (items,), {})

        ways: dict[str, Callable[[list[Any]], Awaitable[Any]]] = {
            "loop": function, "thread": in_thread, "process": in_process
        }  # fmt: skip
        return ways[self.task.run_in]

    def _wrapped(self, chain: MiddlewareChain) -> Runnable:
        """Return the handler, with its timeout, inside the chain: waiting in middleware is not timed."""
        bare, task, store = self._bare, self.task, self._store

        def innermost(context: Context) -> Awaitable[Any]:
            return bare(context.delivery, context.args, context.kwargs)

        whole = chain.around(innermost)

        def call(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Awaitable[Any]:
            return whole(Context(task, delivery, args, kwargs, store))

        return call

    def _invoke(self) -> Callable[[Sequence[Any], Mapping[str, Any]], Awaitable[Any]]:
        task = self.task
        function, arguments, converter = task.function, task.arguments, task.arguments.converter
        threads = self._threads

        def fit(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
            if converter is not None:
                return converter(args, kwargs)
            arguments.bind(args, kwargs)
            return args, kwargs

        def in_loop(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Awaitable[Any]:
            if converter is not None:
                args, kwargs = converter(args, kwargs)
            try:
                return function(*args, **kwargs)  # type: ignore[no-any-return]
            except TypeError:  # calling an async function runs nothing of it: the arguments are wrong
                arguments.bind(args, kwargs)
                raise

        async def in_thread(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            args, kwargs = fit(args, kwargs)
            call = partial(function, *args, **kwargs)
            return await threads.run(call)

        async def in_process(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            args, kwargs = fit(args, kwargs)
            return await _in_process(function, args, kwargs)

        return {"loop": in_loop, "thread": in_thread, "process": in_process}[task.run_in]


async def _within(limit: float, name: str, running: Awaitable[Any]) -> Any:
    """Wait for a run of a task for `limit` seconds. Raises TaskTimeoutError if it was ended then."""
    ended: BaseException | None = None
    with anyio.move_on_after(limit) as scope:
        try:
            return await running
        except BaseException as error:
            ended = error
            raise
    if scope.cancelled_caught:
        raise timed_out(name, limit, ended)
    return None


def timed_out(name: str, limit: float, ended: BaseException | None) -> TaskTimeoutError:
    """Return the error of a task that was `ended` for its timeout; the cause says where it was."""
    error = TaskTimeoutError(name, limit)
    error.__cause__ = ended
    return error


async def _in_process(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    from anyio import to_process  # noqa: PLC0415 - it loads pickle, half a MiB

    call = partial(_call_by_name, function.__module__, function.__qualname__, args, kwargs)
    return await to_process.run_sync(call, cancellable=True)


def _call_by_name(module: str, qualname: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a task's function in a process of its own: the child looks it up, no code is sent."""
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    function = found.function if isinstance(found, Task) else found
    return function(*args, **kwargs)

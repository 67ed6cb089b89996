"""A handler: the one call that runs a delivery of a task, with its function, its timeout and its middleware.

It is built once per task, not once per message. The timeout bounds the function alone: waiting in middleware, for a
thread, for a process, or for a batch does not count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import anyio

from streamq.consumer.batching import Batches
from streamq.consumer.process_outcome import EncodedResult, pack
from streamq.consumer.process_pool import Processes
from streamq.consumer.shortage import NotStartedError
from streamq.consumer.threads import Threads
from streamq.consumer.unrun_result import PLAIN, awaited
from streamq.diagnostics.safe_log import INFO
from streamq.diagnostics.safe_text import str_of
from streamq.errors import ArgumentsError, TaskTimeoutError
from streamq.errors.readable import readable
from streamq.handlers.context import delivery_var
from streamq.middleware import Context, MiddlewareChain
from streamq.queue.store import Store
from streamq.tasks.batch import BatchTask
from streamq.tasks.task import Task
from streamq.wire.delivery import Delivery
from streamq.wire.side_effects import DEDUP_UNTIL

_MODULES = {"loop": (), "thread": ("anyio.from_thread",), "process": ("pickle",)}  # of its runs
Runnable = Callable[[Delivery, Sequence[Any], dict[str, Any]], Awaitable[Any]]


class Handler:
    """A task made ready to run. `call` runs one delivery of it.

    `runner_timeout` (s) is the timeout that the runner itself enforces (see `timeouts`), for a function of the event
    loop with nothing around it. None where `call` enforces it, or where there is none. `failure_level` is the level of
    the line that is logged for each failed attempt. `none_fits` says that a result of None needs no encoding.
    """

    __slots__ = (
        "_processes",
        "_store",
        "_threads",
        "_without_middleware",
        "batches",
        "call",
        "encode",
        "failure_level",
        "none_fits",
        "result_ttl",
        "runner_timeout",
        "task",
    )

    def __init__(
        self, task: Task[Any, Any], chain: MiddlewareChain, threads: Threads, processes: Processes, store: Store, *,
        failure_level: int = INFO,
    ) -> None:  # fmt: skip
        for module in _MODULES[task.run_in]:  # now: later the process may have no descriptor left to open a file
            import_module(module)
        self.task = task
        self.failure_level = failure_level
        self.result_ttl = task.result_ttl
        self._store = store
        task.arguments.check(keeps_result=task.result_ttl is not None)
        encode = task.arguments.result_type.encode
        self.none_fits = task.arguments.result_type.takes_none
        self.encode = encode if task.run_in != "process" else partial(_of_process, encode)
        self._threads = threads
        self._processes = processes
        self.batches: Batches | None = None
        if isinstance(task, BatchTask):
            turns: dict[str, Callable[[], AbstractAsyncContextManager[object]]] = {
                "loop": nullcontext, "thread": threads.turn, "process": partial(processes.turn, task.name)
            }  # fmt: skip
            self.batches = Batches(task, self._batch_function(), store, turn=turns[task.run_in])
        in_loop = self.batches is None and task.run_in == "loop"
        self.runner_timeout = task.timeout if in_loop and not chain.wraps_runs else None
        self._without_middleware = self._single_call() if self.batches is None else self._batched_call(self.batches)
        self.call: Runnable = self._with_middleware(chain) if chain.wraps_runs else self._without_middleware

    def _single_call(self) -> Runnable:  # noqa: C901 - each function of its own would be one more call per task
        """Return the shortest call: no batch, no middleware, so no context either."""
        task, store, invoke = self.task, self._store, self._function_call()
        timeout = task.timeout
        threads = self._threads if task.run_in == "thread" else None
        turn = partial(self._processes.turn, task.name) if task.run_in == "process" else nullcontext

        def direct(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Awaitable[Any]:
            return invoke(args, kwargs) if delivery.only_basic_fields else call(delivery, args, kwargs)

        def timed_by_runner(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Awaitable[Any]:
            # The runner waits for the settlement of an isolated delivery, in a scope that must not be cancelled.
            return (
                invoke(args, kwargs)
                if delivery.only_basic_fields and not delivery.isolated
                else call(delivery, args, kwargs)
            )

        async def call(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            limit = timeout
            if not delivery.only_basic_fields:
                if DEDUP_UNTIL in delivery.fields:
                    await store.started(delivery)
                if b"timeout" in delivery.fields:
                    limit = delivery.timeout or None
            while True:
                if threads is not None:
                    await threads.wait_for_thread()  # not timed: that threads of other runs do not end is not its fault
                try:
                    async with turn():  # not timed either
                        return await (
                            invoke(args, kwargs)
                            if limit is None
                            else _with_timeout(limit, task.name, invoke(args, kwargs))
                        )
                except NotStartedError:  # it has not begun
                    continue

        if self.runner_timeout is not None:
            return timed_by_runner
        return direct if timeout is None and task.run_in == "loop" else call

    def _batched_call(self, batches: Batches) -> Runnable:
        """Return the call that joins a batch. The timeout bounds the batch's handler, not the wait for messages."""
        task, store = self.task, self._store
        timeout, arguments, converter = task.timeout, task.arguments, task.arguments.converter

        async def call(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
            if DEDUP_UNTIL in delivery.fields:
                await store.started(delivery)
            limit = delivery.timeout or None if b"timeout" in delivery.fields else timeout
            if kwargs or len(args) != 1:
                arguments.bind(args, kwargs)  # raises
            if task.run_in == "process":  # it converts what it gets: here one item that does not fit is found
                _check_for_process(task, args)
            elif converter is not None:
                args, _ = converter(args, kwargs)
            return await batches.run(delivery, args[0], limit)

        return call

    def _batch_function(self) -> Callable[[list[Any]], Awaitable[Any]]:
        """Return the function that runs the handler of a batch with its items."""
        task, function, threads, processes = self.task, self.task.function, self._threads, self._processes

        async def in_thread(items: list[Any]) -> Any:
            results = await threads.run(partial(function, items))
            return results if type(results) in PLAIN else await awaited(results)

        async def in_process(items: list[Any]) -> Any:
            return await processes.run(task, (items,), {}, batch=True)

        ways: dict[str, Callable[[list[Any]], Awaitable[Any]]] = {
            "loop": function, "thread": in_thread, "process": in_process
        }  # fmt: skip
        return ways[self.task.run_in]

    def _with_middleware(self, chain: MiddlewareChain) -> Runnable:
        """Return the call inside the middleware: waiting in middleware is not timed."""
        inner, task, store = self._without_middleware, self.task, self._store
        run_of = delivery_var.get

        def innermost(context: Context) -> Awaitable[Any]:
            if (delivery := run_of()) is not None:
                delivery.began = True
            return inner(context.delivery, context.args, context.kwargs)

        async def decoded(context: Context) -> Any:
            result = await innermost(context)
            return task.arguments.result_type.decode(result.payload) if type(result) is EncodedResult else result

        whole = chain.around(decoded if task.run_in == "process" else innermost)

        def call(delivery: Delivery, args: Sequence[Any], kwargs: dict[str, Any]) -> Awaitable[Any]:
            delivery.began = False
            return whole(Context(task, delivery.copy(), args, kwargs, store))

        return call

    def _function_call(self) -> Callable[[Sequence[Any], Mapping[str, Any]], Awaitable[Any]]:
        task = self.task
        function, arguments, converter = task.function, task.arguments, task.arguments.converter
        threads, processes = self._threads, self._processes

        def fit(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
            arguments.bind(args, kwargs)
            return (args, kwargs) if converter is None else converter(args, kwargs)

        def in_loop(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Awaitable[Any]:
            if converter is not None:
                args, kwargs = converter(args, kwargs)
            try:
                return function(*args, **kwargs)  # type: ignore[no-any-return]
            except TypeError:  # calling an async function runs nothing of it, so the arguments are wrong
                arguments.bind(args, kwargs)
                raise

        def in_loop_if_bound(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Awaitable[Any]:
            args, kwargs = fit(args, kwargs)
            return function(*args, **kwargs)  # type: ignore[no-any-return]

        async def in_thread(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            args, kwargs = fit(args, kwargs)
            result = await threads.run(partial(function, *args, **kwargs))
            return result if type(result) in PLAIN else await awaited(result)

        async def in_process(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            return await processes.run(task, args, kwargs)

        loop = in_loop_if_bound if arguments.unpacks else in_loop
        return {"loop": loop, "thread": in_thread, "process": in_process}[task.run_in]


def _of_process(encode: Callable[[Any], bytes], result: Any) -> bytes:
    """Return a result of a process as JSON: as it was encoded there, unless middleware has put another in its place."""
    return result.payload if type(result) is EncodedResult else encode(result)


def _check_for_process(task: Task[Any, Any], args: Sequence[Any]) -> None:
    """Raise ArgumentsError for an item that does not fit, or cannot be sent to a process: others of its batch can."""
    if task.arguments.converter is not None:
        task.arguments.converter(args, {})
    try:
        pack(args, {})
    except Exception as error:  # JSON that is too deep; what middleware put there may raise anything
        raise ArgumentsError(task.name, f"the item cannot be sent to a process: {str_of(error)}") from error


async def _with_timeout(limit: float, name: str, running: Awaitable[Any]) -> Any:
    """Wait at most `limit` seconds for a run of a task. Raises TaskTimeoutError after that."""
    ended: BaseException | None = None
    try:
        with anyio.move_on_after(limit) as scope:
            try:
                return await running
            except BaseException as error:
                ended = readable(error)
                if ended is error:
                    raise
            raise ended
        if scope.cancelled_caught:
            raise timeout_error(name, limit, ended)
        return None
    finally:  # its traceback has this frame, which must not have it
        del ended


TIMED = _with_timeout.__code__  # a run has a frame of it, with a `scope`, if its timeout is here and not its runner's


def timeout_error(name: str, limit: float, ended: BaseException | None) -> TaskTimeoutError:
    """Return the error of a run that timed out; its cause, the exception `ended`, shows where the run was."""
    error = TaskTimeoutError(name, limit)
    error.__cause__ = ended
    return error

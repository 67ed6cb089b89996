"""The processes of handlers with `run_in="process"`, in one worker.

A process starts when a run needs one and none is idle, is used again, and is replaced when it has run as often, or has
grown as large, as the worker allows. Its replacement starts before that, so that no run waits for it.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, Final

import anyio
import anyio.abc

from streamq.consumer.capacity import Capacity
from streamq.consumer.cpu_count import usable_cores
from streamq.consumer.process_frames import Call, How, Setup, SpoiledError
from streamq.consumer.process_handle import START_TIMEOUT, EndedError, FailedError, ProcessHandle
from streamq.consumer.process_outcome import pack, receive
from streamq.consumer.process_output import Pace
from streamq.consumer.shortage import NO_MORE, NotStartedError, Shortage
from streamq.diagnostics.safe_log import SafeLog
from streamq.diagnostics.safe_text import repr_of
from streamq.errors import ConfigurationError, ProcessDiedError
from streamq.handlers.context import delivery_var
from streamq.tasks.batch import BatchTask
from streamq.tasks.task import Task
from streamq.wire import bounds
from streamq.wire.argument_types import check_callable

log = SafeLog("streamq")

_AS_IT_STARTED: Final = "it ended as it started"
_SPOILED: Final = "it wrote into the socket by which it answers its worker, and was killed"
_STARTS: Final = 3  # of processes that end as they start, one after the other, until that fails the run
_NONE_LEFT: Final = NO_MORE | {errno.EAGAIN}
_NEARLY: Final = 0.8  # of `max_rss`: from there on a replacement starts
_UNUSED: Final = 300.0  # seconds after which an idle process ends
_CHECK_EVERY: Final = 60.0
_STARTS_SLOWLY: Final = (
    "a process of handlers (pid %d) has not started after %g s: it imports the modules of the tasks, or calls the "
    "initializer; it is killed after %g s"
)
_SLOW: Final = 5.0  # seconds of a start after which the log says so
_LEAVING: Final = 2.0  # seconds that processes have to end by themselves as the worker ends


class Processes:
    """The processes of one worker, at most `size` at a time, beside those that are about to replace others.

    Each ends after `max_tasks` runs, or after one that leaves it with more than `max_rss` bytes of memory. `tasks` are
    those that it may run: each process imports their modules as it starts, and calls `initializer` then.

    A run has its `turn` before its timeout begins: to wait for a process, and for its start, is not the task's fault.
    """

    def __init__(
        self, size: int | None = None, *, tasks: Iterable[Task[..., Any]] = (), max_tasks: int | None = None,
        max_rss: int | None = None, initializer: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self.size: int = usable_cores() if size is None else bounds.HANDLER_PROCESSES.check(size)
        self._max_tasks = None if max_tasks is None else bounds.MAX_TASKS_PER_PROCESS.check(max_tasks)
        self._max_rss = None if max_rss is None else bounds.MAX_RSS.check(max_rss)
        ours = [task for task in tasks if task.run_in == "process"]
        self.costs = {task.name.encode(): 1 / task.batch.size if isinstance(task, BatchTask) else 1.0 for task in ours}
        self._modules = tuple(dict.fromkeys(task.function.__module__ for task in ours))
        self._initializer = None if initializer is None else _by_name(initializer)
        self._shortage = Shortage("processes")
        self._limiter: anyio.CapacityLimiter | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self._serving = anyio.Event()
        self._pace = Pace()
        self._context = copy_context()
        self._alive: set[ProcessHandle] = set()
        self._idle: list[ProcessHandle] = []  # the one that was used last is the last
        self._turns: dict[int, ProcessHandle] = {}  # anyio task -> the process that its turn holds
        self._replacing = 0  # how many replacements start
        self._waiting = 0  # how many turns wait for one of these
        self._changed = anyio.Event()  # one has started, or could not

    def __repr__(self) -> str:
        return f"<Processes {len(self._turns)} held, {len(self._idle)} idle, of {self.size}>"

    @property
    def trouble(self) -> str | None:
        """What keeps handlers from their processes, None if nothing does."""
        return self._shortage.trouble

    # --- how much is taken --------------------------------------------------------------------

    def bound(self, concurrency: int, max_prefetch: int, *, tasks: int) -> tuple[int, int]:
        """Return the slots and the prefetch of a worker with so many tasks: what cannot run, another one may have."""
        if len(self.costs) < tasks or any(cost < 1 for cost in self.costs.values()):
            return concurrency, max_prefetch
        return min(concurrency, self.size), 0

    def capacity(self, slots: int, on_change: Callable[[], None], on_free: Callable[[], None]) -> Capacity | None:
        """Return the bound on what a worker holds of these tasks, None if it has none of them."""
        if not self.costs:
            return None
        return Capacity(self.costs, processes=self.size, slots=slots, on_change=on_change, on_free=on_free)

    # --- the loop ----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Look after the processes, until cancelled; then end them. Ends at once if no task needs one."""
        if not self.costs:
            return
        try:
            async with anyio.create_task_group() as self._group:
                self._context = copy_context()
                self._limiter = anyio.CapacityLimiter(self.size)
                self._pace = Pace()
                self._serving.set()
                while True:
                    await anyio.sleep(_CHECK_EVERY)
                    now = anyio.current_time()
                    for one in [one for one in self._idle if now - one.idle_since > _UNUSED]:
                        self._idle.remove(one)
                        self._end(one)
        finally:
            with anyio.CancelScope(shield=True):
                await self._end_all()

    async def _end_all(self) -> None:
        left = list(self._alive)
        for one in left:
            one.leave()
        with anyio.move_on_after(_LEAVING):
            for one in left:
                await one.wait()
        for one in left:
            one.kill()
            await one.wait()
            one.close()
        self._alive.clear()
        self._idle.clear()

    def _in_background(self, function: Callable[..., Any], *args: Any) -> None:
        """Start a function beside the runs, in no run's context."""
        assert self._group is not None  # noqa: S101 - it serves
        self._context.copy().run(self._group.start_soon, function, *args)

    # --- runs --------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, task: str) -> AsyncIterator[None]:
        """Hold a process that has started; wait for one that the system does not have now.

        Raises ProcessDiedError if it ended as it started, several times, or if it cannot begin.
        """
        await self._serving.wait()
        assert self._limiter is not None  # noqa: S101 - it serves
        async with self._limiter:
            holder = anyio.get_current_task().id
            self._turns[holder] = await self._one(task)
            try:
                yield
            finally:
                if (unused := self._turns.pop(holder, None)) is not None:
                    self._add_idle(unused)

    async def _one(self, task: str) -> ProcessHandle:
        """Return a process that can be asked: an idle one, a replacement that is about to be ready, or a new one."""
        failures = 0
        while True:
            if (idle := self._take_idle()) is not None:
                return idle
            if self._waiting < self._replacing:
                self._waiting += 1
                try:
                    await self._changed.wait()
                finally:
                    self._waiting -= 1
                continue
            if self._shortage.failures:
                await self._shortage.wait()
            try:
                return await self._start(task)
            except NotStartedError:
                continue
            except ProcessDiedError as error:
                failures += 1
                if failures == _STARTS or not str(error).endswith(_AS_IT_STARTED):
                    raise

    async def run(
        self, task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, batch: bool = False
    ) -> Any:
        """Return what the function of a task returns in a process, encoded; the caller has its `turn`.

        `args` and `kwargs` are as they were read from JSON. `batch`: the function takes a list of items, and each item
        of a list that it returns has an outcome of its own.

        Raises ProcessDiedError if the process ends before, and NotStartedError if it has ended before the function
        began: the caller takes another turn.
        """
        function, delivery = task.function, None if batch else delivery_var.get()
        call = Call(
            task.name, function.__module__, function.__qualname__, pack(args, kwargs),
            How(batch, task.arguments.validates),
            None if delivery is None else (
                delivery.tier, delivery.tier_name, delivery.entry_id, delivery.flat, delivery.redelivered,
                delivery.crashed_workers,
            ),
        )  # fmt: skip
        process = self._turns.pop(anyio.get_current_task().id)
        if process.ended:
            self._end(process)
            raise NotStartedError
        if self._max_tasks is not None and process.runs + 1 >= self._max_tasks:
            self._replace_soon(process)
        try:
            sent = await process.call(call)
        except EndedError as error:
            await self._lost(process)
            if not error.begun:
                raise NotStartedError from None
            raise ProcessDiedError(task.name, process.code) from None
        except SpoiledError:
            await self._lost(process)
            raise ProcessDiedError(task.name, None, _SPOILED) from None
        except BaseException:  # cancelled
            process.kill()
            self._end(process)
            raise
        self._take_back(process)
        return receive(task.name, sent)

    def _take_idle(self) -> ProcessHandle | None:
        """Take out and return an idle process, None if there is none."""
        while self._idle:
            process = self._idle.pop()
            if not process.ended:
                return process
            self._end(process)
        return None

    def _add_idle(self, process: ProcessHandle) -> None:
        process.idle_since = anyio.current_time()
        self._idle.append(process)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _take_back(self, process: ProcessHandle) -> None:
        """Have a process idle after a run, or end it."""
        spent = self._max_tasks is not None and process.runs >= self._max_tasks
        large = self._max_rss is not None and process.memory >= self._max_rss
        if process.spoiled:
            log.warning(
                "a run left the standard streams of its process (pid %d), its limits, priority or cores not as they "
                "were; the process is replaced", process.pid, event="left_behind",
            )  # fmt: skip
        if spent or large or process.retired or process.spoiled:
            log.debug("a process of handlers (pid %d) ends: it has run %d tasks, and has %d MiB",
                      process.pid, process.runs, process.memory >> 20, event="process_replaced")  # fmt: skip
            self._end(process)
            return
        self._add_idle(process)
        if self._max_rss is not None and process.memory >= self._max_rss * _NEARLY:
            self._replace_soon(process)

    # --- start and end ------------------------------------------------------------------------

    async def _start(self, task: str) -> ProcessHandle:
        """Return a process that can be asked."""
        if os.name != "posix":
            raise ConfigurationError('run_in="process" needs a POSIX system: use run_in="thread" here')
        try:
            process = ProcessHandle(self._pace)
        except OSError as error:
            if error.errno not in _NONE_LEFT:
                raise
            raise self._shortage.note(error) from error
        self._alive.add(process)
        for output in process.outputs:
            self._in_background(output.read)
        self._in_background(self._say_if_slow, process)
        try:
            await process.begin(self._setup())
            process.started = True
        except EndedError:
            await self._lost(process)
            raise ProcessDiedError(task, process.code, _AS_IT_STARTED) from None
        except FailedError as error:
            await self._lost(process)
            raise ProcessDiedError(task, None, str(error)) from None
        except SpoiledError:
            await self._lost(process)
            raise ProcessDiedError(task, None, _SPOILED) from None
        except TimeoutError:
            await self._lost(process)
            raise ProcessDiedError(task, None, f"it did not start within {START_TIMEOUT:g} s") from None
        except BaseException:
            process.kill()
            self._end(process)
            raise
        self._shortage.failures = 0
        return process

    async def _say_if_slow(self, process: ProcessHandle) -> None:
        await anyio.sleep(_SLOW)
        if not process.started and not process.ended:
            log.warning(_STARTS_SLOWLY, process.pid, _SLOW, START_TIMEOUT, event="process_slow")

    def _setup(self) -> Setup:
        loggers = {name: one.level for name, one in logging.root.manager.loggerDict.items()
                   if isinstance(one, logging.Logger) and one.level}  # fmt: skip
        return Setup(
            self._modules,
            _main_module(),
            {**loggers, "": logging.root.level},
            logging.root.manager.disable,
            getattr(logging, "_warnings_showwarning", None) is not None,
            self._initializer,
        )

    def _replace_soon(self, process: ProcessHandle) -> None:
        if not process.replacing:
            process.replacing = True
            self._replacing += 1
            self._in_background(self._replace, process)

    async def _replace(self, process: ProcessHandle) -> None:
        """Start another process, and let this one go then."""
        try:
            other = await self._start("of the replacement")
        except (NotStartedError, ProcessDiedError, OSError) as error:
            process.replacing = False
            log.warning("a process of handlers (pid %d) is not replaced yet: %s", process.pid, error, event="shortage")
            return
        finally:
            self._replacing -= 1
            self._tell()
        process.retired = True
        if process in self._idle:
            self._idle.remove(process)
            self._end(process)
        self._add_idle(other)

    def _end(self, process: ProcessHandle) -> None:
        """End a process that runs nothing; its end is waited for in the background."""
        process.leave()
        self._in_background(self._wait_for_end, process)

    async def _wait_for_end(self, process: ProcessHandle) -> None:
        with anyio.move_on_after(_LEAVING):
            await process.wait()
        await self._lost(process)

    async def _lost(self, process: ProcessHandle) -> None:
        """End a process of which nothing is to be expected any more."""
        with anyio.CancelScope(shield=True):
            if not process.ended:
                process.leave()
                with anyio.move_on_after(0.05):  # one whose socket has ended is about to end, and knows how
                    await process.wait()
                process.kill()
                await process.wait()
        process.close()
        self._alive.discard(process)


def _by_name(initializer: Callable[[], object]) -> tuple[str, str]:
    """Return where a process finds a function. Raises ConfigurationError if it cannot find it."""
    function = check_callable("initializer", initializer, "a function without arguments")
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    found: Any = sys.modules.get(str(module))
    for part in str(qualname).split("."):
        found = getattr(found, part, None)
    if found is not function:
        raise ConfigurationError(
            f"initializer={repr_of(initializer)} cannot be used: a process finds it by its name, so define it at the "
            "top of a module"
        )
    return str(module), str(qualname)


def _main_module() -> tuple[str, str] | None:
    """Return what the main module of this program is: ("name", a module) or ("path", a file); None if it has none."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return "name", spec.name
    path = getattr(main, "__file__", None)
    return None if path is None else ("path", path)

"""One worker process: put the worker together, say what it runs, obey signals, and be sure to end."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable
from typing import Any, NoReturn

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import redis.exceptions

from streamq.broker import RedisBroker
from streamq.cli import banner, logs
from streamq.cli.loading import Loaded, LoadingProblem, load
from streamq.cli.run_command import run, uvloop_installed
from streamq.cli.source_watch import loaded_sources
from streamq.cli.supervisor_channel import Leash
from streamq.cli.usage_errors import Problem, explained
from streamq.cli.worker_settings import Settings
from streamq.client.server_features import ServerFacts
from streamq.errors import BrokerError, StreamqError
from streamq.queue.server_errors import translated
from streamq.worker import State, Worker

log = logging.getLogger("streamq.cli")

_LAST_RESORT = 5.0  # seconds for the event loop and the interpreter to close
_AT_ONCE = 3  # the signal that is not a request any more


def serve(settings: Settings, leash: Leash | None = None) -> NoReturn:
    """Run one worker and exit the process. Raises Problem for an error of use."""
    logs.set_up(settings.log_format, settings.log_level)
    use_uvloop = _uvloop(settings)
    if settings.backend == "trio" and importlib.util.find_spec("trio") is None:
        raise Problem("--backend trio needs an extra: pip install 'streamq[trio]'")
    typing.clear_overloads()  # of redis-py, half a MiB that only tools read; those of the modules are yet to come
    try:
        loaded = load(settings.modules)
        worker = _worker(settings, loaded)
    except LoadingProblem as problem:
        if leash is not None:
            leash.say(files=[*loaded_sources(), *problem.files])
        raise
    if leash is not None:
        leash.say(files=loaded_sources())
    process = _Process(settings, loaded, worker, leash, loop="uvloop" if use_uvloop else settings.backend)
    try:
        run(process.main, backend=settings.backend, use_uvloop=use_uvloop, own_signals=True)
    except KeyboardInterrupt:
        _leave(130)
    except Problem:
        raise
    except Exception:
        log.exception("the worker failed")
        _leave(1)
    _leave(0)


def _uvloop(settings: Settings) -> bool:
    installed = settings.backend == "asyncio" and uvloop_installed()
    if settings.uvloop and not installed:
        raise Problem("--uvloop needs an extra: pip install 'streamq[uvloop]'")
    return installed if settings.uvloop is None else settings.uvloop


def _worker(settings: Settings, loaded: Loaded) -> Worker:
    """Put the worker together. Raises Problem for what cannot be used."""
    broker = _broker(settings, loaded)
    own = {tier.name: tier.weight for tier in broker.tiers}
    weights = settings.weights
    if weights is not None and not weights.keys() <= own.keys():
        unknown = ", ".join(sorted(weights.keys() - own.keys()))
        raise Problem(f"--tiers: no tier {unknown}; this broker has {', '.join(own)}")
    chosen = None if weights is None else {name: weight or own[name] for name, weight in weights.items()}
    try:
        return Worker(
            broker, loaded.tasks, middleware=loaded.middleware, concurrency=settings.concurrency,
            visibility_timeout=settings.lease, grace_period=settings.grace, tiers=chosen, lifespan=loaded.lifespan,
            name=settings.name, burst=settings.burst,
        )  # fmt: skip
    except StreamqError as error:
        raise explained(error) from error


def _broker(settings: Settings, loaded: Loaded) -> RedisBroker:
    if loaded.broker is None:
        return settings.where.broker()
    if settings.commanded:
        options = ", ".join(f"--{name}" for name in settings.commanded)
        raise Problem(f"{options}: {loaded.broker_at} says where the queue is; drop the option, or that broker")
    return loaded.broker


class _Process:
    """A worker, and what makes it stop: signals, and the supervisor's word."""

    def __init__(self, settings: Settings, loaded: Loaded, worker: Worker, leash: Leash | None, *, loop: str) -> None:
        self.settings = settings
        self.loaded = loaded
        self.worker = worker
        self.leash = leash
        self.loop = loop
        self._urgency = 0
        self._signals = 0
        self._scope: anyio.CancelScope | None = None  # around a worker that has not started

    def __repr__(self) -> str:
        return f"<_Process {self.worker!r} urgency={self._urgency}>"

    async def main(self) -> None:
        """Run the worker to its end."""
        failed: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._obey_signals)
                if self.leash is not None:
                    token = anyio.lowlevel.current_token()
                    self.leash.obey(lambda level: _from_thread(self._urge, level, token))
                with anyio.CancelScope() as self._scope:
                    try:
                        await self._work()
                    except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
                        failed = error
                group.cancel_scope.cancel()
        finally:
            _end_within(_LAST_RESORT)
        if failed is not None:
            raise failed

    async def _work(self) -> None:
        settings, worker = self.settings, self.worker
        async with worker.broker as broker:
            facts = banner.facts_of(
                worker, await _asked(broker), loop=self.loop, processes=settings.processes,
                broker_at=self.loaded.broker_at,
            )  # fmt: skip
            banner.announce(facts, log_format=settings.log_format, whole=settings.first)
            await worker.run(task_status=_Told(self._ready))
            log.info("worker %s ended", worker.name)

    def _ready(self) -> None:
        _spare_what_is_here()
        if self.leash is not None:
            self.leash.say(ready=True)

    async def _obey_signals(self) -> None:
        try:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for number in signals:
                    self._signals += 1
                    if self._signals >= _AT_ONCE:
                        log.warning("told to stop %d times: exiting at once", self._signals)
                        _exit_now(128 + number)
                    self._urge(self._signals)
        finally:
            # All is handed back, and the interpreter takes a moment to end: who asks again gets no failure for it.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _urge(self, level: int) -> None:
        """Stop as urgently as anybody wished: 1 drain, 2 now. Saying the same twice is saying it once."""
        worker = self.worker
        while self._urgency < min(level, 2):
            self._urgency += 1
            if worker.state in (State.NEW, State.STARTING) and self._scope is not None:
                self._scope.cancel()
            elif self._urgency == 1:
                running = worker.health.running
                again = "" if self.leash is not None else "; once more to stop now"
                log.info("draining: %d running, up to %g s%s", running, worker.grace_period, again)
                worker.stop()
            else:
                log.warning("handing back %d running tasks and exiting", worker.health.running)
                worker.stop()


class _Told(anyio.abc.TaskStatus[None]):
    """A task status that calls a function."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def started(self, value: None = None) -> None:  # noqa: ARG002 - as the interface has it
        """Hear that the worker reads."""
        self._function()


async def _asked(broker: RedisBroker) -> ServerFacts:
    """Return what the server is; one that is still loading is not known yet."""
    try:
        return await broker.client.facts()
    except redis.exceptions.BusyLoadingError:
        return ServerFacts()
    except redis.exceptions.RedisError as error:
        problem = translated(error)
        if isinstance(problem, BrokerError) and problem.code in ("LOADING", "MASTERDOWN"):
            return ServerFacts()
        raise problem from error


def _spare_what_is_here() -> None:
    """Have the garbage collector never look again at what is here to stay: modules, the loop, the worker.

    Else it looks at all of it, tens of milliseconds in which no task runs, whenever enough deliveries came and went.
    """
    gc.collect()
    gc.freeze()


# --- the end ---------------------------------------------------------------------------------


def _from_thread(function: Callable[[int], None], level: int, token: Any) -> None:
    with contextlib.suppress(anyio.RunFinishedError, RuntimeError):
        anyio.from_thread.run_sync(function, level, token=token)


def _end_within(seconds: float) -> None:
    """Exit after this time even if the event loop or the interpreter waits for threads that never end."""

    def end() -> None:
        time.sleep(seconds)
        _exit_now(0)

    threading.Thread(target=end, name="streamq last resort", daemon=True).start()


def _leave(code: int) -> NoReturn:
    """Exit; at once if threads still run whose tasks were handed back."""
    left = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon and t.is_alive()]
    if left:
        log.warning("%d threads still run and are left behind: %s", len(left), ", ".join(t.name for t in left[:5]))
        _exit_now(code)
    logging.shutdown()
    sys.exit(code)


def _exit_now(code: int) -> NoReturn:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

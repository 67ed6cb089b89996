"""One worker process: makes the worker, prints the banner, handles signals, and makes sure that the process exits."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import typing
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import anyio
import anyio.abc
import redis.exceptions

from streamq.broker import RedisBroker
from streamq.cli import banner, logs
from streamq.cli.app_lifespan import AppLifespan, LifespanFailedError
from streamq.cli.busy_threads import busy_threads, living_threads
from streamq.cli.exporters import beside, make_endpoint, make_statsd, start_endpoint, start_statsd
from streamq.cli.loading import Loaded, LoadingError, load, load_initializer, load_listener
from streamq.cli.options import tier_names
from streamq.cli.process_limits import ProcessLimits
from streamq.cli.run_command import check_backend, run, uvloop_installed
from streamq.cli.server_options import SIGNING_OPTIONS, TIERS, ServerOptions
from streamq.cli.source_watch import loaded_sources
from streamq.cli.stop_signals import StopSignals, exit_after, exit_now, ignore
from streamq.cli.supervisor_channel import SupervisorChannel
from streamq.cli.usage_errors import CommandLineError, from_streamq_error
from streamq.cli.worker_settings import Settings, in_process
from streamq.client import scheduler
from streamq.client.server_features import ServerFeatures
from streamq.consumer.cancellation import hear_signals_apart
from streamq.diagnostics.safe_log import SafeLog
from streamq.errors import BrokerError, LifespanEndedError, StreamqError
from streamq.queue.server_errors import passes, translated
from streamq.queue.server_url import ServerUrl
from streamq.worker import State, Worker

if TYPE_CHECKING:
    from streamq.exporters import StatsdExporter

log = SafeLog("streamq.cli")

_METRICS = "--metrics"
_LIFESPAN_END = 5.0  # seconds for a lifespan to end after the second request; that ends the process after 10 s
_SHUTDOWN_TIMEOUT = 5.0  # seconds for the event loop and the interpreter to close; then exit anyway


def serve(settings: Settings, stops: StopSignals, channel: SupervisorChannel | None = None) -> NoReturn:
    """Run one worker and exit the process. Raises CommandLineError for a usage error."""
    if channel is not None:
        channel.on_stop(stops.ask)
    logs.set_up(settings.log_format, settings.log_level)
    use_uvloop = _choose_uvloop(settings)
    check_backend(settings.backend)
    _check_url(settings)
    typing.clear_overloads()  # those of redis-py take half a MiB and only tools read them; user modules come later
    try:
        loaded = load(settings.modules, folder=settings.server.app_folder)
        lifespan = None if loaded.lifespan is None else AppLifespan(loaded.lifespan_path, loaded.lifespan)
        statsd = None if settings.statsd is None else make_statsd(settings.statsd)
        worker = _make_worker(settings, loaded, lifespan, statsd)
    except LoadingError as problem:
        if channel is not None:
            channel.send(files=[*loaded_sources(), *problem.files])
        raise
    logs.join_configuration(settings.log_format, settings.log_level, settings.explicit_logging)
    if channel is not None:
        channel.send(files=loaded_sources())
    loop = "uvloop" if use_uvloop else settings.backend
    process = _WorkerRun(settings, loaded, worker, lifespan, stops, channel, statsd, loop=loop)
    hear_signals_apart()
    _exit(_run_to_its_end(process, use_uvloop=use_uvloop))


def _run_to_its_end(process: _WorkerRun, *, use_uvloop: bool) -> int:
    """Return the exit code. Raises CommandLineError for a usage error that only the run has found."""
    try:
        run(process.main, backend=process.settings.backend, use_uvloop=use_uvloop, own_signals=True)
    except KeyboardInterrupt:
        return 130
    except (CommandLineError, SystemExit):
        raise
    except LifespanFailedError as failure:
        failure.log()
        return 1
    except Exception:
        log.exception("the worker failed", event="worker_failed")
        return 1
    except BaseException as error:  # noqa: BLE001 - a cancellation: signals are none
        what = "the worker was ended by %r: has a handler cancelled a task that is not its own?"
        log.error(what, error, event="worker_failed")  # noqa: TRY400 - its trace is our own
        return 1
    return 0


def _check_url(settings: Settings) -> None:
    """Raise CommandLineError for a URL that cannot be used.

    Before the modules are imported: what they do with such a URL may raise an error that quotes its password.
    """
    if settings.server.url is not None:
        try:
            ServerUrl(settings.server.url)
        except StreamqError as error:
            raise from_streamq_error(error) from None


def _choose_uvloop(settings: Settings) -> bool:
    installed = settings.backend == "asyncio" and uvloop_installed()
    if settings.uvloop and not installed:
        raise CommandLineError("--uvloop needs an extra: pip install 'streamq[uvloop]'")
    return installed if settings.uvloop is None else settings.uvloop


def _make_worker(
    settings: Settings, loaded: Loaded, lifespan: AppLifespan | None, statsd: StatsdExporter | None
) -> Worker:
    """Make the worker. Raises CommandLineError if its options cannot be used."""
    broker = _choose_broker(settings, loaded)
    if settings.recycles and in_process(broker.url):
        raise CommandLineError(
            f"--max-rss or --max-tasks: {loaded.broker_path} has a server in the process, {broker.url}, and each "
            "replacement would have another one; use embedded:///path/to/data"
        )
    own = {tier.name: tier.weight for tier in broker.tiers}
    weights = settings.weights
    if weights is not None and not weights.keys() <= own.keys():
        unknown = ", ".join(sorted(weights.keys() - own.keys()))
        raise CommandLineError(f"--tiers: no tier {unknown}; this broker has {', '.join(own)}")
    chosen = None if weights is None else {name: weight or own[name] for name, weight in weights.items()}
    spec = settings.process_initializer
    initializer = None if spec is None else load_initializer(spec)
    try:
        return Worker(
            broker, loaded.tasks, middleware=loaded.middleware, concurrency=settings.concurrency,
            max_prefetch=settings.max_prefetch, prefetch_bytes=settings.prefetch_bytes,
            listeners=[*map(load_listener, settings.listeners), *([] if statsd is None else [statsd])],
            visibility_timeout=settings.lease, grace_period=settings.grace, tiers=chosen, lifespan=lifespan,
            name=settings.name, burst=settings.burst, max_crashes=settings.max_crashes,
            unknown_wait=settings.unknown_wait, log_failures=settings.log_failures,
            processes=settings.task_processes, max_tasks_per_process=settings.max_tasks_per_process,
            max_rss=settings.process_max_rss, initializer=initializer,
        )  # fmt: skip
    except StreamqError as error:
        raise from_streamq_error(error) from error


def _choose_broker(settings: Settings, loaded: Loaded) -> RedisBroker:
    if loaded.broker is None:
        _check_tiers_of_variable()
        return settings.server.broker()
    server = settings.server
    if queue := [name for name in server.explicit if name not in SIGNING_OPTIONS]:
        raise CommandLineError(
            f"{_as_options(queue)}: {loaded.broker_path} defines the queue; drop the option, or that broker"
        )
    server.check_signed(loaded.broker, loaded.broker_path)
    if server.explicit and server.signing() != loaded.broker.signing:
        raise CommandLineError(
            f"{_as_options(server.explicit)}: {loaded.broker_path} has other signing keys: "
            f"{loaded.broker.signing!r}; give it the same keys, sign_with and accept_unsigned, or drop the option"
        )
    return loaded.broker


def _check_tiers_of_variable() -> None:
    """Raise CommandLineError if a variable names other tiers than this worker has, since no module has a broker.

    A worker cannot make them of names: which priorities each takes decides where its schedules and handlers send to.
    """
    named = os.environ.get(TIERS)
    if named and ServerOptions(tiers=tier_names(named)).has_own_tiers():
        raise CommandLineError(
            f"{TIERS} is {named}, and no module has a broker with these tiers: define "
            "broker = RedisBroker(..., tiers=[Tier(...), ...]) beside the tasks, or unset it"
        )


def _as_options(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


class _WorkerRun:
    """One run of a worker. Signals and the supervisor can stop it."""

    def __init__(
        self, settings: Settings, loaded: Loaded, worker: Worker, lifespan: AppLifespan | None,
        stops: StopSignals, channel: SupervisorChannel | None, statsd: StatsdExporter | None, *, loop: str,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.loaded = loaded
        self.worker = worker
        self.lifespan = lifespan
        self.stops = stops
        self.channel = channel
        self.loop = loop
        self._endpoint = None if settings.metrics is None else make_endpoint(
            _METRICS, settings.metrics, worker.broker, worker, reuse_port=channel is not None
        )  # fmt: skip
        self._statsd = statsd
        self._limits = ProcessLimits(settings.max_rss, settings.max_tasks)
        self._too_large: str | None = None  # what is wrong if it is so before it has run a task
        self._stop_level = 0
        self._stop_asked = 0.0  # by `time.monotonic`, 0 if not yet
        self._scope: anyio.CancelScope | None = None  # cancelled to stop what is no worker yet, or no more
        if lifespan is not None:
            lifespan.on_end, lifespan.patience = self._limit_end, self._left_of_grace

    def __repr__(self) -> str:
        return f"<_WorkerRun {self.worker!r} stop_level={self._stop_level}>"

    async def main(self) -> None:
        """Run the worker until it ends."""
        failed = None
        schedule = scheduler()
        try:
            with anyio.CancelScope() as self._scope:
                self.stops.pass_on(
                    lambda level: schedule(partial(self._request_stop, level)), grace=self.settings.grace,
                    obstacle=None if self.lifespan is None else self.lifespan.obstacle,
                )  # fmt: skip
                try:
                    await self._run_worker()
                except Exception as error:  # noqa: BLE001 - raised below, when the end is watched
                    failed = error
        finally:
            ignore()
            exit_after(_SHUTDOWN_TIMEOUT)
        if failed is not None:
            own = None if self.lifespan is None else self.lifespan.failure
            if isinstance(failed, LifespanEndedError) and self.lifespan is not None:
                raise LifespanFailedError(self.lifespan.name, "end", failed)
            raise own if own is not None and own.error is failed else failed

    async def _run_worker(self) -> None:
        settings, worker = self.settings, self.worker
        if (wrong := self._limits.exceeded_at_start()) is not None:
            raise CommandLineError(wrong)
        services: list[Callable[[anyio.abc.TaskGroup], Awaitable[None]]] = []
        if self._endpoint is not None:
            services.append(partial(start_endpoint, _METRICS, self._endpoint))
        if self._statsd is not None:
            services.append(partial(start_statsd, self._statsd))
        async with beside(*services), worker.broker as broker:
            description = banner.describe(
                worker, await _server_product(broker), loop=self.loop, processes=settings.processes,
                broker_path=self.loaded.broker_path,
            )  # fmt: skip
            banner.announce(description, log_format=settings.log_format, full=settings.first)
            await worker.run(task_status=_CallOnStarted(self._ready))
            if self._too_large is not None:
                raise CommandLineError(self._too_large)
            log.info("worker %s ended", worker.name, event="worker_ended")

    def _limit_end(self) -> None:
        """Leave the lifespan some time if the second request came before its end began."""
        if self._stop_level > 1 and self._scope is not None:
            self._scope.deadline = anyio.current_time() + _LIFESPAN_END

    def _left_of_grace(self) -> float:
        """Return the seconds until the grace period is over, 1 s at least."""
        elapsed = time.monotonic() - self._stop_asked if self._stop_asked else 0.0
        return max(1.0, self.settings.grace - elapsed)

    def _ready(self) -> None:
        _freeze_garbage_collector()
        if (channel := self.channel) is None:
            return
        self._too_large = self._limits.exceeded_at_start()
        if self._too_large is not None:
            self.worker.stop()  # what it has read already is released, or runs to its end
            return
        channel.send(ready=True)
        self._limits.watch(
            lambda: self.worker.runs, lambda rss, runs: channel.send(outgrown={"rss": rss, "runs": runs})
        )

    def _request_stop(self, level: int) -> None:
        """Stop at this level: 1 drain, 2 now. A level that is not higher than the last does nothing."""
        worker = self.worker
        while self._stop_level < min(level, 2):
            self._stop_level += 1
            self._stop_asked = self._stop_asked or time.monotonic()
            if self._scope is not None and worker.state in (State.NEW, State.STARTING):
                if self._stop_level > 1:
                    log.warning("the start does not end when it is cancelled: exiting", event="worker_exits")
                    exit_now(1)
                log.info("stopping before the worker has started", event="worker_stopping")
                self._scope.cancel()
            elif self._scope is not None and self.lifespan is not None and self.lifespan.is_ending:
                if self._stop_level > 1:
                    log.warning("cancelling the end of %s", self.lifespan.name, event="worker_stopping")
                    self._scope.cancel()
            elif self._stop_level == 1:
                if self._endpoint is not None and self.channel is not None:  # a replacement may listen there, too
                    self._endpoint.stop_listening()
                running = worker.health.running
                again = "" if self.channel is not None else "; send the signal again to stop now"
                log.info(
                    "draining: %d running, up to %g s%s", running, worker.grace_period, again, event="worker_stopping"
                )
                worker.stop()
            else:
                running = worker.health.running
                log.warning(
                    "releasing %d running task%s and exiting", running, "s" * (running != 1), event="worker_stopping"
                )
                worker.stop()


class _CallOnStarted(anyio.abc.TaskStatus[None]):
    """A task status that calls a function when the worker has started."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def started(self, value: None = None) -> None:  # noqa: ARG002 - as the interface has it
        """Call the function."""
        self._function()


async def _server_product(broker: RedisBroker) -> ServerFeatures:
    """Return product and version of the server; empty ones while it is still loading."""
    try:
        return await broker.client.server_product()
    except redis.exceptions.BusyLoadingError:
        return ServerFeatures()
    except redis.exceptions.RedisError as error:
        problem = translated(error)
        if isinstance(problem, BrokerError) and passes(problem):
            return ServerFeatures()
        raise problem from error


def _freeze_garbage_collector() -> None:
    """Exclude the modules, the event loop and the worker from garbage collection.

    Otherwise a full collection visits all of them from time to time, and no task runs for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()


# --- the end ---------------------------------------------------------------------------------


def _exit(code: int) -> NoReturn:
    """Exit. Do not wait for threads that still run: their tasks are released already."""
    if busy := busy_threads():
        run = "1 thread still runs" if len(busy) == 1 else f"{len(busy)} threads still run"
        log.warning("exiting while %s: %s", run, ", ".join(t.name for t in busy[:5]), event="worker_exits")
    if living_threads():
        logging.shutdown()
        exit_now(code)
    logging.shutdown()
    sys.exit(code)

"""The steps of the demo: enqueue, run workers, kill one if asked, count, clean up."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread
import orjson

from streamq.broker import RedisBroker
from streamq.cli import logs, output
from streamq.cli.demo import environment, tasks
from streamq.cli.demo.corpus import TIERS, Corpus, corpus
from streamq.cli.demo.run_log import RunLog
from streamq.cli.read_dead_letters import FieldFilter, read_newest_first
from streamq.cli.run_command import check_backend, run, uvloop_installed
from streamq.cli.usage_errors import CommandLineError

try:
    from rich.console import Console

    from streamq.cli.demo.progress_view import NoProgress, ProgressBars, ProgressLines, ProgressView
    from streamq.cli.demo.summary import Outcome, as_json, print_summary
except ImportError:
    raise CommandLineError("streamq demo needs an extra: pip install 'streamq[demo]'") from None

_POLL_INTERVAL = 0.1  # seconds between two reads of the recorded runs
_STALLED = 30.0  # seconds without progress after which the demo fails
_MANY = 1000  # calls in one round trip
_ROWS = 2000  # recorded runs read at once


@dataclass(slots=True)
class _Demo:
    """One run of the demo. `held` is how many deliveries the killed worker held."""

    broker: RedisBroker
    starter: environment.WorkerStarter
    run_log: RunLog
    view: ProgressView
    kill_at: int | None
    killed: int = 0
    held: int = 0

    async def work(self) -> None:
        """Run workers until all tasks are settled. Raises CommandLineError if they cannot."""
        async with self.starter.worker(self.broker) as worker, self._monitored(worker) as ended:
            await ended.wait()
        if self.killed:
            self.held = await _pending(self.broker)
            self.view.note(f"worker {self.killed} killed with SIGKILL while it held {self.held} tasks; the next starts")
            async with self.starter.worker(self.broker) as worker, self._monitored(worker) as ended:
                await ended.wait()

    @asynccontextmanager
    async def _monitored(self, worker: environment.DemoWorker) -> AsyncIterator[anyio.Event]:
        """Read a worker's progress while it runs. The event is set when the worker has ended."""
        ended = anyio.Event()
        codes: list[int] = []

        async def wait() -> None:
            codes.append(await worker.ended())
            ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(self._follow, worker)
            yield ended
            group.cancel_scope.cancel()
        await self._read_progress()
        if codes != [0] and worker.pid != self.killed:
            raise CommandLineError(f"the demo's worker ended with code {codes[0]}: {worker.last_error_line()}")

    async def _follow(self, worker: environment.DemoWorker) -> None:
        progressed, runs = time.monotonic(), len(self.run_log.runs)
        while True:
            await self._read_progress()
            if len(self.run_log.runs) != runs:
                progressed, runs = time.monotonic(), len(self.run_log.runs)
            elif time.monotonic() - progressed > _STALLED:
                raise CommandLineError(f"no task ended for {_STALLED:g} s: {worker.last_error_line()}")
            if self.kill_at is not None and not self.killed and self.run_log.settled >= self.kill_at:
                self.killed, self.run_log.killed_at = worker.pid, time.time()
                worker.kill()
                return
            await anyio.sleep(_POLL_INTERVAL)

    async def _read_progress(self) -> None:
        """Read the runs and dead letters since the last read."""
        run_log, client = self.run_log, self.broker.client
        while True:
            at = len(run_log.runs)
            rows = await client.command("LRANGE", tasks.runs_key(self.broker), at, at + _ROWS - 1)
            run_log.add(orjson.loads(row) for row in rows)
            if len(rows) < _ROWS:
                break
        if int(await client.command("XLEN", self.broker.keys.dead)) != len(run_log.dead):
            run_log.add_dead_letters(
                [dead_letter async for dead_letter in read_newest_first(self.broker, FieldFilter())]
            )
        self.view.update(run_log)


def run_demo(
    *, url: str | None, backend: str, kill_worker: bool, limit: int | None, keep: bool, live: bool | None, as_json: bool
) -> None:
    """Run the demo and print its summary. Exits with 1 if anything was lost."""
    if kill_worker and (url or "").startswith("memory:"):
        raise CommandLineError(
            "--kill-worker and memory://: that server is in this process; drop --url, or give another"
        )
    check_backend(backend)
    logs.set_up("text", "error")  # dead letters are logged as warnings, and this demo makes some on purpose
    console = Console(stderr=as_json)
    drawn = (console.is_terminal if live is None else live) and not as_json
    options = _Options(url, backend, kill_worker, limit, keep, drawn, as_json)
    if not run(lambda: _run_on_server(console, options), backend=backend, use_uvloop=uvloop_installed()):
        sys.exit(1)


@dataclass(frozen=True, slots=True)
class _Options:
    url: str | None
    backend: str
    kill_worker: bool
    limit: int | None
    keep: bool
    live: bool
    as_json: bool


async def _run_on_server(console: Console, options: _Options) -> bool:
    async with environment.server_for(options.url) as (url, namespace):
        broker = RedisBroker(url, namespace=namespace)
        if options.kill_worker and url.startswith("memory:"):
            raise CommandLineError(
                "--kill-worker needs a server in its own process: pip install 'streamq[demo]', or --url"
            )
        began = time.time()
        async with broker:
            facts = await broker.client.server_features()
            product = f"{facts.product} {facts.version}".strip() if not url.startswith("memory:") else "memory://"
            try:
                outcome = await _run_demo(console, options, broker, product)
            finally:
                if not options.keep:
                    await environment.clean_up(broker, began)
            if options.as_json:
                output.result_json(as_json(outcome))
            else:
                print_summary(console, outcome)
            if options.keep and options.url is None and not url.startswith("memory:"):
                console.print(
                    f"The server is kept until Ctrl-C: [bold]{environment.redis_cli(url)}[/]", highlight=False
                )
                await anyio.sleep_forever()
    return not outcome.missing


async def _run_demo(console: Console, options: _Options, broker: RedisBroker, product: str) -> Outcome:
    files = await anyio.to_thread.run_sync(corpus, options.limit)
    concurrency = max(2, os.cpu_count() or 2)
    run_log = RunLog(files.files)
    view: ProgressView = (
        NoProgress()
        if options.as_json
        else ProgressBars(console, run_log)
        if options.live
        else ProgressLines(console, run_log)
    )
    kill_at = len(files) // 2 if options.kill_worker else None
    starter = environment.WorkerStarter(
        broker.url, broker.keys.namespace, backend=options.backend, concurrency=concurrency
    )
    demo = _Demo(broker, starter, run_log, view, kill_at)
    seconds = await _enqueue(broker, files)
    view.begin(
        f"{len(files):,} files of {files.root} enqueued in {seconds:.2f} s; "
        f"one worker on {options.backend}, {concurrency} at once, on {product}"
    )
    with view:
        await demo.work()
    return await _outcome(demo, files, options, product)


async def _enqueue(broker: RedisBroker, files: Corpus) -> float:
    """Enqueue a task for each file, many in one round trip. Return the seconds that it took."""
    root = str(files.root)
    started = time.perf_counter()
    calls = [tasks.index.options(tier=tier).call(root, name) for tier in TIERS for name in files.files[tier]]
    for at in range(0, len(calls), _MANY):
        await broker.enqueue_many(calls[at : at + _MANY])
    return time.perf_counter() - started


async def _outcome(demo: _Demo, files: Corpus, options: _Options, product: str) -> Outcome:
    """Count the effects and remaining entries on the server."""
    broker, client = demo.broker, demo.broker.client
    effects = await client.command("HGETALL", tasks.effects_key(broker))
    found = {name.decode(): orjson.loads(counts) for name, counts in zip(effects[::2], effects[1::2], strict=True)}
    left = 0
    for tier in broker.keys.tiers:
        left += int(await client.command("XLEN", tier.stream)) + int(await client.command("ZCARD", tier.delayed))
    return Outcome(
        corpus=files, run_log=demo.run_log, effects=found, missing=demo.run_log.missing(found), left=left,
        pending=await _pending(broker), killed=demo.killed, held=demo.held, product=product, backend=options.backend,
        weights={tier.name: tier.weight for tier in broker.tiers},
        redis_cli=f"{environment.redis_cli(broker.url)} XRANGE {broker.keys.dead} - +",
        kept=options.keep, private=options.url is None,
    )  # fmt: skip


async def _pending(broker: RedisBroker) -> int:
    """Return how many deliveries are pending."""
    keys = broker.keys
    replies = await broker.store.call([("XPENDING", tier.stream, keys.group) for tier in keys.tiers])
    return sum(int(reply[0]) for reply in replies)

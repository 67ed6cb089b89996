"""The course of the demo: enqueue, work, maybe kill, count, clean up."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import click
import orjson

from streamq.broker import RedisBroker
from streamq.cli import logs
from streamq.cli.dead_letters import Wanted, newest_first
from streamq.cli.demo import stage, tasks
from streamq.cli.demo.corpus import TIERS, Corpus, corpus
from streamq.cli.demo.ledger import Ledger
from streamq.cli.demo.summary import Outcome, as_json, print_summary
from streamq.cli.run_command import run, uvloop_installed
from streamq.cli.usage_errors import Problem

try:
    from rich.console import Console

    from streamq.cli.demo.live import Live, Plain, Silent, View
except ImportError:
    raise Problem("streamq demo needs an extra: pip install 'streamq[demo]'") from None

_LOOK = 0.1  # seconds between two looks at what was recorded
_STALLED = 30.0  # seconds without any progress after which the demo gives up
_MANY = 1000  # calls in one round trip
_ROWS = 2000  # recorded runs read at once


@dataclass(slots=True)
class _Demo:
    """One run of the demo. `held` is what the killed worker had in its hands."""

    broker: RedisBroker
    crew: stage.Crew
    ledger: Ledger
    view: View
    kill_at: int | None
    killed: int = 0
    held: int = 0

    async def work(self) -> None:
        """Have workers run everything. Raises Problem if they cannot."""
        async with self.crew.worker(self.broker) as worker, self._watched(worker) as ended:
            await ended.wait()
        if self.killed:
            self.held = await _pending(self.broker)
            self.view.note(f"worker {self.killed} killed with SIGKILL while it held {self.held} tasks; the next starts")
            async with self.crew.worker(self.broker) as worker, self._watched(worker) as ended:
                await ended.wait()

    @asynccontextmanager
    async def _watched(self, worker: stage.DemoWorker) -> AsyncIterator[anyio.Event]:
        """Follow a worker's progress; the event is set when it has ended."""
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
        await self._look()
        if codes != [0] and worker.pid != self.killed:
            raise Problem(f"the demo's worker ended with code {codes[0]}: {worker.complaint()}")

    async def _follow(self, worker: stage.DemoWorker) -> None:
        progressed, runs = time.monotonic(), len(self.ledger.runs)
        while True:
            await self._look()
            if len(self.ledger.runs) != runs:
                progressed, runs = time.monotonic(), len(self.ledger.runs)
            elif time.monotonic() - progressed > _STALLED:
                raise Problem(f"no task ended for {_STALLED:g} s: {worker.complaint()}")
            if self.kill_at is not None and not self.killed and self.ledger.settled >= self.kill_at:
                self.killed, self.ledger.killed_at = worker.pid, time.time()
                worker.kill()
                return
            await anyio.sleep(_LOOK)

    async def _look(self) -> None:
        """Read what was recorded since the last look."""
        ledger, client = self.ledger, self.broker.client
        while True:
            at = len(ledger.runs)
            rows = await client.command("LRANGE", tasks.runs_key(self.broker), at, at + _ROWS - 1)
            ledger.add(orjson.loads(row) for row in rows)
            if len(rows) < _ROWS:
                break
        if int(await client.command("XLEN", self.broker.keys.dead)) != len(ledger.dead):
            ledger.bury([letter async for letter in newest_first(self.broker, Wanted())])
        self.view.update(ledger)


def show(
    *, url: str | None, backend: str, kill_worker: bool, limit: int | None, keep: bool, live: bool | None, as_json: bool
) -> None:
    """Run the demo and print its summary. Exits with 1 if anything was lost."""
    if kill_worker and (url or "").startswith("memory:"):
        raise Problem("--kill-worker and memory://: that server lives in this process; drop --url, or give another")
    logs.set_up("text", "error")  # dead letters are warnings, and here they are the point
    console = Console(stderr=as_json)
    drawn = (console.is_terminal if live is None else live) and not as_json
    options = _Options(url, backend, kill_worker, limit, keep, drawn, as_json)
    if not run(lambda: _show(console, options), backend=backend, use_uvloop=uvloop_installed()):
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


async def _show(console: Console, options: _Options) -> bool:
    async with stage.server_for(options.url) as (url, namespace):
        broker = RedisBroker(url, namespace=namespace)
        if options.kill_worker and url.startswith("memory:"):
            raise Problem("--kill-worker needs a server of its own process: pip install 'streamq[demo]', or --url")
        began = time.time()
        async with broker:
            facts = await broker.client.facts()
            product = f"{facts.product} {facts.version}".strip() if not url.startswith("memory:") else "memory://"
            try:
                outcome = await _run(console, options, broker, product)
            finally:
                if not options.keep:
                    await stage.clean_up(broker, began)
            if options.as_json:
                click.echo(orjson.dumps(as_json(outcome), option=orjson.OPT_INDENT_2))
            else:
                print_summary(console, outcome)
            if options.keep and options.url is None and not url.startswith("memory:"):
                console.print(f"The server is kept until Ctrl-C: [bold]{stage.redis_cli(url)}[/]", highlight=False)
                await anyio.sleep_forever()
    return not outcome.missing


async def _run(console: Console, options: _Options, broker: RedisBroker, product: str) -> Outcome:
    files = await anyio.to_thread.run_sync(corpus, options.limit)
    concurrency = max(2, os.cpu_count() or 2)
    ledger = Ledger(files.files)
    view: View = Silent() if options.as_json else Live(console, ledger) if options.live else Plain(console, ledger)
    kill_at = len(files) // 2 if options.kill_worker else None
    crew = stage.Crew(broker.url, broker.keys.namespace, backend=options.backend, concurrency=concurrency)
    demo = _Demo(broker, crew, ledger, view, kill_at)
    seconds = await _enqueue(broker, files)
    view.begin(
        f"{len(files):,} files of {files.root} enqueued in {seconds:.2f} s; "
        f"one worker on {options.backend}, {concurrency} at once, on {product}"
    )
    with view:
        await demo.work()
    return await _outcome(demo, files, options, product)


async def _enqueue(broker: RedisBroker, files: Corpus) -> float:
    """Send a task for each file, many in one round trip; return how long it took (s)."""
    root = str(files.root)
    started = time.perf_counter()
    calls = [tasks.index.options(tier=tier).call(root, name) for tier in TIERS for name in files.files[tier]]
    for at in range(0, len(calls), _MANY):
        await broker.enqueue_many(calls[at : at + _MANY])
    return time.perf_counter() - started


async def _outcome(demo: _Demo, files: Corpus, options: _Options, product: str) -> Outcome:
    """Count what there is now, from the server and not from memory."""
    broker, client = demo.broker, demo.broker.client
    effects = await client.command("HGETALL", tasks.effects_key(broker))
    found = {name.decode(): orjson.loads(counts) for name, counts in zip(effects[::2], effects[1::2], strict=True)}
    left = 0
    for tier in broker.keys.tiers:
        left += int(await client.command("XLEN", tier.stream)) + int(await client.command("ZCARD", tier.delayed))
    return Outcome(
        corpus=files, ledger=demo.ledger, effects=found, missing=demo.ledger.missing(found), left=left,
        pending=await _pending(broker), killed=demo.killed, held=demo.held, product=product, backend=options.backend,
        weights={tier.name: tier.weight for tier in broker.tiers},
        redis_cli=f"{stage.redis_cli(broker.url)} XRANGE {broker.keys.dead} - +",
        kept=options.keep, private=options.url is None,
    )  # fmt: skip


async def _pending(broker: RedisBroker) -> int:
    """Return how many deliveries are held by somebody."""
    keys = broker.keys
    replies = await broker.store.call([("XPENDING", tier.stream, keys.group) for tier in keys.tiers])
    return sum(int(reply[0]) for reply in replies)

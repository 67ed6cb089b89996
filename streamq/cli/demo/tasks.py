"""The tasks of the demo. Its worker is a plain `streamq worker streamq.cli.demo.tasks`.

`index` is a plain function that runs in a process pool, because it keeps a core busy. A middleware records its
result inside the run, so the effect exists before the task is acknowledged. `streamq worker` looks for the
names `middleware` and `lifespan`.
"""

from __future__ import annotations

import ast
import os
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from streamq.broker import RedisBroker
from streamq.middleware import CallNext, Context, MiddlewareChain
from streamq.tasks.decorator import task
from streamq.tasks.retry_policy import Backoff
from streamq.worker import Worker


@task(retries=2, backoff=Backoff(base=0.25, cap=1.0), run_in="process")
def index(root: str, name: str) -> dict[str, int]:
    """Parse one source file and return its counts. Raises SyntaxError if it does not parse."""
    source = Path(root, name).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old files
        tree = ast.parse(source, filename=name)
    counts = {"lines": source.count(b"\n") + 1, "functions": 0, "classes": 0, "imports": 0}
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                counts["functions"] += 1
            case ast.ClassDef():
                counts["classes"] += 1
            case ast.Import() | ast.ImportFrom():
                counts["imports"] += 1
            case _:
                pass
    return counts


def effects_key(broker: RedisBroker) -> str:
    """Return the key of a hash: file -> its counts."""
    return f"{broker.keys.namespace}:demo:effects"


def runs_key(broker: RedisBroker) -> str:
    """Return the key of a list: one JSON array per run, in the order in which runs ended."""
    return f"{broker.keys.namespace}:demo:runs"


class Recorder:
    """Records the effect of each run, and when it started and ended, in one atomic step."""

    async def __call__(self, context: Context, call_next: CallNext) -> Any:
        """Run the task and record it."""
        broker: RedisBroker = context.delivery.state
        started = time.time()
        try:
            counts = await call_next(context)
        except Exception:
            await broker.store.call([self._run(context, broker, started, ok=False)])
            raise
        effect = ("HSET", effects_key(broker), context.args[1], orjson.dumps(counts))
        await broker.store.call([("MULTI",), effect, self._run(context, broker, started, ok=True), ("EXEC",)])
        return counts

    def _run(self, context: Context, broker: RedisBroker, started: float, *, ok: bool) -> tuple[str, str, bytes]:
        delivery = context.delivery
        row = [
            delivery.tier_name, context.args[1], delivery.enqueued_at, started, time.time(), delivery.attempt, ok,
            delivery.redelivered, os.getpid(),
        ]  # fmt: skip
        return ("RPUSH", runs_key(broker), orjson.dumps(row))


middleware = MiddlewareChain(Recorder())


@asynccontextmanager
async def lifespan(worker: Worker) -> AsyncIterator[RedisBroker]:
    """Yield the broker, which the recorder gets as each delivery's `state`."""
    yield worker.broker

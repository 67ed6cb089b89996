"""What sends tasks: one process of its own, `python -m tests.faults.producer URL BACKEND LOAD`.

A `Load` says what to send. A producer is patient: a task with an id of its own is sent again until
the server has it for certain, so none is left in doubt unless the load says so (`ids=False`).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

import anyio
import orjson

from streamq import Priority, RedisBroker, TaskRef
from streamq.errors import BrokerError, OutcomeUnknownError
from streamq.queue.results import Handle
from streamq.tasks.task import Call
from streamq.testing.recorder import Recorder
from tests.faults import handlers, vigil

PRIORITIES = {"critical": Priority.CRITICAL, "standard": Priority.NORMAL, "bulk": Priority.LOW}
RETRIES = {task.name: task.policy.retries for task in handlers.VERSIONS["all"]}
IDENT = "$id"  # in the arguments of a task: its id

_PATIENCE = 0.05  # seconds before a refused batch is sent again
_LOOK = 0.02  # seconds between two looks at a backlog that is too long


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of task in a load. An argument or option that is a list of two numbers is drawn between them."""

    task: str
    share: float = 1.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one producer sends: `total` tasks of these kinds, over all tiers, in batches.

    `rate` is tasks per second, None for as fast as can be; `backlog` is how many tasks may be in the
    streams before it waits. `ids` gives each task an id of its own, without which an unknown outcome
    stays unknown. `cancel` is the share of the delayed tasks that is withdrawn soon after.
    """

    total: int
    kinds: list[Kind] = field(default_factory=lambda: [Kind(task="noop")])
    seed: int = 0
    batch: int = 50
    rate: float | None = None
    backlog: int = 20_000
    ids: bool = True
    cancel: float = 0.0
    tiers: list[str] = field(default_factory=lambda: list(PRIORITIES))
    reply_timeout: float = 2.0

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        values = orjson.loads(text)
        values["kinds"] = [Kind(**kind) for kind in values["kinds"]]
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Planned:
    """One task to be sent; `delay` is in seconds."""

    call: Call[Any]
    task_id: str
    tier: str
    name: str
    delay: float | None
    retries: int


def plan(load: Load, who: str) -> Iterator[Planned]:
    """Yield what a load consists of: the same for the same seed."""
    uniform = random.Random(load.seed)
    shares = [kind.share for kind in load.kinds]
    for number in range(load.total):
        (kind,) = uniform.choices(load.kinds, shares)
        tier = uniform.choice(load.tiers)
        task_id = f"{who}-{number}" if load.ids else ""
        kwargs = {name: _drawn(value, uniform, task_id) for name, value in kind.kwargs.items()}
        options = {name: _drawn(value, uniform, task_id) for name, value in kind.options.items()}
        options.setdefault("priority", PRIORITIES[tier])
        if task_id:
            options["task_id"] = task_id
        call = TaskRef(kind.task).options(**options).call(**kwargs)
        retries = options.get("retries", RETRIES[kind.task])
        yield Planned(call, task_id, tier, kind.task, options.get("delay"), retries)


def _drawn(value: Any, uniform: random.Random, task_id: str) -> Any:
    if value == IDENT:
        return task_id
    return round(uniform.uniform(*value), 4) if isinstance(value, list | tuple) else value


class Producer:
    """Sends a load through a broker, and writes down what was accepted."""

    def __init__(self, broker: RedisBroker, recorder: Recorder, load: Load, *, who: str) -> None:
        self._broker = broker
        self._recorder = recorder
        self._load = load
        self._who = who
        self._random = random.Random(load.seed + 1)
        self.stopped = False
        self.sent = 0

    async def run(self) -> None:
        """Send everything, or what there is time for until it is told to stop."""
        load, started = self._load, time.monotonic()
        planned = plan(load, self._who)
        while not self.stopped and (batch := list(islice(planned, load.batch))):
            await self._room()
            await self._send(batch)
            self.sent += len(batch)
            if load.rate is not None:
                await anyio.sleep(max(0.0, started + self.sent / load.rate - time.monotonic()))
        self._recorder.record("sent", count=self.sent)

    async def _room(self) -> None:
        """Wait until the backlog is short enough."""
        while not self.stopped:
            try:
                lengths = await self._broker.store.call([("XLEN", tier.stream) for tier in self._broker.keys.tiers])
            except BrokerError:
                return  # sending is patient
            if sum(lengths) <= self._load.backlog:
                return
            await anyio.sleep(_LOOK)

    async def _send(self, batch: list[Planned]) -> None:
        """Send a batch until it was accepted for certain; without ids an unknown outcome is left unknown."""
        doubtful = False
        started = time.monotonic()  # no delay ends before this and its own length are over
        while True:
            try:
                handles = await self._broker.enqueue_many([one.call for one in batch])
            except OutcomeUnknownError:
                if not self._load.ids:
                    return
                for one in () if doubtful else batch:
                    self._recorder.record("unknown", one.task_id, tier=one.tier, name=one.name)
                doubtful = True
            except BrokerError as error:
                self._recorder.record("refused", error=str(error)[:200], count=len(batch))
                await anyio.sleep(_PATIENCE * self._random.uniform(0.5, 1.5))
            else:
                break
        for one, handle in zip(batch, handles, strict=True):
            due = {} if one.delay is None else {"due": round(started + one.delay, 6)}
            details = {"tier": one.tier, "name": one.name, "retries": one.retries, **due}
            self._recorder.record("accepted", handle.task_id, **details)
        if self._load.cancel:
            await self._cancel(batch, handles)

    async def _cancel(self, batch: list[Planned], handles: list[Handle[Any]]) -> None:
        for one, handle in zip(batch, handles, strict=True):
            if one.delay is not None and self._random.random() < self._load.cancel:
                try:
                    found = await self._broker.store.cancel(handle.tier, handle.task_id, handle.entry_id)
                except OutcomeUnknownError:
                    self._recorder.record("doubtful", handle.task_id)  # withdrawn, or not: see `judge`
                    continue
                except BrokerError:
                    continue
                if found in ("delayed", "queued"):
                    self._recorder.record("withdrawn", handle.task_id)


async def send(url: str, log: Path, who: str, load: Load, *, obey: bool = False) -> None:
    """Send a load; with `obey` SIGTERM stops it between two batches."""
    async with RedisBroker(url, connect_timeout=1, reply_timeout=load.reply_timeout) as broker:
        producer = Producer(broker, Recorder(log, who), load, who=who)
        async with anyio.create_task_group() as group:
            if obey:
                group.start_soon(_obey, producer)
            await producer.run()
            group.cancel_scope.cancel()


async def _obey(producer: Producer) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            producer.stopped = True


async def main(url: str, load: Load) -> None:
    """Be a producer process."""
    vigil.leashed()
    log, who = Path(os.environ[handlers.LOG]), os.environ[handlers.WHO]
    await send(url, log, who, load, obey=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Load.from_json(sys.argv[3]), backend=sys.argv[2])

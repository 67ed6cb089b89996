"""The attack on dead letters in bulk: hostile letters, and filters, operations, lines and redactions of any value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import fields
from typing import Any

import orjson

from streamq.dead_letter import DeadLetterFilter, DeadLetterQueue, Redaction
from tests.fuzz import rubbish
from tests.fuzz.attacks import attack
from tests.fuzz.world import World, send_good

NOBODY = "nobody.knows"
FIELDS = (
    "task_id", "args", "kwargs", "headers", "tier", "reason", "attempts", "starts", "error", "error_type", "traceback",
    "died_at", "enqueued_at", "origin", "raw.x", "then", "broken", "priority", "dedup_key", "retries", "timeout",
)  # fmt: skip
OF_OPERATION = ("kind", "state", "filter", "limit", "rate", "after", "last", "done", "examined", "runner", "rubbish")


@attack
async def letters(world: World) -> None:
    """Dead letters in bulk, of a task that nobody knows."""
    hostile = _Hostile(world)
    for _ in range(world.random.randrange(6)):
        pairs = [part for name in world.random.sample(FIELDS, k=3) for part in (name, rubbish.raw(world.random))]
        world.command("XADD", world.producer.keys.dead, "*", *pairs, "task", NOBODY)
    for _ in range(8):
        name, call = world.random.choice(sorted(hostile.asked.items()))
        await world.calls(f"dead letters: {name}", call)
        if world.random.random() < 0.3:
            await send_good(world, 1)


class _Hostile:
    """What an operator can ask, with any value, or with one that is wrong."""

    def __init__(self, world: World) -> None:
        self.world, self.random = world, world.random
        self.queue = DeadLetterQueue(broker=world.producer)
        self.asked: dict[str, Callable[[], Awaitable[Any]]] = {
            "search": self.search, "stats": self.stats, "operate": self.operate, "lines": self.lines,
            "operation": lambda: self.queue.operation(self.any()), "operations": self.queue.operations,
        }  # fmt: skip

    def any(self) -> Any:
        return rubbish.value(self.random)

    def mostly(self, value: Any) -> Any:
        return value if self.random.random() < 0.7 else self.any()

    def matching(self) -> DeadLetterFilter:
        names = [field.name for field in fields(DeadLetterFilter)]
        given = {} if self.random.random() < 0.6 else {self.random.choice(names): self.any()}
        return DeadLetterFilter(**(given | {"task_name": NOBODY}))

    async def search(self) -> Any:
        after = self.random.choice((None, "0-1", rubbish.text(self.random)))
        return await self.queue.search(self.matching(), count=self.mostly(5), after=after, examine=self.mostly(50))

    async def stats(self) -> Any:
        return await self.queue.stats(self.matching(), examine=self.mostly(50))

    async def operate(self) -> None:
        kind = self.random.choice(("replay", "purge"))
        name, value = self.random.choice((
            ("limit", 2), ("rate", 1000.0), ("retries", 1), ("set_arguments", {"0": 1}), ("dry_run", True),
        ))  # fmt: skip
        operation = await self.queue.start(kind, self.matching(), **{name: self.mostly(value)})
        if self.random.random() < 0.4:
            key = self.world.producer.keys.operation(operation.id)
            self.world.command("HSET", key, self.random.choice(OF_OPERATION), rubbish.raw(self.random))
        async with aclosing(operation.run()) as outcomes:
            async for _ in outcomes:
                if self.random.random() < 0.1:
                    await operation.stop()

    async def lines(self) -> None:
        redact = Redaction(self.mostly(["x*"])) if self.random.random() < 0.3 else None
        async with aclosing(self.queue.export(self.matching(), redact=redact)) as lines:
            exported = [line async for line in lines]
        odd = orjson.dumps({self.random.choice(FIELDS): rubbish.text(self.random), "task": NOBODY})
        async with aclosing(self.queue.import_lines([*exported[:3], rubbish.raw(self.random), odd])) as found:
            async for _ in found:
                pass

"""Reads the schedules that no worker can tick: their definition cannot be used, or they have no next tick."""

from __future__ import annotations

from typing import Final

from streamq.doctor.queries import SAMPLE, Queries, pairs
from streamq.queue.schedule_problem import problem_of_ticks
from streamq.queue.schedules import NO_TICK, ScheduleDefinition

_MOST_READ: Final = 10_000  # definitions


async def read_unusable_schedules(queries: Queries, now: float) -> dict[str, str]:
    """Return why each cannot be ticked, by its name, at most `SAMPLE`. None is named if this user may not read both."""
    keys = queries.store.keys
    stored, ticks = await queries.ask(("HGETALL", keys.schedules), ("ZRANGE", keys.ticks, 0, -1, "WITHSCORES"))
    if stored is None or ticks is None:
        return {}
    due = pairs(ticks)
    found: dict[str, str] = {}
    for name, packed in sorted(pairs(stored).items())[:_MOST_READ]:
        if len(found) < SAMPLE and (why := _problem(name, packed, now, keys.ticks if name not in due else "")):
            found[name] = why
    return found


def _problem(name: str, packed: bytes, now: float, not_in: str) -> str:
    """Return why a stored definition cannot be ticked, empty if it can. `not_in`: the key that lacks its next tick."""
    definition = ScheduleDefinition.read(name, packed)
    if isinstance(definition, str):
        return definition
    if problem := problem_of_ticks(definition.cron, definition.tz, now):
        return problem
    return f"{NO_TICK} in {not_in}" if not_in and not definition.declared else ""

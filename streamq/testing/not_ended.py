"""What `run_tasks` says when its time is over: how far it came, what is left, and what to do."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime

import anyio

from streamq.broker import RedisBroker
from streamq.errors import BrokerError

_NAMED = 5  # tasks and schedules of each kind, at most
_ASK_WITHIN = 5.0  # seconds that the server has to say what is left


async def not_ended_error(
    broker: RedisBroker, limit: float | None, *, began: float | None, until: float | None, ended: int,
    running: Collection[str],
) -> TimeoutError:  # fmt: skip
    """Return the error for tasks that have not ended within `limit` real seconds.

    `began` is where the clock of the server stood then (Unix s), None if it cannot be moved, and `until` where it was
    to go. `ended` counts the tasks that have ended, `running` describes those that have not.
    """
    said = [f"the tasks have not ended within {limit} s"]
    if began is not None:
        to = "" if until is None else f", on its way to {_moment(until)}"
        said.append(f"the clock came from {_moment(began)} to {_moment(broker.server_clock.now())}{to}")
    said += [f"{ended} tasks have ended", f"under way or to run again: {_some(running)}"]
    with suppress(BrokerError), anyio.move_on_after(_ASK_WITHIN):
        delayed = [one async for one in broker.scheduled(limit=_NAMED + 1)]
        said.append(f"delayed: {_some([f'{one.task} {one.task_id} until {_moment_of(one.due)}' for one in delayed])}")
        if until is not None:
            ticks = [one for one in await broker.schedules() if one.next is not None and one.next.timestamp() <= until]
            said.append(
                f"schedules that tick before that: {_some([f'{one.name!r} ({one.expression})' for one in ticks])}"
            )
    remedy = "give a longer timeout=" if until is None else "give a longer timeout=, or fewer ticks: a shorter during="
    return TimeoutError(f"{'; '.join(said)}. {remedy[0].upper()}{remedy[1:]}")


def _some(names: Collection[str]) -> str:
    more = ["and more"] if len(names) > _NAMED else []
    return ", ".join([*[*names][:_NAMED], *more]) or "none"


def _moment(seconds: float) -> str:
    return _moment_of(datetime.fromtimestamp(seconds, UTC))


def _moment_of(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

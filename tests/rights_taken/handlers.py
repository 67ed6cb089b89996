"""The tasks of one world: one for each feature. Each records its effect, in the name of the worker that runs it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio

from streamq import (
    Backoff,
    Reject,
    RetryLater,
    batch_task,
    current_batch,
    current_delivery,
    once,
    report_progress,
    task,
)  # fmt: skip
from streamq.middleware import CircuitBreaker, ConcurrencyLimit, RateLimitMiddleware

PATIENT: dict[str, Any] = {"retries": 50, "backoff": Backoff(base=0.05, cap=0.3)}
KEPT = PATIENT | {"result_ttl": 60.0}
HOPELESS = frozenset({"hopeless", "rejects", "slow", "doomed"})  # these end as dead letters, whatever is refused


def effect() -> None:
    """Record the effect of the run in progress. The lifespan of its worker yields the recorder."""
    delivery = current_delivery()
    delivery.state.record("effect", delivery.task_id)


def first(seen: Counter[str], what: str) -> bool:
    """Whether this happens for the first time to the task that runs."""
    key = f"{what} {current_delivery().task_id}"
    seen[key] += 1
    return seen[key] == 1


def plain_tasks(seen: Counter[str]) -> list[Any]:  # noqa: C901 - one function for each task
    """Return what runs, fails, is rejected, wants to run later, or takes too long."""

    @task(**PATIENT)
    async def plain(n: int) -> None:
        effect()

    @task(**PATIENT)
    def threaded(n: int) -> None:
        effect()

    @task(**PATIENT)
    async def flaky(n: int) -> None:
        if first(seen, "failure"):
            raise ValueError("the first time")
        effect()

    @task(**PATIENT)
    async def later(n: int) -> None:
        if first(seen, "postponement"):
            raise RetryLater(after=0.05)
        effect()

    @task(**PATIENT)
    async def mourn(dead: Any) -> None:
        effect()

    @task(retries=1, backoff=0.05, on_exhausted=mourn, result_ttl=60.0)
    async def hopeless(n: int) -> None:
        raise ValueError("each time")

    @task
    async def rejects(n: int) -> None:
        raise Reject("for good")

    @task(retries=0, timeout=0.1)
    async def slow(n: int) -> None:
        await anyio.sleep(20)

    @task(retries=0)
    async def doomed(n: int = 0) -> None:
        raise ValueError("the end of a workflow")

    return [plain, threaded, flaky, later, mourn, hopeless, rejects, slow, doomed]


def kept_tasks(seen: Counter[str]) -> list[Any]:  # noqa: C901 - as above
    """Return what has results, progress, steps, batches, effects, and what waits to be cancelled."""

    @task(**KEPT)
    async def kept(n: Any, more: Any = None) -> Any:
        effect()
        return n

    @task(**KEPT)
    async def total(parts: list[int]) -> int:
        effect()
        return sum(parts)

    @task(**KEPT)
    async def reports(n: int) -> int:
        for done in range(3):
            await report_progress(done, 3)
            await anyio.sleep(0.03)
        effect()
        return n

    @task(**KEPT)
    async def waits(n: int) -> None:
        await anyio.sleep(0.6)
        effect()

    @task(**KEPT)
    async def effects(key: str) -> Any:
        async with once(key, lease=1.0) as made:
            if not made.done:
                made.record(1)
        effect()
        return made.result

    @task(**PATIENT)
    async def ticks() -> None:
        effect()

    @batch_task(size=4, wait=0.05, **PATIENT)
    async def batch(items: list[int]) -> None:
        for delivery in current_batch():
            delivery.state.record("effect", delivery.task_id)

    return [kept, total, reports, waits, effects, ticks, batch]


def limited_tasks(seen: Counter[str]) -> list[Any]:
    """Return what goes through limits and circuits of the fleet, and of one process."""
    far = CircuitBreaker(2, 0.2, name="far", scope="fleet", counts=(OSError,))
    near = CircuitBreaker(2, 0.1, name="near", counts=(OSError,))

    @task(**PATIENT, middleware=[far, near])
    async def calls(n: int) -> None:
        if first(seen, "call"):
            raise OSError
        effect()

    @task(**PATIENT, middleware=[RateLimitMiddleware(max_per_second=40.0, burst=2, scope="fleet")])
    async def limited(n: int) -> None:
        effect()

    @task(**PATIENT, middleware=[ConcurrencyLimit(2)])
    async def alone(n: int) -> None:
        await anyio.sleep(0.02)
        effect()

    return [calls, limited, alone]


def all_tasks() -> list[Any]:
    """Return fresh tasks of all features."""
    seen: Counter[str] = Counter()
    return [*plain_tasks(seen), *kept_tasks(seen), *limited_tasks(seen)]

"""The app of the workers that tests/queue/test_workflows.py kills: a walk of many steps, and a group."""

from __future__ import annotations

import anyio

from streamq import current_delivery, task
from tests.crew import say


@task(result_ttl=600, retries=20)
async def begin(start: int) -> list[int]:
    say(f"ran {current_delivery().task_id}")
    await anyio.sleep(0.03)
    return [start]


@task(result_ttl=600, retries=20)
async def walk(path: list[int], number: int) -> list[int]:
    say(f"ran {current_delivery().task_id}")
    await anyio.sleep(0.03)
    return [*path, number]


@task(result_ttl=600, retries=20)
async def meet(paths: list[list[int]]) -> list[int]:
    say(f"ran {current_delivery().task_id}")
    return [sum(path) for path in paths]

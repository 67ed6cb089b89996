"""A module of tasks whose annotations are strings, as `from __future__ import annotations` makes them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

from pydantic import BaseModel

from streamq import task

if TYPE_CHECKING:
    from decimal import Decimal


class Order(BaseModel):
    number: int
    lines: list[str] = []


@task
async def book(order: Order, at: datetime | None = None) -> int:
    return order.number


class Keys(TypedDict):
    number: int
    at: NotRequired[datetime]


@task
async def keyed(**keys: Unpack[Keys]) -> None: ...


@task
async def unreadable(price: Decimal) -> None: ...


@task(validate=False)
async def unchecked(price: Decimal) -> None: ...


@task(run_in="process")
def power(base: int, exponent: int = 2) -> int:
    return base**exponent


@task(run_in="process", retries=0, timeout=2.0)  # a process needs a moment to start
def for_ever() -> None:
    while True:
        pass


@task(run_in="process", retries=0)
def dies() -> None:
    import os

    os._exit(3)


@task(run_in="process", retries=0, result_ttl=60)
def notes_and_hangs(file: str) -> None:
    import os
    from pathlib import Path

    Path(file).write_text(str(os.getpid()))
    while True:
        pass

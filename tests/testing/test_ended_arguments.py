"""`EndedTask` has the arguments as the handler got them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from streamq import batch_task, task
from streamq.testing.suite import Suite

pytestmark = pytest.mark.anyio


@dataclass
class Item:
    name: str
    price: Decimal


@task
async def price(item: Item, *, at: datetime) -> Decimal:
    return item.price


@batch_task(size=2, wait=0.01)
async def store(items: list[Item]) -> None: ...


@task
async def count(n: int) -> None: ...


APPLE, NOON = Item("apple", Decimal("1.50")), datetime(2030, 1, 1, 12, tzinfo=UTC)


async def test_arguments_have_the_types_of_the_parameters():
    """Of a task, of a batch task, and of a task that died."""
    async with Suite(tasks=(price, store)).open_broker() as broker:
        await broker.enqueue(price, APPLE, at=NOON)
        await broker.enqueue(store, APPLE)
        ended = {one.name: one for one in await broker.run_tasks()}
    assert (ended["price"].args, ended["price"].kwargs) == ([APPLE], {"at": NOON})
    assert (ended["store"].args, ended["store"].kwargs) == ([APPLE], {})


async def test_arguments_that_do_not_fit_are_json():
    """So are those of a task that nobody knows."""
    async with Suite(tasks=(count,)).open_broker() as broker:
        await broker.enqueue("count", "no number")
        await broker.enqueue("nobody", {"a": 1})
        ended = {one.name: one for one in await broker.run_tasks(check=False)}
    assert ended["count"].args == ["no number"]
    assert ended["nobody"].args == [{"a": 1}]

"""`Handle[T].result()` is a T: on real servers, on both backends, for every way to a result."""

from __future__ import annotations

import dataclasses
import enum
import uuid
from collections.abc import Awaitable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString, NoReturn, TypedDict
from zoneinfo import ZoneInfo

import anyio
import pytest
from pydantic import BaseModel, Field, PrivateAttr, SecretStr

from streamq import RedisBroker, Status, Worker, as_completed, batch_task, gather, group, once, task
from streamq.errors import ArgumentsError, ConfigurationError, ResultTimeoutError, ResultTypeError, TaskFailedError
from streamq.middleware import Idempotency
from tests.at_work import burst, dead

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Invoice(BaseModel):
    number: int = Field(validation_alias="no")
    due: date


@dataclasses.dataclass
class Point:
    x: int
    at: datetime


class Row(TypedDict):
    id: int


class Color(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    A = "a"


class Noted(BaseModel):
    _note: str = PrivateAttr("")


INVOICE = Invoice(no=7, due=date(2026, 1, 31))


@task(result_ttl=60)
async def model() -> Invoice:
    return INVOICE


@task(result_ttl=60)
def in_thread() -> tuple[int, Point]:
    return 1, Point(2, NOON)


@task(result_ttl=60)
async def several(n: int) -> dict[Color, set[uuid.UUID]] | None:
    return {Color.RED: {uuid.UUID(int=n)}} if n else None


@task(result_ttl=60)
def awaited() -> Awaitable[Decimal]:
    async def later() -> Decimal:
        return Decimal("1.10")

    return later()


@task(result_ttl=60)
async def untyped():
    return {"when": NOON}


@task(result_ttl=60)
async def due_of(invoice: Invoice) -> date:
    return invoice.due


@task(result_ttl=60)
async def sum_of(dues: list[date]) -> list[date]:
    return dues


@batch_task(size=10, wait=0.05, result_ttl=60)
async def points(xs: list[int]) -> list[Point | Exception] | None:
    return [Point(x, NOON) if x else ValueError("no point") for x in xs]


EVERY = [model, in_thread, several, awaited, untyped, due_of, sum_of, points]


async def test_each_way_to_a_result_gives_the_declared_type(server):
    async with RedisBroker(server.url) as broker:
        handles: list[Any] = [await broker.enqueue(one) for one in (model, in_thread, awaited, untyped)]
        handles += [await broker.enqueue(several, 7), await broker.enqueue(several, 0)]
        wanted = [
            INVOICE, (1, Point(2, NOON)), Decimal("1.10"), {"when": NOON.isoformat()},
            {Color.RED: {uuid.UUID(int=7)}}, None,
        ]  # fmt: skip
        await burst(broker, *EVERY)
        assert [await handle.result(timeout=5) for handle in handles] == wanted
        assert [*await gather(*handles, timeout=5)] == wanted
        assert [await one.result() async for one in as_completed(*handles, timeout=5)] == wanted
        known = broker.handle(handles[0].task_id, task=model)
        assert (await known.result(timeout=0)).number == 7
        assert await broker.handle(handles[0].task_id).result(timeout=0) == {"number": 7, "due": "2026-01-31"}
        with pytest.raises(ConfigurationError, match="task is of type str"):
            broker.handle("x", task="model")  # type: ignore[call-overload]


async def test_steps_of_a_workflow_get_and_give_the_declared_types(server):
    async with RedisBroker(server.url) as broker:
        chain = await broker.start(model.call().then(due_of))
        joined = await broker.start(group(model.call().then(due_of), model.call().then(due_of)).then(sum_of))
        await burst(broker, *EVERY)
        assert await chain.result(timeout=5) == date(2026, 1, 31)
        assert await chain.steps[0].result(timeout=5) == INVOICE
        assert await joined.result(timeout=5) == [date(2026, 1, 31)] * 2


async def test_each_message_of_a_batch_has_a_result_of_its_own_type(server):
    async with RedisBroker(server.url) as broker:
        handles = [await broker.enqueue(points.options(retries=0), x) for x in (1, 0)]
        await burst(broker, *EVERY)
        assert await handles[0].result(timeout=5) == Point(1, NOON)
        with pytest.raises(TaskFailedError, match="no point"):
            await handles[1].result(timeout=5)


async def test_a_recorded_result_comes_back_as_its_run_returned_it(server):
    runs = []

    @task(result_ttl=60, middleware=[Idempotency("one")])
    async def charge() -> Invoice:
        runs.append(1)
        return INVOICE

    async with RedisBroker(server.url) as broker:
        handles = [await broker.enqueue(charge) for _ in range(2)]
        await Worker(broker, tasks=[charge], concurrency=1, burst=True).run()
        assert [await handle.result(timeout=5) for handle in handles] == [INVOICE, INVOICE]
        async with once("one", broker=broker) as effect:
            assert effect.result == {"number": 7, "due": "2026-01-31"}
    assert runs == [1]


async def test_a_result_that_would_be_lost_fails_by_name_and_the_task_has_succeeded(server):
    class Secret(BaseModel):
        token: SecretStr

    async def leak():
        return Secret(token=SecretStr("hunter2"))

    leak.__annotations__ = {"return": Secret}
    leaking = task(result_ttl=60)(leak)
    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(leaking)
        await burst(broker, leaking)
        with pytest.raises(TaskFailedError, match=r"the task succeeded, its result .* token: it would arrive changed"):
            await handle.result(timeout=5)
        assert "hunter2" not in str(await broker.client.get(f"queue:result:{handle.task_id}"))
    assert dead(server) == []


async def test_none_in_the_place_of_a_result_is_as_any_other_that_does_not_fit(server, caplog):
    """The worker says so, its waiters get the reason, and the task has succeeded."""

    @task(result_ttl=60)
    async def forgot() -> int:
        return None  # type: ignore[return-value]

    @task(result_ttl=60)
    async def nothing() -> None: ...

    @task(result_ttl=60)
    async def perhaps(n: int) -> Point | None:
        return Point(n, NOON) if n else None

    @task(result_ttl=60)
    async def unannotated():
        return None

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(forgot)
        fine = [await broker.enqueue(one) for one in (nothing, unannotated)] + [await broker.enqueue(perhaps, 0)]
        await burst(broker, forgot, nothing, perhaps, unannotated)
        with pytest.raises(TaskFailedError, match=r"the task succeeded, its result .* valid integer") as caught:
            await handle.result(timeout=5)
        assert caught.value.reason == "result"
        assert await handle.status() == Status.SUCCEEDED
        assert await gather(*fine, timeout=5) == (None, None, None)
    assert [line.event for line in caplog.records if line.levelname == "ERROR"] == ["result_lost"]  # type: ignore[attr-defined]


async def test_each_kind_of_value_makes_the_trip_both_ways(real_server):
    """What `tests.tasks` shows of types, through a server: hours that come twice, keys that are not declared, lists."""
    berlin = ZoneInfo("Europe/Berlin")
    twice = [(NOON.replace(month=10, day=25, hour=hour)).astimezone(berlin) for hour in (0, 1)]
    got: list[Any] = []

    @task(result_ttl=60, retries=0)
    async def take(at: list[datetime], row: Row, days: Iterable[date], share: float) -> tuple[list[datetime], Row]:
        got.append(([one.isoformat() for one in at], row, days, share))
        return at, row

    @task(result_ttl=60)
    async def later(at: datetime) -> datetime:
        return at + timedelta(0)

    take.function.__annotations__ |= {"row": Row, "return": tuple[list[datetime], Row]}
    row: Any = {"id": 1, "total": 99}
    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(take, twice, row, [NOON.date()], 2)
        chain = await broker.start(later.call(twice[1]).then(later))
        by_name = await broker.enqueue("take", [], row, ["soon"], 2)
        await burst(broker, take, later)
        back = await handle.result(timeout=5)
        assert (await chain.result(timeout=5)).isoformat() == twice[1].isoformat()
        with pytest.raises(TaskFailedError, match=r"argument days\.0 = 'soon'"):
            await by_name.result(timeout=5)
    assert [one.isoformat() for one in back[0]] == ["2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00"]
    assert back[1] == row
    assert got == [([one.isoformat() for one in twice], row, [NOON.date()], 2.0)]


async def test_a_result_of_another_version_says_so(server):
    """The worker runs code that returns a text; here a number is declared."""

    @task(name="versioned", result_ttl=60)
    async def old() -> str:
        return "seven"

    @task(name="versioned", result_ttl=60)
    async def new() -> int:
        return 7

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(new)
        await burst(broker, old)
        with pytest.raises(ResultTypeError, match=r"'versioned' .* valid integer.*broker\.handle\(task_id\)"):
            await handle.result(timeout=5)
        assert await broker.handle(handle.task_id).result(timeout=5) == "seven"


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (
            "NotImported",
            r"an annotation cannot be read: name 'NotImported' is not defined; import it where.*TYPE_CHECKING",
        ),
        (LiteralString, "the annotation of its result cannot be checked: .*LiteralString is not a Python type"),
        (Iterator[int], r"the annotation of its result cannot be checked: .* can be read only once.*validate=False"),
    ],
)
async def test_a_result_whose_annotation_cannot_be_used_is_refused_where_a_worker_starts(server, annotation, says):
    """As that of an argument is. A waiter who has such a task, while a worker has another one, is told so, too."""

    async def hidden(): ...

    @task(name="hidden", result_ttl=60)
    async def readable() -> None: ...

    hidden.__annotations__ = {"return": annotation}
    task_ = task(result_ttl=60)(hidden)
    async with RedisBroker(server.url) as broker:
        with pytest.raises(ArgumentsError, match=f"task 'hidden': {says}"):
            await burst(broker, task_)
        await burst(broker, task(validate=False, name="hidden")(hidden))
        handle = await broker.enqueue(task_)
        await burst(broker, readable)
        with pytest.raises(ResultTypeError):
            await handle.result(timeout=5)


async def test_a_task_that_never_returns_starts(server):
    @task(retries=0, result_ttl=60)
    async def fails() -> NoReturn:
        raise LookupError("own")

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(fails)
        await burst(broker, fails)
        with pytest.raises(TaskFailedError, match="own"):
            await handle.result(timeout=5)


async def test_what_equality_takes_for_the_same_is_refused_and_never_arrives_changed(server):
    """A private attribute, a member of a StrEnum beside str, the fold of a naive time: both ways."""
    got: list[Any] = []

    @task(result_ttl=60, retries=0)
    async def take(noted: Noted, word: Word | str, at: datetime) -> Noted:
        got.append((noted._note, word, at))
        noted._note = "changed"
        return noted

    changed, plain = Noted(), Noted()
    changed._note = "mine"
    async with RedisBroker(server.url) as broker:
        for wrong, says in (
            ((changed, "b", NOON), r"argument noted\._note: .*private attribute"),
            ((plain, Word.A, NOON), "argument word: it would arrive as str"),
            ((plain, "b", NOON.replace(tzinfo=None, fold=1)), "argument at: its fold=1 would be lost"),
        ):
            with pytest.raises(ArgumentsError, match=says):
                await broker.enqueue(take, *wrong)
        handle = await broker.enqueue(take, plain, "a", NOON)
        await burst(broker, take)
        with pytest.raises(TaskFailedError, match="private attribute"):
            await handle.result(timeout=5)
    assert got == [("", "a", NOON)]
    assert type(got[0][1]) is str


async def test_what_is_there_is_returned_however_short_the_time(server):
    async with RedisBroker(server.url) as broker:
        there, missing = await broker.enqueue(model), await broker.enqueue(model)
        await there.cancel()
        for wait in (0, 0.0001, -1):
            with pytest.raises(TaskFailedError, match="cancelled"):
                await there.result(timeout=wait)
            with pytest.raises(ResultTimeoutError):
                await missing.result(timeout=wait)
            assert len(await gather(there, timeout=wait, return_exceptions=True)) == 1
            with pytest.raises(ResultTimeoutError) as caught:
                await gather(there, missing, timeout=wait, return_exceptions=True)
            assert caught.value.missing == (missing.task_id,)
            arrived = as_completed(there, missing, timeout=wait)
            assert (await anext(arrived)).task_id == there.task_id
            with pytest.raises(ResultTimeoutError):
                await anext(arrived)
            assert [report async for report in there.watch(timeout=wait)] == []


async def test_a_wait_of_no_time_for_a_busy_server_ends(real_server):
    """One read may take a second; then the time counts."""
    async with RedisBroker(real_server.url) as broker:
        handle = await broker.enqueue(model)
        real_server.command("CLIENT", "PAUSE", "3000", "ALL")
        began = anyio.current_time()
        with pytest.raises(ResultTimeoutError):
            await handle.result(timeout=0)
        assert anyio.current_time() - began < 2.5


async def test_arguments_arrive_as_they_were_sent_or_are_refused(server):
    got: list[Any] = []

    @task
    async def take(invoice: Invoice, /, colors: set[Color], *rest: date, extra: Point | None = None, **more: Any):
        got.append((invoice, colors, rest, extra, more))

    async with RedisBroker(server.url) as broker:
        sent = (INVOICE, {Color.RED}, NOON.date(), NOON.date())
        await broker.enqueue(take, *sent, extra=Point(1, NOON), other=[1])
        await broker.enqueue(
            take, {"no": 7, "due": "2026-01-31"}, [Color.RED], *sent[2:], extra=Point(1, NOON), other=[1]
        )
        await broker.enqueue(take, INVOICE, (one for one in [Color.RED]), *sent[2:], extra=Point(1, NOON), other=[1])
        with pytest.raises(ArgumentsError, match=r"argument rest\.1 = 'soon'"):
            await broker.enqueue(take, INVOICE, set(), NOON.date(), "soon")  # type: ignore[arg-type]
        with pytest.raises(ArgumentsError, match="argument other: it would arrive changed"):
            await broker.enqueue(take, INVOICE, set(), other=NOON)
        with pytest.raises(ArgumentsError, match=r"argument extra.*; argument other"):
            await broker.enqueue(take, INVOICE, set(), extra=5, other=(1,))  # type: ignore[arg-type]
        await burst(broker, take)
    assert got == [(INVOICE, {Color.RED}, (NOON.date(),) * 2, Point(1, NOON), {"other": [1]})] * 3

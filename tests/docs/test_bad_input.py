"""docs/bad-input.md, row by row: what becomes of messages and handlers that are not as they should be."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, Worker, current_delivery, task
from streamq.errors import ArgumentsError, EncodingError, PayloadTooLargeError, TaskFailedError

MIB = 1 << 20


@task
async def send(to: str) -> None: ...


@task
async def anything(what: Any) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((object(),), EncodingError),
        ((float("nan"),), EncodingError),
        (([1, float("inf")],), EncodingError),
        ((), ArgumentsError),
        ((1, 2), ArgumentsError),
        (("x" * 2 * MIB,), PayloadTooLargeError),
    ],
    ids=["object", "nan", "inf", "too few", "too many", "2 MiB"],
)
async def test_enqueue_refuses(anyio_backend: str, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    """What cannot be sent, or cannot be run, is refused where it is written, and nothing is sent."""
    async with RedisBroker("memory://") as broker:
        with pytest.raises(error):
            await broker.enqueue(anything, *arguments)
        assert await broker.client.keys("*") == []


async def test_annotations_are_checked_where_pydantic_is(anyio_backend: str) -> None:
    """A mismatch is refused where the task is at hand."""
    async with RedisBroker("memory://") as broker:
        with pytest.raises(ArgumentsError, match="to = 7"):
            await broker.enqueue(send, 7)  # type: ignore[arg-type]


BROKEN = {
    "undecodable": [
        ("task", "send", "args", "nonsense"),
        ("task", "send", "args", '{"to":"a"}'),
        ("task", "send", "kwargs", "[]"),
        ("task", "send", "kwargs", b'{"to":"\xff"}'),
        ("task", "send", "args", '["a"]', "retries", "many"),
        ("task", "send", "args", '["a"]', "timeout", "-1"),
        ("kwargs", "{}"),
        ("task", b"\xff\xfe"),
        ("id", "a b", "task", "send", "args", '["a"]'),
        ("id", "a|b", "task", "send", "args", '["a"]'),
        ("id", "\x1b[2J", "task", "send", "args", '["a"]'),
        ("id", "x" * 201, "task", "send", "args", '["a"]'),
        ("task", "two words", "args", "[]"),
        ("dedup", "a\nb", "task", "send", "args", '["a"]'),
        ("task", "send", *[part for n in range(1001) for part in (f"field{n}", "x")]),
    ],
    "rejected": [
        ("task", "send"),
        ("task", "send", "args", '["a", "b", "c"]'),
        ("task", "send", "args", "[7]"),
    ],
    "expired": [("task", "send", "args", '["a"]', "expires", "1")],
    "unknown_task": [("task", "nobody", "unknown_since", "1")],
    "unknown_group": [("task", "send", "args", '["a"]', "group", "wrokers")],
}


@pytest.mark.parametrize(("reason", "fields"), [(reason, entry) for reason, some in BROKEN.items() for entry in some])
async def test_a_broken_entry_is_dead(anyio_backend: str, reason: str, fields: tuple[str | bytes, ...]) -> None:
    """An entry that nobody can run becomes a dead letter with its reason; the worker goes on."""
    async with RedisBroker("memory://") as broker:
        await broker.client.execute_command("XADD", "queue:standard", "*", *fields)
        await broker.enqueue(anything, "after it")
        heard = await burst(broker, send, anything)
        ((_, letter),) = await broker.client.xrange("queue:dead")
        assert letter[b"reason"].decode() == reason
        if reason == "undecodable":
            name, value = (part if isinstance(part, bytes) else part.encode() for part in fields[:2])
            assert letter[b"raw." + name] == value
        assert heard == ["anything"]
        assert await broker.client.xlen("queue:standard") == 0


@pytest.mark.parametrize("message", [None, "{}", "[]", '["task"]', '["task", 1]', "nonsense"])
async def test_a_broken_delayed_message_is_dead(anyio_backend: str, message: str | None) -> None:
    """An id without a message, or with one that is no array of texts, ends as undecodable."""
    async with RedisBroker("memory://") as broker:
        if message is not None:
            await broker.client.hset("queue:standard:messages", "ghost", message)
        await broker.client.zadd("queue:standard:delayed", {"ghost": 1})
        await burst(broker, send)
        ((_, letter),) = await broker.client.xrange("queue:dead")
        assert (letter[b"task_id"], letter[b"reason"]) == (b"ghost", b"undecodable")
        assert letter[b"raw.broken"].decode() == (message or "")
        assert await broker.client.keys("queue:standard:*") == []


async def test_two_mebibytes_by_hand_are_run(anyio_backend: str) -> None:
    """The limit is the sender's: an entry that lies there is run."""
    async with RedisBroker("memory://") as broker:
        payload = b'{"what":"' + b"x" * 2 * MIB + b'"}'
        await broker.client.execute_command("XADD", "queue:standard", "*", "task", "anything", "kwargs", payload)
        assert await burst(broker, anything) == ["anything"]


async def test_unknown_fields_survive_a_retry(anyio_backend: str) -> None:
    """What streamq does not know is kept."""
    seen: list[dict[bytes, bytes]] = []

    @task(backoff=lambda attempt, error: 0.0)
    async def fails_once() -> None:
        seen.append(current_delivery().fields)
        if len(seen) == 1:
            raise ValueError

    async with RedisBroker("memory://") as broker:
        await broker.client.execute_command("XADD", "queue:standard", "*", "task", "fails_once", "colour", "blue")
        await burst(broker, fails_once)
    assert [fields[b"colour"] for fields in seen] == [b"blue", b"blue"]


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def raises(error: BaseException | None) -> Any:
    @task(name="odd", retries=0, timeout=0.05, result_ttl=60, give_up_on=PermissionError)
    async def odd() -> Any:
        if error is None:
            await anyio.sleep(5)
        else:
            raise error

    return odd


@pytest.mark.parametrize(
    ("error", "reason", "kind"),
    [
        (ValueError("no"), "retries_exhausted", "ValueError"),
        (PermissionError("no"), "rejected", "PermissionError"),
        (Reject("no"), "rejected", "streamq.errors.Reject"),
        (None, "retries_exhausted", "streamq.errors.TaskTimeoutError"),
        (UnspeakableError(), "retries_exhausted", f"{__name__}.UnspeakableError"),
        (SystemExit(3), "retries_exhausted", "SystemExit"),
        (BaseExceptionGroup("all", [SystemExit(1), ValueError()]), "retries_exhausted", "SystemExit"),
        (ExceptionGroup("all", [OSError(), ValueError()]), "retries_exhausted", "OSError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
async def test_a_handler_that_fails(anyio_backend: str, error: BaseException | None, reason: str, kind: str) -> None:
    """No exception of a task ends its worker, whatever it derives from."""
    async with RedisBroker("memory://") as broker:
        handle = await broker.enqueue(raises(error))
        await broker.enqueue(anything, "after it")
        assert await burst(broker, raises(error), anything) == ["anything"]
        ((_, letter),) = await broker.client.xrange("queue:dead")
        assert (letter[b"reason"].decode(), letter[b"error_type"].decode()) == (reason, kind)
        with pytest.raises(TaskFailedError) as caught:
            await handle.result(timeout=5)
        assert (caught.value.reason, caught.value.error_type) == (reason, kind)


async def test_retry_later_spends_no_attempt(anyio_backend: str) -> None:
    """A task with no retries may ask for more time as often as it likes."""
    attempts: list[int] = []

    @task(retries=0)
    async def busy() -> None:
        attempts.append(current_delivery().attempt)
        if len(attempts) < 3:
            raise RetryLater(after=0.01)

    async with RedisBroker("memory://") as broker:
        await broker.enqueue(busy)
        await burst(broker, busy)
    assert attempts == [1, 1, 1]


async def test_a_result_that_is_no_json(anyio_backend: str) -> None:
    """The work is done and acknowledged; who waits is told what is wrong with the result."""

    @task(result_ttl=60)
    async def odd() -> object:
        return object()

    async with RedisBroker("memory://") as broker:
        handle = await broker.enqueue(odd)
        assert await burst(broker, odd) == ["odd"]
        with pytest.raises(TaskFailedError, match="not JSON") as caught:
            await handle.result(timeout=5)
        assert caught.value.reason == "result"
        assert await broker.client.xlen("queue:dead") == 0


async def burst(broker: RedisBroker, *tasks: Any) -> list[str]:
    """Run what there is, and return the names of the tasks that succeeded."""
    from streamq.consumer.events import Event, Settled
    from streamq.tasks.outcome import Ack

    done: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Settled) and isinstance(event.outcome, Ack):
            done.append(event.delivery.task)

    with anyio.fail_after(10):
        await Worker(broker, tasks, listeners=[listen], burst=True).run()
    return done

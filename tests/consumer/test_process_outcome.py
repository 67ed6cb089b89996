"""P13: whatever the handler of a process returns or raises is the outcome of this run, as in a thread."""

from __future__ import annotations

import inspect
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from streamq import RedisBroker, Reject, RetryLater, batch_task, task
from streamq.consumer.process_outcome import (
    LostResult,
    SentError,
    error_of,
    pack_answer,
    receive,
    send_error,
    send_result,
    unpack_answer,
)
from streamq.errors import ArgumentsError, ProcessHandlerError, StreamqError, TaskFailedError
from streamq.wire.message import dumps
from tests.at_work import burst, dead

FAST: dict[str, Any] = {"run_in": "process", "retries": 1, "backoff": 0.01, "timeout": 20.0}


class OwnInitError(Exception):
    """Its pickle calls `__init__` with what it gave to `Exception`."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(f"{code}: {text}")


class OwnTextError(Exception):
    """Its text is made of what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.text = lambda: text

    def __str__(self) -> str:
        return self.text()


class PrefixedError(Exception):
    """Its pickle adds the prefix again."""

    def __init__(self, text: str) -> None:
        super().__init__(f"it was: {text}")


class OwnOSError(OSError):
    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(code, why)


class OwnReject(Reject):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class LeavesInPickleError(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(5)


class LeavesInUnpickleError(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (5,)


class HostileError(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise KeyboardInterrupt(name)


class OwnGroup(ExceptionGroup):
    def __new__(cls, code: int, errors: list[Exception]) -> Self:
        return super().__new__(cls, f"code {code}", errors)


class Stop(BaseException): ...


class Leaves:
    """A value that leaves the worker when it is unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, (7,)


def sent_back(error: BaseException) -> BaseException:
    sent = send_error(error)
    assert isinstance(sent, SentError)
    return error_of(sent)


KEPT = [
    ValueError("no"), OSError(2, "no such file"), SystemExit(3), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    KeyError("x"), OwnInitError(5, "no"), OwnTextError("no"), PrefixedError("no"), OwnOSError(5, why="no"),
    OwnReject(5, "no"), LeavesInPickleError("no"), LeavesInUnpickleError("no"),
    RetryLater("busy", after=3.0, headers={"a": 1}), ArgumentsError("t", "no"),
]  # fmt: skip


@pytest.mark.parametrize("error", KEPT, ids=lambda one: type(one).__name__)
def test_an_exception_keeps_its_type_its_text_and_its_attributes(error) -> None:
    """With an `__init__` of its own, which is not called again, and with what pickle cannot carry."""
    error.add_note("a note")
    again = sent_back(error)
    assert isinstance(again, type(error))
    assert (type(again).__module__, type(again).__qualname__) == (type(error).__module__, type(error).__qualname__)
    assert str(again) == str(error)
    assert again.__notes__ == ["a note"]
    for name in ("code", "after", "headers", "errno", "start"):
        assert getattr(again, name, None) == getattr(error, name, None)


def test_what_is_large_in_an_exception_stays_behind() -> None:
    """The worker unpickles it in its event loop."""
    error = OwnInitError(5, "no")
    error.rows = [{"row": number} for number in range(100_000)]  # type: ignore[attr-defined]
    again = sent_back(error)
    assert (type(again), str(again), again.code) == (OwnInitError, "5: no", 5)
    assert not hasattr(again, "rows")
    assert len(pickle.dumps(send_error(error))) < 10_000


def test_a_group_keeps_its_members() -> None:
    """Nested ones, and one of a class of the user's; what would end the worker is replaced."""
    group = BaseExceptionGroup(
        "all", [OwnInitError(1, "a"), ExceptionGroup("some", [OwnReject(2, "b")]), KeyboardInterrupt()]
    )
    again = sent_back(group)
    assert isinstance(again, ExceptionGroup)
    first, (second,), third = again.exceptions[0], again.exceptions[1].exceptions, again.exceptions[2]
    assert (type(first), str(first), type(second), str(second)) == (OwnInitError, "1: a", OwnReject, "2: b")
    assert (type(third), str(third)) == (ProcessHandlerError, "KeyboardInterrupt")
    own = sent_back(OwnGroup(4, [OwnInitError(1, "a")]))
    assert (type(own), str(own), str(own.exceptions[0])) == (OwnGroup, "code 4 (1 sub-exception)", "1: a")


def test_what_cannot_be_raised_here_is_replaced() -> None:
    """A class inside of a function, and whatever would end the worker. Its type and its text are there."""

    class LocalError(Exception): ...

    def raised(error: BaseException) -> StreamqError:
        again = sent_back(error)
        assert type(again) is ProcessHandlerError
        return again

    assert raised(LocalError("no")).error == "no"
    assert raised(LocalError("no")).error_type.endswith("<locals>.LocalError")
    for error in (KeyboardInterrupt("no"), GeneratorExit("no"), Stop("no")):
        assert str(raised(error)).endswith(f"{type(error).__name__}: no")
    assert type(sent_back(HostileError("no"))) is HostileError


@pytest.mark.parametrize("value", [threading.Lock(), (n for n in range(3)), lambda: 1, Leaves()])
def test_a_result_that_cannot_arrive_is_lost_and_no_error(value) -> None:
    result = receive("t", send_result(value, dumps, batch=False))
    assert isinstance(result, LostResult)
    assert result.why
    one, lost, error = receive("t", send_result([1, value, OwnInitError(5, "no")], dumps, batch=True))
    assert (one.payload, type(lost).__name__, str(error)) == (b"1", type(result).__name__, "5: no")
    assert isinstance(receive("t", send_result([1, value], dumps, batch=False)), LostResult)


def test_what_is_no_outcome_is_no_success() -> None:
    with pytest.raises(AssertionError):
        receive("t", None)  # type: ignore[arg-type]


# --- of real processes ----------------------------------------------------------------------------


@task(**FAST | {"retries": 0})
def leaves(how: str) -> None:
    if how == "exits":
        sys.exit(3)
    raise {"stops": Stop, "interrupts": KeyboardInterrupt, "generator": GeneratorExit, "pickle": LeavesInPickleError}[
        how
    ]("no")


@task(**FAST, result_ttl=60)
def innocent(number: int) -> int:
    return number


def note(file: str) -> None:
    with Path(file).open("a") as notes:
        notes.write("x")


@task(**FAST)
def returns_lock(file: str) -> threading.Lock:
    note(file)
    return threading.Lock()


@task(**FAST, result_ttl=60)
def returns_function(file: str) -> Callable[[], int]:
    note(file)
    return lambda: 1


@task(**FAST, give_up_on=OwnInitError)
def gives_up() -> None:
    raise OwnInitError(5, "no")


@task(**FAST, result_ttl=60)
def raises(how: str) -> Any:
    match how:
        case "group":
            raise ExceptionGroup("both", [ValueError("a"), OwnReject(5, "no")])
        case "argument in group":
            raise ExceptionGroup("one", [ArgumentsError("t", "of another task")])
        case "argument":
            raise ArgumentsError("t", "of another task")
        case "generator":
            return (n for n in range(3))
        case "local":
            raise type("LocalError", (Exception,), {})("no")


@batch_task(size=3, wait=5, result_ttl=60, **FAST)
def each(items: list[str]) -> list[Any]:
    made = {"error": lambda: OwnInitError(5, "no"), "lock": threading.Lock, "stop": lambda: Stop("no")}
    return [made[item]() if item in made else item for item in items]


pytestmark = [pytest.mark.slow, pytest.mark.paired]


async def test_a_handler_that_leaves_takes_no_other_task_with_it(real_server):
    """`sys.exit()`, an interrupt: the process answers, and the next task runs in it."""
    ways = {"exits": "SystemExit", "pickle": f"{__name__}.LeavesInPickleError"}
    replaced = f"{ProcessHandlerError.__module__}.ProcessHandlerError"
    async with RedisBroker(real_server.url) as broker:
        handles = []
        for number, how in enumerate(("exits", "stops", "interrupts", "generator", "pickle")):
            await broker.enqueue(leaves, how)
            handles.append(await broker.enqueue(innocent, number))
        await burst(broker, leaves, innocent, concurrency=1)
        assert [await handle.result(timeout=1) for handle in handles] == list(range(5))
    assert [letter["error_type"] for letter in dead(real_server)] == [
        ways["exits"], replaced, replaced, replaced, ways["pickle"]
    ]  # fmt: skip


async def test_a_result_that_cannot_be_pickled_is_work_done(real_server, tmp_path):
    """One run, acknowledged, as in a thread; who waits for the result is told why there is none."""
    file = tmp_path / "runs"
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(returns_lock, str(file))
        handle = await broker.enqueue(returns_function, str(file))
        await burst(broker, returns_lock, returns_function)
        with pytest.raises(
            TaskFailedError, match=r"succeeded, its result cannot be sent as JSON: .*function"
        ) as raised:
            await handle.result(timeout=1)
    assert raised.value.reason == "result"
    assert file.read_text() == "xx"
    assert dead(real_server) == []


async def test_rules_by_class_hold_and_the_traceback_shows_the_handler(real_server):
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(gives_up)
        await burst(broker, gives_up)
    (letter,) = dead(real_server)
    assert (letter["reason"], letter["attempts"]) == ("rejected", "1")
    assert (letter["error_type"], letter["error"]) == (f"{__name__}.OwnInitError", "5: no")
    line = inspect.getsource(gives_up.function).splitlines()[-1].strip()
    assert f"in gives_up\n    {line}" in letter["traceback"]
    assert "run_context" not in letter["traceback"]


@pytest.mark.parametrize(
    ("how", "reason", "error_type", "error"),
    [
        ("group", "rejected", f"{__name__}.OwnReject", "5: no"),
        ("argument in group", "retries_exhausted", "streamq.errors.ArgumentsError", None),
        ("argument", "retries_exhausted", "streamq.errors.ArgumentsError", None),
        ("generator", "retries_exhausted", "TypeError", None),
        ("local", "retries_exhausted", "streamq.errors.ProcessHandlerError", f"{__name__}.LocalError: no"),
    ],
)
async def test_what_a_process_raises_is_decided_as_elsewhere(real_server, how, reason, error_type, error):
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(raises, how)
        await burst(broker, raises)
    (letter,) = dead(real_server)
    assert (letter["reason"], letter["error_type"]) == (reason, error_type)
    assert error is None or letter["error"] == error


async def test_one_item_of_a_batch_does_not_fail_the_others(real_server):
    async with RedisBroker(real_server.url) as broker:
        for bad in ("error", "lock", "stop"):
            first, second, third = await broker.enqueue_many(
                [each.options(retries=0).call(item) for item in ("a", bad, "b")]
            )
            await burst(broker, each)
            assert (await first.result(timeout=1), await third.result(timeout=1)) == ("a", "b")
            with pytest.raises(
                TaskFailedError, match={"error": "5: no", "lock": "cannot be sent", "stop": "Stop: no"}[bad]
            ):
                await second.result(timeout=1)


def looks_up(name: str) -> str:
    return {}[name]


@task(name="chains", run_in="process", retries=0, timeout=20.0)
def chains() -> None:
    try:
        looks_up("bank")
    except KeyError as missing:
        raise ValueError("no bank") from missing


def test_an_exception_has_the_frames_of_its_process_and_so_have_those_before_it():
    """Sentry, and what logs a traceback, saw those of streamq alone, and a text."""
    try:
        chains.function()
    except ValueError as error:
        sent = send_error(ExceptionGroup("several", [error]))
    group = error_of(unpack_answer(pack_answer(sent, 0))[0])
    (error,) = group.exceptions
    assert [one.name for one in traceback.extract_tb(error.__traceback__)][-1] == "chains"
    (first, last) = traceback.extract_tb(error.__cause__.__traceback__)
    assert (first.name, last.name, last.filename) == ("chains", "looks_up", __file__)
    assert last.line == "return {}[name]"
    assert last.lineno == looks_up.__code__.co_firstlineno + 1
    assert error.__suppress_context__


def test_the_frames_and_the_chain_of_an_exception_are_bounded():
    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        raise ValueError(level)

    with pytest.raises(ValueError, match="0") as raised:
        deep(500)
    error: BaseException = raised.value
    for number in range(100):
        outer = RuntimeError(number)
        outer.__context__, error = error, outer
    assert len(list(traceback.walk_tb(error_of(send_error(raised.value)).__traceback__))) <= 80
    again: BaseException | None = error_of(send_error(error))
    length = 0
    while again is not None:
        length, again = length + 1, again.__context__
    assert length <= 20


async def test_what_a_run_raised_has_its_frames_in_the_worker(real_server, caplog):
    async with RedisBroker(real_server.url) as broker:
        await broker.enqueue(chains)
        await burst(broker, chains)
    (letter,) = dead(real_server)
    assert "in looks_up" in letter["traceback"]
    (record,) = [one for one in caplog.records if one.__dict__.get("event") == "dead"]
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert [one.name for one in traceback.extract_tb(error.__traceback__)][-1] == "chains"
    assert [one.name for one in traceback.extract_tb(error.__cause__.__traceback__)] == ["chains", "looks_up"]

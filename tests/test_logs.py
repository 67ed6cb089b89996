"""Logs: each line about a task has its fields, each line of streamq its event, and nothing is forged or lost."""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import anyio
import pytest

from streamq import RedisBroker, Reject, RetryLater, Worker, batch_task, current_delivery, task
from streamq.errors import ConfigurationError
from streamq.logs import JsonFormatter, TaskFields, TextFormatter, add_task_fields, task_fields
from tests.at_work import burst
from tests.docs.pages import ROOT

pytestmark = pytest.mark.anyio
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
shop = logging.getLogger("shop")


class Kept(logging.Handler):
    """Keeps what a handler of `streamq worker` would write, as JSON and as text."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(TaskFields())
        self.lines: list[dict] = []
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(JsonFormatter().format(record)))
        self.texts.append(TextFormatter().format(record))

    def of(self, **fields) -> list[dict]:
        """The lines that have these fields."""
        return [line for line in self.lines if line.items() >= fields.items()]


@pytest.fixture
def kept():
    """A handler at the root, for all levels."""
    handler, root = Kept(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


# --- the lines of handlers ---------------------------------------------------------------------


async def test_each_line_of_a_handler_names_its_task(server, kept):
    """In the event loop, in a thread, and in what both call; nothing is added outside, and nothing is replaced."""

    def deeper():
        shop.warning("deeper", extra={"order": 7})

    @task(name="looped")
    async def looped():
        await anyio.lowlevel.checkpoint()
        deeper()

    @task(name="threaded")
    def threaded():
        deeper()
        shop.warning("own", extra={"task_id": "mine", "trace_id": "forged"})

    async with RedisBroker(server.url) as broker:
        first = await broker.enqueue(looped.options(headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}))
        second = await broker.enqueue(threaded)
        await burst(broker, looped, threaded)
    shop.warning("outside")
    one, two = kept.of(message="deeper", order=7)
    by_name = {line["task"]: line for line in (one, two)}
    assert {name: line["task_id"] for name, line in by_name.items()} == {
        "looped": first.task_id, "threaded": second.task_id,
    }  # fmt: skip
    assert by_name["looped"].items() >= {"attempt": 1, "tier": "standard", "trace_id": TRACE}.items()
    assert "trace_id" not in by_name["threaded"]
    (own,) = kept.of(message="own")
    assert own.items() >= {"task": "threaded", "task_id": second.task_id, "attempt": 1, "task_id_": "mine"}.items()
    assert (own["trace_id_"], "trace_id" in own) == ("forged", False)
    (outside,) = kept.of(message="outside")
    assert not outside.keys() & {"task", "task_id", "attempt", "tier"}
    assert any(text.endswith(f" deeper [looped {first.task_id}, attempt 1]") for text in kept.texts)


async def test_runs_beside_each_other_have_their_own_fields(server, kept):
    """Twenty handlers, in turn in the same event loop."""

    @task(name="slow")
    async def slow(n):
        for _ in range(3):
            await anyio.sleep(0.001)
            shop.info("step", extra={"n": n, "own": current_delivery().task_id})

    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([slow.call(n) for n in range(20)])
        await burst(broker, slow)
    steps = kept.of(message="step")
    assert len(steps) == 60
    assert all(line["task_id"] == line["own"] for line in steps)


async def test_structlog_has_the_same_fields(server):
    """And keeps what the line says itself."""
    seen = []

    @task(name="send")
    async def send():
        seen.append(add_task_fields(None, "info", {"event": "sending", "tier": "mine"}))

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(send)
        await burst(broker, send)
    of_task = {"task": "send", "task_id": handle.task_id, "attempt": 1, "tier": "standard"}
    assert seen == [{"event": "sending", "tier_": "mine", **of_task}]
    assert task_fields() == {}


# --- the lines of streamq ----------------------------------------------------------------------


async def test_a_failed_attempt_and_a_death_are_fields_with_tracebacks(server, kept):
    """The death is an error; each has its traceback once."""

    @task(name="charge", retries=1, backoff=0.01)
    async def charge():
        raise ConnectionError("no bank")

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(charge)
        await burst(broker, charge)
    of_task = {"task": "charge", "task_id": handle.task_id, "tier": "standard"}
    why = {"error_type": "ConnectionError", "error": "no bank"}
    (retry,) = kept.of(event="retry")
    assert retry.items() >= {**of_task, **why, "attempt": 1, "level": "info"}.items()
    assert 0 < retry["delay"] < 1
    (failed,) = kept.of(event="failed")
    assert failed.items() >= {**of_task, **why, "attempt": 2, "reason": "retries_exhausted"}.items()
    (dead,) = kept.of(event="dead")
    assert dead.items() >= {**of_task, **why, "attempt": 2, "reason": "retries_exhausted", "level": "error"}.items()
    for line in (retry, dead):
        assert line["exc"].startswith("Traceback")
        assert line["exc"].rstrip().endswith("ConnectionError: no bank")
        assert line["exc"].count("in charge") == 1
    assert "exc" not in failed


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
async def test_the_level_of_failed_attempts_is_chosen(server, kept, level):
    """`log_failures`, for all of a worker; a death stays an error."""

    @task(name="charge", retries=1, backoff=0.01)
    async def charge():
        raise ConnectionError("no bank")

    async with RedisBroker(server.url) as broker:
        await broker.enqueue(charge)
        await burst(broker, charge, log_failures=level)
    assert [line["level"] for line in kept.of(task="charge") if line["event"] in ("retry", "failed")] == [level] * 2
    assert [line["level"] for line in kept.of(event="dead")] == ["error"]


@pytest.mark.parametrize("level", ["INFO", "critical", "", None, 20, b"info", ["info"]])
def test_a_level_that_is_none_is_refused(level):
    """By name, with those that there are."""
    with pytest.raises(ConfigurationError, match=r"^log_failures=.* cannot be used: give one of 'debug', 'info'"):
        Worker(RedisBroker("memory://"), tasks=[task(lambda: None, name="one")], log_failures=level)


async def test_a_success_is_a_line_for_the_debugger(server, kept):
    """With how long it took; also of a batch, and of a kept result. Without the level there is no line."""

    @task(name="one", result_ttl=60)
    async def one():
        return 1

    @batch_task(name="many", size=5, wait=0.01)
    async def many(items):
        return None

    async with RedisBroker(server.url) as broker:
        await broker.enqueue_many([one.call(), many.call(1), many.call(2)])
        await burst(broker, one, many)
        done = kept.of(event="done", level="debug")
        assert sorted(line["task"] for line in done) == ["many", "many", "one"]
        assert all(line["duration"] >= 0 for line in done)
        logging.getLogger().setLevel(logging.INFO)
        await broker.enqueue(one)
        await burst(broker, one)
    assert len(kept.of(event="done")) == 3


async def test_what_asks_to_run_later_says_when_and_why(server, kept):
    """And an end that the handler chose is its reason."""

    @task(name="poll")
    async def poll():
        raise RetryLater("not yet", after=0.02) if current_delivery().starts == 1 else Reject("never")

    async with RedisBroker(server.url) as broker:
        await broker.enqueue(poll)
        await burst(broker, poll)
    (postponed,) = kept.of(event="postponed", reason="not yet", delay=0.02, level="info")
    assert postponed["task"] == "poll"
    (dead,) = kept.of(event="dead", reason="rejected", error="never")
    assert "Reject" in dead["exc"]


async def test_a_message_that_is_none_is_named_as_far_as_it_can_be_read(real_server, kept):
    """The fields that can be read are there; no line is lost."""

    @task(name="one")
    async def one():
        pass

    async with RedisBroker(real_server.url) as broker:
        real_server.command("XADD", "queue:standard", "7-7", "task", b"\xff\xfe", "args", "[")
        real_server.command("XADD", "queue:standard", "8-8", "task", "one", "attempt", "many")
        await burst(broker, one)
    by_id = {line["task_id"]: line for line in kept.of(event="dead", reason="undecodable")}
    assert set(by_id) == {"7-7", "8-8"}
    assert by_id["8-8"]["task"] == "one"
    assert "task" not in by_id["7-7"]
    assert "attempt" not in by_id["8-8"]


async def test_an_exception_is_let_go_when_its_dead_letter_has_to_wait(real_server, caplog):
    """The frames of a run are kept by no settlement that the server refuses, nor by the lines of the log about it."""
    import gc
    import weakref

    class Big:
        """What the frame of a handler holds."""

    held = []
    caplog.set_level(logging.DEBUG)  # it keeps all records

    @task(name="charge", retries=0)
    async def charge():
        big = Big()
        held.append(weakref.ref(big))
        raise ConnectionError("no bank")

    async with RedisBroker(real_server.url) as broker:
        worker = Worker(broker, tasks=[charge])
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            real_server.command("SET", "queue:dead", "not a stream")
            await broker.enqueue(charge)
            with anyio.fail_after(10):
                while not worker.health.refused:
                    await anyio.sleep(0.01)
                while held[0]() is not None:
                    gc.collect()
                    await anyio.sleep(0.01)
            real_server.command("DEL", "queue:dead")
            worker.stop()


# --- the formatters ----------------------------------------------------------------------------


def record_of(**extra) -> logging.LogRecord:
    return logging.getLogger("shop").makeRecord("shop", 20, "p", 1, "said", (), None, extra=extra)


def test_any_extra_is_written():
    """As JSON has it, or as its text: bounded, never raising, no name in the place of another."""

    class Hostile:
        def __repr__(self):
            raise SystemExit("no repr")

        __str__ = __repr__

    deep: list = []
    for _ in range(5000):
        deep = [deep]
    line = json.loads(
        JsonFormatter().format(
            record_of(
                level="mine", exc="own", when=datetime(2026, 1, 2, tzinfo=UTC), big="x" * 50_000, deep=deep,
                odd=Hostile(), parts={"a": [1, None]}, number=2**70, half="\ud800", **{"new\nline": 1},
            )
        )
    )  # fmt: skip
    assert line["level"] == "info"
    assert (line["level_"], line["exc_"]) == ("mine", "own")
    assert line["when"].startswith("2026-01-02T00:00:00")
    assert len(line["big"]) < 11_000
    assert line["parts"] == {"a": [1, None]}
    assert "SystemExit" in line["odd"]
    assert line["new\nline"] == 1
    assert {"deep", "number", "half"} <= line.keys()
    many = json.loads(JsonFormatter().format(record_of(**{f"f{n}": n for n in range(150)})))
    assert many["more_fields"] == 50


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_fields_forge_nothing(formatter):
    """Neither the name of a task, nor its id, nor the name or value of a field."""
    bad = "x\n2026-01-01 00:00:00.000 ERROR   streamq[1] forged \x1b[31m\u202e"
    record = record_of(task=bad, task_id=bad, attempt=bad, **{bad: bad})
    text = formatter.format(record)
    assert "\n" not in text
    assert text.isprintable()


def test_a_filter_of_ours_never_stops_a_record():
    """Whatever the delivery is."""
    from streamq.handlers.context import delivery_var

    token = delivery_var.set(SimpleNamespace())  # type: ignore[arg-type]
    try:
        assert TaskFields().filter(record_of())
    finally:
        delivery_var.reset(token)


async def test_a_field_of_extra_takes_no_ones_place(server, kept):
    """It gets an underscore: the line stays that of its task, and no line but those of streamq has an event."""
    mine = {"task": "laundry", "task_id": 7, "attempt": None, "tier": "mine", "event": "dead"}

    @task(name="todo")
    async def todo():
        shop.info("saved", extra=mine)

    async with RedisBroker(server.url) as broker:
        handle = await broker.enqueue(todo)
        await burst(broker, todo)
    (line,) = kept.of(message="saved")
    of_task = {"task": "todo", "task_id": handle.task_id, "attempt": 1, "tier": "standard"}
    assert line.items() >= {**of_task, **{f"{name}_": value for name, value in mine.items()}}.items()
    assert "event" not in line
    assert any(text.endswith(f" saved [todo {handle.task_id}, attempt 1]") for text in kept.texts)


async def test_a_line_of_streamq_is_about_its_own_task(server, kept):
    """Not about the one that the same runner has had before."""

    @task(name="known")
    async def known():
        pass

    async with RedisBroker(server.url) as broker:
        await broker.enqueue(known)
        other = await broker.enqueue("nosuch")
        worker = Worker(broker, [known], concurrency=1)
        async with anyio.create_task_group() as group:
            await group.start(worker.run)
            with anyio.fail_after(10):
                while not kept.of(event="unknown_task"):
                    await anyio.sleep(0.01)
            worker.stop()
    (line,) = kept.of(event="unknown_task")
    assert (line["task"], line["task_id"]) == ("nosuch", other.task_id)


class Odd:
    """Whose texts raise, or would begin a line."""

    def __init__(self, kind):
        self.kind = kind

    def __repr__(self):
        return 'x\n{"level":"error","event":"dead"}\n'

    def __str__(self):
        raise self.kind('y\n{"level":"error","event":"dead"}\n')


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("form", "args"), [("%d rows", 1), ("price %s", 1), ("%s and %s", 1), ("none", 2), ("%(a)s", 1)]
)
def test_a_message_that_cannot_be_made_is_a_line_all_the_same(formatter, kind, form, args):
    """With its parts, on one line. logging's own report of it is not JSON, and its text began lines."""
    record = logging.LogRecord("shop", 20, "p", 1, form, (Odd(kind),) * args, None)
    text = formatter.format(record)
    assert "\n" not in text
    assert form.split()[-1] in text
    assert "cannot be formatted with" in text


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@pytest.mark.parametrize("created", [float("nan"), 1e300, -1e300, "soon", None])
def test_a_record_of_no_time_is_written_now(formatter, created):
    """Whoever made it."""
    record = record_of()
    record.created = created
    assert str(datetime.now(UTC).year) in formatter.format(record)[:20]


def test_a_percent_format_may_name_the_fields():
    """Outside of a run they are empty, and no line is lost."""
    record = record_of()
    assert TaskFields().filter(record)
    assert logging.Formatter("%(task)s|%(task_id)s|%(attempt)s|%(trace_id)s|%(message)s").format(record) == "||||said"
    assert not json.loads(JsonFormatter().format(record)).keys() & {"task", "task_id", "attempt", "tier", "trace_id"}


# --- one schema --------------------------------------------------------------------------------


def _events_of_code() -> set[str]:
    found = set()
    for path in (ROOT / "streamq").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if not (isinstance(call.func.value, ast.Name) and call.func.value.id == "log"):
                continue
            if call.func.attr not in ("debug", "info", "warning", "error", "exception", "at"):
                continue
            (event,) = [one.value for one in call.keywords if one.arg == "event"]
            found |= {one.value for one in ast.walk(event) if isinstance(one, ast.Constant)}
    return found


def test_the_table_of_events_is_whole():
    """Every event that the code logs is in docs/logs.md, and no other."""
    table = (ROOT / "docs" / "logs.md").read_text().partition("## Events")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall("`([a-z_]+)`", row)]
    assert len(named) == len(set(named))
    assert set(named) - {"event"} == _events_of_code() | {"output"}  # which is a record of `process_handle`


# --- with others -------------------------------------------------------------------------------

_SENTRY = """
import json, logging, sys
import anyio, sentry_sdk
from streamq import RedisBroker, Reject, Worker, task

seen = []
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", before_send=lambda event, hint: seen.append(event))

@task(retries=1, backoff=0.01)
async def charge(card):
    raise ConnectionError("no bank for " + card)

@task(retries=0)
def rejects():
    raise Reject("not this one")

@task(retries=0)
async def speaks():
    logging.getLogger("shop").error("a line of the handler's")

async def main():
    async with RedisBroker("memory://") as broker:
        await broker.enqueue_many([charge.call("4242"), rejects.call(), speaks.call()])
        await Worker(broker, tasks=[charge, rejects, speaks], burst=True).run()

anyio.run(main, backend=sys.argv[1])
print(json.dumps(seen, default=str))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_sentry_has_an_issue_for_each_death(backend):
    """With the exception, its stack, and the fields of the task; none for an attempt that is tried again."""
    out = subprocess.run(
        [sys.executable, "-c", _SENTRY, backend], capture_output=True, text=True, timeout=60, check=True
    )
    events = json.loads(out.stdout)
    deaths = {event["extra"]["task"]: event for event in events if event["extra"].get("event") == "dead"}
    assert set(deaths) == {"charge", "rejects"}
    assert len(events) == 3
    charge = deaths["charge"]
    assert charge["extra"].items() >= {"reason": "retries_exhausted", "attempt": 2, "tier": "standard"}.items()
    (error,) = charge["exception"]["values"]
    assert (error["type"], error["value"]) == ("ConnectionError", "no bank for 4242")
    assert error["stacktrace"]["frames"][-1]["function"] == "charge"

"""`streamq status`: what it shows, what it calls wrong, and how it exits."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import pytest

from streamq import Priority, RedisBroker, task
from streamq.cli.run_status import Limits, problems, remarks
from streamq.monitoring import CircuitMetrics, ConsumerMetrics, QueueMetrics, TierMetrics
from streamq.wire.acl import acl_rules
from tests.at_work import working

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def queue(**values: Any) -> QueueMetrics:
    return QueueMetrics(taken_at=NOW, covered_s=60.0, **values)


def worker(name: str = "w1", *, pending: int = 1, alive_s: float = 20.0) -> ConsumerMetrics:
    return ConsumerMetrics(name=name, pending=pending, idle_s=1.0, alive_s=alive_s, alive=alive_s > 0)


OPEN = CircuitMetrics(
    name="api", scope="process", worker="host:7", state="half_open", failures=3, error_type="OSError", error="gone",
    since=NOW,
)  # fmt: skip


@pytest.mark.parametrize(
    ("metrics", "limits", "says"),
    [
        (queue(), {}, []),
        (queue(depth=3, delayed=1), {}, ["no worker is alive: 3 tasks waiting, 1 task delayed"]),
        (queue(processing=1), {}, ["no worker is alive: 1 task held"]),
        (queue(depth=3, consumers=(worker(),)), {}, []),
        (queue(consumers=(worker(), worker("w2", alive_s=-59))), {}, []),
        (
            queue(consumers=(worker(), worker("w2", pending=2, alive_s=-180))),
            {},
            ["1 silent worker still held tasks that nobody has taken over: w2 (2, for 3.0m)"],
        ),
        (queue(consumers=(worker("w2", pending=0, alive_s=-180), worker())), {}, []),
        (
            queue(oldest_wait_s=31, tiers={"now": TierMetrics(name="now", oldest_wait_s=31)}),
            {"wait": 30.0},
            ["a task of tier 'now' has waited 31.0s: more than 30.0s"],
        ),
        (queue(oldest_wait_s=30), {"wait": 30.0}, []),
        (queue(depth=1001, consumers=(worker(),)), {"waiting": 1000}, ["1,001 tasks wait: more than 1,000"]),
        (queue(dead_letter_count=1), {"dead": 0}, ["1 dead letter: more than 0"]),
        (queue(dead_letter_count=1), {"dead": 1}, []),
        (queue(consumers=(worker(),)), {"workers": 2}, ["1 worker alive: fewer than 2"]),
    ],
    ids=str,
)
def test_what_is_wrong(metrics, limits, says):
    assert [*problems(metrics, Limits(**limits))] == says


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (queue(), []),
        (queue(circuits=(OPEN,)), ["1 circuit not closed: 'api' is half open in host:7"]),
        (queue(circuits=(OPEN,) * 7), [f"7 circuits not closed: {', '.join(['x'] * 5)} and 2 more"]),
        (queue(consumers=(worker(), worker("w2", alive_s=-1))), ["1 worker just fell silent: w2"]),
        (queue(dead_letters_dropped=2), ["2 dead letters fell off the bound of their stream"]),
        (queue(depth=1, consumers=(worker(pending=0),)), ["tasks wait, workers are alive, and nothing runs"]),
        (queue(depth=1, done=1, consumers=(worker(pending=0),)), []),
    ],
    ids=str,
)
def test_what_may_be_wrong(metrics, says):
    found = [line.replace("'api' is half open in host:7", "x") if len(metrics.circuits) > 1 else line
             for line in remarks(metrics)]  # fmt: skip
    assert [line.partition(": limits,")[0] for line in found] == says


@task(result_ttl=60)
async def add(one: int) -> int:
    return one


@pytest.mark.slow
@pytest.mark.paired
async def test_a_queue_at_work(real_server, streamq, anyio_backend):
    """The rows of the tiers and their sum; all figures as JSON, under the names of the monitor."""

    async def ask(*more: str) -> tuple[int, list[str]]:
        code, output = await anyio.to_thread.run_sync(partial(streamq, "status", "--url", real_server.url, *more))
        return code, output.splitlines()

    async with RedisBroker(real_server.url) as broker, working(broker, add):
        handles = [await broker.enqueue(add, 1), await broker.enqueue(add.options(priority=Priority.HIGH), 2)]
        await broker.enqueue(add.options(delay=60), 3)
        for handle in handles:
            await handle.result(timeout=10)
        code, (head, empty, columns, *rows) = await ask()
        assert (code, empty) == (0, "")
        assert head.startswith("queue 'queue', group 'workers', 20")
        assert head.endswith(": ok")
        assert columns.split()[:4] == ["TIER", "WAITING", "HELD", "DELAYED"]
        assert [row.split()[:4] for row in rows[:4]] == [
            ["critical", "0", "0", "0"], ["standard", "0", "0", "1"], ["bulk", "0", "0", "0"], ["all", "0", "0", "1"]
        ]  # fmt: skip
        assert rows[5] == "1 worker alive; 0 dead letters"
        assert "more: streamq doctor" in rows[6]
        code, (line,) = await ask("--json", "--min-workers", "2")
        found = json.loads(line)
        assert (code, found["ok"], found["problems"]) == (1, False, ["1 worker alive: fewer than 2"])
        assert (found["done"], found["delayed"], found["workers"]) == (2, 1, 1)
        assert (found["tiers"]["standard"]["delayed"], found["tasks"]["add"]["done"]) == (1, 2)
        assert found["consumers"][0]["alive"] is True


def test_nothing_is_there(shared_server, here):
    """An empty server is well, unless the user says how many workers there should be."""
    url = shared_server("valkey").url
    assert here("status", "--url", url)[0] == 0
    assert here("status", "--url", url, "--min-workers", "1")[0] == 1


def test_a_task_that_nobody_takes(shared_server, here):
    server = shared_server("valkey")
    server.command("XADD", "queue:standard", "*", "task", "send")
    code, out, _ = here("status", "--url", server.url)
    assert code == 1
    assert out[0].endswith(": something is wrong")
    assert out[1] == "wrong: no worker is alive: 1 task waiting"


def test_what_others_named_cannot_drive_the_terminal(shared_server, here):
    """The name of a consumer of somebody's, of a circuit, of a tier."""
    server = shared_server("valkey")
    server.command("XADD", "queue:standard", "*", "task", "send")
    server.command("XGROUP", "CREATE", "queue:standard", "workers", "0")
    server.command("XREADGROUP", "GROUP", "workers", "bad\x1b[31m\nok: all", "STREAMS", "queue:standard", ">")
    server.command("ZADD", "queue:standard:alive:workers", 1, "bad\x1b[31m\nok: all")
    server.command("ZADD", "queue:standard:alive:workers", 4e12, "w1")
    code, out, err = here("status", "--url", server.url)
    assert code == 1
    assert out[1].startswith(
        "wrong: 1 silent worker still held tasks that nobody has taken over: bad\\x1b[31m\\nok: all"
    )
    assert not any("\x1b" in line for line in [*out, *err])


def test_a_server_that_is_not_there(here):
    code, out, err = here("status", "--url", "redis://127.0.0.1:1")
    assert (code, out) == (2, [])
    assert "no connection to 127.0.0.1:1" in err[0]


def test_the_rights_of_a_monitor_are_enough(shared_server, here):
    server = shared_server("redis")
    rules = acl_rules(RedisBroker(server.url).keys, ["monitor"])
    server.command("ACL", "SETUSER", "looks", "reset", *rules.words()[1:], ">pw")
    try:
        server.command("XADD", "queue:standard", "*", "task", "send")
        server.command("ACL", "LOG", "RESET")
        url = server.url.replace("redis://", "redis://looks:pw@")
        assert here("status", "--url", url)[0] == 1
        assert server.command("ACL", "LOG") == []
    finally:
        server.command("ACL", "DELUSER", "looks")


@pytest.mark.parametrize("given", [["--max-wait", "soon"], ["--max-waiting", "-1"], ["--window", "1s"]])
def test_limits_that_cannot_be_used(here, given):
    code, out, err = here("status", "--url", "redis://127.0.0.1:1", *given)
    assert (code, out) == (2, [])
    assert given[1].rstrip("s") in err[-1]

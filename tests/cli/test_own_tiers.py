"""A queue with tiers of its own, from the command line: their names, by `--tiers` or STREAMQ_TIERS."""

from __future__ import annotations

import json
import re

import pytest

from streamq import RedisBroker, Tier
from streamq.wire.command_line import bring_home


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


TIERS = ("--tiers", "now,today,someday")
MODULE = """
from streamq import RedisBroker, Tier, task
broker = RedisBroker({url!r}, tiers=[Tier("now", threshold=100), Tier("today", threshold=10), Tier("someday")])

@task(retries=0)
async def send(x: int) -> None: ...
"""


def group(server, stream: str) -> None:
    server.command("XGROUP", "CREATE", stream, "workers", "0", "MKSTREAM")


def test_enqueue_replay_and_cancel(here, valkey):
    """By the name of the tier: which of them takes a priority is in the program alone."""
    group(valkey, "queue:now")
    code, out, err = here("enqueue", "send", "1", *TIERS, "--tier", "now", "--json")
    assert (code, json.loads(out[0])["stream"], err) == (0, "queue:now", [])
    code, _, err = here("enqueue", "send", "1", *TIERS)
    assert code == 2
    assert "give --tier, one of now, today, someday" in err[0]
    code, _, err = here("enqueue", "send", "1", "--tier", "now")
    assert (code, "(--tiers, RedisBroker(tiers=...))" in err[0]) == (2, True)

    valkey.command("XADD", "queue:dead", "*", "task_id", "old", "task", "send", "tier", "now", "args", "[1]")
    code, _, err = here("dlq", "replay", "--all")
    assert (code, valkey.command("XLEN", "queue:now")) == (1, 1)
    assert "died in the tier 'now'; this broker has critical, standard, bulk: give it the tiers" in err[0]
    code, (new,), err = here("dlq", "replay", "--all", "--tiers", "now=8,today,someday")  # as a worker has them
    assert (code, err, valkey.command("XLEN", "queue:now")) == (0, ["1 replayed"], 2)

    assert here("cancel", new)[0] == 1
    assert here("cancel", new, *TIERS)[:2] == (0, [f"{new}: withdrawn"])
    assert valkey.command("XLEN", "queue:now") == 1


def test_the_names_of_the_default_tiers_are_the_default_tiers(here, valkey):
    """With their thresholds, in any order."""
    code, out, _ = here("enqueue", "send", "--tiers", "bulk,critical,standard", "--priority", "high", "--json")
    assert (code, json.loads(out[0])["stream"]) == (0, "queue:critical")


def test_a_variable_has_them_for_all_commands(here, valkey, monkeypatch):
    """An option that is given goes before it, and the two options contradict each other."""
    monkeypatch.setenv("STREAMQ_TIERS", "now,today,someday")
    assert {"~queue:now", "~queue:someday"} <= set(here("acl", "--role", "worker")[1][0].split())
    assert "~queue:now" not in here("acl", "--role", "worker", "--queue", "mail:out")[1][0].split()
    monkeypatch.setenv("STREAMQ_QUEUE", "mail:out")
    assert "~queue:x" in here("acl", "--role", "worker", "--tiers", "x,y")[1][0].split()
    monkeypatch.delenv("STREAMQ_QUEUE")
    code, _, (line,) = here("doctor", *TIERS, "--queue", "mail:out")
    assert (code, "--queue mail:out and --tiers: a single stream has no tiers" in line) == (2, True)
    assert here("doctor", "--json")[1][0].count("queue:someday") == 2  # stream_missing
    valkey.command("XADD", "queue:dead", "*", "task_id", "old", "task", "send", "tier", "now", "args", "[1]")
    assert here("dlq", "replay", "old")[0] == 0


@pytest.mark.slow
def test_a_worker_has_those_of_its_module(start, app, valkey):
    """A variable that names others than its broker has is no reason to serve those that nobody sends to."""
    environment = {"STREAMQ_TIERS": "now,today,someday"}
    program = start("worker", "app", "--burst", "--url", valkey.url, env=environment)
    assert program.ended() == 2
    assert "STREAMQ_TIERS is now,today,someday, and no module has a broker with these tiers" in program.output
    (app / "own.py").write_text(MODULE.format(url=valkey.url))
    program = start("worker", "own", "--burst", "--tiers", "now=3", env=environment)
    assert program.ended() == 0, program.output
    assert "queue:now x3; not served: queue:today, queue:someday" in program.output
    assert (
        start("worker", "app", "--burst", "--url", valkey.url, env={"STREAMQ_TIERS": "bulk,standard,critical"}).ended()
        == 0
    )


@pytest.mark.parametrize("given", [",", "now,,x", "", "now=x"])
def test_names_that_are_none(here, given):
    """The answer shows names, not weights, which no command but the worker takes."""
    code, _, err = here("enqueue", "send", "--tiers", given)
    assert (code, "is not a tier: write their names, as in now,today,someday" in " ".join(err)) == (2, True)


@pytest.mark.slow
def test_a_task_that_lies_where_no_broker_reads(here, start, app, valkey):
    """The remedy of the doctor brings it home, with a handler that sends by the broker of its module."""
    group(valkey, "queue:now")
    here("enqueue", "relay", "--force")
    tier = re.search(r"Tier\(.*?\)", bring_home(RedisBroker(tiers=[Tier("now")]).keys, "queue:standard"))
    module = (
        MODULE.format(url=valkey.url)
        + """
@task(retries=0)
async def relay() -> None:
    await broker.enqueue(send, 1, priority=-5)
    await broker.enqueue(send, 2, priority=1_000_000)
"""
    )
    (app / "own.py").write_text(module.replace('Tier("someday")', f'Tier("someday"), {tier[0]}'))
    program = start("worker", "own", "--burst")
    assert program.ended() == 0, program.output
    assert valkey.command("XLEN", "queue:standard") == valkey.command("XLEN", "queue:dead") == 0
    (counts,) = [valkey.command("HGETALL", key) for key in valkey.keys() if key.startswith("queue:stats:workers:1")]  # noqa: SIM118
    assert {b"now|send|done", b"someday|send|done", b"standard|relay|done"} <= set(counts)


# --- a stream that nobody serves -------------------------------------------------------------------


def test_enqueue_refuses_where_no_worker_has_ever_been(here, valkey):
    """If others have been in other tiers. With --force it is sent, and a new queue is no reason to refuse."""
    assert here("enqueue", "send")[2] == []
    group(valkey, "queue:now")
    group(valkey, "queue:shop:later")  # of another namespace
    group(valkey, "queue:dead")
    code, out, (line,) = here("enqueue", "send")
    assert (code, out, valkey.command("XLEN", "queue:standard")) == (1, [], 1)
    assert line.startswith("streamq: error: queue:standard has no consumer group")
    assert "for the tier now; if the queue has tiers of its own, give --tiers now and --tier NAME" in line
    assert line.endswith("nothing was sent: give --force to send it all the same")
    code, out, (line,) = here("enqueue", "send", "--delay", "1h", "--tier", "bulk", "--json")
    assert (code, out, valkey.command("ZCARD", "queue:bulk:delayed")) == (1, [], 0)
    code, out, err = here("enqueue", "send", "--delay", "1h", "--tier", "bulk", "--json", "--force")
    assert (code, json.loads(out[0])["stream"], err) == (0, "queue:bulk", [])
    group(valkey, "queue:standard")
    assert here("enqueue", "send")[2] == []
    (line,) = here("enqueue", "send", "--tier", "bulk")[2]
    assert "for the tiers now, standard" in line


def test_enqueue_refuses_a_namespace_where_no_worker_has_ever_been(here, valkey):
    """If workers of streamq have been in another one: a group of another program says nothing."""
    group(valkey, "events:orders")
    group(valkey, "queue:dead")
    assert here("enqueue", "send", "--namespace", "shop")[::2] == (0, [])
    valkey.command("ZADD", "events:orders:alive:workers", 1, "w")
    code, out, (line,) = here("enqueue", "send", "--namespace", "shop", "--tier", "bulk")
    assert (code, out, valkey.command("XLEN", "shop:bulk")) == (1, [], 0)
    assert "no worker has served the namespace shop yet" in line
    assert "workers have served events: give another --namespace, or --app; nothing was sent" in line
    assert here("enqueue", "send", "--namespace", "shop", "--force")[::2] == (0, [])
    group(valkey, "shop:critical")
    assert "there are groups for the tier critical" in here("enqueue", "send", "--namespace", "shop")[2][0]


def test_a_user_who_may_not_look_leaves_no_trace(here, valkey):
    """The ACL LOG of a producer stays empty."""
    (line,) = here("acl", "--role", "producer", "--user", "bob", "--features", "results")[1]
    valkey.command(*line.replace("PASSWORD", "pw").split())
    valkey.command("ACL", "LOG", "RESET")
    group(valkey, "queue:now")
    url = valkey.url.replace("unix://", "unix://bob:pw@")
    try:
        code, _, err = here("enqueue", "send", "--url", url)
        assert (code, err, valkey.command("ACL", "LOG")) == (0, [], [])
        valkey.command("ACL", "SETUSER", "bob", "~queue:*", "+@all")
        valkey.command("ZADD", "shop:a:alive:workers", 1, "w")
        group(valkey, "shop:a")
        assert here("enqueue", "send", "--url", url, "--queue", "queue:x:y")[::2] == (0, [])  # may not look at shop
        assert here("enqueue", "send", "--url", url)[0] == 1
        assert valkey.command("ACL", "LOG") == []
    finally:
        valkey.command("ACL", "DELUSER", "bob")

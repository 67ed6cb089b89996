"""`streamq schedules`: list and remove schedules."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def valkey(shared_server):
    return shared_server("valkey")


def put(server, name, due, **changes):
    values = {"cron": "0 3 * * *", "tz": "Europe/Berlin", "task": "send", "stream": "queue:bulk"}
    values |= {"fields": ["task", "send", "args", '["a@b.c"]'], **changes}
    server.command("HSET", "queue:schedules", name, json.dumps(values))
    server.command("ZADD", "queue:ticks", due, name)


@pytest.mark.slow
def test_why_one_does_not_tick(streamq, valkey):
    """Each cause by itself: a worker may well run while a definition cannot be used, or its signature is refused."""
    put(valkey, "late", 1_767_225_600_000)
    valkey.command("HSET", "queue:schedules", "odd", '{"task":"send"}', "rubbish", "{")
    for name in ("odd", "rubbish"):
        valkey.command("ZADD", "queue:ticks", 1_767_225_600_001, name)
    code, output = streamq("schedules", "ls", "--url", valkey.url)
    _, late, odd, rubbish, summary = output.splitlines()
    assert code == 0
    assert late.endswith("  0 3 * * * Europe/Berlin, overdue")
    assert odd.endswith("  overdue, it has no field 'cron'")
    assert "overdue, it is not JSON: " in rubbish
    assert summary == (
        "queue:schedules holds 3 schedules, 1 overdue: no running worker sends their ticks, 2 that cannot tick: "
        "store anew, or remove (streamq schedules rm NAME)"
    )
    keys = {"STREAMQ_SIGNING_KEYS": "k1=" + "aa" * 32}
    code, output = streamq("schedules", "ls", "--json", "--url", valkey.url, env=keys)
    problems = {one["name"]: one["problem"] for one in map(json.loads, output.splitlines())}
    assert "sign" in problems["late"]
    assert problems["odd"] == "it has no field 'cron'"


@pytest.mark.slow
def test_listed_and_removed(streamq, valkey):
    """The next tick first, overdue ones too, also as JSON. `rm` exits with 1 if a name is unknown."""
    put(valkey, "far", 4_000_000_000_000)
    put(valkey, "late", 1_767_225_600_000, declared=True, cron="bad\x1b[31m")
    code, output = streamq("schedules", "ls", "--url", valkey.url)
    lines = output.splitlines()
    assert code == 0
    assert lines[0].startswith("NEXT (UTC)")
    assert lines[1].split()[:6] == ["2026-01-01", "00:00:00", "never", "late", "send", "code"]
    assert "  bad\\x1b[31m Europe/Berlin, overdue, cron expression 'bad\\x1b[31m' cannot be used: " in lines[1]
    assert lines[2].split()[:5] == ["2096-10-02", "07:06:40", "never", "far", "send"]
    assert lines[3].startswith("queue:schedules holds 2 schedules, 1 that cannot tick: store anew, or remove")

    code, output = streamq("schedules", "ls", "--json", "--url", valkey.url)
    late, far = map(json.loads, output.splitlines())
    assert (late["name"], late["overdue"], late["declared"]) == ("late", True, True)
    assert (far["args"], far["next"], far["tz"]) == (["a@b.c"], "2096-10-02T07:06:40+00:00", "Europe/Berlin")

    assert streamq("schedules", "rm", "far", "nobody", "--url", valkey.url) == (1, "far: removed\nnobody: not found")
    code, output = streamq("schedules", "rm", "late", "--json", "--url", valkey.url)
    assert (code, json.loads(output)) == (0, {"name": "late", "removed": True})
    assert streamq("schedules", "ls", "--url", valkey.url) == (0, "queue:schedules holds 0 schedules")
    assert not set(valkey.keys()) & {"queue:schedules", "queue:ticks", "queue:ticked"}

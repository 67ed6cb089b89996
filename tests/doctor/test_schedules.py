"""`streamq doctor` on schedules."""

from __future__ import annotations

import json

import pytest

from streamq import RedisBroker, SigningKeys
from streamq.doctor import Severity
from tests.doctor.examined import examined, ms, one

pytestmark = pytest.mark.anyio


def put(server, name, due):
    """Define a schedule by hand, with its next tick in seconds from now."""
    packed = {"cron": "@daily", "task": "send", "stream": "queue:bulk", "fields": ["task", "send"]}
    server.command("HSET", "queue:schedules", name, json.dumps(packed))
    server.command("ZADD", "queue:ticks", ms(due), name)


async def test_overdue_schedules(server, anyio_backend):
    """Overdue by more than a minute: a warning with the names and the remedy. The keys are known ones."""
    put(server, "fine", 600)
    put(server, "just now", -20)
    assert not {"schedules_overdue", "unknown_keys", "wrong_type"} & set((await examined(server.url)).codes())
    put(server, "late", -120)
    put(server, "later-still", -600)
    finding = one(await examined(server.url), "schedules_overdue")
    assert finding.severity is Severity.WARNING
    assert finding.evidence["names"] == ["later-still", "late"]
    assert 600 <= finding.evidence["late_s"] < 700
    assert finding.remedy.endswith("streamq schedules rm later-still late")


async def test_many_are_counted_and_none_is_left_out(server, anyio_backend):
    """The message names some and says how many more; the remedy removes all, or says that it is to be repeated."""
    bad = '{"cron":"61 * * * *","task":"t","stream":"queue:bulk","fields":["task","t"]}'
    names = [f"s{number:02}" for number in range(25)]
    for at in (1000, 9e15):
        for name in names[:5]:
            server.command("HSET", "queue:schedules", name, bad)
            server.command("ZADD", "queue:ticks", at, name)
        report = await examined(server.url)
        code = "schedules_overdue" if at == 1000 else "schedules_unusable"
        finding = one(report, code)
        assert "and 2 more" in finding.message
        assert finding.remedy.endswith("streamq schedules rm s00 s01 s02 s03 s04")
    assert at == 9e15
    server.command("ZADD", "queue:ticks", *(part for name in names for part in (1000, name)))
    finding = one(await examined(server.url), "schedules_overdue")
    assert "25 schedules are overdue" in finding.message
    assert "s00, s01, s02 and 22 more; s00: " in finding.message
    assert "schedules rm s00 s01 s02 s03 s04; start a worker" in finding.remedy
    assert finding.remedy.endswith("s24")
    for name in names:
        server.command("HSET", "queue:schedules", name, bad)
    remedy = one(await examined(server.url), "schedules_overdue").remedy
    assert remedy.endswith("s18 s19 (then for 5 more: run the doctor again)")


async def test_a_monitor_may_look(server, anyio_backend):
    """The role monitor gets the same finding as worker."""
    put(server, "late", -120)
    assert "schedules_overdue" in (await examined(server.url, role="monitor")).codes()


async def test_the_cause_is_named(server, anyio_backend):
    """An invalid definition says its field. One whose signature is refused is not to be removed, but signed anew."""
    put(server, "late", -120)
    put(server, "odd", -90)
    server.command("HSET", "queue:schedules", "odd", '{"cron":"@daily","task":"t","stream":"s","fields":["task"]}')
    finding = one(await examined(server.url), "schedules_overdue")
    assert "odd: fields=['task'] cannot be used: give names and values in turn" in finding.message
    assert finding.message.endswith("the others: no running worker knows them")
    assert "store anew, or remove: streamq schedules rm odd;" in finding.remedy
    assert finding.remedy.endswith("start a worker that knows them, or remove them: streamq schedules rm late")
    put(server, "never", -95)
    bad = '{"cron":"0 0 31 2 *","task":"t","stream":"queue:bulk","fields":["task","t"]}'
    server.command("HSET", "queue:schedules", "never", bad)
    finding = one(await examined(server.url), "schedules_overdue")
    assert "never: cron expression '0 0 31 2 *' cannot be used" in finding.message
    server.command("HDEL", "queue:schedules", "never")
    server.command("ZREM", "queue:ticks", "never")
    server.command("HDEL", "queue:schedules", "odd")
    server.command("ZREM", "queue:ticks", "odd")
    keys = SigningKeys({"k1": b"k" * 32}, sign_with="k1")
    finding = one(await examined(server.url, signing=keys), "schedules_overdue")
    assert "late: not signed" in finding.message
    assert finding.remedy.startswith("give the workers the key of late, or store them anew")
    assert " rm " not in finding.remedy


async def test_what_no_worker_can_tick(server, anyio_backend):
    """Before it is overdue: a bad expression, a field that is wrong, no next tick. One of code is registered again."""
    put(server, "fine", 600)
    good = {"cron": "@daily", "task": "t", "stream": "queue:bulk", "fields": ["task", "t"]}
    for name, changes in (
        ("bad", {"cron": "0 3 * *"}), ("odd", {"fields": ["task"]}), ("lost", {}), ("code", {"declared": True}),
    ):  # fmt: skip
        server.command("HSET", "queue:schedules", name, json.dumps({**good, **changes}))
    server.command("ZADD", "queue:ticks", ms(600), "odd")
    finding = one(await examined(server.url, namespace="queue", group="mail"), "schedules_unusable")
    assert finding.severity is Severity.WARNING
    assert list(finding.evidence["names"]) == ["bad", "lost", "odd"]
    assert "bad: cron expression '0 3 * *' cannot be used: " in finding.message
    assert "odd: fields=['task'] cannot be used" in finding.message
    assert "lost: it has no next tick in queue:ticks" in finding.message
    assert finding.remedy == "store anew, or remove: streamq schedules rm bad lost odd --group mail"
    async with RedisBroker(server.url) as broker:
        listed = {one.name: one.problem for one in await broker.schedules()}
    assert listed["bad"].startswith("cron expression '0 3 * *' cannot be used: ")
    assert (listed["fine"], listed["code"], listed["lost"]) == ("", "", "it has no next tick")

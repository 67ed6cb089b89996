"""`streamq doctor` on schedules."""

from __future__ import annotations

import json

import pytest

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
    put(server, "later still", -600)
    finding = one(await examined(server.url), "schedules_overdue")
    assert finding.severity is Severity.WARNING
    assert finding.evidence["names"] == ["later still", "late"]
    assert 600 <= finding.evidence["late_s"] < 700
    assert finding.remedy.endswith("streamq schedules rm 'later still' late")


async def test_a_monitor_may_look(server, anyio_backend):
    """The role monitor gets the same finding as worker."""
    put(server, "late", -120)
    assert "schedules_overdue" in (await examined(server.url, role="monitor")).codes()

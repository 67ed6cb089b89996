"""Values in internal keys that streamq did not write, and streams whose ids are used up, are named."""

from __future__ import annotations

import pytest

from tests.doctor.examined import examined, one

pytestmark = pytest.mark.anyio

PLANTED = {
    "queue:standard:leases:workers": ("HSET", "evil", "abc"),
    "queue:standard:crashes:workers": ("HSET", "1-1", b"\xff"),
    "queue:standard:alive:workers": ("ZADD", "+inf", "evil"),
    "queue:rate:work": ("HSET", "tail", "nan"),
    "queue:circuit:c": ("HSET", "state", "ajar"),
    "queue:once:k": ("HSET", "token", "abc"),
    "queue:permits:work": ("ZADD", 9e15, "x"),
    "queue:stats:workers:totals": ("HSET", "dead_dropped", -5),
}


@pytest.mark.parametrize("key", PLANTED)
async def test_a_foreign_value_is_named(server, key):
    """With its key and what is there."""
    command, *rest = PLANTED[key]
    server.command(command, key, *rest)
    finding = one(await examined(server.url), "foreign_values")
    assert list(finding.evidence["values"]) == [key]


@pytest.mark.parametrize("value", ["abc", "-5", "1.5", 10**15, 2**63 - 1, "007" * 9])
async def test_a_foreign_count_of_dropped_dead_letters_is_named_and_does_not_count(server, value):
    """It is no number of dead letters."""
    server.command("HSET", "queue:stats:workers:totals", "dead_dropped", value)
    report = await examined(server.url)
    assert f"dead_dropped: {value}" in str(one(report, "foreign_values").evidence)
    assert "dead_letters_dropped" not in report.codes()


@pytest.mark.parametrize("key", ["queue:standard", "queue:dead"])
async def test_a_stream_whose_ids_are_used_up_is_named(server, key):
    """It takes no further entry."""
    server.command("XADD", key, f"{2**64 - 1}-{2**64 - 1}", "task", "t")
    report = await examined(server.url)
    assert "clock_went_back" not in report.codes()
    finding = one(report, "ids_used_up")
    assert finding.evidence["stream"] == key

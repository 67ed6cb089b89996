"""Delayed tasks: soon enough on an idle worker. What they cost while they wait: `tests/benchmarks/test_idle.py`."""

from __future__ import annotations

import statistics

import pytest

from tests.policy.measure_delays import lateness

pytestmark = pytest.mark.slow


async def test_a_delayed_task_starts_when_it_is_due(real_server, anyio_backend):
    """At most 50 ms late, half of the time at least: this machine may be busy."""
    found = await lateness(real_server.url, 20, within=0.6)
    assert len(found) == 20
    assert found[0] >= -0.002  # never early, but for the server's whole milliseconds
    assert statistics.median(found) < 0.05

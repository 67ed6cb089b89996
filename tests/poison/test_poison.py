"""P13, P14: good tasks beside poison take no more than twice their usual time, and every task is accounted for.

The long form measures 3,000 good tasks beside each kind: `python -m tests.poison`.
"""

from __future__ import annotations

import zlib

import pytest

from tests.poison.kinds import KINDS
from tests.poison.measure import measure

pytestmark = [pytest.mark.slow, pytest.mark.paired, pytest.mark.timeout(100)]

GOOD = 300
MOST = 2.0
SLACK = 1.5  # seconds that a busy machine may add to so short a run


async def test_good_tasks_beside_poison(real_server, anyio_backend):
    """One kind, drawn by the backend; one pair of runs."""
    name = min(set(KINDS) - {"crash-loop"}, key=lambda name: zlib.crc32(f"{anyio_backend} {name}".encode()))
    result = measure(real_server, KINDS[name], anyio_backend, good=GOOD, pairs=1, workers=1)
    assert result.findings == []
    assert result.poisoned[0] < MOST * result.usual[0] + SLACK, str(result)

"""What finished tasks leave in the server: nothing each (see `left`)."""

from __future__ import annotations

import pytest

from tests.benchmarks.left import left
from tests.servers import REAL_KINDS, available

_TASKS = 5000
_KIB = 1024


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_a_finished_task_leaves_nothing(kind):
    """P10: four times the tasks leave the same, some KiB; and a histogram of the server's for each kind of command.

    Which kinds are used is partly a matter of time: a sweep, or a tick of the scheduler, comes or does not.
    """
    if not available(kind):
        pytest.skip(f"no {kind}-server on PATH")
    few, many = await left(kind, _TASKS), await left(kind, 4 * _TASKS)
    grown = (many.total - many.histograms) - (few.total - few.histograms)
    assert abs(grown) < 3 * _TASKS, "less than a byte for each further task"
    assert many.total - many.histograms < 64 * _KIB
    assert many.histograms <= many.kinds * 32 * _KIB, "so much for each kind of command, however often it is used"

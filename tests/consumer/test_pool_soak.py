"""The short form of `python -m tests.pool_soak`: processes that leak, exit, overrun, are cancelled and killed."""

from __future__ import annotations

import pytest

from tests.pool_soak import soak

pytestmark = [pytest.mark.slow, pytest.mark.paired, pytest.mark.timeout(120)]


def test_each_task_ends_as_it_should(real_server, anyio_backend_name):
    """None is lost, no process is left, and none is larger than its bound and one run."""
    one = soak(real_server, anyio_backend_name, 5.0)
    assert one.wrong == []
    assert one.killed >= 2
    assert one.outcomes["leaks: True"] >= 20

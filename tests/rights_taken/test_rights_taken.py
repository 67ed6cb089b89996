"""P11, P14: a right that is taken away for a while loses no task, and somebody names it.

The long form takes every right: `python -m tests.rights_taken`.
"""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from tests.rights_taken.play import Result, all_rights, drawn, kind_of, play, quick_pauses

pytestmark = [pytest.mark.slow, pytest.mark.paired, pytest.mark.timeout(100)]


async def test_features_under_a_right_that_is_taken_away(real_server, anyio_backend):
    """One right of each kind, side by side; which one is drawn by the backend."""
    rights = all_rights(real_server)
    results: list[Result] = []

    async def one(place: int) -> None:
        results.append(await play(real_server, f"r{place}", place))

    with quick_pauses():
        async with anyio.create_task_group() as group:
            for right in drawn(rights, anyio_backend):
                group.start_soon(partial(one, rights.index(right)))
    assert len(results) == 4
    assert all(result.accepted > 150 for result in results)
    assert [str(result) for result in results if result.findings] == []


def test_every_right_has_its_kind(real_server):
    """Those that only a new connection needs are told apart, and the table has all kinds."""
    kinds = {kind_of(right) for right in all_rights(real_server)}
    assert kinds == {"command", "key", "channel", "connecting"}

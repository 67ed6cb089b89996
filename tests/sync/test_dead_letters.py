"""Many dead letters at once, for a thread: search, figures, operations, lines."""

from __future__ import annotations

import time

import anyio
import pytest

from streamq import SyncBroker
from streamq.dead_letter import DeadLetterFilter
from streamq.errors import OperationNotFoundError, SyncCallError
from tests.conftest import BACKENDS
from tests.dead_letter.letters import bury, bury_many, dead_ids, replayed_from


def test_search_and_figures(server):
    bury_many(server, 30)
    bury(server, "mail", task="mail")
    with SyncBroker(server.url) as broker:
        queue = broker.dead_letter_queue()
        result = queue.search(DeadLetterFilter(task_name="mail"), examine=10)
        assert ([one.task_id for one in result.letters], result.examined) == (["mail"], 10)
        assert queue.search(after=result.after, count=100).after is None
        stats = queue.stats(examine=20)
        stats = queue.stats(before=stats)
        assert [(one.task_name, one.count) for one in stats.groups] == [("send", 30), ("mail", 1)]


def test_an_operation_is_stopped_and_resumed(server):
    """Its pauses block the thread."""
    bury_many(server, 25)
    with SyncBroker(server.url) as broker:
        queue = broker.dead_letter_queue()
        dry = queue.start("replay", dry_run=True, rate=100)
        assert len(list(dry.run())) == 25
        operation = dry.confirm()
        began = time.monotonic()
        for seen, _ in enumerate(operation.run(), 1):
            if seen == 10:
                assert operation.stop().state == "stopped"
        assert seen == 10
        again = queue.operation(operation.id)
        assert len(list(again.run())) == 15
        assert time.monotonic() - began > 0.1
        assert again.refresh().state == again.progress.state == "finished"
        assert [one.id for one in queue.operations()] == [again.id]
        assert "done=25" in repr(again)
        with pytest.raises(OperationNotFoundError):
            queue.operation("x")
    assert replayed_from(server) == [f"t{number}" for number in range(25)]


def test_edit_and_purge(server):
    for name in ("a", "b"):
        bury(server, name)
    with SyncBroker(server.url) as broker:
        queue = broker.dead_letter_queue()
        operation = queue.start("replay", limit=1, edits=True)
        assert [one.error for one in operation.run(edit=lambda letter: (["new"], {}))] == [None]
        assert len(list(queue.start("purge").run())) == 1
    assert dead_ids(server) == []
    assert b'["new"]' in server.command("XRANGE", "queue:standard", "-", "+")[0][1]


def test_lines(server):
    bury_many(server, 5)
    with SyncBroker(server.url) as broker:
        queue = broker.dead_letter_queue()
        lines = list(queue.export())
        assert [one.error for one in queue.import_lines(lines)] == [None] * 5
    assert dead_ids(server) == [f"t{number}" for number in range(5)] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_an_event_loop_it_is_refused(server, backend):
    """It would stop the loop."""
    with SyncBroker(server.url) as broker:
        queue = broker.dead_letter_queue()
        operation = queue.start("purge")
        calls = [
            queue.search, queue.stats, queue.operations, lambda: queue.start("purge"), lambda: queue.operation("x"),
            lambda: next(queue.export()), lambda: next(queue.import_lines([b"{}"])), operation.stop, operation.refresh,
            operation.confirm, lambda: next(operation.run()),
        ]  # fmt: skip

        async def main() -> None:
            for call in calls:
                with pytest.raises(SyncCallError, match="RedisBroker"):
                    call()

        anyio.run(main, backend=backend)
